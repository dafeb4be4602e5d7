"""What the server should answer, from SimpleITK's warp of the label file with the field that a registration saves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from bundle_list import predicts_field
from helpers import to_sitk
from label_server import ROOT
from label_studies import Pair
from regzoo.inference import Registrar
from regzoo.spatial import Grid
from regzoo.spatial.carry import subdivisions

#: How near to the border of a label two interpolations may disagree, in parts of its value.
NEAR = 0.02


@cache
def registrar(bundle: str, align: str | None = None) -> Registrar:
    """The bundle itself, as released."""
    return Registrar(ROOT / "bundles" / bundle, device="cpu", **({"align": align} if align else {}))


def register(bundle: str, pair: Pair, folder: Path, align: str | None = None, label: Path | None = None) -> None:
    """Register the files of a pair from Python and save what there is."""
    result = registrar(bundle, align).register(pair.fixed_file, pair.moving_file, label or pair.label_file)
    result.save(folder, "label,image,field" if predicts_field(bundle) else "label")


def masks_of(labels: np.ndarray) -> dict[int, np.ndarray]:
    """The masks of a label file by the value that the answer has for them: masks along the last axis get 1, 2, …."""
    if labels.ndim == 4:
        return {index + 1: labels[..., index] > 0 for index in range(labels.shape[3])}
    return {int(value): labels == value for value in np.unique(labels[labels != 0])}


def paint(masks: Mapping[int, np.ndarray]) -> np.ndarray:
    """One map of masks; where they overlap the smallest shows."""
    shape = next(iter(masks.values())).shape
    shown = np.zeros(shape, int)
    for value, mask in sorted(masks.items(), key=lambda entry: -entry[1].sum()):
        shown[mask > 0] = value
    return shown


def warped(
    volume: np.ndarray, affine: np.ndarray, field: Path, fixed: Path, parts: tuple[int, int, int] = (1, 1, 1)
) -> np.ndarray:
    """A volume through a saved field, by SimpleITK: (X, Y, Z) on the fixed grid, linear interpolation, 0 beyond it.

    A voxel is the mean over as many parts of it along each axis.
    """
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(field), sitk.sitkVectorFloat64))
    moving = to_sitk(volume.astype(np.float32), affine)
    grid = nib.load(fixed)
    fine = grid.affine @ np.diag([*(1 / np.array(parts)), 1.0])
    fine[:3, 3] += grid.affine[:3, :3] @ ((1 / np.array(parts) - 1) / 2)
    shape = tuple(n * k for n, k in zip(grid.shape[:3], parts, strict=True))
    reference = to_sitk(np.zeros(shape, np.float32), fine)
    found = sitk.Resample(moving, reference, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    values = np.swapaxes(sitk.GetArrayFromImage(found), 0, 2)
    return values.reshape([n for pair in zip(grid.shape[:3], parts, strict=True) for n in pair]).mean(axis=(1, 3, 5))


def warped_label_map(label_file: Path, field: Path, fixed: Path) -> tuple[np.ndarray, np.ndarray]:
    """The label map that a field gives, and where it is sure: not at borders of labels."""
    label = nib.load(label_file)
    labels = np.asarray(label.dataobj)
    grid = nib.load(fixed)
    # Where fixed voxels are coarser, labels are the mean over parts that are not.
    parts = subdivisions(Grid(labels.shape[:3], label.affine), Grid(grid.shape[:3], grid.affine))
    values = {value: warped(mask, label.affine, field, fixed, parts) for value, mask in masks_of(labels).items()}
    if labels.ndim == 4:
        shown = paint({value: soft >= 0.5 for value, soft in values.items()})
        unsure = np.any([np.abs(soft - 0.5) < NEAR for soft in values.values()], axis=0)
    else:  # every voxel goes to the likeliest value, the background being one of them
        background = 1 - np.sum(list(values.values()), axis=0)
        stack = np.stack([background, *values.values()])
        shown = np.array([0, *values])[stack.argmax(axis=0)]
        first, second = np.sort(stack, axis=0)[:-3:-1]
        unsure = first - second < NEAR
    return shown, ~unsure


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Overlap of two masks."""
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())
