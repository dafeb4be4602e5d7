"""µ-RegPro: MR and ultrasound of the prostate, and the phantoms that are written in its layout."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from regzoo.case import FIXED, MOVING, Key, Record
from regzoo.datasets.folders import IMAGE_SUFFIXES, case_name, check_labels, image_files, is_junk, split_folders
from regzoo.datasets.records import check_splits, record_files
from regzoo.datasets.text import read_json, warn_once
from regzoo.errors import RegZooError, bad_file, refuse
from regzoo.spatial.reading import read_header

IMAGES = ("mr_images", "us_images")
FOLDERS = (*IMAGES, "mr_labels", "us_labels")
#: Words in a file's name for the modality and the kind of file; the case's name leaves them out.
TOKENS = {"mr": "mri?|t2w?", "us": "us|trus"}
KIND = "images?|img|labels?|masks?|seg|segmentation"
#: Moving to fixed.
DIRECTIONS = ("mr_to_us", "us_to_mr")


def is_muregpro(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has the image folders of µ-RegPro, directly or in the folder of a split, such as ``train``."""
    root = Path(folder)
    return any((root / kind).is_dir() for kind in IMAGES) or bool(split_folders(root, IMAGES))


def read_muregpro(
    folder: str | os.PathLike[str], direction: str = "mr_to_us", split: str | None = None
) -> list[Record]:
    """Records of a folder in the layout of µ-RegPro.

    ``{train,val,test}/{mr_images,mr_labels,us_images,us_labels}/<name>``, in any image format. The files of a pair have
    the same name, or names that differ only in ``mr`` and ``us`` (``case1_mr``, ``case1_us``). The ``train`` level and
    the label folders may be missing. ``manifest.json``, if it exists, gives patients and names of labels; otherwise
    every case is its own patient, and the labels of a 4-D file are ``gland``, ``landmark_1`` and so on. A case of
    ``test`` that shares its name with a case of another split is called ``test_<name>``, and so is its patient.

    Args:
        direction: moving to fixed, ``mr_to_us`` or ``us_to_mr``.
        split: ``train``, ``val`` or ``test``; None: all there are. Without the ``train`` level all cases are of
            ``train``.

    Raises:
        RegZooError: the folder has another layout, has no such split, an image lacks its partner, names do not say
            which files belong together, or a patient is in two splits.
    """
    if direction not in DIRECTIONS:
        raise RegZooError(f"direction {direction!r} is unknown; use one of {', '.join(DIRECTIONS)}")
    root = Path(folder)
    roots = split_folders(root, IMAGES)
    if any((root / kind).is_dir() for kind in IMAGES):
        roots.setdefault("train", root)
    if not roots:
        fix = "name the folder that has mr_images and us_images, or train/ with these in it"
        raise bad_file(root, "is not in the layout of µ-RegPro", fix)
    if split is not None and split not in roots:
        raise bad_file(root, f"has no split {split!r} (it has: {', '.join(roots)})", "add its folder or name another")
    cases = _manifest_cases(root)
    # A set without held-out pairs has a val/ with nothing in it.
    filled = [name for name, part in roots.items() if any(image_files(part / kind) for kind in IMAGES)]
    wanted = [split] if split else filled or list(roots)
    parts = {name: _read_split(roots[name], direction, cases) for name in roots if name in (*wanted, *filled)}
    shared = _check_parts(root, parts, cases)
    records = [record for name in wanted for record in parts[name]]
    for record in records:
        if names := cases.get(record[Key.CASE], {}).get(Key.LABEL_NAMES) or _default_names(record):
            record[Key.LABEL_NAMES] = list(names)
    for record in parts.get("test", ()):
        if record[Key.CASE] in shared:
            record[Key.CASE] = record[Key.PATIENT] = f"test_{record['case']}"
    return records


def _check_parts(root: Path, parts: dict[str, list[Record]], cases: dict[str, Any]) -> list[str]:
    """Make sure that no patient is in two splits, by the manifest's patients or the names of the cases.

    Many sets number their ``test`` cases from 1 again. Names that occur there and elsewhere only cause a warning, and
    are returned.
    """
    unknown = {record[Key.CASE] for record in parts.get("test", ()) if record[Key.CASE] not in cases}
    known = {name: [r for r in part if name != "test" or r[Key.CASE] in cases] for name, part in parts.items()}
    check_splits(root, known)
    others = {record[Key.CASE] for name, part in parts.items() if name != "test" for record in part}
    if shared := sorted(unknown & others):
        names = ", ".join(shared[:3]) + (", …" if len(shared) > 3 else "")
        warn_once(
            f"{root}: test has cases of the same names as other splits ({names}); see that they are other patients"
        )
    return shared


def _manifest_cases(root: Path) -> dict[str, dict[str, Any]]:
    """The entries of the manifest of a phantom set, by case."""
    path = root / "manifest.json"
    if not path.is_file():
        return {}
    try:
        return dict(read_json(path).get("cases", {}))
    except (RegZooError, AttributeError) as error:
        raise bad_file(path, "cannot be read as a manifest", "remove it or write the data set again") from error


def _read_split(part: Path, direction: str, cases: dict[str, dict[str, Any]]) -> list[Record]:
    """The records of one folder with image folders, ordered by name, without names of labels."""
    _check_folders(part)
    moving, fixed = direction.split("_to_")
    sides = ((FIXED, fixed), (MOVING, moving))
    files = {kind: image_files(part / f"{kind}_images") for kind in (moving, fixed)}
    both = files[moving].keys() & files[fixed].keys()
    images = {kind: _by_case(kind, found, both) for kind, found in files.items()}
    labels = {kind: _by_case(kind, image_files(part / f"{kind}_labels"), both) for kind in files}
    for kind, other in ((moving, fixed), (fixed, moving)):
        for key in sorted(images[kind].keys() - images[other].keys()):
            case, path = images[kind][key]
            partner = part / f"{other}_images" / path.name.replace(case_name(path), case)
            refuse(bad_file(path, f"its partner {partner} is missing", "add the file or remove this one"))
    pairs = sorted((case, key) for key, (case, _) in images[moving].items() if key in images[fixed])
    if not pairs:
        fix = "name a folder with images in it"
        raise bad_file(part / f"{fixed}_images", f"holds no image ({', '.join(IMAGE_SUFFIXES)})", fix)
    records = []
    for case, key in pairs:
        record: Record = {}
        for side, kind in sides:
            record[side.image] = str(images[kind][key][1])
            if key in labels[kind]:
                record[side.label] = str(labels[kind][key][1])
        record[Key.PATIENT] = str(cases.get(case, {}).get("patient", case))
        record[Key.CASE] = case
        records.append(record)
    for kind, known in labels.items():
        used = [known[key][1] if key in known else None for _, key in pairs]
        check_labels(part / f"{kind}_images", [path for _, path in known.values()], used)
    return records


def _check_folders(part: Path) -> None:
    """Refuse folders whose names are almost those of the layout, since they would be ignored."""
    for path in part.iterdir():
        close = get_close_matches(path.name.lower(), FOLDERS, n=1, cutoff=0.85)
        if path.is_dir() and path.name not in FOLDERS and close and not is_junk(path):
            raise bad_file(path, "is not a folder of µ-RegPro and would be ignored", f"name it {close[0]}, or move it")


def _by_case(kind: str, files: Mapping[str, Path], both: Collection[str]) -> dict[str, tuple[str, Path]]:
    """Files with their cases, by the case in lower case.

    The case is the whole name if images of both modalities have it, else its common part.

    Raises:
        RegZooError: two files are of one case.
    """
    found: dict[str, tuple[str, Path]] = {}
    for name, path in files.items():
        case = name if name in both else _common_part(name, kind)
        _, other = found.setdefault(case.lower(), (case, path))
        if other != path:
            problem = f"and {other.name} are both of the case {case!r}"
            raise bad_file(path, problem, "name the files of a pair alike, and no others")
    return found


def _common_part(name: str, kind: str) -> str:
    """A name without the words for the modality and the kind of file."""
    words = rf"(?:{TOKENS[kind]}|{KIND})"
    rest = re.sub(rf"(?<![^\W_]){words}(?![^\W_])", "", name, flags=re.IGNORECASE)
    return re.sub(r"([\W_])[\W_]*", r"\1", rest).strip("_-. ") or name


def _default_names(record: Record) -> list[str]:
    """Names for the channels of a pair's 4-D labels: the gland and landmarks; a 3-D file may be a map of anything."""
    files = record_files(record, [FIXED.label, MOVING.label])
    try:
        volumes = read_header(files[0]).shape[3:4] if files else ()
    except RegZooError as error:
        refuse(error)
        return []
    return ["gland", *(f"landmark_{i}" for i in range(1, volumes[0]))] if volumes else []
