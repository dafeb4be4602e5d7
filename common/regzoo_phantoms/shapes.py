"""The shapes of organs, as approximate signed distances, mm, negative inside.

Points are arrays (3, ...) of body coordinates, mm, float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import numpy as np
from regzoo_phantoms.fields import SmoothField, product
from scipy.spatial.transform import Rotation


@dataclass(frozen=True)
class Body:
    """A patient's body in the world.

    Attributes:
        centre: where the body's origin lies in the world, RAS mm.
        rotation: body axes in the world, 3×3.
        scale: size of the body along its axes, 1 = standard.
        warp: smooth field added to body coordinates, mm: it makes this patient's shapes unlike another's.
    """

    centre: np.ndarray
    rotation: np.ndarray
    scale: np.ndarray
    warp: SmoothField

    def to_rigid(self, points: np.ndarray) -> np.ndarray:
        """World (3, ...), RAS mm → body coordinates before the warp (3, ...), mm."""
        return product((self.rotation / self.scale).T, [points[i] - np.float32(self.centre[i]) for i in range(3)])

    def to_body(self, points: np.ndarray) -> np.ndarray:
        """World (3, ...), RAS mm → body coordinates (3, ...), mm."""
        q = self.to_rigid(points)
        q += self.warp(q)
        return q


@dataclass(frozen=True)
class Ellipsoid:
    """A rotated ellipsoid in body coordinates, mm."""

    centre: np.ndarray
    radii: np.ndarray
    rotation: np.ndarray

    @classmethod
    def random(
        cls,
        rng: np.random.Generator,
        centre: Sequence[float] | np.ndarray,
        radii: Sequence[float],
        degrees: Sequence[float] = (0, 0, 0),
        shift: float = 3.0,
        size: float = 0.07,
        turn: float = 3.0,
        moved: np.ndarray | float = 0.0,
    ) -> Ellipsoid:
        """An ellipsoid that varies between patients.

        Args:
            centre, radii, degrees: of the standard one: mm, mm, Euler angles.
            shift, size, turn: how much it varies: standard deviation, mm; largest share; standard deviation, degrees.
            moved: added to the centre, mm.
        """
        return cls(
            np.array(centre) + rng.normal(0, shift, 3) + moved,
            np.array(radii) * rng.uniform(1 - size, 1 + size, 3),
            Rotation.from_euler("xyz", np.array(degrees) + rng.normal(0, turn, 3), degrees=True).as_matrix(),
        )

    def distance(self, q: np.ndarray) -> np.ndarray:
        """Approximate signed distance at body points (3, ...), mm, negative inside."""
        local = product(self.rotation.T, [q[i] - np.float32(self.centre[i]) for i in range(3)])
        return ellipsoid_distance(local, self.radii)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner of a cube around the ellipsoid, however it is turned, mm."""
        return self.centre - self.radii.max(), self.centre + self.radii.max()


def ellipsoid_distance(local: Sequence[np.ndarray] | np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Approximate signed distance, mm, to an ellipsoid about the origin: exact on the surface, first order near it."""
    inverse = [np.float32(1 / radius) for radius in radii]
    scaled = [value * share for value, share in zip(local, inverse, strict=True)]
    length = np.sqrt(sum(value**2 for value in scaled))
    slope = np.sqrt(sum((value * share) ** 2 for value, share in zip(scaled, inverse, strict=True)))
    return length * (length - 1) / np.maximum(slope, np.float32(1e-3))


@dataclass(frozen=True)
class Tube:
    """A chain of round cones: spheres along a line, whose radius changes linearly between the nodes.

    Attributes:
        nodes: x, y, z and radius of each, mm, shape (N, 4), N ≥ 2.
    """

    nodes: np.ndarray

    def distance(self, q: np.ndarray) -> np.ndarray:
        """Approximate signed distance at body points (3, ...), mm."""
        return reduce(np.minimum, (_cone(q, start, end) for start, end in pairwise(self.nodes.astype(np.float32))))

    def parts(self) -> list[Tube]:
        """The pieces between two nodes: the smaller a piece, the faster it is drawn."""
        return [Tube(self.nodes[i : i + 2]) for i in range(len(self.nodes) - 1)]

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner of the box around the tube, mm."""
        radii = self.nodes[:, 3:]
        return (self.nodes[:, :3] - radii).min(axis=0), (self.nodes[:, :3] + radii).max(axis=0)


def _cone(q: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distance to spheres strung from `start` to `end`, each (x, y, z, radius)."""
    along = end - start
    square = np.float32(max(float(along[:3] @ along[:3]), 1e-6))
    offset = [q[i] - start[i] for i in range(3)]
    share = offset[0] * (along[0] / square)
    share += offset[1] * (along[1] / square)
    share += offset[2] * (along[2] / square)
    np.clip(share, 0, 1, out=share)
    total = np.zeros_like(share)
    for i in range(3):
        offset[i] -= along[i] * share
        total += offset[i] * offset[i]
    np.sqrt(total, out=total)
    share *= along[3]
    share += start[3]
    total -= share
    return total


def smooth_union(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    """The union of two shapes with the corner between them filled over about `width` mm."""
    blend = np.maximum(np.float32(width) - np.abs(first - second), 0) * np.float32(1 / width)
    return np.minimum(first, second) - blend * blend * np.float32(width / 4)
