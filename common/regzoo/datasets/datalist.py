"""Reading datalists, JSON files and tables of records, strictly: nothing in them is ignored without a word."""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regzoo.datasets.folders import case_name
from regzoo.datasets.records import IMAGE_KEYS, LABEL_KEYS, PATH_KEYS, Record, check_splits
from regzoo.datasets.text import SPLIT_MEND, SPLIT_WORDS, read_json, read_text, split_of, warn_once
from regzoo.errors import RegZooError, bad_file, refuse

DATALIST_SUFFIXES = (".json", ".csv", ".tsv")
#: Between the paths or names of a cell of a table.
SEPARATOR = ";"
NAME_KEYS = ("patient", "fixed_patient", "moving_patient", "case")
#: What an entry of a datalist may hold.
KEYS = (*PATH_KEYS, *NAME_KEYS, "label_names", "label_values", "align", "split", "fold")
#: Names that MONAI gives to what a single image has.
SINGLE = {"image": "fixed_image", "label": "fixed_label"}
#: Words in names of columns that mean one of ours; empty for those that add nothing.
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
SHORT = {"fixed": "fixed_image", "moving": "moving_image"}


def read_datalist(path: str | os.PathLike[str], section: str | None = "training", single: bool = False) -> list[Record]:
    """Read records from a JSON list, a JSON object of lists such as ``{"training": [...]}`` or a table (CSV, TSV).

    Relative paths are resolved against the file's folder. In a table the columns have the names of the record's keys;
    several paths or names in one cell are separated by ``;`` and empty cells are left out. ``patient`` and ``case`` are
    strings, also where the file has numbers. Names that are not known are left out of the records, with one warning.

    Args:
        path: the datalist.
        section: which list of a JSON object to read, by one of `SPLIT_WORDS`, None: all of them; a plain list or a
            table is read whole.
        single: whether an entry may have one image only; MONAI's names ``image`` and ``label`` are then understood too.

    Raises:
        RegZooError: the file is missing, cannot be read, an entry is not a record, a name looks like one of ours that
            was misspelt, or a patient or an image is in two splits.
    """
    source = Path(path)
    return section_of(source, read_lists(source, single), section)


def section_of(source: Path, lists: Mapping[str | None, list[Record]], section: str | None) -> list[Record]:
    """The records of one list of a datalist, see `read_datalist`."""
    if section is None or None in lists:
        records = [record for part in lists.values() for record in part]
    elif (split := split_of(section)) in lists:
        records = lists[split]
    else:
        known = ", ".join(repr(SPLIT_WORDS[name][0]) for name in lists if name) or "none"
        raise bad_file(
            source,
            f"has no list {section!r} (it has: {known})",
            f"add a list named {section!r}, or ask for another split",
        )
    if not records:
        raise bad_file(source, "lists no pairs", "give it at least one entry with fixed_image and moving_image")
    return records


def read_lists(source: Path, single: bool = False) -> dict[str | None, list[Record]]:
    """The records of a datalist: by split from a JSON object of lists, all under None from a plain list or a table.

    Args, Raises: as `read_datalist`.
    """
    if not source.is_file():
        raise bad_file(source, "no such file", "name a datalist (.json, .csv or .tsv)")
    is_table = source.suffix.lower() != ".json"
    lists: dict[str | None, Sequence[Any]] = {None: _rows(source)} if is_table else _json_lists(source)
    if single:
        lists = {
            split: [{"image": entry} if isinstance(entry, str) else entry for entry in entries]
            for split, entries in lists.items()
        }
    every = [entry for entries in lists.values() for entry in entries if isinstance(entry, Mapping)]
    what = "columns" if is_table else "keys"
    known, others = _known_names(source, what, every, single)
    if is_table:
        _check_columns(source, list(every[0]) if every else [], known, single)
    if others:
        warn_once(f"{source}: ignores unknown {what}: {', '.join(map(repr, others))}")
    found: dict[str | None, list[Record]] = {}
    for split, entries in lists.items():
        found[split] = []
        for number, entry in enumerate(entries, start=1):
            where = f"entry {number}" + (f" of {SPLIT_WORDS[split][0]!r}" if split in ("val", "test") else "")
            try:
                record = _Entry(source, where, entry, known, single, is_table).record()
            except RegZooError as error:
                refuse(error)
                continue
            if split is not None and record.pop("split", split) != split:
                problem = f"{where}: its split is {entry.get('split')!r}, but its list says otherwise"
                refuse(bad_file(source, problem, "move the entry, or remove its split"))
            found[split].append(record)
    _check_split_values(source, found.get(None, []))
    check_splits(source, found if None not in found else by_split(found[None]))
    return found


def by_split(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of a table or a plain list by their ``split``; ``train`` for those without one."""
    parts: dict[str, list[Record]] = {}
    for record in records:
        parts.setdefault(str(record.get("split", "train")), []).append(record)
    return parts


def _json_lists(source: Path) -> dict[str | None, Sequence[Any]]:
    """The lists of a JSON datalist."""
    content = read_json(source)
    mend = 'write [{"fixed_image": "…", "moving_image": "…"}, …]'
    problem = "is neither a list of pairs nor an object of such lists"
    if isinstance(content, list):
        return {None: content}
    if not isinstance(content, dict):
        raise bad_file(source, problem, mend)
    lists: dict[str | None, Sequence[Any]] = {}
    for name, value in content.items():
        split = split_of(name)
        if split is None:
            # Other lists, such as names of modalities, are not of entries.
            if isinstance(value, list) and any(isinstance(item, dict) for item in value):
                raise bad_file(source, f"its list {name!r} is of no known split", SPLIT_MEND)
        elif not isinstance(value, list):
            raise bad_file(source, problem, mend)
        elif split in lists:
            raise bad_file(source, f"has two lists of the split {split!r}, one of them {name!r}", "join them")
        else:
            lists[split] = value
    return lists


def _rows(source: Path) -> list[dict[str, str]]:
    """The rows of a table that hold something, by column."""
    delimiter = "\t" if source.suffix.lower() == ".tsv" else ","
    try:
        # Strict, or a quote that is never closed would swallow all that follows.
        text = io.StringIO(read_text(source), newline="")
        lines = list(csv.reader(text, delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error as error:
        mend = "save it as CSV in UTF-8, with quotes around cells that hold a comma or a quote"
        raise bad_file(source, f"cannot be read as a table ({error})", mend) from error
    filled = [cells for line in lines if any(cells := [cell.strip() for cell in line])]
    if not filled:
        return []
    header, *rows = filled
    if twice := next((name for name in header if name and header.count(name) > 1), None):
        raise bad_file(source, f"has the column {twice!r} twice", "keep one of them")
    for number, row in enumerate(rows, start=1):
        if any(row[len(header) :]):
            problem = f"entry {number} has {len(row)} cells where the header has {len(header)}"
            raise bad_file(source, problem, "put cells that hold a comma in quotes")
    width = len(header)
    return [dict(zip(header, [*row, *[""] * width][:width], strict=True)) for row in rows]


def _known_names(
    source: Path, what: str, entries: Sequence[Mapping[Any, Any]], single: bool
) -> tuple[set[Any], list[Any]]:
    """The names of columns or keys that are ours, and the others, which resemble none of ours.

    Raises:
        RegZooError: a name looks like one of ours that its entry does not have, and what it holds would be ignored.
    """
    ours = {*KEYS, *(SINGLE if single else ())}
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    known = {name for name in names if str(name).strip() in ours}
    others = [name for name in names if name not in known]
    meant = {name: key for name in others if (key := likely_key(str(name), ours))}
    for name in others:
        # Whatever it is called, a column of words for splits is one.
        words = {str(entry[name]).strip() for entry in entries if name in entry} - {""}
        if words and all(split_of(word) for word in words):
            meant[name] = "split"
    has = [{str(name).strip() for name in entry} | set(entry) for entry in entries] if meant else []
    if wrong := [name for name, key in meant.items() if any(name in e and key not in e for e in has)]:
        listed = ", ".join(f"{name!r} (for {meant[name]}?)" for name in wrong)
        mend = "rename them (the names are in lower case, see docs/data.md) or remove them"
        raise bad_file(source, f"has unknown {what}, which would be ignored: {listed}", mend)
    return known, others


def likely_key(name: str, keys: Iterable[str] = KEYS) -> str | None:
    """The key that an unknown name probably means, such as ``patient`` for ``PatientID``; None if it means none."""
    words = re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    compact = "".join(words)
    plain = {key.replace("_", ""): key for key in keys}
    close = difflib.get_close_matches(compact, plain, n=1, cutoff=0.85)
    swapped = [key for key in plain if sorted(key) == sorted(compact)]
    if found := [*swapped, *close]:
        return plain[found[0]]
    meaning = {mean for word in words if (mean := WORDS.get(word, word))}
    by_meaning = {frozenset(key.split("_")): key for key in keys} | {frozenset([k]): v for k, v in SHORT.items()}
    return by_meaning.get(frozenset(meaning))


def _check_columns(source: Path, header: Sequence[str], known: set[Any], single: bool) -> None:
    """Make sure that a table has the columns that every entry needs."""
    needed = ("fixed_image",) if single else IMAGE_KEYS
    missing = [key for key in needed if header and key not in known and not (single and "image" in known)]
    if missing:
        listed = ", ".join(repr(name) for name in header)
        mend = "separate columns by commas (.csv) or tabs (.tsv), not by ';', and write their names in lower case"
        raise bad_file(source, f"has no column {' and '.join(missing)} (it has: {listed})", mend)


def _check_split_values(source: Path, records: Sequence[Record]) -> None:
    """Make sure that all entries of a table or plain list say their split, or none."""
    without = [number for number, record in enumerate(records, start=1) if "split" not in record]
    if without and len(without) < len(records):
        raise bad_file(source, f"entry {without[0]} has no split, but others have one", "give each entry its split")


class _Entry:
    """One entry of a datalist, on its way to a record with absolute paths."""

    def __init__(self, source: Path, where: str, entry: Any, known: set[Any], single: bool, is_table: bool) -> None:
        self.source, self.where, self.single, self.is_table = source, where, single, is_table
        if not isinstance(entry, Mapping):
            raise bad_file(source, f"{where} is not a set of named values", "give fixed_image and moving_image")
        self.values = {str(key).strip(): self._plain(key, value) for key, value in entry.items() if key in known}

    def _plain(self, key: Any, value: Any) -> Any:
        """A value without spaces around it."""
        value = value.strip() if isinstance(value, str) else value
        if value != value or (isinstance(value, str) and value.lower() == "nan"):
            raise bad_file(self.source, f"{self.where}: {key} is NaN, which is not a value", "leave it empty")
        return value

    def record(self) -> Record:
        """The record."""
        record = {key: value for key, value in self.values.items() if value not in (None, "", [])}
        for name, key in SINGLE.items() if self.single else ():
            if name in record:
                record.setdefault(key, record.pop(name))
        for key in IMAGE_KEYS:
            if key not in record and (key == "fixed_image" or not self.single):
                raise self._wrong(f"has no {key}", f"add the path of its {key.replace('_', ' ')}")
            if key in record and not isinstance(record[key], str):
                raise self._wrong(f"has no {key} but {str(record[key])[:80]}", "give the path of one file")
        for key in ("label_names", "label_values", *(LABEL_KEYS if self.is_table else ())):
            value = record.get(key)
            if isinstance(value, str) and SEPARATOR in value and not self._is_file(key, value):
                record[key] = [part.strip() for part in value.split(SEPARATOR) if part.strip()]
        self._add_labels(record)
        if "fold" in record:
            fold = record["fold"]
            if isinstance(fold, list) or (number := self._integers("fold", fold)[0]) < 0:
                raise self._wrong(f"is of fold {fold}", "number the folds from 0")
            record["fold"] = number
        for key in NAME_KEYS:
            if key in record:
                record[key] = self._name(key, record[key])
        if "split" in record:
            record["split"] = self._split(record["split"])
        for key in PATH_KEYS:
            if key in record:
                record[key] = self._resolved(key, record[key])
        record.setdefault("case", case_name(record["fixed_image"]))
        return record

    def _add_labels(self, record: Record) -> None:
        """Make lists of the names and values of labels."""
        if (names := record.get("label_names")) is not None:
            names = names if isinstance(names, list) else [names]
            record["label_names"] = [self._name("name of a label", name) for name in names]
        if (values := record.get("label_values")) is not None:
            record["label_values"] = self._integers("label_values", values)
            if names is not None and len(names) != len(record["label_values"]):
                counts = f"{len(names)} label_names and {len(record['label_values'])} label_values"
                raise self._wrong(f"has {counts}", "give each value its name, in the same order")

    def _wrong(self, problem: str, mend: str) -> RegZooError:
        return bad_file(self.source, f"{self.where} {problem}", mend)

    def _name(self, key: str, value: Any) -> str:
        """A name as a string: patient 7 is patient "7"."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self._wrong(f"has a {key} that is not a name: {str(value)[:80]}", "write a name or a number")
        return str(value)

    def _split(self, word: Any) -> str:
        """The split of one of its words."""
        split = split_of(word)
        if split is None:
            raise self._wrong(f"is of the split {str(word)[:80]!r}, which is not known", SPLIT_MEND)
        return split

    def _integers(self, key: str, values: Any) -> list[int]:
        """Whole numbers, from a list or the cell of a table."""
        values = values if isinstance(values, list) else [values]
        try:
            numbers = [float(value) for value in values if not isinstance(value, bool)]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) < len(values) or not all(number.is_integer() for number in numbers):
            if key == "fold":
                raise bad_file(self.source, f"{self.where}: fold is not an integer", "number the folds from 0")
            raise bad_file(self.source, f"{self.where}: {key} are not integers", "write them as [1, 2, 5]")
        return [int(number) for number in numbers]

    def _resolved(self, key: str, value: Any) -> Any:
        """Paths made absolute against the datalist's folder."""
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return [self._resolved(key, item) for item in value]
        if not isinstance(value, str):
            raise bad_file(self.source, f"{self.where}: {key} is not a path", "give a path or a list of paths")
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            raise bad_file(self.source, f"{self.where}: {key} is in quotes of its own", "write the path without them")
        return self._absolute(value)

    def _absolute(self, value: str) -> str:
        """A path against the datalist's folder; with backslashes, as Windows writes them, where there is none such."""
        folder = self.source.resolve().parent
        path = os.path.normpath(folder / Path(value).expanduser())
        if os.sep == "/" and "\\" in value and not Path(path).exists():
            path = os.path.normpath(folder / Path(value.replace("\\", "/")).expanduser())
        return path

    def _is_file(self, key: str, value: str) -> bool:
        """Whether the separator belongs to the name of a file."""
        return key in PATH_KEYS and Path(self._absolute(value)).is_file()
