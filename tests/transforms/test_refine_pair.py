"""What the refinement of a case starts from, which labels it compares, and what it puts into the case."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bundle_list import config
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from regzoo.case import FIXED, MOVING, SIDES, WARPED, Case, Key
from regzoo.errors import RegZooError
from regzoo.spatial import DisplacementField, Grid
from regzoo.transforms import RefinePaird, SplitOutlinesd, refine
from scipy.ndimage import gaussian_filter

SHAPE = (6, 5, 4)
#: The grids of the files and of the network.
NATIVE = Grid((36, 32, 30), np.diag([2.0, 2.0, 2.0, 1.0]))
NETWORK = Grid((13, 12, 11), np.diag([6.0, 6.0, 6.0, 1.0]))
TRUE_MM = 4.0


def case(fixed: torch.Tensor, moving: torch.Tensor) -> Case:
    return {FIXED.native_label: MetaTensor(fixed), MOVING.native_label: MetaTensor(moving)}  # type: ignore[misc]


@pytest.mark.parametrize("channels", [None, [0, 3]])
def test_labels_on_one_side_do_not_count(channels: list[int] | None) -> None:
    fixed, moving = torch.zeros(4, *SHAPE), torch.zeros(4, *SHAPE[::-1])
    fixed[[0, 2, 3], 1], moving[[1, 2, 3], 2] = 1, 1
    moving[3] *= 0.5
    refinement = RefinePaird("labels", labels=channels)
    found = refinement._labels(case(fixed, moving))
    first = 2 if channels is None else 3
    assert torch.equal(found["fixed"], fixed[first:]) and torch.equal(found["moving"], moving[first:])
    with pytest.raises(RegZooError, match="no label in common"):
        refinement._labels(case(fixed[:2], moving[:2]))


def on(grid: Grid, values: np.ndarray | torch.Tensor) -> MetaTensor:
    return MetaTensor(torch.as_tensor(values).float()[None], affine=torch.as_tensor(grid.affine))


def ball(shift_mm: float = 0.0) -> np.ndarray:
    points = np.stack(np.meshgrid(*[np.arange(n) for n in NATIVE.shape], indexing="ij"))
    return np.linalg.norm(points - np.reshape((17 + shift_mm / 2, 16, 15), (3, 1, 1, 1)), axis=0) < 6


def pair() -> Case:
    """A CT of a ball in texture, and the same `TRUE_MM` further along the first axis, as a bundle prepares them."""
    texture = gaussian_filter(np.random.default_rng(0).standard_normal(NATIVE.shape), 2) * 200
    item: Any = {Key.CASE: "a", FIXED.image: on(NETWORK, torch.zeros(NETWORK.shape))}
    for side, shift in ((FIXED, 0.0), (MOVING, TRUE_MM)):
        image = np.roll(texture, int(shift / 2), axis=0) + 100 * gaussian_filter(ball(shift).astype(float), 1)
        item[side.native_image] = on(NATIVE, image)
    return item


def predicted(mm: float) -> torch.Tensor:
    """The DDF of a shift, (3, X, Y, Z), voxels of the network grid."""
    return torch.tensor([mm / 6, 0, 0]).view(3, 1, 1, 1).expand(3, *NETWORK.shape).clone()


def shift_of(item: Case) -> np.ndarray:
    """The mean displacement of the fixed ball, mm."""
    field = DisplacementField.from_ddf(item[Key.PRED], item[Key.PRED_GRID], NATIVE).displacement
    return field[:, torch.from_numpy(ball())].mean(1).numpy()


def conditional_refinement(name: str) -> Any:
    """The step of a configuration of the bundle that predicts labels."""
    parser = ConfigParser(config("prostate_mr_trus_conditional_seg", name))
    parser["refine"], parser["served"] = True, False
    return parser.get_parsed_content("refinement")


@pytest.mark.parametrize("start", [0.0, 2.0, TRUE_MM, -2.0])
def test_a_network_s_field_gets_better_or_stays(start: float) -> None:
    with torch.inference_mode():
        item = pair() | {Key.PRED: predicted(start)}
        found = RefinePaird("ct", options={"spacing": 2.0, "steps": [20, 20]})(item)
    done, grid = found[Key.REFINEMENT], found[Key.PRED_GRID]
    assert done["objective_after"] <= done["objective_before"]
    assert (grid.spacing < NETWORK.spacing).all() and found[Key.PRED].shape == (3, *grid.shape)
    before, after = (abs(mm - TRUE_MM) for mm in (start, shift_of(found)[0]))
    assert after < max(0.3 * before, 0.2)
    assert np.abs(shift_of(found)[1:]).max() < 0.2
    assert torch.equal(item[Key.PRED], predicted(start)) and Key.REFINEMENT not in item


def test_without_steps_the_network_s_field_stays() -> None:
    """On a finer grid, and beyond the outermost voxels of the network's."""
    found = RefinePaird("ct", options={"steps": [0]})(pair() | {Key.PRED: predicted(2.0)})
    assert not found[Key.REFINEMENT]["improved"]
    field = DisplacementField.from_ddf(found[Key.PRED], found[Key.PRED_GRID], NATIVE).displacement
    np.testing.assert_allclose(field.flatten(1).T, np.broadcast_to([2.0, 0, 0], (field[0].numel(), 3)), atol=0.01)


@pytest.mark.parametrize(
    ("name", "drawn", "expected"), [("inference", False, -4.0), ("inference", True, 4.0), ("evaluate", True, -4.0)]
)
def test_predicted_labels_drive_a_field_unless_the_user_draws_some(name: str, drawn: bool, expected: float) -> None:
    """The moving ball lies 4 mm before the predicted one and 4 mm behind the drawn one, the truth of an evaluation."""
    item: Any = pair() | {MOVING.native_label: on(NATIVE, ball()), WARPED.label: on(NATIVE, ball(4.0))}
    item |= {Key.PRED: torch.rand(1, *NETWORK.shape), Key.LABELS_PREDICTED: True}
    if drawn:
        item[FIXED.native_label] = on(NATIVE, ball(-4.0))
    with torch.inference_mode():
        found = conditional_refinement(name)(item)
    assert found[Key.REFINEMENT]["improved"] and not found[Key.LABELS_PREDICTED]
    np.testing.assert_allclose(shift_of(found), [expected, 0, 0], atol=0.7)


def test_a_prediction_with_outlines_is_split() -> None:
    """The first channels stay the DDF; the others become the probabilities of two labels in each image."""
    fixed, moving = torch.rand(2, 2, *SHAPE) / 2
    logits = [torch.cat([1 - side.sum(0, keepdim=True), side]).log() + 3 for side in (fixed, moving)]
    ddf = torch.rand(3, *SHAPE)
    found = SplitOutlinesd()({Key.PRED: torch.cat([ddf, *logits])})  # type: ignore[typeddict-item]
    assert torch.equal(found[Key.PRED], ddf)
    torch.testing.assert_close(found[FIXED.outline], fixed)
    torch.testing.assert_close(found[MOVING.outline], moving)


@pytest.mark.parametrize(("drawn", "prefer", "expected"), [(False, False, 4.0), (True, False, -4.0), (True, True, 4.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_outlines_of_both_images_drive_a_field(drawn: bool, prefer: bool, expected: float, masked: bool) -> None:
    """The moving ball lies 4 mm behind in the outlines and 4 mm before in the drawn labels."""
    item: Any = pair() | {Key.PRED: torch.zeros(3, *NATIVE.shape)}
    for side, shift in ((FIXED, 0.0), (MOVING, 4.0)):
        item[side.image] = on(NATIVE, torch.zeros(NATIVE.shape))
        item[side.outline] = torch.from_numpy(gaussian_filter(ball(shift).astype(np.float32), 0.7))[None]
        if masked:
            item[side.mask] = on(NATIVE, torch.ones(NATIVE.shape))
    if drawn:
        item |= {FIXED.native_label: on(NATIVE, ball()), MOVING.native_label: on(NATIVE, ball(-4.0))}
    found = RefinePaird("labels", prefer_predicted=prefer)(item)
    assert found[Key.REFINEMENT]["improved"]
    np.testing.assert_allclose(shift_of(found), [expected, 0, 0], atol=0.7)


def test_a_ct_stored_1024_too_high_is_compared_in_hounsfield_units(caplog: pytest.LogCaptureFixture) -> None:
    """The truth is the refinement of the same two CTs in Hounsfield units, a ball of tissue in air."""
    options = {"spacing": 4.0, "steps": [10]}
    item: Any = pair() | {Key.PRED: predicted(0.0)}
    for side, shift in ((FIXED, 0.0), (MOVING, TRUE_MM)):
        air = gaussian_filter(ball(shift).astype(float), 4) < 0.05
        values = np.where(air, -1000, item[side.native_image][0].numpy() + 40).round()
        item[side.native_image] = on(NATIVE, values)
    truth = RefinePaird("ct", options=options)(item)
    assert truth[Key.REFINEMENT]["improved"] and not caplog.records
    stored = on(NATIVE, item[MOVING.native_image][0].as_tensor() + 1024)
    found = RefinePaird(True, "ct", options=options)(item | {MOVING.native_image: stored})
    assert torch.equal(found[Key.PRED], truth[Key.PRED])
    assert found[MOVING.native_image] is stored
    assert "1024 was subtracted" in caplog.text
    caplog.clear()
    RefinePaird("ct", options=options | {"intensities": [864.0, 1264.0]})(item | {MOVING.native_image: stored})
    RefinePaird("mr", options=options)(item | {MOVING.native_image: stored})
    assert not caplog.records


def test_a_ct_whose_units_are_unknown_is_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    item: Any = pair() | {Key.PRED: predicted(0.0)}
    item[MOVING.native_image] = on(NATIVE, item[MOVING.native_image][0].as_tensor().clamp(0, 100) / 100)
    RefinePaird("ct", options={"steps": [0]})(item)
    (line,) = {entry.getMessage() for entry in caplog.records if "go from 0 to 1;" in entry.getMessage()}
    assert "is not in Hounsfield units" in line and "compared as they are" in line


@pytest.mark.parametrize("voxels", [None, 50])
def test_a_small_pair_is_refined_or_a_warning_says_why_not(
    voxels: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A mouse, in an image of 5 mm; 50 voxels that count are too few."""
    item: Any = pair() | {Key.PRED: predicted(0.0)}
    grid = Grid(NATIVE.shape, np.diag([0.15, 0.15, 0.15, 1.0]))
    for side in SIDES:
        item[side.native_image] = on(grid, item[side.native_image][0].as_tensor())
    if voxels:
        mask = np.zeros(NATIVE.shape)
        mask[10:15, 10:15, 10:12] = 1
        item[FIXED.mask] = on(grid, mask)
    done = RefinePaird("mr", options={"steps": [5, 5, 5]})(item)[Key.REFINEMENT]
    assert max(done["spacing_mm"]) < 0.2
    assert done["improved"] == (voxels is None) == ("took no step" not in caplog.text)


def test_a_network_that_finds_no_label_drives_nothing() -> None:
    item: Any = pair() | {Key.PRED: torch.zeros(3, *NATIVE.shape)}
    for side, found in ((FIXED, [0.9, 0.4]), (MOVING, [0.4, 0.9])):
        item[side.image] = on(NATIVE, torch.zeros(NATIVE.shape))
        item[side.outline] = torch.tensor(found).view(2, 1, 1, 1).expand(2, *NATIVE.shape)
    with pytest.raises(RegZooError, match="finds no label in both images"):
        RefinePaird("labels")(item)


def test_intensities_are_those_of_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "SAMPLE", 2048)
    image = torch.zeros(1, 64, 64, 8)  # the first slice is empty, and 64 × 64 × 8 / 2048 is a multiple of 8
    image[..., 1:] = torch.linspace(0, 1000, 64)[None, :, None, None]
    saturated = float((refine.scaled(image, None) == 1).float().mean())
    assert 0 < saturated < 0.05
