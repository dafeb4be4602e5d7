"""Smooth fields and the true transformation: derivatives, inverse and statistics against independent computations."""

import numpy as np
import pytest
from regzoo_phantoms.fields import SmoothField, random_transformation
from regzoo_phantoms.shapes import Ellipsoid
from scipy.optimize import approx_fprime
from scipy.spatial.transform import Rotation


def lattice() -> np.ndarray:
    axes = [np.arange(-45, 46, 5.0)] * 3
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


@pytest.mark.parametrize("length", [12.0, 20.0])
def test_covariance_of_a_smooth_field(length: float) -> None:
    """Over many draws the field has unit variance and the Gaussian covariance of its length."""
    rng = np.random.default_rng(0)
    points = np.array([[0, 0, 0], [length, 0, 0], [0, 2 * length, 0]], np.float32).T
    values = np.array([SmoothField.random(rng, length)(points) for _ in range(3000)])  # draws, components, points
    pairs = np.moveaxis(values, 1, 0).reshape(-1, 3)
    covariance = pairs.T @ pairs / len(pairs)
    assert covariance[0, 0] == pytest.approx(1, abs=0.06)
    assert covariance[0, 1] == pytest.approx(np.exp(-0.5), abs=0.06)
    assert covariance[0, 2] == pytest.approx(np.exp(-2), abs=0.06)


def test_field_does_not_depend_on_the_shape_of_its_points() -> None:
    """A value at a point is the same alone, in a list and in a large grid."""
    field = SmoothField.random(np.random.default_rng(1), 15)
    points = np.random.default_rng(2).uniform(-40, 40, (3, 40, 30, 20)).astype(np.float32)
    values = field(points)
    assert values.shape == (3, 40, 30, 20)
    assert np.array_equal(values.reshape(3, -1)[:, ::997], field(points.reshape(3, -1)[:, ::997].copy()))


@pytest.mark.parametrize("seed", range(6))
def test_transformation(seed: int) -> None:
    """Jacobian against numerical differentiation, inverse against the transformation itself, limits of the parts."""
    rng = np.random.default_rng(seed)
    points = lattice()
    centre, rectum = rng.normal(0, 3, 3), np.array([0.0, -22.0, 0.0])
    transformation = random_transformation(rng, centre, rectum, points.reshape(3, -1))
    assert np.degrees(np.linalg.norm(transformation.rotation)) <= 12.001
    assert np.linalg.norm(transformation.translation) <= 15.001
    assert 1 <= transformation.pressure.amount <= 6
    assert np.linalg.norm(transformation.smooth(points), axis=0).max() <= 4.001
    assert transformation.jacobian_determinant(points.reshape(3, -1)).min() >= 0.3

    some = rng.uniform(-35, 35, (3, 12))
    step = 0.05
    columns = [
        (transformation(some + step * axis[:, None]) - transformation(some - step * axis[:, None])) / (2 * step)
        for axis in np.eye(3)
    ]
    numerical = np.linalg.det(np.moveaxis(np.stack(columns, axis=1), -1, 0))
    assert np.allclose(transformation.jacobian_determinant(some), numerical, atol=2e-3)
    assert np.allclose(transformation(transformation.inverse(some)), some, atol=1e-3)


def test_probe_pushes_tissue_to_the_front() -> None:
    """Behind the gland a point of the ultrasound was further back before the probe came; far away nothing moves."""
    rng = np.random.default_rng(3)
    pressure = random_transformation(rng, np.zeros(3), np.array([0, -20.0, 0]), lattice().reshape(3, -1)).pressure
    at_probe = pressure.point[:, None].astype(np.float32)
    assert pressure.parts(at_probe)[0][0] < -0.8 * pressure.amount
    assert abs(pressure.parts(at_probe + np.array([[0], [55], [0]], np.float32))[0][0]) < 0.02 * pressure.amount
    assert abs(pressure.parts(at_probe + np.array([[90], [0], [0]], np.float32))[0][0]) < 0.02 * pressure.amount


def test_distance_to_an_ellipsoid() -> None:
    """Zero on the surface, unit slope across it, negative inside; surface points from an explicit parametrisation."""
    rng = np.random.default_rng(4)
    rotation = Rotation.from_rotvec([0.3, -0.5, 0.2]).as_matrix()
    shape = Ellipsoid(np.array([3.0, -2.0, 5.0]), np.array([12.0, 5.0, 7.0]), rotation)
    sphere = rng.normal(size=(3, 50))
    sphere /= np.linalg.norm(sphere, axis=0)
    surface = rotation @ (sphere * shape.radii[:, None]) + shape.centre[:, None]
    assert np.abs(shape.distance(surface)).max() < 1e-4
    for point in surface.T[:10]:
        slope = approx_fprime(point, lambda p: float(shape.distance(p[:, None])[0]), 1e-3)
        assert np.linalg.norm(slope) == pytest.approx(1, abs=0.02)
    assert shape.distance(shape.centre[:, None] + 0.5)[0] < 0 < shape.distance(shape.centre[:, None] + 20)[0]
