"""Read labels in any form: masks, lists of masks and integer maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from nibabel.affines import from_matvec
from regzoo.errors import bad_file
from regzoo.spatial.grid import Grid
from regzoo.spatial.itk_headers import Segment, segments
from regzoo.spatial.nifti import times
from regzoo.spatial.volumes import as_tensor, check_finite, check_spatial, read_values, with_affine
from regzoo.spatial.warp import SLAB
from torch.nn import functional

if TYPE_CHECKING:
    from monai.data import MetaTensor

#: A label map with more values than this is probably an image given by mistake.
MAX_LABEL_VALUES = 256
#: Values this close to a whole number are rounded to it: resampling and scaling leave such differences.
NEAR_WHOLE = 1e-3
#: From this value on, float32 cannot represent every whole number.
NOT_EXACT = 2**24
#: Largest allowed distance between a label and its image along any axis, voxels.
MAX_OFFSET = 0.1
_DRAW = "draw the label, or leave the file out"


class LabelFile(NamedTuple):
    """Labels as stored in a file.

    Attributes:
        volume: masks (C, X, Y, Z) bool, or an integer map (1, X, Y, Z) float32; affine voxel → RAS mm.
        is_map: whether `volume` is an integer map.
        mask_values: for masks, the value of each in its file.
        axes: number of axes of the file; 4 also for a map that is the only volume of a 4-D file.
        names: the names that 3D Slicer gave its segments, by value in a map, by number from 1 for masks.
    """

    volume: MetaTensor
    is_map: bool
    mask_values: list[int]
    axes: int
    names: Mapping[int, str]


def read_label_file(
    path: str | Path | Sequence[str | Path],
    image: Grid | None = None,
    may_be_empty: bool = False,
    strict_headers: bool = False,
) -> LabelFile:
    """Read labels: a 4-D file (last axis = label), a 3-D mask or integer map, or a list of masks.

    A segmentation of 3D Slicer is a map if its segments do not overlap, and else holds one mask for each segment.

    Values within 0.001 of a whole number are rounded. Other values between 0 and 1 are a soft mask, which is
    thresholded at 0.5.

    Args:
        path: one file, or one file per label, with an empty mask for a label that is not drawn.
        image: grid of the image the labels were drawn on; the labels must lie on it.
        may_be_empty: accept a file without labelled voxels.
        strict_headers: refuse a file that other programs may place elsewhere, instead of warning.

    Raises:
        RegZooError: missing or damaged file, 2-D, NaN, values that are not labels, another grid, no labelled voxel.
    """
    if not isinstance(path, (str, Path)):
        if not path or not all(isinstance(one, (str, Path)) for one in path):
            raise bad_file(f"{path!s:.80}", "is not a list of files", "write ['a.nii.gz', 'b.nii.gz']")
        return _joined(path, image, may_be_empty, strict_headers)
    stored, affine, axes = read_values(path, strict_headers)
    is_slicer = str(path).lower().endswith(".seg.nrrd")
    if image is not None and is_slicer:
        stored, affine = _uncropped(stored, affine, image)
    named = segments(Path(path)) if is_slicer else []
    if named and stored.ndim == 4:
        stored = _segment_masks(path, stored, named)
    _check_last_axis(path, stored, image)
    check_spatial(path, stored)
    ones = stored == 1
    plain = bool((ones | (stored == 0)).all())  # as in most files: no need to search each label for other values
    if not plain:
        check_finite(path, stored, "set them to 0, the background")
    if stored.ndim > 4:
        vectors = stored.ndim == 5 and stored.shape[3] == 1
        what = f"has {stored.shape[4]} values in each voxel" if vectors else f"has {stored.ndim} axes"
        raise bad_file(path, what, "give a 3-D label map or a 4-D file with one label per volume")
    is_map, mask_values = stored.ndim == 3, list[int]()
    if is_map:
        values = (stored if plain else _whole_numbers(path, stored))[None]
    elif plain:
        values, mask_values = ones.movedim(-1, 0).contiguous(), [1] * stored.shape[-1]
    else:
        masks = list[torch.Tensor]()
        for number, mask in enumerate(stored.unbind(-1), 1):
            whole = _whole_numbers(path, mask)
            mask_values.append(_only_value(path, whole, f"volume {number} holds"))
            masks.append(whole > 0)
        values = torch.stack(masks)
    if not bool(values.any()) and not may_be_empty:
        raise bad_file(path, "holds no labelled voxel", _DRAW)
    label = with_affine(values, affine)
    if image is not None:
        check_on_grid(path, label, image)
    names = {one.value if is_map else number: one.name for number, one in enumerate(named, 1)}
    return LabelFile(label, is_map, mask_values, min(axes, 4), names)


def _joined(paths: Sequence[str | Path], image: Grid | None, may_be_empty: bool, strict_headers: bool) -> LabelFile:
    """The masks of a list of files."""
    masks, values, grid = list[torch.Tensor](), list[int](), image
    for path in paths:
        file = read_label_file(path, image, True, strict_headers)
        masks.append(file.volume.as_tensor() > 0)
        values += [_only_value(path, file.volume, "holds")] if file.is_map else file.mask_values
        grid = Grid.of(file.volume) if grid is None else grid
        if not _is_on(Grid.of(file.volume), grid):
            raise bad_file(path, f"lies on a different grid from {paths[0]}", "resample all masks onto one grid")
    joined = torch.cat(masks)
    if not bool(joined.any()) and not may_be_empty:
        raise bad_file(paths[0], "and the other masks of its list hold no labelled voxel", _DRAW)
    return LabelFile(with_affine(joined, file.volume.affine), False, values, 4, {})


def _uncropped(label: torch.Tensor, affine: np.ndarray, image: Grid) -> tuple[torch.Tensor, np.ndarray]:
    """Pad a segmentation to the grid of its image; 3D Slicer saves segmentations cropped to their segments."""
    before = np.rint(image.to_voxels(affine[:3, 3])).astype(int)
    after = np.asarray(image.shape) - before - label.shape[:3]
    if label.ndim not in (3, 4) or min(*before, *after) < 0:
        return label, affine
    first = affine[:3, 3] - affine[:3, :3] @ before
    sides = [0, 0] * (label.ndim - 3) + [int(n) for pair in zip(before[::-1], after[::-1], strict=True) for n in pair]
    return functional.pad(label, sides), from_matvec(affine[:3, :3], first)


def _segment_masks(path: str | Path, layers: torch.Tensor, named: Sequence[Segment]) -> torch.Tensor:
    """The mask of each segment, with its value, along the last axis."""
    for one in named:
        if one.layer not in range(layers.shape[-1]):
            problem = f"has no layer {one.layer} for its segment {one.name!r}"
            raise bad_file(path, problem, "save it again in 3D Slicer")
    return torch.stack([torch.where(layers[..., one.layer] == one.value, one.value, 0.0) for one in named], -1)


def _check_last_axis(path: str | Path, stored: torch.Tensor, image: Grid | None) -> None:
    """Raise `RegZooError` if the labels are the first axis of a 4-D file instead of the last."""
    first = image is not None and stored.shape[:3] != image.shape and stored.shape[1:] == image.shape
    if stored.ndim == 4 and (first or (stored.shape[0] == 1 and min(stored.shape[1:]) > 1)):
        problem = f"has its labels along the first axis ({times(stored.shape)})"
        raise bad_file(path, problem, "make that the last axis, for example with numpy.moveaxis(array, 0, -1)")


def _whole_numbers(path: str | Path, stored: torch.Tensor) -> torch.Tensor:
    """The labels of a volume (X, Y, Z), rounded; raises `RegZooError` if the values are not labels."""
    low, high = float(stored.min()), float(stored.max())
    labels = stored.round()
    off = (stored - labels).abs_()
    if float(off.max()) > NEAR_WHOLE:
        if low >= -NEAR_WHOLE and high <= 1 + NEAR_WHOLE:
            return (stored >= 0.5).float()
        example = float(stored.flatten()[off.argmax()])
        problem = f"holds intensities, not labels: {example:g} is not a whole number"
        raise bad_file(path, problem, "give a mask or a map of whole numbers")
    if (count := len(label_values(labels))) > MAX_LABEL_VALUES:
        problem = f"holds {count} different values, more than the {MAX_LABEL_VALUES} labels that a map may have"
        raise bad_file(path, problem, "give a map of fewer labels, or check that it is not an image")
    if low < -NEAR_WHOLE:
        problem = f"holds negative values, such as {round(low)}, in {int((labels < 0).sum())} voxels"
        raise bad_file(path, problem, "give whole numbers from 0, which is the background")
    if high >= NOT_EXACT:
        raise bad_file(path, f"holds the label value {high:.0f}, which is too large", "number the labels from 1")
    return labels


def _only_value(path: str | Path, mask: torch.Tensor, what: str) -> int:
    """The only value of a mask, 1 if it is empty; raises `RegZooError` if there are several."""
    values = label_values(mask)
    if len(values) > 1:
        shown = ", ".join(str(value) for value in values[:4]) + (", …" if len(values) > 4 else "")
        problem = f"{what} the values {shown}, but a mask has one value"
        raise bad_file(path, problem, "give one mask per label, or a 3-D label map as a single file")
    return values[0] if values else 1


def label_values(volume: torch.Tensor) -> list[int]:
    """The labels of an integer map: its non-zero values, sorted."""
    found = set[float]()
    for part in as_tensor(torch.as_tensor(volume)).reshape(-1).split(SLAB):
        # Reducing runs of equal values first leaves little to sort.
        found.update(torch.unique_consecutive(part).unique().tolist())
    return sorted(int(value) for value in found if value != 0)


def to_channels(volume: MetaTensor, values: Sequence[int]) -> MetaTensor:
    """Split an integer map (1, X, Y, Z) into one mask per value (C, X, Y, Z); a missing value gives an empty mask."""
    wanted = torch.as_tensor(list(values), dtype=torch.float32).view(-1, 1, 1, 1)
    return with_affine((volume.as_tensor() == wanted).float(), volume.affine)


def check_on_grid(path: str | Path, label: MetaTensor, image: Grid) -> None:
    """Raise `RegZooError` unless a label (…, X, Y, Z) lies on the grid of its image (to a tenth of a voxel)."""
    grid = Grid.of(label)
    if _is_on(grid, image):
        return
    if grid.shape != image.shape:
        problem = f"has {grid.shape} voxels, but its image has {image.shape}"
    else:
        problem = f"lies elsewhere: the affines of label and image differ by up to {grid.distance(image):.3g} mm"
    raise bad_file(path, problem, "resample the label onto its image's grid")


def _is_on(grid: Grid, image: Grid) -> bool:
    if grid.shape != image.shape:
        return False
    return bool(np.abs(image.to_voxels(grid.corners) - image.to_voxels(image.corners)).max() <= MAX_OFFSET)
