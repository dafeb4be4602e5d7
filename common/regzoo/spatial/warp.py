"""Sample, warp and compose on voxel grids.

Convention: a DDF has shape (B, 3, X, Y, Z) and is in voxels of its own (fixed) grid. Its components follow the array
axes, and it points from a fixed voxel to its moving correspondent: ``warped(x) = moving(x + ddf(x))``. Voxel centres
have integer coordinates (``align_corners=True``). Interpolation is linear unless stated otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from regzoo.errors import RegZooError
from regzoo.filters import gaussian_filter
from regzoo.spatial.grid import Grid
from scipy.ndimage import map_coordinates

Mode = Literal["bilinear", "nearest"]
Padding = Literal["zeros", "border"]

#: Voxels of a slab, see `slabs`.
SLAB = 1 << 20
#: Allowed rounding error of a point half-way between two voxels, voxels.
TIE = 1e-6


def grid_sample(image: torch.Tensor, grid: torch.Tensor, mode: str, padding: str) -> torch.Tensor:
    """`F.grid_sample`, but on the CPU it uses all threads even for a batch of one."""
    if not torch.jit.is_scripting():
        # An exported graph runs on any machine, so it must not depend on this machine's threads or this batch's size.
        exporting = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if not exporting and len(grid) == 1 and image.device.type == "cpu":
            threads = torch.get_num_threads()
            if 1 < threads <= grid.shape[1] // 2:
                return _grid_sample_by_threads(image, grid, mode, padding, threads)
    return F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=True)


def _grid_sample_by_threads(
    image: torch.Tensor, grid: torch.Tensor, mode: str, padding: str, threads: int
) -> torch.Tensor:
    """PyTorch's 3-D CPU kernel runs one thread per batch item, so slabs of the output are passed as batch items."""
    rows = grid.shape[1]
    if rows % threads:
        grid = torch.cat([grid, grid[:, -1:].expand(-1, -rows % threads, -1, -1, -1)], dim=1)
    slabbed = grid.reshape(threads, -1, *grid.shape[2:])
    images = image.expand(threads, -1, -1, -1, -1)
    sampled = F.grid_sample(images, slabbed, mode=mode, padding_mode=padding, align_corners=True)
    return sampled.transpose(0, 1).flatten(1, 2)[None, :, :rows]


def sample(
    image: torch.Tensor, coordinates: torch.Tensor, mode: Mode = "bilinear", padding: Padding = "zeros"
) -> torch.Tensor:
    """Values of an image at given voxel coordinates.

    Args:
        image: (B, C, X', Y', Z').
        coordinates: (B, 3, X, Y, Z), voxels of `image`.
        mode: ``bilinear`` (trilinear) or ``nearest``.
        padding: outside the image, ``zeros`` or the ``border`` value of the image.

    Returns:
        (B, C, X, Y, Z) in the dtype of `image`.
    """
    parts = [coordinates[:, axis] * (2 / max(image.shape[2 + axis] - 1, 1)) - 1 for axis in (2, 1, 0)]
    return grid_sample(image, torch.stack(parts, dim=-1).to(image.dtype), mode, padding)


def warp(image: torch.Tensor, ddf: torch.Tensor, mode: str = "bilinear", padding: str = "zeros") -> torch.Tensor:
    """Warp a moving image that lies on the grid of the DDF: ``warped(x) = image(x + ddf(x))``.

    Runs in float32 under autocast: half precision cannot tell neighbouring voxels of a large image apart. TorchScript
    can compile it.

    Args:
        image: (B, C, X, Y, Z) on the same grid as `ddf`.
        ddf: (B, 3, X, Y, Z), voxels.
        mode: ``bilinear`` or ``nearest``.
        padding: ``zeros`` or ``border``.

    Returns:
        (B, C, X, Y, Z) float32.
    """
    parts: list[torch.Tensor] = []
    for axis in range(3):
        n = ddf.shape[2 + axis]
        along = [1, 1, 1, 1]
        along[1 + axis] = n
        # One affine map per axis from displacement to grid_sample's [-1, 1], last array axis first.
        scale = 2.0 / float(max(n - 1, 1))
        voxels = torch.arange(n, device=ddf.device, dtype=torch.float32).view(along)
        parts.insert(0, torch.add(voxels * scale - 1.0, ddf[:, axis].float(), alpha=scale))
    return grid_sample(image.float(), torch.stack(parts, dim=-1), mode, padding)


def compose(first: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
    """The DDF that applies `first`, then `then`: ``first(x) + then(x + first(x))``.

    Args:
        first: (B, 3, X, Y, Z), voxels.
        then: (B, 3, X, Y, Z), voxels of the same grid; beyond the border, the border values apply.

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


def slabs(shape: Sequence[int], voxels: int | None = None) -> Iterator[slice]:
    """Slices of about a million voxels along the first axis of a grid (X, Y, Z), to bound the working memory."""
    step = max((voxels or SLAB) // max(math.prod(shape[1:]), 1), 1)
    return (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def slab_points(
    matrix: np.ndarray | torch.Tensor,
    shape: Sequence[int],
    rows: slice = slice(None),  # noqa: B008
    device: torch.device | None = None,
) -> torch.Tensor:
    """A 4×4 matrix applied to the voxels of a grid (X, Y, Z) or a slab of it: (1, 3, rows, Y, Z) float64."""
    matrix = torch.as_tensor(matrix, dtype=torch.float64, device=device)
    x, y, z = (torch.arange(n, dtype=torch.float64, device=device) for n in shape)
    column = [matrix[:3, index].view(3, 1, 1, 1) for index in range(4)]
    plane = column[1] * y.view(1, 1, -1, 1) + column[2] * z
    return ((column[0] * x[rows].view(1, -1, 1, 1) + column[3]) + plane)[None]


def within(coordinates: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Whether points (1, 3, …), voxels, belong to a voxel of a grid: [-0.5, n - 0.5) along each axis, as in ITK."""
    sizes = torch.tensor(shape, device=coordinates.device).view(3, 1, 1, 1)
    return ((coordinates[0] >= -0.5 - TIE) & (coordinates[0] < sizes - 0.5 - TIE)).all(0)


def sample_file(
    image: torch.Tensor,
    coordinates: torch.Tensor,
    mode: Mode = "bilinear",
    padding: Padding = "zeros",
    background: float = 0.0,
) -> torch.Tensor:
    """Values of an image at given points, as ITK's interpolators give them.

    A point at most half a voxel beyond the outermost voxel centres belongs to a voxel and gets the border value.

    Args:
        image: (C, X', Y', Z') float32.
        coordinates: (1, 3, X, Y, Z) float64, voxels of `image`.
        mode: ``bilinear`` (trilinear) or ``nearest``.
        padding: beyond that, ``zeros`` gives `background` and ``border`` the border value.
        background: value for ``zeros``.

    Returns:
        (C, X, Y, Z) float32.

    Raises:
        RegZooError: an unknown mode or padding.
    """
    for name, value, kind in (("mode", mode, Mode), ("padding", padding, Padding)):
        if value not in get_args(kind):
            raise RegZooError(f"{name}: {value!r:.60} is not known; use one of {', '.join(get_args(kind))}")
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
) -> torch.Tensor:
    """Resample an image from one grid onto another through world coordinates.

    Args:
        image: (C, X', Y', Z') on `source`.
        source: grid of `image`.
        target: grid to sample on.
        mode: ``bilinear``, ``nearest``, or ``bspline`` (cubic, by SciPy on the CPU).
        padding: more than half a voxel beyond the outermost centres of `source`, see `sample_file`.
        anti_alias: blur beforehand along axes where the target is coarser, σ = (ratio - 1) / 2 voxels.

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
        points = slab_points(matrix, target.shape)[0].numpy()
        edge = {"zeros": "grid-constant", "border": "nearest"}[padding]
        channels = [map_coordinates(channel.cpu().numpy(), points, order=3, mode=edge) for channel in image]
        return torch.from_numpy(np.stack(channels)).to(image.device)
    values = image.new_empty(len(image), *target.shape)
    for rows in slabs(target.shape):
        coordinates = slab_points(matrix, target.shape, rows, image.device)
        values[:, rows] = sample_file(image, coordinates, mode, padding)
    return values


def apply_matrix(matrix: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Apply a 4×4 matrix to points (B, 3, X, Y, Z)."""
    matrix = matrix.to(coordinates)
    moved = torch.einsum("ij,bjxyz->bixyz", matrix[:3, :3], coordinates)
    return moved + matrix[:3, 3].view(1, 3, 1, 1, 1)
