"""Pairs to evaluate on, drawn once from single images, stored, and used by every method."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from regzoo.datasets.datalist import read_datalist
from regzoo.datasets.decathlon import read_description
from regzoo.datasets.records import PATH_KEYS, Record, check_records, pair_record, patient_of, record_files
from regzoo.errors import RegZooError, bad_file
from regzoo.files import write_json

#: The list of the file, and what is said beside it about how it was made.
SECTION, MADE = "testing", "made"


def draw_pairs(
    records: Sequence[Record], path: str | os.PathLike[str], count: int | None = None, seed: int = 0
) -> list[Record]:
    """Ordered pairs of different patients, drawn from single images once and read ever after.

    Each image is fixed, and moving, about as often as any other. The file is a datalist (JSON): the pairs under
    ``testing``, and under ``made`` the seed, the number and the images they were drawn from. Files under the
    datalist's folder are named relative to it, others by their absolute path.

    Args:
        records: of single images, see `load_single_records`; one without ``patient`` is a patient of its own.
        path: the datalist; written if it is not there.
        count: how many pairs; None: as many as there are images, so that each is fixed once.
        seed: of the draw.

    Returns:
        Records of pairs, the same in every run.

    Raises:
        RegZooError: there are not two patients, more pairs are wanted than there are, or the file was made otherwise.
    """
    target = Path(path)
    check_records(records)
    wanted = len(records) if count is None else count
    made = {"seed": seed, "count": wanted, "images": sorted(str(record["case"]) for record in records)}
    if not target.exists():
        pairs = _draw(records, wanted, seed)
        content = {"description": "Pairs of different patients to evaluate on", MADE: made}
        write_json(target, content | {SECTION: [_portable(pair, target) for pair in pairs]})
    pairs = read_datalist(target, SECTION)
    _check_made(target, made, pairs, records)
    check_records(pairs)
    return pairs


def _draw(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Ordered pairs of different patients, always one of those whose images were drawn least so far."""
    ordered = sorted(records, key=lambda record: str(record["case"]))
    patients = [patient_of(record) for record in ordered]
    left = [(i, j) for i, j in permutations(range(len(ordered)), 2) if patients[i] != patients[j]]
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


def _portable(pair: Record, target: Path) -> Record:
    """The record with paths as the datalist names them."""
    folder = target.resolve().parent

    def name(path: str) -> str:
        absolute = Path(path).resolve()
        return str(absolute.relative_to(folder)) if absolute.is_relative_to(folder) else str(absolute)

    def names(value: Any) -> Any:
        return name(value) if isinstance(value, str) else [name(file) for file in value]

    return {key: names(value) if key in PATH_KEYS else value for key, value in pair.items()}


def _check_made(target: Path, wanted: dict[str, Any], pairs: Sequence[Record], records: Sequence[Record]) -> None:
    """Make sure that a datalist was made from these images in this way."""
    mend = "remove it to draw the pairs anew, or name another file"
    made = read_description(target).get(MADE)
    if not isinstance(made, dict):
        raise bad_file(target, f"does not say how it was made ({MADE!r} is missing)", mend)
    different = [
        f"{key} {made.get(key)} instead of {wanted[key]}" for key in ("seed", "count") if made.get(key) != wanted[key]
    ]
    if made.get("images") != wanted["images"]:
        different.append("other images")
    if not different:
        known = {_real(record, "fixed_image"): _real(record, "fixed_label") for record in records}
        for pair in pairs:
            for side in ("fixed", "moving"):
                if _real(pair, f"{side}_image") not in known:
                    different.append(f"images elsewhere, such as {pair[f'{side}_image']}")
                elif known[_real(pair, f"{side}_image")] != _real(pair, f"{side}_label"):
                    different.append(f"other labels, such as that of {pair[f'{side}_image']}")
    if different:
        raise bad_file(target, f"holds pairs made otherwise ({', '.join(different[:2])})", mend)


def _real(record: Record, key: str) -> tuple[str, ...]:
    """The files that a key of a record leads to in the end."""
    return tuple(os.path.realpath(file) for file in record_files(record, [key]))
