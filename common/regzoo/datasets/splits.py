"""Folds by patient: no patient is ever on both sides of a split."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Sequence
from itertools import chain

import numpy as np
from regzoo.case import FIXED, IMAGE_KEYS, Key, Record
from regzoo.datasets.records import check_splits, patients_of, record_files
from regzoo.datasets.text import warn_once
from regzoo.errors import RegZooError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def patient_folds(records: Sequence[Record], folds: int, seed: int = 0) -> list[list[Record]]:
    """Divide records into folds of nearly equal numbers of pairs, never a patient or an image in two folds.

    The result depends on the set of records and on `seed`, not on the order of the records. Records without a
    ``patient`` count as one patient each, except those that share an image. A pair of two patients keeps both together.

    Args:
        records: pairs.
        folds: how many parts, at least two.
        seed: of the random order in which patients are dealt out.

    Returns:
        `folds` lists of records, each ordered by case.

    Raises:
        RegZooError: fewer patients than folds, or fewer than two folds.
    """
    if folds < 2:
        raise RegZooError(f"cross-validation with {folds} fold(s) leaves nothing to learn or to test; use at least 2")
    groups = linked_groups(sorted(records, key=_key))
    if len(groups) < folds:
        patients = {patient for record in records for patient in patients_of(record)}
        linked = " (those that share a pair or an image count as one)" if len(groups) < len(patients) else ""
        raise RegZooError(
            f"{len(groups)} patient(s){linked} cannot make {folds} folds; use fewer folds or add patients"
        )
    names = sorted(groups)
    random.Random(f"{seed}").shuffle(names)
    # The largest groups first, each to the fold that is smallest so far: at most one group apart in the end.
    names.sort(key=lambda name: -len(groups[name]))
    parts: list[list[Record]] = [[] for _ in range(folds)]
    for name in names:
        min(parts, key=len).extend(groups[name])
    return [sorted(part, key=_key) for part in parts]


def split_fold(
    records: Sequence[Record], fold: int, folds: int | None, seed: int = 0
) -> tuple[list[Record], list[Record]]:
    """The records to train on and to validate on for one fold: the records' own folds, or else `patient_folds`.

    Args:
        records: pairs, all of them with a ``fold``, or none.
        fold: which fold is held out, from 0.
        folds: how many folds; None: as many as the records name.

    Returns:
        (training, validation).

    Raises:
        RegZooError: no such fold, other folds than the records', or see `patient_folds`. If the records' own folds
            share a patient or an image, it only warns.
    """
    if any(Key.FOLD in record for record in records):
        parts = _own_folds(records, folds)
    else:
        if folds is None:
            raise RegZooError("the records name no folds of their own; say how many there are")
        if not 0 <= fold < folds:
            raise RegZooError(f"fold {fold} does not exist among {folds}; use 0 to {folds - 1}")
        parts = dict(enumerate(patient_folds(records, folds, seed)))
    if fold not in parts:
        raise RegZooError(
            f"fold {fold} is not among the data set's own, {', '.join(map(str, parts))}; name one of them"
        )
    return [record for name, part in parts.items() if name != fold for record in part], parts[fold]


def _own_folds(records: Sequence[Record], folds: int | None) -> dict[int, list[Record]]:
    """The folds that the records name, in order."""
    for record in records:
        if Key.FOLD not in record:
            raise RegZooError(f"{record[FIXED.image]}: has no fold, but others have one; give each pair its fold")
    names = sorted({int(record[Key.FOLD]) for record in records})
    if len(names) < 2 or folds not in (None, len(names)):
        wanted = "at least 2" if folds is None else f"{folds}"
        listed = ", ".join(map(str, names))
        raise RegZooError(
            f"the data set's own folds are {listed}, not {wanted}; leave folds out, or change its column 'fold'"
        )
    parts = {name: [record for record in records if record[Key.FOLD] == name] for name in names}
    try:
        check_splits("the column 'fold'", {f"fold {name}": part for name, part in parts.items()})
    except RegZooError as error:  # the author of the column has decided so
        warn_once(str(error))
    return parts


def linked_groups(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records that share a patient or an image, directly or through others, by the name of their first patient."""
    real = functools.cache(os.path.realpath)  # an image may be in hundreds of pairs
    names = [
        [*(f"patient {name}" for name in patients_of(record)), *map(real, record_files(record, IMAGE_KEYS))]
        for record in records
    ]
    number = {name: index for index, name in enumerate(sorted(set(chain(*names))))}
    # A graph of names, in which each record joins its first name to the others.
    rows = [number[first] for first, *others in names for _ in others]
    columns = [number[other] for _, *others in names for other in others]
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(number),) * 2)
    _, component = connected_components(graph, directed=False)
    groups: dict[int, list[Record]] = {}
    for record, (first, *_) in zip(records, names, strict=True):
        groups.setdefault(int(component[number[first]]), []).append(record)
    return {_group_name(group): group for group in groups.values()}


def _group_name(group: Sequence[Record]) -> str:
    """The name of a group: its first patient, or its first pair if no patient is known."""
    patients = {patient for record in group for patient in patients_of(record)}
    return f"patient {min(patients)}" if patients else "pair " + "|".join(record_files(group[0]))


def _key(record: Record) -> tuple[str, ...]:
    """Orders records independently of the list they came in."""
    return (str(record.get(Key.CASE, "")), *record_files(record))
