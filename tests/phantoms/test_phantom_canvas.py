"""What phantoms are drawn with: the coarse lattice, tubes, painting."""

import numpy as np
import pytest
from regzoo.spatial.grid import Grid
from regzoo_phantoms.canvas import Canvas, Lattice
from regzoo_phantoms.shapes import Tube, smooth_union
from scipy import ndimage

GRID = Grid((23, 17, 10), np.diag([-2.0, 3.0, 4.0, 1.0]))


def test_lattice_interpolates_linearly() -> None:
    """As SciPy does, whole or in a box; the points lie where the voxels are."""
    lattice = Lattice(GRID, 6.5)
    assert lattice.steps == (3, 2, 1)
    coarse = np.random.default_rng(0).normal(size=lattice.shape).astype(np.float32)
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in GRID.shape), indexing="ij")).astype(float)
    expected = ndimage.map_coordinates(
        coarse, voxels / np.array(lattice.steps).reshape(3, 1, 1, 1), order=1, mode="nearest"
    )
    assert np.allclose(lattice.up(coarse), expected, atol=1e-5)
    box = (slice(4, 11), slice(0, 17), slice(9, 10))
    assert np.allclose(lattice.up(coarse, box), expected[box], atol=1e-5)
    world = np.stack([lattice.up(component) for component in lattice.points])
    assert np.allclose(np.moveaxis(world, 0, -1), GRID.to_world(np.moveaxis(voxels, 0, -1)), atol=1e-4)


def test_box_holds_what_is_chosen() -> None:
    """The box has every voxel whose interpolated value can come from a chosen point; None where there is nothing."""
    lattice = Lattice(GRID, 6.5)
    chosen = np.zeros(lattice.shape, bool)
    assert lattice.box(chosen) is None
    chosen[2, 3, 4] = True
    box = lattice.box(chosen)
    assert box is not None
    touched = lattice.up(chosen.astype(np.float32)) > 0
    inside = np.zeros(GRID.shape, bool)
    inside[box] = True
    assert touched.any() and not (touched & ~inside).any()


def test_tube_distance() -> None:
    """Equal to the distance to a straight cylinder between its ends and to spheres beyond them."""
    q = np.random.default_rng(1).uniform(-30, 30, (3, 500)).astype(np.float32)
    along, radial = q[2], np.hypot(q[0], q[1])
    beyond = np.maximum(np.abs(along) - 10, 0)
    found = Tube(np.array([(0, 0, -10, 4), (0, 0, 10, 4)])).distance(q)
    assert np.allclose(found, np.hypot(radial, beyond) - 4, atol=1e-4)
    tube = Tube(np.array([(0, 0, 0, 1), (5, 0, 0, 3), (5, 5, 0, 2)]))
    low, high = tube.bounds()
    assert np.all(low <= [-1, -3, -3]) and np.all(high >= [8, 7, 3])
    parts = np.min([part.distance(q) for part in tube.parts()], axis=0)
    assert np.allclose(parts, tube.distance(q))


def test_smooth_union_is_never_smaller() -> None:
    """It contains both shapes, and differs from the plain union only where they are about equally far."""
    a, b = np.random.default_rng(2).normal(size=(2, 1000)) * 10
    union = smooth_union(a, b, 4.0)
    assert (union <= np.minimum(a, b) + 1e-12).all() and (np.minimum(a, b) - union).max() <= 1.0 + 1e-12
    assert np.array_equal(union[np.abs(a - b) >= 4], np.minimum(a, b)[np.abs(a - b) >= 4])


@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_painted_ball(spacing: float) -> None:
    """Image and label of a ball, painted through the lattice, agree, lie in its place and are little smaller."""
    n = int(60 / spacing)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (n - 1) / 2
    canvas = Canvas(Grid((n, n, n), affine), lambda points: points, -1000.0)
    centre = np.array([3.0, -4.0, 5.0], np.float32).reshape(3, 1, 1, 1)
    canvas.paint(np.linalg.norm(canvas.coarse - centre, axis=0) - 18, 100.0, 7)
    volume = 4 / 3 * np.pi * 18**3
    labelled = (canvas.labels == 7).sum() * spacing**3
    assert 0.93 * volume < labelled < volume
    assert ((canvas.image + 1000) / 1100).sum() * spacing**3 == pytest.approx(labelled, rel=0.02)
    found = affine[:3, :3] @ np.array(ndimage.center_of_mass(canvas.labels)) + affine[:3, 3]
    assert np.allclose(found, centre.ravel(), atol=0.2)
    assert set(np.unique(canvas.labels)) == {0, 7}
