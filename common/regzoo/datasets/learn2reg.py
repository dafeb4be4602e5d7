"""Tasks of Learn2Reg, such as AbdomenCTCT, and the phantoms that are written in their layout."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

from regzoo.datasets.decathlon import image_record, named_labels, read_description
from regzoo.datasets.records import Record, check_splits, pair_record
from regzoo.errors import RegZooError, bad_file

SUFFIX = "_dataset.json"
#: Lists of pairs, by split; the first that has any counts.
PAIRS = {
    "train": ("training_paired_images",),
    "val": ("registration_val",),
    "test": ("registration_test", "test_paired_images"),
}
#: Any of these makes a JSON file one of Learn2Reg's.
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
    # Somebody's datalist may be called so too.
    try:
        return bool(KEYS & read_description(source).keys())
    except RegZooError:
        return False


def read_learn2reg(path: str | os.PathLike[str], split: str | None = None) -> list[Record]:
    """Records of the pairs of a Learn2Reg task, as downloaded and unpacked.

    The pairs are those that ``<Task>_dataset.json`` lists: ``training_paired_images`` without the images of the pairs
    to validate and test on; ``registration_val``; ``registration_test`` or ``test_paired_images``. A task of different
    patients lists no pairs to train on: those are all ordered pairs of different patients among the other training
    images. Labels, and their values and names, are added where there are any; masks and keypoints are left alone. A
    pair of one patient has ``patient``, another ``fixed_patient`` and ``moving_patient``.

    Args:
        path: folder of the task, or its ``<Task>_dataset.json``.
        split: ``train``, ``val`` or ``test``; None: all there are.

    Raises:
        RegZooError: the JSON file is missing or cannot be understood, it lists no pairs of the split, or a patient is
            in two splits.
    """
    task = _Task(path)
    found: dict[tuple[str, str], Record] = {}
    for name in [split] if split else PAIRS:
        for fixed, moving in task.pairs(name):
            found.setdefault((fixed["fixed_image"], moving["fixed_image"]), pair_record(fixed, moving))
    if not found:
        raise bad_file(task.path, f"lists no pairs{_of(split)}", "name another split or add them to the file")
    return list(found.values())


def read_learn2reg_images(path: str | os.PathLike[str], split: str | None = None) -> list[Record]:
    """Records of the single images of a Learn2Reg task.

    ``train`` is the images to train on that are in no pair to validate or test on, ``val`` and ``test`` are the images
    of those pairs; where there are no pairs to test on, ``test`` is the list of test images.

    Args, Raises: as `read_learn2reg`.
    """
    task = _Task(path)
    found = [record for name in ([split] if split else PAIRS) for record in task.single(name)]
    if not found:
        raise bad_file(task.path, f"lists no images{_of(split)}", "name another split or add them to the file")
    return list({record["fixed_image"]: record for record in found}.values())


def _descriptions(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.name[0] != ".")


def _of(split: str | None) -> str:
    return f" of the split {split!r}" if split else ""


class _Task:
    """What the JSON file of a task says."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        source = Path(path)
        found = [source] if source.is_file() else _descriptions(source)
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise bad_file(source, f"has no single *{SUFFIX} ({names})", "name the JSON file of one Learn2Reg task")
        self.path = found[0]
        self.content = read_description(self.path)
        labels = named_labels(self.path, self.content.get("labels"))
        self.images: dict[str, dict[str, Record]] = {
            section: {
                record["fixed_image"]: record
                for record in (self._image(entry, labels) for entry in self.content.get(section, []))
            }
            for section in ("training", "test")
        }
        self.labels = labels
        # Some tasks, and the phantoms, validate and test on pairs of the same patients.
        later = [record for split in ("val", "test") for record in self.single(split)]
        check_splits(self.path, {"train": self.single("train"), "val or test": later})

    def _image(self, entry: Any, labels: Record) -> Record:
        """A single image with whose it is, and its label even where the file only says the image."""
        record = image_record(self.path, entry)
        match = NAME.fullmatch(record["case"])
        record["patient"] = match["patient"] if match else record["case"]
        image = Path(record["fixed_image"])
        label = image.parent.with_name(image.parent.name.replace("images", "labels")) / image.name
        if "fixed_label" not in record and label != image and label.is_file():
            record["fixed_label"] = str(label)
        return record | labels if "fixed_label" in record else record

    def listed(self, section: str) -> list[tuple[Record, Record]]:
        """The pairs of a list of the file."""
        entries = self.content.get(section) or []
        known = self.images["test"] | self.images["training"]
        pairs = []
        for number, entry in enumerate(entries, start=1):
            sides = [entry.get(side) if isinstance(entry, dict) else None for side in ("fixed", "moving")]
            if not all(isinstance(side, str) for side in sides):
                problem = f"pair {number} of {section!r} does not name a fixed and a moving image"
                raise bad_file(self.path, problem, 'write {"fixed": "./imagesTr/…", "moving": "./imagesTr/…"}')
            images = [self._image(side, self.labels) for side in sides]
            fixed, moving = (known.get(image["fixed_image"], image) for image in images)
            pairs.append((fixed, moving))
        return pairs

    def pairs(self, split: str) -> Iterator[tuple[Record, Record]]:
        """The pairs of a split."""
        lists = (self.listed(section) for section in PAIRS[split])
        pairs = next((pairs for pairs in lists if pairs), [])
        if split != "train":
            yield from pairs
            return
        kept = self._kept_for_later()
        if not pairs:
            training = [record for path, record in self.images["training"].items() if path not in kept]
            pairs = [pair for pair in permutations(training, 2) if pair[0]["patient"] != pair[1]["patient"]]
        yield from (pair for pair in pairs if not kept & {record["fixed_image"] for record in pair})

    def single(self, split: str) -> list[Record]:
        """The images of a split."""
        if split == "train":
            kept = self._kept_for_later()
            return [record for path, record in self.images["training"].items() if path not in kept]
        images = [record for pair in self.pairs(split) for record in pair]
        return images or (list(self.images["test"].values()) if split == "test" else [])

    def _kept_for_later(self) -> set[str]:
        """The images of pairs to validate or test on."""
        return {record["fixed_image"] for split in ("val", "test") for pair in self.pairs(split) for record in pair}
