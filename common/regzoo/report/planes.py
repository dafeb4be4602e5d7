"""The three anatomical planes of a volume, as radiologists view them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np


@dataclass(frozen=True)
class Plane:
    """One plane of volumes whose axes run to the patient's left, anterior and superior.

    Attributes:
        name: axial, coronal or sagittal.
        right: array axis along the width of the picture.
        up: array axis along its height, upwards.
        cut: array axis perpendicular to the plane.
        mirrored: whether the axis `right` runs to the left, which puts anterior on the left of a sagittal picture.
        edges: letters of the left, right, bottom and top edge.
    """

    name: str
    right: int
    up: int
    cut: int
    mirrored: bool
    edges: tuple[str, str, str, str]

    def of(self, volume: np.ndarray, position: Sequence[int] | np.ndarray) -> np.ndarray:
        """The plane through `position` (voxels): (..., X, Y, Z) → (..., width, height)."""
        return volume.take(int(position[self.cut]), axis=volume.ndim - 3 + self.cut)


#: The patient's right is on the left of axial and coronal pictures (radiological convention).
PLANES = (
    Plane("axial", 0, 1, 2, False, ("R", "L", "P", "A")),
    Plane("coronal", 0, 2, 1, False, ("R", "L", "I", "S")),
    Plane("sagittal", 1, 2, 0, True, ("A", "P", "I", "S")),
)


class Orientation:
    """How to reorder the array axes of a grid so that they run to the patient's left, anterior and superior.

    Args:
        affine: of the grid, voxel → RAS mm; an oblique axis counts as the nearest anatomical one.

    Attributes:
        change: orientation array of nibabel, input axis → (output axis, ±1).
        source: the input axis that becomes each output axis, shape (3,).
    """

    def __init__(self, affine: np.ndarray) -> None:
        wanted = nib.orientations.axcodes2ornt("LAS")
        self.change = nib.orientations.ornt_transform(nib.io_orientation(affine), wanted)
        self.source = np.argsort(self.change[:, 0])

    def volume(self, volume: np.ndarray) -> np.ndarray:
        """Reorder a volume (..., X, Y, Z)."""
        last = list(range(-3, 0))
        turned = nib.apply_orientation(np.moveaxis(volume, last, [0, 1, 2]), self.change)
        return np.moveaxis(turned, [0, 1, 2], last)
