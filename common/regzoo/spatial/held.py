"""Held labels: a compact form in which a registration keeps labels on the large grids of the files.

Held labels are either a map (1, X, Y, Z) of an integer type, with the labels' numbers 1, 2, … and 0 for the background,
or masks (C, X, Y, Z), bool. The functions here also take masks of floats, as training and evaluation have them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import torch
from nibabel.affines import from_matvec
from regzoo.errors import bad_file
from regzoo.spatial.grid import Grid
from regzoo.spatial.labels import label_values
from regzoo.spatial.volumes import as_tensor, centroids, with_affine
from regzoo.spatial.warp import slabs
from regzoo.spatial.writing import form_of, write_image
from scipy.ndimage import find_objects

if TYPE_CHECKING:
    from monai.data import MetaTensor

#: Part of a volume.
Box = tuple[slice, slice, slice]


def is_map(labels: torch.Tensor) -> bool:
    """Whether held labels are a map of numbers."""
    return not labels.is_floating_point() and labels.dtype != torch.bool


def hold(volume: MetaTensor, values: Sequence[int] | None) -> MetaTensor:
    """Convert the labels of a file to held labels.

    Args:
        volume: an integer map (1, X, Y, Z) float32, or masks (C, X, Y, Z).
        values: the value of each label of a map; other values become background. None for masks.
    """
    stored = volume.as_tensor()
    if values is None:
        return with_affine(stored > 0, volume.affine)
    numbers = torch.zeros(stored.shape, dtype=torch.uint8 if len(values) < 256 else torch.int16)
    for rows in slabs(stored.shape[1:]):
        for number, value in enumerate(values, 1):
            numbers[:, rows].masked_fill_(stored[:, rows] == value, number)
    return with_affine(numbers, volume.affine)


def one_mask(labels: torch.Tensor, index: int, box: Box | None = None) -> torch.Tensor:
    """One label, or the part of it in a box: (X, Y, Z), bool, or float for float masks."""
    part = as_tensor(labels)[(slice(None), *(box or ()))]
    return part[0] == index + 1 if is_map(labels) else part[index]


def boxes(labels: torch.Tensor, count: int) -> list[Box | None]:
    """The bounding box of each of the `count` labels; None for an empty label."""
    if is_map(labels):
        return list(find_objects(as_tensor(labels)[0].cpu().numpy(), max_label=count))
    found = [find_objects((mask > 0).cpu().numpy().view(np.uint8), max_label=1) for mask in as_tensor(labels)]
    return [box for (box,) in found]


def part_of(grid: Grid, box: Box) -> Grid:
    """The part of a grid inside a box, which may also reach beyond the grid."""
    first = grid.to_world([side.start for side in box])
    return Grid([side.stop - side.start for side in box], from_matvec(grid.affine[:3, :3], first))


def sizes_and_centres(labels: MetaTensor, found: Sequence[Box | None]) -> tuple[list[float], np.ndarray]:
    """Voxel counts (sums for soft labels) and centroids (C, 3), RAS mm, NaN if empty; `found` comes from `boxes`."""
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
    """Held labels as masks (C, X, Y, Z) uint8."""
    masks = torch.stack([one_mask(labels, index).to(torch.uint8) for index in range(count)])
    return with_affine(masks, labels.affine)


def label_map(labels: torch.Tensor, values: Sequence[int]) -> torch.Tensor:
    """One map of labels, each shown by its value; where they overlap the smallest shows.

    Args:
        labels: masks (C, X, Y, Z) bool, or a map of numbers (1, X, Y, Z).
        values: of each label.

    Returns:
        (X, Y, Z) int32.
    """
    if is_map(labels):
        table = torch.tensor([0, *(int(value) for value in values)], dtype=torch.int32, device=labels.device)
        return torch.cat([table[labels[0, rows].int()] for rows in slabs(labels.shape[1:])])
    shown = torch.zeros(labels.shape[1:], dtype=torch.int32, device=labels.device)
    for channel in torch.stack([mask.sum() for mask in labels]).argsort(descending=True, stable=True).tolist():
        shown.masked_fill_(labels[channel] > 0, int(values[channel]))
    return shown


def in_form_of_file(
    labels: MetaTensor, values: Sequence[int] | None, mask_values: Sequence[int] | None = None, axes: int = 3
) -> MetaTensor:
    """Held labels in the form of the file they come from: a map (X, Y, Z), or masks along the last axis.

    Args:
        labels: held labels.
        values: the value of each label of a map; None for masks.
        mask_values: the value of each mask in its file; None for 1.
        axes: the number of axes of the file; a map that was the only volume of a 4-D file has shape (X, Y, Z, 1).
    """
    held, affine = labels.as_tensor().cpu(), labels.affine
    if values is None:
        numbers = torch.tensor([int(value) for value in mask_values or [1] * len(held)])
        ones = bool((numbers == 1).all())
        masks = held.to(torch.uint8) if ones else held * numbers.int().view(-1, 1, 1, 1)
        return with_affine(masks.movedim(0, -1), affine)
    array = label_map(held, values)
    return with_affine(array[..., None] if axes > 3 else array, affine)


def write_labels(path: str | PathLike[str], labels: MetaTensor, names: Mapping[int, str] | None = None) -> None:
    """Write the labels of `in_form_of_file`, in the smaller of two types that holds them; see `write_image`.

    Args:
        path: a map in a file ``.seg.nrrd`` becomes a segmentation of 3D Slicer.
        names: of the values of a map, for 3D Slicer; other values are called ``label_7`` and so on.

    Raises:
        RegZooError: masks, which only a NIfTI file can hold.
    """
    array = as_tensor(labels).numpy()
    if array.ndim > 3 and form_of(path) != ".nii.gz":
        raise bad_file(path, "cannot hold a mask for each label", "let it end in .nii.gz")
    array = array.astype(np.uint8 if array.max(initial=0) < 256 else np.int32)
    entries = dict[str, str]()
    if form_of(path) == ".seg.nrrd":
        extent = " ".join(f"0 {n - 1}" for n in array.shape)
        # 3D Slicer drops the voxels of a value that is not listed.
        listed = dict(names or {}) | {v: f"label_{v}" for v in label_values(labels) if v not in (names or {})}
        for index, (value, name) in enumerate(listed.items()):
            segment = {"ID": f"label_{value}", "Name": name, "Layer": "0", "LabelValue": str(value), "Extent": extent}
            entries |= {f"Segment{index}_{key}": text for key, text in segment.items()}
    write_image(path, array, np.asarray(labels.affine), entries)
