"""Carry labels through a field onto voxels that may be larger than the label's own.

Sampling thick slices at their centres misses everything between the centres. Coarser voxels are therefore split into
parts no larger than the moving voxels, and the share of a voxel that a label fills decides. A small structure may fill
less than half of every voxel. It then gets the voxels with the largest shares, as many as make up its volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from regzoo.spatial.field import DisplacementField
from regzoo.spatial.grid import Grid
from regzoo.spatial.held import is_map, one_mask
from regzoo.spatial.volumes import as_tensor, with_affine
from regzoo.spatial.warp import apply_matrix, sample, sample_file, slab_points, within

if TYPE_CHECKING:
    from monai.data import MetaTensor

#: A target voxel longer than this many moving voxels is split into parts.
COARSER = 1.05
#: If the volume of the voxels that are more than half full has a larger relative error, other voxels are chosen.
TOLERANCE = 0.05
#: Number of values (voxels times labels) computed at a time.
SLAB = 2**22
#: A label keeps at least one voxel if at least this share of it arrives in the target.
ARRIVED = 0.1

#: The non-zero shares of one label: indices into the flattened target, and the shares there.
Shares = tuple[torch.Tensor, torch.Tensor]


def subdivisions(moving: Grid, target: Grid) -> tuple[int, int, int]:
    """The number of parts along each axis of a target voxel; (1, 1, 1) if it is not coarser than a moving voxel."""
    steps = np.abs(np.linalg.solve(moving.affine[:3, :3], target.affine[:3, :3])).max(axis=0)
    x, y, z = (int(np.ceil(step - (COARSER - 1))) if step > COARSER else 1 for step in steps)
    return x, y, z


def filled_shares(
    labels: torch.Tensor, moving: Grid, field: DisplacementField, start: int, stop: int, count: int | None = None
) -> torch.Tensor:
    """For each voxel in a slab of the field's grid, the share that each label fills.

    Args:
        labels: masks (C, X', Y', Z') on `moving`, values in [0, 1], or a map of numbers (1, X', Y', Z'), see
            `regzoo.spatial.held`; on the device of the field.
        moving: grid of the labels.
        field: the field from the target to the moving image.
        start, stop: the slab along the first axis of the field's grid.
        count: number of labels of a map.

    Returns:
        (C, stop - start, Y, Z) float32 in [0, 1]. Their sum times the volume of a voxel is the carried volume.
    """
    parts, device = subdivisions(moving, field.grid), field.displacement.device
    to_moving = torch.as_tensor(np.linalg.inv(moving.affine), device=device)
    to_coordinates = to_moving @ torch.as_tensor(field.grid.affine, device=device)
    centres = slab_points(np.eye(4), field.grid.shape, slice(start, stop), device)
    total = torch.zeros(count or len(labels), *centres.shape[2:], device=device)
    for step in product(*[(np.arange(n) + 0.5) / n - 0.5 for n in parts]):
        points = centres + torch.tensor(step, dtype=centres.dtype, device=device).view(1, 3, 1, 1, 1)
        shift = sample(field.displacement[None], points, padding="border").double()
        coordinates = apply_matrix(to_coordinates, points) + torch.einsum("ij,bjxyz->bixyz", to_moving[:3, :3], shift)
        if not is_map(labels):
            total += sample_file(labels.float(), coordinates)
            continue
        voxels = torch.arange(total[0].numel(), device=device)
        for number, weight in zip(*corners(labels[0], coordinates), strict=True):
            index = (number.long() - 1) * len(voxels) + voxels
            total.view(-1).index_add_(0, index[number > 0], weight[number > 0])
    return total / float(np.prod(parts))


def corners(numbers: torch.Tensor, coordinates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers, and their weights, that linear interpolation of a map mixes at given points.

    Args:
        numbers: (X', Y', Z'), of an integer type.
        coordinates: (1, 3, X, Y, Z) float64, voxels of the map.

    Returns:
        The numbers at the eight corners around each point, 0 for points outside, and their weights, (8, X·Y·Z) each.
    """
    points = coordinates[0].flatten(1)
    low = points.floor()
    share = (points - low).float()
    first = low.long()
    ends = [[(first[axis] + end).clamp(0, n - 1) for end in (0, 1)] for axis, n in enumerate(numbers.shape)]
    shares = [(1 - part, part) for part in share]
    found = [numbers[ends[0][x], ends[1][y], ends[2][z]] for x, y, z in product((0, 1), repeat=3)]
    weights = [shares[0][x] * shares[1][y] * shares[2][z] for x, y, z in product((0, 1), repeat=3)]
    return torch.stack(found) * within(coordinates, numbers.shape).flatten(), torch.stack(weights)


def likeliest(numbers: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """The label (X, Y, Z) with the largest weight at each point, see `corners`.

    The background wins only if it has more weight than any label. If two labels have equal weight, the lower one wins.
    """
    found, weights = corners(numbers, coordinates)
    winner = found[0].clone()
    mixed = (found != found[0]).any(dim=0).nonzero()[:, 0]
    found, weights = found[:, mixed], weights[:, mixed]
    total = torch.stack([(weights * (found == one)).sum(dim=0) for one in found])
    of_labels = total.masked_fill(found == 0, -1.0)
    most = of_labels.amax(dim=0)
    number = found.masked_fill(of_labels < most, torch.iinfo(found.dtype).max).amin(dim=0)
    background = total.masked_fill(found != 0, 0.0).amax(dim=0)
    winner[mixed] = torch.where(most >= background, number, 0)
    return winner.view(coordinates.shape[2:])


def sparse(shares: torch.Tensor, offset: int = 0) -> Shares:
    """Shares (x, Y, Z) of a slab that starts at voxel `offset` of the flattened target, without the empty voxels."""
    flat = shares.flatten()
    index = flat.nonzero()[:, 0]
    return index + offset, flat[index]


def chosen_voxels(shares: Sequence[Shares], voxels: int, sizes: Sequence[float]) -> torch.Tensor:
    """The label of each voxel of the target. Labels that may overlap are passed one by one.

    A voxel goes to the label with the largest share, if that is at least as large as the background's. A label that
    loses or gains volume by this rule gets other voxels instead, the smallest label first: the fullest voxels that no
    smaller label has.

    Args:
        shares: the shares of each label, see `sparse`.
        voxels: number of voxels of the target.
        sizes: the volume of each moving label, in target voxels.

    Returns:
        (voxels,) int32: 0 for the background, or the label's number, from 1.
    """
    device = shares[0][0].device
    winner = torch.zeros(voxels, dtype=torch.int32, device=device)
    largest, background = (torch.full((voxels,), value, device=device) for value in (0.0, 1.0))
    for number, (index, share) in enumerate(shares, 1):
        background[index] -= share
        better = share > largest[index]
        largest[index[better]] = share[better]
        winner[index[better]] = number
    winner[largest < background] = 0
    settled = torch.zeros(voxels, dtype=torch.bool, device=device)
    volumes = [float(share.sum(dtype=torch.float64)) for _, share in shares]
    for label in np.argsort(volumes, kind="stable"):
        (index, share), volume = shares[label], volumes[label]
        held = index[winner[index] == label + 1]
        if abs(len(held) - volume) > TOLERANCE * volume:
            winner[held] = 0
            free = ~settled[index]
            wanted = max(round(volume), int(0 < ARRIVED * sizes[label] <= volume))
            held = index[free][share[free].argsort(descending=True, stable=True)[:wanted]]
            winner[held] = int(label) + 1
        settled[held] = True
    return winner


def carry_held(field: DisplacementField, labels: MetaTensor, count: int) -> MetaTensor:
    """`carry_labels` for held labels, thresholded at one half; the result is held in the same form.

    Args:
        field: the field from the target to the moving image.
        labels: the labels of the moving image, see `regzoo.spatial.held`.
        count: number of labels.
    """
    moving, held = Grid.of(labels), as_tensor(labels).to(field.displacement.device)
    carried = torch.zeros(len(held), *field.grid.shape, dtype=held.dtype, device=held.device)
    if not is_map(held):
        # The masks of a group share one set of coordinates; `SLAB` bounds the memory of a group.
        group = max(SLAB // max(math.prod(moving.shape), math.prod(field.grid.shape)), 1)
        for masks, found in zip(held.split(group), carried.split(group), strict=True):
            found[:] = carry_labels(field, with_affine(masks.float(), labels.affine), False) >= 0.5
    elif subdivisions(moving, field.grid) == (1, 1, 1):
        for rows, coordinates in field.coordinates(moving):
            carried[0, rows] = likeliest(held[0], coordinates)
    else:
        shares, sizes = _shares(field, held, count, moving)
        carried.view(-1)[:] = chosen_voxels(shares, carried.numel(), sizes)
    return with_affine(carried, field.grid.affine)


def carry_labels(field: DisplacementField, labels: MetaTensor, exclusive: bool) -> MetaTensor:
    """Moving labels on the grid of a field.

    Args:
        field: the field from the target to the moving image.
        labels: (C, X', Y', Z') of 0 and 1, affine voxel → RAS mm.
        exclusive: the labels are the values of one map, so they must not overlap.

    Returns:
        (C, X, Y, Z) float32. If the target is not coarser: linear interpolation at the centres of its voxels.
        Otherwise: masks of 0 and 1 that keep the volume of each label, see `chosen_voxels`.
    """
    moving, target = Grid.of(labels), field.grid
    if subdivisions(moving, target) == (1, 1, 1):
        return field.warp(labels)
    masks = as_tensor(labels).to(field.displacement.device)
    shares, sizes = _shares(field, masks, len(masks), moving)
    voxels = math.prod(target.shape)
    if exclusive:
        winner = chosen_voxels(shares, voxels, sizes)
        found = [winner == number for number in range(1, len(masks) + 1)]
    else:
        found = [chosen_voxels([part], voxels, [size]) > 0 for part, size in zip(shares, sizes, strict=True)]
    return with_affine(torch.stack(found).view(-1, *target.shape).float(), target.affine)


def _shares(
    field: DisplacementField, labels: torch.Tensor, count: int, moving: Grid
) -> tuple[list[Shares], list[float]]:
    """The shares of each label on the field's grid, and the volume of the moving label in voxels of that grid."""
    target = field.grid
    ratio = float(abs(np.linalg.det(moving.affine[:3, :3]) / np.linalg.det(target.affine[:3, :3])))
    sizes = [float(one_mask(labels, index).sum(dtype=torch.float64)) * ratio for index in range(count)]
    plane = target.shape[1] * target.shape[2]
    rows = max(1, SLAB // (plane * count))
    slabs = [
        [sparse(share, start * plane) for share in filled_shares(labels, moving, field, start, start + rows, count)]
        for start in range(0, target.shape[0], rows)
    ]
    joined = [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*slabs, strict=True)]
    return [(index, share) for index, share in joined], sizes
