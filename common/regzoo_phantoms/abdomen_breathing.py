"""How breathing in moves the organs of a phantom's abdomen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from regzoo.spatial.grid import Grid
from regzoo_phantoms.abdomen_anatomy import AbdomenAnatomy, oval
from regzoo_phantoms.canvas import Lattice
from regzoo_phantoms.fields import LEAST_DETERMINANT, SmoothField, product

#: Enough for the fixed-point iteration to be exact to 0.01 mm.
ITERATIONS = 14


@dataclass(frozen=True)
class Breathing:
    """The transformation S from the breathed-in to the breathed-out state: S(x) = x + s(x), RAS mm.

    Attributes:
        anatomy: the patient.
        down: how far the organs under the diaphragm go down, mm.
        forward: how far the belly goes forward, mm.
        smooth: a small random field, mm, that makes the motion less regular.
    """

    anatomy: AbdomenAnatomy
    down: float
    forward: float
    smooth: SmoothField

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points (3, ...) of the breathed-in world → the same tissue when breathed out (3, ...), RAS mm."""
        return points + self.displacement(points)

    def displacement(self, points: np.ndarray) -> np.ndarray:
        """s at points (3, ...), mm."""
        x, y, z = self.anatomy.to_rigid(points)
        # Spine, ribs and back stay; the motion is largest under the diaphragm and fades towards the pelvis.
        inner = 1 - _rise(oval(x, y - 40, 129, 86), -20, 8)
        free = inner * (1 - np.exp((x * x + (y - 4) ** 2) * np.float32(-0.5 / 28**2)))
        level = _rise(z, -55, 28) * (1 - _rise(z, 140, 24))
        moved = np.float32(0.12) * self.smooth(points) * free
        body = np.zeros_like(moved)
        body[2] = np.float32(self.down) * free * level
        body[1] = -np.float32(self.forward) * _rise(y, 70, 20) * (1 - _rise(z, 90, 20))
        return moved + product(self.anatomy.rotation, body)

    def field(self, grid: Grid) -> np.ndarray:
        """S⁻¹(x) − x at the voxels of a breathed-out image: how far its tissue moves by breathing in, mm, (3, ...)."""
        lattice = Lattice(grid)
        points = lattice.points
        found = np.zeros_like(points)
        for _ in range(ITERATIONS):
            found = -self.displacement(points + found)
        return np.stack([lattice.up(component) for component in found])

    def least_jacobian(self, grid: Grid) -> float:
        """The least Jacobian determinant of S over a grid."""
        lattice = Lattice(grid)
        steps = grid.spacing * lattice.steps
        slopes = [np.gradient(component, *steps) for component in self.displacement(lattice.points)]
        signs = np.sign(np.diag(grid.affine)[:3])[:, None, None, None]
        matrix = np.stack([np.stack(slope) * signs for slope in slopes])
        matrix += np.eye(3)[:, :, None, None, None]
        return float(np.linalg.det(np.moveaxis(matrix, (0, 1), (-2, -1))).min())


def random_breathing(rng: np.random.Generator, anatomy: AbdomenAnatomy, grid: Grid) -> Breathing:
    """Draw a breath that folds nothing: 8 to 20 mm down, 2 to 8 mm forward."""
    smooth = SmoothField.random(rng, length=rng.uniform(35, 50), terms=6).scaled(rng.uniform(6, 14))
    breath = Breathing(anatomy, float(rng.uniform(8, 20)), float(rng.uniform(2, 8)), smooth)
    while breath.least_jacobian(grid) < LEAST_DETERMINANT:
        breath = replace(breath, down=0.85 * breath.down, smooth=breath.smooth.scaled(0.85))
    return breath


def _rise(values: np.ndarray, middle: float, width: float) -> np.ndarray:
    """From 0 to 1 about `middle`."""
    return 1 / (1 + np.exp(np.clip((middle - values) * np.float32(1 / width), -60, 60)))
