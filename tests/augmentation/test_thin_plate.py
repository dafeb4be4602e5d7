"""The thin-plate spline against SciPy's, and reading fields off their lattice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from regzoo.augmentation import ThinPlateSpline
from regzoo.augmentation.cubic_lattice import CubicLattice
from regzoo.augmentation.spline_transform import limit_scale, unfold_scale
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import map_coordinates

Three = tuple[int, int, int]
#: Odd sizes, anisotropic voxels (mm), and the number of control points along each axis.
GRIDS = [((31, 31, 31), (2.0, 2.0, 2.0), (5, 5, 5)), ((41, 30, 17), (1.0, 1.5, 4.0), (6, 5, 4))]


def control_coordinates(shape: Three, spacing: tuple[float, ...], count: Three) -> np.ndarray:
    """(n, 3) mm from the first voxel."""
    axes = [np.linspace(0, (size - 1) * mm, k) for size, mm, k in zip(shape, spacing, count, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def random_displacements(count: Three, seed: int = 0) -> torch.Tensor:
    """(3, control points…) from -6 to 6."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(-6, 6, (3, *count)))


def scipy_spline(shape: Three, spacing: tuple[float, ...], displacements: torch.Tensor) -> RBFInterpolator:
    """SciPy's thin-plate spline of displacements, a function of points in mm."""
    points = control_coordinates(shape, spacing, tuple(displacements.shape[1:]))
    return RBFInterpolator(points, displacements.flatten(1).T.numpy(), kernel="thin_plate_spline", degree=1)


@pytest.mark.parametrize(("shape", "spacing", "count"), GRIDS)
def test_equals_scipy_at_the_nodes_and_nearly_between_them(
    shape: Three, spacing: tuple[float, ...], count: Three
) -> None:
    displacements = random_displacements(count)
    expected = scipy_spline(shape, spacing, displacements)
    spline = ThinPlateSpline(shape, spacing, count)
    values = spline(displacements[None])

    nodes = np.stack(np.meshgrid(*(axis.numpy() for axis in spline.lattice.node_axes()), indexing="ij"), axis=-1)
    nodes, found = nodes.reshape(-1, 3)[::29], values[0].flatten(1).T[::29].numpy()
    assert nodes.min() < 0  # of the margin, too
    np.testing.assert_allclose(found, expected(nodes * spacing), atol=2e-3)

    dense = spline.lattice.on_voxels(values)[0]
    assert dense.shape == (3, *shape)
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3)[::7]
    error = np.abs(dense[:, voxels[:, 0], voxels[:, 1], voxels[:, 2]].T.numpy() - expected(voxels * spacing))
    assert error.max() < 0.2 / 6**2 * 6
    assert error.mean() < 1e-3


def test_goes_through_the_control_points() -> None:
    shape, spacing, count = (41, 29, 16), (1.0, 1.5, 4.0), (6, 5, 4)  # every control point lies on a voxel
    displacements = random_displacements(count)
    spline = ThinPlateSpline(shape, spacing, count, subdivisions=4)
    found = spline.lattice.on_voxels(spline(displacements[None]))[0, :, ::8, ::7, ::5]
    np.testing.assert_allclose(found.numpy(), displacements.numpy(), atol=1e-3)


def test_finer_lattices_come_closer() -> None:
    shape, spacing, count = GRIDS[0]
    displacements = random_displacements(count)
    voxels = np.random.default_rng(1).integers(0, 31, (2000, 3))
    expected = scipy_spline(shape, spacing, displacements)(voxels * np.array(spacing))
    errors = []
    for subdivisions in (3, 6):
        spline = ThinPlateSpline(shape, spacing, count, subdivisions)
        dense = spline.lattice.on_voxels(spline(displacements[None]))[0]
        found = dense[:, voxels[:, 0], voxels[:, 1], voxels[:, 2]].T.numpy()
        errors.append(float(np.sqrt(((found - expected) ** 2).mean())))
    assert errors[0] > 5 * errors[1]


def test_an_affine_displacement_is_kept() -> None:
    shape, spacing, count = GRIDS[1]
    matrix, offset = np.array([[0.1, -0.2, 0.0], [0.3, 0.05, 0.1], [0.0, 0.2, -0.1]]), np.array([1.0, -2.0, 3.0])
    points = control_coordinates(shape, spacing, count)
    displacements = torch.from_numpy((points @ matrix.T + offset).T.reshape(3, *count).copy())
    spline = ThinPlateSpline(shape, spacing, count, subdivisions=3)
    found = spline.lattice.on_voxels(spline(displacements[None]))[0].numpy()
    voxels = np.indices(shape).reshape(3, -1) * np.reshape(spacing, (3, 1))
    np.testing.assert_allclose(found.reshape(3, -1), matrix @ voxels + offset[:, None], atol=1e-3)


def test_wrong_number_of_control_points() -> None:
    with pytest.raises(ValueError, match="control points"):
        ThinPlateSpline((16, 16, 16), (1, 1, 1), (4, 4, 4))(torch.zeros(1, 3, 8, 8, 8))


def cubic_polynomial(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A field (2, …) that is cubic in the coordinates (3, …), and its derivatives (2, 3, …)."""
    x, y, z = points / 10
    field = np.stack([x**3 - x * y * z + 2 * z**2, 1 + y**3 * x - z])
    one = np.ones_like(x)
    slopes = [[3 * x**2 - y * z, -x * z, -x * y + 4 * z], [y**3, 3 * y**2 * x, -one]]
    return field, np.array(slopes) / 10


def test_a_lattice_reproduces_cubic_fields_and_their_slopes() -> None:
    lattice = CubicLattice((15, 12, 9), (6, 5, 4), margin=1)
    nodes = np.stack(np.meshgrid(*(axis.numpy() for axis in lattice.node_axes()), indexing="ij"))
    field, slopes = cubic_polynomial(nodes)
    values = torch.from_numpy(field).float()[None]
    voxels = np.indices(lattice.shape).astype(float)
    np.testing.assert_allclose(lattice.on_voxels(values)[0].numpy(), cubic_polynomial(voxels)[0], atol=1e-4)
    np.testing.assert_allclose(lattice.gradient(values)[0].numpy(), slopes, atol=1e-4)
    for start, stop in ((0, 4), (4, 9), (9, 40)):
        part = lattice.on_voxels(values, slice(start, stop))[0]
        np.testing.assert_allclose(part.numpy(), cubic_polynomial(voxels)[0][:, start:stop], atol=1e-4)


def test_linear_reading_equals_scipy() -> None:
    lattice = CubicLattice((21, 16, 13), (5, 4, 6), margin=2)
    values = torch.randn(1, *lattice.nodes)
    points = np.random.default_rng(0).uniform(-12, 34, (3, 5, 6, 7))  # beyond the lattice, too
    found = lattice.linear(values[None], torch.from_numpy(points).float()[None])[0, 0].numpy()
    places = points / np.reshape(lattice.step, (3, 1, 1, 1)) + 2
    np.testing.assert_allclose(found, map_coordinates(values[0].numpy(), places, order=1, mode="nearest"), atol=1e-5)


def test_lattice_needs_voxels() -> None:
    with pytest.raises(ValueError, match="2 voxels"):
        CubicLattice((1, 16, 16), (4, 4, 4))


def uniform_shrinking(lattice: CubicLattice, rate: float) -> torch.Tensor:
    """u(x) = -rate · (x - centre), so that det(1 + s ∇u) = (1 - s · rate)³ everywhere."""
    axes = [axis.float() - (size - 1) / 2 for axis, size in zip(lattice.node_axes(), lattice.shape, strict=True)]
    return -rate * torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


@pytest.mark.parametrize(
    ("rate", "expected"), [(0.2, 1.0), (0.8, (1 - 0.3 ** (1 / 3)) / 0.8), (2.0, (1 - 0.3 ** (1 / 3)) / 2)]
)
def test_unfolding_keeps_the_jacobian_above_its_limit(rate: float, expected: float) -> None:
    lattice = CubicLattice((20, 24, 28), (5, 6, 7), margin=2)
    factor = float(unfold_scale(lattice, uniform_shrinking(lattice, rate), min_jacobian=0.3))
    assert expected - 1 / 64 < factor <= expected


def test_unfolding_sees_shear_and_turns() -> None:
    # Between factor 0 and 1 the determinant of 1 + s·G falls below 0 and comes back: no factor beyond counts.
    lattice = CubicLattice((20, 24, 28), (5, 6, 7), margin=2)
    gradient = torch.tensor([[-2.0, 0.3, 0.1], [0.2, -2.1, 0.0], [-0.4, 0.2, 0.1]])
    values = torch.einsum("ij,bjxyz->bixyz", gradient, -uniform_shrinking(lattice, 1.0))
    factor = float(unfold_scale(lattice, values, min_jacobian=0.3))
    fine = np.linspace(0, 1, 2001)
    determinants = np.linalg.det(np.eye(3) + fine[:, None, None] * gradient.numpy())
    assert determinants[-1] > 0.3
    first = fine[np.argmax(determinants < 0.3)]
    assert first - 1 / 64 - 1e-3 < factor <= first


def test_limit_applies_to_each_axis() -> None:
    field = torch.rand(1, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0)) * 0.5
    field[0, :, 1, 2, 3] = torch.tensor([1.0, -4.0, 2.0])
    assert float(limit_scale(field, torch.tensor([3.0, 3.0, 3.0]))) == pytest.approx(0.75)
    assert float(limit_scale(field, torch.tensor([0.2, 3.0, 3.0]))) == pytest.approx(0.2)
    assert float(limit_scale(field, torch.tensor([5.0, 5.0, 5.0]))) == 1
    assert float(limit_scale(0 * field, torch.tensor([0.0, 5.0, 5.0]))) == 0
