"""Predicted logits as labels on the fixed image's own grid: balls in the world, against the balls themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import ball, from_sitk, make_grid, smooth_noise, to_sitk
from monai.data import MetaTensor
from regzoo.monai_label import BuildAnswerd
from regzoo.spatial import Grid
from regzoo.transforms import AlignPaird, PropagatedLabelsd, RegionInputd, ResamplePaird, warped_masks
from scipy.ndimage import center_of_mass
from scipy.special import expit

FIXED = make_grid((37, 31, 41), (1.1, 1.4, 0.9), (10, -15, 20), (1, 0, 2), (-1, 1, 1), (20, -30, 10))
MOVING = make_grid((22, 26, 21), (1.3, 1.7, 1.9), (-5, 8, 12), (2, 1, 0), (1, -1, 1), (21, -29, 11))
NETWORK = {"spacing": (2.1, 1.9, 2.3), "size": (24, 22, 20)}
WHERE = ((20, -30, 10), 9.0), ((26, -33, 6), 5.0), ((14, -26, 15), 6.0)  # centre and radius, RAS mm

Balls = Sequence[tuple[Sequence[float], float]]


def depth(grid: Grid, balls: Balls) -> np.ndarray:
    """How far each voxel lies below the surface of each ball, mm, (C, X, Y, Z)."""
    world = np.einsum("ij,jxyz->ixyz", grid.affine[:3, :3], np.indices(grid.shape)) + grid.affine[:3, 3].reshape(
        3, 1, 1, 1
    )
    return np.stack([r - np.linalg.norm(world - np.reshape(c, (3, 1, 1, 1)), axis=0) for c, r in balls])


def prepared(
    labels: int = 3,
    native: bool = True,
    empty: Sequence[int] = (),
    away: float = 0.0,
    network: dict[str, Any] = NETWORK,
) -> dict[Any, Any]:
    """A pair as a network gets it; moving labels anywhere, some of them empty; the moving file `away` in x."""
    item: dict[Any, Any] = {"case": "A"}
    for seed, (side, grid) in enumerate({"fixed": FIXED, "moving": MOVING}.items()):
        affine = torch.from_numpy(grid.affine.copy())
        affine[0, 3] += away * (side == "moving")
        item[f"{side}_image"] = MetaTensor(torch.from_numpy(smooth_noise(grid.shape, 3, seed))[None], affine=affine)
        masks = np.stack([ball(grid.shape, (10, 13, 9 + 2 * label), 2 + label) for label in range(labels)])
        masks[list(empty)] = 0
        item[f"{side}_label"] = MetaTensor(torch.from_numpy(masks), affine=affine)
    return ResamplePaird(**network, keep_native=native)(AlignPaird("center" if away else "header")(item))


def propagated(item: dict[Any, Any], logits: np.ndarray) -> dict[Any, Any]:
    return PropagatedLabelsd()(item | {"pred": torch.from_numpy(logits).float()})


def test_balls_come_back_on_the_fixed_image_s_own_grid() -> None:
    item = prepared(network={"spacing": (1.3, 1.2, 1.1), "size": (38, 44, 46)})
    out = propagated(item, 3 * depth(Grid.of(item["fixed_image"]), WHERE))
    truth = depth(FIXED, WHERE)
    for name in ("warped_label", "probability"):
        assert Grid.of(out[name]).same_as(FIXED)
        assert out[name].shape == (3, *FIXED.shape)
    labels, probability = out["warped_label"].numpy(), out["probability"].numpy()
    assert set(np.unique(labels)) == {0, 1}
    np.testing.assert_array_equal(labels, probability >= 0.5)
    voxel = np.prod(FIXED.spacing)
    for label, part, (center, radius) in zip(labels, truth, WHERE, strict=True):
        assert label.sum() * voxel == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.05)
        np.testing.assert_allclose(FIXED.affine @ [*center_of_mass(label), 1], [*center, 1], atol=0.1)
        np.testing.assert_array_equal(label[np.abs(part) > 0.3] > 0, part[np.abs(part) > 0.3] > 0)
    bent = truth > np.array([r for _, r in WHERE]).reshape(3, 1, 1, 1) - 4  # linear interpolation cuts the tip off
    np.testing.assert_allclose(probability[~bent], expit(3 * truth[~bent]), atol=0.15)
    assert out["cut_off"] == []


def test_nothing_is_said_beyond_the_network_s_field_of_view() -> None:
    small = {"spacing": (2.03, 1.87, 2.11), "size": (10, 9, 8)}
    item = prepared(labels=2, network=small)
    out = propagated(item, np.full((2, 10, 9, 8), 3.0))
    # The network sees a box about the fixed image's centre, along the fixed image's axes; x and y are swapped in it.
    offset = np.abs(np.indices(FIXED.shape) - (np.reshape(FIXED.shape, (3, 1, 1, 1)) - 1) / 2)
    half = np.array([1.87 * 9, 2.03 * 10, 2.11 * 8]) / FIXED.spacing / 2
    inside = (offset <= half.reshape(3, 1, 1, 1)).all(0)
    assert 0.05 < inside.mean() < 0.5
    for label, probability in zip(out["warped_label"].numpy(), out["probability"].numpy(), strict=True):
        np.testing.assert_array_equal(label > 0, inside)
        np.testing.assert_allclose(probability, inside * expit(3), atol=1e-6)
    assert out["cut_off"] == [0, 1]


def test_small_labels_are_found_between_thick_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    thick = make_grid((37, 31, 7), (1.1, 1.4, 6.0), center=(20, -30, 10))
    monkeypatch.setitem(globals(), "FIXED", thick)
    item = prepared(empty=[2], network={"spacing": (1.2, 1.2, 1.2), "size": (34, 36, 34)})
    # One lies between two slices and touches neither; the other is large enough for any.
    where = ((20, -30, 13), 2.4), ((26, -33, 6), 9.0), ((14, -26, 15), 6.0)
    out = propagated(item, 3 * depth(Grid.of(item["fixed_image"]), where))
    small, large, none = out["warped_label"].numpy()
    assert out["probability"][0].max() < 0.5 and none.sum() == 0
    assert small.sum() * np.prod(thick.spacing) == pytest.approx(4 / 3 * np.pi * 2.4**3, rel=0.2)
    np.testing.assert_allclose(thick.affine @ [*center_of_mass(small), 1], [20, -30, 13, 1], atol=3.1)
    assert large.sum() * np.prod(thick.spacing) == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.06)


@pytest.mark.parametrize("native", [True, False])
def test_a_label_that_is_not_there_stays_away(native: bool) -> None:
    item = prepared(native=native, empty=[1])
    out = propagated(item, np.full((3, *NETWORK["size"]), 50.0))
    assert [bool(channel.any()) for channel in out["warped_label"]] == [True, False, True]
    assert [bool(channel.any()) for channel in out["probability"]] == [True, False, True]
    assert out["cut_off"] == [0, 2]


@pytest.mark.parametrize("values", [None, [4, 9]])
@pytest.mark.parametrize("native", [True, False])
def test_each_label_by_itself_and_the_smallest_on_top(native: bool, values: list[int] | None) -> None:
    """A lesion in a gland: the gland has no hole, and the lesion is to be seen in a map."""
    item = prepared(native=native)
    network = Grid.of(item["fixed_image"])
    both = [((18, -30, 10), 8.0), ((20, -30, 10), 4.0)]
    item["moving_label"] = item["moving_label"][:2]
    if values:
        item |= {"moving_label_is_map": True, "moving_label_values": values}
    logits = depth(network, both) * [[[[3.0]]], [[[1.0]]]]  # the network is surer of the gland
    out = propagated(item, logits)
    labels = out["warped_label"].numpy() > 0
    assert labels[1].sum() > 20 and labels[0][labels[1]].all()
    masks = warped_masks(out)
    np.testing.assert_array_equal(masks, labels)
    shown = BuildAnswerd()(out)["pred"][0].numpy()
    first, second = values or (1, 2)
    np.testing.assert_array_equal(shown, np.where(labels[1], second, np.where(labels[0], first, 0)))


def test_a_volume_is_kept_where_the_network_is_all_too_sure() -> None:
    """Probabilities next to 1 cannot be told apart; logits can."""
    item = prepared(labels=3, empty=[2])
    network = Grid.of(item["fixed_image"])
    logits = depth(network, WHERE) * 4 + 40
    logits[1] -= 200  # nowhere likely: not found, and nothing is made up to fill a volume
    out = PropagatedLabelsd(preserve_volume=True)(item | {"pred": torch.from_numpy(logits).float()})
    moving = item["moving_label_native"].numpy()[0].sum() * np.prod(MOVING.spacing)
    volumes = out["warped_label"].numpy().sum((1, 2, 3)) * np.prod(FIXED.spacing)
    assert volumes[0] == pytest.approx(moving, abs=np.prod(FIXED.spacing))
    assert volumes[1] == volumes[2] == 0
    center = center_of_mass(out["warped_label"][0].numpy())
    np.testing.assert_allclose(FIXED.to_world(center), WHERE[0][0], atol=0.5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", [0, -1])
def test_labels_cut_off_by_the_field_of_view(axis: int, end: int) -> None:
    item = prepared(labels=4, empty=[3], network={"spacing": (1.5, 1.6, 1.4), "size": (14, 13, 12)})
    network = Grid.of(item["fixed_image"])
    face = np.array(network.shape) // 2
    face[axis] = (network.shape[axis] - 1) if end else 0
    inwards = face.copy()
    inwards[axis] += -4 if end else 4
    step = network.spacing[axis]
    places = [network.to_world(inwards)] * 2 + [network.to_world(face)] * 2
    radii = (4.4 * step, 3 * step, step, step)  # reaches it, does not, is cut in half, is not there
    out = propagated(item, depth(network, list(zip(places, radii, strict=True))))
    assert out["cut_off"] == [0, 2]


def test_on_the_network_grid_without_natives() -> None:
    item = prepared(native=False)
    logits = np.random.default_rng(0).normal(size=(3, *NETWORK["size"])).astype(np.float32)
    out = propagated(item, logits)
    np.testing.assert_array_equal(out["warped_label"].numpy(), logits >= 0)
    np.testing.assert_allclose(out["probability"].numpy(), expit(logits), atol=1e-4)
    for name, key in (("reference", "fixed"), ("unregistered", "moving")):
        for kind in ("image", "label"):
            np.testing.assert_array_equal(out[f"{name}_{kind}"].numpy(), item[f"{key}_{kind}"].numpy())
            np.testing.assert_array_equal(out[f"{name}_{kind}"].affine, item["fixed_image"].affine)
    assert Grid.of(out["warped_label"]).same_as(Grid.of(item["fixed_image"]))
    assert not {"field", "ddf", "warped_image"} & set(out)


@pytest.mark.parametrize("away", [0.0, 150.0])
def test_what_it_is_compared_with_lies_on_the_fixed_grid(away: float) -> None:
    item = prepared(away=away)
    native = item["fixed_native"], item["fixed_label_native"]
    out = propagated(item, depth(Grid.of(item["fixed_image"]), WHERE))
    np.testing.assert_array_equal(out["reference_image"].numpy(), native[0].numpy())
    np.testing.assert_array_equal(out["reference_label"].numpy(), native[1].numpy())
    # The moving file, shifted by its centre's way to the fixed centre.
    there = make_grid(
        MOVING.shape, MOVING.spacing, (-5, 8, 12), (2, 1, 0), (1, -1, 1), (20, -30, 10) if away else (21, -29, 11)
    )
    frame = to_sitk(np.zeros(FIXED.shape, np.float32), FIXED.affine)
    for name in ("image", "label"):
        ours = out[f"unregistered_{name}"]
        assert Grid.of(ours).same_as(FIXED)
        for a, b in zip(ours.numpy(), item[f"moving_{name}_native".replace("_image", "")].numpy(), strict=True):
            theirs = from_sitk(sitk.Resample(to_sitk(b, there.affine), frame, sitk.Transform(), sitk.sitkLinear))
            np.testing.assert_allclose(a, theirs, atol=0.02)


@pytest.mark.parametrize("degrees", [(0, 0, 0), (40, 35, 45)])
def test_a_single_voxel_of_a_fine_grid(degrees: tuple[int, int, int]) -> None:
    fine = make_grid((41, 43, 45), (0.5, 0.6, 0.4), degrees, center=(20, -30, 10))
    item = prepared(native=False)
    item["fixed_image"] = MetaTensor(torch.zeros(1, *FIXED.shape), affine=torch.from_numpy(FIXED.affine))
    item["moving_image"] = MetaTensor(torch.zeros(1, *fine.shape), affine=torch.from_numpy(fine.affine))
    places = np.random.default_rng(0).integers(12, 29, (6, 3))
    masks = np.zeros((6, *fine.shape), np.float32)
    masks[(range(6), *places.T)] = 1
    item["moving_label"] = MetaTensor(torch.from_numpy(masks), affine=item["moving_image"].affine)
    del item["fixed_label"], item["prealignment"]
    item = ResamplePaird((3, 3, 3), (16, 14, 15), keep_native=True)(AlignPaird()(item))
    item = RegionInputd()(item)
    network = Grid.of(item["moving_label"])
    world = [fine.to_world(place) for place in places]
    for roi, place in zip(item["moving_label"].numpy(), world, strict=True):
        assert roi.min() == 0 and roi.max() == pytest.approx(1, abs=1e-6)
        assert np.linalg.norm(network.to_world(center_of_mass(roi)) - place) < 1.5
        assert roi.sum() < 10
    balls = [(place, 3.0) for place in world]
    out = propagated(item, depth(network, balls))
    for label, place in zip(out["warped_label"].numpy(), world, strict=True):
        np.testing.assert_allclose(FIXED.to_world(center_of_mass(label)), place, atol=0.5)


def test_regions_that_are_out_of_view_are_not_looked_for() -> None:
    """By where their centres are, not by how large they are: a trace at the border is not scaled up."""
    small = {"spacing": (2.03, 1.87, 2.11), "size": (10, 9, 8)}
    item = prepared(labels=3, network=small)
    network = Grid.of(item["moving_label"])
    edge = np.array([network.shape[0] - 0.5, 4, 4])
    # Centre 3 mm outside, 3 mm inside, and a region that reaches everywhere.
    steps = np.array([3, 0, 0]) / network.spacing
    balls = [(network.to_world(edge + steps), 6.0), (network.to_world(edge - steps), 6.0), (network.center, 99.0)]
    item["moving_label_native"] = MetaTensor(
        torch.from_numpy((depth(MOVING, balls) > 0).astype(np.float32)), affine=torch.from_numpy(MOVING.affine)
    )
    on_grid = np.clip(depth(network, balls) / 40, 0, 1).astype(np.float32)
    assert on_grid[0].max() > 0
    item["moving_label"] = MetaTensor(torch.from_numpy(on_grid), affine=torch.from_numpy(network.affine))
    shown = RegionInputd()(item)["moving_label"].numpy()
    assert not shown[0].any()
    np.testing.assert_allclose(shown[1:], on_grid[1:] / on_grid[1:].max(axis=(1, 2, 3), keepdims=True), rtol=1e-5)
    out = propagated(item | {"moving_label": RegionInputd()(item)["moving_label"]}, np.full((3, 10, 9, 8), 3.0))
    assert out["unseen"] == [0] and not out["warped_label"][0].any()
