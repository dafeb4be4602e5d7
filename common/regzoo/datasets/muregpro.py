"""µ-RegPro: MR and ultrasound of the prostate, and the phantoms that are written in its layout."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
from nibabel.filebasedimages import ImageFileError
from regzoo.datasets.records import Record, case_name
from regzoo.errors import RegZooError, bad_file

SPLITS = ("train", "val")
#: What `direction` may be: moving to fixed.
DIRECTIONS = ("mr_to_us", "us_to_mr")


def is_muregpro(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has the image folders of µ-RegPro, directly or in ``train`` or ``val``."""
    root = Path(folder)
    return any((root / split / kind).is_dir() for split in ("", *SPLITS) for kind in ("mr_images", "us_images"))


def read_muregpro(
    folder: str | os.PathLike[str], direction: str = "mr_to_us", split: str | None = None
) -> list[Record]:
    """Records of a folder in the layout of µ-RegPro.

    ``{train,val}/{mr_images,mr_labels,us_images,us_labels}/caseNNNNNN.nii.gz``, one name for the files of a pair. The
    ``train`` level and the label folders may be missing. Patients and names of labels are taken from ``manifest.json``
    where there is one; otherwise every case is its own patient and the labels are ``gland``, ``landmark_1`` and so on.

    Args:
        folder: of the data set.
        direction: moving to fixed, ``mr_to_us`` or ``us_to_mr``.
        split: ``train`` or ``val``; None: all there are. Without the ``train`` level all cases are of ``train``.

    Raises:
        RegZooError: the folder has another layout, has no such split, or an image lacks its partner.
    """
    if direction not in DIRECTIONS:
        raise RegZooError(f"direction {direction!r} is unknown; use one of {', '.join(DIRECTIONS)}")
    root = Path(folder)
    roots = _split_folders(root)
    if not roots:
        mend = "name the folder that has mr_images and us_images, or train/ with these in it"
        raise bad_file(root, "is not in the layout of µ-RegPro", mend)
    if split is not None and split not in roots:
        raise bad_file(root, f"has no split {split!r} (it has: {', '.join(roots)})", "add its folder or name another")
    cases = _manifest_cases(root)
    if split is not None:
        return _read_split(roots[split], direction, cases)
    # A set without held-out pairs has a val/ with nothing in it.
    filled = [part for part in roots.values() if any(_files(part / f"{kind}_images") for kind in ("mr", "us"))]
    return [record for part in filled or roots.values() for record in _read_split(part, direction, cases)]


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders that hold image folders, by split."""
    found = {split: root / split for split in SPLITS if is_muregpro(root / split)}
    if any((root / kind).is_dir() for kind in ("mr_images", "us_images")):
        found.setdefault("train", root)
    return found


def _manifest_cases(root: Path) -> dict[str, dict[str, Any]]:
    """What the manifest of a phantom set says about each case."""
    path = root / "manifest.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")).get("cases", {}))
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise bad_file(path, "cannot be read as a manifest", "remove it or write the data set anew") from error


def _read_split(part: Path, direction: str, cases: dict[str, dict[str, Any]]) -> list[Record]:
    """The records of one folder with image folders, ordered by name."""
    moving, fixed = direction.split("_to_")
    images = {kind: _files(part / f"{kind}_images") for kind in (moving, fixed)}
    labels = {kind: _files(part / f"{kind}_labels") for kind in (moving, fixed)}
    for kind, other in ((fixed, moving), (moving, fixed)):
        for name, path in images[kind].items():
            if name not in images[other]:
                partner = part / f"{other}_images" / path.name
                raise bad_file(path, f"its partner {partner} is missing", "add the file or remove this one")
    if not images[fixed]:
        raise bad_file(part / f"{fixed}_images", "holds no .nii.gz or .nii file", "name a folder with images in it")
    records = []
    for name, path in images[fixed].items():
        record: Record = {"fixed_image": str(path), "moving_image": str(images[moving][name])}
        for key, kind in (("fixed_label", fixed), ("moving_label", moving)):
            if name in labels[kind]:
                record[key] = str(labels[kind][name])
        known = cases.get(name, {})
        record["patient"] = str(known.get("patient", name))
        record["case"] = name
        names = known.get("label_names") or _default_names(record)
        if names:
            record["label_names"] = list(names)
        records.append(record)
    return records


def _files(folder: Path) -> dict[str, Path]:
    """NIfTI files of a folder by name, in order; none where the folder is missing."""
    if not folder.is_dir():
        return {}
    files = sorted(path for path in folder.iterdir() if path.name.endswith((".nii.gz", ".nii")) and path.name[0] != ".")
    return {case_name(path): path for path in files}


def _default_names(record: Record) -> list[str]:
    """Names for the channels of a pair's labels: the gland and landmarks; empty without labels."""
    path = record.get("fixed_label") or record.get("moving_label")
    if path is None:
        return []
    try:
        shape = nib.load(path).shape
    except (OSError, ImageFileError) as error:
        raise bad_file(path, "cannot be read as NIfTI", "download it again or remove the pair") from error
    count = shape[3] if len(shape) > 3 else 1
    return ["gland", *(f"landmark_{i}" for i in range(1, count))]
