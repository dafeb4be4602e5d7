"""Sampling, warping and composing on voxel grids.

Convention: a DDF has shape (B, 3, X, Y, Z), is in voxels of its own (fixed) grid, its components follow the array axes,
and points from a fixed voxel to its moving correspondent: ``warped(x) = moving(x + ddf(x))``. Voxel centres carry the
integer coordinates (``align_corners=True``), interpolation is linear unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from regzoo.filters import gaussian_filter
from regzoo.spatial.grid import Grid
from scipy.ndimage import map_coordinates

Mode = Literal["bilinear", "nearest"]
Padding = Literal["zeros", "border"]

#: Voxels of a slab, see `slabs`.
SLAB = 1 << 20
#: What rounding errors may take from a point that is meant to lie between two voxels, voxels.
TIE = 1e-6


def _axes(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """The voxel coordinate along each axis, shaped to broadcast over (X, Y, Z)."""
    # A recording would have the making of them in it or not, depending on what ran before, and what it makes is no
    # tensor for those who come after.
    return (_make_axes if _recorded() else _cached_axes)(shape, device, dtype)


def _recorded() -> bool:
    """Whether the operations are being written down, by `torch.jit.trace` or `torch.export`, for any machine to run."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


@lru_cache(maxsize=8)
def _cached_axes(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return _make_axes(shape, device, dtype)


def _make_axes(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    # Made outside inference_mode, because the cache hands them to training later.
    with torch.inference_mode(False):
        return tuple(
            torch.arange(n, device=device, dtype=dtype).view([-1 if i == axis else 1 for i in range(len(shape))])
            for axis, n in enumerate(shape)
        )


def voxel_coordinates(
    shape: tuple[int, ...], device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The coordinates of every voxel of a grid, shape (3, X, Y, Z)."""
    axes = _axes(tuple(shape), torch.device(device or "cpu"), dtype)
    return torch.stack([axis.expand(*shape) for axis in axes])


def _grid_sample(image: torch.Tensor, grid: torch.Tensor, mode: str, padding: str) -> torch.Tensor:
    """`F.grid_sample`, on the CPU with every thread at work even for a batch of one.

    PyTorch's 3-D CPU kernel runs one thread per batch item. Cutting the output into slabs along the first axis and
    passing them as batch items (the image is expanded, not copied) gives each thread its share.
    """
    batch, slabs = grid.shape[0], torch.get_num_threads()
    # A recording is for any machine, not for as many threads as this one has.
    whole = _recorded() or batch > 1 or slabs == 1 or image.device.type != "cpu"
    if whole or grid.shape[1] < 2 * slabs or image.requires_grad:
        return F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=True)
    rows = grid.shape[1]
    extra = -rows % slabs
    if extra:
        grid = torch.cat([grid, grid[:, -1:].expand(-1, extra, -1, -1, -1)], dim=1)
    slabbed = grid.reshape(slabs, -1, *grid.shape[2:])
    sampled = F.grid_sample(
        image.expand(slabs, -1, -1, -1, -1), slabbed, mode=mode, padding_mode=padding, align_corners=True
    )
    return sampled.transpose(0, 1).flatten(1, 2)[None, :, :rows]


def sample(
    image: torch.Tensor, coordinates: torch.Tensor, mode: Mode = "bilinear", padding: Padding = "zeros"
) -> torch.Tensor:
    """Values of an image at given voxel coordinates.

    Args:
        image: (B, C, X', Y', Z').
        coordinates: (B, 3, X, Y, Z), voxels of `image`.
        mode: ``bilinear`` (trilinear) or ``nearest``.
        padding: what lies outside the image: ``zeros`` or its ``border`` value.

    Returns:
        (B, C, X, Y, Z) in the dtype of `image`.
    """
    parts = [coordinates[:, axis] * (2 / max(image.shape[2 + axis] - 1, 1)) - 1 for axis in (2, 1, 0)]
    return _grid_sample(image, torch.stack(parts, dim=-1).to(image.dtype), mode, padding)


def warp(image: torch.Tensor, ddf: torch.Tensor, mode: Mode = "bilinear", padding: Padding = "zeros") -> torch.Tensor:
    """Warp a moving image that lies on the grid of the DDF: ``warped(x) = image(x + ddf(x))``.

    Runs in float32 under autocast: half precision cannot tell neighbouring voxels of a large image apart.

    Args:
        image: (B, C, X, Y, Z) on the same grid as `ddf`.
        ddf: (B, 3, X, Y, Z), voxels.
        mode: ``bilinear`` or ``nearest``.
        padding: ``zeros`` or ``border``.

    Returns:
        (B, C, X, Y, Z).
    """
    shape = tuple(ddf.shape[2:])
    with torch.autocast(ddf.device.type, enabled=False):
        ddf = ddf.float()
        axes = _axes(shape, ddf.device, ddf.dtype)
        # One affine map per axis from displacement to grid_sample's [-1, 1], last array axis first.
        parts = []
        for axis in (2, 1, 0):
            scale = 2 / max(shape[axis] - 1, 1)
            parts.append(torch.add(axes[axis] * scale - 1, ddf[:, axis], alpha=scale))
        return _grid_sample(image.float(), torch.stack(parts, dim=-1), mode, padding)


def compose(first: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
    """The DDF of going through `first` and then through `then`: ``first(x) + then(x + first(x))``.

    Args:
        first: (B, 3, X, Y, Z), voxels.
        then: (B, 3, X, Y, Z), voxels of the same grid; beyond its border the border value holds.

    Returns:
        (B, 3, X, Y, Z). ``warp(image, compose(first, then))`` equals ``warp(warp(image, then), first)`` up to
        interpolation.
    """
    return first + warp(then, first, padding="border")


def jacobian_determinant(ddf: torch.Tensor) -> torch.Tensor:
    """Determinant of the Jacobian of ``x + ddf(x)``; central differences, one-sided at the border.

    The value is the local change of volume and does not depend on the voxel size, because ddf and x share a unit.

    Args:
        ddf: (B, 3, X, Y, Z), voxels.

    Returns:
        (B, 1, X, Y, Z); values ≤ 0 are folds.
    """
    columns = torch.gradient(ddf.float(), dim=(2, 3, 4))
    (a, b, c), (d, e, f), (g, h, i) = (
        [columns[axis][:, row] + float(axis == row) for axis in range(3)] for row in range(3)
    )
    return (a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))[:, None]


def slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Ranges along the first axis of a grid (X, Y, Z), each of about a million voxels: what is computed at a time."""
    step = max(SLAB // max(math.prod(shape[1:]), 1), 1)
    return (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def slab_points(
    matrix: np.ndarray | torch.Tensor, shape: Sequence[int], rows: slice, device: torch.device | None = None
) -> torch.Tensor:
    """Where a 4×4 matrix takes the voxels of a slab of a grid (X, Y, Z), (1, 3, rows, Y, Z) float64."""
    matrix = torch.as_tensor(matrix, dtype=torch.float64, device=device)
    x = torch.arange(rows.start, rows.stop, dtype=torch.float64, device=device).view(1, -1, 1, 1)
    y, z = (torch.arange(n, dtype=torch.float64, device=device) for n in shape[1:])
    column = [matrix[:3, index].view(3, 1, 1, 1) for index in range(4)]
    return ((column[0] * x + column[3]) + (column[1] * y.view(1, 1, -1, 1) + column[2] * z))[None]


def within(coordinates: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Whether points (1, 3, …), voxels, belong to a voxel of a grid: [-0.5, n - 0.5) along each axis, as in ITK."""
    return torch.stack(
        [(c >= -0.5 - TIE) & (c < n - 0.5 - TIE) for c, n in zip(coordinates[0], shape, strict=True)]
    ).all(0)


def sample_file(
    image: torch.Tensor,
    coordinates: torch.Tensor,
    mode: Mode = "bilinear",
    padding: Padding = "zeros",
    background: float = 0.0,
) -> torch.Tensor:
    """Values of an image at given points, as ITK's interpolators give them.

    A point that is at most half a voxel beyond the outermost centres still belongs to a voxel: the border value holds.

    Args:
        image: (C, X', Y', Z') float32.
        coordinates: (1, 3, X, Y, Z) float64, voxels of `image`.
        mode: ``bilinear`` (trilinear) or ``nearest``.
        padding: what lies further out: ``zeros``, which is the background, or the ``border`` value.
        background: the value there.

    Returns:
        (C, X, Y, Z) float32.
    """
    if mode == "nearest":  # points half-way between two centres go to the higher one
        nearest = (coordinates + (0.5 + TIE)).floor()
        values = sample(image[None], nearest, "nearest", "border")[0]
    else:
        values = sample(image[None], coordinates, padding="border")[0]
    if padding == "zeros":
        values.masked_fill_(~within(coordinates, image.shape[1:]), background)
    return values


def resample(
    image: torch.Tensor,
    source: Grid,
    target: Grid,
    mode: Mode | Literal["bspline"] = "bilinear",
    padding: Padding = "zeros",
    anti_alias: bool = False,
    background: float = 0.0,
) -> torch.Tensor:
    """Resample an image from one grid onto another through the world.

    Args:
        image: (C, X', Y', Z') on `source`.
        source: grid of `image`.
        target: grid to sample on.
        mode: ``bilinear``, ``nearest``, or ``bspline`` (cubic, by SciPy on the CPU).
        padding: what lies more than half a voxel beyond the outermost centres of `source`, see `sample_file`.
        anti_alias: blur beforehand along axes where the target is coarser, σ = (ratio - 1) / 2 voxels.
        background: the value beyond `source`, unless `padding` is ``border`` or `mode` is ``bspline``.

    Returns:
        (C, X, Y, Z) float32 on `target`.
    """
    matrix = torch.linalg.solve(torch.as_tensor(source.affine), torch.as_tensor(target.affine))
    image = image.float()
    if anti_alias:
        # Source voxels passed per step along the target axis that follows each source axis most closely.
        steps = matrix[:3, :3].abs().amax(dim=1)
        image = gaussian_filter(image[None], [max(float(step) - 1, 0) / 2 for step in steps], border="renormalise")[0]
    if mode == "bspline":
        coordinates = apply_matrix(matrix, voxel_coordinates(target.shape)[None])
        points, edge = coordinates[0].numpy(), {"zeros": "grid-constant", "border": "nearest"}[padding]
        channels = [map_coordinates(channel.cpu().numpy(), points, order=3, mode=edge) for channel in image]
        return torch.from_numpy(np.stack(channels)).to(image.device)
    values = image.new_empty(len(image), *target.shape)
    for rows in slabs(target.shape):
        there = slab_points(matrix, target.shape, rows, image.device)
        values[:, rows] = sample_file(image, there, mode, padding, background)
    return values


def apply_matrix(matrix: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Apply a 4×4 matrix to points (B, 3, X, Y, Z)."""
    matrix = matrix.to(coordinates)
    moved = torch.einsum("ij,bjxyz->bixyz", matrix[:3, :3], coordinates)
    return moved + matrix[:3, 3].view(1, 3, 1, 1, 1)
