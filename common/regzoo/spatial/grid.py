"""The sampling grid of an image: its shape and where its voxels lie in the world."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import from_matvec

#: The signs of x, y, z, and the matrix, that take RAS mm to LPS mm and back.
LPS_SIGNS = np.array([-1.0, -1.0, 1.0])
RAS_LPS = np.diag([*LPS_SIGNS, 1.0])


@dataclass(frozen=True, eq=False, init=False)
class Grid:
    """A regular grid of voxel centres in the world.

    Attributes:
        shape: number of voxels along each array axis (X, Y, Z).
        affine: 4×4 float64, voxel index → RAS mm (the NIfTI and MONAI convention).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __init__(self, shape: Sequence[int] | np.ndarray, affine: np.ndarray) -> None:
        x, y, z = (int(n) for n in shape)
        object.__setattr__(self, "shape", (x, y, z))
        object.__setattr__(self, "affine", np.asarray(affine, dtype=np.float64).reshape(4, 4))

    @classmethod
    def of(cls, image: torch.Tensor) -> Grid:
        """The grid of a `MetaTensor` of shape (..., X, Y, Z)."""
        return cls(image.shape[-3:], torch.as_tensor(image.affine).cpu().numpy())  # type: ignore[attr-defined]

    @property
    def spacing(self) -> np.ndarray:
        """Distance between neighbouring voxel centres along each array axis, mm, shape (3,)."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def center(self) -> np.ndarray:
        """World position of the middle of the field of view, RAS mm, shape (3,)."""
        return self.to_world((np.asarray(self.shape) - 1) / 2)

    @property
    def corners(self) -> np.ndarray:
        """Centres of the voxels at the eight corners, RAS mm, shape (2, 2, 2, 3)."""
        return self.to_world(np.stack(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij"), -1))

    @property
    def corner_grid(self) -> Grid:
        """The grid of the voxels at the eight corners, on which a linear displacement is exact."""
        return Grid((2, 2, 2), self.affine @ np.diag([*(max(n - 1, 1) for n in self.shape), 1]))

    def to_world(self, voxels: np.ndarray | Sequence[float]) -> np.ndarray:
        """Voxel indices (..., 3) → RAS mm (..., 3)."""
        return np.asarray(np.asarray(voxels) @ self.affine[:3, :3].T + self.affine[:3, 3])

    def to_voxels(self, points: np.ndarray | Sequence[float]) -> np.ndarray:
        """RAS mm (..., 3) → voxel indices (..., 3), not rounded."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(points, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def network_grid(self, spacing: Sequence[float], size: Sequence[int]) -> Grid:
        """The grid of a network's input: same centre and obliquity, axes in the order and direction nearest to RAS.

        Args:
            spacing: voxel size along the new axes (nearest R, A, S), mm.
            size: number of voxels along the new axes; the field of view is cropped or padded about its centre.
        """
        straight = self.straightened()
        directions = np.zeros((3, 3))
        for axis, (target, flip) in enumerate(nib.io_orientation(straight.affine)):
            directions[:, int(target)] = flip * straight.affine[:3, axis] / straight.spacing[axis]
        axes = directions * np.asarray(spacing, dtype=np.float64)
        return Grid(size, from_matvec(axes, self.center - axes @ ((np.asarray(size) - 1) / 2)))

    def straightened(self) -> Grid:
        """The nearest grid with axes at right angles: the same voxel size and the same first voxel."""
        left, _, right = np.linalg.svd(self.affine[:3, :3] / self.spacing)
        return Grid(self.shape, from_matvec(left @ right * self.spacing, self.affine[:3, 3]))

    def distance(self, other: Grid) -> float:
        """The largest distance between corresponding corners of two grids, mm."""
        return float(np.linalg.norm(self.corners - other.corners, axis=-1).max())

    def same_as(self, other: Grid) -> bool:
        """Whether two grids have the same shape and agree to 0.001 mm at every corner."""
        return self.shape == other.shape and self.distance(other) <= 1e-3


def decimals(number: float, least: int = 3) -> int:
    """The decimals to write of a positive number, such as a voxel's size: enough for three digits, and `least`."""
    return max(least, 2 - math.floor(math.log10(number)))
