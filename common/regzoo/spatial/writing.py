"""Write NIfTI files that every reader places at the same position."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np
from regzoo.errors import bad_file
from regzoo.files import atomic_path
from regzoo.spatial.grid import Grid

#: Largest allowed distance between the sform and the qform of a written file at any corner, mm.
SAME_PLACE = 1e-3


def write_nifti(
    path: str | os.PathLike[str], array: np.ndarray, affine: np.ndarray, intent: int | str | None = None
) -> None:
    """Write a NIfTI file atomically.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        array: voxels, written in their own dtype without scaling.
        affine: 4×4, voxel → RAS mm, axes at right angles; written as both sform and qform (code 1) so that every
            reader agrees. If the qform, which is less precise, differs by more than 1e-3 mm, its code is 0.
        intent: NIfTI intent code, e.g. 1007 for a vector field.

    Raises:
        RegZooError: the axes are not at right angles, which a qform and ITK cannot hold; nothing is written.
    """
    affine = np.asarray(affine, dtype=np.float64)
    grid = Grid((array.shape[0], array.shape[1], array.shape[2]), affine)
    if not grid.distance(grid.straightened()) <= SAME_PLACE:
        raise bad_file(path, "would lie on a sheared grid, which ITK cannot hold", "resample to axes at right angles")
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if not grid.distance(Grid(grid.shape, image.get_qform())) <= SAME_PLACE:
        image.header["qform_code"] = 0
    if intent is not None:
        image.header.set_intent(intent)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
