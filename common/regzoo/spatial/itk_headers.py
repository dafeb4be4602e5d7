"""The text headers of NRRD and MetaImage, checked before ITK reads them.

ITK trusts a header. It opens any file that the header names, returns uninitialised memory for voxels missing from the
file, and hangs or crashes on some values. It is therefore given only unambiguous headers.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import zlib
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from regzoo.errors import RegZooError, bad_file
from regzoo.spatial.nifti import AGAIN, times, truncated
from regzoo.spatial.unzip import MAGIC, MOST_DEFLATED, Unzipped

#: Longest header, and longest line of an NRRD header other than comments and user keys, in bytes.
LONGEST_HEADER, LONGEST_LINE = 1 << 22, 512
#: Largest number of bytes to skip before the voxels.
MOST_SKIPPED = 1 << 24
_DATA_FILE = b"ElementDataFile"
#: Fields of MetaImage with one number per axis, with one per entry of a matrix, and with a fixed count.
_PER_AXIS = ("ElementSpacing", "ElementSize", "Offset", "Position", "Origin", "CenterOfRotation")
_PER_ENTRY = ("TransformMatrix", "Rotation", "Orientation")
_FIXED = {"Color": 4, "SequenceID": 4}
_BLOCK = 1 << 20


class TextHeader(NamedTuple):
    """A header without ambiguous fields.

    Attributes:
        fields: name → value; the names are in lower case and without blanks for NRRD.
        named: the file that holds the voxels; empty if the header's own file holds them.
        end: the length of the header, in bytes.
    """

    fields: dict[str, str]
    named: list[Path]
    end: int

    @property
    def deflated(self) -> bool:
        """Whether the voxels of a MetaImage are compressed."""
        return self.fields.get("CompressedData", "")[:1] in ("T", "t", "1")

    @property
    def skips(self) -> bool:
        """Whether the voxels of an NRRD file start after lines or bytes to skip."""
        return any(int(self.fields.get(key, 0)) for key in ("lineskip", "byteskip"))

    def fewest_bytes(self, voxels: int, itemsize: int) -> int:
        """The fewest bytes that can hold the voxels, as the header says that they are stored."""
        encoding = self.fields.get("encoding", "").lower()
        if self.deflated or encoding not in ("", "raw", "hex", "ascii", "text", "txt"):
            return voxels * itemsize // MOST_DEFLATED
        if encoding in ("raw", "hex") or self.fields.get("BinaryData", "")[:1] in ("T", "t", "1"):
            return voxels * itemsize
        return voxels * min(itemsize, 2) - 1  # text has at least a digit and a blank for each


class Segment(NamedTuple):
    """A segment of a segmentation of 3D Slicer: its name, and the layer and the value of its voxels."""

    name: str
    layer: int
    value: int


def segments(path: Path) -> list[Segment]:
    """The segments in the header of an NRRD file of 3D Slicer; old versions give each a layer of its own."""
    found = dict[int, dict[str, str]]()
    for line in _nrrd_lines(path)[0]:
        if entry := re.fullmatch(r"Segment(\d{1,4})_(Name|Layer|LabelValue):=(.*)", line):
            # NRRD escapes a backslash and the end of a line.
            text = re.sub(r"\\(.)", lambda escaped: {"n": " "}.get(escaped[1], escaped[1]), entry[3])
            found.setdefault(int(entry[1]), {})[entry[2]] = text.encode("latin-1").decode("utf-8", "replace").strip()
    try:
        return [
            Segment(one.get("Name", f"segment_{number}"), int(one.get("Layer", number)), int(one.get("LabelValue", 1)))
            for number, one in sorted(found.items())
        ]
    except ValueError:
        raise _unclear(path, "the layer or value of a segment is not a number") from None


def _nrrd_lines(path: Path) -> tuple[list[str], int]:
    """The lines of the header of an NRRD file, and its length."""
    with path.open("rb") as file:
        content = file.read(LONGEST_HEADER)
    blank = re.search(rb"\n\r?\n", content)
    if blank is None and len(content) == LONGEST_HEADER:
        raise _unclear(path, "no end")
    header = content[: blank.end() if blank else None]
    return header.decode("latin-1").replace("\r", "\n").split("\n"), len(header)


def nrrd_header(path: Path) -> TextHeader:
    """The header of an NRRD file; raises what `metaimage_header` raises."""
    lines, end = _nrrd_lines(path)
    fields, named = dict[str, str](), list[Path]()
    for line in lines[1:]:
        if line.startswith("#") or re.match("[^:]*:=", line) or not line:
            continue
        if len(line) > LONGEST_LINE:
            raise _unclear(path, f"a line has {len(line)} characters")
        key, found, value = line.partition(": ")
        key = "".join(key.split()).lower()  # ITK knows each field with and without blanks
        if not found or key in fields:
            raise _unclear(path, f"the line {line!r:.60}")
        fields[key] = value.strip()
        if key == "datafile":
            named = [_beside(path, value.encode("latin-1").strip())]
    for key, most in (("byteskip", MOST_SKIPPED), ("lineskip", 1 << 16)):
        if not re.fullmatch(r"-?\d{1,9}", skip := fields.get(key, "0")) or abs(int(skip)) > most:
            raise _unclear(path, f"{key} {skip!r:.40}")
    for key in ("space origin", "space directions", "spacings"):
        value = fields.get(key.replace(" ", ""), "")
        if re.search("nan|inf", value.lower().removesuffix(" nan")):  # the last axis may not be spatial
            raise _unclear(path, f"{key} {value!r:.60}")
    return TextHeader(fields, named, end)


def metaimage_header(path: Path) -> TextHeader:
    """The header of a MetaImage file.

    Raises:
        RegZooError: the header names a file outside its own folder, or several files, or is ambiguous.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_DATA_FILE, 0, LONGEST_HEADER)
        if start < 0 or content.find(_DATA_FILE, start + 1) >= 0:
            raise _unclear(path, f"{_DATA_FILE.decode()} must appear once")
        before, rest = content[:start], content[start : start + LONGEST_HEADER]
    last = re.match(rb"ElementDataFile[ \t]*=[ \t]*([^=:\s\0][^\r\n\0]*?)[ \t]*(?:\r?\n|\Z)", rest)
    if last is None or before[-1:] not in (b"\n", b""):
        raise _unclear(path, "its last line")
    fields = dict[str, str]()
    for line in before.decode("latin-1").split("\n"):
        if not line.strip():
            continue
        field = re.fullmatch(r"[ \t]*([^=:\s][^=:\r\0]*?)[ \t]*[=:][=: \t]*([^\r\0]*?)[ \t]*\r?", line)
        # ITK continues a list with too few numbers on the next line if that starts with a number.
        if field is None or field[1] in fields or re.match(r"(?!\d{4}\|)[-+.\d]", field[1]):
            raise _unclear(path, f"the line {line.strip()!r:.60}")
        fields[field[1]] = field[2]
    _check_numbers(path, fields)
    named = [] if last[1] in (b"LOCAL", b"Local", b"local") else [_beside(path, last[1])]
    return TextHeader(fields, named, start + last.end())


def check_complete(path: Path, header: TextHeader, shape: tuple[int, ...], itemsize: int) -> None:
    """Refuse compressed voxels that are damaged, or fewer than the header says.

    ITK would return uninitialised memory for missing voxels. It reads only as far as it needs to, so it finds no
    checksum if damaged data are longer than before.
    """
    wanted = math.prod(shape) * itemsize
    source, start = (header.named[0], 0) if header.named else (path, header.end)
    available = source.stat().st_size - start
    if header.deflated:
        stored = int(header.fields.get("CompressedDataSize") or available)
        if stored > available or _inflated(path, source, start, stored, wanted) < wanted:
            raise truncated(path, shape)
    elif header.fields.get("encoding", "").lower() in ("gzip", "gz") and not header.skips:
        with source.open("rb") as file:
            file.seek(start)
            is_compressed = file.read(len(MAGIC)) == MAGIC  # ITK also takes voxels that are not
            file.seek(start)
            found = _unzipped(path, file, wanted + _BLOCK) if is_compressed else wanted
        if found < wanted:
            raise truncated(path, shape)
        if found > wanted + _BLOCK:
            raise bad_file(path, f"holds more than the {times(shape)} voxels of its header", AGAIN)


def _unzipped(path: Path, file: BufferedReader, most: int) -> int:
    """The number of bytes in gzip data, read up to the checksum at their end; counting stops soon after `most`."""
    found = 0
    try:
        with Unzipped(fileobj=file, mode="rb") as stream:
            while found <= most and (block := stream.read(_BLOCK)):
                found += len(block)
    except EOFError:
        return 0
    except zlib.error as error:
        raise bad_file(path, f"is damaged ({error})", AGAIN) from error
    return found


def _inflated(path: Path, source: Path, start: int, stored: int, wanted: int) -> int:
    """The number of decompressed bytes; counting stops soon after `wanted`, behind the checksum of whole data."""
    engine, found = zlib.decompressobj(47), 0
    with source.open("rb") as file:
        file.seek(start)
        try:
            while found < wanted + _BLOCK and not engine.eof:
                block = engine.unconsumed_tail
                if not block:
                    block = file.read(min(stored, _BLOCK))
                    stored -= len(block)
                if not block:
                    break
                found += len(engine.decompress(block, _BLOCK))
        except zlib.error as error:
            raise bad_file(path, f"is damaged ({error})", AGAIN) from error
    return found


def _check_numbers(path: Path, fields: dict[str, str]) -> None:
    """Refuse a MetaImage header with the wrong count of numbers in a field, or with impossible numbers."""
    if not re.fullmatch("[1-9]", fields.get("NDims", "")):
        raise _unclear(path, f"NDims {fields.get('NDims', 'missing')!r:.40}")
    axes = int(fields["NDims"])
    counts = dict.fromkeys(_PER_AXIS, axes) | dict.fromkeys(_PER_ENTRY, axes * axes) | _FIXED
    sizes = fields.get("DimSize", "missing")
    if len(sizes.split()) != axes or not all(re.fullmatch(r"0*[1-9]\d{0,9}", n) for n in sizes.split()):
        raise bad_file(path, f"has impossible sizes in its header (DimSize {sizes!r:.60})", AGAIN)
    for key, value in fields.items():
        if key in counts and not _numbers(value, counts[key]):
            raise _unclear(path, f"{key} {value!r:.60}")
    limits = {
        "ElementNumberOfChannels": (1, 1 << 16),
        "CompressedDataSize": (0, 1 << 40),
        "HeaderSize": (-1, MOST_SKIPPED),
    }
    for key, (low, high) in limits.items():
        if key in fields and not (re.fullmatch(r"-?\d{1,15}", fields[key]) and low <= int(fields[key]) <= high):
            raise _unclear(path, f"{key} {fields[key]!r:.40}")


def _numbers(value: str, count: int) -> bool:
    """Whether a value is so many numbers; ITK takes 0 for those that are not finite."""
    try:
        return len(words := value.split()) == count and "_" not in value and all(map(math.isfinite, map(float, words)))
    except ValueError:
        return False


def _beside(path: Path, stored: bytes) -> Path:
    """The path of the file that holds the voxels; it must be in the folder of the header or below it.

    Args:
        stored: its name, relative to the folder, in UTF-8, as ITK reads it.
    """
    name = stored.decode("utf-8", "surrogateescape")  # which turns other bytes into what cannot be printed
    if not name.isprintable():
        problem = f"names another file for its voxels, {name!r:.80}, in letters that are not UTF-8 or cannot be printed"
        raise bad_file(path, problem, "rename the other file with plain letters, also in the header")
    if "%" in name or name.startswith("LIST"):  # ITK takes these for patterns and lists
        raise bad_file(path, f"names another file for each slice, {name!r:.80}", "save the image as one file")
    folder = Path(os.path.normpath(Path.cwd() / path.parent))
    if name == "-" or folder not in Path(os.path.normpath(folder / name)).parents:
        problem = f"names another file for its voxels, {name!r:.80}, outside its own folder"
        raise bad_file(path, problem, "put both files into one folder and name the other file in the header")
    return path.parent / name


def _unclear(path: Path, what: str) -> RegZooError:
    return bad_file(path, f"has a damaged or unclear header ({what})", AGAIN)
