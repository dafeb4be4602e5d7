"""Image files of a folder, and the folders of a data set's splits."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from regzoo.datasets.text import SPLIT_WORDS, split_of
from regzoo.errors import bad_file, refuse

#: Endings of image files. A header that names a data file counts; the data file does not.
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".hdr", ".mgz", ".mgh")


def is_junk(path: Path) -> bool:
    """Whether an operating system left this file or folder behind, such as ``._a.nii`` and ``.DS_Store``."""
    return path.name.startswith((".", "__MACOSX"))


def case_name(path: str | os.PathLike[str]) -> str:
    """A file's name without folder and without ``.nii``, ``.nii.gz`` or another suffix.

    A suffix begins with a letter; what follows the last dot of a UID, the usual name of a folder of DICOM files, does
    not.
    """
    name = Path(path).name
    if name.lower().endswith(".nii.gz"):
        return name[: -len(".nii.gz")]
    return name if re.search(r"\.\d[^.]*$|#[\d.]+$", name) else Path(name).stem


def image_files(folder: Path) -> dict[str, Path]:
    """Image files of a folder by name without suffix, in order, without hidden ones; none where the folder is missing.

    Raises:
        RegZooError: two files have one name, in different formats.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.lower().endswith(IMAGE_SUFFIXES) and not is_junk(path) and path.is_file():
            other = found.setdefault(case_name(path), path)
            if other != path:
                raise bad_file(path, f"and {other.name} have one name, so one of them would be ignored", "keep one")
    return found


def check_labels(images: Path, labels: Iterable[Path], used: Collection[Path | None]) -> None:
    """Make sure that label files have the names of their images.

    `used` holds the label of each image in the folder `images`, and None for an image without one.

    Raises:
        RegZooError: a label belongs to no image, while an image has none.
    """
    stray = [path for path in labels if path not in used]
    for path in stray if None in used else ():
        problem = f"is the label of no image in {images}, where some have none"
        refuse(bad_file(path, problem, "name it as its image, or remove it"))


def split_folders(root: Path, has: Sequence[str]) -> dict[str, Path]:
    """The folders of a data set that are named after a split and have one of the subfolders `has`, by split.

    Raises:
        RegZooError: two folders are of one split.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        split = split_of(path.name)
        if split is None or not any((path / name).is_dir() for name in has):
            continue
        if split in found:
            raise bad_file(path, f"and {found[split].name} are both the split {split!r}", "keep one of the folders")
        found[split] = path
    return {split: found[split] for split in SPLIT_WORDS if split in found}
