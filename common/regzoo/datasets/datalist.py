"""Reads datalists, JSON files or tables of records, strictly: everything in them is used, refused or warned about."""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regzoo.case import FIXED, IMAGE_KEYS, LABEL_KEYS, MOVING, PATH_KEYS, POINT_KEYS, Key, Record
from regzoo.datasets.folders import case_name
from regzoo.datasets.records import PATIENT_KEYS, check_splits, known_alignment
from regzoo.datasets.text import SPLIT_MEND, SPLIT_WORDS, read_json, read_text, split_of, warn_once
from regzoo.errors import RegZooError, bad_file, refuse
from regzoo.refinement.options import refinement_asked

DATALIST_SUFFIXES = (".json", ".csv", ".tsv")
#: Between the paths or names in a cell of a table.
SEPARATOR = ";"
NAME_KEYS = (*PATIENT_KEYS, Key.CASE)
#: The keys of an entry of a datalist.
KEYS = (
    *PATH_KEYS,
    *NAME_KEYS,
    Key.LABEL_NAMES,
    Key.LABEL_VALUES,
    Key.POINTS_FRAME,
    Key.ALIGN,
    Key.REFINE,
    Key.REFINE_SECONDS,
    Key.SPLIT,
    Key.FOLD,
)
#: MONAI's names for the image and the label of a single image.
SINGLE = {"image": FIXED.image, "label": FIXED.label}
#: What words in unknown names of columns mean; empty for those that add nothing.
WORDS = {
    **dict.fromkeys(
        ("subject", "participant", "person", "pat", "pid", "sub", "subj", "mrn", "patients", "subjects"), "patient"
    ),
    **dict.fromkeys(("labels", "mask", "masks", "seg", "segs", "segmentation", "annotation", "roi"), "label"),
    **dict.fromkeys(("images", "img"), "image"),
    **dict.fromkeys(("folds", "kfold", "cv"), "fold"),
    **dict.fromkeys(("splits", "subset", "partition", "set"), "split"),
    **dict.fromkeys(("target", "reference"), "fixed"),
    **dict.fromkeys(("source", "floating"), "moving"),
    **dict.fromkeys(("id", "ids", "no", "nr", "name", "names", "number", "path", "file", "filename", "data", "k"), ""),
}
SHORT = {"fixed": FIXED.image, "moving": MOVING.image}


def read_datalist(path: str | os.PathLike[str], split: str | None = "train", single: bool = False) -> list[Record]:
    """Read records from a JSON list, a JSON object of lists such as ``{"training": [...]}`` or a table (CSV, TSV).

    Relative paths are resolved against the file's folder. The columns of a table have the names of the record's keys;
    several paths or names in one cell are separated by ``;`` and empty cells are left out. ``patient`` and ``case``
    become strings, also where the file has numbers. Columns and keys with unknown names are left out of the records,
    with one warning.

    Args:
        split: which pairs to read, by one of `SPLIT_WORDS`: those of a list of a JSON object, or those whose ``split``
            says so; without any ``split``, all pairs are of ``train``. None: all of them.
        single: whether an entry may have one image only; it may then use MONAI's names ``image`` and ``label``.

    Raises:
        RegZooError: the file is missing, cannot be read, an entry is not a record, a name looks like a misspelling of a
            key, a patient or an image is in two splits, or there is no pair of the split.
    """
    source, wanted = Path(path), split_of(split)
    lists = read_lists(source, single)
    if split is not None and lists and wanted not in lists:
        word = SPLIT_WORDS[wanted][0] if wanted else split
        fix = f"name another split, add a list {word!r}, or add a value 'split' to each pair"
        raise bad_file(source, f"has no pairs of the split {split!r} (it has: {', '.join(lists)})", fix)
    records = [record for name, part in lists.items() if split is None or name == wanted for record in part]
    if not records:
        raise bad_file(source, "lists no pairs", "give it at least one entry with fixed_image and moving_image")
    return records


def read_lists(source: Path, single: bool = False) -> dict[str, list[Record]]:
    """The records of a datalist by split; arguments and errors as `read_datalist`."""
    if not source.is_file():
        raise bad_file(source, "no such file", "name a datalist (.json, .csv or .tsv)")
    is_table = source.suffix.lower() != ".json"
    lists: dict[str | None, Sequence[Any]] = {None: _rows(source)} if is_table else _json_lists(source)
    if single:
        lists = {
            split: [{"image": entry} if isinstance(entry, str) else entry for entry in entries]
            for split, entries in lists.items()
        }
    known = _known_names(source, [entry for entries in lists.values() for entry in entries], single, is_table)
    found: dict[str, list[Record]] = {split: [] for split in lists if split}
    whole: list[Record] = []
    for split, entries in lists.items():
        for number, entry in enumerate(entries, start=1):
            where = f"entry {number}" + (f" of {SPLIT_WORDS[split][0]!r}" if split in ("val", "test") else "")
            try:
                record = _Entry(source, where, entry, known, single, is_table).record()
            except RegZooError as error:
                refuse(error)
                continue
            if split is not None and (said := record.pop(Key.SPLIT, split)) != split:
                problem = f"{where}: its split is {said!r}, but its list says otherwise"
                refuse(bad_file(source, problem, "move the entry, or remove its split"))
            if split is None:
                whole.append(record)
            found.setdefault(split or record.get(Key.SPLIT, "train"), []).append(record)
    without = [number for number, record in enumerate(whole, start=1) if Key.SPLIT not in record]
    if without and len(without) < len(whole):
        raise bad_file(source, f"entry {without[0]} has no split, but others have one", "give each entry its split")
    check_splits(source, found)
    return found


def _json_lists(source: Path) -> dict[str | None, Sequence[Any]]:
    """The lists of a JSON datalist."""
    content = read_json(source)
    if isinstance(content, list):
        return {None: content}
    lists: dict[str | None, Sequence[Any]] = {}
    for name, value in content.items() if isinstance(content, dict) else [("training", None)]:
        split = split_of(name)
        if split is None:
            # Other lists, such as names of modalities, are not of entries.
            if isinstance(value, list) and any(isinstance(item, dict) for item in value):
                raise bad_file(source, f"its list {name!r} is of no known split", SPLIT_MEND)
        elif not isinstance(value, list):
            fix = 'write [{"fixed_image": "…", "moving_image": "…"}, …]'
            raise bad_file(source, "is neither a list of pairs nor an object of such lists", fix)
        elif split in lists:
            raise bad_file(source, f"has two lists of the split {split!r}, one of them {name!r}", "join them")
        else:
            lists[split] = value
    return lists


def _rows(source: Path) -> list[dict[str, str]]:
    """The rows of a table that are not empty, by column."""
    delimiter = "\t" if source.suffix.lower() == ".tsv" else ","
    try:
        # Strict, or a quote that is never closed would swallow everything after it.
        text = io.StringIO(read_text(source), newline="")
        lines = list(csv.reader(text, delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error as error:
        fix = "save it as CSV in UTF-8, with quotes around cells that hold a comma or a quote"
        raise bad_file(source, f"cannot be read as a table ({error})", fix) from error
    filled = [cells for line in lines if any(cells := [cell.strip() for cell in line])]
    if not filled:
        return []
    header, *rows = filled
    if twice := next((name for name in header if name and header.count(name) > 1), None):
        raise bad_file(source, f"has the column {twice!r} twice", "keep one of them")
    width = len(header)
    for number, row in enumerate(rows, start=1):
        if any(row[width:]):
            problem = f"entry {number} has {len(row)} cells where the header has {width}"
            raise bad_file(source, problem, "put cells that hold a comma in quotes")
    return [dict(zip(header, [*row, *[""] * width][:width], strict=True)) for row in rows]


def _known_names(source: Path, entries: Sequence[Any], single: bool, is_table: bool) -> set[Any]:
    """The names of columns or keys that a record can have, as the file writes them; the others cause a warning.

    Raises:
        RegZooError: a name looks like a misspelt key that its entry does not have, so that its value would be ignored,
            or a column that every entry needs is missing.
    """
    what = "columns" if is_table else "keys"
    ours = {*KEYS, *(SINGLE if single else ())}
    rows = [entry for entry in entries if isinstance(entry, Mapping)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    known = {name for name in names if str(name).strip() in ours}
    others = [name for name in names if name not in known]
    wrong = []
    for name in others:
        meant = likely_key(str(name), ours)
        words = {str(row[name]).strip() for row in rows if name in row} - {""}
        if words and all(split_of(word) for word in words):
            meant = Key.SPLIT  # a column of words for splits is one, whatever its name
        if meant and any(name in row and meant not in {str(key).strip() for key in row} for row in rows):
            wrong.append(f"{name!r} (for {meant}?)")
    if wrong:
        fix = "rename them (the names are in lower case, see docs/data.md) or remove them"
        raise bad_file(source, f"has unknown {what}, which would be ignored: {', '.join(wrong)}", fix)
    needed = (FIXED.image,) if single else IMAGE_KEYS
    missing = [key for key in needed if is_table and rows and key not in known and not (single and "image" in known)]
    if missing:
        listed = ", ".join(repr(name) for name in rows[0])
        fix = "separate columns by commas (.csv) or tabs (.tsv), not by ';', and write their names in lower case"
        raise bad_file(source, f"has no column {' and '.join(missing)} (it has: {listed})", fix)
    if others:
        warn_once(f"{source}: ignores unknown {what}: {', '.join(map(repr, others))}")
    return known


def likely_key(name: str, keys: Iterable[str] = KEYS) -> str | None:
    """The key that an unknown name probably means, such as ``patient`` for ``PatientID``; None if it means none."""
    words = re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    compact = "".join(words)
    joined = {key.replace("_", ""): key for key in keys}
    close = difflib.get_close_matches(compact, joined, n=1, cutoff=0.85)
    swapped = [key for key in joined if sorted(key) == sorted(compact)]
    if found := [*swapped, *close]:
        return joined[found[0]]
    meaning = frozenset(mean for word in words if (mean := WORDS.get(word, word)))
    by_meaning = {frozenset(key.split("_")): key for key in keys} | {frozenset([k]): v for k, v in SHORT.items()}
    return by_meaning.get(meaning)


def _at_home(path: str) -> Path:
    """A path with ``~`` expanded; in front of anything but a user's name, ``~`` is part of the file's name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


class _Entry:
    """One entry of a datalist, on its way to a record with absolute paths."""

    def __init__(self, source: Path, where: str, entry: Any, known: set[Any], single: bool, is_table: bool) -> None:
        self.source, self.where, self.single, self.is_table = source, where, single, is_table
        if not isinstance(entry, Mapping):
            raise bad_file(source, f"{where} is not a set of named values", "give fixed_image and moving_image")
        self.values = {}
        for name, value in entry.items():
            value = value.strip() if isinstance(value, str) else value
            if name not in known or value in (None, "", []):
                continue
            if value != value or (isinstance(value, str) and value.lower() == "nan"):
                raise bad_file(source, f"{where}: {name} is NaN, which is not a value", "leave it empty")
            self.values[str(name).strip()] = value

    def record(self) -> Record:
        """The record."""
        record: Any = self.values
        for name, ours in SINGLE.items() if self.single else ():
            if name in record:
                record.setdefault(ours, record.pop(name))
        for key in IMAGE_KEYS:
            if key not in record and (key == FIXED.image or not self.single):
                raise self._wrong(f"has no {key}", f"add the path of its {key.replace('_', ' ')}")
        for key in (*IMAGE_KEYS, *POINT_KEYS):
            if key in record and not isinstance(record[key], str):
                raise self._wrong(f"has {str(record[key])[:80]} as its {key}", "give the path of one file")
        for key in (Key.LABEL_NAMES, Key.LABEL_VALUES, *(LABEL_KEYS if self.is_table else ())):
            value = record.get(key)
            if isinstance(value, str) and SEPARATOR in value and not self._is_file(key, value):
                record[key] = [part.strip() for part in value.split(SEPARATOR) if part.strip()]
        self._add_labels(record)
        if (fold := record.get(Key.FOLD)) is not None:
            if isinstance(fold, list) or (number := self._integers(Key.FOLD, fold)[0]) < 0:
                raise self._wrong(f"is of fold {fold}", "number the folds from 0")
            record[Key.FOLD] = number
        for key in NAME_KEYS:
            if key in record:
                record[key] = self._name(key, record[key])
        if (word := record.get(Key.SPLIT)) is not None:
            record[Key.SPLIT] = split_of(word)
            if record[Key.SPLIT] is None:
                raise self._wrong(f"is of the split {str(word)[:80]!r}, which is not known", SPLIT_MEND)
        if (frame := record.get(Key.POINTS_FRAME)) is not None:
            record[Key.POINTS_FRAME] = str(frame).upper()
            if record[Key.POINTS_FRAME] not in ("RAS", "LPS"):
                raise self._wrong(f"has the points_frame {frame!s:.80}", "write RAS or LPS")
        try:
            if Key.ALIGN in record:
                known_alignment(record[Key.ALIGN])
            record |= refinement_asked(record)
        except RegZooError as error:
            raise RegZooError(f"{self.source}: {self.where}: {error}") from None
        for key in PATH_KEYS:
            if key in record:
                record[key] = self._resolved(key, record[key])
        record.setdefault(Key.CASE, case_name(record[FIXED.image]))
        return record

    def _add_labels(self, record: Any) -> None:
        """Make lists of the names and values of labels."""
        if (names := record.get(Key.LABEL_NAMES)) is not None:
            names = names if isinstance(names, list) else [names]
            record[Key.LABEL_NAMES] = [self._name("name of a label", name) for name in names]
        if (values := record.get(Key.LABEL_VALUES)) is not None:
            record[Key.LABEL_VALUES] = numbers = self._integers(Key.LABEL_VALUES, values)
            if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
                shown = ", ".join(map(str, numbers)) or "of no label"
                raise self._wrong(f"has the label_values {shown:.80}", "write each value once; 0 is the background")
            if names is not None and len(names) != len(record[Key.LABEL_VALUES]):
                counts = f"{len(names)} label_names and {len(record[Key.LABEL_VALUES])} label_values"
                raise self._wrong(f"has {counts}", "give each value its name, in the same order")

    def _wrong(self, problem: str, fix: str) -> RegZooError:
        return bad_file(self.source, f"{self.where} {problem}", fix)

    def _name(self, key: str, value: Any) -> str:
        """A name as a string: patient 7 is patient "7"."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self._wrong(f"has a {key} that is not a name: {str(value)[:80]}", "write a name or a number")
        return str(value)

    def _integers(self, key: str, values: Any) -> list[int]:
        """Whole numbers, from a list or the cell of a table."""
        values = values if isinstance(values, list) else [values]
        try:
            numbers = [float(value) for value in values if not isinstance(value, bool)]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) < len(values) or not all(number.is_integer() for number in numbers):
            if key == Key.FOLD:
                raise bad_file(self.source, f"{self.where}: fold is not an integer", "number the folds from 0")
            raise bad_file(self.source, f"{self.where}: {key} are not integers", "write them as [1, 2, 5]")
        return [int(number) for number in numbers]

    def _resolved(self, key: str, value: Any) -> Any:
        """A path, or a list of paths, made absolute against the datalist's folder."""
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return [self._resolved(key, item) for item in value]
        if not isinstance(value, str):
            raise bad_file(self.source, f"{self.where}: {key} is not a path", "give a path or a list of paths")
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            raise bad_file(self.source, f"{self.where}: {key} is in quotes of its own", "write the path without them")
        return self._absolute(value)

    def _absolute(self, value: str) -> str:
        """A path against the datalist's folder; backslashes, as Windows writes them, count if no such file exists."""
        folder = self.source.resolve().parent
        path = os.path.normpath(folder / _at_home(value))
        if os.sep == "/" and "\\" in value and not os.path.exists(path):  # noqa: PTH110, Path raises for a long name
            path = os.path.normpath(folder / _at_home(value.replace("\\", "/")))
        return path

    def _is_file(self, key: str, value: str) -> bool:
        """Whether the separator belongs to the name of a file."""
        return key in PATH_KEYS and os.path.isfile(self._absolute(value))  # noqa: PTH113, as above
