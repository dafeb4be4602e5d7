"""Records and what is checked about them: one pair of images, with its labels where known, as a dict of paths.

A record has ``fixed_image`` and ``moving_image``, and where known ``fixed_label`` and ``moving_label`` (a path or a
list of paths), ``patient``, ``case``, ``label_names`` and, for integer maps, ``label_values``. A pair of two patients
has ``fixed_patient`` and ``moving_patient`` instead of ``patient``. ``fold`` is the part of a cross-validation that a
datalist puts it in.

The record of a *single image*, for methods that make the moving image themselves, has a ``fixed_image`` and no
``moving_image``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regzoo.case import IMAGE_KEYS, LABEL_KEYS, PATH_KEYS
from regzoo.datasets.folders import case_name
from regzoo.errors import RegZooError, bad_file, refuse
from regzoo.files import file_name
from regzoo.spatial.reading import not_a_file

Record = dict[str, Any]
__all__ = ["IMAGE_KEYS", "LABEL_KEYS", "PATH_KEYS", "Record"]


def is_of_kind(name: str, kinds: Iterable[str]) -> bool:
    """Whether a label is of one of some kinds: its name, or the name's beginning up to an underscore.

    ``cyst`` stands for ``cyst_1`` and ``cyst_2``, ``seminal_vesicle`` for the left one and the right one.
    """
    return any(f"{name}_".startswith(f"{kind}_") for kind in kinds)


def validate_kinds(records: Sequence[Record], kinds: str | Sequence[str]) -> list[str]:
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
    shared = ("label_names", "label_values", "split", "fold")
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
    owners: dict[str, str] = {}
    for record in records:
        real = {key: tuple(os.path.realpath(file) for file in record_files(record, [key])) for key in PATH_KEYS}
        for file in record_files(record):
            if Path(file).is_dir():
                raise not_a_file(Path(file))
            if not Path(file).is_file():
                refuse(bad_file(file, "no such file", "correct the path or take the pair off the list"))
        fixed, moving = real["fixed_image"], real["moving_image"]
        if fixed == moving:
            refuse(
                bad_file(record["fixed_image"], "is both the fixed and the moving image of a pair", "name two images")
            )
        if fixed + moving in pairs:
            with_what = "" if is_single(record) else f" with the moving image {record['moving_image']}"
            problem = f"is listed twice{with_what}"
            refuse(bad_file(record["fixed_image"], problem, "keep one of the two entries"))
        pairs.add(fixed + moving)
        case = file_name(record.get("case") or case_name(record["fixed_image"]))
        if case in cases:
            problem = (
                f"is the fixed image of another pair called {case!r}, and their results would overwrite each other"
            )
            refuse(bad_file(record["fixed_image"], problem, "give each pair a name of its own as case"))
        cases.add(case)
        for side in ("fixed", "moving"):
            patient = record.get(f"{side}_patient", record.get("patient"))
            for file in real[f"{side}_image"] + real[f"{side}_label"] if patient is not None else ():
                owner = owners.setdefault(file, str(patient))
                if owner != str(patient):
                    problem = f"belongs to two patients, {owner} and {patient}, and would be in two folds"
                    refuse(bad_file(file, problem, "give the pairs that share it the same patient"))


def patients_of(record: Record) -> set[str]:
    """The patients that a record names."""
    return {str(record[key]) for key in ("patient", "fixed_patient", "moving_patient") if record.get(key) is not None}


def check_splits(source: str | os.PathLike[str], splits: Mapping[Any, Iterable[Record]]) -> None:
    """Make sure that no patient and no image of a data set is in two splits.

    Args:
        source: the data set, for the error.
        splits: the records of each split.

    Raises:
        RegZooError: one is.
    """
    homes: dict[str, Any] = {}
    for split, records in splits.items():
        images: dict[str, None] = {}
        patients: dict[str, None] = {}
        for record in records:
            patients.update(dict.fromkeys(patients_of(record)))
            images.update(dict.fromkeys(record_files(record, IMAGE_KEYS)))
        # First the images: a file says more than a name.
        named = [(f"the image {file}", os.path.realpath(file)) for file in images]
        for what, key in named + [(f"the patient {patient!r}", f"patient {patient}") for patient in patients]:
            home = homes.setdefault(key, split)
            if home != split:
                problem = f"has {what} in two splits, {home} and {split}, so that what is trained on would be tested on"
                refuse(bad_file(source, problem, "keep each patient in one split"))
