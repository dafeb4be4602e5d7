"""Read lists of points and surfaces, and write them again with other positions and everything else as it was."""

from __future__ import annotations

import codecs
import copy
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from regzoo.errors import RegZooError, bad_file
from regzoo.files import atomic_path, decoded
from regzoo.spatial.grid import LPS_SIGNS
from regzoo.spatial.nifti import AGAIN, as_float32
from regzoo.spatial.reading import not_a_file

OUTSIDE = "outside the field of view"
_SLICER = "save it again with 3D Slicer"
_TYPES = {"char": "i1", "uchar": "u1", "int8": "i1", "uint8": "u1", "short": "i2", "ushort": "u2", "int16": "i2"}
_TYPES |= {"uint16": "u2", "int": "i4", "uint": "u4", "int32": "i4", "uint32": "u4"}
_TYPES |= {"float": "f4", "float32": "f4", "double": "f8", "float64": "f8"}


class PointFile(NamedTuple):
    """The points of a file.

    Attributes:
        points: (N, 3) float64, RAS mm.
        rewritten: the content of the file with other points (N, 3), RAS mm; `known` (N,) says which of them are known.
        suffix: of the file.
        names: of the points; empty if the file has none.
    """

    points: np.ndarray
    rewritten: Callable[[np.ndarray, np.ndarray], bytes]
    suffix: str
    names: Sequence[str] = ()

    def write(self, path: str | Path, points: np.ndarray, known: np.ndarray) -> None:
        """Write the file with other points, atomically; points that are not known are marked and get no position."""
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.rewritten(points, known))


def read_points(path: str | Path, frame: str | None = None) -> PointFile:
    """Read ``.fcsv`` or ``.mrk.json`` of 3D Slicer, ``.csv`` with columns x, y, z, or a surface (``.vtk``, ``.ply``).

    Args:
        frame: ``RAS`` or ``LPS``, for a file that does not say so itself.

    Raises:
        RegZooError: the file cannot be used, or its frame is not known.
    """
    path = Path(path)
    suffix = point_suffix(path)
    if not path.is_file():
        raise not_a_file(path)
    if frame is not None and frame.upper() not in ("RAS", "LPS"):
        raise RegZooError(f"frame: {frame} is not a frame; write RAS or LPS")
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if not content.strip():
        raise bad_file(path, "is empty", AGAIN)
    return _READERS[suffix](path, content, frame.upper() if frame else None)


def point_suffix(path: str | Path) -> str:
    """The suffix of a file of points; raises `RegZooError` for any other file."""
    found = [suffix for suffix in _READERS if str(path).lower().endswith(suffix)]
    if not found:
        raise bad_file(path, "is not a list of points or a surface", f"give one of {', '.join(_READERS)}")
    return found[0]


def _signs(path: Path, said: str | None, frame: str | None) -> np.ndarray:
    """The factors between the frame of a file and RAS."""
    if said is None and frame is None:
        problem = "does not say whether its points are RAS or LPS"
        raise bad_file(path, problem, "set frame to RAS or LPS; in a datalist, points_frame")
    if said is not None and frame is not None and said != frame:
        problem = f"says that its points are {said}, not {frame}"
        raise bad_file(path, problem, "leave frame out (in a datalist, points_frame)")
    return np.ones(3) if (said or frame) == "RAS" else LPS_SIGNS


def _checked(path: Path, points: Any) -> np.ndarray:
    array = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    if not len(array):
        raise bad_file(path, "holds no points", "place one, or leave the file out")
    if not np.isfinite(array).all():
        raise bad_file(path, "holds positions that are NaN or infinite", "remove these points")
    as_float32(path, array)
    return array


def table_rows(path: Path, lines: Iterable[str]) -> list[list[str]]:
    """The rows of a table with commas, except empty ones; `lines` keep their ends."""
    blanks = re.compile(r'(?<=")[ \t]+(?=,|[\r\n]*$)')  # after a cell in quotes
    # Strict, or a quote that is never closed would swallow points.
    reader = csv.reader((blanks.sub("", line) for line in lines), skipinitialspace=True, strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        ends = "end of data" in str(error)
        problem = "has a quote that is never closed" if ends else f"its line {reader.line_num} is not a row of a table"
        raise bad_file(path, problem, "close its quotes, and double those within a cell") from error
    return [row for row in rows if any(cell.strip() for cell in row)]


def _numbers(path: Path, rows: Sequence[Sequence[str]], columns: Sequence[int]) -> np.ndarray:
    points = []
    for number, row in enumerate(rows, start=1):
        try:
            cells = [row[column] for column in columns]
            if "_" in "".join(cells):  # Python reads 1_0 as 10; here it is more likely a slip of the pen for 1.0
                raise ValueError("_")
            points.append(list(map(float, cells)))
        except (ValueError, IndexError):
            problem = f"its point {number} lacks three numbers for x, y and z"
            raise bad_file(path, problem, "complete or remove it") from None
    return _checked(path, points)


def _column(rows: Sequence[Sequence[str]], names: Sequence[str], *wanted: str) -> list[str]:
    """The cells of the first of some columns that a table has."""
    found = [names.index(name) for name in wanted if name in names][:1]
    return [row[column].strip() if column < len(row) else "" for column in found for row in rows]


def _csv_text(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _fcsv(path: Path, content: bytes, frame: str | None) -> PointFile:
    lines = list(io.StringIO(decoded(path, content), newline=""))
    head = [line.rstrip("\r\n") for line in lines if line.startswith("#")]
    facts = dict(re.findall(r"^#\s*(\w+)\s*=\s*(.*?)\s*$", "\n".join(head), re.M))
    said = {"0": "RAS", "1": "LPS", "2": "IJK"}.get(found := facts.get("CoordinateSystem", "").upper(), found)
    if said not in ("RAS", "LPS", ""):
        raise bad_file(path, f"has its points in the frame {said}", "save it in RAS or LPS")
    columns_said = facts.get("columns", "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID")
    names = [name.strip() for name in columns_said.split(",")]
    if not {"x", "y", "z"} <= set(names):
        raise bad_file(path, "names no columns x, y and z", _SLICER)
    columns = [names.index(axis) for axis in "xyz"]
    rows = table_rows(path, [line for line in lines if not line.startswith("#")])
    signs = _signs(path, said or None, frame)

    def rewritten(points: np.ndarray, known: np.ndarray) -> bytes:
        text = "".join(f"{line}\n" for line in head)
        for row, point, is_known in zip(rows, points * signs, known, strict=True):
            if is_known:  # the others must stay out of the scene, but not disappear
                # 3D Slicer reads a list line by line.
                text += _csv_text([[re.sub(r"[\r\n]+", " ", cell) for cell in _replaced(row, columns, point)]])
            else:
                text += f"# {OUTSIDE}: {' '.join(_csv_text([row]).splitlines())}\n"
        return text.encode()

    labels = _column(rows, names, "label")
    return PointFile(_numbers(path, rows, columns) * signs, rewritten, ".fcsv", labels)


def _replaced(row: Sequence[str], columns: Sequence[int], point: np.ndarray) -> list[str]:
    new = list(row)
    for column, value in zip(columns, point, strict=True):
        new[column] = f"{value:.6f}"
    return new


def _csv(path: Path, content: bytes, frame: str | None) -> PointFile:
    header, *rows = table_rows(path, io.StringIO(decoded(path, content), newline="")) or [[]]
    names = [name.strip().lower() for name in header]
    if not {"x", "y", "z"} <= set(names):
        problem = f"names no columns x, y and z in its first line (it has: {', '.join(map(repr, header)):.80})"
        raise bad_file(path, problem, "separate cells by commas, below a line such as x,y,z,name (mm)")
    if twice := [axis for axis in "xyz" if names.count(axis) > 1]:
        raise bad_file(path, f"has two columns {twice[0]}", "rename the one that does not count")
    width = len(header)
    for number, row in enumerate(rows, start=1):
        if any(cell.strip() for cell in row[width:]):  # perhaps x, y and z are not below their names
            problem = f"its point {number} has {len(row)} cells where the first line has {width}"
            raise bad_file(path, problem, "put cells that hold a comma in quotes")
    rows = [[*row, *[""] * width][:width] for row in rows]
    columns = [names.index(axis) for axis in "xyz"]
    signs = _signs(path, None, frame)

    def rewritten(points: np.ndarray, known: np.ndarray) -> bytes:
        table = [[*header, "note"]]
        for row, point, is_known in zip(rows, points * signs, known, strict=True):
            new = _replaced(row, columns, point)
            for column in () if is_known else columns:
                new[column] = ""
            table.append([*new, "" if is_known else OUTSIDE])
        return _csv_text([row[:-1] for row in table] if known.all() else table).encode()

    labels = _column(rows, names, "name", "label")
    return PointFile(_numbers(path, rows, columns) * signs, rewritten, ".csv", labels)


def _placed(lists: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The points of 3D Slicer's lists that have a position, each with its frame, if the list says it."""
    points = ((str(one.get("coordinateSystem", "")).upper(), point) for one in lists for point in one["controlPoints"])
    return [(frame, point) for frame, point in points if point.get("positionStatus", "defined") == "defined"]


def _markups(path: Path, content: bytes, frame: str | None) -> PointFile:
    try:
        scene = json.loads(decoded(path, content))
        lists = scene["markups"]
        placed = _placed(lists)
        numbers = [(float(x), float(y), float(z)) for x, y, z in (point["position"] for _, point in placed)]
        positions = _checked(path, numbers)
    except RegZooError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise bad_file(path, "is not a list of markups of 3D Slicer", _SLICER) from None
    for one in lists:
        if one.get("type") in ("ROI", "Plane"):
            raise bad_file(path, f"holds a {one['type']}, which is more than points", "export its corners as points")
        if one.get("coordinateUnits", "mm") not in ("mm", ["mm", "mm", "mm"]):
            raise bad_file(path, f"has its points in {one['coordinateUnits']}", "save it in mm")
    if not {said for said, _ in placed} <= {"RAS", "LPS", ""}:
        raise bad_file(path, f"has points in the frame {placed[0][0]}", "save it in RAS or LPS")
    signs = np.stack([_signs(path, said or None, frame) for said, _ in placed])

    def rewritten(points: np.ndarray, known: np.ndarray) -> bytes:
        written = copy.deepcopy(scene)
        for (_, point), position, is_known in zip(_placed(written["markups"]), points * signs, known, strict=True):
            if is_known:
                point["position"] = [round(float(value), 6) for value in position]
            else:
                del point["position"]
                point["positionStatus"] = "undefined"
                point["description"] = "; ".join([str(text) for text in (point.get("description"), OUTSIDE) if text])
        return (json.dumps(written, indent=4) + "\n").encode()

    return PointFile(positions * signs, rewritten, ".mrk.json", [str(point.get("label", "")) for _, point in placed])


def _surface(path: Path, frame: str | None, head: bytes, values: np.ndarray, encode: Callable[..., bytes]) -> PointFile:
    """A surface whose vertices are replaced; 3D Slicer writes the frame into the header."""
    said = re.search(rb"SPACE\s*=\s*(RAS|LPS)", head)
    signs = _signs(path, said[1].decode() if said else None, frame)
    points = _checked(path, values) * signs
    return PointFile(points, lambda moved, known: encode(moved * signs), path.suffix.lower())


def _vtk(path: Path, content: bytes, frame: str | None) -> PointFile:
    found = re.search(rb"^POINTS\s+(\d+)\s+(\w+)[^\n]*\n", content, re.M)
    form = re.match(rb"# vtk DataFile[^\n]*\n[^\n]*\n\s*(ASCII|BINARY)\s", content)
    if form is None or found is None or found[2] not in (b"float", b"double"):
        raise bad_file(path, "is not a legacy VTK file with points", "save it as legacy VTK PolyData")
    count, start, binary = int(found[1]), found.end(), form[1] == b"BINARY"
    dtype = np.dtype(">f4" if found[2] == b"float" else ">f8")
    end = start + 3 * count * (dtype.itemsize if binary else 1)
    if end > len(content):
        raise bad_file(path, f"ends before its {count} points", AGAIN)
    if binary:
        values, rest = np.frombuffer(content[start:end], dtype=dtype), content[end:]
    else:
        words = content[start:].split(maxsplit=3 * count)
        rest = b"\n" + b"".join(words[3 * count :])
        rows = [[word.decode("ascii", "replace") for word in words[row : row + 3]] for row in range(0, 3 * count, 3)]
        values = _numbers(path, rows, range(3))

    def encode(points: np.ndarray) -> bytes:
        lines = "\n".join(" ".join(f"{value:.6f}" for value in point) for point in points)
        return content[:start] + (points.astype(dtype).tobytes() if binary else lines.encode()) + rest

    return _surface(path, frame, content[: found.start()], values, encode)


def _ply(path: Path, content: bytes, frame: str | None) -> PointFile:
    head = re.match(rb"ply\s*\n.*?end_header[ \r]*\n", content, re.S)
    form = re.search(rb"^format\s+(\w+)", head[0], re.M) if head else None
    first = re.search(rb"^element vertex (\d+)\s*\n((?:property \w+ \w+\s*\n)+)", head[0], re.M) if head else None
    properties = re.findall(r"property (\w+) (\w+)", first[2].decode()) if first else []
    names = [name for _, name in properties]
    order = {b"ascii": "", b"binary_little_endian": "<", b"binary_big_endian": ">"}.get(form[1]) if form else None
    once = all(names.count(name) == 1 for name in [*"xyz", *names])
    if head is None or order is None or first is None or not once:
        raise bad_file(path, "is not a PLY file with vertices x, y and z", AGAIN)
    if any(name in "xyz" and not kind.startswith(("float", "double")) for kind, name in properties):
        raise bad_file(path, "has whole numbers as positions, which would be rounded", "save them as float")
    if re.search(rb"^element", head[0], re.M).start() != first.start():  # type: ignore[union-attr]
        raise bad_file(path, "has other elements before its vertices", "put its vertices first")
    if not re.match(rb"(comment[^\n]*\n)*(element|end_header)", head[0][first.end() :]):
        raise bad_file(path, "has lists in its vertices", "save it again without them")
    count, start = int(first[1]), head.end()
    if start + count > len(content):
        raise bad_file(path, f"ends before its {count} vertices", AGAIN)
    if not order:
        lines = content[start:].split(b"\n", count)
        rows = [line.decode("ascii", "replace").split() for line in lines[:count]]
        values = _numbers(path, rows, [names.index(axis) for axis in "xyz"])
        if len(values) < count:
            raise bad_file(path, f"ends before its {count} vertices", AGAIN)
        rest = b"".join(lines[count:])
    else:
        if not {kind for kind, _ in properties} <= _TYPES.keys():
            raise bad_file(path, "has vertices of an unknown type", AGAIN)
        dtype = np.dtype([(name, order + _TYPES[kind]) for kind, name in properties])
        end = start + count * dtype.itemsize
        if end > len(content):
            raise bad_file(path, f"ends before its {count} vertices", AGAIN)
        table = np.frombuffer(content[start:end], dtype=dtype)
        values = np.stack([table[axis] for axis in "xyz"], axis=-1)

    def encode(points: np.ndarray) -> bytes:
        if not order:
            columns = [names.index(axis) for axis in "xyz"]
            new = [_replaced(row, columns, point) for row, point in zip(rows, points, strict=True)]
            return content[:start] + "".join(" ".join(row) + "\n" for row in new).encode() + rest
        moved = table.copy()
        for axis, part in zip("xyz", points.T, strict=True):
            moved[axis] = part
        return content[:start] + moved.tobytes() + content[end:]

    return _surface(path, frame, head[0], values, encode)


_READERS = {".mrk.json": _markups, ".fcsv": _fcsv, ".csv": _csv, ".vtk": _vtk, ".ply": _ply}
