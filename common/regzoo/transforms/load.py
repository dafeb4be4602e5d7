"""Loading a pair and putting it into one frame: the first steps of every bundle's preprocessing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from regzoo.case import FIXED, MOVING, SIDES, Case, Key, Record
from regzoo.datasets.records import Alignment, case_name, known_alignment, record_files
from regzoo.errors import RegZooError, bad_file
from regzoo.refinement.linear import register_linear
from regzoo.spatial import Grid, LabelFile, as_tensor, centroids, label_values, read_image, read_label_file, to_channels
from regzoo.spatial.held import boxes, hold, is_map, one_mask
from regzoo.spatial.volumes import FILE
from regzoo.spatial.writing import form_of

logger = logging.getLogger(__name__)


class LoadPaird(MapTransform):
    """Load the images of a pair, or a single image, and those of its labels that the record names.

    Integer label maps of a pair are split into the same channels: one for each value of `label_values`, or else of the
    record's own ``label_values``, or else for each value that either map holds.

    Args:
        label_values: the values of integer maps to load, one channel each, in this order; other values that the record
            names are ignored.
        need: keys of labels that must be there if the record has their image.
        allow_nan: leave NaN in an image to a later step, `HounsfieldUnitsd`.
        strict_headers: refuse files that other programs may place elsewhere, instead of warning about them.
        exclude: masks name the voxels that do not count, instead of those that do.

    Adds ``case``; for label maps ``label_values``, the value of each channel, and the ``label_names`` that belong to
    them (without the record's ``label_values``, in ascending order), or else those of 3D Slicer's segments; and for a
    moving label ``moving_label_is_map``, ``moving_label_axes`` and ``moving_label_values`` (of a map) or
    ``moving_mask_values`` (of masks), see `regzoo.case.Case`.

    Results: images (1, X, Y, Z) float32, labels (C, X, Y, Z) of 0 and 1, and masks (1, X, Y, Z) bool of the voxels that
    count, each with its own affine (voxel → RAS mm).
    A ``requested`` case holds its labels small, see `regzoo.spatial.held`.
    Unless cases are ``requested``, it warns once if maps of two hold different values and nothing says which there are.

    Raises:
        RegZooError: one line that names the file, what is wrong with it and what to do.
    """

    def __init__(
        self,
        label_values: Sequence[int] | None = None,
        need: Sequence[str] = (),
        allow_nan: bool = False,
        strict_headers: bool = False,
        exclude: bool = False,
    ) -> None:
        super().__init__([FIXED.image, MOVING.image])
        self.label_values, self.exclude = label_values, exclude
        self.allow_nan = allow_nan
        self.need = tuple(need)
        self.strict_headers = strict_headers
        #: Of the first case with maps whose values nothing names: a file of them and their values.
        self.first: tuple[str, list[int]] | None = None
        self._warned = False

    def __call__(self, data: Record) -> Case:
        item: Any = dict(data)
        files: dict[str, LabelFile] = {}
        for side in SIDES:
            if side is MOVING and data.get(MOVING.image) is None:
                continue
            path = data[side.image]
            if side is MOVING:
                item[Key.MOVING_IMAGE_FORM] = form_of(path)
            item[side.image] = read_image(path, self.strict_headers, allow_nan=self.allow_nan)
            if label := item.pop(side.label, None):
                grid = Grid.of(item[side.image])
                files[side.label] = read_label_file(label, grid, strict_headers=self.strict_headers)
            elif side.label in self.need:
                fix = f"name it as {side.label} (regzoo register: --label), or use a configuration that does without"
                raise bad_file(path, "comes without its label, which is needed", fix)
            if mask := item.pop(side.mask, None):
                item[side.mask] = self._mask(mask, Grid.of(item[side.image]))
        maps = {str(data[key]): file for key, file in files.items() if file.is_map}  # type: ignore[literal-required]
        values = self._values(data, maps)
        for key, file in files.items():
            if data.get(Key.REQUESTED):
                label = hold(file.volume, values if file.is_map else None)
            else:
                label = to_channels(file.volume, values) if file.is_map else file.volume.float()
            label.meta[FILE] = record_files(data, [key])[0]
            item[key] = label
        if maps:
            item[Key.LABEL_VALUES] = values
            # A pair that is only registered gets its labels back by value, whatever their order.
            if self.label_values is None and not data.get(Key.REQUESTED) and not names_labels(data):
                first, known = self.first = self.first or (next(iter(maps)), values)
                if values != known and not self._warned:
                    self._warned = True
                    logger.warning("%s", other_values(next(iter(maps)), values, first, known))
            if data.get(Key.LABEL_NAMES):
                item[Key.LABEL_NAMES] = _names_of(data, values, next(iter(maps)))
        if not item.get(Key.LABEL_NAMES) and (names := _segment_names(files, values if maps else None)):
            item[Key.LABEL_NAMES] = names
        if (moving := files.get(MOVING.label)) is not None:
            item[Key.MOVING_LABEL_AXES] = moving.axes
            is_volume = moving.is_map and moving.axes == 3
            item[Key.MOVING_LABEL_FORM] = form_of(data[MOVING.label]) if is_volume else ".nii.gz"
            item[Key.MOVING_LABEL_IS_MAP] = moving.is_map
            if moving.is_map:
                item[Key.MOVING_LABEL_VALUES] = list(values)
            else:
                item[Key.MOVING_MASK_VALUES] = moving.mask_values
        counts = [len(values) if file.is_map else len(file.volume) for file in files.values()]
        if len(set(counts)) > 1:
            problem = f"holds {counts[0]} labels, {data[MOVING.label]} holds {counts[1]}"
            fix = "give both the same labels in the same order, empty where one is not labelled"
            raise bad_file(str(data[FIXED.label]), problem, fix)
        named = len(data.get(Key.LABEL_VALUES) or ())
        if files and not maps and named not in (0, counts[0]):
            problem = f"holds {counts[0]} labels, but {named} label_values are named"
            raise bad_file(record_files(data, files)[0], problem, "name the value of each label, in order, or none")
        item[Key.CASE] = data.get(Key.CASE) or case_name(data[FIXED.image])
        return item

    def _mask(self, path: str, grid: Grid) -> MetaTensor:
        volume = read_label_file(path, grid, may_be_empty=True, strict_headers=self.strict_headers).volume
        counts = (volume.as_tensor() > 0).any(0)[None] ^ self.exclude
        if not bool(counts.any()):
            which = "all voxels are" if self.exclude else "no voxel is"
            problem = f"leaves no voxel that counts: {which} 0.5 or more"
            raise bad_file(path, problem, "check the mask, and whether exclude should be set")
        return MetaTensor(counts, affine=volume.affine, meta={FILE: str(path)})

    def _values(self, record: Record, maps: Mapping[str, LabelFile]) -> list[int]:
        """The values of the channels that the label maps of a record, by file, are split into."""
        named = record.get(Key.LABEL_VALUES)
        wanted = named if self.label_values is None else self.label_values
        found = {path: label_values(file.volume) for path, file in maps.items()}
        if wanted is None:
            if len(found) == 2 and not set.intersection(*(set(values) for values in found.values())):
                shown = " and ".join(f"{', '.join(map(str, values))} in {path}" for path, values in found.items())
                logger.warning("label maps with no value in common: %s; give the same structure the same value", shown)
            return sorted({value for values in found.values() for value in values})
        known = {int(value) for value in (*wanted, *(named or ()))}
        for path, values in found.items():
            if unknown := [str(value) for value in values if value not in known]:
                problem = f"holds the label values {', '.join(unknown)}, but only {sorted(known)} are known"
                raise bad_file(path, problem, "fix the file, or name all its values as label_values")
        return [int(value) for value in wanted]


def names_labels(record: Record) -> bool:
    """Whether a record says what the labels of its maps are, by their values or names."""
    return bool(record.get(Key.LABEL_VALUES) or record.get(Key.LABEL_NAMES))


def other_values(file: str, values: Sequence[int], first: str, known: Sequence[int]) -> RegZooError:
    """What to say of a map whose labels are other values than those of the first map, `known`."""
    here, there = (", ".join(map(str, some)) for some in (values, known))
    problem = (
        f"its labels are the values {here:.80}, but those of {first} are {there:.80}, and labels count by their order"
    )
    return bad_file(file, problem, "list all values of the data set as label_values, for prostate data the gland first")


def label_number(values: Sequence[int] | None, channel: int) -> str:
    """A label in a message: by its value or, among masks without values, by its place."""
    return f"label {values[channel]}" if values else f"label {channel} (from 0)"


def _names_of(record: Record, values: Sequence[int], file: str) -> list[str]:
    """The ``label_names`` of a record for the channels of a label map, `file`.

    Where the record does not name the values, the names belong to all values in ascending order. If the numbers differ,
    it is not known which value is missing; if the values have another order, whether the names follow it.
    """
    names, named = record[Key.LABEL_NAMES], record.get(Key.LABEL_VALUES) or sorted(values)
    if len(names) != len(named) or (not record.get(Key.LABEL_VALUES) and list(values) != named):
        shown = f"the {len(names)} label_names ({', '.join(map(str, names)):.80})"
        problem = f"its labels are the values {', '.join(map(str, values)):.80}, and {shown} do not say which is which"
        raise bad_file(file, problem, "add label_values, the value of each name, in the same order")
    table = {int(value): str(name) for value, name in zip(named, names, strict=True)}
    return [table.get(value, f"label_{value}") for value in values]


def _segment_names(files: Mapping[str, LabelFile], values: Sequence[int] | None) -> list[str]:
    """The names of 3D Slicer's segments for the values of maps, or for masks; none if no file has names."""
    found: dict[int, str] = {}
    for file in files.values():
        for number, name in file.names.items() if file.is_map == (values is not None) else ():
            if found.setdefault(number, name) != name:
                text = "label %d is called %r in the fixed image, but %r in the moving image; number both files alike"
                logger.warning(text, number, found[number], name)
    if values is None:
        values = range(1, max((len(file.volume) for file in files.values()), default=0) + 1)
    return [found.get(value, f"label_{value}") for value in values] if found else []


class AlignPaird(MapTransform):
    """Find the pre-alignment of the pair; images and labels stay as they are.

    Args:
        method: ``header`` trusts the files: both images lie in one world. ``center`` puts the centre of the moving
            field of view on that of the fixed one, for images whose worlds are unrelated. ``label`` puts the centre of
            mass of the first moving label there or, for a pair without a moving label, the centre of the moving field
            of view. ``region`` puts what `regzoo.transforms.FieldOfViewd` found in the moving image, the centre of mass
            of an organ or of the body, on that of the fixed image. ``rigid``, ``similarity`` and ``affine`` register
            the images within the masks of the case, see `regzoo.refinement.linear`, in about 2 seconds per pair. A
            record's own ``align`` takes precedence.

    Adds ``prealignment``: (4, 4) float64, moving world → aligned moving world, RAS mm. A single image gets none.

    Raises:
        RegZooError: an unknown method; for ``header``, the fields of view do not overlap; for ``region``, no
            `FieldOfViewd` came before; or for a registration, an image is constant or too thin.

    Source: ``label``, Bashkanov et al. 2021, section 2.1.
    """

    def __init__(self, method: Alignment = "header") -> None:
        super().__init__([MOVING.image])
        self.method = known_alignment(method)

    def __call__(self, data: Case) -> Case:
        if MOVING.image not in data:
            return data
        item = data.copy()
        method = known_alignment(item.get(Key.ALIGN, self.method))
        fixed, moving = Grid.of(item[FIXED.image]), Grid.of(item[MOVING.image])
        matrix = np.eye(4)
        if method == "region":
            if FIXED.anchor not in item:
                raise RegZooError("align: region needs images in which an organ or the body was found; use center")
            matrix[:3, 3] = np.asarray(item[FIXED.anchor]) - np.asarray(item[MOVING.anchor])
        elif method == "rigid" or method == "similarity" or method == "affine":
            masks = (item.get(side.mask) for side in SIDES)
            found = register_linear(item[FIXED.image], fixed, item[MOVING.image], moving, method, *masks)
            matrix = np.linalg.inv(found)
        elif method == "center":
            matrix[:3, 3] = fixed.center - moving.center
        elif method == "label":
            matrix[:3, 3] = fixed.center - _label_centre(item)
        elif not overlap(fixed, moving):
            files = [file_of(item[side.image], f"the {side.name} image") for side in SIDES]
            apart = np.linalg.norm(fixed.center - moving.center)
            problem = f"does not overlap in space with {files[0]} (centres {apart:.0f} mm apart)"
            raise bad_file(files[1], problem, "set align to center")
        item[Key.ALIGN], item[Key.PREALIGNMENT] = method, torch.as_tensor(matrix)
        return item


def prealignment(item: Case) -> np.ndarray:
    """The pre-alignment of a case, (4, 4), moving world → aligned moving world, RAS mm; the identity without one."""
    matrix = item.get(Key.PREALIGNMENT)
    return np.eye(4) if matrix is None else as_tensor(matrix).cpu().numpy().astype(np.float64)


def aligned(item: Case, moving: MetaTensor) -> MetaTensor:
    """A moving image or label as the pre-alignment of its case places it: the same voxels under another affine."""
    affine = prealignment(item) @ np.asarray(moving.affine.cpu(), dtype=np.float64)
    return MetaTensor(moving.as_tensor(), affine=torch.as_tensor(affine), meta={FILE: file_of(moving)})


def _label_centre(item: Case) -> np.ndarray:
    """The centre of mass of the first moving label or, without a label, the centre of the moving image, RAS mm."""
    label = item.get(MOVING.label)
    if label is None:
        logger.warning("%s: no moving label; its image's centre is aligned instead", item.get(Key.CASE))
        return Grid.of(item[MOVING.image]).center
    name, index = file_of(label, "the moving label"), 0
    if is_map(label):
        values = item[Key.LABEL_VALUES]
        index = next((index for index, box in enumerate(boxes(label, len(values))) if box is not None), 0)
        if index > 0:
            logger.warning("%s: holds no label %d; its label %d is aligned instead", name, values[0], values[index])
    (centre,) = centroids(one_mask(label, index)[None], label.affine).cpu().numpy()
    if not np.isfinite(centre).all():
        raise bad_file(name, "its first label is empty", "draw it, or set align to center")
    return centre


def file_of(image: torch.Tensor, otherwise: str = "") -> str:
    """The file that a `MetaTensor` was read from, for error lines and output names."""
    return str(getattr(image, "meta", {}).get(FILE) or otherwise)


def overlap(fixed: Grid, moving: Grid) -> bool:
    """Whether any voxel of a coarse sampling of one grid lies inside the other."""
    return _reaches(fixed, moving) or _reaches(moving, fixed)


def _reaches(source: Grid, target: Grid) -> bool:
    ticks = [np.linspace(0, n - 1, 17) for n in source.shape]
    voxels = target.to_voxels(source.to_world(np.stack(np.meshgrid(*ticks, indexing="ij"), -1).reshape(-1, 3)))
    return bool(((voxels >= 0) & (voxels <= np.asarray(target.shape) - 1)).all(axis=1).any())
