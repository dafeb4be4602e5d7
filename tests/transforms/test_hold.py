"""Labels of a training in a small form: what the loss gets is what it got from float masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import ball
from monai.data import DataLoader, MetaTensor
from regzoo.engines import PreparePair
from regzoo.samplers import LabelPairDataset, TwoStageSampler
from regzoo.transforms import HoldLabelsd

SIZE = (14, 12, 10)


def item(*centres: float, sides: tuple[str, ...] = ("fixed", "moving")) -> dict[str, Any]:
    """Balls of 2 voxels along the diagonal, each a label."""
    made: dict[str, Any] = {}
    for shift, side in enumerate(sides):
        masks = np.stack([ball(SIZE, (c + shift / 2, c, c), 2) for c in centres]).astype(np.float32)
        made[f"{side}_image"] = MetaTensor(torch.rand(1, *SIZE), affine=torch.eye(4))
        made[f"{side}_label"] = MetaTensor(torch.from_numpy(masks), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    return made


def batches(items: list[dict[str, Any]], labels: int, held: bool) -> list[dict[str, torch.Tensor]]:
    """What the loss gets in an epoch."""
    transform = HoldLabelsd() if held else (lambda case: case)
    data = LabelPairDataset(items, transform=transform, labels_per_pair=labels, progress=False)
    loader = DataLoader(data, batch_size=len(items), sampler=TwoStageSampler(data, seed=1))
    return [PreparePair()(batch)[1] for batch in loader]


APART, OVERLAPPING = (3, 8), (3, 4)


@pytest.mark.parametrize("labels", [0, 1, 3])
@pytest.mark.parametrize(
    "items", [[item(*APART)], [item(*OVERLAPPING)], [item(*APART), item(*APART)], [item(*APART), item(*OVERLAPPING)]]
)
def test_a_training_sees_the_same_labels(items: list[dict[str, Any]], labels: int) -> None:
    for found, expected in zip(batches(items, labels, True), batches(items, labels, False), strict=True):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].dtype == torch.float32 and torch.equal(found[key], value)


def test_one_soft_label_in_a_batch_changes_no_other() -> None:
    soft = item(*APART)
    for side in ("fixed", "moving"):
        soft[f"{side}_label"] = soft[f"{side}_label"] * 0.5
    items = [item(*APART), soft]
    (found,), (expected,) = (batches(items, 0, held) for held in (True, False))
    assert torch.equal(found["fixed_label"], expected["fixed_label"])


@pytest.mark.parametrize(("centres", "dtype", "channels"), [(APART, torch.uint8, 1), (OVERLAPPING, torch.bool, 2)])
def test_labels_that_exclude_each_other_are_a_map(
    centres: tuple[float, ...], dtype: torch.dtype, channels: int
) -> None:
    given = item(*centres, sides=("fixed",))
    label = HoldLabelsd()(given)["fixed_label"]
    assert label.dtype == dtype and label.shape == (channels, *SIZE)
    assert torch.equal(label.affine, given["fixed_label"].affine)


def test_labels_that_overlap_in_one_image_are_masks_in_both() -> None:
    given = item(*APART)
    given["moving_label"][1] = given["moving_label"][0]
    held = HoldLabelsd()(given)
    assert held["fixed_label"].dtype == held["moving_label"].dtype == torch.bool and "label_numbers" not in held


def test_soft_labels_and_images_without_labels_stay() -> None:
    given = item(*APART)
    given["fixed_label"] = given["fixed_label"] * 0.5
    assert HoldLabelsd()(given)["fixed_label"] is given["fixed_label"]
    alone = {"fixed_image": torch.rand(1, *SIZE)}
    assert HoldLabelsd()(alone) == alone


def test_many_labels_need_a_larger_type() -> None:
    masks = torch.eye(300).view(300, 10, 6, 5)
    held = HoldLabelsd()({"fixed_label": MetaTensor(masks)})
    assert held["fixed_label"].dtype == torch.int16
    assert torch.equal(held["fixed_label"].as_tensor() == held["label_numbers"].view(-1, 1, 1, 1), masks > 0)
