"""Carrying labels through a field onto voxels that may be larger than the label's own.

A thick slice seen at its centre alone misses what lies between the centres. So a coarser voxel is cut into parts no
larger than the moving voxels, and what counts is the share of it that a label fills. Shares of a small structure may
stay below one half everywhere: it then gets the voxels with the largest shares, as many as have its volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from monai.data import MetaTensor
from regzoo.spatial.field import DisplacementField
from regzoo.spatial.grid import Grid
from regzoo.spatial.held import is_map, one_mask
from regzoo.spatial.volumes import as_tensor
from regzoo.spatial.warp import apply_matrix, sample, sample_file, slab_points, within

#: A target voxel that is longer than this many moving voxels is cut into parts.
COARSER = 1.05
#: How far the volume of the voxels that are more than half full may be off before others are chosen.
TOLERANCE = 0.05
#: How many values, voxels times labels, are worked on at a time.
SLAB = 2**22
#: A label of which at least this share arrives in the target keeps at least one voxel.
ARRIVED = 0.1

#: The shares of one label: where they are not zero, as indices into the flattened target, and how large they are there.
Shares = tuple[torch.Tensor, torch.Tensor]


def subdivisions(moving: Grid, target: Grid) -> tuple[int, int, int]:
    """Into how many parts each axis of a target voxel is cut; (1, 1, 1) where it is not coarser than a moving voxel."""
    steps = np.abs(np.linalg.solve(moving.affine[:3, :3], target.affine[:3, :3])).max(axis=0)
    x, y, z = (int(np.ceil(step - (COARSER - 1))) if step > COARSER else 1 for step in steps)
    return x, y, z


def filled_shares(
    labels: torch.Tensor, moving: Grid, field: DisplacementField, start: int, stop: int, count: int | None = None
) -> torch.Tensor:
    """The share of each voxel of a slab of the field's grid that a label fills.

    Args:
        labels: masks (C, X', Y', Z') on `moving`, values in [0, 1], or a map of numbers (1, X', Y', Z'), see
            `regzoo.spatial.held`; on the device of the field.
        moving: grid of the masks, in the world that the field leads to.
        field: from the target to the moving image.
        start, stop: first index of the slab along the first axis of the field's grid, and the one after its last.
        count: how many labels a map of numbers has.

    Returns:
        (C, stop - start, Y, Z) float32 in [0, 1]. Their sum times the volume of a voxel is the carried volume.
    """
    stop = min(stop, field.grid.shape[0])
    shape, parts = field.grid.shape, subdivisions(moving, field.grid)
    device, rows = field.displacement.device, slice(start, stop)
    to_moving = torch.as_tensor(np.linalg.inv(moving.affine), device=device)
    there = to_moving @ torch.as_tensor(field.grid.affine, device=device)
    centres = slab_points(np.eye(4), shape, rows, device)
    total = torch.zeros(count or len(labels), *centres.shape[2:], device=device)
    for step in product(*[(np.arange(n) + 0.5) / n - 0.5 for n in parts]):
        points = centres + torch.tensor(step, dtype=centres.dtype, device=device).view(1, 3, 1, 1, 1)
        shift = sample(field.displacement[None], points, padding="border").double()
        coordinates = apply_matrix(there, points) + torch.einsum("ij,bjxyz->bixyz", to_moving[:3, :3], shift)
        if not is_map(labels):
            total += sample_file(labels.float(), coordinates)
            continue
        voxels = torch.arange(total[0].numel(), device=device)
        for number, weight in zip(*corners(labels[0], coordinates), strict=True):
            index = (number.long() - 1) * len(voxels) + voxels
            total.view(-1).index_add_(0, index[number > 0], weight[number > 0])
    return total / float(np.prod(parts))


def corners(numbers: torch.Tensor, coordinates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What linear interpolation of a map of numbers mixes at given points.

    Args:
        numbers: (X', Y', Z'), of an integer type.
        coordinates: (1, 3, X, Y, Z) float64, voxels of the map.

    Returns:
        The numbers at the eight corners round each point, 0 for points outside, and their weights, (8, X·Y·Z) each.
    """
    low = coordinates[0].flatten(1).floor()
    shares = (coordinates[0].flatten(1) - low).float()
    first, flat = low.long(), numbers.reshape(-1)
    ends = [[(first[axis] + end).clamp(0, n - 1) for end in (0, 1)] for axis, n in enumerate(numbers.shape)]
    found, weights = [], []
    for x, y, z in product((0, 1), repeat=3):
        index = (ends[0][x] * numbers.shape[1] + ends[1][y]) * numbers.shape[2] + ends[2][z]
        found.append(flat[index])
        # Written so that the weights of the two ends add up to 1.
        weights.append(_share(shares[0], x) * _share(shares[1], y) * _share(shares[2], z))
    inside = within(coordinates, numbers.shape).flatten()
    return torch.stack(found) * inside, torch.stack(weights)


def _share(share: torch.Tensor, end: int) -> torch.Tensor:
    return share if end else 1 - share


def likeliest(numbers: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """The label (X, Y, Z) with the largest weight at each point, the background only where it has more; see `corners`.

    Of two labels with the same weight it is the one with the lower number.
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
    """Shares (x, Y, Z) of a slab that begins at `offset` voxels of the flattened target, without the empty voxels."""
    flat = shares.flatten()
    index = flat.nonzero()[:, 0]
    return index + offset, flat[index]


def chosen_voxels(shares: Sequence[Shares], voxels: int, sizes: Sequence[float]) -> torch.Tensor:
    """Which label each voxel of the target gets; labels that may overlap are given to it one by one.

    A voxel goes to the label with the largest share, if that is at least as large as the background's. Labels whose
    volume that does not keep are chosen anew, the smallest first: each gets the fullest voxels that no smaller one has.

    Args:
        shares: of each label, see `sparse`.
        voxels: how many voxels the target has.
        sizes: of each label, how many target voxels its moving volume makes.

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
    """What `carry_labels` gives for labels that are held small, cut at one half, in the form that they have.

    Args:
        field: from the target to the moving image.
        labels: of the moving image, see `regzoo.spatial.held`.
        count: how many labels they are.
    """
    moving, held = Grid.of(labels), as_tensor(labels).to(field.displacement.device)
    carried = torch.zeros(len(held), *field.grid.shape, dtype=held.dtype, device=held.device)
    if not is_map(held):
        for mask, found in zip(held, carried, strict=True):
            found[:] = carry_labels(field, MetaTensor(mask[None].float(), affine=labels.affine), False)[0] >= 0.5
    elif subdivisions(moving, field.grid) == (1, 1, 1):
        for rows, coordinates in field.coordinates(moving):
            carried[0, rows] = likeliest(held[0], coordinates)
    else:
        shares, sizes = _shares(field, held, count, moving)
        carried.view(-1)[:] = chosen_voxels(shares, carried.numel(), sizes)
    return MetaTensor(carried, affine=torch.as_tensor(field.grid.affine))


def carry_labels(field: DisplacementField, labels: MetaTensor, exclusive: bool) -> MetaTensor:
    """Labels on the grid of a field that leads to them.

    Args:
        field: from the target to the moving image.
        labels: (C, X', Y', Z') of 0 and 1, affine voxel → RAS mm.
        exclusive: they are the values of one map, so they must not overlap.

    Returns:
        (C, X, Y, Z) float32: where the target is not coarser, the linear interpolation at the centres of its voxels;
        where it is, masks of 0 and 1 that keep the volume of each label, see `chosen_voxels`.
    """
    moving, target = Grid.of(labels), field.grid
    if subdivisions(moving, target) == (1, 1, 1):
        return field.warp(labels)
    masks = as_tensor(labels).to(field.displacement.device)
    shares, sizes = _shares(field, masks, len(masks), moving)
    voxels = math.prod(target.shape)
    if exclusive:
        winner = chosen_voxels(shares, voxels, sizes)
        found = torch.stack([winner == number for number in range(1, len(masks) + 1)])
    else:
        found = torch.stack(
            [chosen_voxels([part], voxels, [size]) > 0 for part, size in zip(shares, sizes, strict=True)]
        )
    return MetaTensor(found.view(-1, *target.shape).float(), affine=torch.as_tensor(target.affine))


def _shares(
    field: DisplacementField, labels: torch.Tensor, count: int, moving: Grid
) -> tuple[list[Shares], list[float]]:
    """The shares of each label on the field's grid, and how many of its voxels the moving volume of each makes."""
    target = field.grid
    ratio = float(abs(np.linalg.det(moving.affine[:3, :3]) / np.linalg.det(target.affine[:3, :3])))
    sizes = [float(one_mask(labels, index).sum(dtype=torch.float64)) * ratio for index in range(count)]
    plane = target.shape[1] * target.shape[2]
    rows = max(1, SLAB // (plane * count))
    slabs = [
        [sparse(share, start * plane) for share in filled_shares(labels, moving, field, start, start + rows, count)]
        for start in range(0, target.shape[0], rows)
    ]
    shares = [
        (torch.cat([part[0] for part in of]), torch.cat([part[1] for part in of])) for of in zip(*slabs, strict=True)
    ]
    return shares, sizes
