"""Paints an image and its label map, organ by organ.

Organs are smooth, so their distances are evaluated on a coarse lattice and interpolated linearly to the voxels; small
structures, such as vessels, are evaluated at the voxels. A volume of three million voxels takes half a second. Image
and labels are made from the same distances, so they agree.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from regzoo.spatial.grid import Grid
from regzoo_phantoms.scene import Box, cover, paint, world_points
from scipy import ndimage

#: Distance between points of the coarse lattice, mm, at most (but never less than a voxel).
LATTICE = 6.0


class Lattice:
    """A coarse lattice over the voxels of a grid; its first point is the first voxel.

    Args:
        grid: of the voxels.
        spacing: wanted distance between the points, mm.
    """

    def __init__(self, grid: Grid, spacing: float = LATTICE) -> None:
        self.grid = grid
        self.steps = tuple(max(1, int(spacing / size + 1e-6)) for size in grid.spacing)
        self.shape = tuple((n - 1) // step + 2 for n, step in zip(grid.shape, self.steps, strict=True))

    @property
    def points(self) -> np.ndarray:
        """World positions of the points, RAS mm, float32, shape (3, *self.shape)."""
        affine = self.grid.affine.copy()
        affine[:3, :3] = affine[:3, :3] * np.array(self.steps)
        return world_points(Grid((self.shape[0], self.shape[1], self.shape[2]), affine))

    def box(self, chosen: np.ndarray) -> Box | None:
        """The box of voxels around the chosen points, one cell wider; None if none is chosen.

        Args:
            chosen: bool, of the lattice's shape.
        """
        found = ndimage.find_objects(chosen.astype(np.uint8))
        if not found:
            return None
        ends = zip(found[0], self.steps, self.grid.shape, strict=True)
        x, y, z = (slice(max((used.start - 1) * step + 1, 0), min(used.stop * step, n)) for used, step, n in ends)
        return None if any(axis.start >= axis.stop for axis in (x, y, z)) else (x, y, z)

    def up(self, coarse: np.ndarray, box: Box | None = None) -> np.ndarray:
        """Values on the lattice, interpolated linearly to the voxels of a box; to all voxels if it is None."""
        values = coarse
        box = box or np.s_[: self.grid.shape[0], : self.grid.shape[1], : self.grid.shape[2]]
        # The last axis first: the largest step is then along the first, where whole planes are copied.
        for axis in (2, 1, 0):
            where = np.arange(self.grid.shape[axis])[box[axis]]
            low, rest = np.divmod(where, self.steps[axis])
            start = low[0]
            values = np.take(values, np.arange(start, low[-1] + 2), axis=axis)
            share = (rest / self.steps[axis]).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
            first = np.take(values, low - start, axis=axis)
            second = np.take(values, low - start + 1, axis=axis)
            second -= first
            second *= share
            first += second
            values = first
        return values


class Canvas:
    """Paints tissues over one another.

    Args:
        grid: of the voxels.
        body: world points (3, ...), RAS mm → the points of the body there, mm.
        background: value of the empty image.
        lattice: distance between points of the coarse lattice, mm.

    Attributes:
        coarse: the body coordinates at the points of the lattice, mm, float32, shape (3, ...).
        image: float32, shape (X, Y, Z).
        labels: uint8, shape (X, Y, Z), 0 where nothing is labelled.
    """

    def __init__(
        self, grid: Grid, body: Callable[[np.ndarray], np.ndarray], background: float, lattice: float = LATTICE
    ) -> None:
        self.grid = grid
        self.lattice = Lattice(grid, lattice)
        self.coarse = body(self.lattice.points)
        self.image = np.full(grid.shape, background, np.float32)
        self.labels = np.zeros(grid.shape, np.uint8)
        #: Half the width of a tissue's edge, mm.
        self.blur = float(max(0.8, 0.5 * grid.spacing.max()))
        # A surface may pass between points of the lattice that are this far from it.
        self._reach = float(np.linalg.norm(grid.spacing * self.lattice.steps)) * 0.6 + self.blur

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        """White noise of unit deviation on the lattice, float32: smooth texture once it is interpolated."""
        return rng.standard_normal(self.lattice.shape, np.float32)

    def box_near(self, distance: np.ndarray) -> Box | None:
        """The box of the voxels where a distance on the lattice may be negative."""
        return self.lattice.box(distance < self._reach)

    def box_of(self, low: np.ndarray, high: np.ndarray) -> Box | None:
        """The box of the voxels that show the body between two corners, mm."""
        chosen = np.ones(self.lattice.shape, bool)
        for values, least, most in zip(self.coarse, low - self._reach, high + self._reach, strict=True):
            chosen &= (values > np.float32(least)) & (values < np.float32(most))
        return self.lattice.box(chosen)

    def body(self, box: Box) -> np.ndarray:
        """The body coordinates of the voxels of a box, mm, float32, shape (3, ...)."""
        return np.stack([self.lattice.up(values, box) for values in self.coarse])

    def paint(self, distance: np.ndarray, value: np.ndarray | float, label: int | None = None) -> None:
        """Paint a tissue, given its signed distance on the lattice, mm.

        Args:
            value: of the tissue: one number, or one for each point of the lattice.
            label: written where the distance is at most 0; None leaves the labels as they are.
        """
        box = self.box_near(distance)
        if box is None:
            return
        fine = self.lattice.up(np.asarray(value, np.float32), box) if isinstance(value, np.ndarray) else value
        self.paint_box(box, self.lattice.up(distance, box), fine, label)

    def paint_box(
        self, box: Box, distance: np.ndarray, value: np.ndarray | float, label: int | np.ndarray | None = None
    ) -> None:
        """Paint a tissue, given its signed distance at the voxels of a box, mm."""
        inner = self.image[box]
        paint(inner, cover(distance, self.blur), value)
        if label is not None:
            np.copyto(self.labels[box], np.asarray(label, np.uint8), where=distance <= 0)
