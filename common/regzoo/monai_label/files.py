"""Find the files of the studies that a request names. Clients are not trusted: they reach and see no other files."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regzoo.case import FIXED, LABEL_KEYS, MASK_KEYS, MOVING, Key
from regzoo.datasets.records import case_name
from regzoo.errors import RegZooError
from regzoo.monai_label.studies import STUDIES_VARIABLE, checked_shape, is_inside
from regzoo.spatial.dicom import split_series
from regzoo.spatial.labels import MAX_LABEL_VALUES
from regzoo.spatial.reading import is_image

#: Suffixes of an image of the studies; an id stands for the first file that exists, in this order.
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".nhdr")
#: The folder within the studies where MONAI Label keeps finished labels, and the file that describes the images.
FINISHED = Path("labels") / "final"
DATASTORE = "datastore_v2.json"
#: Longest name or path that is looked up.
LONGEST_NAME = 255
#: The folder of the images of sessions, if MONAI Label does not keep them in its usual place.
SESSIONS_VARIABLE = "MONAI_LABEL_SESSION_PATH"
#: The parameters of a request that make the pair.
PAIR_KEYS = (MOVING.image, MOVING.label, FIXED.label, *MASK_KEYS, Key.ALIGN, Key.REFINE, Key.REFINE_SECONDS)
#: Most label files of one image.
MOST_FILES = 32
#: The name of an uploaded image in a message.
UPLOADED = "the file sent with the request"


def fixed_file(path: Any) -> Path:
    """The file that MONAI Label found for ``image``: of the studies, of a session, or uploaded with the request."""
    if isinstance(path, str) and path:
        file = Path(os.path.realpath(path))
        sessions = os.environ.get(SESSIONS_VARIABLE) or Path.home() / ".cache" / "monailabel" / "sessions"
        if is_upload(file) or any(is_inside(file, place) for place in (studies_folder(file), sessions)):
            return file
    # Missing files and files elsewhere get the same answer, so that nobody learns which files exist.
    raise RegZooError("image: no such image in the studies folder itself; give an id that GET /datastore/ lists")


def is_upload(file: Path) -> bool:
    """Whether MONAI Label made a file of what came with a request; a path without symbolic links."""
    uploads = Path(os.path.realpath(tempfile.gettempdir()))
    return file.parent == uploads and file.name.startswith(tempfile.gettempprefix())


def remove_upload(path: Any) -> None:
    """Remove the image that came with a request; MONAI Label leaves it behind if the request fails."""
    if isinstance(path, str) and is_upload(file := Path(os.path.realpath(path))):
        file.unlink(missing_ok=True)


def studies_folder(fixed: Path) -> Path:
    """The studies folder; without a server, the folder of the fixed image."""
    named = os.environ.get(STUDIES_VARIABLE)
    if named is None:
        return fixed.parent
    if not Path(named).is_dir():
        raise RegZooError("image: this bundle needs studies in a folder of the server; start it with --studies FOLDER")
    return Path(os.path.realpath(named))


def noted_pair(studies: Path, fixed: Path) -> dict[str, Any]:
    """The parameters that the datastore notes for the fixed image; viewers can name only one image.

    A client writes them there with ``PUT /datastore/image/info``, so they are trusted no more than a request.
    """
    try:
        objects = json.loads((studies / DATASTORE).read_text(encoding="utf-8"))["objects"]
        info = objects[case_name(fixed)]["image"]["info"] if fixed.parent == studies else {}
        return {key: info[key] for key in PAIR_KEYS if info.get(key) not in (None, "", [])}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def find_file(studies: Path, key: str, value: Any) -> str:
    """The file of the studies that a parameter names.

    Raises:
        RegZooError: one line that names the parameter.
    """
    if value in (None, ""):
        raise RegZooError(f"{key}: missing; give the id of an image of the studies, or a path inside their folder")
    if not isinstance(value, str) or not value.isprintable() or len(value) > LONGEST_NAME:
        raise RegZooError(f"{key}: {value!r:.80} is not a name; give an image's id, or a path inside the studies")
    candidates = [studies / value]
    if len(Path(value).parts) == 1:
        folders = [studies / FINISHED, studies] if key in LABEL_KEYS + MASK_KEYS else [studies]
        named = [folder / f"{value}{suffix}" for folder in folders for suffix in ("", *SUFFIXES)]
        candidates = [file for file in named if file.is_symlink() or file.is_file()] or candidates
    for file in candidates:
        # This comes first, so that nobody learns which files exist elsewhere. The folder of "..#4" is "..".
        if not (is_inside(file, studies) and is_inside(split_series(file)[0] / "slice", studies)):
            raise RegZooError(f"{key}: {value} leads outside the studies folder; give an id, or upload the file first")
        if is_image(file):
            return os.path.realpath(file)
    raise RegZooError(f"{key}: no {value} in the studies; give an id that GET /datastore/ lists, or upload it first")


def find_files(studies: Path, key: str, values: Sequence[Any]) -> list[str]:
    """The files of the studies that a parameter names; errors as `find_file`, and for too many of them."""
    if len(values) > MOST_FILES:
        raise RegZooError(f"{key}: {len(values)} files; give at most {MOST_FILES}, or one file with several labels")
    return [find_file(studies, key, value) for value in values]


def check_files(studies: Path, files: Mapping[str, Sequence[str]], most_voxels: int) -> None:
    """Refuse a request for too much, and files that name others, by the headers alone.

    Args:
        most_voxels: limit for the images and labels of the request together.

    Raises:
        RegZooError: too many labels or voxels, or a file whose voxels are in another one outside the studies.
    """
    voxels = 0
    for key, names in files.items():
        labels = 0
        for name in names:
            shape = checked_shape(studies, Path(name))
            labels += math.prod(shape[3:])
            voxels += math.prod(shape)
            if voxels > most_voxels:
                problem = f"with it the request has {voxels} voxels, more than the limit of {most_voxels}"
                raise RegZooError(f"{key}: {problem}; crop the images, or raise max_voxels in configs/inference.json")
        if key in LABEL_KEYS and labels > MAX_LABEL_VALUES:
            raise RegZooError(f"{key}: {labels} labels; give at most {MAX_LABEL_VALUES}")


def without_folders(message: str, image_path: Any = None) -> str:
    """A message without the server's paths: files keep their path within the studies, others only their name.

    An uploaded image is called `UPLOADED`, because its temporary name means nothing to the client.

    Args:
        image_path: where MONAI Label put the fixed image.
    """
    if isinstance(image_path, str) and is_upload(Path(os.path.realpath(image_path))):
        for name in (os.path.realpath(image_path), image_path, Path(image_path).name, case_name(image_path)):
            message = message.replace(name, UPLOADED)
    studies = os.environ.get(STUDIES_VARIABLE)
    for folder in (os.path.realpath(studies), studies) if studies else ():
        message = message.replace(f"{folder}{os.sep}", "")
    return re.sub(r"(?<![\w.~-])/(?:[^\s/:;,'\"]+/)+(?=[^\s/])", "", message)
