"""Computed tomography: Hounsfield units, and where the organ or the body of interest lies."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from regzoo.case import FIXED, IMAGE_KEYS, SIDES, Case, Key, Side
from regzoo.errors import bad_file
from regzoo.spatial import Grid, as_tensor
from regzoo.spatial.held import one_mask
from regzoo.spatial.volumes import FILE
from regzoo.transforms.load import file_of
from scipy import ndimage

logger = logging.getLogger(__name__)

#: The entry of an image's `meta` that says that the image is in Hounsfield units, ``HU``.
UNITS = "units"
#: Added by scanners and converters that store no negative numbers.
OFFSET = 1024.0
#: The error of a negative number that is read as an unsigned one of 16 bits.
WRAPPED = 65536
#: Values below this, Hounsfield units, are padding and count as air: no tissue and no noise of air goes so low.
PADDING, AIR = -1100.0, -1000.0
#: Every CT has values between this and fat, from skin and bowel at least, unless it is stored 1024 too high.
LUNG = -900.0
#: Least Hounsfield units of the body.
SOLID = -500.0
#: Every abdomen on a CT has voxels below this, Hounsfield units.
FAT = -50.0
#: Approximate voxel size of the coarse copy of an image on which the body is sought, mm.
COARSE = 4.0
#: Things thinner than twice this, mm, are not the body: the table, blankets, cables.
THIN = 8.0
#: Two bodies whose heights differ by more than this factor do not show the same part.
TALLER = 1.4


class HounsfieldUnitsd(MapTransform):
    """Make sure that the images are in Hounsfield units and that voxels without a measurement count as air.

    It corrects each of these, with a warning that names the file:

    - negative numbers stored unsigned in 16 bits, so that they are 65536 too high;
    - values 1024 too high, as written by scanners and converters that store no negative numbers. A CT counts as one of
      these if it has air near 0 or below (≤ 50), hardly anything from −900 to −50 (≤ 3 %), and its most frequent value
      above 300, fat or soft tissue, lies from 900 to 1150;
    - padding, which becomes air, −1000: values below −1100, and NaN or infinity outside the body.

    If all corners have one value of a tissue, such as 0, it only warns.
    It passes over images that it has seen before.

    Args:
        keys: of the images.

    Raises:
        RegZooError: an image is not in Hounsfield units, for example windowed, or holds NaN inside the body.
    """

    def __init__(self, keys: Sequence[str] = IMAGE_KEYS) -> None:
        super().__init__(keys, allow_missing_keys=True)

    def __call__(self, data: Case) -> Case:
        item: Any = data.copy()
        for key in self.key_iterator(data):
            image = item[key]
            if image.meta.get(UNITS) == "HU":
                continue
            name = file_of(image, key)
            values, notes = hounsfield_units(as_tensor(image)[0].cpu().numpy(), Grid.of(image), name)
            if notes:
                logger.warning("%s: %s", name, "; ".join(notes))
            meta = {FILE: name, UNITS: "HU"}
            item[key] = MetaTensor(torch.from_numpy(values)[None], affine=image.affine, meta=meta)
        return item


def hounsfield_units(values: np.ndarray, grid: Grid, name: str) -> tuple[np.ndarray, list[str]]:
    """A CT (X, Y, Z) in Hounsfield units without padding, and the corrections made, see `HounsfieldUnitsd`.

    Returns the given array itself if there are no corrections. Errors name the file, `name`.
    """
    notes: list[str] = []
    known = np.isfinite(values)
    whole = bool(known.all())
    high = float(values.max() if whole else values[known].max())
    if WRAPPED // 2 <= high < WRAPPED:
        values = np.where(values >= WRAPPED // 2, values - WRAPPED, values)
        notes.append("negative numbers stored unsigned: 65536 was subtracted from values above 32767")
    finite = values if whole else values[known]
    low, high = float(finite.min()), float(finite.max())
    if _stored_unsigned(finite):
        values = values - np.float32(OFFSET)
        notes.append("Hounsfield units stored 1024 too high: 1024 was subtracted")
    elif low >= FAT or high >= WRAPPED // 2:
        problem = f"is not in Hounsfield units: its values go from {low:g} to {high:g}"
        raise bad_file(name, problem, "export the CT again, without a window")
    padding = values < PADDING
    if not whole:
        _check_body_is_known(values, known, grid, name)
        padding |= ~known
    if padding.any():
        lowest = float(values[known].min())
        kinds = [f"down to {lowest:g}"] * (lowest < PADDING) + ["NaN or infinity"] * (not whole)
        notes.append(f"{int(padding.sum())} voxels of padding ({', '.join(kinds)}) count as air, {AIR:g} HU")
        values = np.where(padding, np.float32(AIR), values)
    corners = np.unique(values[tuple(slice(None, None, n - 1) for n in values.shape)])
    if len(corners) == 1 and corners[0] > SOLID:
        # It may be a tissue, so it is not changed.
        notes.append(f"its corners all hold {corners[0]:g} HU; if that is padding, replace it by {AIR:g}")
    return values, notes


def _stored_unsigned(values: np.ndarray) -> bool:
    tissue = values[values > 300]
    between = np.count_nonzero((values > LUNG) & (values < FAT))
    inside = np.count_nonzero(values > LUNG)
    if np.mean(values <= 50) < 0.01 or tissue.size < 0.02 * inside or between > 0.03 * inside or tissue.size == 0:
        return False
    counts, edges = np.histogram(tissue, bins=np.arange(300, 4100, 25))
    return bool(900 <= edges[counts.argmax()] + 12.5 <= 1150)


def _check_body_is_known(values: np.ndarray, known: np.ndarray, grid: Grid, name: str) -> None:
    """Raise `RegZooError` if voxels without a number lie in the body: enclosed by it in an axial slice."""
    axis = int(np.argmax(nib.io_orientation(grid.affine)[:, 0] == 2))
    solid, missing = (np.moveaxis(mask, axis, 0) for mask in (known & (values > SOLID), ~known))
    count = sum(
        int(np.count_nonzero(ndimage.binary_fill_holes(slice_) & gaps))
        for slice_, gaps in zip(solid, missing, strict=True)
        if gaps.any()
    )
    if count:
        problem = f"holds NaN or infinity in {count} voxels inside the body"
        raise bad_file(name, problem, "export the CT again, or fill them in from their neighbours")


class Region(NamedTuple):
    """The place of an organ or a body.

    Attributes:
        center: the middle of the box round it along the axes of its image, RAS mm.
        extent: the box's sides along the axes nearest to R, A and S, mm.
        centroid: its centre of mass, RAS mm.
    """

    center: np.ndarray
    extent: np.ndarray
    centroid: np.ndarray


class FieldOfViewd(MapTransform):
    """Find the centre of the network's field of view: that of an organ or, without it, of the body.

    The organ is a label of the fixed image, found by its value in the label map. The paper crops both images round the
    liver with a margin and stretches each crop to the matrix size, so that the voxels of every case have another size.
    Here the field of view is only centred and has the same size in mm for all cases. Displacements, distances,
    penalties and the limits of the augmentation are therefore comparable in mm, shapes are not distorted, and an image
    with its label gets the same voxels as without.

    Adds ``view_center`` (3,), RAS mm, for `ResamplePaird`; for an organ ``view_extent`` (3,), its box and the margin,
    mm; and for pairs ``fixed_anchor`` and ``moving_anchor`` (3,), RAS mm in the files' own worlds, for
    ``AlignPaird("region")``: the centres of mass of the organ if both images have it, otherwise of both bodies.

    Args:
        label: value of the organ in the label maps; None for the body.
        margin: round the organ, mm. A warning says where the network's field of view is smaller than that.

    Source: Pérez de Frutos et al. 2023, section "Preprocessing", and its code (margin 40 mm).
    """

    def __init__(self, label: int | None = 6, margin: float = 20.0) -> None:
        super().__init__(IMAGE_KEYS, allow_missing_keys=True)
        self.label = label
        self.margin = float(margin)

    def __call__(self, data: Case) -> Case:
        item = data.copy()
        sides = [side for side in SIDES if side.image in data]
        organs = {side: self._organ(data, side) for side in sides}
        fixed = organs[FIXED]
        if fixed is not None:
            item[Key.VIEW_EXTENT] = fixed.extent + 2 * self.margin
        found = {side: organ for side, organ in organs.items() if organ is not None}
        if len(found) < len(sides):
            found = {side: body_region(data[side.image]) for side in sides}
            _compare_heights(data, found)
        item[Key.VIEW_CENTER] = (fixed or found[FIXED]).center
        if len(sides) == 2:
            for side in sides:
                item[side.anchor] = found[side].centroid
        return item

    def _organ(self, item: Case, side: Side) -> Region | None:
        """Where the organ is on one side, None where it is not labelled."""
        label, values = item.get(side.label), list(item.get(Key.LABEL_VALUES) or [])
        if self.label is None or label is None or not values:
            return None
        mask = one_mask(label, values.index(self.label)).cpu().numpy() > 0 if self.label in values else None
        if mask is None or not mask.any():
            name = file_of(label, f"the {side.name} label")
            logger.warning("%s: nothing has the value %d; the body is sought instead", name, self.label)
            return None
        return _region(mask, Grid.of(label))


def body_region(image: MetaTensor) -> Region:
    """The place of the body on a CT: the largest connected thing that is not thin, without table and blankets.

    Args:
        image: (1, X, Y, Z), Hounsfield units, with affine voxel → RAS mm.

    Returns:
        The place of the body, or of the whole image if no body is found.
    """
    grid = Grid.of(image)
    steps = [max(1, round(COARSE / mm)) for mm in grid.spacing]
    solid = as_tensor(image)[0, :: steps[0], :: steps[1], :: steps[2]].cpu().numpy() > SOLID
    spacing = grid.spacing * steps
    # Distances do not grow beyond the border, where a body goes on.
    thick = ndimage.distance_transform_edt(solid, sampling=spacing) > THIN
    parts, count = ndimage.label(thick)
    if count == 0:
        logger.warning("%s: no body is found on it; its whole field of view is used", file_of(image, "an image"))
        return _region(np.ones(grid.shape, dtype=bool), grid)
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    affine = grid.affine @ np.diag([*steps, 1.0])
    return _region(largest, Grid(largest.shape, affine), grow=THIN)


def _region(mask: np.ndarray, grid: Grid, grow: float = 0.0) -> Region:
    """The place of a mask (X, Y, Z); its box grows by `grow` mm on all sides, up to the border of the grid."""
    low, high, centroid = np.zeros(3), np.zeros(3), np.zeros(3)
    for axis in range(3):
        profile = mask.sum(axis=tuple(other for other in range(3) if other != axis))
        places = np.flatnonzero(profile)
        low[axis], high[axis] = places[0], places[-1]
        centroid[axis] = np.average(np.arange(len(profile)), weights=profile)
    low = np.maximum(low - grow / grid.spacing, 0)
    high = np.minimum(high + grow / grid.spacing, np.asarray(grid.shape) - 1)
    extent = np.zeros(3)
    extent[nib.io_orientation(grid.affine)[:, 0].astype(int)] = (high - low + 1) * grid.spacing
    return Region(grid.to_world((low + high) / 2), extent, grid.to_world(centroid))


def _compare_heights(item: Case, bodies: dict[Side, Region]) -> None:
    """Warn if one image shows more of the body than the other: their middles then do not correspond."""
    heights = [box.extent[2] for box in bodies.values()]
    if max(heights) > TALLER * min(heights):
        text = "%s: shows %.0f mm of a body, its moving image %.0f mm: their middles may not correspond; %s"
        fix = "label the organ in both, crop them alike, or set align to another method"
        logger.warning(text, file_of(item[FIXED.image], "the fixed image"), *heights, fix)
