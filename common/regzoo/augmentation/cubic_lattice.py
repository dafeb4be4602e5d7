"""Smooth fields on a coarse lattice over an image, interpolated between the nodes by cubic B-splines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from regzoo.filters import matrix_for, separable_filter
from regzoo.spatial import sample
from scipy.interpolate import BSpline


def _design(positions: np.ndarray, nodes: int, derivative: int = 0) -> np.ndarray:
    """Values (n, nodes + 2) of the uniform cubic B-splines that span a lattice, at positions from 0 to nodes - 1."""
    knots = np.arange(-3.0, nodes + 3)
    return np.asarray(BSpline(knots, np.eye(nodes + 2), 3)(np.clip(positions, 0, nodes - 1), nu=derivative))


def _prefilter(nodes: int) -> np.ndarray:
    """Node values → B-spline coefficients, (nodes + 2, nodes); the end conditions are "not a knot"."""
    # A zero fourth difference of the coefficients: the third derivative does not jump one node from the end.
    ends = np.zeros((2, nodes + 2))
    ends[0, :5] = ends[1, -5:] = [1, -4, 6, -4, 1]
    system = np.vstack([_design(np.arange(nodes), nodes), ends])
    return np.linalg.inv(system)[:, :nodes]


def _slope_matrix(nodes: int, step: float) -> torch.Tensor:
    return torch.from_numpy(_design(np.arange(nodes), nodes, derivative=1) @ _prefilter(nodes)).float() / step


def _voxel_matrix(size: int, cells: int, margin: int) -> torch.Tensor:
    nodes = cells + 2 * margin + 1
    return torch.from_numpy(_design(np.linspace(margin, margin + cells, size), nodes) @ _prefilter(nodes)).float()


def _per_axis(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers).view(3, 1, 1, 1)


class CubicLattice:
    """Equally spaced nodes over an image, the outermost on its outermost voxels, plus a margin of cells around it.

    A batch of fields is stored as their values (B, C, nodes…) at the nodes. Evaluating them at all voxels takes one
    matrix product per axis; the matrices are computed once per device.

    Args:
        shape: voxels of the image along each axis.
        cells: lattice cells across the image along each axis.
        margin: additional cells on either side.
    """

    def __init__(self, shape: Sequence[int], cells: Sequence[int], margin: int = 0) -> None:
        self.shape = tuple(int(size) for size in shape)
        self.cells = tuple(int(count) for count in cells)
        self.margin = int(margin)
        self.nodes = tuple(count + 2 * self.margin + 1 for count in self.cells)
        if min(self.shape) < 2 or min(self.nodes) < 4:
            raise ValueError(f"cubic interpolation needs 2 voxels and 4 nodes per axis: {self.shape}, {self.nodes}")
        #: Distance between nodes along each axis, voxels.
        self.step = tuple((size - 1) / count for size, count in zip(self.shape, self.cells, strict=True))

    def node_axes(self) -> list[torch.Tensor]:
        """Voxel coordinates of the nodes along each axis, float64 on the CPU."""
        return [
            torch.arange(-self.margin, count + self.margin + 1, dtype=torch.float64) * step
            for count, step in zip(self.cells, self.step, strict=True)
        ]

    def on_voxels(self, values: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:  # noqa: B008
        """The fields (B, C, nodes…) on the voxels of some planes along X: (B, C, rows, Y, Z)."""
        along_x, along_y, along_z = (
            matrix_for(values.device, _voxel_matrix, size, cells, self.margin)
            for size, cells in zip(self.shape, self.cells, strict=True)
        )
        # X first, so that memory only ever holds the slab.
        slab = (along_x[rows] @ values.flatten(3)).unflatten(3, values.shape[3:])
        return separable_filter(slab, [None, along_y, along_z])

    def gradient(self, values: torch.Tensor) -> torch.Tensor:
        """Derivatives of the fields at the nodes along each axis, per voxel: (B, C, 3, nodes…)."""
        slopes = []
        for axis in range(3):
            matrices: list[torch.Tensor | None] = [None, None, None]
            matrices[axis] = matrix_for(values.device, _slope_matrix, self.nodes[axis], self.step[axis])
            slopes.append(separable_filter(values, matrices))
        return torch.stack(slopes, dim=2)

    def linear(self, values: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        """The fields (B, C, nodes…) at voxel coordinates (B, 3, X, Y, Z), by linear interpolation between nodes.

        Beyond the lattice, the border values apply.
        """
        step = matrix_for(values.device, _per_axis, *self.step)
        return sample(values, coordinates / step + self.margin, padding="border")
