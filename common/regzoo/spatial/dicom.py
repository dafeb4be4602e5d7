"""Read series of DICOM files with ITK, and refuse slices that do not make up one regular grid.

ITK decodes the files. Its own reader of series is not used, because it accepts missing slices, a tilted gantry and two
volumes in one series. Multi-frame files are refused, because ITK's grid is wrong if their frames are not evenly spaced.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.affines import from_matvec
from regzoo.errors import RegZooError, bad_file
from regzoo.spatial.grid import RAS_LPS, Grid
from regzoo.spatial.itk_files import itk_name, quiet
from regzoo.spatial.nifti import AGAIN, SAME_MM, SAME_VOXELS, orthogonal, times, too_large

logger = logging.getLogger(__name__)

#: The largest number of files that a folder and its subfolders may hold.
MOST_FILES = 20000
#: The largest number of series that an error lists.
_MOST_LISTED = 20
#: The SOP classes of images: radiographs, CT, US, MR, NM, secondary captures, RT images and doses, PET.
_IMAGES = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.([1-7]|1[23]|20|128|130|481\.[12])(\.|$)")
_CONVERT = "convert it to NIfTI, for example with dcm2niix"
_SEGMENTS = "in 3D Slicer export it as .seg.nrrd"
_OTHERS = {
    "1.2.840.10008.1.3.10": ("is a DICOMDIR, which only lists files", "name the folder of the series"),
    "1.2.840.10008.5.1.4.1.1.481.3": ("is an RT structure set, not an image", _SEGMENTS),
    "1.2.840.10008.5.1.4.1.1.66.4": ("is a DICOM segmentation, not an image", _SEGMENTS),
}
_UID, _NUMBER, _DESCRIPTION, _MODALITY = "0020|000e", "0020|0011", "0008|103e", "0008|0060"
#: The SOP Instance UID, which no two images share.
_INSTANCE = "0008|0018"
_POSITION, _ORIENTATION, _SPACING = "0020|0032", "0020|0037", "0028|0030"
_TAGS = (_UID, _NUMBER, _DESCRIPTION, _MODALITY, _INSTANCE, _POSITION, _ORIENTATION, _SPACING)


class Slice(NamedTuple):
    """What the file of one slice says.

    Attributes:
        tags: the elements of its header, such as ``0020|0011``.
        shape: columns, rows, frames.
        components: the number of values in each voxel.
    """

    file: Path
    tags: Mapping[str, str]
    shape: tuple[int, ...]
    components: int

    def numbers(self, tag: str, count: int) -> np.ndarray:
        """The numbers of an element."""
        try:
            values = np.array([float(word) for word in self.tags[tag].split("\\")])
        except (KeyError, ValueError):
            values = np.empty(0)
        if len(values) != count or not np.isfinite(values).all():
            what = {_POSITION: "position", _ORIENTATION: "orientation", _SPACING: "voxel size"}[tag]
            problem = f"its header gives no {what} ({tag.replace('|', ',')})"
            raise bad_file(self.file, problem, "export the series again")
        return values


class Series(NamedTuple):
    """The slices of one series, in the order in which they lie along their normal, and their grid."""

    slices: list[Slice]
    grid: Grid


def is_dicom(start: bytes, name: str) -> bool:
    """Whether a file is a DICOM file, by its first bytes or its name."""
    return start[128:132] == b"DICM" or name.lower().endswith((".dcm", ".ima", ".dicom"))


def holds_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder with DICOM files, or ``FOLDER#SERIES``."""
    folder, _ = split_series(Path(path))
    return folder.is_dir() and next(_dicom_files(folder), None) is not None


def find_series(path: Path) -> Series:
    """The series of a file, of ``FOLDER`` if it holds only one, or of ``FOLDER#SERIES`` (a number or UID).

    Raises:
        RegZooError: there is no such series, there are several, or the slices do not make up one regular grid.
    """
    folder, wanted = split_series(path)
    named = not folder.is_dir()
    if named:
        start = _start(path)
        own = _slice(path, start)
        if own is None:
            raise bad_file(path, *_OTHERS.get(_meta(start, 2), ("is a DICOM file without an image", _CONVERT)))
        folder, wanted = path.parent, own.tags.get(_UID, "")
    series: dict[str, list[Slice]] = {}
    for found in _slices(folder, named):
        series.setdefault(found.tags.get(_UID, ""), []).append(found)
    return _placed(path, _chosen(path, folder, series, wanted))


def _slices(folder: Path, named: bool) -> Iterator[Slice]:
    """The images of a folder and its subfolders.

    Args:
        named: a file of the folder was named, not the folder. What its subfolders hold may then have nothing to do with
            that file: copies are passed over there, and what cannot be read, with a warning.
    """
    known = set[str]()
    for file, start in _dicom_files(folder, named):
        below = named and file.parent != folder
        try:
            found = _slice(file, start)
        except RegZooError as error:
            if not below:
                raise
            _pass_over(error)
            continue
        instance = "" if found is None else found.tags.get(_INSTANCE, "")
        if found is not None and not (below and instance in known):
            yield found
        known |= {instance} - {""}


def read_series(path: Path, series: Series) -> np.ndarray:
    """The values (X, Y, Z), float32, with the rescaling of each file applied."""
    import itk

    try:
        values = np.empty(series.grid.shape, dtype=np.float32)
    except MemoryError:
        raise too_large(path, series.grid.shape) from None
    with quiet():
        for index, one in enumerate(series.slices):
            name, io = itk_name(one.file), itk.GDCMImageIO.New()
            reader = itk.ImageFileReader[itk.Image[itk.F, 3]].New(FileName=name, ImageIO=io)
            try:
                reader.Update()
                values[:, :, index] = itk.array_view_from_image(reader.GetOutput())[0].T
            except (RuntimeError, ValueError) as error:
                problem = f"its voxels cannot be decoded (transfer syntax {_meta(_start(one.file), 16) or 'unknown'})"
                raise bad_file(one.file, problem, "decompress it, for example with gdcmconv --raw") from error
    return values


def split_series(path: Path) -> tuple[Path, str]:
    """The folder and the series of ``FOLDER#SERIES``; a path that exists, or without a ``#``, and no series."""
    folder, mark, wanted = str(path).rpartition("#")
    return (Path(folder), wanted) if mark and not path.exists() else (path, "")


def _dicom_files(folder: Path, named: bool = False) -> Iterator[tuple[Path, bytes]]:
    """The DICOM files of a folder and its subfolders, with their first bytes; see `_slices` for `named`."""

    def refuse(error: OSError) -> None:
        if not named or Path(error.filename) == folder:
            raise _unreadable(error) from error
        _pass_over(_unreadable(error))

    seen = 0
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # git-annex keeps copies in one
        below = named and Path(place) != folder
        for name in sorted(names):
            seen += 1
            if seen > MOST_FILES:
                fix = "name the folder of the series, or put the series into a folder of its own"
                error = bad_file(folder, f"holds more than {MOST_FILES} files", fix)
                if not below:
                    raise error
                _pass_over(error)
                return
            file = Path(place, name)
            if name.startswith(".") or not file.is_file():
                continue
            try:
                start = _start(file)
            except RegZooError as error:
                if not below:
                    raise
                _pass_over(error)
                continue
            if is_dicom(start, name):
                yield file, start


def _pass_over(error: RegZooError) -> None:
    logger.warning("%s; it was passed over, so slices may be missing", str(error).rpartition("; ")[0])


def _start(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(4096)
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> RegZooError:
    reason = (error.strerror or str(error)).lower()
    return bad_file(error.filename, f"cannot be read ({reason})", "check the path and its permissions")


def _meta(start: bytes, element: int) -> str:
    """A UID in group 2 of the header: 2 for the SOP class, 16 for the transfer syntax; empty if it is not there."""
    found = re.search(rb"\x02\x00" + bytes([element]) + rb"\x00UI..([\d.]+)", start, re.DOTALL)
    return found[1].decode() if found else ""


def _slice(file: Path, start: bytes) -> Slice | None:
    """The header of an image; None for a DICOM file of another kind."""
    import itk

    kind = _meta(start, 2)
    if kind and not _IMAGES.match(kind):
        return None
    itk.Object.GlobalWarningDisplayOff()
    io = itk.GDCMImageIO.New(FileName=itk_name(file))
    with quiet():
        try:
            io.ReadImageInformation()
        except RuntimeError as error:
            fix = f"{AGAIN}, or move it elsewhere if it belongs to another series"
            raise bad_file(file, "is a DICOM file that is truncated, damaged or without an image", fix) from error
    elements = io.GetMetaDataDictionary()
    tags = {tag: _text(elements, tag) for tag in _TAGS if elements.HasKey(tag)}
    x, y, frames = (*(int(io.GetDimensions(axis)) for axis in range(io.GetNumberOfDimensions())), 1)[:3]
    return Slice(file, tags, (x, y, frames), int(io.GetNumberOfComponents()))


def _text(elements: Any, tag: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in elements[tag].strip(" \0"))


def _chosen(path: Path, folder: Path, series: Mapping[str, list[Slice]], wanted: str) -> list[Slice]:
    """The slices of the only series, or of that with a number or UID."""
    if not series:
        raise bad_file(folder, "holds no DICOM image", "name the folder of a series")
    numbers = [slices[0].tags.get(_NUMBER, "") for slices in series.values()]
    if not wanted and len(series) == 1:
        return next(iter(series.values()))
    if wanted in series:
        return series[wanted]
    if wanted and numbers.count(wanted) == 1:
        return list(series.values())[numbers.index(wanted)]
    listed = []
    for (uid, slices), number in sorted(
        zip(series.items(), numbers, strict=True), key=lambda one: (len(one[1]), one[1])
    ):
        first = slices[0]
        about = f"{first.tags.get(_MODALITY, '?')}, {times((*first.shape[:2], first.shape[2] * len(slices)))}"
        name = number if number and numbers.count(number) == 1 else uid
        listed.append(f"#{name} {first.tags.get(_DESCRIPTION, '')!r} ({about})")
    more = f" and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    what = f"holds {len(series)} series"
    if wanted:
        what += f", {numbers.count(wanted) or 'none'} of them with the number {wanted}"
    example = listed[0].split(" ")[0]
    raise bad_file(folder, f"{what}: {', '.join(listed[:_MOST_LISTED])}{more}", f"name one, such as {folder}{example}")


def _placed(path: Path, slices: list[Slice]) -> Series:
    first = slices[0]
    columns, rows, _ = first.shape
    for one in slices:
        if one.components > 1:
            raise bad_file(one.file, "is a colour image", "choose a series with one value in each voxel")
        if one.shape[2] > 1:
            problem = f"holds {one.shape[2]} frames, whose positions ITK does not report"
            raise bad_file(one.file, problem, _CONVERT)
        if one.shape != first.shape or not np.allclose(one.numbers(_SPACING, 2), first.numbers(_SPACING, 2), rtol=1e-4):
            raise _mixed(path, first, one, "of another size")
        if np.abs(one.numbers(_ORIENTATION, 6) - first.numbers(_ORIENTATION, 6)).max() > 1e-3:
            raise _mixed(path, first, one, "of another orientation")
    right, down = first.numbers(_ORIENTATION, 6).reshape(2, 3)
    normal = np.cross(right, down)
    positions = np.array([one.numbers(_POSITION, 3) for one in slices])
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[index] for index in order], positions[order]
    height, width = first.numbers(_SPACING, 2)
    tolerance = min(SAME_MM, SAME_VOXELS * min(width, height))
    step = _step(path, slices, positions - positions[0], normal, tolerance) if len(slices) > 1 else 1.0
    lps = from_matvec(np.stack([right * width, down * height, normal * step], axis=1), positions[0])
    return Series(slices, orthogonal(path, Grid((columns, rows, len(slices)), RAS_LPS @ lps)))


def _mixed(path: Path, one: Slice, other: Slice, what: str) -> RegZooError:
    fix = "put the images that belong together into a folder of their own"
    return bad_file(path, f"its series mixes images: {other.file.name} is {what} than {one.file.name}", fix)


def _step(path: Path, slices: list[Slice], offsets: np.ndarray, normal: np.ndarray, tolerance: float) -> float:
    """The distance between slices; raises `RegZooError` unless they lie evenly spaced along their normal.

    `offsets` (N, 3) are the positions of the slices, in order, from the first one; all lengths are in mm.
    """
    heights = offsets @ normal
    gaps = np.diff(heights)
    step = float(heights[-1]) / len(gaps)
    names = list(pairwise(one.file.name for one in slices))
    if gaps.min() <= 0.01 * step:
        index = int(gaps.argmin())
        one, other = names[index]
        first, second = slices[index : index + 2]
        if first.tags.get(_INSTANCE) == second.tags.get(_INSTANCE, ""):
            problem = f"holds an image twice, as {first.file} and {second.file}"
            raise bad_file(path, problem, "move the copies out of the folder")
        problem = f"has two images at one position, {one} and {other}"
        raise bad_file(path, problem, "it may hold several phases, echoes or b-values: export one of them")
    shift = np.linalg.norm(offsets - np.outer(heights, normal), axis=1)
    if shift.max() > tolerance:
        angle = np.degrees(np.arctan2(shift[-1], heights[-1]))
        problem = f"its slices shift sideways by up to {shift.max():.3g} mm, as with a gantry tilted by {angle:.1f}°"
        raise bad_file(path, problem, "resample it to axes at right angles, for example with dcm2niix")
    if np.abs(heights - step * np.arange(len(slices))).max() > min(tolerance, SAME_VOXELS * step):
        usual = float(np.median(gaps))
        one, other = names[int(gaps.argmax())]
        if np.abs(gaps / usual - np.rint(gaps / usual)).max() < SAME_VOXELS:
            problem = f"lacks slices: {gaps.max():.3g} mm lie between {one} and {other}, and {usual:.3g} mm elsewhere"
            raise bad_file(path, problem, "copy or export the whole series again")
        problem = f"its slices are unevenly spaced, by {gaps.min():.3g} to {gaps.max():.3g} mm"
        raise bad_file(path, problem, "resample it to even spacing")
    return step
