"""Write images that every reader places at the same position."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from regzoo.errors import bad_file
from regzoo.files import atomic_path
from regzoo.spatial.grid import Grid
from regzoo.spatial.itk_files import itk_name, lay, quiet

#: Largest allowed distance between the sform and the qform of a written file at any corner, mm.
SAME_PLACE = 1e-3
#: Suffixes of the files that `write_image` writes.
IMAGE_FORMS = (".nii", ".nii.gz", ".nrrd", ".mha")


def form_of(path: object) -> str:
    """The suffix for a result in the form of an input: ``.seg.nrrd``, ``.nrrd`` or ``.mha``, otherwise ``.nii.gz``."""
    if str(path).lower().endswith(".seg.nrrd"):
        return ".seg.nrrd"
    forms = {".nrrd": ".nrrd", ".nhdr": ".nrrd", ".mha": ".mha", ".mhd": ".mha"}
    return forms.get(Path(str(path)).suffix.lower(), ".nii.gz")


def write_image(
    path: str | os.PathLike[str], array: np.ndarray, affine: np.ndarray, entries: Mapping[str, str] | None = None
) -> None:
    """Write a volume atomically in the form that the suffix says: (X, Y, Z, …) NIfTI, (X, Y, Z) NRRD or MetaImage.

    Other arguments and errors as for `write_nifti`.

    Args:
        entries: further entries of the header of an NRRD file.
    """
    if form_of(path) == ".nii.gz":
        write_nifti(path, array, affine)
        return
    import itk

    image = itk.image_view_from_array(np.ascontiguousarray(array.T))
    for key, value in (entries or {}).items():
        image[key] = value
    write_itk_image(path, image, Grid(array.shape, affine))


def write_itk_image(path: str | os.PathLike[str], image: Any, grid: Grid) -> None:
    """Place an image of ITK on a grid and write it atomically, compressed; errors as for `write_nifti`."""
    import itk

    _check_straight(path, grid)
    lay(image, grid)
    with atomic_path(path) as temporary, quiet():
        itk.imwrite(image, itk_name(temporary), compression=True)


def write_nifti(
    path: str | os.PathLike[str], array: np.ndarray, affine: np.ndarray, intent: int | None = None, about: str = ""
) -> None:
    """Write a NIfTI file atomically.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        array: voxels, written in their own dtype without scaling.
        affine: 4×4, voxel → RAS mm, axes at right angles; written as both sform and qform (code 1) so that every
            reader agrees. If the qform, which is less precise, differs by more than 1e-3 mm, its code is 0.
        intent: NIfTI intent code, e.g. 1007 for a vector field.
        about: description, at most 79 letters.

    Raises:
        RegZooError: another suffix, or the axes are not at right angles, which a qform and ITK cannot hold; nothing is
            written.
    """
    if not str(path).lower().endswith((".nii", ".nii.gz")):
        raise bad_file(path, "is not the name of a NIfTI file", "let it end in .nii.gz")
    affine = np.asarray(affine, dtype=np.float64)
    grid = Grid(array.shape[:3], affine)
    _check_straight(path, grid)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if not grid.distance(Grid(grid.shape, image.get_qform())) <= SAME_PLACE:
        image.header["qform_code"] = 0
    image.header["descrip"] = about
    if intent is not None:
        image.header.set_intent(intent)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def _check_straight(path: str | os.PathLike[str], grid: Grid) -> None:
    if not grid.distance(grid.straightened()) <= SAME_PLACE:
        raise bad_file(path, "would lie on a sheared grid, which ITK cannot hold", "resample to axes at right angles")
