"""A transformation from fixed to moving as a chain of steps, each a matrix, a displacement field or a B-spline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from regzoo.spatial.field import DisplacementField, invert
from regzoo.spatial.grid import Grid
from regzoo.spatial.warp import slab_points, slabs
from scipy.ndimage import map_coordinates


@dataclass(frozen=True, eq=False)
class Affine:
    """An affine map.

    Attributes:
        matrix: 4×4, RAS mm.
    """

    matrix: np.ndarray

    def transform_points(self, points: np.ndarray) -> np.ndarray:
        return np.asarray(points @ self.matrix[:3, :3].T + self.matrix[:3, 3])

    def inverse_points(self, points: np.ndarray) -> np.ndarray:
        return Affine(np.linalg.inv(self.matrix)).transform_points(points)


@dataclass(frozen=True, eq=False)
class BSpline:
    """Displacements that are a B-spline of order 3, as ITK's ``BSplineTransform`` and elastix have them.

    Attributes:
        coefficients: (3, X, Y, Z) float64, RAS mm.
        grid: the control points. Where a point lacks some of the control points around it, nothing moves, as in ITK.
    """

    coefficients: np.ndarray
    grid: Grid

    def transform_points(self, points: np.ndarray) -> np.ndarray:
        voxels = self.grid.to_voxels(points)
        inside = ((voxels >= 1) & (voxels <= np.asarray(self.grid.shape) - 2)).all(axis=1)
        shift = [
            map_coordinates(part, voxels[inside].T, order=3, mode="nearest", prefilter=False)
            for part in self.coefficients
        ]
        moved = np.array(points, dtype=np.float64)
        moved[inside] += np.stack(shift, axis=-1)
        return moved

    def inverse_points(self, points: np.ndarray) -> np.ndarray:
        def residual(found: torch.Tensor) -> torch.Tensor:
            places = found.reshape(3, -1).T.numpy()
            return torch.from_numpy((self.transform_points(places) - places).T.copy()).reshape(found.shape)

        wanted = torch.as_tensor(points.T, dtype=torch.float64).reshape(1, 3, -1, 1, 1)
        return np.asarray(invert(residual, torch.eye(4, dtype=torch.float64), wanted).reshape(3, -1).T.numpy())


#: Maps points (N, 3), RAS mm, towards the moving image and, with `inverse_points`, back.
Step = Affine | BSpline | DisplacementField


class Transformation:
    """Steps that take a point of the fixed image to the moving image, in the order in which the point travels.

    Attributes:
        steps: each step, and whether the point goes through it backwards.
    """

    def __init__(self, *steps: Step | tuple[Step, bool]) -> None:
        self.steps = [step if isinstance(step, tuple) else (step, False) for step in steps]

    def __matmul__(self, first: Transformation) -> Transformation:
        """First `first`, then this transformation."""
        return Transformation(*first.steps, *self.steps)

    def inverse(self) -> Transformation:
        """The transformation from moving to fixed."""
        return Transformation(*((step, not back) for step, back in reversed(self.steps)))

    @property
    def grid(self) -> Grid | None:
        """The grid of the fixed image, if the first step is a displacement field."""
        step, back = self.steps[0]
        return step.grid if isinstance(step, DisplacementField) and not back else None

    def points(self, points: np.ndarray) -> np.ndarray:
        """Take points (N, 3) of the fixed image to the moving image, RAS mm."""
        for step, back in self.steps:
            points = step.inverse_points(points) if back else step.transform_points(points)
        return points

    def carry(
        self, points: np.ndarray, to_fixed: bool, fixed: Grid | None, moving: Grid | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take points (N, 3), RAS mm, from one image to the other.

        Args:
            points: in the moving image if `to_fixed`, else in the fixed image.
            to_fixed: the direction.
            fixed, moving: the grids of the images, where known.

        Returns:
            The points in the other image, and whether each lies in both fields of view, (N,) bool.
        """
        moved = (self.inverse() if to_fixed else self).points(points)
        known = np.ones(len(points), dtype=bool)
        for places, grid in zip((moved, points) if to_fixed else (points, moved), (fixed, moving), strict=True):
            if grid is not None:
                known &= within_grid(places, grid)
        return moved, known

    def on(self, grid: Grid) -> DisplacementField:
        """The whole transformation, sampled on a grid."""
        step, back = self.steps[0]
        if len(self.steps) == 1 and isinstance(step, DisplacementField) and not back and step.grid.same_as(grid):
            return step
        displacement = torch.empty(3, *grid.shape)
        for rows in slabs(grid.shape):
            places = slab_points(grid.affine, grid.shape, rows)[0]
            points = places.flatten(1).T.numpy()
            displacement[:, rows] = torch.from_numpy((self.points(points) - points).T.copy()).reshape(places.shape)
        return DisplacementField(displacement, grid)


def within_grid(points: np.ndarray, grid: Grid) -> np.ndarray:
    """Which points (N, 3), RAS mm, lie in a voxel of a grid, (N,) bool."""
    voxels = grid.to_voxels(points)
    return np.asarray(((voxels >= -0.5) & (voxels <= np.asarray(grid.shape) - 0.5)).all(axis=-1))


def round_trip(forward: Transformation, backward: Transformation, moving: Grid) -> float:
    """The largest distance (mm) between a fixed point and where it is after going to the moving image and back.

    Points that leave the moving image do not count, nor do those in the outermost tenth of the fixed image.
    """
    fixed = forward.grid or moving
    points = probes(fixed)
    there = forward.points(points)
    kept = within_grid(there, moving)
    return float(np.linalg.norm(backward.points(there[kept]) - points[kept], axis=1).max(initial=0.0))


def probes(grid: Grid) -> np.ndarray:
    """About 30 voxel centres along each axis of a grid, without the outermost tenth, (N, 3), RAS mm."""
    axes = [np.unique(np.linspace(0.1 * (n - 1), 0.9 * (n - 1), 30).round()) for n in grid.shape]
    return grid.to_world(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))
