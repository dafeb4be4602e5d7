"""Pairs to evaluate on, drawn once from single images, stored, and used by every method."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, cast

from regzoo.case import LABEL_KEYS, PATH_KEYS, Key, Record
from regzoo.datasets.datalist import read_datalist
from regzoo.datasets.decathlon import read_description
from regzoo.datasets.records import check_label_names, check_records, pair_case, pair_record, patient_of
from regzoo.errors import RegZooError, bad_file
from regzoo.files import write_json

#: The list of the file, and the key under which it says how the list was made.
SECTION, MADE = "testing", "made"


def draw_pairs(
    records: Sequence[Record], path: str | os.PathLike[str], count: int | None = None, seed: int = 0
) -> list[Record]:
    """Ordered pairs of different patients, drawn from single images once and read from a file afterwards.

    Each image is fixed, and moving, about as often as any other. The file is a datalist (JSON): the pairs under
    ``testing``, and under ``made`` the seed, the number and the images they were drawn from. Paths under the datalist's
    folder are relative to it, others are absolute. A file that exists decides which cases are paired, by their names;
    their files are those of `records`, so the data may have moved.

    Args:
        records: of single images, see `load_single_records`; without ``patient``, an image counts as its own patient.
        path: the datalist; written if it does not exist.
        count: how many pairs; None: as many as there are images, so that each is fixed once.

    Returns:
        Records of pairs, the same in every run.

    Raises:
        RegZooError: there are fewer than two patients or than `count` pairs, the images give corresponding labels
            different names, or the file was made differently.
    """
    target = Path(path)
    check_records(records)
    check_label_names(records)
    wanted = len(records) if count is None else count
    made = {"seed": seed, "count": wanted, "images": sorted(str(record[Key.CASE]) for record in records)}
    if not target.exists():
        pairs = _draw(records, wanted, seed)
        listed = [_portable(pair, target) for pair in pairs]
        write_json(target, {"description": "Pairs of different patients to evaluate on", MADE: made, SECTION: listed})
    pairs = _of_images(target, made, records)
    check_records(pairs)
    return pairs


def _draw(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Ordered pairs of different patients, always one of those whose images were drawn least so far."""
    ordered = sorted(records, key=lambda record: str(record[Key.CASE]))
    left = list(_possible(ordered))
    if not left:
        raise RegZooError("pairs of different patients need images of at least two patients; name a larger data set")
    if not 1 <= count <= len(left):
        raise RegZooError(f"{count} pairs cannot be drawn from {len(ordered)} images; ask for 1 to {len(left)}")
    random.Random(f"{seed}").shuffle(left)
    fixed, moving = Counter[int](), Counter[int]()
    drawn = []
    for _ in range(count):
        pair = min(left, key=lambda pair: (max(fixed[pair[0]], moving[pair[1]]), fixed[pair[0]] + moving[pair[1]]))
        left.remove(pair)
        fixed[pair[0]] += 1
        moving[pair[1]] += 1
        drawn.append(pair_record(ordered[pair[0]], ordered[pair[1]]))
    return drawn


def _possible(records: Sequence[Record]) -> Iterator[tuple[int, int]]:
    """The numbers of the fixed and the moving image of all pairs of different patients."""
    patients = [patient_of(record) for record in records]
    return ((i, j) for i, j in permutations(range(len(records)), 2) if patients[i] != patients[j])


def _portable(pair: Record, target: Path) -> dict[str, Any]:
    """The record with paths as the datalist names them."""
    folder = target.resolve().parent

    def name(path: str) -> str:
        absolute = Path(path).resolve()
        return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)

    def names(value: Any) -> Any:
        return name(value) if isinstance(value, str) else [name(file) for file in value]

    return {key: names(value) if key in PATH_KEYS else value for key, value in pair.items()}


def _of_images(target: Path, wanted: dict[str, Any], records: Sequence[Record]) -> list[Record]:
    """The pairs of a datalist, with the files of these images; refused unless it was made from them in this way."""
    fix = "remove it to draw the pairs again, or name another file"
    pairs, made = read_datalist(target, SECTION), read_description(target).get(MADE)
    if not isinstance(made, dict):
        raise bad_file(target, f"does not say how it was made ({MADE!r} is missing)", fix)
    different = [
        f"{key} {made.get(key)} instead of {wanted[key]}" for key in ("seed", "count") if made.get(key) != wanted[key]
    ]
    wanted_cases = {pair[Key.CASE] for pair in pairs}
    possible = {
        case: (records[i], records[j])
        for i, j in _possible(records)
        if (case := pair_case(records[i], records[j])) in wanted_cases
    }
    if made.get("images") != wanted["images"]:
        different.append("other images")
    elif unknown := [pair[Key.CASE] for pair in pairs if pair[Key.CASE] not in possible]:
        different.append(f"no images of two patients now make {unknown[0]}")
    if different:
        raise bad_file(target, f"holds pairs made otherwise ({', '.join(different[:2])})", fix)
    of_images = {*LABEL_KEYS, Key.LABEL_NAMES, Key.LABEL_VALUES}
    return [
        cast(Record, {key: value for key, value in pair.items() if key not in of_images})
        | pair_record(*possible[pair[Key.CASE]])
        for pair in pairs
    ]
