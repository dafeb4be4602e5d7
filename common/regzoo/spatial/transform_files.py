"""Read and write transformations of ITK, ANTs, elastix, greedy and Learn2Reg."""

from __future__ import annotations

import codecs
import math
import re
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import from_matvec
from regzoo.errors import RegZooError, bad_file
from regzoo.files import MARKS_UTF16, atomic_path, decoded
from regzoo.spatial.field import DisplacementField
from regzoo.spatial.grid import LPS_SIGNS, RAS_LPS, Grid
from regzoo.spatial.itk_files import itk_name, lay, quiet
from regzoo.spatial.nifti import AGAIN, as_float32, times
from regzoo.spatial.reading import not_a_file, read_volume
from regzoo.spatial.transformation import Affine, BSpline, Step, Transformation
from regzoo.spatial.writing import write_itk_image
from scipy.io import loadmat
from scipy.ndimage import zoom

#: Suffixes of ITK's transform files.
ITK_TRANSFORMS = (".h5", ".hdf5", ".tfm", ".txt", ".mat", ".xfm")
#: The suffixes that can be written: a field (of Learn2Reg if its name begins with disp_), ITK's files, and Learn2Reg's.
WRITTEN = (".nii", ".nii.gz", ".nrrd", ".mha", ".h5", ".tfm", ".npz")
#: Those of them that keep the steps of a transformation apart.
APART = (".h5", ".tfm")
#: The affine maps of ANTs in the form of MATLAB.
AFFINE_MATS = ("AffineTransform", "MatrixOffsetTransformBase")
_REFERENCE = "name the fixed image as reference"
_CONVERT = "convert it to a displacement field with the program that wrote it"


def read_transformation(path: str | PathLike[str], fixed: Grid | None = None) -> Transformation:
    """Read a transformation from fixed to moving.

    Accepts displacement fields (see `regzoo.spatial.field_file`), all of ITK's transform files (``.h5``, ``.tfm``,
    ``.txt`` and ANTs' ``.mat``), a matrix of 4×4 numbers as text (RAS mm, from greedy or c3d), and displacements of
    Learn2Reg (``.npz``, and NIfTI of shape (X, Y, Z, 3), in voxels; both images must share one grid).

    Args:
        fixed: the grid of the fixed image, which files of Learn2Reg do not contain.

    Raises:
        RegZooError: the file is something else or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise not_a_file(path)
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith((codecs.BOM_UTF8, *MARKS_UTF16)):
        return _read_marked(path, fixed)
    name = path.name.lower()
    if start.startswith(b"PK\x03\x04") or name.endswith(".npz"):
        return Transformation(_learn2reg(path, _npz(path), fixed))
    if start.startswith(b"#Insight Transform File"):
        return _read_itk(path, "Txt")
    if start.startswith(b"\x89HDF"):
        return _read_itk(path, "HDF5")
    if name.endswith(".mat") and b"\0" in start:
        return _read_mat(path)
    if b"(Transform " in start:
        fix = 'have elastix write it for ITK: (ITKTransformOutputFileNameExtension "h5")'
        raise bad_file(path, "is a parameter file of elastix", fix)
    if name.endswith(ITK_TRANSFORMS):
        return Transformation(_read_matrix(path, start))
    if name.startswith("disp_") and (volume := read_volume(path)).values.shape[3:] == (3,):
        return Transformation(_learn2reg(path, np.moveaxis(volume.values, -1, 0), fixed))
    return Transformation(DisplacementField.load(path))


def _read_marked(path: Path, fixed: Grid | None) -> Transformation:
    """`read_transformation` of a text with a byte order mark, which ITK does not take."""
    text = decoded(path, path.read_bytes())
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(text.encode())
        try:
            return read_transformation(copy, fixed)
        except RegZooError as error:
            raise RegZooError(str(error).replace(str(copy), str(path))) from error


def write_transformation(path: str | PathLike[str], transformation: Transformation, grid: Grid | None) -> None:
    """Write a transformation in the form that the name says, atomically.

    Args:
        path: has one of the suffixes `WRITTEN`. A file of ITK keeps the steps apart; the other forms hold one field.
        transformation: from fixed to moving.
        grid: the grid of the fixed image; None for the transformation's own.

    Raises:
        RegZooError: the form is not known, or it needs a grid that is not known.
    """
    path, grid = Path(path), grid or transformation.grid
    name = path.name.lower()
    if name.endswith(APART):
        _write_itk(path, transformation, grid)
        return
    if grid is None:
        raise bad_file(path, "is a field, whose grid the transformation does not say", _REFERENCE)
    field = transformation.on(grid)
    if name.endswith(".npz"):
        halved = _halved(path, transformation, grid)
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, halved.astype(np.float16))
    elif name.endswith((".nrrd", ".mha")):
        import itk

        write_itk_image(path, _itk_field(itk, field, itk.F), grid)
    elif not name.endswith((".nii", ".nii.gz")):
        raise bad_file(path, "has a suffix that names no form of transformation", f"let it end in {', '.join(WRITTEN)}")
    elif name.startswith("disp_"):
        voxels = field.voxel_displacement(slice(None)).movedim(0, -1).numpy()
        with atomic_path(path) as temporary:
            nib.save(nib.Nifti1Image(voxels, grid.affine), temporary)
    else:
        field.save(path)


def _read_matrix(path: Path, start: bytes) -> Affine:
    """The 4×4 matrix of greedy and c3d, text, RAS mm."""
    try:
        matrix = np.array([float(word) for word in start.decode().split()]).reshape(4, 4)
    except ValueError:
        problem = "is neither a transform file of ITK nor a matrix of 4×4 numbers"
        raise bad_file(path, problem, "check the path, or export the transformation again") from None
    if not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise bad_file(path, "is not an affine matrix: its last row is not 0 0 0 1", "export it again")
    return _checked(path, matrix)


def _checked(path: Path, matrix: np.ndarray) -> Affine:
    if not np.isfinite(matrix).all():
        raise bad_file(path, "holds numbers that are NaN or infinite", AGAIN)
    as_float32(path, matrix)
    if abs(np.linalg.det(matrix[:3, :3])) < 1e-6:
        raise bad_file(path, "flattens space, so it has no inverse", "check how the affine registration ended")
    return Affine(matrix)


def _read_mat(path: Path) -> Transformation:
    """A MATLAB file of ITK; ANTs writes affine maps in this form, some of a base class that ITK cannot read."""
    try:
        (name, values), (_, center) = loadmat(path).items()
    except MemoryError:
        raise
    except Exception as error:  # on a damaged file SciPy can raise anything
        raise bad_file(path, "is damaged, or is not a transformation of ITK or ANTs", AGAIN) from error
    if name.split("_")[0] not in AFFINE_MATS or (values.size, center.size) != (12, 3):
        return _read_itk(path, "Matlab")
    parameters, origin = values.ravel().astype(np.float64), center.ravel().astype(np.float64)
    linear = parameters[:9].reshape(3, 3)
    lps = from_matvec(linear, parameters[9:] + origin - linear @ origin)
    return Transformation(_checked(path, RAS_LPS @ lps @ RAS_LPS))


def _read_itk(path: Path, kind: str) -> Transformation:
    """A transform file of ITK; `kind` names the reader of ITK that understands its content."""
    import itk  # its transforms take eight seconds

    reader = itk.TransformFileReaderTemplate[itk.D].New()
    reader.SetFileName(itk_name(path))
    reader.SetTransformIO(getattr(itk, f"{kind}TransformIOTemplate")[itk.D].New())
    with quiet():
        try:
            reader.Update()
        except (RuntimeError, IndexError, OverflowError, MemoryError, UnicodeError) as error:  # whatever C++ throws
            # ITK's Python package has no B-splines of order 1 and 2, for example; the order ends the name of the class.
            if unknown := re.search(r'instance of "(\w+?)_(?:float|double)_\d_\d(?:_(\d))?"', str(error)):
                order = f" of order {unknown[2]}" if unknown[2] else ""
                raise bad_file(path, f"holds a {unknown[1]}{order}, which cannot be read here", _CONVERT) from error
            raise bad_file(path, "is damaged, or holds a transformation that ITK does not know", AGAIN) from error
    found = reader.GetTransformList()
    if len(found) != 1:
        raise bad_file(path, f"holds {len(found)} transformations", "write them as one composite transformation")
    steps = _steps(path, itk.down_cast(found[0]))
    if not steps:
        raise bad_file(path, "holds an empty composite transformation", "check how the registration ended")
    return Transformation(*steps)


def _steps(path: Path, transform: Any) -> list[Step]:
    """The steps of an ITK transform, in the order in which a point travels: ITK applies the last one first."""
    name = transform.GetTransformTypeAsString()
    if name.startswith("CompositeTransform"):
        parts = [transform.GetNthTransform(index) for index in reversed(range(transform.GetNumberOfTransforms()))]
        if any(part.GetTransformTypeAsString().startswith("CompositeTransform") for part in parts):
            # ITK refuses to write it, but leaves the file behind, without the inner parts and all that follows them.
            problem = "holds a composite inside a composite, which ITK does not write completely"
            raise bad_file(path, problem, "flatten it, in SimpleITK with FlattenTransform, and write it again")
        return [step for part in parts for step in _steps(path, part)]
    if not name.endswith("_3_3"):
        raise bad_file(path, f"holds a {name.split('_')[0]} that is not 3-D", "give a transformation of 3-D images")
    parameters, fixed = (np.array(p) for p in (transform.GetParameters(), transform.GetFixedParameters()))
    if not (np.isfinite(parameters).all() and np.isfinite(fixed).all()):
        raise bad_file(path, "holds numbers that are NaN or infinite", AGAIN)
    as_float32(path, parameters)
    if transform.IsLinear() and "Elevation" not in name:  # ITK calls its spherical coordinates linear
        corners = np.vstack([np.zeros(3), np.eye(3)])
        origin, *axes = (np.array(transform.TransformPoint(corner.tolist())) for corner in corners)
        matrix = from_matvec(np.stack(axes, axis=1) - origin[:, None], origin)
        return [_checked(path, RAS_LPS @ matrix @ RAS_LPS)]
    kind = name.split("_")[0]
    if not kind.endswith(("DisplacementFieldTransform", "OnUpdateTransform")) and kind != "BSplineTransform":
        raise bad_file(path, f"holds a {kind}, which cannot be read here", _CONVERT)
    # The fixed parameters are size, origin, spacing and direction, LPS mm.
    axes = fixed[9:18].reshape(3, 3) * fixed[6:9]
    grid = Grid(fixed[:3], RAS_LPS @ from_matvec(axes, fixed[3:6]))
    shape = grid.shape
    if min(shape) < 1 or parameters.size != 3 * math.prod(shape):
        raise bad_file(path, f"its {kind} has {parameters.size} numbers for {times(shape)} points", AGAIN)
    if kind == "BSplineTransform":
        values = parameters.reshape(3, *shape[::-1]).transpose(0, 3, 2, 1) * LPS_SIGNS.reshape(3, 1, 1, 1)
        return [BSpline(values, grid)]
    values = parameters.reshape(*shape[::-1], 3).transpose(3, 2, 1, 0) * LPS_SIGNS.reshape(3, 1, 1, 1)
    return [DisplacementField(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)), grid)]


def _write_itk(path: Path, transformation: Transformation, grid: Grid | None) -> None:
    """A composite of all steps; a step that is gone through backwards becomes a field, unless it is a matrix."""
    import itk

    composite = itk.CompositeTransform[itk.D, 3].New()
    for step, back in reversed(transformation.steps):
        composite.AddTransform(_itk_transform(itk, path, step, back, grid))
    writer = itk.TransformFileWriterTemplate[itk.D].New()
    writer.SetUseCompression(True)
    with atomic_path(path) as temporary, quiet():
        writer.SetFileName(itk_name(temporary))
        writer.SetInput(composite)
        writer.Update()


def _itk_transform(itk: Any, path: Path, step: Step, back: bool, grid: Grid | None) -> Any:
    if isinstance(step, Affine):
        lps = RAS_LPS @ (np.linalg.inv(step.matrix) if back else step.matrix) @ RAS_LPS
        affine = itk.AffineTransform[itk.D, 3].New()
        affine.SetParameters(itk.OptimizerParameters[itk.D]([*lps[:3, :3].ravel().tolist(), *lps[:3, 3].tolist()]))
        return affine
    if isinstance(step, BSpline) and not back:
        lps, spacing = RAS_LPS @ step.grid.affine, step.grid.spacing
        origin, direction = lps[:3, 3], lps[:3, :3] / spacing
        spline = itk.BSplineTransform[itk.D, 3, 3].New()
        fixed = [*map(float, step.grid.shape), *origin.tolist(), *spacing.tolist(), *direction.ravel().tolist()]
        spline.SetFixedParameters(itk.OptimizerParameters[itk.D](fixed))
        values = (step.coefficients * LPS_SIGNS.reshape(3, 1, 1, 1)).transpose(0, 3, 2, 1)
        spline.SetParameters(itk.OptimizerParameters[itk.D](values.ravel().tolist()))
        return spline
    where = step.grid if isinstance(step, DisplacementField) else grid
    if where is None:
        raise bad_file(path, "would hold an inverse, whose grid is not known", "name an image as reference")
    image = _itk_field(itk, Transformation((step, back)).on(where), itk.D)
    lay(image, where)
    field = itk.DisplacementFieldTransform[itk.D, 3].New()
    field.SetDisplacementField(image)
    return field


def _itk_field(itk: Any, field: DisplacementField, number: Any) -> Any:
    """The vectors of a field as an image of ITK, LPS mm, not yet placed on its grid."""
    values = field.displacement.cpu().numpy() * LPS_SIGNS.reshape(3, 1, 1, 1)
    image = itk.Image[itk.Vector[number, 3], 3].New()
    image.SetRegions(list(field.grid.shape))
    image.Allocate()
    itk.array_view_from_image(image)[:] = values.transpose(3, 2, 1, 0)
    return image


def _npz(path: Path) -> np.ndarray:
    """The only array of a file of Learn2Reg, (3, X, Y, Z)."""
    try:
        with np.load(path) as content:
            (key,) = content.files
            values = content[key]
    except MemoryError:
        raise
    except Exception as error:  # on a damaged file NumPy can raise anything
        fix = "write it with numpy.savez, as Learn2Reg does"
        raise bad_file(path, "is not a NumPy file with one array", fix) from error
    if values.ndim != 4 or values.shape[0] != 3 or values.dtype.kind != "f":
        problem = f"has shape {values.shape} and type {values.dtype}, so it does not hold displacements"
        raise bad_file(path, problem, "write an array of shape (3, X, Y, Z), in voxels")
    return as_float32(path, values)


def _learn2reg(path: Path, voxels: np.ndarray, fixed: Grid | None) -> DisplacementField:
    """The field of displacements (3, X, Y, Z) in voxels of the fixed image, of full or of half its size."""
    if fixed is None:
        raise bad_file(path, "is a file of Learn2Reg, which does not say where its voxels lie", _REFERENCE)
    if not np.isfinite(voxels).all():
        raise bad_file(path, "holds displacements that are NaN or infinite", "crop it or fill them in")
    if tuple(2 * n for n in voxels.shape[1:]) == fixed.shape:
        voxels = np.stack([zoom(part, 2, order=2) for part in voxels])  # as the challenge does it
    if voxels.shape[1:] != fixed.shape:
        problem = f"has {times(voxels.shape[1:])} voxels, but the fixed image has {times(fixed.shape)}"
        raise bad_file(path, problem, "name the fixed image that it belongs to as reference")
    world = np.einsum("ij,jxyz->ixyz", fixed.affine[:3, :3], voxels)
    return DisplacementField(torch.from_numpy(as_float32(path, world)), fixed)


def _halved(path: Path, transformation: Transformation, grid: Grid) -> np.ndarray:
    """The displacements (3, X/2, Y/2, Z/2) in voxels of the full grid, which has the same outermost voxel centres."""
    if any(n % 2 or n < 4 for n in grid.shape):
        problem = (
            f"needs an even number of voxels, at least four, along each axis of the fixed image ({times(grid.shape)})"
        )
        raise bad_file(path, problem, "write disp_*.nii.gz, which has its full size")
    steps = np.array([(n - 1) / (n // 2 - 1) for n in grid.shape])
    half = Grid([n // 2 for n in grid.shape], grid.affine @ np.diag([*steps, 1.0]))
    world = transformation.on(half).displacement.numpy()
    return np.asarray(np.einsum("ij,jxyz->ixyz", np.linalg.inv(grid.affine[:3, :3]), world))
