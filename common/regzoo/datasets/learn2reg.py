"""Tasks of Learn2Reg, such as AbdomenCTCT, and the phantoms that are written in their layout."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from regzoo.case import FIXED, MOVING, Key, Record
from regzoo.datasets.decathlon import image_record, named_labels, patient_in, read_description
from regzoo.datasets.records import check_splits, pair_record
from regzoo.errors import RegZooError, bad_file

SUFFIX = "_dataset.json"
#: Lists of pairs, by split; the first that has any counts.
PAIRS = {
    "train": ("training_paired_images",),
    "val": ("registration_val",),
    "test": ("registration_test", "test_paired_images"),
}
#: A JSON file with any of these describes a Learn2Reg task.
KEYS = {"registration_val", "registration_test", "training_paired_images", "registration_direction", "tensorImageShape"}
#: ``<task>_<patient>_<modality>``.
NAME = re.compile(r"(?P<patient>.+_\d+)_(?P<modality>\d{4})")


def is_learn2reg(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the ``<Task>_dataset.json`` of a Learn2Reg task, or a folder with one in it."""
    source = Path(path)
    if not source.is_file():
        return source.is_dir() and bool(_descriptions(source))
    if not source.name.endswith(SUFFIX):
        return False
    # A user's datalist may have such a name, too.
    try:
        return bool(KEYS & read_description(source).keys())
    except RegZooError:
        return False


def read_learn2reg(path: str | os.PathLike[str], split: str | None = None) -> list[Record]:
    """Records of the pairs of a Learn2Reg task, as downloaded and unpacked.

    ``<Task>_dataset.json`` lists the pairs: ``training_paired_images`` without the images of the pairs to validate and
    test on; ``registration_val``; ``registration_test`` or ``test_paired_images``. A task across patients lists none to
    train on: its pairs are all ordered pairs of different patients among the other training images. Labels are
    included where they exist; masks are not. A pair of one patient has ``patient`` and, where they exist, the keypoints
    (``keypointsTr/<image>.csv``) as points; another has ``fixed_patient`` and ``moving_patient``.

    Args:
        path: folder of the task, or its ``<Task>_dataset.json``.
        split: ``train``, ``val`` or ``test``; None: all there are.

    Raises:
        RegZooError: the JSON file is missing or cannot be understood, it lists no pairs of the split, or a patient is
            in two splits.
    """
    task = _Task(path)
    pairs = [pair for name in ([split] if split else PAIRS) for pair in task.pairs(name)]
    task.check_any(pairs, "pairs", split)
    found: dict[tuple[str, str], Record] = {}
    for fixed, moving in pairs:
        found.setdefault((fixed[FIXED.image], moving[FIXED.image]), pair_record(fixed, moving))
    return list(found.values())


def read_learn2reg_images(path: str | os.PathLike[str], split: str | None = None) -> list[Record]:
    """Records of the single images of a Learn2Reg task.

    ``train`` is the images to train on that are in no pair to validate or test on, ``val`` and ``test`` are the images
    of those pairs; where there are no pairs to test on, ``test`` is the list of test images.

    Args, Raises: as `read_learn2reg`.
    """
    task = _Task(path)
    found = [record for name in ([split] if split else PAIRS) for record in task.single(name)]
    task.check_any(found, "images", split)
    return list({record[FIXED.image]: record for record in found}.values())


def lists_training_pairs(path: str | os.PathLike[str]) -> bool:
    """Whether a Learn2Reg task lists pairs to train on; otherwise any two of its training images make one.

    Args, Raises: as `read_learn2reg`.
    """
    task = _Task(path)
    return any(map(task.listed, PAIRS["train"]))


def _descriptions(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.name[0] != ".")


class _Task:
    """The content of a task's JSON file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        source = Path(path)
        found = [source] if source.is_file() else _descriptions(source)
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise bad_file(source, f"has no single *{SUFFIX} ({names})", "name the JSON file of one Learn2Reg task")
        self.path = found[0]
        self.content = read_description(self.path)
        self.labels = named_labels(self.path, self.content.get("labels"))
        self.images: dict[str, dict[str, Record]] = {
            section: {image[FIXED.image]: image for image in map(self._image, self.content.get(section, []))}
            for section in ("training", "test")
        }
        # Some tasks, and the phantoms, validate and test on pairs of the same patients.
        later = [record for split in ("val", "test") for record in self.single(split)]
        check_splits(self.path, {"train": self.single("train"), "val or test": later})

    def _image(self, entry: Any) -> Record:
        """A single image with its patient, and with its label even if the file only names the image."""
        record = image_record(self.path, entry)
        match = NAME.fullmatch(record[Key.CASE])
        record[Key.PATIENT] = patient_in(match["patient"] if match else record[Key.CASE])
        image = Path(record[FIXED.image])
        label = image.parent.with_name(image.parent.name.replace("images", "labels")) / image.name
        if FIXED.label not in record and label != image and label.is_file():
            record[FIXED.label] = str(label)
        points = image.parent.with_name(image.parent.name.replace("images", "keypoints")) / f"{record[Key.CASE]}.csv"
        if points.is_file():
            record[FIXED.points] = str(points)
        return record | self.labels if FIXED.label in record else record

    def check_any(self, found: Sequence[Any], what: str, split: str | None) -> None:
        """Raise `RegZooError` if nothing was found."""
        if not found:
            of = f" of the split {split!r}" if split else ""
            raise bad_file(self.path, f"lists no {what}{of}", "name another split or add them to the file")

    def listed(self, section: str) -> list[tuple[Record, Record]]:
        """The pairs of a list of the file."""
        entries = self.content.get(section) or []
        known = self.images["test"] | self.images["training"]
        pairs = []
        for number, entry in enumerate(entries, start=1):
            sides = [entry.get(side) if isinstance(entry, dict) else None for side in (FIXED.name, MOVING.name)]
            if not all(isinstance(side, str) for side in sides):
                problem = f"pair {number} of {section!r} does not name a fixed and a moving image"
                raise bad_file(self.path, problem, 'write {"fixed": "./imagesTr/…", "moving": "./imagesTr/…"}')
            fixed, moving = (known.get(image[FIXED.image], image) for image in map(self._image, sides))
            pairs.append((fixed, moving))
        return pairs

    def pairs(self, split: str) -> list[tuple[Record, Record]]:
        """The pairs of a split."""
        pairs = next(filter(None, map(self.listed, PAIRS[split])), [])
        if split != "train":
            return pairs
        if not pairs:
            images = permutations(self.single("train"), 2)
            pairs = [pair for pair in images if pair[0][Key.PATIENT] != pair[1][Key.PATIENT]]
        kept = self._kept_for_later()
        return [pair for pair in pairs if not kept & {record[FIXED.image] for record in pair}]

    def single(self, split: str) -> list[Record]:
        """The images of a split."""
        if split == "train":
            kept = self._kept_for_later()
            return [record for path, record in self.images["training"].items() if path not in kept]
        images = [record for pair in self.pairs(split) for record in pair]
        return images or (list(self.images["test"].values()) if split == "test" else [])

    def _kept_for_later(self) -> set[str]:
        """The images of pairs to validate or test on."""
        return {record[FIXED.image] for split in ("val", "test") for pair in self.pairs(split) for record in pair}
