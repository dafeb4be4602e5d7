"""Reading a file as it is: what it is by its content, its values and where they lie. One reader for every format."""

from __future__ import annotations

import os
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from regzoo.errors import bad_file
from regzoo.spatial.grid import RAS_LPS, Grid
from regzoo.spatial.nifti import AGAIN, MOST_DEFLATED, NiftiFile, nifti_file, open_plain, orthogonal, place, read_voxels

FORMATS = "NIfTI, NRRD, MetaImage or MGH"
_ITK_SUFFIXES = {"NRRD": (".nrrd", ".nhdr"), "MetaImage": (".mha", ".mhd")}
#: Cases are loaded by several threads, and the terminal is taken away from all of them at once.
_ONE_AT_A_TIME = threading.Lock()
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
}


class Volume(NamedTuple):
    """A file as it is stored.

    Attributes:
        values: float32, (X, Y, Z) and further axes as stored; the header's scale applied.
        affine: 4×4 float64, voxel → RAS mm; axes at right angles.
        doubt: (problem, what to do) where other programs may place the file elsewhere; None if all agree.
        header: of a NIfTI file.
    """

    values: np.ndarray
    affine: np.ndarray
    doubt: tuple[str, str] | None = None
    header: nib.Nifti1Header | None = None


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read a NIfTI, NRRD, MetaImage or MGH file, whatever libraries are installed.

    NIfTI is known by its content, so that its name does not matter.

    Raises:
        RegZooError: one line that says what the file is if it is not one of these, or what is wrong with it.
    """
    path = Path(path)
    file = _opened(path)
    if isinstance(file, NiftiFile):
        affine, doubt = place(file)
        return Volume(read_voxels(file), affine, doubt, file.header)
    if isinstance(file, nib.MGHImage):
        return _read_mgh(path, file)
    return _read_itk(path, file)


def stored_shape(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """The number of voxels along each axis of a file, from its header alone; errors as `read_volume`."""
    file = _opened(Path(path))
    if isinstance(file, (NiftiFile, nib.MGHImage)):
        return tuple(int(n) for n in file.shape)
    return tuple(int(file.GetDimensions(axis)) for axis in range(file.GetNumberOfDimensions()))


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """All files that an image consists of, itself first: a header may name others, which need not lie beside it.

    Raises:
        RegZooError: not a readable image.
    """
    path = Path(path)
    file = _opened(path)
    if isinstance(file, NiftiFile):
        return [path, *({_header_of(path), file.data} - {path})]
    return [path] if isinstance(file, nib.MGHImage) else [path, *_named_files(path)]


def _opened(path: Path) -> Any:
    """The header of a file: a `NiftiFile`, a nibabel MGH image or an ITK reader."""
    if not path.is_file():
        raise _not_a_file(path)
    start = _start(path)
    name = path.name.lower()
    if not start:
        raise bad_file(path, "is empty", AGAIN)
    if (header_file := _header_of(path)) != path:
        start = _start(header_file) if header_file.is_file() else b""
        if not start:
            raise bad_file(path, f"its header {header_file} is missing", "put the two files of the pair together")
    if _is_nifti(start):
        data = path if start[344:347] == b"n+1" or start[4:7] == b"n+2" else _data_of(header_file)
        return nifti_file(path, header_file, data)
    if start[:4] in (struct.pack("<i", 348), struct.pack(">i", 348)):
        if len(start) < 348:
            raise bad_file(path, "is truncated: it ends within its header", AGAIN)
        problem = "is an Analyze 7.5 file, which does not say which side is left"
        raise bad_file(path, problem, "convert it to NIfTI with the program that wrote it")
    for kind, suffixes in _ITK_SUFFIXES.items():
        if start.startswith(b"NRRD0") if kind == "NRRD" else _is_metaimage(start):
            if not name.endswith(suffixes):
                raise bad_file(path, f"is a {kind} file under another name", f"let its name end in {suffixes[0]}")
            return _itk_header(path, kind, start)
    if name.endswith((".mgh", ".mgz")) and start[:4] == struct.pack(">i", 1):
        return nib.MGHImage.from_filename(path)
    raise _not_an_image(path, start)


def _start(path: Path) -> bytes:
    """The first 4 KiB, unzipped."""
    try:
        with open_plain(path) as stream:
            return stream.read(4096)
    except PermissionError as error:
        raise bad_file(path, "may not be read (permission denied)", "ask for the right to read it") from error
    except (EOFError, zlib.error) as error:
        raise bad_file(path, "is truncated or damaged: it cannot be unzipped", AGAIN) from error


def _not_a_file(path: Path) -> Exception:
    if not path.is_dir():
        return bad_file(path, "no such file", "check the path")
    slices = 0
    for item in list(path.iterdir())[:2000]:
        slices += item.is_file() and _is_dicom(item.open("rb").read(132), item.name.lower())
    if slices:
        mend = "convert the series to one NIfTI file, for example with dcm2niix"
        return bad_file(path, f"is a folder of DICOM slices ({slices} files), not an image", mend)
    return bad_file(path, "is a folder, not an image", "check the path")


def _not_an_image(path: Path, start: bytes) -> Exception:
    """What a file is instead, as far as its first bytes tell."""
    if _is_dicom(start, path.name.lower()):
        mend = "convert its series to one NIfTI file, for example with dcm2niix"
        return bad_file(path, "is a DICOM file", mend)
    for magic, what in _PICTURES.items():
        if start.startswith(magic):
            return bad_file(path, f"is {what}, not a 3-D image", f"give a {FORMATS} file")
    if path.name.lower().endswith((".mgh", ".mgz")):
        return bad_file(path, "is not an MGH image, whatever its name says", AGAIN)
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if text.isprintable() or all(c.isprintable() or c.isspace() for c in text):
        return bad_file(path, f"holds text, so it is not an image ({FORMATS})", "check the path, or export it again")
    return bad_file(path, f"is not an image: its content is not {FORMATS}", "convert it to NIfTI, or export it again")


def _is_nifti(start: bytes) -> bool:
    one = len(start) >= 348 and start[344:348] in (b"n+1\0", b"ni1\0")
    return one or (len(start) >= 540 and start[4:12] in (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n"))


def _is_metaimage(start: bytes) -> bool:
    return any(start.replace(b" ", b"").startswith(key) for key in (b"ObjectType=", b"NDims=", b"Comment=ObjectType"))


def _is_dicom(start: bytes, name: str) -> bool:
    return start[128:132] == b"DICM" or name.endswith((".dcm", ".ima", ".dicom"))


def _header_of(path: Path) -> Path:
    """The header of the pair that an .img file belongs to; any other file itself."""
    return _partner(path, ".img", ".hdr")


def _data_of(header: Path) -> Path:
    return _partner(header, ".hdr", ".img")


def _partner(path: Path, suffix: str, other: str) -> Path:
    """The file of a pair with the other suffix, in the case of the first; zipped or not, whichever is there."""
    stem = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    if stem.suffix.lower() != suffix:
        return path
    name = stem.with_suffix(other.upper() if stem.suffix.isupper() else other)
    zipped = name.with_name(name.name + ".gz")
    return zipped if zipped.is_file() and not name.is_file() else name


def _named_files(path: Path) -> list[Path]:
    """The files that a detached NRRD or MetaImage header names for its voxels."""
    lines = path.read_bytes()[: 1 << 20].decode("latin-1").splitlines()
    for index, line in enumerate(lines):
        key, found, value = line.replace("=", ":", 1).partition(":")
        if not line.strip():
            break
        if not found or key.strip().lower().replace(" ", "") not in ("elementdatafile", "datafile"):
            continue
        words = value.split()
        if words[:1] == ["LOCAL"] or not words:
            return []
        if words[0] == "LIST":
            named = [name.strip() for name in lines[index + 1 :] if name.strip()]
        elif "%" in words[0]:
            low, high, step = (int(word) for word in (*words[1:3], *(words[3:4] or ["1"])))
            named = [words[0] % number for number in range(low, high + 1, step)]
        else:
            named = [value.strip()]
        return [path.parent / name for name in named]
    return []


def _read_mgh(path: Path, image: nib.MGHImage) -> Volume:
    try:
        values = np.asarray(image.dataobj, dtype=np.float32)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise bad_file(path, "is truncated: it ends before its last voxel", AGAIN) from error
    x, y, z = (*values.shape, 1, 1)[:3]
    return Volume(values, orthogonal(path, Grid((x, y, z), image.affine)).affine)


def _itk_header(path: Path, kind: str, start: bytes) -> Any:
    """ITK's reader of a file, its header read and found to hold one number in each voxel."""
    import itk  # takes two seconds

    itk.Object.GlobalWarningDisplayOff()
    io = (itk.NrrdImageIO if kind == "NRRD" else itk.MetaImageIO).New()
    io.SetFileName(str(path))
    for file in _named_files(path):
        if not file.is_file():
            raise bad_file(path, f"its voxels are missing, the file {file}", "put the two files together")
    with _quiet():
        try:
            io.ReadImageInformation()
        except RuntimeError as error:
            raise _refused(path, error) from error
    count = int(io.GetNumberOfComponents())
    if count > 1:
        pixel = io.GetPixelTypeAsString(io.GetPixelType())
        if pixel in ("rgb", "rgba"):
            raise bad_file(path, "is a colour image", "export it with one value in each voxel")
        if pixel == "complex":
            raise bad_file(path, "holds complex numbers", "export its magnitude")
        if b"Segment0_" in start:
            mend = "in 3D Slicer export it as a label map, or each layer by itself"
            raise bad_file(path, f"is a segmentation of {count} layers, whose segments overlap", mend)
        raise bad_file(path, f"is a vector image ({count} values in each voxel)", "give one 3-D volume")
    held = sum(file.stat().st_size for file in (path, *_named_files(path)))
    if int(io.GetImageSizeInBytes()) > held * MOST_DEFLATED:
        raise bad_file(path, "is truncated: it ends before the last voxel of its header", AGAIN)
    return io


def _read_itk(path: Path, io: Any) -> Volume:
    """Read a volume of three axes, or of four of which the last is not in space."""
    import itk

    axes = int(io.GetNumberOfDimensions())
    if axes not in (3, 4):
        raise bad_file(path, f"is a {axes}-D image", "give a 3-D volume with at least two slices")
    reader = itk.ImageFileReader[itk.Image[itk.F, axes]].New(FileName=str(path), ImageIO=io)
    with _quiet():
        try:
            reader.Update()
        except MemoryError:
            raise bad_file(path, "does not fit into memory", "crop it or use a larger machine") from None
        except RuntimeError as error:
            raise _refused(path, error) from error
    image = reader.GetOutput()
    values = np.ascontiguousarray(itk.array_view_from_image(image).T)
    lps = np.eye(4)
    lps[:3, :3] = (itk.array_from_matrix(image.GetDirection()) * np.asarray(image.GetSpacing()))[:3, :3]
    lps[:3, 3] = np.asarray(image.GetOrigin())[:3]
    x, y, z = values.shape[:3]
    return Volume(values, orthogonal(path, Grid((x, y, z), RAS_LPS @ lps)).affine)


def _refused(path: Path, error: RuntimeError) -> Exception:
    """ITK's own words for a file that it does not read, in one line."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join((said[-1] if said else "no reason given").split())
    words = reason.replace(str(path), "").replace("; ", ", ").partition("): ")
    return bad_file(path, f"ITK cannot read it ({(words[2] or words[0])[:160].strip()})", AGAIN)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the terminal what C++ libraries print there."""
    with _ONE_AT_A_TIME:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = [os.dup(stream) for stream in (1, 2)]
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            for stream in (1, 2):
                os.dup2(nowhere, stream)
            yield
        finally:
            for stream, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, stream)
                os.close(copy)
            os.close(nowhere)
