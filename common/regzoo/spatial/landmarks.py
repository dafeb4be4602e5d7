"""Points that correspond in two images, read from two files."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from os.path import commonprefix
from pathlib import Path
from typing import NamedTuple

import numpy as np
from regzoo.errors import bad_file
from regzoo.files import decoded
from regzoo.spatial.grid import Grid
from regzoo.spatial.point_files import read_points, table_rows
from regzoo.spatial.transformation import within_grid


class Landmarks(NamedTuple):
    """Corresponding points.

    Attributes:
        fixed, moving: (N, 3) float64, each in the world of its own image, RAS mm.
        names: of each point; its number, from 1, where the files have no names.
    """

    fixed: np.ndarray
    moving: np.ndarray
    names: list[str]


def read_landmarks(
    fixed: str | Path, moving: str | Path, fixed_grid: Grid, moving_grid: Grid, frame: str | None = None
) -> Landmarks:
    """Read the corresponding points of two images.

    Points correspond by their names if both files name their points, otherwise by their order. The words
    with which all names of a file begin do not count: ``US-1``, ``US-2`` are the same names as ``MR-1``, ``MR-2``.

    Args:
        fixed, moving: files that `regzoo.spatial.point_files.read_points` reads, or ``.csv`` without a header, as in
            Learn2Reg: three columns, voxel indices of the image, from 0, in the order of its axes.
        fixed_grid, moving_grid: the grids of the images.
        frame: ``RAS`` or ``LPS``, for a file that does not say so itself.

    Raises:
        RegZooError: a file cannot be used, the two files hold different points, or a point lies outside its image.
    """
    (points, names), (others, their_names) = (
        _read(Path(file), grid, frame) for file, grid in ((fixed, fixed_grid), (moving, moving_grid))
    )
    if len(points) != len(others):
        fix = "give both the same points, in the same order or with the same names"
        raise bad_file(moving, f"holds {len(others)} points, {fixed} holds {len(points)}", fix)
    if not names or not their_names:
        return Landmarks(points, others, names or their_names or [str(n) for n in range(1, len(points) + 1)])
    places = {name: index for index, name in enumerate(_bare(their_names))}
    missing = [name for name, bare in zip(names, _bare(names), strict=True) if bare not in places]
    if missing:
        fix = "give corresponding points the same name, or remove the names to pair them by their order"
        raise bad_file(moving, f"has no point of the name {missing[0]!r}, which {fixed} has", fix)
    return Landmarks(points, others[[places[bare] for bare in _bare(names)]], names)


def _read(path: Path, grid: Grid, frame: str | None) -> tuple[np.ndarray, list[str]]:
    """The points of one file, RAS mm, and their names, none if it has none."""
    voxels = _voxels(path)
    if voxels is not None:
        points, names = grid.to_world(voxels), list[str]()
    else:
        file = read_points(path, frame)
        points, names = file.points, [name for name in file.names if name]
        if names and len(set(names)) < len(points):
            fix = "give each point a name of its own, or none a name"
            raise bad_file(path, "has points with the same name, or with none beside points with one", fix)
    outside = np.flatnonzero(~within_grid(points, grid))
    if len(outside):
        which = names[outside[0]] if names else f"number {outside[0] + 1}"
        problem = f"has {len(outside)} of {len(points)} points outside its image, first {which}"
        raise bad_file(path, problem, "remove them, or check their frame (RAS, LPS or voxels)")
    return points, names


def _voxels(path: Path) -> np.ndarray | None:
    """The rows of a ``.csv`` of numbers alone, (N, 3); None for any other file."""
    if path.suffix.lower() != ".csv":
        return None
    try:
        lines = io.StringIO(decoded(path, path.read_bytes()), newline="")
        rows = np.array([[float(cell) for cell in row] for row in table_rows(path, lines)])
    except (OSError, ValueError):
        return None
    return rows if rows.ndim == 2 and rows.shape[1] == 3 and np.isfinite(rows).all() else None


def _bare(names: Sequence[str]) -> list[str]:
    """Names without their common beginning, which ends before a number or with a sign such as ``-`` or a blank."""
    start = len(commonprefix(names).rstrip("0123456789"))  # noqa: RUF071 - these are not paths
    if not all(name[start:][:1].isdigit() for name in names):
        start = len(re.sub(r"[^\W_]+$", "", names[0][:start]))
    return [name[start:] for name in names]
