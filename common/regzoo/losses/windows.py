"""Filter with narrow separable windows, and with the transposed filters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from regzoo.filters import matrix_for

#: Windows up to this width are summed tap by tap; wider ones use an n×n matrix, which costs the same for any width. At
#: 128³ one core filters a volume in 6 ms with 11 taps along each axis and in 20 ms with matrices. A sum of taps also
#: avoids TF32 on a GPU, which would spoil variances because they are differences of means.
NARROW = 11


def window_weights(width: int, sigma: float) -> tuple[float, ...]:
    """A sampled Gaussian of the given width with sum 1; an infinite σ gives a box."""
    kernel = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-(width // 2), width // 2 + 1)]
    return tuple(weight / sum(kernel) for weight in kernel)


class Window:
    """A separable window as a filter: correlation with one kernel per axis.

    Args:
        kernels: for each axis, an odd number of weights.
        valid: True keeps the windows that lie wholly within the volume; False keeps the size, with zeros outside.
    """

    def __init__(self, kernels: Sequence[Sequence[float]], valid: bool) -> None:
        self.kernels = [tuple(float(weight) for weight in kernel) for kernel in kernels]
        self.valid = valid

    def _pad(self, axis: int) -> int:
        return 0 if self.valid else len(self.kernels[axis]) // 2

    def filter(self, volume: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) → (B, C, X', Y', Z')."""
        for axis in (2, 1, 0):
            volume = self._along(volume, axis, volume.shape[2 + axis], adjoint=False)
        return volume

    def adjoint(self, volume: torch.Tensor) -> torch.Tensor:
        """The transposed filter, (B, C, X', Y', Z') → (B, C, X, Y, Z)."""
        for axis in (2, 1, 0):
            lost = len(self.kernels[axis]) - 1 - 2 * self._pad(axis)
            volume = self._along(volume, axis, volume.shape[2 + axis] + lost, adjoint=True)
        return volume

    def _along(self, volume: torch.Tensor, axis: int, size: int, adjoint: bool) -> torch.Tensor:
        """Filter along one axis, whose size before filtering is `size`."""
        kernel, pad = self.kernels[axis], self._pad(axis)
        if len(kernel) == 1:
            return volume if kernel[0] == 1 else volume * kernel[0]
        if len(kernel) <= NARROW:
            lost = len(kernel) - 1 - 2 * pad
            out = size if adjoint else size - lost
            offsets = [pad - k if adjoint else k - pad for k in range(len(kernel))]
            return _sum_of_shifted(volume, 2 + axis, out, offsets, kernel)
        matrix = matrix_for(volume.device, _window_matrix, size, kernel, pad, volume.dtype)
        matrix = matrix.T if adjoint else matrix
        if axis == 2:
            return volume @ matrix.T
        if axis == 1:
            return matrix @ volume
        return (matrix @ volume.flatten(3)).view(*volume.shape[:2], -1, *volume.shape[3:])


def _window_matrix(size: int, kernel: tuple[float, ...], pad: int, dtype: torch.dtype) -> torch.Tensor:
    """The banded matrix of a kernel on an axis of `size` voxels with `pad` zeros before and after it."""
    out = size - len(kernel) + 1 + 2 * pad
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for k, weight in enumerate(kernel):
        matrix.diagonal(k - pad).fill_(weight)
    return matrix.to(dtype)


def _sum_of_shifted(
    volume: torch.Tensor, axis: int, size: int, offsets: Sequence[int], weights: Sequence[float]
) -> torch.Tensor:
    """Σ weight · volume[i + offset] for each i below `size` along an axis; the volume is 0 outside."""
    shape = [*volume.shape[:axis], size, *volume.shape[axis + 1 :]]
    total = volume.new_zeros(shape)
    for offset, weight in zip(offsets, weights, strict=True):
        first, last = max(0, -offset), min(size, volume.shape[axis] - offset)
        if last > first:
            part = volume.narrow(axis, first + offset, last - first)
            total.narrow(axis, first, last - first).add_(part, alpha=weight)
    return total
