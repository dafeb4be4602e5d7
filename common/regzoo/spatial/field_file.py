"""Read displacement fields of several programs, each with its own convention, as RAS mm."""

from __future__ import annotations

from os import PathLike

import nibabel as nib
import numpy as np
from regzoo.errors import bad_file
from regzoo.spatial.grid import LPS_SIGNS, Grid
from regzoo.spatial.reading import read_volume
from regzoo.spatial.volumes import warn_or_refuse

VECTOR_INTENT = 1007  # NIFTI_INTENT_VECTOR
#: The description in the fields that `DisplacementField.save` writes.
OURS = "RegZoo displacement field"
_DISPLACEMENT_INTENT = 1006  # NIFTI_INTENT_DISPVECT
#: The kinds of transformation that NiftyReg numbers in intent_p1, besides 0 (deformation) and 1 (displacement field).
_NIFTYREG: dict[float, str] = {
    2: "a cubic spline grid",
    3: "a velocity field",
    4: "a velocity field",
    5: "a spline grid of velocities",
    6: "a linear spline grid",
}
_WRITE = "write it as ITK does: shape (X, Y, Z, 1, 3), LPS mm, NIfTI intent 1007"


def read_field(path: str | PathLike[str], strict_headers: bool = False) -> tuple[np.ndarray, Grid]:
    """Read the displacements from fixed to moving, and their grid.

    Accepts displacement fields of ITK and ANTs (NIfTI of intent 1007, NRRD and MetaImage, LPS mm; NIfTI of intent 1006,
    RAS mm), deformation and displacement fields of NiftyReg and deformations of SPM (``Mapping``). Refuses other kinds
    with a message that names the kind.

    Returns:
        (3, X, Y, Z) float32, RAS mm; the grid.

    Raises:
        RegZooError: not a displacement field, or a field of an unknown convention.
    """
    path = str(path)
    volume = read_volume(path)
    header, shape = volume.header, volume.values.shape
    if header is not None and (intent := int(header["intent_code"])) in range(2001, 2030):
        raise bad_file(path, f"is an FSL warp (intent {intent}), in FSL's own coordinates", _WRITE)
    if volume.values.ndim != 5 or shape[3:] != (1, 3):
        raise bad_file(path, f"has shape {shape}, so it is not a displacement field", _WRITE)
    grid = Grid(shape[:3], volume.affine)
    # ITK's own formats, NRRD and MetaImage, hold displacements only.
    signs, absolute = (LPS_SIGNS, False) if header is None else _convention(path, header)
    vectors = np.ascontiguousarray(np.moveaxis(volume.values[:, :, :, 0], -1, 0))
    vectors *= signs.astype(np.float32).reshape(3, 1, 1, 1)
    if not np.isfinite(vectors).all():
        raise bad_file(path, "holds displacements that are NaN or infinite", "crop it or fill them in")
    if absolute:
        x, y, z = np.ogrid[tuple(slice(n) for n in grid.shape)]
        for component, row in zip(vectors, grid.affine, strict=False):
            component -= row[0] * x + row[1] * y + row[2] * z + row[3]
    elif absolute is None and _looks_absolute(vectors, grid):
        problem = "seems to hold positions, not displacements, and would collapse the image"
        raise bad_file(
            path, problem, "subtract the position of each voxel; if they are displacements, save the field as .nrrd"
        )
    warn_or_refuse(path, volume.doubt, strict_headers)
    return vectors, grid


def _convention(path: str, header: nib.Nifti1Header) -> tuple[np.ndarray, bool | None]:
    """The signs that convert the vectors to RAS, and whether these are positions; None if the file does not say."""
    code, kind = int(header["intent_code"]), float(header["intent_p1"])
    name = bytes(header["intent_name"].item()).decode("latin-1").strip()
    about = bytes(header["descrip"].item()).decode("latin-1").strip()
    if name.upper().startswith("NREG"):
        if kind in (0, 1):
            return np.ones(3), kind == 0
        what = _NIFTYREG.get(kind, f"a transformation of kind {kind:g}")
        raise bad_file(path, f"is {what} of NiftyReg", "convert it with reg_transform -disp")
    if name.lower() == "mapping" and code in (VECTOR_INTENT, _DISPLACEMENT_INTENT):
        return np.ones(3), True
    if name or any(word in about.lower() for word in ("deformation", "velocity", "flow", "mapping", "dartel")):
        problem = f"is marked {name or about!r}, so the meaning of its vectors is unknown"
        raise bad_file(path, problem, f"if it is a displacement field, {_WRITE}, without this mark")
    if code == VECTOR_INTENT:
        return LPS_SIGNS, False if about == OURS else None
    if code == _DISPLACEMENT_INTENT:
        return np.ones(3), None
    raise bad_file(path, f"has NIfTI intent {code}, so the frame of its vectors is unknown", _WRITE)


def _looks_absolute(vectors: np.ndarray, grid: Grid) -> bool:
    """Whether vectors grow with position as positions mistaken for displacements would, in LPS or RAS.

    The linear part of such vectors is close to diag(±1, ±1, 1). The displacements of any rotation differ from it by
    more than 1.7, and those of a scale of all axes below 1.65 by more than 0.6.
    """
    some = tuple(slice(0, n, max(n // 16, 1)) for n in grid.shape)
    places = grid.to_world(np.mgrid[some].reshape(3, -1).T)
    moved = vectors[(slice(None), *some)].reshape(3, -1).T
    linear = np.linalg.lstsq(places - places.mean(0), moved - moved.mean(0), rcond=None)[0]
    flat = abs(np.linalg.det(linear + np.eye(3))) < 0.02
    return bool(flat) or any(np.linalg.norm(linear - np.diag(s)) < 0.6 for s in ((1, 1, 1), (-1, -1, 1)))
