"""Labels held small: what a registration keeps of them on the grids of the files, where voxels are many.

Held labels are either a map (1, X, Y, Z) of the labels' numbers, 1, 2, … and 0 for the background, of an integer type,
or masks (C, X, Y, Z), bool. The functions here also take masks of floats, as training and evaluation have them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from regzoo.spatial.grid import Grid
from regzoo.spatial.volumes import as_tensor, centroids
from regzoo.spatial.warp import slabs
from scipy.ndimage import find_objects

#: The part of a volume that a label lies in.
Box = tuple[slice, slice, slice]


def is_map(labels: torch.Tensor) -> bool:
    """Whether held labels are a map of numbers."""
    return not labels.is_floating_point() and labels.dtype != torch.bool


def hold(volume: MetaTensor, values: Sequence[int] | None) -> MetaTensor:
    """Labels as they are held.

    Args:
        volume: an integer map (1, X, Y, Z), or masks (C, X, Y, Z) of 0 and 1; float32.
        values: of a map, the value of each label; other values become background. None for masks.
    """
    stored = volume.as_tensor()
    if values is None:
        return MetaTensor(stored > 0, affine=volume.affine)
    numbers = torch.zeros(stored.shape, dtype=torch.uint8 if len(values) < 256 else torch.int16)
    for rows in slabs(stored.shape[1:]):
        for number, value in enumerate(values, 1):
            numbers[:, rows].masked_fill_(stored[:, rows] == value, number)
    return MetaTensor(numbers, affine=volume.affine)


def one_mask(labels: torch.Tensor, index: int, box: Box | None = None) -> torch.Tensor:
    """One of the labels, or the part of it in a box: (X, Y, Z) bool, or as they are where they are floats."""
    part = as_tensor(labels) if box is None else as_tensor(labels)[(slice(None), *box)]
    return part[0] == index + 1 if is_map(labels) else part[index]


def boxes(labels: torch.Tensor, count: int) -> list[Box | None]:
    """The smallest box that holds each of the `count` labels, None for those that are empty."""
    if is_map(labels):
        return list(find_objects(as_tensor(labels)[0].cpu().numpy(), max_label=count))
    found = [find_objects((mask > 0).cpu().numpy().view(np.uint8), max_label=1) for mask in as_tensor(labels)]
    return [box for (box,) in found]


def part_of(grid: Grid, box: Box) -> Grid:
    """The grid of a box of a grid."""
    affine = grid.affine.copy()
    affine[:3, 3] = grid.to_world([side.start for side in box])
    x, y, z = (side.stop - side.start for side in box)
    return Grid((x, y, z), affine)


def sizes_and_centres(labels: MetaTensor, found: Sequence[Box | None]) -> tuple[list[float], np.ndarray]:
    """Number of voxels (soft: their sum) and centroid (C, 3), RAS mm, NaN where empty, of labels in their `boxes`."""
    grid, sizes, centres = Grid.of(labels), list[float](), np.full((len(found), 3), np.nan)
    for index, box in enumerate(found):
        if box is None:
            sizes.append(0.0)
            continue
        mask = one_mask(labels, index, box)
        sizes.append(float(mask.sum(dtype=torch.float64)))
        centres[index] = centroids(mask[None], torch.as_tensor(part_of(grid, box).affine))[0].cpu().numpy()
    return sizes, centres


def as_masks(labels: MetaTensor, count: int) -> MetaTensor:
    """Held labels as masks (C, X, Y, Z) uint8, which takes a byte for each voxel and label."""
    masks = torch.stack([one_mask(labels, index).to(torch.uint8) for index in range(count)])
    return MetaTensor(masks, affine=labels.affine)
