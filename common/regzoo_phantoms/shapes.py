"""Shapes that organs are made of, as approximate signed distances, mm, negative inside.

Points are arrays (3, ...) of body coordinates, mm, float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from regzoo_phantoms.prostate_anatomy import Ellipsoid, ellipsoid_distance

__all__ = ["Ellipsoid", "Tube", "ellipsoid_distance", "smooth_union"]


@dataclass(frozen=True)
class Tube:
    """A chain of round cones: spheres along a line, whose radius changes linearly between the nodes.

    Attributes:
        nodes: x, y, z and radius of each, mm, shape (N, 4), N ≥ 2.
    """

    nodes: np.ndarray

    @classmethod
    def through(cls, *nodes: Sequence[float]) -> Tube:
        """A tube through nodes (x, y, z, radius)."""
        return cls(np.asarray(nodes, np.float64))

    def distance(self, q: np.ndarray) -> np.ndarray:
        """Approximate signed distance at body points (3, ...), mm."""
        nearest: np.ndarray | None = None
        for start, end in zip(self.nodes[:-1], self.nodes[1:], strict=True):
            found = _cone(q, start.astype(np.float32), end.astype(np.float32))
            nearest = found if nearest is None else np.minimum(nearest, found, out=nearest)
        assert nearest is not None
        return nearest

    def parts(self) -> list[Tube]:
        """The tube piece by piece: what is small is quickly drawn."""
        return [Tube(self.nodes[i : i + 2]) for i in range(len(self.nodes) - 1)]

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner of the box about the tube, mm."""
        radii = self.nodes[:, 3:]
        return (self.nodes[:, :3] - radii).min(axis=0), (self.nodes[:, :3] + radii).max(axis=0)

    def moved(self, shift: np.ndarray) -> Tube:
        """The tube shifted by (3,), mm."""
        return Tube(self.nodes + np.append(shift, 0.0))


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
