"""Computed tomography: Hounsfield units, and where the organ or the body of interest lies."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import MapTransform
from regzoo.datasets.records import IMAGE_KEYS
from regzoo.errors import bad_file
from regzoo.spatial import Grid, plain
from regzoo.spatial.volumes import FILE
from regzoo.transforms.load import SIDES, file_of
from scipy import ndimage

logger = logging.getLogger(__name__)

#: Added by scanners and converters that store no negative numbers.
OFFSET = 1024.0
#: Every abdomen on a CT has voxels below this, Hounsfield units.
FAT = -50.0
#: What is sought on a coarse copy of an image, mm: voxels of about this size.
COARSE = 4.0
#: What is thinner than twice this is not the body: the table, blankets, cables, mm.
THIN = 8.0
#: How many times as high one body may be as the other and still be taken for the same part.
TALLER = 1.4


class HounsfieldUnitsd(MapTransform):
    """Make sure that the images are in Hounsfield units; nothing is cut off.

    Values that are nowhere as low as fat, but for what interpolation leaves below 0, are either stored unsigned, 1024
    too high, which is undone with a warning, or no Hounsfield units. They count as the former if there is air near 0
    (≤ 50) and the most frequent value above 300, fat or soft tissue, lies from 900 to 1150.

    Raises:
        RegZooError: an image is not in Hounsfield units, for example windowed.
    """

    def __init__(self) -> None:
        super().__init__(IMAGE_KEYS, allow_missing_keys=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            values = plain(image)
            if float(values.min()) < FAT:
                continue
            name = file_of(image, str(key))
            if not _stored_unsigned(values.cpu().numpy()):
                problem = f"is not in Hounsfield units: its values go from {values.min():g} to {values.max():g}"
                raise bad_file(name, problem, "export the CT anew, without a window")
            logger.warning("%s: Hounsfield units stored unsigned; 1024 was subtracted", name)
            item[key] = MetaTensor(values - OFFSET, affine=image.affine, meta={FILE: name})
        return item


def _stored_unsigned(values: np.ndarray) -> bool:
    tissue = values[values > 300]
    if np.mean(values <= 50) < 0.01 or tissue.size == 0:
        return False
    counts, edges = np.histogram(tissue, bins=np.arange(300, 4100, 25))
    return 900 <= edges[counts.argmax()] + 12.5 <= 1150


class Region(NamedTuple):
    """Where something lies.

    Attributes:
        center: the middle of the box round it along the axes of its image, RAS mm.
        extent: the box's sides along the axes nearest to R, A and S, mm.
        centroid: its centre of mass, RAS mm.
    """

    center: np.ndarray
    extent: np.ndarray
    centroid: np.ndarray


class FieldOfViewd(MapTransform):
    """Find what the network's field of view is to be centred on: an organ, or without it the body.

    The organ is a label of the fixed image, found by its value in the label map; the paper crops both images round the
    liver and a margin and stretches each crop to the matrix size, so the voxels of every case have another size. Here
    the field of view has the same size in mm for all cases, and is centred alone: displacements, the limits of the
    augmentation, distances and penalties are in mm for every case alike, shapes are not distorted, and an image with
    its label gets the voxels that it would get without.

    Adds ``view_center`` (3,), RAS mm, for `ResamplePaird`, where an organ was found ``view_extent`` (3,), its box and
    the margin, mm, and for pairs ``fixed_anchor`` and ``moving_anchor`` (3,), RAS mm in the files' own worlds, for
    ``AlignPaird("region")``: the centres of mass of the organ if both images have it, otherwise of both bodies.

    Args:
        label: value of the organ in the label maps; None for the body.
        margin: round the organ, mm. A warning says where the network's field of view is smaller than that.
        threshold: least Hounsfield units of a body.

    Source: Pérez de Frutos et al. 2023, section "Preprocessing", and its code (margin 40 mm).
    """

    def __init__(self, label: int | None = 6, margin: float = 20.0, threshold: float = -500.0) -> None:
        super().__init__(IMAGE_KEYS, allow_missing_keys=True)
        self.label = label
        self.margin = float(margin)
        self.threshold = float(threshold)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        sides = [side for side in SIDES if f"{side}_image" in item]
        organs = {side: self._organ(item, side) for side in sides}
        fixed = organs["fixed"]
        if fixed is not None:
            item["view_extent"] = fixed.extent + 2 * self.margin
        if fixed is not None and all(organs.values()):
            found = {side: organ for side, organ in organs.items() if organ is not None}
            item["view_center"] = fixed.center
        else:
            found = {side: body_region(item[f"{side}_image"], self.threshold) for side in sides}
            item["view_center"] = (fixed or found["fixed"]).center
            _compare_heights(item, found)
        if len(sides) == 2:
            item |= {f"{side}_anchor": found[side].centroid for side in sides}
        return item

    def _organ(self, item: Mapping[Hashable, Any], side: str) -> Region | None:
        """Where the organ is on one side, None where it is not labelled."""
        label = item.get(f"{side}_label")
        values = list(item.get("label_values") or [])
        if self.label is None or label is None or not values:
            return None
        mask = plain(label)[values.index(self.label)].cpu().numpy() > 0 if self.label in values else None
        if mask is None or not mask.any():
            name = file_of(label, f"the {side} label")
            logger.warning("%s: nothing has the value %d; the body is sought instead", name, self.label)
            return None
        return _region(mask, Grid.of(label))


def body_region(image: MetaTensor, threshold: float = -500.0) -> Region:
    """Where the body is on a CT: the largest connected thing that is not thin, without table and blankets.

    Args:
        image: (1, X, Y, Z), Hounsfield units, with affine voxel → RAS mm.
        threshold: least Hounsfield units of the body.

    Returns:
        Where it is, or if nothing is found, where the whole image is.
    """
    grid = Grid.of(image)
    steps = [max(1, round(COARSE / mm)) for mm in grid.spacing]
    solid = plain(image)[0, :: steps[0], :: steps[1], :: steps[2]].cpu().numpy() > threshold
    spacing = grid.spacing * steps
    # Distances do not grow beyond the border, where a body goes on.
    thick = ndimage.distance_transform_edt(solid, sampling=spacing) > THIN
    parts, count = ndimage.label(thick)
    if count == 0:
        logger.warning("%s: no body is found on it; its whole field of view is used", file_of(image, "an image"))
        return _region(np.ones(grid.shape, dtype=bool), grid)
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    affine = grid.affine @ np.diag([*steps, 1.0])
    return _region(largest, Grid(tuple(largest.shape), affine), grow=THIN)


def _region(mask: np.ndarray, grid: Grid, grow: float = 0.0) -> Region:
    """Where a mask (X, Y, Z) is, its box on all sides larger by some mm as far as the grid reaches."""
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


def _compare_heights(item: Mapping[Hashable, Any], bodies: Mapping[str, Region]) -> None:
    """Warn if one image shows more of the body than the other: their middles then do not correspond."""
    heights = [box.extent[2] for box in bodies.values()]
    if max(heights) > TALLER * min(heights):
        name = file_of(item["fixed_image"], "the fixed image")
        logger.warning(
            "%s: shows %.0f mm of a body, its moving image %.0f mm: their middles may not correspond; label the organ "
            "in both, crop them alike, or align them otherwise (--align)",
            name,
            *heights,
        )
