"""Read NIfTI files, place them by one rule, and warn if ITK places them elsewhere.

The rule is nibabel's: the sform if its code is above 0, else the qform if its code is above 0, else the volume is
centred at the origin with its first axis pointing left. Lengths in metres or micrometres are converted to mm.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec
from nibabel.quaternions import quat2mat
from regzoo.errors import RegZooError, bad_file
from regzoo.spatial.grid import RAS_LPS, Grid
from regzoo.spatial.unzip import MOST_DEFLATED, Unzipped, is_zipped, open_unzipped

#: Two placements agree if no corner of the volume moves by more than this share of a voxel or this many mm.
SAME_VOXELS, SAME_MM = 0.1, 0.1
AGAIN = "copy or export it again"
_UNIT_MM = {1: 1e3, 3: 1e-3}  # metre and micrometre; 2 is mm, and unknown (0) counts as mm
_COLOURS = {128, 2304}
_WRITE_BOTH = "write the right matrix as both sform and qform, with code 1"


class NiftiFile(NamedTuple):
    """A NIfTI file before its voxels are read.

    Attributes:
        path: the requested file.
        header_file, data: the files that hold the header and the voxels; `path`, except in a pair.
        header: the header as stored.
        shape: number of voxels along each axis.
    """

    path: Path
    header_file: Path
    data: Path
    header: nib.Nifti1Header
    shape: tuple[int, ...]


def nifti_file(path: Path, header_file: Path, data: Path) -> NiftiFile:
    """Read the header of a NIfTI file and refuse a file that is not an image or is incomplete.

    Raises:
        RegZooError: colour, complex or unknown voxels, impossible sizes, or fewer voxels than the header says.
    """
    with open_unzipped(header_file) as stream:
        start = stream.read(nib.Nifti2Header.sizeof_hdr)
    # The byte order follows from the first number; nibabel infers it from the number of axes, which may be wrong.
    kind = nib.Nifti2Header if start[5:7] == b"+2" or start[5:7] == b"i2" else nib.Nifti1Header
    order = {struct.pack(f"{order}i", kind.sizeof_hdr): order for order in "<>"}.get(start[:4])
    if order is None:
        raise bad_file(path, "has a damaged header: it does not start with the size of the header", AGAIN)
    header = kind(start[: kind.sizeof_hdr], order, check=False)
    code, count = int(header["datatype"]), int(header["dim"][0])
    if code in _COLOURS:
        raise bad_file(path, "is a colour image", "export it with one value in each voxel")
    try:
        voxel = header.get_data_dtype()
    except KeyError:
        voxel = np.dtype("V0")
    if voxel.kind == "c" or code == 2048:
        raise bad_file(path, "holds complex numbers", "export its magnitude")
    if voxel.kind not in "iuf":
        raise bad_file(path, f"holds voxels of an unknown type (NIfTI datatype {code})", AGAIN)
    shape = tuple(int(n) for n in header["dim"][1 : count + 1])
    if not 1 <= count <= 7 or min(shape) < 1:
        raise bad_file(path, f"has impossible sizes in its header (dim {header['dim'].tolist()})", AGAIN)
    offset = float(header["vox_offset"])
    if not 0 <= offset < 2**28:
        raise bad_file(path, f"has an impossible vox_offset in its header ({offset:g})", AGAIN)
    if not data.is_file():
        raise bad_file(path, f"its voxels are missing: no file {data}", "put the two files of the pair together")
    check_size(path, shape, voxel.itemsize, data, int(offset))
    return NiftiFile(path, header_file, data, header, shape)


@np.errstate(all="ignore")  # bad numbers from a damaged header are refused below
def read_voxels(file: NiftiFile) -> np.ndarray:
    """The values of a file, scaled by its header, float32, in the stored shape.

    Raises:
        RegZooError: the file ends before its last voxel, is damaged, or does not fit into memory.
    """
    header = file.header
    slope, inter = (float(header[key]) for key in ("scl_slope", "scl_inter"))
    if not (slope and math.isfinite(slope)):
        slope, inter = 1.0, 0.0
    if not math.isfinite(inter):
        raise bad_file(file.path, f"scales its values by {slope:g} and adds {inter}", "write a number as scl_inter")
    offset = int(header["vox_offset"]) or (header.single_vox_offset if file.data == file.header_file else 0)
    values = read_stored(file.path, file.data, file.shape, header.get_data_dtype(), offset)
    try:
        if (slope, inter) != (1.0, 0.0):
            small = values.dtype.itemsize <= 2 and max(abs(slope), abs(inter)) < 1e30
            values = values.astype(np.float32 if small else np.float64)
            values *= slope
            values += inter
        return as_float32(file.path, values)
    except MemoryError:
        raise too_large(file.path, file.shape) from None


def as_float32(path: str | PathLike[str], values: np.ndarray) -> np.ndarray:
    """Numbers of a file as float32; raises `RegZooError` for those beyond its range, which would become infinite."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float32, order="C", copy=False)
    if values.dtype.kind == "f" and values.dtype.itemsize > 4:
        infinite = np.isinf(found)
        if infinite.any() and (count := int(np.isfinite(values[infinite]).sum())):
            problem = f"holds numbers beyond the range of float32, 3.4e38 ({count} of them)"
            raise bad_file(path, problem, "check the scale of its values")
    return found


def read_stored(path: Path, data: Path, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> np.ndarray:
    """The values in a file as stored, the first axis fastest; errors as `read_voxels`.

    Args:
        path: the requested file, for errors.
        data: the file that holds the voxels, compressed or not.
        shape: number of voxels along each axis.
        dtype: how a voxel is stored.
        offset: where the voxels start in the file, uncompressed.
    """
    try:
        with open_unzipped(data) as stream:
            raw = np.empty(math.prod(shape), dtype)
            stream.seek(offset)
            if stream.readinto(raw.view(np.uint8).data) < raw.nbytes:
                raise EOFError
            if isinstance(stream, Unzipped) and not stream.finish():
                raise bad_file(path, f"holds more than the {times(shape)} voxels of its header", AGAIN)
        return raw.reshape(shape, order="F")
    except MemoryError:
        raise too_large(path, shape) from None
    except EOFError:
        raise truncated(path, shape) from None
    except zlib.error as error:
        raise bad_file(path, f"is damaged ({error})", AGAIN) from error
    except OSError as error:
        raise bad_file(path, f"cannot be read ({error.strerror})", "check the disk, or copy it again") from error


@np.errstate(all="ignore")
def place(file: NiftiFile) -> tuple[np.ndarray, tuple[str, str] | None]:
    """The affine of a file, voxel → RAS mm, float64, and (problem, what to do) if other programs may disagree.

    Raises:
        RegZooError: the header gives no usable affine, or a sheared one.
    """
    header = file.header
    unit = _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    has_sform, has_qform = (int(header[f"{name}_code"]) > 0 for name in ("sform", "qform"))
    affine, source, doubt = header.get_sform(), "sform", None
    if has_sform and has_qform and not _usable(affine):
        has_sform, doubt = False, ("its sform cannot be inverted, so its qform is used", _WRITE_BOTH)
    if not has_sform:
        affine, source = _by_voxel_size(file, has_qform), "qform" if has_qform else "neither"
    grid = orthogonal(file.path, Grid((*file.shape, 1, 1)[:3], _in_mm(affine, unit, header["srow_x"].dtype)))
    doubt = doubt or _doubt(header, grid, source, has_sform and has_qform, unit)
    if doubt is None and not math.isfinite(slope := float(header["scl_slope"])):
        doubt = (f"the scale of its values is {slope}, so they are taken as stored", "write a number as scl_slope")
    return grid.affine, doubt


def orthogonal(path: Path, grid: Grid) -> Grid:
    """The grid with axes at exactly right angles; raises `RegZooError` if it is sheared, or not invertible."""
    if not _usable(grid.affine):
        raise bad_file(path, "its affine is not invertible", "write valid voxel sizes and directions into its header")
    straight = grid.straightened()
    apart = grid.distance(straight)
    if apart > _tolerance(grid):
        problem = f"its axes are not at right angles: a shear of {apart:.3g} mm, which ITK and a qform cannot hold"
        raise bad_file(path, problem, "resample it, for example with nibabel.processing.resample_to_output")
    return straight if apart > 1e-4 else grid


def itk_affine(header: nib.Nifti1Header) -> tuple[np.ndarray, str]:
    """The affine (voxel → RAS, in the header's unit) that ITK 5.4 reads from a header, and its source.

    ITK always takes the voxel size from pixdim. It uses the sform only if the sform is orthogonal and one of these
    holds: its code is 1, there is no qform, or ITK finds both equal. ITK compares their singular vectors, so if one
    mirrors the other, the result depends on rounding. The source is then "either" and the affine is that of the qform.
    This follows itkNiftiImageIO.cxx of ITK 5.4 and is tested against SimpleITK.
    """
    size = np.nan_to_num(header["pixdim"][1:4].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    size[size == 0] = 1.0
    codes = {name: int(header[f"{name}_code"]) for name in ("sform", "qform")}
    if codes["sform"] <= 0 and codes["qform"] <= 0:
        return RAS_LPS @ np.diag([*size, 1.0]), "neither"
    sform, qform = header.get_sform(), _qform(header, np.where(size > 0, size, 1.0))
    chosen, source = qform, "qform"
    if codes["sform"] > 0 and _usable(sform):
        directions = sform[:3, :3] / np.linalg.norm(sform[:3, :3], axis=0)
        right_angles = np.abs(directions @ directions.T - np.eye(3)).max() <= 1e-4
        if right_angles and (codes["sform"] == 1 or codes["qform"] <= 0 or np.abs(sform - qform).max() <= 1e-4):
            chosen, source = sform, "sform"
        elif right_angles and _mirrored(sform, qform):
            source = "either"
    affine = chosen.copy()
    affine[:3, :3] *= size / np.linalg.norm(chosen[:3, :3], axis=0)
    return affine, source


def _doubt(header: nib.Nifti1Header, grid: Grid, source: str, has_both: bool, unit: float) -> tuple[str, str] | None:
    """(problem, what to do) if ITK, or a program that uses the qform, places a file elsewhere; None if all agree."""
    scale = np.diag([unit, unit, unit, 1.0])
    affine, itk_source = itk_affine(header)
    apart = grid.distance(Grid(grid.shape, scale @ affine))
    if source == "neither":
        problem = f"its header gives no orientation (sform and qform codes 0), ITK places it up to {apart:.3g} mm away"
        return problem, "write the right sform or qform, with code 1"
    if not apart <= _tolerance(grid):
        if itk_source == "either":
            others, why = "programs that use its qform, perhaps ITK, place", "its sform and qform mirror each other"
            return f"{others} it up to {apart:.3g} mm away: {why}, and the sform is used here", _WRITE_BOTH
        away = f"ITK (3D Slicer, ANTs) places it up to {apart:.3g} mm away"
        if source == itk_source:
            problem = f"{away}: its pixdim is not the voxel size of its {source}, which is used here"
            return problem, "write the right voxel size as pixdim, for example by saving it with nibabel"
        problem = f"{away}: its sform and qform differ, ITK uses the {itk_source}, and the {source} is used here"
        return problem, _WRITE_BOTH
    if has_both:
        size = np.abs(header["pixdim"][1:4].astype(np.float64))
        apart = grid.distance(Grid(grid.shape, scale @ _qform(header, size)))
        if not apart <= _tolerance(grid):
            return f"its sform and qform differ by up to {apart:.3g} mm, and the sform is used as in ITK", _WRITE_BOTH
    sign = float(header["pixdim"][0])
    if source == "qform" and sign < 0 and sign != -1:
        return f"its pixdim[0] is {sign:g}, which counts as -1 here and in ITK, but as 1 in nibabel", "write -1 or 1"
    return None


def _in_mm(affine: np.ndarray, unit: float, stored: np.dtype) -> np.ndarray:
    """Convert through decimals, so that 0.0016 m and 1.6 mm, both inexact in float32, become the same number."""
    if unit == 1 or not np.isfinite(affine).all():
        return affine
    scaled = np.eye(4)
    scaled[:3] = (affine[:3].astype(stored).astype(str).astype(np.float64) * unit).astype(stored)
    return scaled


def _qform(header: nib.Nifti1Header, size: np.ndarray) -> np.ndarray:
    """The qform as the NIfTI library computes it; a quaternion longer than 1 is normalised."""
    vector = np.nan_to_num(np.array([float(header[f"quatern_{axis}"]) for axis in "bcd"]))
    square = float(vector @ vector)
    quaternion = [0.0, *(vector / np.sqrt(square))] if 1 - square < 1e-7 else [np.sqrt(1 - square), *vector]
    mirror = (1, 1, -1 if header["pixdim"][0] < 0 else 1)
    offset = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return np.asarray(from_matvec(quat2mat(quaternion) * size * mirror, offset))


def _mirrored(sform: np.ndarray, qform: np.ndarray) -> bool:
    """Whether two affines have the same origin and, up to the signs and the order of their axes, the same axes."""
    same_axes = np.abs(sform[:3, :3] @ sform[:3, :3].T - qform[:3, :3] @ qform[:3, :3].T).max() <= 1e-3
    return bool(same_axes) and np.abs(sform - qform)[:3, 3].max() <= 1e-4


def _by_voxel_size(file: NiftiFile, has_qform: bool) -> np.ndarray:
    """The affine of the qform or, without one, of the volume centred at the origin."""
    header = file.header
    size = np.abs(header["pixdim"][1:4].astype(np.float64))
    if not (np.isfinite(size).all() and size.all()):
        shown = "×".join(f"{x:g}" for x in size)
        raise bad_file(file.path, f"its header gives no voxel size (pixdim {shown}) and no usable sform", _WRITE_BOTH)
    if not has_qform:
        flipped = size * (-1, 1, 1)
        return np.asarray(from_matvec(np.diag(flipped), -flipped * (np.array([*file.shape, 1, 1][:3]) - 1) / 2))
    vector = np.array([float(header[f"quatern_{axis}"]) for axis in "bcd"])
    if not vector @ vector <= 1.001:
        raise bad_file(file.path, f"its qform is not a rotation (quaternion {vector.tolist()})", _WRITE_BOTH)
    return _qform(header, size)


def _tolerance(grid: Grid) -> float:
    """The largest distance, in mm, between two placements that agree."""
    return min(SAME_MM, SAME_VOXELS * float(grid.spacing.min()))


def _usable(affine: np.ndarray) -> bool:
    return bool(np.isfinite(affine).all()) and abs(np.linalg.det(affine[:3, :3])) > 1e-18


def check_size(path: Path, shape: tuple[int, ...], itemsize: int, data: Path, offset: int = 0) -> None:
    """Refuse a file too small for the voxels of its header, before allocating memory for them; see `read_stored`."""
    size = data.stat().st_size
    if math.prod(shape) * itemsize > (size * MOST_DEFLATED if is_zipped(data) else size - offset):
        raise truncated(path, shape)


def truncated(path: Path, shape: tuple[int, ...]) -> RegZooError:
    """The error for a file that holds fewer voxels than its header says."""
    return bad_file(path, f"is truncated: it ends before the last of the {times(shape)} voxels of its header", AGAIN)


def too_large(path: Path, shape: tuple[int, ...]) -> RegZooError:
    """The error for a volume larger than the free memory."""
    return bad_file(path, f"does not fit into memory ({times(shape)} voxels)", "crop it or use a larger machine")


def times(shape: Iterable[int]) -> str:
    """A shape for an error line, such as 48×40×36."""
    return "×".join(str(n) for n in shape)
