"""Tasks of the Medical Segmentation Decathlon, such as Task03_Liver and Task08_HepaticVessel: single images."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regzoo.case import FIXED, Key, Record
from regzoo.datasets.folders import case_name, check_labels, image_files
from regzoo.datasets.records import check_splits
from regzoo.datasets.text import read_json
from regzoo.errors import bad_file

DESCRIPTION = "dataset.json"
#: Lists of ``dataset.json``, and folders of images and labels, by split.
LISTS = {"train": ("training", "imagesTr", "labelsTr"), "test": ("test", "imagesTs", "labelsTs")}
#: Images of Task04_Hippocampus, with nnU-Net's number of the channel or without.
HIPPOCAMPUS = re.compile(r"hippocampus_(?P<number>\d+)(_0000)?")


def is_decathlon(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has the image folder of a Decathlon task."""
    return (Path(folder) / "imagesTr").is_dir()


def read_decathlon(folder: str | os.PathLike[str], split: str | None = None) -> list[Record]:
    """Records of the single images of a Decathlon task, as downloaded and unpacked.

    ``{imagesTr,labelsTr,imagesTs}/<name>`` in any format and ``dataset.json`` with the list of images and the names of
    the labels. Without ``dataset.json``, or without its lists, the images are those in the folders and labels have no
    names. Test images come without labels. Every image counts as its own patient, but images 2n - 1 and 2n of
    Task04_Hippocampus are of one patient: both were cut from one scan. The Decathlon put some of these patients into
    both splits.

    Args:
        split: ``train`` or ``test``; None: both.

    Raises:
        RegZooError: the folder has another layout or no such split, an image is in both splits, or ``dataset.json``
            cannot be understood.
    """
    root = Path(folder)
    if not is_decathlon(root):
        raise bad_file(root, "has no folder imagesTr", "name the unpacked folder of a task, such as Task03_Liver")
    description = read_description(root / DESCRIPTION) if (root / DESCRIPTION).is_file() else {}
    labels = named_labels(root / DESCRIPTION, description.get("labels"))
    if split is not None and split not in LISTS:
        raise bad_file(root, f"the Decathlon has no split {split!r}", "use train, and folds of it, or test")
    parts = {name: _images(root, description, name) for name in LISTS}
    check_splits(root, parts)
    listed = [record for name in ([split] if split else LISTS) for record in parts[name]]
    if not listed:
        raise bad_file(root, f"holds no images{f' of the split {split}' if split else ''}", "download the task again")
    named = [record | {Key.PATIENT: patient_in(record[Key.CASE])} for record in listed]
    return [record | labels if FIXED.label in record else record for record in named]


def patient_in(case: str) -> str:
    """The patient of an image by its name: two images of Task04_Hippocampus have one, any other has its own."""
    match = HIPPOCAMPUS.fullmatch(case)
    return case if match is None else f"hippocampus_{(int(match['number']) + 1) // 2}"


def _images(root: Path, description: Mapping[str, Any], split: str) -> list[Record]:
    """The records of a split, from the description or from the folders."""
    section, images, labels = LISTS[split]
    entries = description.get(section)
    if entries is None:
        found, paths = image_files(root / images), image_files(root / labels)
        # nnU-Net adds the channel's number to the name of the image, not to that of the label.
        known = {name: paths.get(name) or paths.get(name.removesuffix("_0000")) for name in found}
        check_labels(root / images, paths.values(), known.values())
        entries = [{"image": path} | ({"label": known[name]} if known[name] else {}) for name, path in found.items()]
    return [image_record(root / DESCRIPTION, entry) for entry in entries]


def read_description(path: Path) -> dict[str, Any]:
    """The JSON file that describes a task.

    Raises:
        RegZooError: it cannot be read or is not a JSON object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise bad_file(path, "does not describe a data set", "download the task again")
    for section in ("training", "test"):
        if not isinstance(content.get(section, []), list):
            raise bad_file(path, f"{section!r} is not a list of images", "download the task again")
    return content


def image_record(description: Path, entry: Any) -> Record:
    """An entry of a description, a path or ``{"image": …, "label": …}``, as the record of a single image.

    Raises:
        RegZooError: the entry is something else.
    """
    entry = {"image": entry} if isinstance(entry, str | Path) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str | Path):
        raise bad_file(description, f"{str(entry)[:80]!r} names no image", "download the task again")
    folder = description.resolve().parent
    record = Record(fixed_image=os.path.normpath(folder / entry["image"]))
    if isinstance(entry.get("label"), str | Path):
        record[FIXED.label] = os.path.normpath(folder / entry["label"])
    record[Key.CASE] = record[Key.PATIENT] = case_name(record[FIXED.image])
    return record


def named_labels(description: Path, labels: Any) -> Record:
    """``label_values`` and ``label_names`` without the background; nothing where the labels have no names.

    Understands ``{"1": "liver"}``, ``{"liver": 1}`` and Learn2Reg's ``{"0": {"1": "liver"}}`` by modality.

    Raises:
        RegZooError: the labels are described in another way.
    """
    if not labels:
        return {}
    named: dict[int, str] = {}
    try:
        tables = list(labels.values()) if any(isinstance(value, dict) for value in labels.values()) else [labels]
        for table in tables:
            for key, value in table.items():
                number, name = (key, value) if str(key).isdecimal() else (value, key)
                named[int(number)] = "_".join(str(name).split())
    except (AttributeError, TypeError, ValueError) as error:
        fix = 'write them as {"0": "background", "1": "liver"}'
        raise bad_file(description, "its labels are not values with names", fix) from error
    values = sorted(value for value in named if value != 0)
    return {"label_values": values, "label_names": [named[value] for value in values]} if values else {}
