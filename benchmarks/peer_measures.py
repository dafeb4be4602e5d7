"""How good a registration is: measured by SimpleITK, SciPy and NumPy from its field, alike for every tool.

Points and displacements are in mm, LPS, as ITK has them. A field leads from fixed voxels to moving points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from peer_pairs import Facts
from peer_tools import as_transform, grid_points
from scipy import ndimage

IDENTITY = sitk.Transform(3, sitk.sitkIdentity)


def read_field(path: Path) -> sitk.Image:
    """A displacement field in float64; NIfTI's 5-D vector images are read as vectors."""
    return sitk.ReadImage(str(path), sitk.sitkVectorFloat64)


def on_grid(field: sitk.Image, grid: sitk.Image) -> sitk.Image:
    """A field on another grid; beyond its own, the displacement of its border."""
    if (field.GetSize(), field.GetOrigin()) == (grid.GetSize(), grid.GetOrigin()):
        return field
    return sitk.Resample(field, grid, IDENTITY, sitk.sitkLinear, 0.0, sitk.sitkVectorFloat64, True)


def warp(image: sitk.Image, field: sitk.Image, nearest: bool = False, outside: float = 0.0) -> sitk.Image:
    """A moving image on the grid of a field."""
    transform = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))  # takes the copy
    how = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    return sitk.Resample(image, field, transform, how, outside, image.GetPixelID())


def read_masks(path: Path, values: Sequence[int]) -> list[sitk.Image]:
    """The masks of some labels: values of a label map, or channels (from 0) of a 4-D file."""
    image = sitk.ReadImage(str(path))
    if image.GetDimension() == 4:
        size = [*image.GetSize()[:3], 0]
        return [sitk.Extract(image, size, [0, 0, 0, value]) > 0 for value in values]
    return [image == value for value in values]


def overlap_measures(fixed: Sequence[sitk.Image], warped: Sequence[sitk.Image]) -> dict[str, float]:
    """Means over the labels of the Dice coefficient and HD95, mm; a label that has left the fixed grid has Dice 0."""
    rows = [one_label(*pair) for pair in zip(fixed, warped, strict=True)]
    dice, hausdorff = (np.array(column) for column in zip(*rows, strict=True))
    return {"dice": float(dice.mean()), "hd95_mm": mean_of_known(hausdorff), "lost": float(np.isnan(hausdorff).sum())}


def mean_of_known(values: np.ndarray) -> float:
    """The mean without NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def centroid_distance(fixed: sitk.Image, warped: sitk.Image) -> float:
    """Between the centroids of two masks on one grid, mm; NaN where one is empty."""
    places = [np.array(sitk.GetArrayViewFromImage(mask).nonzero()) for mask in (fixed, warped)]
    if not all(place.size for place in places):
        return math.nan
    points = [fixed.TransformContinuousIndexToPhysicalPoint(place.mean(1)[::-1].tolist()) for place in places]
    return math.dist(*points)


def one_label(fixed: sitk.Image, warped: sitk.Image) -> tuple[float, float]:
    """Dice and HD95 (mm) of two masks on one grid."""
    a, b = (sitk.GetArrayViewFromImage(mask) > 0 for mask in (fixed, warped))
    if not a.any() or not b.any():
        return 0.0, math.nan
    dice = 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))
    (box,) = ndimage.find_objects((a | b).astype(np.uint8))
    around = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
    return dice, hd95(a[around], b[around], fixed.GetSpacing()[::-1])


def hd95(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> float:
    """The larger 95th percentile of the distances from one surface to the other; a surface is a mask's outer voxels."""
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    away = [ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    return float(max(np.percentile(away[1][surfaces[0]], 95), np.percentile(away[0][surfaces[1]], 95)))


def determinant(field: sitk.Image) -> np.ndarray:
    """det J of a field (Z, Y, X): central differences, one-sided at the border.

    SimpleITK's own filter takes the derivatives along the axes of the grid for those along the axes of the world.
    """
    array = sitk.GetArrayFromImage(field)  # (Z, Y, X, 3)
    along = np.stack([np.gradient(array, axis=axis) for axis in (2, 1, 0)], axis=-1)  # du / d index x, y, z
    matrix = np.asarray(field.GetDirection()).reshape(3, 3) * np.asarray(field.GetSpacing())
    return np.asarray(np.linalg.det(along @ np.linalg.inv(matrix) + np.eye(3)))


def deformation_measures(field: sitk.Image) -> dict[str, float]:
    """Voxels that fold (det J ≤ 0), %, and the standard deviation of log det J over those that do not."""
    jacobian = determinant(field)
    positive = jacobian[jacobian > 0]
    spread = float(np.log(positive).std()) if positive.size else math.nan
    return {"folds_percent": 100 * float((~(jacobian > 0)).mean()), "sdlogj": spread}


def true_error(field: sitk.Image, truth: sitk.Image, masks: Sequence[sitk.Image]) -> float:
    """Mean distance, mm, of where a field and the true one lead the voxels of the labels."""
    inside = np.any([sitk.GetArrayViewFromImage(mask) > 0 for mask in masks], axis=0)
    there, true = (sitk.GetArrayViewFromImage(f)[inside] for f in (on_grid(field, masks[0]), on_grid(truth, masks[0])))
    return float(np.linalg.norm(there - true, axis=-1).mean())


def disagreement(field: sitk.Image, moving: sitk.Image, own: sitk.Image, affine: np.ndarray) -> float:
    """How far a tool's own warped image is from the moving image through its field: mean difference, % of the range.

    Compared one voxel and more inside both images: beyond, every tool has a rule of its own.

    Args:
        field: of the whole transformation, on the fixed grid.
        moving: the moving image.
        own: the image that the tool warped.
        affine: a transformation that the tool did not see: it was given the moving image resampled with it.
    """
    start = as_transform(affine)
    points = sitk.GetArrayFromImage(field) + grid_points(field) - affine[:3, 3]
    rest = sitk.GetImageFromArray(points @ np.linalg.inv(affine[:3, :3]).T - grid_points(field), isVector=True)
    rest.CopyInformation(field)
    inner = sitk.Image(moving.GetSize(), sitk.sitkUInt8)
    inner.CopyInformation(moving)
    inner = sitk.Cast(sitk.BinaryErode(inner + 1, [1] * 3, sitk.sitkBox, 0, 1, False), sitk.sitkFloat32)
    if not np.array_equal(affine, np.eye(4)):
        moving, inner = (sitk.Resample(image, field, start, sitk.sitkLinear, 0.0) for image in (moving, inner))
    seen = sitk.GetArrayFromImage(warp(inner, rest)) > 0.999
    seen[[0, -1]] = seen[:, [0, -1]] = seen[:, :, [0, -1]] = False
    if not seen.any():
        return math.nan
    images = [sitk.GetArrayFromImage(image)[seen] for image in (warp(moving, rest), own)]
    values = sitk.GetArrayViewFromImage(moving)
    return 100 * float(np.abs(images[0] - images[1]).mean() / (values.max() - values.min()))


def measure(pair: Path, facts: Facts, field: sitk.Image) -> dict[str, float]:
    """All measures of a field.

    Args:
        pair: folder with ``fixed_label.nii.gz``, ``moving_label.nii.gz`` and, if it is known, ``truth.nii.gz``.
        facts: which labels are measured.
        field: on the grid of the fixed image.
    """
    values = sorted({*facts.labels, *facts.landmarks})
    fixed = dict(zip(values, read_masks(pair / "fixed_label.nii.gz", values), strict=True))
    moving = dict(zip(values, read_masks(pair / "moving_label.nii.gz", values), strict=True))
    there = on_grid(field, fixed[values[0]])
    warped = {value: warp(mask, there, nearest=True) for value, mask in moving.items()}
    found = overlap_measures([fixed[value] for value in facts.labels], [warped[value] for value in facts.labels])
    apart = np.array([centroid_distance(fixed[value], warped[value]) for value in facts.landmarks])
    found["tre_mm"] = math.sqrt(mean_of_known(apart**2)) if facts.reduction == "rms" else mean_of_known(apart)
    found |= deformation_measures(field)
    if (pair / "truth.nii.gz").is_file():
        found["error_mm"] = true_error(field, read_field(pair / "truth.nii.gz"), list(fixed.values()))
    return found
