"""Reading images and labels, with the checks that hostile files need."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from monai.data import MetaTensor
from regzoo.errors import bad_file
from regzoo.spatial.grid import Grid
from regzoo.spatial.reading import read_volume

logger = logging.getLogger(__name__)

#: A label map with more values than this is taken for an image given by mistake.
MAX_LABEL_VALUES = 256
#: Where MONAI keeps the name of the file of an image.
FILE = "filename_or_obj"
#: Where the number of axes of a file is kept.
STORED_AXES = "stored_axes"
_remarked: set[str] = set()
EMPTY_MEND = "draw the label, or leave the file out"


def _read(path: str | Path, strict: bool = False) -> MetaTensor:
    """The volume of a file as float32 with its affine (voxel → RAS mm), trailing axes of one voxel dropped.

    ``meta[STORED_AXES]`` is how many axes the file has.
    """
    file = read_volume(path)
    remark(path, file.doubt, strict)
    values = torch.from_numpy(file.values)
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return MetaTensor(values, affine=torch.as_tensor(file.affine), meta={STORED_AXES: file.values.ndim})


def remark(path: str | Path, doubt: tuple[str, str] | None, strict: bool = False) -> None:
    """Say once that other programs may place a file elsewhere, or, if strict, refuse it.

    Raises:
        RegZooError: there is doubt, and the caller is strict.
    """
    if doubt is None:
        return
    error = bad_file(path, *doubt)
    if strict:
        raise error
    if str(error) not in _remarked:
        _remarked.add(str(error))
        logger.warning("%s", error)


def _check_spatial(path: str | Path, volume: torch.Tensor) -> None:
    if volume.ndim < 3 or min(volume.shape[:3]) < 2:
        shape = "×".join(str(n) for n in volume.shape)
        raise bad_file(path, f"is a 2-D image ({shape})", "give a 3-D volume with at least two slices")
    if not torch.isfinite(volume).all():
        count = int((~torch.isfinite(volume)).sum())
        raise bad_file(path, f"holds NaN or infinity in {count} voxels", "replace them by numbers, for example 0")


def read_image(path: str | Path, strict_headers: bool = False) -> MetaTensor:
    """Read a scalar 3-D image; scaled and integer files become float32 in their own physical values.

    Args:
        path: NIfTI, NRRD, MetaImage or MGH.
        strict_headers: refuse a file that other programs may place elsewhere, instead of a warning.

    Returns:
        (1, X, Y, Z) float32 with affine voxel → RAS mm.

    Raises:
        RegZooError: missing or damaged file, 2-D or 4-D image, NaN, constant image, singular affine.
    """
    volume = _read(path, strict_headers)
    _check_spatial(path, volume)
    if volume.ndim == 5 and volume.shape[3] == 1:
        problem = f"is a vector image ({volume.shape[4]} values in each voxel), such as a displacement field"
        raise bad_file(path, problem, "give one 3-D volume")
    if volume.ndim > 3:
        shape = "×".join(str(n) for n in volume.shape)
        raise bad_file(path, f"is a {volume.ndim}-D image ({shape})", "split it and give one 3-D volume")
    low, high = float(volume.min()), float(volume.max())
    if low == high:
        raise bad_file(path, f"is constant: every voxel is {low:g}", "check that the right file was exported")
    # The name is MONAI's; it lets later steps say which file they cannot use.
    return MetaTensor(volume.as_tensor()[None], affine=volume.affine, meta={FILE: str(path)})


def plain(image: torch.Tensor) -> torch.Tensor:
    """The same values without MONAI's metadata, which slows every operation down and may be dropped by it."""
    return image.as_subclass(torch.Tensor)


def centroids(masks: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """Centres of mass of labels.

    Args:
        masks: (C, X, Y, Z), binary or soft; soft values weigh the voxels.
        affine: 4×4, voxel → RAS mm.

    Returns:
        (C, 3) float64, RAS mm; NaN for an empty label.
    """
    masks = plain(masks)
    # Marginal sums first: the data are read twice, not once per coordinate, and only short sums run in float32.
    plane = masks.sum(dim=3, dtype=torch.float32).double()
    other = masks.sum(dim=1, dtype=torch.float32).double()
    marginals = (plane.sum(2), plane.sum(1), other.sum(1))
    mass = marginals[0].sum(1)
    index = [m @ torch.arange(m.shape[1], dtype=torch.float64, device=m.device) for m in marginals]
    voxels = torch.stack(index, dim=1) / torch.where(mass > 0, mass, torch.nan)[:, None]
    affine = torch.as_tensor(affine, dtype=torch.float64).to(voxels.device)
    return voxels @ plain(affine)[:3, :3].T + plain(affine)[:3, 3]


class LabelFile(NamedTuple):
    """Labels as they are stored.

    Attributes:
        volume: masks (C, X, Y, Z) of 0 and 1, or an integer map (1, X, Y, Z); float32 with affine voxel → RAS mm.
        is_map: whether it is an integer map, to be split by value.
    """

    volume: MetaTensor
    is_map: bool


def read_label_file(
    path: str | Path | Sequence[str | Path],
    image: Grid | None = None,
    may_be_empty: bool = False,
    strict_headers: bool = False,
) -> LabelFile:
    """Read labels: a 4-D file (last axis = label), a 3-D mask or integer map, or a list of masks.

    Args:
        path: one file, or one file per label, empty masks where something is not labelled.
        image: grid of the image the labels were drawn on; they must lie on it.
        may_be_empty: take a file without a labelled voxel.
        strict_headers: refuse a file that other programs may place elsewhere, instead of a warning.

    Raises:
        RegZooError: missing or damaged file, 2-D, NaN, values that are not labels, another grid, no labelled voxel.
    """
    if not isinstance(path, (str, Path)):
        masks = [read_label_file(item, image, True, strict_headers).volume for item in path]
        if any(mask.shape[1:] != masks[0].shape[1:] for mask in masks):
            raise bad_file(path[0], "lies on another grid than the other masks of its list", "resample them alike")
        joined = torch.cat([(mask.as_tensor() != 0).float() for mask in masks])
        if not bool(joined.any()) and not may_be_empty:
            raise bad_file(path[0], "and the other masks of its list hold no labelled voxel", EMPTY_MEND)
        return LabelFile(MetaTensor(joined, affine=masks[0].affine), is_map=False)
    volume = _read(path, strict_headers)
    _check_spatial(path, volume)
    if volume.ndim > 4:
        raise bad_file(path, f"has {volume.ndim} axes", "give a 3-D label map or a 4-D file with one label per volume")
    is_map = volume.ndim == 3
    if is_map and float(volume.min()) >= 0 and float(volume.max()) <= 1:
        values = (volume.as_tensor() >= 0.5).float()[None]
    elif is_map:
        values = volume.as_tensor()[None]
        if not torch.equal(values, values.round()) or len(label_values(values)) > MAX_LABEL_VALUES:
            raise bad_file(path, "holds intensities, not labels", "give a mask or a map of whole numbers")
    else:
        values = (volume.as_tensor().movedim(-1, 0) >= 0.5).float()
    if float(values.min()) < 0:
        raise bad_file(path, "holds negative values", "give a mask or a map of whole numbers from 0")
    if not bool(values.any()) and not may_be_empty:
        raise bad_file(path, "holds no labelled voxel", EMPTY_MEND)
    label = MetaTensor(values, affine=volume.affine)
    if image is not None:
        check_on_grid(path, label, image)
    return LabelFile(label, is_map)


def label_values(volume: torch.Tensor) -> list[int]:
    """The labels of an integer map: its non-zero values, sorted."""
    return [int(value) for value in torch.unique(torch.as_tensor(volume)).tolist() if value != 0]


def to_channels(volume: MetaTensor, values: Sequence[int]) -> MetaTensor:
    """Split an integer map (1, X, Y, Z) into one mask per value (C, X, Y, Z); a value not there gives an empty mask."""
    wanted = torch.as_tensor(list(values), dtype=torch.float32).view(-1, 1, 1, 1)
    return MetaTensor((volume.as_tensor() == wanted).float(), affine=volume.affine)


def check_on_grid(path: str | Path, label: MetaTensor, image: Grid) -> None:
    """Raise `RegZooError` unless a label (…, X, Y, Z) lies on the grid of its image (to a tenth of a voxel)."""
    grid = Grid.of(label)
    if grid.shape != image.shape:
        problem = f"has {grid.shape} voxels where its image has {image.shape}"
    elif not grid.same_as(image, tolerance=0.1 * float(image.spacing.min())):
        problem = "lies elsewhere in space than its image (the affines differ)"
    else:
        return
    raise bad_file(path, problem, "resample the label onto its image's grid")
