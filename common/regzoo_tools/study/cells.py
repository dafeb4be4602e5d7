"""The cells of a study: one training and one evaluation each, kept in a folder with its facts."""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from regzoo.errors import RegZooError
from regzoo.files import file_name, write_json
from regzoo_tools.study.description import Study

if TYPE_CHECKING:
    from regzoo.case import Record

#: The file with the facts of a cell, in its folder.
FACTS = "cell.json"
#: The file with the hashes of the files of the data sets, in the folder of the study.
HASHES = "hashes.json"
PACKAGES = Path(__file__).resolve().parents[2]
#: Parts of a recipe → what they are called when they have changed.
PARTS = {"study": "settings", "configs": "bundle", "code": "code", "data": "data", "start": "starting weights"}


@dataclass(frozen=True)
class Cell:
    """One combination of a method, a fold, a repeat and a training-set size; None where a study has no such axis."""

    method: str
    folds: int | None = None
    fold: int | None = None
    repeat: int = 0
    training_size: int | None = None

    @property
    def name(self) -> str:
        """The name of its folder."""
        fold = "" if self.fold is None else f"_fold{self.fold}of{self.folds}"
        size = "" if self.training_size is None else f"_size{self.training_size}"
        return f"{file_name(self.method)}{fold}_repeat{self.repeat}{size}"


def cells_of(study: Study) -> list[Cell]:
    """All cells of a study; a cell comes after the one whose weights it starts from.

    The result of a baseline depends neither on the number of folds nor on repeats and sizes, so it is run only once for
    each case. If only some folds are run, each division into folds chooses other cases.
    """
    cells = []
    every_case = all((study.run_folds or number) >= number for number in study.fold_numbers)
    for name, method in study.methods.items():
        numbers: list[int | None] = [*study.fold_numbers] or [None]
        sizes: list[int | None] = [*(study.training_sizes or [])] or [None]
        repeats = range(study.repeats)
        if method.baseline:
            sizes = [None]
        if method.baseline and every_case:
            numbers, repeats = numbers[:1], range(1)
        for number in numbers:
            folds = [None] if number is None else [*range(min(number, study.run_folds or number))]
            cells += [Cell(name, number, fold, repeat, size) for repeat in repeats for fold in folds for size in sizes]
    return sorted(cells, key=lambda cell: (depth(study, cell), cell.repeat, cell.folds or 0, cell.fold or 0))


def depth(study: Study, cell: Cell) -> int:
    """How many trainings come before a cell."""
    start = start_of(study, cell)
    return 0 if start is None else 1 + depth(study, start)


def start_of(study: Study, cell: Cell) -> Cell | None:
    """The cell whose weights a cell starts from."""
    start = study.methods[cell.method].start
    return Cell(**asdict(cell) | {"method": start}) if start else None


def folder_of(study: Study, cell: Cell) -> Path:
    """The folder of a cell."""
    return study.folder / "cells" / cell.name


def read_facts(study: Study, cell: Cell) -> dict[str, Any]:
    """The facts of a cell, see docs/studies.md; empty for a cell that was never started."""
    try:
        facts: dict[str, Any] = json.loads((folder_of(study, cell) / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts


def write_facts(study: Study, cell: Cell, facts: dict[str, Any]) -> None:
    """Write the facts of a cell, atomically."""
    method = study.methods[cell.method]
    own: dict[str, Any] = {"cell": cell.name, "method": cell.method, "baseline": method.baseline or None}
    own |= {"bundle": method.bundle, "overlays": [*study.overlays, *method.overlays], "data": study.data_of(method)}
    write_json(folder_of(study, cell) / FACTS, own | asdict(cell) | {"seed": cell.repeat} | facts)


def outdated(study: Study, cell: Cell, facts: dict[str, Any]) -> list[str]:
    """What has changed since a cell was run, in words; empty for a cell that is up to date."""
    before, now = facts.get("recipe", {}), recipe(study, cell)
    return [word for part, word in PARTS.items() if before.get(part) != now[part]]


def recipe(study: Study, cell: Cell) -> dict[str, str]:
    """The hashes of everything that the result of a cell depends on, see `PARTS`."""
    method, start = study.methods[cell.method], start_of(study, cell)
    home = study.file.parent
    # Without the path of the study's folder, which may be moved.
    bundle, tool = Path(method.bundle).name, [word.removeprefix(f"{home}/") for word in method.tool]
    settings = [study.settings, study.data_settings(method), method.settings, study.evaluation, method.evaluation]
    rest = [study.weights, study.fields, bundle, method.baseline, tool, method.measured, study.processes, asdict(cell)]
    scripts = [path for word in method.tool if (path := home / word).suffix == ".py" and path.is_file()]
    scripts += sorted((method.folder / "scripts").rglob("*.py"))
    source = json.dumps(study.data[study.data_of(method)] | {"settings": None}, sort_keys=True)
    released = _files(method.released_weights) if method.baseline == "released" else ""
    return {
        "study": _digest(json.dumps([settings, rest], sort_keys=True).encode()),
        "configs": _files(*study.config_files(method)),
        "code": _digest(_code().encode(), *(path.read_bytes() for path in scripts)),
        "data": _data(source, study.takes_images(method), study.folder / HASHES),
        "start": released or (_digest(json.dumps(recipe(study, start)).encode()) if start else ""),
    }


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


@cache
def _files(*paths: Path) -> str:
    return _digest(*(path.read_bytes() for path in paths))


@cache
def _code() -> str:
    """The code that trains and measures."""
    here = PACKAGES / "regzoo_tools" / "study"
    return _files(*sorted((PACKAGES / "regzoo").rglob("*.py")), here / "measuring.py", here / "tools.py")


#: The hashes of the data sets that this process knows, by the arguments of `_data`.
data_hashes: dict[tuple[str, bool, Path], str] = {}


def _data(source: str, single: bool, hashes: Path) -> str:
    """`_hash_of_data`, computed once: a worker gets it from the process that starts it, and does not load MONAI."""
    key = source, single, hashes
    if key not in data_hashes:
        data_hashes[key] = _hash_of_data(*key)
    return data_hashes[key]


def _hash_of_data(source: str, single: bool, hashes: Path) -> str:
    """A data set: the parameters and the code of phantoms, or its records with the hashes of their files.

    Args:
        source: the description of the data set.
        single: whether the training takes single images.
        hashes: the file that remembers the hashes of files, so that only new and changed ones are read.
    """
    described = json.loads(source)
    if "phantoms" in described:
        code = _files(*sorted((PACKAGES / "regzoo_phantoms").rglob("*.py")))
        return _digest(source.encode(), code.encode())
    from regzoo.case import PATH_KEYS
    from regzoo.datasets.records import record_files
    from regzoo.datasets.text import read_json

    known = read_json(hashes) if hashes.is_file() else {}
    now: dict[str, list[Any]] = {}
    parts = _records(described["dataset_dir"], single)
    content = {
        part: [
            record | {key: [_content(file, known, now) for file in record_files(record, [key])] for key in PATH_KEYS}
            for record in records
        ]
        for part, records in parts.items()
    }
    if not now.items() <= known.items():
        with suppress(RegZooError):  # the results may belong to somebody else
            write_json(hashes, known | now)
    return _digest(json.dumps(content, sort_keys=True).encode())


def _records(path: str, single: bool) -> dict[str, list[Record]]:
    """The records of each split of a data set, pairs or single images and the pairs that are listed to measure.

    A split that is missing, or that a training or an evaluation would refuse, has no records.
    """
    from regzoo.datasets import load_records, load_single_records
    from regzoo.datasets.text import SPLIT_WORDS

    found: dict[str, list[Record]] = {}
    for split in SPLIT_WORDS:
        with suppress(RegZooError):
            if single:
                found[f"{split} images"] = load_single_records(path, split)
        with suppress(RegZooError):
            if not single or split != "train":  # hundreds of images to train on would make many thousand pairs
                found[split] = load_records(path, split)
    return found


def _content(path: str, known: Mapping[str, list[Any]], now: dict[str, list[Any]]) -> str:
    """The hash of a file: the `known` one, unless its size or its time has changed. Adds it to `now`."""
    from regzoo.engines.identity import file_hash, image_parts

    if path not in now:
        states = [[str(part), (state := part.stat()).st_size, state.st_mtime_ns] for part in image_parts(path)]
        before = known.get(path, [None, None])
        now[path] = [states, before[1] if before[0] == states else file_hash(path)]
    return str(now[path][1])


@contextmanager
def locked(path: Path, patience: float = 0.0) -> Iterator[int | None]:
    """Hold a lock file; yields its file descriptor, or None if another process holds it for `patience` seconds.

    A process that inherits the descriptor holds the lock until it ends, even if this one is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + patience
    with path.open("w") as file:
        while not (mine := _lock(file, fcntl.LOCK_EX)) and time.monotonic() < end:
            time.sleep(0.02)
        yield file.fileno() if mine else None


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock file."""
    if not path.is_file():
        return False
    with path.open() as file:
        return not _lock(file, fcntl.LOCK_SH)


def _lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_of(study: Study, cell: Cell) -> Path:
    """The file that a process holds locked while it works on a cell."""
    return study.folder / "locks" / cell.name
