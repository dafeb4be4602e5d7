"""Cases identified by the content of their files, so that a moved file is recognised and a changed one is not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

from regzoo import files
from regzoo.case import IMAGE_KEYS, PATH_KEYS, Key, Record
from regzoo.datasets.records import PATIENT_KEYS, patients_of, record_files
from regzoo.errors import RegZooError
from regzoo.spatial.reading import read_header

#: Number of hexadecimal digits of a shortened hash: enough to tell millions of files apart.
DIGITS = 20
#: Entries of a record, besides its files, that identify a case.
FACTS = (*PATIENT_KEYS, Key.LABEL_NAMES, Key.LABEL_VALUES)


def image_parts(path: str | PathLike[str]) -> list[Path]:
    """The files of an image, such as a DICOM series or a header and its data, or a file that is no image.

    Raises:
        RegZooError: there is no such file or image.
    """
    try:
        return list(read_header(path).files)
    except RegZooError:
        if not Path(path).is_file():
            raise
        return [Path(path)]


def whole_hash(path: str | PathLike[str]) -> str:
    """SHA-256 of the bytes of a file, or of all files of an image, such as a DICOM series or a header and its data.

    A file is read once per run, unless its size or time changes.

    Raises:
        RegZooError: there is no such file or image.
    """
    states = [(real := part.resolve(), real.stat()) for part in image_parts(path)]
    hashes = [_hash(real, state.st_size, state.st_mtime_ns) for real, state in states]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def file_hash(path: str | PathLike[str]) -> str:
    """`whole_hash`, shortened to `DIGITS`."""
    return whole_hash(path)[:DIGITS]


@cache
def _hash(path: Path, size: int, time: int) -> str:
    return files.file_hash(path)


def fingerprints(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Case → the hashes of its files, its patients, how its labels are read and it is aligned, as plain values."""
    found = {}
    for record in records:
        hashes = {key: list(map(file_hash, record_files(record, [key]))) for key in PATH_KEYS if record.get(key)}
        facts = {key: fact for key in FACTS if (fact := record.get(key)) is not None}
        found[str(record[Key.CASE])] = hashes | facts | {Key.ALIGN: record.get(Key.ALIGN, "")}
    return found


def data_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The difference between two `fingerprints`, in words; empty if there is none."""
    changed = []
    for case in sorted(before.keys() & now.keys()):
        old, new = before[case], now[case]
        if keys := sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key)):
            changed.append(f"{case} changed ({', '.join(keys)})")
    parts = changed[:3] + ([f"{len(changed) - 3} more changed"] if len(changed) > 3 else [])
    for word, cases in (("added", now.keys() - before.keys()), ("removed", before.keys() - now.keys())):
        if cases:
            shown = ", ".join(sorted(cases)[:3]) + (", …" if len(cases) > 3 else "")
            parts.append(f"{len(cases)} {word} ({shown})")
    return ", ".join(parts)


def refuse_shared(trained: Mapping[str, Mapping[str, Any]], records: Sequence[Record], weights: object) -> None:
    """Raise `RegZooError` if a case has an image or a patient of the `fingerprints` that weights were trained on."""
    hashes = {value: case for case, facts in trained.items() for key in IMAGE_KEYS for value in facts.get(key, [])}
    patients = {str(facts[key]): case for case, facts in trained.items() for key in PATIENT_KEYS if key in facts}
    fix = "evaluate other cases, or the fold that the training held out (eval_split fold and its fold)"
    unless = ". If they are two people, give them different names in the column patient of a datalist"
    for record in records:
        for file in record_files(record, IMAGE_KEYS):
            if (case := hashes.get(file_hash(file))) is not None:
                raise RegZooError(f"{file}: {weights} was trained on this image, as case {case}; {fix}")
        for patient in sorted(patients_of(record)):
            if (case := patients.get(patient)) is not None:
                problem = f"case {record['case']} is of patient {patient}, on whom {weights} was trained (case {case})"
                raise RegZooError(f"{problem}; {fix}{unless}")
