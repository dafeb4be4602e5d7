"""Read NRRD and MetaImage files with ITK."""

from __future__ import annotations

import math
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.affines import from_matvec
from regzoo.errors import bad_file
from regzoo.spatial.grid import RAS_LPS, Grid
from regzoo.spatial.itk_headers import TextHeader, check_complete, metaimage_header, nrrd_header
from regzoo.spatial.nifti import AGAIN, as_float32, orthogonal, too_large, truncated

ITK_SUFFIXES = {"NRRD": (".nrrd", ".nhdr"), "MetaImage": (".mha", ".mhd")}
#: The NRRD spaces that ITK knows; it treats all others as LPS.
_SPACES = {"rightanteriorsuperior", "leftanteriorsuperior", "leftposteriorsuperior", "ras", "las", "lps"}
#: The threads that load cases share the terminal.
_ONE_AT_A_TIME = threading.Lock()


class ItkFile(NamedTuple):
    """An NRRD or MetaImage file before its voxels are read.

    Attributes:
        io: ITK's reader, which has read the header.
        header: the header as this package read it.
        shape: the number of voxels along each axis; with several values in each voxel also the length of a
            list, such as the layers of a segmentation, or 1 and the length of a vector.
        stamp: changes when one of the files is replaced.
    """

    io: Any
    header: TextHeader
    shape: tuple[int, ...]
    stamp: list[tuple[int, int, int]]


def itk_header(path: Path, kind: str) -> ItkFile:
    """Read the header of a file of numbers, vectors or lists of numbers."""
    import itk  # takes two seconds

    itk.Object.GlobalWarningDisplayOff()
    io = (itk.NrrdImageIO if kind == "NRRD" else itk.MetaImageIO).New()
    io.SetFileName(itk_name(path))
    stamp = _stamp([path])
    header = nrrd_header(path) if kind == "NRRD" else metaimage_header(path)
    for file in header.named:
        if not file.is_file():
            raise bad_file(path, f"its voxels are missing: no file {file}", "put the two files together")
    with quiet():
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
    shape = tuple(int(io.GetDimensions(axis)) for axis in range(io.GetNumberOfDimensions()))
    if max(shape, default=2**31) >= 2**31 or (
        kind == "MetaImage" and shape != tuple(map(int, header.fields["DimSize"].split()))
    ):
        raise bad_file(path, "has impossible sizes in its header", AGAIN)
    if count > 1:
        shape += (count,) if header.fields.get("kinds", "").startswith("list") else (1, count)
    available = sum(file.stat().st_size for file in (path, *header.named))
    if header.fewest_bytes(math.prod(shape), itemsize) > available:
        raise truncated(path, shape)
    return ItkFile(io, header, shape, stamp + _stamp(header.named))


def read_itk(path: Path, file: ItkFile) -> tuple[np.ndarray, np.ndarray, tuple[str, str] | None]:
    """The values (float32, in the shape of `file`), affine and doubt of a volume; a fourth axis is not spatial."""
    import itk

    io, header, shape, stamp = file
    axes, vectors = int(io.GetNumberOfDimensions()), int(io.GetNumberOfComponents()) > 1
    if axes not in (3, 4):
        raise bad_file(path, f"is a {axes}-D image", "give a 3-D volume with at least two slices")
    check_complete(path, header, shape, int(io.GetComponentSize()))
    kind = itk.VectorImage if vectors else itk.Image
    number = itk.D if io.GetComponentTypeAsString(io.GetComponentType()) == "double" else itk.F
    reader = itk.ImageFileReader[kind[number, axes]].New(FileName=itk_name(path), ImageIO=io)
    with quiet():
        try:
            reader.Update()
        except MemoryError:
            raise too_large(path, shape) from None
        except RuntimeError as error:
            raise _refused(path, error) from error
    if _stamp([path, *header.named]) != stamp:
        raise bad_file(path, "was replaced while it was being read", "send the request again")
    image = reader.GetOutput()
    values = itk.array_view_from_image(image)
    values = np.ascontiguousarray(np.moveaxis(values.T, 0, -1) if vectors else values.T).reshape(shape)
    values = as_float32(path, values)
    axes = (itk.array_from_matrix(image.GetDirection()) * np.asarray(image.GetSpacing()))[:3, :3]
    grid = Grid(shape[:3], RAS_LPS @ from_matvec(axes, np.asarray(image.GetOrigin())[:3]))
    return values, orthogonal(path, grid).affine, _doubt(path, header.fields, len(shape) == 5)


def itk_name(path: str | os.PathLike[str]) -> str:
    """The name of a file for ITK; raises `RegZooError` if it is not UTF-8, which ITK needs."""
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        raise bad_file(path, "its name or folder is not UTF-8, which ITK cannot open", "rename it") from None


def lay(image: Any, grid: Grid) -> None:
    """Place an image of ITK on a grid."""
    import itk

    lps = RAS_LPS @ grid.affine
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection(itk.matrix_from_array(lps[:3, :3] / grid.spacing))


def _doubt(path: Path, fields: Mapping[str, str], vectors: bool) -> tuple[str, str] | None:
    """(problem, what to do) if ITK guesses the space of an NRRD file or its vectors, or ignores the units of a file."""
    if not path.name.lower().endswith(ITK_SUFFIXES["NRRD"]):
        return _metaimage_doubt(fields)
    space = fields.get("space", "")
    # ITK itself writes no space for four axes.
    written_by_itk = not space and fields.get("spacedimension") == "4"
    known = space.lower().replace("-", "").removesuffix("time")
    if not written_by_itk and known not in _SPACES:
        what = f"names the space {space}, which has no left and right" if space else "does not say which side is left"
        fix = "write its space, such as 'space: left-posterior-superior', into its header"
        return f"its header {what}, so ITK takes the axes as left, posterior, superior", fix
    if not written_by_itk and "spacedirections" not in fields:
        problem = "its header gives no directions of its axes, so ITK takes those of its space"
        return problem, "write its space directions into its header"
    if vectors and known not in ("", "leftposteriorsuperior", "lps"):
        problem = f"its space is {space}, but ITK takes its vectors as left, posterior, superior"
        return problem, "write the vectors and the space as left-posterior-superior"
    units = set(re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))) - {"", "mm", "millimeter", "millimetre"}
    if units:
        problem = f"its space units are {', '.join(sorted(units))}, which ITK reads as mm"
        return problem, "write its voxel size and origin in mm"
    return None


def _metaimage_doubt(fields: Mapping[str, str]) -> tuple[str, str] | None:
    """`_doubt` for MetaImage; ITK also ignores a scale of the values, and takes 1 mm and its own axes by default."""
    unit = fields.get("DistanceUnits", "mm")
    if unit.lower() not in ("mm", "?", ""):
        return f"its distance units are {unit}, which ITK reads as mm", "write its voxel size and offset in mm"
    scale = "ElementToIntensityFunction"
    slope, offset = (fields.get(f"{scale}{part}", default) for part, default in (("Slope", "1"), ("Offset", "0")))
    if not (re.fullmatch(r"\+?1(\.0*)?", slope) and re.fullmatch(r"[+-]?0(\.0*)?", offset)):
        problem = f"scales its values by {slope} and adds {offset}, which ITK ignores"
        return problem, f"write scaled values, without {scale}Slope and {scale}Offset"
    if not {"ElementSpacing", "ElementSize"} & fields.keys():
        return "its header gives no voxel size, so ITK takes 1 mm", "write ElementSpacing into its header"
    if not {"TransformMatrix", "Rotation", "Orientation"} & fields.keys():
        problem = "its header does not say which side is left, so ITK takes the axes as left, posterior, superior"
        return problem, "write TransformMatrix into its header"
    return None


def _stamp(files: Sequence[Path]) -> list[tuple[int, int, int]]:
    """Inode, size and time of change of some files."""
    return [(found.st_ino, found.st_size, found.st_ctime_ns) for found in map(os.stat, files)]


def _refused(path: Path, error: RuntimeError) -> Exception:
    """The error for a file that ITK refuses, in one line, with ITK's reason if it gives one."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    reason = (lines[-1] if lines else "").replace(str(path), "").partition("): ")
    why = (reason[2] or reason[0]).replace("; ", ", ")[:160].strip()
    if not why or why.startswith("Reason:") or re.search("expected .* received|got only", why):
        return bad_file(path, "is truncated or damaged: ITK cannot read all of it", AGAIN)
    return bad_file(path, f"ITK cannot read it ({why})", AGAIN)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the output that C++ libraries print to the terminal."""
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
