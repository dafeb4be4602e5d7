"""Carrying labels through a field onto voxels that may be larger than the label's own.

A thick slice seen at its centre alone misses what lies between the centres. So a coarser voxel is cut into parts no
larger than the moving voxels, and what counts is the share of it that a label fills. Shares of a small structure may
stay below one half everywhere: it then gets the voxels with the largest shares, as many as have its volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from monai.data import MetaTensor
from regzoo.spatial.field import DisplacementField
from regzoo.spatial.grid import Grid
from regzoo.spatial.volumes import plain
from regzoo.spatial.warp import apply_matrix, sample, sample_file, slab_points

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


def filled_shares(masks: torch.Tensor, moving: Grid, field: DisplacementField, start: int, stop: int) -> torch.Tensor:
    """The share of each voxel of a slab of the field's grid that a label fills.

    Args:
        masks: (C, X', Y', Z') on `moving`, values in [0, 1], on the device of the field.
        moving: grid of the masks, in the world that the field leads to.
        field: from the target to the moving image.
        start, stop: first index of the slab along the first axis of the field's grid, and the one after its last.

    Returns:
        (C, stop - start, Y, Z) float32 in [0, 1]. Their sum times the volume of a voxel is the carried volume.
    """
    stop = min(stop, field.grid.shape[0])
    shape, parts = field.grid.shape, subdivisions(moving, field.grid)
    device, rows = field.displacement.device, slice(start, stop)
    to_moving = torch.as_tensor(np.linalg.inv(moving.affine), device=device)
    there = to_moving @ torch.as_tensor(field.grid.affine, device=device)
    centres = slab_points(np.eye(4), shape, rows, device)
    total = torch.zeros(len(masks), *centres.shape[2:], device=device)
    for step in product(*[(np.arange(n) + 0.5) / n - 0.5 for n in parts]):
        points = centres + torch.tensor(step, dtype=centres.dtype, device=device).view(1, 3, 1, 1, 1)
        shift = sample(field.displacement[None], points, padding="border").double()
        coordinates = apply_matrix(there, points) + torch.einsum("ij,bjxyz->bixyz", to_moving[:3, :3], shift)
        total += sample_file(masks.float(), coordinates)
    return total / float(np.prod(parts))


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
    masks = plain(labels).to(field.displacement.device)
    voxels = int(np.prod(target.shape))
    ratio = float(abs(np.linalg.det(moving.affine[:3, :3]) / np.linalg.det(target.affine[:3, :3])))
    sizes = [float(mask.sum(dtype=torch.float64)) * ratio for mask in masks]
    plane = voxels // target.shape[0]
    rows = max(1, SLAB // (plane * len(masks)))
    slabs = [
        [sparse(share, start * plane) for share in filled_shares(masks, moving, field, start, start + rows)]
        for start in range(0, target.shape[0], rows)
    ]
    shares = [
        (torch.cat([part[0] for part in of]), torch.cat([part[1] for part in of])) for of in zip(*slabs, strict=True)
    ]
    if exclusive:
        winner = chosen_voxels(shares, voxels, sizes)
        found = torch.stack([winner == number for number in range(1, len(masks) + 1)])
    else:
        found = torch.stack(
            [chosen_voxels([part], voxels, [size]) > 0 for part, size in zip(shares, sizes, strict=True)]
        )
    return MetaTensor(found.view(-1, *target.shape).float(), affine=torch.as_tensor(target.affine))
