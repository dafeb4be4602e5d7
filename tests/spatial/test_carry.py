"""Labels on coarser voxels: their shares against dense sampling, and what must survive thick slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import make_affine, make_grid, rigid
from monai.data import MetaTensor
from regzoo.spatial import DisplacementField, Grid, carry, carry_labels
from regzoo.transforms.apply import label_masks

FINE = make_grid((44, 40, 36), (1.6, 1.6, 1.6), center=(2, -1, 1))
THICK = make_grid((96, 90, 10), (0.7, 0.7, 6.0))
CENTRES = [(x, y, z) for x in (-10, 0, 10) for y in (-8, 8) for z in (-7.0, 6.0)]
RADIUS = 2.4


def world(grid: Grid) -> np.ndarray:
    return np.stack(np.indices(grid.shape), -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def balls(grid: Grid, centres: list[tuple[float, ...]], radius: float = RADIUS) -> MetaTensor:
    points = world(grid)
    masks = np.stack([np.linalg.norm(points - c, axis=-1) <= radius for c in centres]).astype(np.float32)
    return MetaTensor(torch.as_tensor(masks), affine=torch.as_tensor(grid.affine))


def volumes(masks: torch.Tensor, grid: Grid) -> np.ndarray:
    return masks.flatten(1).sum(1).numpy() * abs(np.linalg.det(grid.affine[:3, :3]))


def shifted(shift: tuple[float, ...], grid: Grid = THICK) -> DisplacementField:
    return DisplacementField.from_affine(rigid((0, 0, 0), shift), grid)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (0.3, 0.2, 1.0), (1.0, -2.0, 3.0), (0.0, 0.0, -1.7)])
def test_twelve_balls_survive_slices_of_6_mm(shift: tuple[float, ...], exclusive: bool) -> None:
    labels = balls(FINE, CENTRES)
    found = carry_labels(shifted(shift), labels, exclusive)
    assert set(np.unique(found)) == {0, 1} and found.sum(0).max() == 1
    np.testing.assert_allclose(volumes(found, THICK), volumes(labels, FINE), rtol=0.15)
    for mask, centre in zip(found.numpy(), CENTRES, strict=True):
        # Of a field from fixed to moving the labels go the other way; half a slice is what its voxels can tell.
        offset = np.abs(world(THICK)[mask > 0].mean(0) - (np.array(centre) - shift))
        assert (offset < (0.8, 0.8, 3.0)).all()


def test_what_a_voxel_holds_is_what_dense_sampling_finds() -> None:
    target = make_grid((9, 8, 7), (3.2, 1.5, 4.0), (0, 0, 20))
    labels = balls(FINE, [(1, 0, 2)], 6)
    field = DisplacementField.from_affine(rigid((0, 10, 0), (1, 0.5, 0)), target)
    assert carry.subdivisions(FINE, target) == (2, 1, 3)
    shares = carry.filled_shares(labels.as_tensor(), FINE, field, 0, 9)
    dense = make_grid((9 * 8, 8 * 4, 7 * 10), (0.4, 0.375, 0.4), (0, 0, 20))
    points = world(dense) @ rigid((0, 10, 0), (0, 0, 0))[:3, :3].T + (1, 0.5, 0)
    truth = (np.linalg.norm(points - (1, 0, 2), axis=-1) <= 6).reshape(9, 8, 8, 4, 7, 10).mean((1, 3, 5))
    assert np.abs(shares[0].numpy() - truth).max() < 0.25 and np.abs(shares[0].numpy() - truth).mean() < 0.015
    assert volumes(shares, target)[0] == pytest.approx(volumes(labels, FINE)[0], rel=0.01)
    slabs = [carry.filled_shares(labels.as_tensor(), FINE, field, start, start + 2) for start in range(0, 9, 2)]
    np.testing.assert_allclose(torch.cat(slabs, 1), shares, atol=1e-6)


@pytest.mark.parametrize("spacing", [(1.6, 1.6, 1.6), (1.0, 1.3, 1.65)])
def test_nothing_changes_where_the_target_is_not_coarser(spacing: tuple[float, ...]) -> None:
    field = shifted((0.4, 0.9, -0.3), make_grid((40, 38, 36), spacing))
    labels = balls(FINE, CENTRES)
    np.testing.assert_array_equal(carry_labels(field, labels, True), field.warp(labels))


def test_large_labels_keep_the_voxels_that_are_half_full() -> None:
    labels = balls(FINE, [(0, 0, 0)], 16)
    field = shifted((0, 0, 0))
    shares = carry.filled_shares(labels.as_tensor(), FINE, field, 0, 96)
    for exclusive in (True, False):
        np.testing.assert_array_equal(carry_labels(field, labels, exclusive), shares >= 0.5)


def test_a_nodule_in_an_organ_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    both = balls(FINE, [(0, 0, 0), (3, 2, 0.0)], RADIUS).as_tensor()
    both[0] = balls(FINE, [(0, 0, 0)], 15).as_tensor()[0] * (1 - both[1])
    labels = MetaTensor(both, affine=torch.as_tensor(FINE.affine))
    shares = carry.filled_shares(both, FINE, shifted((0, 0, 0)), 0, 96)
    assert label_masks(shares, exclusive=True)[1].sum() == 0  # the organ has more of every voxel
    found = carry_labels(shifted((0, 0, 0)), labels, exclusive=True)
    np.testing.assert_allclose(volumes(found, THICK), volumes(labels, FINE), rtol=0.1)
    assert found.sum(0).max() == 1
    monkeypatch.setattr(carry, "SLAB", 1)
    np.testing.assert_array_equal(carry_labels(shifted((0, 0, 0)), labels, exclusive=True), found)


def test_smaller_than_a_voxel_is_one_voxel_and_out_of_view_none() -> None:
    target = make_grid((8, 8, 8), (6, 6, 6))
    labels = balls(FINE, [(1, 0, 0), (0, 0, 28)], 1.7)
    found = carry_labels(shifted((0, 0, 0), target), labels, exclusive=True)
    assert found.flatten(1).sum(1).tolist() == [1, 0]
    assert np.abs(world(target)[found[0].numpy() > 0][0] - (1, 0, 0)).max() <= 3


def test_where_a_field_shrinks_a_label_it_stays_small() -> None:
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])  # a fixed step is two steps of the moving image
    target = make_grid((30, 30, 8), (1.0, 1.0, 5.0))
    labels = balls(FINE, [(0, 0, 0)], 9)
    found = carry_labels(DisplacementField.from_affine(matrix, target), labels, exclusive=False)
    assert volumes(found, target)[0] == pytest.approx(volumes(labels, FINE)[0] / 8, rel=0.12)


def test_axes_in_another_order_are_cut_along_the_right_one() -> None:
    affine = make_affine((10, 60, 60), (6.0, 0.7, 0.7), axes=(2, 0, 1), flips=(-1, 1, 1))
    target = Grid((10, 60, 60), affine)
    assert carry.subdivisions(FINE, target) == (4, 1, 1)
    labels = balls(FINE, CENTRES[:4])
    np.testing.assert_allclose(
        volumes(carry_labels(shifted((0, 0, 0), target), labels, True), target), volumes(labels, FINE), rtol=0.15
    )
