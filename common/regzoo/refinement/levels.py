"""The levels of a refinement: both sides of a pair on grids that get finer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from nibabel.affines import from_matvec
from regzoo.errors import RegZooError
from regzoo.refinement.lattice import Sampler, shrunk
from regzoo.spatial import Grid, resample
from regzoo.spatial.distance import signed_distance
from regzoo.spatial.held import is_map, one_mask, part_of
from regzoo.spatial.warp import Padding, slab_points, slabs, within

#: How far beyond the fixed field of view the moving image is kept, as a share of it.
REACH = 0.25
#: The smallest size of a level, along an axis along which the finest level has as many voxels.
SMALLEST = 8


@dataclasses.dataclass
class Volumes:
    """What one side of a pair gives to a refinement, on one grid.

    Attributes:
        grid: its grid; that of the moving side is where the pre-alignment puts it.
        image: (1, X, Y, Z), intensities of about [0, 1]; None if only labels count.
        labels: held labels (see `regzoo.spatial.held`), the same labels in the same order on both sides; None without.
        mask: (1, X, Y, Z), 1 where a voxel counts; None if all do.
    """

    grid: Grid
    image: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        return next(part.device for part in (self.image, self.labels) if part is not None)

    def parts_on(self, grid: Grid, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The image, the labels and the signed distance to the first label, mm, on a grid: (1, C, X, Y, Z) each.

        Raises:
            RegZooError: the side lacks one of them.
        """
        parts = {}
        if "image" in names and self.image is not None:
            parts["image"] = _placed(self.image, self.grid, grid)
        if self.labels is not None and ("labels" in names or "distance" in names):
            count = int(self.labels.max()) if is_map(self.labels) else len(self.labels)
            masks = (one_mask(self.labels, index)[None].float() for index in range(count))
            labels = torch.cat([_placed(mask, self.grid, grid, padding="zeros") for mask in masks], dim=1)
            if "labels" in names:
                parts["labels"] = labels
            if "distance" in names:
                first = labels[0, 0].cpu()
                distance = signed_distance(first >= min(0.5, float(first.max()) / 2), grid.spacing)
                parts["distance"] = torch.from_numpy(distance)[None, None].to(labels)
        for name in names:
            if name not in parts:
                raise RegZooError(f"the pair has no {name} to compare")
        return parts


@dataclasses.dataclass(frozen=True)
class Level:
    """Both sides of a pair at one level.

    Attributes:
        grid: of the fixed side.
        fixed, moving: (1, C, X, Y, Z), the parts of `Volumes.parts_on` one after the other. The moving side has a grid
            of its own, which `sampler` knows.
        fixed_mask, moving_mask: (1, 1, X, Y, Z), or None where all voxels count.
        sampler: samples the moving side at displacements of the fixed grid.
        slices: the channels of each part.
    """

    grid: Grid
    fixed: torch.Tensor
    moving: torch.Tensor
    fixed_mask: torch.Tensor | None
    moving_mask: torch.Tensor | None
    sampler: Sampler
    slices: dict[str, slice]

    @property
    def size(self) -> tuple[int, int, int]:
        return self.grid.shape

    def warped(self, displacement: torch.Tensor) -> Level:
        """The level with the moving side warped onto the fixed grid by a displacement (1, X, Y, Z, 3)."""
        with torch.no_grad():
            moving = self.sampler(self.moving, displacement)
            mask = None if self.moving_mask is None else self.sampler(self.moving_mask, displacement)
        sampler = Sampler(self.size, self.size, device=moving.device)
        return dataclasses.replace(self, moving=moving, moving_mask=mask, sampler=sampler)

    def swapped(self) -> Level:
        """The level with the sides exchanged; of the moving side, what lies on the fixed grid."""
        here = self.warped(self.fixed.new_zeros(1, *self.size, 3))
        mask = None if here.moving_mask is None else (here.moving_mask > 0.5).float()
        return dataclasses.replace(
            here, fixed=here.moving, moving=self.fixed, fixed_mask=mask, moving_mask=self.fixed_mask
        )


def finest_grid(fixed: Volumes, spacing: float, max_voxels: int) -> Grid:
    """The grid of the finest level: the fixed image's axes and field of view, cut to what is not background.

    Args:
        fixed: the fixed side.
        spacing: voxel size, mm; axes along which the image is coarser keep its voxel size. Along a thin axis the voxels
            are small enough for the grid to end within the image, because nothing is known beyond.
        max_voxels: limit, kept by a coarser spacing.
    """
    native = fixed.grid.straightened()
    low, high = _content(fixed)
    extent = (high - low) * native.spacing
    while True:
        steps = np.maximum(spacing, native.spacing)
        size = np.maximum(np.ceil(extent / steps - 1e-6).astype(int) + 1, 2)
        steps = np.where(size <= SMALLEST, np.minimum(steps, extent / (size - 1)), steps)
        if size.prod() <= max_voxels or spacing > extent.max():
            break
        spacing *= 1.05 * max((size.prod() / max_voxels) ** (1 / 3), 1.0)
    axes = native.affine[:3, :3] * (steps / native.spacing)
    return Grid(size, from_matvec(axes, native.to_world((low + high) / 2) - axes @ ((size - 1) / 2)))


def voxel_size(finest: Grid) -> float:
    """The smallest voxel size of the finest level, mm, but not that along a thin axis, see `finest_grid`."""
    sizes = finest.spacing[np.asarray(finest.shape) > SMALLEST]
    return float((sizes if len(sizes) else finest.spacing).min())


def _content(fixed: Volumes) -> tuple[np.ndarray, np.ndarray]:
    """First and last voxel, along each axis, of the box that holds all that varies in the fixed image."""
    shape = np.asarray(fixed.grid.shape)
    if fixed.image is None:
        return np.zeros(3), shape - 1.0
    varies = torch.zeros(tuple(fixed.grid.shape), dtype=torch.bool, device=fixed.image.device)
    for axis in range(3):
        step = fixed.image[0].diff(dim=axis).abs() > 1e-3
        varies.narrow(axis, 0, int(shape[axis]) - 1).logical_or_(step)
    low, high = np.zeros(3), shape - 1.0
    for axis in range(3):
        others = [k for k in range(3) if k != axis]
        there = varies.any(dim=others[1]).any(dim=others[0]).nonzero()
        if len(there):
            margin = 4 / fixed.grid.spacing[axis] + 2
            low[axis] = max(float(there[0]) - margin, 0)
            high[axis] = min(float(there[-1]) + 1 + margin, shape[axis] - 1)
    return low, high


def make_levels(
    fixed: Volumes, moving: Volumes, names: Sequence[str], spacing: float, count: int, max_voxels: int
) -> list[Level]:
    """The levels of a pair, coarse to fine; each halves the voxel size of the one before.

    Args:
        fixed, moving: the pair.
        names: the parts to compare, some of image, labels and distance.
        spacing: voxel size of the finest level, mm.
        count: number of levels.
        max_voxels: limit for the finest level.

    Raises:
        RegZooError: a side lacks one of the parts.
    """
    finest = finest_grid(fixed, spacing, max_voxels)
    low, high = _reach(finest, moving.grid)
    x, y, z = (slice(-before, n + after) for before, n, after in zip(low, finest.shape, high, strict=True))
    around = part_of(finest, (x, y, z))
    parts = fixed.parts_on(finest, names)
    fixed_channels = torch.cat([parts[name] for name in names], dim=1)
    moving_parts = moving.parts_on(around, names)
    moving_channels = torch.cat([moving_parts[name] for name in names], dim=1)
    fixed_mask = None if fixed.mask is None else _placed(fixed.mask, fixed.grid, finest)
    moving_mask = _moving_mask(moving, around)
    counts = [parts[name].shape[1] for name in names]
    slices = {name: slice(sum(counts[:k]), sum(counts[: k + 1])) for k, name in enumerate(names)}
    levels = []
    for index in range(count):
        wanted = np.maximum(voxel_size(finest) * 2 ** (count - 1 - index), finest.spacing)
        size, outer = _size(finest, wanted), _size(around, wanted)
        step = (np.asarray(finest.shape) - 1) / np.maximum(np.asarray(size) - 1, 1)
        outer_step = (np.asarray(around.shape) - 1) / np.maximum(np.asarray(outer) - 1, 1)
        levels.append(
            Level(
                Grid(size, finest.affine @ np.diag([*step, 1])),
                shrunk(fixed_channels, size),
                shrunk(moving_channels, outer),
                None if fixed_mask is None else (shrunk(fixed_mask, size) > 0.5).float(),
                None if moving_mask is None else shrunk(moving_mask, outer),
                Sampler(size, outer, (step / outer_step).tolist(), (low / outer_step).tolist(), fixed.device),
                slices,
            )
        )
    return levels


def _size(grid: Grid, spacing: np.ndarray) -> list[int]:
    """The number of voxels of about a given size from the first to the last voxel of a grid."""
    axes = zip(grid.shape, grid.spacing, spacing, strict=True)
    return [max(round((n - 1) * old / new) + 1, min(SMALLEST, n)) for n, old, new in axes]


def _reach(grid: Grid, moving: Grid) -> tuple[np.ndarray, np.ndarray]:
    """How many voxels the moving field of view reaches beyond a grid, before and after it, at most `REACH` of it."""
    corners = grid.to_voxels(moving.corners.reshape(-1, 3))
    shape = np.asarray(grid.shape)
    limit = np.ceil(REACH * shape)
    low = np.clip(np.ceil(-corners.min(axis=0)), 0, limit)
    high = np.clip(np.ceil(corners.max(axis=0) - (shape - 1)), 0, limit)
    return low.astype(int), high.astype(int)


def _placed(volume: torch.Tensor, source: Grid, target: Grid, padding: Padding = "border") -> torch.Tensor:
    """(C, X, Y, Z) on another grid, as (1, C, X', Y', Z')."""
    return resample(volume, source, target, padding=padding, anti_alias=True)[None]


def _moving_mask(moving: Volumes, around: Grid) -> torch.Tensor | None:
    """Where the moving image counts: inside its field of view and its mask; None if that is everywhere."""
    to_voxels = np.linalg.inv(moving.grid.affine) @ around.affine
    points = (slab_points(to_voxels, around.shape, rows, moving.device) for rows in slabs(around.shape))
    inside = torch.cat([within(part, moving.grid.shape) for part in points]).float()[None, None]
    if moving.mask is not None:
        inside = inside * _placed(moving.mask, moving.grid, around)
    return None if bool((inside > 0.99).all()) else inside
