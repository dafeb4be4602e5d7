"""Folds by patient: no patient is ever on both sides of a split."""

from __future__ import annotations

import random
from collections.abc import Sequence

from regzoo.datasets.records import Record, record_files
from regzoo.errors import RegZooError


def patient_folds(records: Sequence[Record], folds: int, seed: int = 0) -> list[list[Record]]:
    """Divide records into folds of nearly equal numbers of pairs, never a patient in two folds.

    The result depends on which records there are and on `seed`, not on their order. Records without a ``patient``
    count as one patient each.

    Args:
        records: pairs.
        folds: how many parts, at least two.
        seed: of the random order in which patients are dealt out.

    Returns:
        `folds` lists of records; the records of each are in the order of their case.

    Raises:
        RegZooError: fewer patients than folds, or fewer than two folds.
    """
    patients: dict[str, list[Record]] = {}
    for record in sorted(records, key=_key):
        patients.setdefault(_patient(record), []).append(record)
    if folds < 2:
        raise RegZooError(f"cross-validation with {folds} fold(s) leaves nothing to learn or to test; use at least 2")
    if len(patients) < folds:
        raise RegZooError(f"{len(patients)} patient(s) cannot make {folds} folds; use fewer folds or add patients")
    names = sorted(patients)
    random.Random(f"{seed}").shuffle(names)
    # The largest groups first, each to the fold that is smallest so far: at most one group apart in the end.
    names.sort(key=lambda name: -len(patients[name]))
    parts: list[list[Record]] = [[] for _ in range(folds)]
    for name in names:
        min(parts, key=len).extend(patients[name])
    return [sorted(part, key=_key) for part in parts]


def split_fold(records: Sequence[Record], fold: int, folds: int, seed: int = 0) -> tuple[list[Record], list[Record]]:
    """The records to train on and to validate on for one fold of `patient_folds`.

    Args:
        records: pairs.
        fold: which fold is held out, from 0.
        folds: how many folds.
        seed: of the division.

    Returns:
        (training, validation).

    Raises:
        RegZooError: no such fold, or see `patient_folds`.
    """
    if not 0 <= fold < folds:
        raise RegZooError(f"fold {fold} does not exist among {folds}; use 0 to {folds - 1}")
    parts = patient_folds(records, folds, seed)
    return [record for i, part in enumerate(parts) if i != fold for record in part], parts[fold]


def _patient(record: Record) -> str:
    """Whose the pair is; a pair of nobody known is a patient of its own."""
    patient = record.get("patient")
    return f"patient {patient}" if patient is not None else "pair " + "|".join(record_files(record))


def _key(record: Record) -> tuple[str, ...]:
    """An order of records that does not depend on the list they came in."""
    return (str(record.get("case", "")), *record_files(record))
