"""What the writers of phantom sets share: a folder that appears whole or not at all, and work on several processors."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from regzoo.errors import bad_file
from regzoo.files import make_folder, partial_folder
from regzoo.spatial.grid import Grid

Case = TypeVar("Case")


@contextmanager
def new_set(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` when the block ends well, and removed when it does not.

    Raises:
        RegZooError: the folder is not empty, is filled meanwhile, or cannot be written to.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise bad_file(target, "exists and is not empty", "name a new folder for the phantoms or remove this one")
    make_folder(target.parent)
    with partial_folder(target.parent) as temporary:
        root = temporary / "phantoms"
        root.mkdir()
        yield root
        try:
            root.replace(target)  # onto an empty folder at most: fails if another process was faster
        except OSError as error:
            raise bad_file(target, "was filled meanwhile by another process", "name another folder") from error


def write_cases(
    write: Callable[[Case], dict[str, Any]], cases: Sequence[Case], workers: int | None = None
) -> list[dict[str, Any]]:
    """Call `write` for every case, in several processes where that helps; what it returned, in order.

    Args:
        write: can be pickled; uses NumPy only.
        cases: what to write.
        workers: processes; None: one per processor.
    """
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(cases) < 2:
        return [write(case) for case in cases]
    # Forked workers inherit the imports; they use NumPy only, so nothing threaded of the parent's is touched.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(min(workers, len(cases)), mp_context=context) as pool:
        return list(pool.map(write, cases))


def grid_about(
    directions: np.ndarray | Sequence[Sequence[float]],
    field: np.ndarray | Sequence[float],
    spacing: np.ndarray | float,
    centre: np.ndarray | Sequence[float] = (0.0, 0.0, 0.0),
) -> Grid:
    """A grid of a field of view about a centre.

    Args:
        directions: 3×3, the columns are the axes' directions in RAS.
        field: extent along the axes, mm.
        spacing: mm, along the axes or of all.
        centre: middle of the field of view, RAS mm.
    """
    shape = np.maximum(np.rint(np.asarray(field) / spacing).astype(int), 1)
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions, dtype=float) * spacing
    affine[:3, 3] = np.asarray(centre, dtype=float) - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
