"""Recognising the layout of a data set and reading its records, of pairs or of single images."""

from __future__ import annotations

import os
from pathlib import Path

from regzoo.case import Record
from regzoo.datasets.datalist import DATALIST_SUFFIXES, read_datalist, read_lists
from regzoo.datasets.decathlon import is_decathlon, read_decathlon
from regzoo.datasets.ixi import is_ixi, read_ixi
from regzoo.datasets.learn2reg import is_learn2reg, lists_training_pairs, read_learn2reg, read_learn2reg_images
from regzoo.datasets.muregpro import is_muregpro, read_muregpro
from regzoo.datasets.records import check_records, single_records
from regzoo.datasets.text import SPLIT_WORDS
from regzoo.errors import RegZooError, bad_file

#: The names of a datalist in a folder.
DATALIST_NAMES = ("datalist.json", "datalist.csv", "datalist.tsv")
KNOWN_LAYOUTS = (
    "a datalist (.json, .csv or .tsv, or a folder with datalist.json in it), "
    "the µ-RegPro folders {train,val,test}/{mr_images,mr_labels,us_images,us_labels}, a Learn2Reg task "
    "(*_dataset.json); for single images also a Decathlon task (imagesTr, labelsTr) or IXI "
    "(IXI###-<site>-####-T1.nii.gz)"
)


def load_records(
    dataset_dir: str | os.PathLike[str], split: str | None = None, direction: str = "mr_to_us", must_exist: bool = True
) -> list[Record]:
    """Records of a data set in any known layout, checked.

    Args:
        dataset_dir: a folder, or a datalist file.
        split: ``train``, ``val`` or ``test``; None: all pairs. The split is a folder of µ-RegPro, a list of a JSON
            datalist (``training``, ``validation``, ``testing``) or the column ``split`` of a table or plain list.
        direction: moving to fixed, ``mr_to_us`` or ``us_to_mr``, for layouts that name modalities, see `names_fixed`.
        must_exist: whether a missing file is an error here.

    Raises:
        RegZooError: the layout is not known, or the records are not usable (see `check_records`).
    """
    root = _existing(dataset_dir, split)
    datalist = _datalist(root)
    if datalist is not None:
        records = read_datalist(datalist, split)
    elif is_learn2reg(root):
        records = read_learn2reg(root, split)
    elif is_muregpro(root):
        records = read_muregpro(root, direction, split)
    elif is_decathlon(root) or is_ixi(root):
        fix = "use it for a method that needs single images, or list pairs of them in a datalist"
        raise bad_file(root, "holds single images, not pairs", fix)
    else:
        raise bad_file(root, "is in no known layout", f"name {KNOWN_LAYOUTS}")
    check_records(records, must_exist)
    return records


def names_fixed(dataset_dir: str | os.PathLike[str]) -> bool:
    """Whether a data set itself says which image of a pair is fixed, so that a direction has no effect."""
    return _datalist(Path(dataset_dir)) is not None or is_learn2reg(dataset_dir)


def pairs_all_images(dataset_dir: str | os.PathLike[str]) -> bool:
    """Whether any two training images of a data set make a pair: a Learn2Reg task that lists no pairs to train on."""
    root = Path(dataset_dir)
    return _datalist(root) is None and is_learn2reg(root) and not lists_training_pairs(root)


def any_pair_has(dataset_dir: str | os.PathLike[str], *keys: str) -> bool:
    """Whether any pair of a data set has one of these entries, which only a datalist can give."""
    datalist = _datalist(Path(dataset_dir))
    lists = {} if datalist is None else read_lists(datalist, single=True)
    return any(record.get(key) for records in lists.values() for record in records for key in keys)


def load_single_records(dataset_dir: str | os.PathLike[str], split: str | None = None) -> list[Record]:
    """Records of the single images of a data set in any known layout, checked; they have no ``moving_image``.

    A datalist may list single images (``fixed_image`` or ``image``, ``fixed_label`` or ``label``). If it, or the
    layout, has pairs, every image of a pair counts once.

    Args:
        dataset_dir: a folder, or a datalist file.
        split: ``train``, ``val`` or ``test``, as in `load_records`; None: all images.

    Raises:
        RegZooError: the layout is not known, or the records are not usable (see `check_records`).
    """
    root = _existing(dataset_dir, split)
    datalist = _datalist(root)
    if datalist is not None:
        records = single_records(read_datalist(datalist, split, single=True))
    elif is_learn2reg(root):
        records = read_learn2reg_images(root, split)
    elif is_muregpro(root):
        records = single_records(read_muregpro(root, split=split))
    elif is_decathlon(root):
        records = read_decathlon(root, split)
    elif is_ixi(root):
        records = read_ixi(root, split)
    else:
        raise bad_file(root, "is in no known layout", f"name {KNOWN_LAYOUTS}")
    check_records(records)
    return records


def load_validation(dataset_dir: str | os.PathLike[str], single: bool = False) -> list[Record]:
    """Records of the validation part of a datalist, checked; an empty list if it has none, or for another layout.

    The folder ``val`` of µ-RegPro and the pairs that a Learn2Reg task lists are for the evaluation alone.

    Args:
        dataset_dir: a datalist file, or the folder of one.
        single: whether an entry may have one image only.
    """
    datalist = _datalist(Path(dataset_dir))
    if datalist is None:
        return []
    records = read_lists(datalist, single).get("val", [])
    if records:
        check_records(records)
    return records


def _existing(dataset_dir: str | os.PathLike[str], split: str | None) -> Path:
    """The path of a data set, after checking that it exists and that `split` is the name of one."""
    if split is not None and split not in SPLIT_WORDS:
        raise RegZooError(f"split {split!r} is unknown; use one of {', '.join(SPLIT_WORDS)}")
    root = Path(dataset_dir)
    if not root.exists():
        raise bad_file(root, "no such data set", f"name {KNOWN_LAYOUTS}")
    return root


def _datalist(root: Path) -> Path | None:
    """The datalist that a path names or a folder holds."""
    if root.is_file():
        return root if root.suffix.lower() in DATALIST_SUFFIXES and not is_learn2reg(root) else None
    found = [root / name for name in DATALIST_NAMES if (root / name).is_file()]
    if len(found) > 1:
        raise bad_file(root, f"holds {' and '.join(path.name for path in found)}", "name the one that counts")
    return found[0] if found else None
