"""IXI: T1-weighted MR of heads, and the brain phantoms that are written in its layout: single images."""

from __future__ import annotations

import os
import re
from pathlib import Path

from regzoo.case import FIXED, Key, Record
from regzoo.datasets.decathlon import named_labels, read_description
from regzoo.datasets.folders import case_name, image_files
from regzoo.datasets.records import check_splits
from regzoo.datasets.text import SPLIT_MEND, SPLIT_WORDS, split_of
from regzoo.errors import bad_file

#: ``IXI###-<site>-####-T1``.
NAME = re.compile(r"(?P<patient>IXI\d+)-\w+-\d+-(?P<modality>\w+)")
LABEL_FOLDER = "labels"
MANIFEST = "manifest.json"


def is_ixi(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds files with names as in IXI."""
    root = Path(folder)
    return root.is_dir() and any(NAME.fullmatch(case_name(path)) for path in root.glob("IXI*"))


def read_ixi(folder: str | os.PathLike[str], split: str | None = None) -> list[Record]:
    """Records of the single images of IXI, as downloaded and unpacked.

    ``IXI###-<site>-####-T1.nii.gz``; a label map of the same name in the folder ``labels`` belongs to it. IXI has no
    splits and no labels of its own: ``manifest.json``, if it exists, gives the split of each case and the names of the
    labels; without it, all images are in the split ``train``.

    Args:
        split: ``train`` or ``val``; None: all there are.

    Raises:
        RegZooError: the folder has no such image, or no such split, or a patient is in two splits.
    """
    root = Path(folder)
    files, labels = image_files(root), image_files(root / LABEL_FOLDER)
    images = {n: match for n in files if (match := NAME.fullmatch(n)) and match["modality"] == "T1"}
    if not images:
        raise bad_file(root, "has no file IXI###-<site>-####-T1.nii.gz", "name the unpacked folder of IXI")
    manifest = read_description(root / MANIFEST) if (root / MANIFEST).is_file() else {}
    cases = manifest.get("cases", {})
    names = named_labels(root / MANIFEST, manifest.get("labels"))
    records: list[tuple[str, Record]] = []
    for name, match in images.items():
        record = Record(fixed_image=str(files[name]), patient=match["patient"], case=name)
        if name in labels:
            record |= names
            record[FIXED.label] = str(labels[name])
        word = cases.get(name, {}).get(Key.SPLIT, "train")
        if (part := split_of(word)) is None:
            raise bad_file(root / MANIFEST, f"{name} is of the split {word!r}, which is not known", SPLIT_MEND)
        records.append((part, record))
    check_splits(root, {split: [record for part, record in records if part == split] for split in SPLIT_WORDS})
    chosen = [record for part, record in records if split in (None, part)]
    if not chosen:
        fix = "IXI has none of its own: use train, and folds of it"
        raise bad_file(root, f"has no images of the split {split!r}", fix)
    return chosen
