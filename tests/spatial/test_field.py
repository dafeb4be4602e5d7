"""Displacement fields in the world: frames, inverse, composition, Jacobian."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import from_sitk, make_affine, rigid, smooth_ddf, smooth_noise, to_sitk
from monai.data import MetaTensor
from regzoo.errors import RegZooError
from regzoo.spatial import DisplacementField, Grid, jacobian_determinant
from scipy.ndimage import map_coordinates

SHAPE = (33, 29, 31)
OBLIQUE = Grid(SHAPE, make_affine(SHAPE, (0.9, 1.4, 1.1), (20, -15, 30), (2, 0, 1), (-1, 1, -1), (12, -40, 7)))


def world(grid: Grid) -> np.ndarray:
    """World position of each voxel, (X, Y, Z, 3)."""
    return np.indices(grid.shape).transpose(1, 2, 3, 0) @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def move(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def field_of(matrix: np.ndarray, grid: Grid) -> DisplacementField:
    """The field of a 4×4 map of the world."""
    displacement = move(matrix, world(grid)) - world(grid)
    return DisplacementField(torch.from_numpy(displacement.transpose(3, 0, 1, 2)), grid)


def bump(grid: Grid, millimetres: float) -> DisplacementField:
    """A smooth field that vanishes at the border, so that its inverse stays inside; the largest step is given."""
    window = np.ones(grid.shape)
    for axis, n in enumerate(grid.shape):
        window = window * np.sin(np.pi * np.arange(n) / (n - 1)).reshape([-1 if a == axis else 1 for a in range(3)])
    steps = smooth_ddf(grid.shape, 1.0, 5.0) * window
    return DisplacementField(torch.from_numpy(steps * millimetres / np.linalg.norm(steps, axis=0).max()), grid)


def inside(grid: Grid, points: np.ndarray, margin: float = 1.0) -> np.ndarray:
    voxels = (points - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T
    mask = ((voxels >= margin) & (voxels <= np.array(grid.shape) - 1 - margin)).all(-1)
    assert mask.mean() > 0.2
    return mask


def length(field: DisplacementField) -> np.ndarray:
    return np.linalg.norm(field.displacement.numpy(), axis=0)


@pytest.mark.parametrize("prealigned", [False, True])
def test_from_ddf_gives_the_affine_map_behind_it(prealigned: bool) -> None:
    stretch = np.diag([1.05, 0.97, 1.02, 1.0]) @ rigid((3, 5, -4), (2, -3, 1))
    stretch[:3, 3] += OBLIQUE.center - stretch[:3, :3] @ OBLIQUE.center
    network = OBLIQUE.network_grid((1.8, 1.7, 2.1), (32, 34, 28))  # encloses the fixed image
    voxel_map = np.linalg.inv(network.affine) @ stretch @ network.affine
    index = np.indices(network.shape).transpose(1, 2, 3, 0).astype(float)
    ddf = torch.from_numpy((move(voxel_map, index) - index).transpose(3, 0, 1, 2)).float()
    edit = rigid((30, 10, -20), (40, -25, 60)) if prealigned else np.eye(4)
    field = DisplacementField.from_ddf(ddf, network, OBLIQUE, edit if prealigned else None)
    expected = move(np.linalg.inv(edit) @ stretch, world(OBLIQUE))
    np.testing.assert_allclose(field.points().numpy().transpose(1, 2, 3, 0), expected, atol=2e-4)


def test_saved_field_composed_with_its_inverse_is_identity(tmp_path: Path) -> None:
    bump(OBLIQUE, 2.5).save(tmp_path / "field.nii.gz")
    field = DisplacementField.load(tmp_path / "field.nii.gz")
    limit = 0.1 * OBLIQUE.spacing.min()
    inverse = field.inverse()
    assert length(field.compose(inverse)).max() < limit
    assert length(inverse.compose(field)).max() < limit


def test_inverse_through_a_large_prealignment() -> None:
    matrix = rigid((0, 0, 30), (40, 0, 0)) @ rigid((5, 0, 0), (0, 0, 0))
    smooth = bump(OBLIQUE, 2.5)
    points = move(matrix, smooth.points().numpy().transpose(1, 2, 3, 0))
    field = DisplacementField.from_points(torch.from_numpy(points.transpose(3, 0, 1, 2)), OBLIQUE)
    moving = Grid((40, 38, 36), matrix @ make_affine((40, 38, 36), (1, 1.2, 0.9), (10, 5, 0), center=OBLIQUE.center))
    back = field.inverse(moving)
    assert back.grid is moving
    there = back.points().numpy().transpose(1, 2, 3, 0)
    known = inside(OBLIQUE, there)
    again = field.transform_points(there.reshape(-1, 3)).reshape(there.shape)
    assert np.linalg.norm(again - world(moving), axis=-1)[known].max() < 0.1 * OBLIQUE.spacing.min()
    reached = inside(moving, points) & inside(OBLIQUE, world(OBLIQUE))
    assert length(field.compose(back))[reached].max() < 0.1 * OBLIQUE.spacing.min()


def test_inverse_of_a_strong_field_converges() -> None:
    field = bump(OBLIQUE, 6.0)
    determinant = field.jacobian()
    assert 0 < float(determinant.min()) < 0.3
    assert float(determinant.max()) > 2.5
    assert length(field.inverse().compose(field)).max() < 0.01


def stretch(shape: tuple[int, int, int], slope: float, sigma: float = 5.0) -> np.ndarray:
    """A field (3, X, Y, Z) that stretches the middle along x to 1 + slope times its size, without folds."""
    offsets = np.indices(shape) - np.reshape(shape, (3, 1, 1, 1)) // 2
    along_x = slope * offsets[0] * np.exp(-0.5 * (offsets**2).sum(0) / sigma**2)
    return np.stack([along_x, 0 * along_x, 0 * along_x]).astype(np.float32)


@pytest.mark.parametrize("kind", ["smooth", "strong"])
def test_inverse_undoes_the_field(kind: str) -> None:
    shape = (40, 28, 32)
    field = smooth_ddf(shape, 2, 5) if kind == "smooth" else stretch(shape, 1.6)
    ddf = torch.from_numpy(field)
    if kind == "strong":
        determinant = jacobian_determinant(ddf[None])
        assert 0.1 < float(determinant.min()) < 0.5 < 2.3 < float(determinant.max())
    inverse = DisplacementField(ddf, Grid(shape, np.eye(4))).inverse().displacement
    inner = (..., *(slice(8, -8),) * 3)
    # Exact in this order; in the other one the inverse is interpolated where it is bent most.
    for a, b, most in ((inverse, ddf, 1e-3), (ddf, inverse, 0.05 if kind == "smooth" else 0.5)):
        points = np.indices(shape) + a.numpy()
        there = [map_coordinates(b[i].numpy(), points, order=1, mode="nearest") for i in range(3)]
        assert np.abs(a.numpy() + there)[inner].max() < most


def test_inverse_of_a_fold_says_so(caplog: pytest.LogCaptureFixture) -> None:
    bump(OBLIQUE, 4.0).inverse()
    assert not caplog.records
    bump(OBLIQUE, 12.0).inverse()
    assert "did not converge" in caplog.text


def test_inverse_of_an_affine_field_is_the_inverse_matrix() -> None:
    matrix = rigid((30, -20, 10), (40, 25, -30)) @ np.diag([1.2, 0.9, 1.1, 1])
    back = field_of(matrix, OBLIQUE).inverse(Grid(OBLIQUE.shape, matrix @ OBLIQUE.affine))
    expected = move(np.linalg.inv(matrix), world(Grid(OBLIQUE.shape, matrix @ OBLIQUE.affine)))
    np.testing.assert_allclose(back.points().numpy().transpose(1, 2, 3, 0), expected, atol=5e-3)


def test_compose_equals_simpleitks_composite_transform() -> None:
    other = Grid((30, 30, 30), make_affine((30, 30, 30), (2, 2, 2), (5, 10, 15), center=OBLIQUE.center))
    first, then = bump(OBLIQUE, 5.0), field_of(rigid((4, 0, 8), (3, -2, 1)), other)
    parts = [
        sitk.DisplacementFieldTransform(
            to_sitk(f.displacement.double().numpy().transpose(1, 2, 3, 0) * (-1, -1, 1), f.grid.affine)
        )
        for f in (then, first)  # SimpleITK applies the last one first
    ]
    frame = to_sitk(np.zeros(SHAPE, np.float32), OBLIQUE.affine)
    both = sitk.TransformToDisplacementField(
        sitk.CompositeTransform(parts), sitk.sitkVectorFloat64, frame.GetSize(), frame.GetOrigin(), frame.GetSpacing(),
        frame.GetDirection(),
    )  # fmt: skip
    ours = first.compose(then).displacement.numpy().transpose(1, 2, 3, 0)
    known = inside(other, first.points().numpy().transpose(1, 2, 3, 0))
    np.testing.assert_allclose(ours[known], (from_sitk(both) * (-1, -1, 1))[known], atol=1e-3)


def test_jacobian_does_not_depend_on_the_grid() -> None:
    matrix = rigid((10, 20, 30), (1, 2, 3)) @ np.diag([1.3, 0.8, 1.1, 1])
    determinant = field_of(matrix, OBLIQUE).jacobian()
    assert determinant.shape == (1, *SHAPE)
    np.testing.assert_allclose(determinant.numpy(), 1.3 * 0.8 * 1.1, atol=1e-4)
    mirrored = field_of(np.diag([-1.0, 1, 1, 1]), OBLIQUE).jacobian()
    np.testing.assert_allclose(mirrored.numpy(), -1, atol=1e-4)


def test_jacobian_equals_simpleitk() -> None:
    # SimpleITK differentiates along the image axes, so the axes are those of its world.
    grid = Grid(SHAPE, np.diag([-0.9, -1.4, 1.1, 1.0]))
    field = bump(grid, 6.0)
    lps = field.displacement.numpy().transpose(1, 2, 3, 0) * (-1, -1, 1)
    theirs = from_sitk(sitk.DisplacementFieldJacobianDeterminant(to_sitk(lps, grid.affine)))
    ours = field.jacobian()[0].numpy()
    inner = (slice(1, -1),) * 3
    assert np.ptp(ours) > 0.5
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=1e-4)


def test_beyond_the_moving_image_is_zero_or_its_border() -> None:
    moving = MetaTensor(torch.from_numpy(smooth_noise(SHAPE, 2, 0)[None] + 5), affine=torch.from_numpy(OBLIQUE.affine))
    away = field_of(rigid((0, 0, 0), (500, 0, 0)), OBLIQUE)
    assert not away.warp(moving).any()
    assert float(away.warp(moving, padding="border").min()) >= 5


def test_a_field_must_fit_its_grid() -> None:
    with pytest.raises(ValueError, match="shape"):
        DisplacementField(torch.zeros(3, 4, 5, 6), OBLIQUE)


@pytest.mark.parametrize("name", ["field", "field.txt", "field.nrrd"])
def test_a_field_is_saved_as_nifti(name: str, tmp_path: Path) -> None:
    with pytest.raises(RegZooError, match=f"{name}: is not the name of a NIfTI file; let it end in .nii.gz"):
        DisplacementField(torch.zeros(3, *OBLIQUE.shape), OBLIQUE).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"mode": "linear"}, {"mode": "nearst"}, {"padding": "zero"}])
def test_ways_to_sample_are_not_guessed(wrong: dict[str, str]) -> None:
    moving = MetaTensor(torch.rand(1, *OBLIQUE.shape), affine=torch.as_tensor(OBLIQUE.affine))
    with pytest.raises(RegZooError, match=r"is not known; use one of (bilinear, nearest|zeros, border)"):
        DisplacementField(torch.zeros(3, *OBLIQUE.shape), OBLIQUE).warp(moving, **wrong)  # type: ignore[arg-type]
