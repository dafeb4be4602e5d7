"""Reading and checking records: one pair of images, with its labels where known, as a dict of paths.

A record has ``fixed_image`` and ``moving_image``, and where known ``fixed_label`` and ``moving_label`` (a path or a
list of paths), ``patient``, ``case``, ``label_names`` and, for integer maps, ``label_values``. A pair of two patients
has ``fixed_patient`` and ``moving_patient`` instead of ``patient``.

The record of a *single image*, for methods that make the moving image themselves, has a ``fixed_image`` and no
``moving_image``.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from regzoo.errors import RegZooError, bad_file
from regzoo.files import file_name

Record = dict[str, Any]

IMAGE_KEYS = ("fixed_image", "moving_image")
LABEL_KEYS = ("fixed_label", "moving_label")
PATH_KEYS = IMAGE_KEYS + LABEL_KEYS
DATALIST_SUFFIXES = (".json", ".csv", ".tsv")
#: Between the paths or names of a cell of a table.
SEPARATOR = ";"


def read_datalist(path: str | os.PathLike[str], section: str | None = "training", single: bool = False) -> list[Record]:
    """Read records from a JSON list, a JSON object of lists such as ``{"training": [...]}`` or a table (CSV, TSV).

    Relative paths are resolved against the file's folder. In a table the columns have the names of the record's keys;
    several paths or names in one cell are separated by ``;`` and empty cells are left out.

    Args:
        path: the datalist.
        section: which list of a JSON object to read, None: all of them; a plain list or a table is read whole.
        single: whether an entry may have one image only; MONAI's names ``image`` and ``label`` are then understood too.

    Raises:
        RegZooError: the file is missing, cannot be read, or an entry is no record.
    """
    source = Path(path)
    if not source.is_file():
        raise bad_file(source, "no such file", "name a datalist (.json, .csv or .tsv)")
    entries = _json_entries(source, section) if source.suffix.lower() == ".json" else _table_entries(source)
    if not entries:
        raise bad_file(source, "lists no pairs", "give it at least one entry with fixed_image and moving_image")
    return [_record(source, number, entry, single) for number, entry in enumerate(entries, start=1)]


def datalist_sections(path: str | os.PathLike[str]) -> list[str] | None:
    """Names of the lists in a JSON datalist; None for a plain list or a table.

    Raises:
        RegZooError: the file is not valid JSON.
    """
    source = Path(path)
    content = _json(source) if source.suffix.lower() == ".json" else None
    return [key for key, value in content.items() if isinstance(value, list)] if isinstance(content, dict) else None


def _json(source: Path) -> Any:
    """The content of a JSON file."""
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise bad_file(source, f"is not valid JSON ({error})", "mend it or write it anew") from error


def _json_entries(source: Path, section: str | None) -> list[Any]:
    """The entries of a JSON datalist."""
    content = _json(source)
    if isinstance(content, dict):
        if section is None:
            return [entry for value in content.values() if isinstance(value, list) for entry in value]
        if section not in content:
            known = ", ".join(repr(key) for key in content) or "none"
            raise bad_file(source, f"has no list {section!r} (it has: {known})", f"add a list named {section!r}")
        content = content[section]
    if not isinstance(content, list):
        mend = 'write [{"fixed_image": "…", "moving_image": "…"}, …]'
        raise bad_file(source, "is neither a list of pairs nor an object of such lists", mend)
    return content


def _table_entries(source: Path) -> list[Any]:
    """The rows of a table."""
    delimiter = "\t" if source.suffix.lower() == ".tsv" else ","
    try:
        with source.open(newline="", encoding="utf-8-sig") as stream:
            return list(csv.DictReader(stream, delimiter=delimiter))
    except (csv.Error, UnicodeDecodeError) as error:
        raise bad_file(source, f"cannot be read as a table ({error})", "save it as CSV in UTF-8") from error


def _record(source: Path, number: int, entry: Any, single: bool = False) -> Record:
    """One entry of a datalist as a record with absolute paths."""
    if not isinstance(entry, dict):
        raise bad_file(source, f"entry {number} is not a set of named values", "give fixed_image and moving_image")
    record = {key: value for key, value in entry.items() if key is not None and value not in (None, "", [])}
    for key in ("image", "label") if single else ():
        if key in record:
            record.setdefault(f"fixed_{key}", record.pop(key))
    for key in IMAGE_KEYS:
        if not isinstance(record.get(key), str) and (key in record or not single or key == "fixed_image"):
            raise bad_file(source, f"entry {number} has no {key}", f"add the path of its {key.replace('_', ' ')}")
    for key in (*LABEL_KEYS, "label_names", "label_values"):
        if isinstance(record.get(key), str) and SEPARATOR in record[key]:
            record[key] = [part.strip() for part in record[key].split(SEPARATOR) if part.strip()]
    if isinstance(record.get("label_names"), str):
        record["label_names"] = [record["label_names"]]
    if "label_values" in record:
        record["label_values"] = _integers(source, number, record["label_values"])
    for key in PATH_KEYS:
        if key in record:
            record[key] = _resolved(source, number, key, record[key])
    record.setdefault("case", case_name(record["fixed_image"]))
    return record


def _integers(source: Path, number: int, values: Any) -> list[int]:
    """The values of labels in an integer map, from a list or the cell of a table."""
    try:
        return [int(value) for value in (values if isinstance(values, list) else [values])]
    except (TypeError, ValueError) as error:
        raise bad_file(source, f"entry {number}: label_values are not integers", "write them as [1, 2, 5]") from error


def _resolved(source: Path, number: int, key: str, value: Any) -> Any:
    """Paths made absolute against the datalist's folder."""
    if isinstance(value, str):
        return os.path.normpath(source.resolve().parent / Path(value).expanduser())
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [_resolved(source, number, key, item) for item in value]
    raise bad_file(source, f"entry {number}: {key} is not a path", "give a path or a list of paths")


def case_name(path: str | os.PathLike[str]) -> str:
    """A file's name without folder and without ``.nii``, ``.nii.gz`` or another suffix."""
    name = Path(path).name
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else Path(name).stem


def is_of_kind(name: str, kinds: Iterable[str]) -> bool:
    """Whether a label is of one of some kinds: its name, or the name's beginning up to an underscore.

    ``cyst`` stands for ``cyst_1`` and ``cyst_2``, ``seminal_vesicle`` for the left one and the right one.
    """
    return any(f"{name}_".startswith(f"{kind}_") for kind in kinds)


def known_kinds(records: Sequence[Record], kinds: str | Sequence[str]) -> list[str]:
    """Kinds of label, after making sure that a data set has them; a wrong name would hold nothing out.

    Args:
        records: pairs with ``label_names``.
        kinds: one or several, see `is_of_kind`.

    Raises:
        RegZooError: no label is of such a kind, or no other kind is left.
    """
    wanted = [kinds] if isinstance(kinds, str) else list(kinds)
    names = sorted({str(name) for record in records for name in record.get("label_names", [])})
    unknown = [kind for kind in wanted if not any(is_of_kind(name, [kind]) for name in names)]
    if unknown:
        known = ", ".join(names) or "none, add label_names to its records"
        raise RegZooError(f"no label is called {unknown[0]!r}; the names of the data set are {known}")
    if wanted and all(is_of_kind(name, wanted) for name in names):
        raise RegZooError(f"holding out {', '.join(wanted)} leaves no label; hold out less")
    return wanted


def record_files(record: Record, keys: Iterable[str] = PATH_KEYS) -> list[str]:
    """All files of a record, those of lists included."""
    files: list[str] = []
    for key in keys:
        value = record.get(key)
        if value is not None:
            files += [str(value)] if isinstance(value, str | os.PathLike) else [str(file) for file in value]
    return files


def is_single(record: Record) -> bool:
    """Whether a record is of one image, to which the moving one is still to be made."""
    return "moving_image" not in record


def single_records(records: Iterable[Record]) -> list[Record]:
    """Every image of some records once, as the record of a single image, in the order in which they appear."""
    found: dict[str, Record] = {}
    shared = ("label_names", "label_values", "split")
    for record in records:
        for side in ("fixed", "moving"):
            image = record.get(f"{side}_image")
            if image is None or os.path.realpath(image) in found:
                continue
            single: Record = {"fixed_image": image}
            if f"{side}_label" in record:
                single["fixed_label"] = record[f"{side}_label"]
            patient = record.get(f"{side}_patient", record.get("patient"))
            if patient is not None:
                single["patient"] = patient
            own = is_single(record) and record.get("case")
            single["case"] = own or case_name(image)
            found[os.path.realpath(image)] = single | {key: record[key] for key in shared if key in record}
    return _distinct_cases(list(found.values()))


def patient_of(image: Record) -> str:
    """Whose a single image is; one of nobody known is a patient of its own."""
    return str(image.get("patient", image["case"]))


def pair_record(fixed: Record, moving: Record) -> Record:
    """The record of a pair, made of two single images; its case is named after both.

    Args:
        fixed, moving: records of single images; one without ``patient`` is a patient of its own.
    """
    record: Record = {"fixed_image": fixed["fixed_image"], "moving_image": moving["fixed_image"]}
    for side, single in (("fixed", fixed), ("moving", moving)):
        if "fixed_label" in single:
            record[f"{side}_label"] = single["fixed_label"]
    patients = [patient_of(single) for single in (fixed, moving)]
    if patients[0] == patients[1]:
        record["patient"] = patients[0]
    else:
        record["fixed_patient"], record["moving_patient"] = patients
    record["case"] = f"{fixed['case']}_from_{moving['case']}"
    for key in ("label_values", "label_names"):
        if key in fixed and fixed[key] == moving.get(key, fixed[key]):
            record[key] = fixed[key]
    return record


def _distinct_cases(records: list[Record]) -> list[Record]:
    """The records, with the folder before the name of every case whose name another one has too."""
    names = [record["case"] for record in records]
    for record in records:
        if names.count(record["case"]) > 1:
            record["case"] = f"{Path(record['fixed_image']).parent.name}_{record['case']}"
    return records


def check_records(records: Sequence[Record]) -> None:
    """Make sure that the records, of pairs or of single images, can be used together.

    Raises:
        RegZooError: a file is missing, a pair is listed twice, two pairs have one name, a record names one file as both
            images, or records of different patients share a file, so that folds by patient would leak.
    """
    if not records:
        raise RegZooError("the list of pairs is empty; name a data set with at least one pair")
    pairs: set[tuple[str, ...]] = set()
    cases: set[str] = set()
    owners: dict[str, Any] = {}
    for record in records:
        real = {key: tuple(os.path.realpath(file) for file in record_files(record, [key])) for key in PATH_KEYS}
        for file in record_files(record):
            if not Path(file).is_file():
                raise bad_file(file, "no such file", "correct the path or take the pair off the list")
        fixed, moving = real["fixed_image"], real["moving_image"]
        if fixed == moving:
            raise bad_file(record["fixed_image"], "is both the fixed and the moving image of a pair", "name two images")
        if fixed + moving in pairs:
            with_what = "" if is_single(record) else f" with the moving image {record['moving_image']}"
            problem = f"is listed twice{with_what}"
            raise bad_file(record["fixed_image"], problem, "keep one of the two entries")
        pairs.add(fixed + moving)
        case = file_name(record.get("case") or case_name(record["fixed_image"]))
        if case in cases:
            problem = (
                f"is the fixed image of another pair called {case!r}, and their results would overwrite each other"
            )
            raise bad_file(record["fixed_image"], problem, "give each pair a name of its own as case")
        cases.add(case)
        _check_owner(record, [file for files in real.values() for file in files], owners)


def _check_owner(record: Record, files: list[str], owners: dict[str, Any]) -> None:
    """Note whose the files are; complain about a file that belongs to two patients."""
    patient = record.get("patient")
    if patient is None:
        return
    for file in files:
        owner = owners.setdefault(file, patient)
        if owner != patient:
            problem = f"belongs to two patients, {owner} and {patient}, and would be in two folds"
            raise bad_file(file, problem, "give the pairs that share it the same patient")
