"""Thin-plate splines from a regular grid of control points, evaluated by a Fourier transform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from regzoo.augmentation.cubic_lattice import CubicLattice
from scipy.fft import next_fast_len
from scipy.spatial.distance import cdist

_AXES = (1, 2, 3)


def _kernel(distance: np.ndarray) -> np.ndarray:
    """r² log r, 0 at 0."""
    return distance**2 * np.log(np.where(distance > 0, distance, 1))


class ThinPlateSpline:
    """The thin-plate spline through displacements at a regular grid of control points that spans an image.

    The spline is ``Σ wₖ |x - xₖ|² log |x - xₖ|`` plus an affine map, distances in mm. The inverse of its matrix and the
    transform of its kernel depend on the grid alone and are computed once. A small matrix product then gives the
    weights for a set of displacements. The values on a regular lattice that contains the control points are a
    convolution: two small Fourier transforms instead of a matrix of nodes × control points.

    Args:
        shape: voxels of the image along each axis.
        spacing: voxel size along each axis, mm.
        control_points: number along each axis; the outermost lie on the outermost voxels.
        subdivisions: lattice cells m between control points along the axis where these are closest; proportionally
            more along the others. The spline is exact at the nodes. Between them the cubic interpolation deviates by at
            most 0.2/m² of the largest displacement of a control point. The lattice is never finer than the smallest
            voxel edge.
        margin: lattice cells beyond the image on either side.

    Attributes:
        lattice: the nodes at which the spline is evaluated.

    Source: Bookstein 1989, Principal warps; `scipy.interpolate.RBFInterpolator` with kernel ``thin_plate_spline``.
    """

    def __init__(
        self,
        shape: Sequence[int],
        spacing: Sequence[float],
        control_points: Sequence[int] = (8, 8, 8),
        subdivisions: int = 6,
        margin: int = 3,
    ) -> None:
        self.control_points = tuple(control_points)
        extent = [(size - 1) * mm for size, mm in zip(shape, spacing, strict=True)]
        distances = [e / (count - 1) for e, count in zip(extent, control_points, strict=True)]
        step = max(min(distances) / subdivisions, min(spacing))
        # A cubic spline needs three cells per axis. Rounding errors must not add one.
        self._cells = [max(math.ceil(d / step - 1e-6), 3) for d in distances]
        across = [cells * (count - 1) for cells, count in zip(self._cells, control_points, strict=True)]
        self.lattice = CubicLattice(shape, across, margin)
        # The spline does not depend on the unit of length. This unit keeps the kernel and rounding errors small.
        unit = math.hypot(*extent)
        axes = [np.linspace(-e / 2, e / 2, count) / unit for e, count in zip(extent, control_points, strict=True)]
        self._solution = _solve(axes)
        steps = [(axis[1] - axis[0]) / cells for axis, cells in zip(axes, self._cells, strict=True)]
        self._node_axes = [
            torch.from_numpy((np.arange(nodes) - margin) * step + axis[0]).float()
            for nodes, step, axis in zip(self.lattice.nodes, steps, axes, strict=True)
        ]
        # Distances reach from a control point at one end to a node beyond the other end, in both directions.
        self._coarse = [
            next_fast_len(2 * (count - 1) + math.ceil(2 * margin / cells), real=True)
            for count, cells in zip(control_points, self._cells, strict=True)
        ]
        self._fine = [cells * size for cells, size in zip(self._cells, self._coarse, strict=True)]
        lags = [np.minimum(np.arange(n), n - np.arange(n)) * step for n, step in zip(self._fine, steps, strict=True)]
        x, y, z = np.ix_(*lags)
        # The kernel is even along every axis, so its transform is real.
        self._spectrum = torch.from_numpy(np.fft.rfftn(_kernel(np.sqrt(x**2 + y**2 + z**2))).real).float()
        self._on_device: dict[torch.device, tuple[torch.Tensor, list[torch.Tensor]]] = {}

    def __call__(self, displacements: torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
        """The spline at the nodes of the lattice.

        Args:
            displacements: (B, 3, control points…) on the CPU, in any unit.
            device: where to evaluate the spline.

        Returns:
            (B, 3, nodes…) float32 on the device, in the same unit.
        """
        device = torch.device(device)
        if tuple(displacements.shape[2:]) != self.control_points:
            raise ValueError(f"expected {self.control_points} control points, got {tuple(displacements.shape[2:])}")
        solution = displacements.double().flatten(2) @ self._solution.T
        weights = solution[..., :-4].unflatten(2, self.control_points).float().to(device, non_blocking=True)
        affine = solution[..., -4:].float().to(device, non_blocking=True)
        spectrum, axes = self._constants(device)
        # On the CPU, memory only ever holds the transforms of one component.
        parts = weights.flatten(0, 1).split(1 if device.type == "cpu" else weights.shape[:2].numel())
        values = torch.cat([self._convolve(part, spectrum) for part in parts]).unflatten(0, weights.shape[:2])
        constant, along_x, along_y, along_z = affine[..., None, None, None].unbind(2)
        x, y, z = axes
        return values + constant + along_x * x[:, None, None] + along_y * y[:, None] + along_z * z

    def _convolve(self, weights: torch.Tensor, spectrum: torch.Tensor) -> torch.Tensor:
        """Sum of kernels around the control points at the nodes: (B, control points…) → (B, nodes…)."""
        # Inserting zeros between the weights repeats their transform.
        coarse = torch.fft.fftn(weights, s=self._coarse, dim=_AXES)
        last = torch.arange(spectrum.shape[2], device=spectrum.device) % self._coarse[2]
        transform = coarse[..., last].repeat(1, self._cells[0], self._cells[1], 1).mul_(spectrum)
        margin, (x, y, z) = self.lattice.margin, self.lattice.nodes
        return torch.fft.irfftn(transform, s=self._fine, dim=_AXES).roll((margin,) * 3, _AXES)[:, :x, :y, :z]

    def _constants(self, device: torch.device) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The kernel's transform and the nodes' coordinates on a device."""
        if device not in self._on_device:
            with torch.inference_mode(False):
                self._on_device[device] = self._spectrum.to(device), [axis.to(device) for axis in self._node_axes]
        return self._on_device[device]


def _solve(axes: Sequence[np.ndarray]) -> torch.Tensor:
    """Displacements at the control points → weights of the kernel, then of 1, x, y, z: (n + 4, n) float64."""
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    affine = np.hstack([np.ones((len(points), 1)), points])
    system = np.block([[_kernel(cdist(points, points)), affine], [affine.T, np.zeros((4, 4))]])
    return torch.from_numpy(np.linalg.inv(system)[:, : len(points)].copy())


@lru_cache(maxsize=8)
def thin_plate_spline(
    shape: tuple[int, ...], spacing: tuple[float, ...], control_points: tuple[int, ...], subdivisions: int
) -> ThinPlateSpline:
    """The cached `ThinPlateSpline` of a grid."""
    with torch.inference_mode(False):
        return ThinPlateSpline(shape, spacing, control_points, subdivisions)
