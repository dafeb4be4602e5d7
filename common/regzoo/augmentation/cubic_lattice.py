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


def _slope_matrix(nodes: int) -> torch.Tensor:
    return torch.from_numpy(_design(np.arange(nodes), nodes, derivative=1) @ _prefilter(nodes)).float()


def _voxel_matrix(size: int, cells: int, margin: int) -> torch.Tensor:
    nodes = cells + 2 * margin + 1
    return torch.from_numpy(_design(np.linspace(margin, margin + cells, size), nodes) @ _prefilter(nodes)).float()


class CubicLattice:
    """Equally spaced nodes over an image, the outermost on its outermost voxels, plus a margin of cells around it.

    A field is stored as its values (C, nodes…) at the nodes. Evaluating it at all voxels takes one matrix product per
    axis; the matrices are computed once per device.

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
        """The field (C, nodes…) on the voxels of some planes along X: (C, rows, Y, Z)."""
        along_x, along_y, along_z = (
            matrix_for(values.device, _voxel_matrix, size, cells, self.margin)
            for size, cells in zip(self.shape, self.cells, strict=True)
        )
        # X first, so that memory only ever holds the slab.
        slab = (along_x[rows] @ values.flatten(2)).unflatten(2, values.shape[2:])
        return separable_filter(slab[None], [None, along_y, along_z])[0]

    def gradient(self, values: torch.Tensor) -> torch.Tensor:
        """Derivatives of the field at the nodes along each axis, per voxel: (C, 3, nodes…)."""
        slopes = []
        for axis in range(3):
            matrices: list[torch.Tensor | None] = [None, None, None]
            matrices[axis] = matrix_for(values.device, _slope_matrix, self.nodes[axis]) / self.step[axis]
            slopes.append(separable_filter(values[None], matrices)[0])
        return torch.stack(slopes, dim=1)

    def linear(self, values: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        """The field (C, nodes…) at voxel coordinates (3, X, Y, Z), by linear interpolation between nodes.

        Beyond the lattice, the border values apply.
        """
        places = [along / step + self.margin for along, step in zip(coordinates, self.step, strict=True)]
        return sample(values[None], torch.stack(places)[None], padding="border")[0]
