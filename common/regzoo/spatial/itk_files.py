"""Reading NRRD and MetaImage through ITK, whatever else is installed."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from regzoo.errors import bad_file
from regzoo.spatial.grid import RAS_LPS, Grid
from regzoo.spatial.nifti import AGAIN, check_held, orthogonal, too_large
from regzoo.spatial.unzip import MOST_DEFLATED

ITK_SUFFIXES = {"NRRD": (".nrrd", ".nhdr"), "MetaImage": (".mha", ".mhd")}
#: The spaces of NRRD that ITK knows; all others it takes for LPS.
_SPACES = {"rightanteriorsuperior", "leftanteriorsuperior", "leftposteriorsuperior", "ras", "las", "lps"}
_AS_LPS = "write 'space: left-posterior-superior', or what is right, into its header"
#: Cases are loaded by several threads, and the terminal is taken away from all of them at once.
_ONE_AT_A_TIME = threading.Lock()


def itk_header(path: Path, kind: str, start: bytes) -> Any:
    """ITK's reader of a file, its header read and found to hold one number in each voxel."""
    import itk  # takes two seconds

    itk.Object.GlobalWarningDisplayOff()
    io = (itk.NrrdImageIO if kind == "NRRD" else itk.MetaImageIO).New()
    io.SetFileName(str(path))
    for file in named_files(path):
        if not file.is_file():
            raise bad_file(path, f"its voxels are missing, the file {file}", "put the two files together")
    with _quiet():
        try:
            io.ReadImageInformation()
            itemsize = int(io.GetComponentSize())
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
        raise bad_file(path, f"has {count} values in each voxel, as a colour or vector image", "give one 3-D volume")
    shape = itk_shape(io)
    if max(shape) >= 2**31:
        raise bad_file(path, "has impossible sizes in its header", AGAIN)
    held = sum(file.stat().st_size for file in (path, *named_files(path)))
    plain = re.search(rb"encoding: *raw|CompressedData *= *False", start) is not None
    check_held(path, shape, itemsize, held * (1 if plain else MOST_DEFLATED))
    return io


def itk_shape(io: Any) -> tuple[int, ...]:
    """The number of voxels along each axis."""
    return tuple(int(io.GetDimensions(axis)) for axis in range(io.GetNumberOfDimensions()))


def read_itk(path: Path, io: Any) -> tuple[np.ndarray, np.ndarray, tuple[str, str] | None]:
    """Values (float32), affine and doubt of a volume of three axes, or of four of which the last is not in space."""
    import itk

    shape = itk_shape(io)
    if len(shape) not in (3, 4):
        raise bad_file(path, f"is a {len(shape)}-D image", "give a 3-D volume with at least two slices")
    reader = itk.ImageFileReader[itk.Image[itk.F, len(shape)]].New(FileName=str(path), ImageIO=io)
    with _quiet():
        try:
            reader.Update()
        except MemoryError:
            raise too_large(path, shape) from None
        except RuntimeError as error:
            raise _refused(path, error) from error
    image = reader.GetOutput()
    values = np.ascontiguousarray(itk.array_view_from_image(image).T)
    lps = np.eye(4)
    lps[:3, :3] = (itk.array_from_matrix(image.GetDirection()) * np.asarray(image.GetSpacing()))[:3, :3]
    lps[:3, 3] = np.asarray(image.GetOrigin())[:3]
    x, y, z = values.shape[:3]
    return values, orthogonal(path, Grid((x, y, z), RAS_LPS @ lps)).affine, _doubt(path)


def _doubt(path: Path) -> tuple[str, str] | None:
    """(problem, what to do) where ITK guesses what a NRRD header does not say, or passes over what it says."""
    if not path.name.lower().endswith(ITK_SUFFIXES["NRRD"]):
        return None
    fields = dict[str, str]()
    for line in _header_lines(path):
        key, _, value = line.partition(": ")
        fields[key.strip().lower()] = value.strip()
    space = fields.get("space", "")
    # ITK itself does not name the space of four axes.
    written_by_itk = not space and fields.get("space dimension") == "4"
    if not written_by_itk and space.lower().replace("-", "").removesuffix("time") not in _SPACES:
        said = f"names the space {space}, which has no left and right" if space else "does not say which side is left"
        return f"its header {said}, ITK takes its axes for left, posterior, superior", _AS_LPS
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"", "mm", "millimeter", "millimetre"}
    if units:
        problem = f"its space units are {', '.join(sorted(units))}, which ITK takes for mm"
        return problem, "write its voxel size and origin in mm"
    return None


def _header_lines(path: Path) -> list[str]:
    """The lines of a text header, up to the first empty one."""
    with path.open("rb") as file:
        lines = file.read(1 << 20).decode("latin-1").splitlines()
    ends = [index for index, line in enumerate(lines) if not line.strip()]
    return lines[: ends[0]] if ends else lines


def _refused(path: Path, error: RuntimeError) -> Exception:
    """What ITK does not read, and, if it says so, why, in one line."""
    said = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    reason = (said[-1] if said else "").replace(str(path), "").partition("): ")
    why = (reason[2] or reason[0]).replace("; ", ", ")[:160].strip()
    if not why or why.startswith("Reason:") or re.search("expected .* received|got only", why):
        return bad_file(path, "is truncated or damaged: ITK cannot read all of it", AGAIN)
    return bad_file(path, f"ITK cannot read it ({why})", AGAIN)


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


def named_files(path: Path) -> list[Path]:
    """The files that a detached NRRD or MetaImage header names for its voxels."""
    lines = _header_lines(path)
    for index, line in enumerate(lines):
        key, found, value = line.replace("=", ":", 1).partition(":")
        if not found or key.strip().lower().replace(" ", "") not in ("elementdatafile", "datafile"):
            continue
        words = value.split()
        if words[:1] == ["LOCAL"] or not words:
            return []
        numbered = re.match(r"([^%]*%0?\d*d[^%\s]*)\s+(\d{1,6})\s+(\d{1,6})(?:\s+(\d{1,6}))?", value.strip())
        if words[0] == "LIST":
            named = [name.strip() for name in lines[index + 1 :] if name.strip()]
        elif numbered:
            low, high, step = (int(word) for word in (numbered[2], numbered[3], numbered[4] or "1"))
            named = [numbered[1] % number for number in range(low, high + 1, step or 1)]
        else:
            named = [value.strip()]
        return [path.parent / name for name in named]
    return []
