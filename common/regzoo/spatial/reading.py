"""One reader for every format: it recognises a file by its content and reads its values and affine."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import DATA_OFFSET, MGHHeader
from regzoo.errors import RegZooError, bad_file
from regzoo.spatial.dicom import Series, find_series, holds_dicom, is_dicom, read_series
from regzoo.spatial.grid import Grid
from regzoo.spatial.itk_files import ITK_SUFFIXES, ItkFile, itk_header, read_itk
from regzoo.spatial.nifti import AGAIN, NiftiFile, check_size, nifti_file, orthogonal, place, read_stored, read_voxels
from regzoo.spatial.unzip import is_zipped, open_unzipped

FORMATS = "NIfTI, NRRD, MetaImage, MGH or DICOM"
_UNZIP = "unzip it with gunzip, or save it again"
_PICTURES = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"BM": "a BMP picture",
    b"GIF8": "a GIF picture",
    b"II*\0": "a TIFF picture",
    b"MM\0*": "a TIFF picture",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
}


class Volume(NamedTuple):
    """The content of a file.

    Attributes:
        values: float32, (X, Y, Z) and further axes as stored, scaled by the header.
        affine: 4×4 float64, voxel → RAS mm; axes at right angles.
        doubt: (problem, what to do) if other programs may place the file elsewhere; None if all agree.
        header: the header of a NIfTI file; None for other formats.
    """

    values: np.ndarray
    affine: np.ndarray
    doubt: tuple[str, str] | None = None
    header: nib.Nifti1Header | None = None


class Header(NamedTuple):
    """What the header of an image says.

    Attributes:
        shape: number of voxels along each axis.
        files: all files of the image, the named one first; a header may name further files. Those of a DICOM series
            are in the order of its slices.
    """

    shape: tuple[int, ...]
    files: list[Path]


class MghFile(NamedTuple):
    """An MGH file before its voxels are read.

    Attributes:
        header: the header, with FreeSurfer's usual axes if the file does not say where it lies.
        shape: the number of voxels along each axis.
        is_placed: whether the file says where it lies.
    """

    header: MGHHeader
    shape: tuple[int, ...]
    is_placed: bool


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read a NIfTI, NRRD, MetaImage or MGH file, or a DICOM series (see `regzoo.spatial.dicom.find_series`).

    NIfTI is recognised by its content under any name.

    Raises:
        RegZooError: the file is something else or is damaged; the message says what.
    """
    path = Path(path)
    file = _opened(path)
    if isinstance(file, NiftiFile):
        affine, doubt = place(file)
        return Volume(read_voxels(file), affine, doubt, file.header)
    if isinstance(file, MghFile):
        return _read_mgh(path, file)
    if isinstance(file, Series):
        return Volume(read_series(path, file), file.grid.affine)
    return Volume(*read_itk(path, file))


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a file alone; raises what `read_volume` raises."""
    path = Path(path)
    file = _opened(path)
    others = list[Path]()
    if isinstance(file, Series):
        return Header(file.grid.shape, [one.file for one in file.slices])
    if isinstance(file, NiftiFile):
        others = list({file.header_file, file.data} - {path})
    elif isinstance(file, ItkFile):
        others = file.header.named
    return Header(tuple(int(n) for n in file.shape), [path, *others])


def _opened(path: Path) -> Any:
    """The header of a file: a `NiftiFile`, an `MghFile`, an `ItkFile` or a DICOM `Series`."""
    if not is_image(path):
        raise not_a_file(path)
    if not path.is_file():
        return find_series(path)
    start = _start(path)
    name = path.name.lower()
    if not start:
        raise bad_file(path, "is empty", AGAIN)
    header_file = path if _is_nifti(start) else _partner(path, ".img", ".hdr")
    if header_file != path:
        start = _start(header_file) if header_file.is_file() else b""
        if not start:
            raise bad_file(path, f"its header {header_file} is missing", "put the two files of the pair together")
    if _is_nifti(start):
        data = path if start[344:347] == b"n+1" or start[4:7] == b"n+2" else _partner(header_file, ".hdr", ".img")
        return nifti_file(path, header_file, data)
    if start[:4] in (struct.pack("<i", 348), struct.pack(">i", 348)):
        if len(start) < 348:
            raise bad_file(path, "is truncated: it ends within its header", AGAIN)
        problem = "is an Analyze 7.5 file, which does not say which side is left"
        raise bad_file(path, problem, "convert it to NIfTI with the program that wrote it")
    for kind, suffixes in ITK_SUFFIXES.items():
        if start.startswith(b"NRRD0") if kind == "NRRD" else _is_metaimage(start):
            if not name.endswith(suffixes):
                fix = _UNZIP if is_zipped(path) else f"rename it to end in {suffixes[0]}"
                raise bad_file(path, f"is {'an' if kind == 'NRRD' else 'a'} {kind} file with another suffix", fix)
            if is_zipped(path):
                raise bad_file(path, "is compressed as a whole with gzip, which ITK cannot read", _UNZIP)
            return itk_header(path, kind)
    if name.endswith((".mgh", ".mgz")) and start[:4] == struct.pack(">i", 1):
        return _mgh_header(path, start)
    if is_dicom(start, name):
        return find_series(path)
    raise _not_an_image(path, start)


def _start(path: Path) -> bytes:
    """The first 4 KiB, unzipped."""
    try:
        with open_unzipped(path) as stream:
            return stream.read(4096)
    except PermissionError as error:
        raise bad_file(path, "cannot be read (permission denied)", "ask for permission to read it") from error
    except (EOFError, zlib.error) as error:
        raise bad_file(path, "is truncated or damaged: it cannot be unzipped", AGAIN) from error


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file, a folder of DICOM files, or ``FOLDER#SERIES``."""
    try:
        return Path(path).is_file() or holds_dicom(path)
    except OSError as error:  # such as a name that is too long
        raise bad_file(path, f"cannot be opened ({(error.strerror or '').lower()})", "check the path") from error


def not_a_file(path: Path) -> RegZooError:
    """The error for a path that is not a file."""
    if path.is_dir():
        linked = any(entry.is_symlink() and entry.is_dir() for entry in path.glob("*"))
        fix = "a link to a folder in it is not searched, so name the link" if linked else "check the path"
        return bad_file(path, "is a folder, not an image", fix)
    return bad_file(path, "no such file", "check the path")


def _not_an_image(path: Path, start: bytes) -> RegZooError:
    """The error for a file that is not an image; names its type if the first bytes show it."""
    for magic, what in _PICTURES.items():
        if start.startswith(magic):
            return bad_file(path, f"is {what}, which cannot be read here", f"give a {FORMATS} file")
    if path.name.lower().endswith((".mgh", ".mgz")):
        return bad_file(path, "is not an MGH image, despite its name", AGAIN)
    text = start.decode("utf-8", "surrogateescape")  # which turns other bytes into what cannot be printed
    if all(c.isprintable() or c.isspace() for c in text):
        return bad_file(path, f"holds text, so it is not an image ({FORMATS})", "check the path, or export it again")
    return bad_file(path, f"is not an image: its content is not {FORMATS}", "convert it to NIfTI, or export it again")


def _is_nifti(start: bytes) -> bool:
    one = len(start) >= 348 and start[344:348] in (b"n+1\0", b"ni1\0")
    return one or (len(start) >= 540 and start[4:12] in (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n"))


def _is_metaimage(start: bytes) -> bool:
    return any(start.replace(b" ", b"").startswith(key) for key in (b"ObjectType=", b"NDims=", b"Comment=ObjectType"))


def _partner(path: Path, suffix: str, other: str) -> Path:
    """The other file of a pair, compressed or not, its suffix in the same case; a path without `suffix` unchanged."""
    stem = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    if stem.suffix.lower() != suffix:
        return path
    name = stem.with_suffix(other.upper() if stem.suffix.isupper() else other)
    zipped = name.with_name(name.name + ".gz")
    return zipped if zipped.is_file() and not name.is_file() else name


def _mgh_header(path: Path, start: bytes) -> MghFile:
    if len(start) < DATA_OFFSET:
        raise bad_file(path, "is truncated: it ends within its header", AGAIN)
    is_placed = any(start[28:30])
    header = MGHHeader(start[:DATA_OFFSET], check=False)
    if header["dims"].min() < 1:
        raise bad_file(path, "has impossible sizes in its header", AGAIN)
    try:
        itemsize = header.get_data_dtype().itemsize
    except KeyError:
        raise bad_file(path, f"holds voxels of an unknown type (MGH type {header['type']})", AGAIN) from None
    shape = tuple(int(n) for n in header.get_data_shape())
    check_size(path, shape, itemsize, path)
    return MghFile(header, shape, is_placed)


def _read_mgh(path: Path, file: MghFile) -> Volume:
    values = read_stored(path, path, file.shape, file.header.get_data_dtype(), DATA_OFFSET)
    with np.errstate(all="ignore"):  # `orthogonal` refuses what is not a number
        affine = np.asarray(file.header.get_affine(), dtype=np.float64)
    doubt = None
    if not file.is_placed:
        problem = "its header does not say which side is left, so FreeSurfer's usual axes are taken"
        doubt = (problem, "write its position into its header")
    values = values.astype(np.float32, order="C", copy=False)
    return Volume(values, orthogonal(path, Grid((*file.shape, 1, 1)[:3], affine)).affine, doubt)
