"""A training of MONAI Label: pairs and single images from the finished labels of the studies, and its results.

MONAI Label gives a training a list of ``{"image": path, "label": path}``, one for each image with a finished label, and
another list for the validation. It does not know pairs, so they are found by name.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from regzoo.bundles import writable
from regzoo.case import FIXED, MOVING, Record
from regzoo.datasets.records import case_name, pair_record, single_records
from regzoo.errors import RegZooError, bad_file
from regzoo.spatial.reading import read_header

logger = logging.getLogger(__name__)

#: The variable that MONAI Label sets to the studies folder, in its own processes and in those that it starts.
STUDIES_VARIABLE = "MONAI_LABEL_STUDIES"

#: The word in the name of an image that says which image of the pair it is; otherwise the two names are the same.
SIDE = re.compile(r"(?<![a-z])(?:fixed|moving)(?![a-z])", re.IGNORECASE)
RULE = "name the images of a pair the same except for the words fixed and moving, such as fixed01 and moving01"


def is_served() -> bool:
    """Whether MONAI Label runs this process, or started it with torchrun.

    The variable alone is not enough, because a user may have set it in a shell.
    """
    return STUDIES_VARIABLE in os.environ and ("monailabel" in sys.modules or "TORCHELASTIC_RUN_ID" in os.environ)


def training_folder(bundle_root: str | Path) -> str:
    """The output folder of a training whose user named none: ``output/train`` of the bundle, see `writable`.

    Each training of MONAI Label starts anew from some weights, so it gets a folder of its own.
    """
    name = f"monai_label/{datetime.now():%Y%m%d-%H%M%S}" if is_served() else "train"
    return writable(bundle_root, f"output/{name}")


def served_weights(bundle_root: str | Path) -> str | None:
    """The file beside the released weights for the weights of MONAI Label's trainings; None for other trainings."""
    return str(Path(bundle_root) / "models" / "monai_label.pt") if is_served() else None


def split_studies(
    training: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]
) -> tuple[list[Record], list[Record]]:
    """The pairs to train on and to validate on, made of the entries that MONAI Label lists for the two.

    Records of this package are returned as they are. MONAI Label divides the images, not the pairs. So pairs are made
    of all images, and the last ones by name are validated on, in the same proportion.

    Args:
        training, validation: records, or entries ``{"image": path, "label": path}``.

    Returns:
        (training, validation).

    Raises:
        RegZooError: MONAI Label has nothing to train on, or there is no pair among its entries.
    """
    if (records := _own_records(training, validation)) is not None:
        return records
    entries = [entry for entry in (*training, *validation) if _is_entry(entry)]
    pairs = study_pairs(entries)
    held_out = sum(_is_entry(entry) for entry in validation)
    count = min(max(round(len(pairs) * held_out / len(entries)), 1 if held_out else 0), len(pairs) - 1)
    ready: Any = [dict(entry) for entry in validation if not _is_entry(entry)]
    return pairs[: len(pairs) - count], pairs[len(pairs) - count :] + ready


def split_study_images(
    training: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]
) -> tuple[list[Record], list[Record]]:
    """As `split_studies`, for a method that simulates the moving images: images to train on, pairs to validate on.

    MONAI Label's division stays. Each image to validate on is paired with the next one.
    """
    return _own_records(training, validation) or (_images(training), _ring(_images(validation)))


def _own_records(
    training: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]
) -> tuple[list[Record], list[Record]] | None:
    """Both lists as they are if none of their entries is MONAI Label's; otherwise None, once its files are checked."""
    if is_served() and not training:
        raise RegZooError("no finished label in the studies to train on; submit some, or lower val_split")
    entries = [entry for entry in (*training, *validation) if _is_entry(entry)]
    if is_served():
        studies = Path(os.environ[STUDIES_VARIABLE])
        for file in (entry[key] for entry in entries for key in ("image", "label")):
            if not is_inside(file, studies):
                raise bad_file(file, "is a link that leads outside the studies folder", "put a copy there instead")
            checked_shape(studies, Path(file))
    if entries:
        return None
    records: list[Any] = [[dict(entry) for entry in part] for part in (training, validation)]
    return records[0], records[1]


def is_inside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether a path lies in a folder, once symbolic links are followed."""
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def checked_shape(studies: Path, file: Path) -> tuple[int, ...]:
    """The number of voxels of an image along each axis.

    Raises:
        RegZooError: its header names a file outside the studies folder, or it is not a readable image.
    """
    header = read_header(file)
    for named in header.files:
        if named != file and not is_inside(named, studies):
            problem = f"names another file for its voxels, {named.name!r}, outside the studies folder"
            raise bad_file(file, problem, "save the image as one file, such as .nii.gz, .nrrd or .mha")
    return header.shape


def study_pairs(entries: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Pairs of images whose names are the same except for the words ``fixed`` and ``moving``, sorted by name.

    An image without a partner is left out, with a warning. Entries are ``{"image": path, "label": path}``.

    Raises:
        RegZooError: there is no pair.
    """
    sides: dict[str, dict[str, Mapping[str, Any]]] = {}
    for entry in sorted(entries, key=lambda entry: str(entry["image"])):
        name = case_name(entry["image"])
        words = SIDE.findall(name)
        if len(words) != 1:
            logger.warning("%s: left out of the training; %s", entry["image"], RULE)
            continue
        pair = sides.setdefault(SIDE.sub("*", name).lower(), {})
        if words[0].lower() in pair:
            logger.warning("%s: left out of the training, another image has the same name", entry["image"])
        pair.setdefault(words[0].lower(), entry)
    pairs: list[Record] = []
    for pair in sides.values():
        if len(pair) == 2:
            pairs.append(_pair(pair["fixed"], pair["moving"]))
        else:
            (entry,) = pair.values()
            logger.warning("%s: left out of the training, its partner has no finished label", entry["image"])
    if not pairs:
        raise RegZooError(f"no pair among the {len(entries)} finished labels of the studies; {RULE}, and finish both")
    return pairs


def _is_entry(entry: Mapping[str, Any]) -> bool:
    """Whether MONAI Label listed an entry; the others are records of this package."""
    return "image" in entry and FIXED.image not in entry


def _pair(fixed: Mapping[str, Any], moving: Mapping[str, Any]) -> Record:
    return Record(
        fixed_image=str(fixed["image"]),
        moving_image=str(moving["image"]),
        fixed_label=str(fixed["label"]),
        moving_label=str(moving["label"]),
        case=case_name(fixed["image"]),
    )


def _images(entries: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Records of single images; pairs of this package stay as they are."""
    renamed: list[Any] = [
        {FIXED.image: str(entry["image"]), FIXED.label: str(entry["label"])} if _is_entry(entry) else dict(entry)
        for entry in entries
    ]
    ours = [entry for entry in renamed if MOVING.image in entry]
    return single_records(entry for entry in renamed if MOVING.image not in entry) + ours


def _ring(images: Sequence[Record]) -> list[Record]:
    """Pair each image with the next one, its moving image; a single image and pairs are returned as they are."""
    if len(images) < 2 or any(MOVING.image in image for image in images):
        return list(images)
    return [pair_record(fixed, moving) for fixed, moving in zip(images, [*images[1:], images[0]], strict=True)]
