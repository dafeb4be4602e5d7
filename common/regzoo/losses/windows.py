"""Filter with narrow separable windows, and with the transposed filters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

#: Numbers in a slab on the CPU, so that the intermediate results of a slab stay in its cache.
SLAB = 3 * 2**18


def gaussian_weights(width: int, sigma: float) -> tuple[float, ...]:
    """A sampled Gaussian of the given width with sum 1."""
    kernel = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-(width // 2), width // 2 + 1)]
    return tuple(weight / sum(kernel) for weight in kernel)


def slabs(volume: torch.Tensor, axis: int, channels: int) -> Iterator[slice]:
    """Slabs of a volume (..., X, Y, Z) along one axis, where 0 is X. On a GPU, there is only one slab.

    Args:
        channels: how many volumes of this size are worked on together.
    """
    size = volume.shape[axis - 3]
    count = 1 if volume.device.type != "cpu" else min(size, math.ceil(channels * math.prod(volume.shape[-3:]) / SLAB))
    for k in range(count):
        yield slice(k * size // count, (k + 1) * size // count)


def in_slabs(
    volume: torch.Tensor,
    axis: int,
    channels: int,
    make: Callable[[slice], torch.Tensor],
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Put together what `make` returns for each of the `slabs` of a volume.

    Args:
        make: returns (..., x, Y', Z') if `axis` is 0, for a slab of x voxels.
        out: memory for the result, from an earlier call. New memory costs as much time as several sums.
    """
    for slab in slabs(volume, axis, channels):
        part = make(slab)
        if out is None:
            shape = list(part.shape)
            shape[axis - 3] = volume.shape[axis - 3]
            out = part.new_empty(shape)
        out.narrow(axis - 3, slab.start, slab.stop - slab.start).copy_(part)
    assert out is not None
    return out


class Window:
    """A separable window as a filter: correlation with one kernel per axis.

    Args:
        kernels: for each axis, an odd number of weights.
        valid: True keeps the windows that lie wholly within the volume; False keeps the size, with zeros outside. False
            is for boxes, whose weights are all 1.
    """

    def __init__(self, kernels: Sequence[Sequence[float]], valid: bool) -> None:
        self.kernels = [tuple(float(weight) for weight in kernel) for kernel in kernels]
        self.valid = valid
        #: Sum of the weights of the window.
        self.mass = math.prod(sum(kernel) for kernel in self.kernels)

    def _pad(self, axis: int) -> int:
        return 0 if self.valid else len(self.kernels[axis]) // 2

    def center(self, volume: torch.Tensor) -> torch.Tensor:
        """The voxels (X', Y', Z') of a volume (X, Y, Z) that have a window."""
        lost = [len(kernel) // 2 - self._pad(axis) for axis, kernel in enumerate(self.kernels)]
        for axis, n in enumerate(lost):
            volume = volume.narrow(axis, n, volume.shape[axis] - 2 * n)
        return volume

    def filter(self, volume: torch.Tensor, axes: Sequence[int] = (2, 1, 0)) -> torch.Tensor:
        """(N, X, Y, Z) → (N, X', Y', Z'), filtered along the given axes, where 0 is X."""
        return self._apply(volume, axes, adjoint=False)

    def adjoint(self, volume: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
        """The transposed filter, (N, X', Y', Z') → (N, X, Y, Z)."""
        return self._apply(volume, axes, adjoint=True)

    def _apply(self, volume: torch.Tensor, axes: Sequence[int], adjoint: bool) -> torch.Tensor:
        boxes = [axis for axis in axes if set(self.kernels[axis]) == {1.0}]
        margins = [0, 0, 0]
        for axis in boxes:
            margins[axis] = len(self.kernels[axis]) - 1 - self._pad(axis) if adjoint else self._pad(axis)
        if any(margins):
            volume = nn.functional.pad(volume, [margin for margin in reversed(margins) for _ in range(2)])
        for axis in axes:
            if axis in boxes:
                volume = box_sum(volume, 1 + axis, len(self.kernels[axis]))
            else:
                volume = self._correlate(volume, axis, adjoint)
        return volume

    def _correlate(self, volume: torch.Tensor, axis: int, adjoint: bool) -> torch.Tensor:
        """Tap by tap: a product with a matrix may run in TF32 on a GPU, too coarse for differences of means."""
        kernel, size, shape = self.kernels[axis], volume.shape[1 + axis], list(volume.shape)
        shape[1 + axis] += (len(kernel) - 1) * (1 if adjoint else -1)
        total = volume.new_zeros(shape)
        for k, weight in enumerate(kernel):
            if adjoint:
                total.narrow(1 + axis, k, size).add_(volume, alpha=weight)
            else:
                total.add_(volume.narrow(1 + axis, k, shape[1 + axis]), alpha=weight)
        return total


def box_sum(volume: torch.Tensor, axis: int, width: int) -> torch.Tensor:
    """Sum of each run of `width` voxels along an axis, which becomes `width` − 1 voxels shorter; `width` is odd.

    Runs of 2, 4, 8, … voxels are built from each other, so a width of 9 takes four additions per voxel. Unlike the
    difference of two cumulative sums, such a sum loses no digits and is exactly 0 for a run of zeros.
    """
    size = volume.shape[axis] - width + 1
    total, covered = volume.narrow(axis, 0, size), 1
    runs, length = volume, 1
    while 2 * length <= width:
        count = runs.shape[axis] - length
        runs = runs.narrow(axis, 0, count) + runs.narrow(axis, length, count)
        length *= 2
        if width & length:
            part = runs.narrow(axis, covered, size)
            total = total + part if covered == 1 else total.add_(part)
            covered += length
    return total
