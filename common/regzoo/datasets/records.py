"""Records of pairs and of single images: their patients, files and labels, and the checks before they are used.

See `regzoo.case.Record`. A single image, for methods that make the moving image themselves, has a ``fixed_image`` and
no ``moving_image``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Literal, get_args

from regzoo.case import FIXED, IMAGE_KEYS, MOVING, PATH_KEYS, POINT_KEYS, SIDES, Key, Record, Side
from regzoo.datasets.folders import case_name
from regzoo.errors import RegZooError, bad_file, refuse
from regzoo.files import file_name
from regzoo.refinement.options import Linear
from regzoo.spatial.reading import is_image, not_a_file

#: See `regzoo.transforms.AlignPaird`.
Alignment = Literal["header", "center", "label", "region", Linear]
PATIENT_KEYS = (Key.PATIENT, FIXED.patient, MOVING.patient)


def is_of_kind(name: str, kinds: Iterable[str]) -> bool:
    """Whether the name of a label, or the beginning of the name up to an underscore, is among `kinds`.

    ``cyst`` stands for ``cyst_1`` and ``cyst_2``, ``seminal_vesicle`` for the left one and the right one.
    """
    return any(f"{name}_".startswith(f"{kind}_") for kind in kinds)


def validate_kinds(records: Sequence[Record], kinds: Sequence[str]) -> None:
    """Make sure that a data set has labels of certain kinds, see `is_of_kind`; a wrong name would hold nothing out.

    Raises:
        RegZooError: no label is of such a kind, or no other kind is left.
    """
    names = sorted({str(name) for record in records for name in record.get(Key.LABEL_NAMES, [])})
    unknown = [kind for kind in kinds if not any(is_of_kind(name, [kind]) for name in names)]
    if unknown:
        known = ", ".join(names) or "none, add label_names to its records"
        raise RegZooError(f"no label is called {unknown[0]!r}; the names of the data set are {known}")
    if kinds and all(is_of_kind(name, kinds) for name in names):
        raise RegZooError(f"holding out {', '.join(kinds)} leaves no label; hold out less")


def known_alignment(method: Any) -> Alignment:
    """A method of pre-alignment; raises `RegZooError` if there is no such method."""
    if method not in get_args(Alignment):
        raise RegZooError(f"align: unknown method {method!r:.80}; use one of {', '.join(get_args(Alignment))}")
    return method


def record_files(record: Record, keys: Iterable[str] = PATH_KEYS) -> list[str]:
    """All files of a record, including those of lists."""
    files: list[str] = []
    for key in keys:
        value: Any = record.get(key)
        if value is not None:
            files += [str(value)] if isinstance(value, str | os.PathLike) else map(str, value)
    return files


def real_files(record: Record, keys: Iterable[str] = PATH_KEYS) -> tuple[str, ...]:
    """The files of a record with symbolic links resolved."""
    return tuple(os.path.realpath(file) for file in record_files(record, keys))


def is_single(record: Record) -> bool:
    """Whether a record is a single image."""
    return MOVING.image not in record


def single_records(records: Iterable[Record]) -> list[Record]:
    """Every image of some records once, as the record of a single image, in the order in which they appear."""
    found: dict[str, Record] = {}
    for record in records:
        for side in SIDES:
            image = record.get(side.image)
            if image is None or os.path.realpath(image) in found:
                continue
            single = Record(fixed_image=image)
            if side.label in record:
                single[FIXED.label] = record[side.label]
            if (patient := patient_on(record, side)) is not None:
                single[Key.PATIENT] = patient
            single[Key.CASE] = (is_single(record) and record.get(Key.CASE)) or case_name(image)
            for key in (Key.LABEL_NAMES, Key.LABEL_VALUES, Key.SPLIT, Key.FOLD):
                if key in record:
                    single[key] = record[key]
            found[os.path.realpath(image)] = single
    singles = list(found.values())
    names = [single[Key.CASE] for single in singles]
    for single in singles:
        if names.count(single[Key.CASE]) > 1:
            single[Key.CASE] = f"{Path(single[FIXED.image]).parent.name}_{single[Key.CASE]}"
    return singles


def patient_of(image: Record) -> str:
    """The patient of a single image; without one, the image counts as its own patient."""
    return str(image.get(Key.PATIENT, image[Key.CASE]))


def patient_on(record: Record, side: Side) -> str | None:
    """The patient on one side of a record, None if the record does not say."""
    return record.get(side.patient, record.get(Key.PATIENT))


def patients_of(record: Record) -> set[str]:
    """The patients that a record names."""
    return {str(patient) for key in PATIENT_KEYS if (patient := record.get(key)) is not None}


def pair_case(fixed: Record, moving: Record) -> str:
    """The case of a pair of two single images."""
    return f"{fixed[Key.CASE]}_from_{moving[Key.CASE]}"


def pair_record(fixed: Record, moving: Record) -> Record:
    """The record of a pair, made of the records of two single images; its case is named after both.

    Points of two patients do not correspond, so only a pair of one patient has them. Images that name the values of
    their labels may lack some of each other's; see `check_label_names` for what must agree.
    """
    record = Record(fixed_image=fixed[FIXED.image], moving_image=moving[FIXED.image])
    for side, single in ((FIXED, fixed), (MOVING, moving)):
        if FIXED.label in single:
            record[side.label] = single[FIXED.label]
    if patient_of(fixed) == patient_of(moving):
        record[Key.PATIENT] = patient_of(fixed)
    else:
        record[FIXED.patient], record[MOVING.patient] = patient_of(fixed), patient_of(moving)
    record[Key.CASE] = pair_case(fixed, moving)
    if Key.PATIENT in record and FIXED.points in fixed and FIXED.points in moving:
        record[FIXED.points], record[MOVING.points] = fixed[FIXED.points], moving[FIXED.points]
    images = (fixed, moving)
    named = {
        value: name
        for image in images
        for value, name in zip(image.get(Key.LABEL_VALUES, []), image.get(Key.LABEL_NAMES, []), strict=False)
    }
    names = [image[Key.LABEL_NAMES] for image in images if Key.LABEL_NAMES in image]
    listed = [list(image.get(Key.LABEL_VALUES, [])) for image in images]
    if values := list(dict.fromkeys(chain(*listed))):
        if all(own == sorted(own) for own in listed):  # in one order, whichever image is the fixed one
            values.sort()
        record[Key.LABEL_VALUES] = values
        if named:
            record[Key.LABEL_NAMES] = [named.get(value, f"label_{value}") for value in values]
    elif names and names[0] == names[-1]:
        record[Key.LABEL_NAMES] = names[0]
    return record


def check_label_names(images: Iterable[Record]) -> None:
    """Make sure that labels of single images that correspond have one name.

    Labels of maps correspond by their value if both images name their values, all others by their position.

    Raises:
        RegZooError: two images give corresponding labels different names, or list the same values in another order.
    """
    kinds: dict[tuple[bool, tuple[int, ...], tuple[str, ...]], str] = {}
    for image in images:
        masks = isinstance(image.get(FIXED.label), list)
        kind = masks, tuple(image.get(Key.LABEL_VALUES, ())), tuple(image.get(Key.LABEL_NAMES, ()))
        kinds.setdefault(kind, image[FIXED.image])
    for (one, other), (two, file) in combinations(kinds.items(), 2):
        (masks, values, names), (other_masks, other_values, other_names) = two, one
        by_value = values and other_values and not masks and not other_masks
        called = dict(zip(values, names, strict=False) if by_value else enumerate(names))
        for label, name in zip(other_values, other_names, strict=False) if by_value else enumerate(other_names):
            if called.get(label, name) != name:
                what = f"value {label}" if by_value else f"label {label} (from 0)"
                problem = f"its {what} is called {called[label]!r}, but that of {other} is called {name!r}"
                fix = "give the same structure the same value (label_values) or position, and name, in all images"
                if bool(values) != bool(other_values):
                    fix = "give label_values to all images"
                refuse(bad_file(file, problem, fix))
        if [value for value in values if value in other_values] != [value for value in other_values if value in values]:
            problem = f"lists its label_values in another order than {other}"
            refuse(bad_file(file, problem, "list them in one order, with their names"))


def check_records(records: Sequence[Record], must_exist: bool = True) -> None:
    """Make sure that the records, of pairs or of single images, can be used together.

    Raises:
        RegZooError: a file is missing (if `must_exist`), a pair is listed twice, two pairs have one name, a record
            names one file as both images, or records of different patients share a file, so that folds by patient would
            leak.
    """
    if not records:
        raise RegZooError("the list of pairs is empty; name a data set with at least one pair")
    pairs: set[tuple[str, ...]] = set()
    cases: set[str] = set()
    owners: dict[str, str] = {}
    # An image may be in hundreds of pairs.
    exists, real = functools.cache(is_image), functools.cache(os.path.realpath)
    for record in records:
        image = record[FIXED.image]
        for file in record_files(record) if must_exist else ():
            if not exists(file):
                missing = bad_file(file, "no such file", "correct the path or take the pair off the list")
                refuse(not_a_file(Path(file)) if Path(file).is_dir() else missing)
        given = [key for key in POINT_KEYS if record.get(key)]
        if len(given) == 1 and not is_single(record):
            problem = f"has {given[0]}, but no points of the other image"
            refuse(bad_file(image, problem, "give corresponding points of both images"))
        pair = tuple(map(real, record_files(record, IMAGE_KEYS)))
        if len(pair) > len(set(pair)):
            refuse(bad_file(image, "is both the fixed and the moving image of a pair", "name two images"))
        if pair in pairs:
            with_what = "" if is_single(record) else f" with the moving image {record[MOVING.image]}"
            refuse(bad_file(image, f"is listed twice{with_what}", "keep one of the two entries"))
        pairs.add(pair)
        case = file_name(record.get(Key.CASE) or case_name(image))
        if case in cases:
            problem = (
                f"is the fixed image of another pair called {case!r}, and their results would overwrite each other"
            )
            refuse(bad_file(image, problem, "give each pair a name of its own as case"))
        cases.add(case)
        for side in SIDES:
            if (patient := patient_on(record, side)) is None:
                continue
            for file in map(real, record_files(record, (side.image, side.label, side.mask, side.points))):
                owner = owners.setdefault(file, str(patient))
                if owner != str(patient):
                    problem = f"belongs to two patients, {owner} and {patient}, and would be in two folds"
                    refuse(bad_file(file, problem, "give the pairs that share it the same patient"))


def check_splits(source: str | os.PathLike[str], splits: Mapping[Any, Sequence[Record]]) -> None:
    """Raise `RegZooError` if a patient or an image of a data set (`source`) is in two splits."""
    homes: dict[str, Any] = {}
    for split, records in splits.items():
        images = dict.fromkeys(file for record in records for file in record_files(record, IMAGE_KEYS))
        patients = dict.fromkeys(patient for record in records for patient in patients_of(record))
        # Images come first: a file says more than a name.
        named = [(f"the image {file}", os.path.realpath(file)) for file in images]
        for what, key in named + [(f"the patient {patient!r}", f"patient {patient}") for patient in patients]:
            home = homes.setdefault(key, split)
            if home != split:
                problem = f"has {what} in two splits, {home} and {split}, so that what is trained on would be tested on"
                refuse(bad_file(source, problem, "keep each patient in one split"))
