"""What a batch of the loader becomes on its way to network and loss."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from monai.data import MetaTensor
from regzoo.engines import PreparePair

SIZE = (3, 4, 5)
CHANNELS = {
    "fixed_image": 1,
    "moving_image": 1,
    "fixed_label": 2,
    "moving_label": 2,
    "fixed_distance": 1,
    "moving_distance": 1,
}


def batch() -> dict[str, object]:
    """Two samples; what a case has besides is not for the network."""
    tensors = {
        key: MetaTensor(torch.full((2, count, *SIZE), float(value), dtype=torch.float64), affine=torch.eye(4))
        for value, (key, count) in enumerate(CHANNELS.items())
    }
    return {**tensors, "seed": torch.tensor([3, 4]), "case": ["a", "b"], "fixed_native": torch.zeros(2, 1, 9, 9, 9)}


@pytest.mark.parametrize(
    ("inputs", "values"),
    [
        (None, [0, 1]),
        (("fixed_image", "moving_image", "moving_label"), [0, 1, 3, 3]),
        (("moving_label", "fixed_image", "moving_distance"), [3, 3, 0, 5]),
    ],
)
def test_what_the_network_sees(inputs: tuple[str, ...] | None, values: list[int]) -> None:
    prepare = PreparePair() if inputs is None else PreparePair(inputs=inputs)
    image, targets = prepare(batch(), "cpu", True)
    assert type(image) is torch.Tensor
    assert image.dtype == torch.float32
    assert image.shape == (2, len(values), *SIZE)
    assert [channel.unique().tolist() for channel in image.unbind(1)] == [[value] for value in values]
    assert set(targets) == set(CHANNELS)
    for value, key in enumerate(CHANNELS):
        assert type(targets[key]) is torch.Tensor
        assert targets[key].dtype == torch.float32
        assert bool((targets[key] == value).all())


def test_a_pair_without_labels_and_distances() -> None:
    images = {key: value for key, value in batch().items() if "label" not in key and "distance" not in key}
    image, targets = PreparePair()(images)
    assert image.shape == (2, 2, *SIZE)
    assert set(targets) == {"fixed_image", "moving_image"}


def test_augmented_before_it_is_stacked() -> None:
    def augment(pair: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, torch.Tensor]:
        assert set(pair) == set(CHANNELS)
        return {key: value + 10 * seeds.view(-1, 1, 1, 1, 1) for key, value in pair.items()}

    original = batch()
    image, targets = PreparePair(augment, ("fixed_image", "moving_image", "moving_label"))(original)
    assert image[:, :, 0, 0, 0].tolist() == [[30, 31, 33, 33], [40, 41, 43, 43]]
    assert targets["moving_distance"][:, 0, 0, 0, 0].tolist() == [35, 45]
    assert float(original["fixed_image"].max()) == 0  # type: ignore[attr-defined]
