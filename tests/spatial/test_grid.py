"""Grids: frames, and the orientation of the network's grid for every way an image can be stored."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import make_affine, smooth_noise
from monai.data import MetaTensor
from regzoo.spatial import Grid, resample

ORDERS = [(axes, flips) for axes in permutations(range(3)) for flips in product((1, -1), repeat=3)]
SHAPE = (9, 11, 8)
VOLUME = smooth_noise(SHAPE, 1, 0)
SPACING = (1.0, 1.5, 2.0)


def stored(axes: tuple[int, ...], flips: tuple[int, ...], degrees: tuple[float, ...]) -> tuple[np.ndarray, Grid]:
    """`VOLUME`, which is in R-A-S order, as a scanner that runs its axes otherwise would store it."""
    array = VOLUME.transpose(axes)
    array = np.flip(array, [axis for axis in range(3) if flips[axis] < 0]).copy()
    spacing = [SPACING[axis] for axis in axes]
    return array, Grid(array.shape, make_affine(array.shape, spacing, degrees, axes, flips, (7, -3, 20)))


@pytest.mark.parametrize(("axes", "flips"), ORDERS)
def test_network_sees_the_same_volume_however_it_is_stored(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    for degrees in ((0, 0, 0), (12, -8, 20)):
        array, grid = stored(axes, flips, degrees)
        network = grid.network_grid(SPACING, SHAPE)
        assert nib.aff2axcodes(network.affine) == ("R", "A", "S")
        np.testing.assert_allclose(network.spacing, SPACING)
        np.testing.assert_allclose(network.center, (7, -3, 20), atol=1e-9)
        seen = resample(torch.from_numpy(array)[None], grid, network, padding="border")[0].numpy()
        np.testing.assert_allclose(seen, VOLUME, atol=1e-3)


def test_network_grid_crops_and_pads_about_the_centre() -> None:
    grid = Grid((10, 10, 10), np.diag([2.0, 2, 2, 1]))
    small = grid.network_grid((1, 1, 1), (8, 9, 30))
    assert small.shape == (8, 9, 30)
    np.testing.assert_allclose(small.center, grid.center)
    np.testing.assert_allclose(small.to_world((0, 0, 0)), [5.5, 5, -5.5])


def test_voxels_and_world_agree_with_nibabel() -> None:
    grid = Grid(SHAPE, make_affine(SHAPE, (1, 2, 3), (10, 20, 30)))
    points = np.random.default_rng(0).normal(size=(5, 4, 3))
    np.testing.assert_allclose(grid.to_world(points), nib.affines.apply_affine(grid.affine, points))
    np.testing.assert_allclose(grid.to_voxels(grid.to_world(points)), points, atol=1e-9)
    np.testing.assert_allclose(grid.spacing, nib.affines.voxel_sizes(grid.affine))


def test_same_as_looks_at_every_corner() -> None:
    grid = Grid(SHAPE, np.eye(4))
    turned = Grid(SHAPE, make_affine(SHAPE, degrees=(0, 0, 0.1), center=grid.center))
    assert grid.same_as(Grid(SHAPE, np.eye(4) + 1e-6))
    assert not grid.same_as(turned)
    assert not grid.same_as(Grid((9, 11, 9), np.eye(4)))


def test_grid_of_a_meta_tensor() -> None:
    grid = Grid.of(MetaTensor(torch.zeros(2, *SHAPE), affine=torch.diag(torch.tensor([1.0, 2, 3, 1]))))
    assert grid.shape == SHAPE
    np.testing.assert_array_equal(grid.spacing, (1, 2, 3))
