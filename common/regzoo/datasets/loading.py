"""Finding out how a data set is laid out and reading its records."""

from __future__ import annotations

import os
from pathlib import Path

from regzoo.datasets.muregpro import is_muregpro, read_muregpro
from regzoo.datasets.records import DATALIST_SUFFIXES, Record, check_records, datalist_sections, read_datalist
from regzoo.errors import RegZooError, bad_file

#: Names by which a datalist is found in a folder.
DATALIST_NAMES = ("datalist.json", "datalist.csv", "datalist.tsv")
#: What the lists of a JSON datalist are called for each split; the first is MONAI's name.
SECTIONS = {"train": ("training", "train"), "val": ("validation", "val"), "test": ("testing", "test")}
KNOWN_LAYOUTS = (
    "a datalist (.json, .csv or .tsv, or a folder with datalist.json in it), "
    "or the µ-RegPro folders {train,val}/{mr_images,mr_labels,us_images,us_labels}"
)


def load_records(
    dataset_dir: str | os.PathLike[str], split: str | None = None, direction: str = "mr_to_us"
) -> list[Record]:
    """Records of a data set in any known layout, checked.

    Args:
        dataset_dir: a folder, or a datalist file.
        split: ``train``, ``val`` or ``test``; None: all pairs. The split is a folder of µ-RegPro, a list of a JSON
            datalist (``training``, ``validation``, ``testing``) or the column ``split`` of a table or plain list.
        direction: moving to fixed, for layouts that name modalities: ``mr_to_us`` or ``us_to_mr``. A datalist says
            itself which image is fixed.

    Raises:
        RegZooError: the layout is not known, or the records are not usable (see `check_records`).
    """
    if split is not None and split not in SECTIONS:
        raise RegZooError(f"split {split!r} is unknown; use one of {', '.join(SECTIONS)}")
    root = Path(dataset_dir)
    if not root.exists():
        raise bad_file(root, "no such data set", f"name {KNOWN_LAYOUTS}")
    datalist = _datalist(root)
    if datalist is not None:
        records = _read_split(datalist, split)
    elif root.is_dir() and is_muregpro(root):
        records = read_muregpro(root, direction, split)
    else:
        raise bad_file(root, "is in no known layout", f"name {KNOWN_LAYOUTS}")
    check_records(records)
    return records


def _datalist(root: Path) -> Path | None:
    """The datalist that a path names or a folder holds."""
    if root.is_file():
        return root if root.suffix.lower() in DATALIST_SUFFIXES else None
    return next((root / name for name in DATALIST_NAMES if (root / name).is_file()), None)


def _read_split(datalist: Path, split: str | None) -> list[Record]:
    """The records of a split of a datalist."""
    sections = datalist_sections(datalist)
    if split is None:
        return read_datalist(datalist, None)
    names = SECTIONS[split]
    if sections is not None:
        return read_datalist(datalist, next((name for name in names if name in sections), names[0]))
    records = read_datalist(datalist)
    if not any("split" in record for record in records):
        if split == "train":
            return records
        mend = f'write {{"training": […], "{names[0]}": […]}}, or add a value "split" to each pair'
        raise bad_file(datalist, f"does not say which pairs are of the split {split!r}", mend)
    chosen = [record for record in records if record.get("split") in (split, *names)]
    if not chosen:
        raise bad_file(datalist, f"has no pair of the split {split!r}", f'give some pairs the split "{split}"')
    return chosen
