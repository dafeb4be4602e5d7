"""Writes a set of phantoms, in several processes, into a folder that appears once everything is written."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from regzoo.errors import RegZooError, bad_file
from regzoo.files import make_folder, partial_folder, write_json
from regzoo.spatial.grid import Grid

SPLITS = ("train", "val")
#: The most voxels of an image: drawing one takes some hundred bytes for each.
MOST_VOXELS = 50_000_000


@dataclass(frozen=True)
class Case:
    """One case: its split, its patient's number in the split from 0, its number in the set from 1, and the visit."""

    split: str
    patient: int
    number: int = 0
    visit: int = 0


class PhantomSet:
    """A set of phantoms. A subclass is a dataclass of its parameters, which its manifest records.

    The random numbers of a patient depend on the seed and the patient alone: asking for more cases adds some and
    changes none.

    Attributes:
        kind: name of the kind.
        version: raise it whenever the same seed gives other files, so that an old set is recognised.
        unit: the parameter that counts the cases for training is its plural.
        most: how many cases the names of the files can number.
        field: the field of view of the largest image, mm along its axes.
        labels: names of the labels by value, if all cases have the same.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    unit: ClassVar[str] = "case"
    most: ClassVar[int]
    field: ClassVar[tuple[float, float, float]]
    labels: ClassVar[dict[int, str]] = {}
    held_out: int
    seed: int
    spacing: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "spacing", float(self.spacing))

    @property
    def count(self) -> int:
        """The number of cases for training."""
        return int(getattr(self, f"{self.unit}s"))

    @property
    def patients(self) -> int:
        """The number of patients for training."""
        return len({case.patient for case in self._cases() if case.split == SPLITS[0]})

    def visits(self, split: str, patient: int) -> int:
        """How many cases a patient has."""
        return 1

    def folders(self) -> list[str]:
        """The folders that the set consists of."""
        raise NotImplementedError

    def name(self, case: Case) -> str:
        """The name of a case in the manifest."""
        raise NotImplementedError

    def write_case(self, root: Path, case: Case) -> dict[str, Any]:
        """Draw and write a case; returns its facts for the manifest. Uses NumPy only, because it runs in a fork."""
        raise NotImplementedError

    def write_list(self, root: Path, cases: Sequence[Case]) -> None:
        """Write the data set's own list of its files, if its layout has one."""

    def sizes(self) -> list[float]:
        """Voxel sizes, mm."""
        return [self.spacing]

    def check(self) -> None:
        """Raise `RegZooError` if a parameter makes no sense."""
        numbers = self.count >= 1 and self.held_out >= 0 and self.count + self.held_out <= self.most
        if not numbers or self.seed < 0 or not all(0 < size <= 32 for size in self.sizes()):
            raise RegZooError(
                f"{self.kind} phantoms need at least one {self.unit} and at most {self.most}, a seed of 0 or more, and "
                "voxels of more than 0 and at most 32 mm; correct the numbers"
            )
        smallest = min(self.sizes())
        sides = (self.spacing, self.spacing, smallest)
        voxels = math.prod(mm / side for mm, side in zip(self.field, sides, strict=True))
        if voxels > MOST_VOXELS:
            problem = f"of {smallest:g} mm make {voxels:.2g} in an image, more than {MOST_VOXELS:,}"
            raise RegZooError(f"{self.kind} phantoms: voxels {problem}; use larger ones")

    def write(self, folder: str | os.PathLike[str], workers: int | None = None) -> Path:
        """Write the set and ``manifest.json``.

        Args:
            folder: must not exist or be empty.
            workers: processes; None: one per processor.

        Raises:
            RegZooError: a parameter makes no sense, or the folder is not empty or cannot be written to.
        """
        self.check()
        cases = self._cases()
        with new_set(folder) as root:
            for name in self.folders():
                (root / name).mkdir(parents=True)
            entries = in_processes(partial(self.write_case, root), cases, workers)
            self.write_list(root, cases)
            manifest: dict[str, Any] = {"kind": self.kind, "version": self.version, "parameters": asdict(self)}  # type: ignore[call-overload]
            if self.labels:
                manifest["labels"] = self.labels
            manifest["cases"] = {
                self.name(case): {"split": case.split, "patient": f"{case.split}{case.patient:04d}", **entry}
                for case, entry in zip(cases, entries, strict=True)
            }
            write_json(root / "manifest.json", manifest)
        return Path(folder)

    def _cases(self) -> list[Case]:
        """Each split's patients in turn, until there are enough cases."""
        found: list[Case] = []
        for split, count in zip(SPLITS, (self.count, self.held_out), strict=True):
            patient, wanted = 0, len(found) + count
            while len(found) < wanted:
                visits = min(self.visits(split, patient), wanted - len(found))
                found += [Case(split, patient, len(found) + 1 + visit, visit) for visit in range(visits)]
                patient += 1
        return found

    def random(self, split: str, patient: int, purpose: int) -> np.random.Generator:
        """The random numbers for one purpose of a patient; they depend on nothing else that is written."""
        return np.random.default_rng([self.seed, SPLITS.index(split), patient, purpose])

    def volumes(self, labels: np.ndarray) -> dict[str, float]:
        """The volume of each label of a map, mL."""
        present = np.bincount(labels.ravel(), minlength=256)
        voxel = self.spacing**3 / 1000
        return {name: round(float(present[value]) * voxel, 3) for value, name in self.labels.items()}


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


def in_processes(
    write: Callable[[Case], dict[str, Any]], cases: Sequence[Case], workers: int | None
) -> list[dict[str, Any]]:
    """The results of `write` for all cases, in order, from several processes if there are several cases."""
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(cases) < 2:
        return [write(case) for case in cases]
    # Forked workers inherit the imports; they use NumPy only, so nothing threaded of the parent's is touched.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    # Forked workers must not finalise what they inherit: an object may wait for threads that only the parent has.
    gc.freeze()
    try:
        with ProcessPoolExecutor(min(workers, len(cases)), mp_context=context) as pool:
            return list(pool.map(write, cases))
    finally:
        gc.unfreeze()


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
