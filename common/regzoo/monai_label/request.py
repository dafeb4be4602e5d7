"""What a server such as MONAI Label sends, made into a record; and its mistakes, answered in one line.

MONAI Label calls a bundle's transforms with the fixed image's file as ``image`` and ``image_path`` and with all that
the client sent beside it. Clients are not trusted: they name files inside the studies folder, nothing else.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose, MapTransform, Transform
from monai.utils import optional_import
from regzoo.datasets.records import case_name
from regzoo.errors import RegZooError, user_error
from regzoo.monai_label.studies import STUDIES_VARIABLE

#: What MONAI Label itself needs of a request after the preprocessing.
SERVER_KEYS = ("image_path", "model", "device", "logging", "latencies", "description", "model_filename")
#: How the answer is to be written, and what it may be written as.
WRITING: dict[str, tuple[Any, ...]] = {
    "result_extension": (None, ".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha"),
    "result_dtype": (None, "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"),
    "result_compress": (None, False, True),
}
#: What an image of the studies may come as; the first of those that are there is the one an id stands for.
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".nhdr")
#: Where MONAI Label keeps finished labels within the studies, and what it knows of the images.
FINISHED = Path("labels") / "final"
DATASTORE = "datastore_v2.json"
#: The only kind of label that a request may write: finished ones are a person's.
TAG = "original"
#: Longest name or path that is looked for at all.
LONGEST_NAME = 255
#: Where MONAI Label keeps the images of sessions, if not in its usual place.
SESSIONS_VARIABLE = "MONAI_LABEL_SESSION_PATH"
PAIR_KEYS = ("moving_image", "moving_label", "fixed_label", "align")


def from_server(data: Mapping[Hashable, Any]) -> bool:
    """Whether a record is a request that MONAI Label hands over."""
    return "model" in data or "image_path" in data


class RequestedPaird(MapTransform):
    """First step of an inference: the record of the pair that was asked for.

    ``image`` is the fixed image and becomes ``fixed_image``. In a request of MONAI Label's, ``moving_image``,
    ``moving_label`` and ``fixed_label`` name files of the studies, by the id of an image or by a path inside their
    folder. Of a label, an id stands for the finished label of the image of that id, or else for that image itself.
    Labels may be lists, one mask each. ``align`` is taken over. What the request leaves open of these is looked up in
    what the datastore notes of the fixed image. What else the client sent, but for what the server needs, is dropped.

    Args:
        models: the folder of the bundle's weights, of which ``model_filename`` may name one to a server.

    Raises:
        RegZooError: a file is not named, not there or not inside the studies folder, or another parameter is wrong.
    """

    def __init__(self, models: str | os.PathLike[str] = "models") -> None:
        super().__init__(["image"])
        self.models = Path(models)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if not from_server(data):
            return dict(data) | {"fixed_image": data["image"]}
        fixed = _fixed_image(data.get("image_path"))
        studies = _studies(fixed)
        self._check(data)
        item: dict[Hashable, Any] = {key: data[key] for key in (*SERVER_KEYS, *WRITING) if key in data}
        asked = {key: data[key] for key in PAIR_KEYS if data.get(key) not in (None, "", [])}
        pair = _noted(studies, fixed) | asked
        item["image"] = item["fixed_image"] = str(fixed)
        item["moving_image"] = _find(studies, "moving_image", pair.get("moving_image"))
        for side in ("moving", "fixed"):
            if (value := pair.get(key := f"{side}_label")) is not None:
                several = isinstance(value, list)
                files = [_find(studies, key, name) for name in (value if several else [value])]
                if item[f"{side}_image"] in files:
                    raise RegZooError(f"{key}: {value} has no finished label; submit it, or name a mask of it")
                item[key] = files if several else files[0]
        if "align" in pair:
            item["align"] = pair["align"]
        item["case"] = case_name(fixed)
        return item

    def _check(self, data: Mapping[Hashable, Any]) -> None:
        """Refuse what MONAI Label would trip over, or do to files that are none of a request's business."""
        for key, known in WRITING.items():
            if not any(data.get(key) is one or data.get(key) == one for one in known):
                usable = ", ".join(str(one) for one in known[1:])
                raise RegZooError(f"{key}: cannot write as {data[key]!r:.80}; use one of {usable}")
        if data.get("save_label") and data.get("label_tag", TAG) != TAG:
            raise RegZooError(f"label_tag: {data['label_tag']!r:.80} is not for answers; leave it out, or use {TAG}")
        try:
            torch.device(data.get("device") or "cpu")
        except (RuntimeError, TypeError):
            raise RegZooError(f"device: {data['device']!r:.80} is none; use cpu, or cuda where there is one") from None
        if "model_filename" in data:
            weights = sorted(path.name for path in self.models.glob("*.pt"))
            name = data["model_filename"]
            # Nobody having asked, the server puts all that it knew at its start there, and takes the first.
            if (name[0] if isinstance(name, list) and name else name) not in weights:
                raise RegZooError(f"model_filename: no {name!r:.80} among the weights here, {', '.join(weights)}")


def _fixed_image(path: Any) -> Path:
    """The file that MONAI Label found for ``image``: of the studies, of a session, or uploaded with the request."""
    if isinstance(path, str) and path:
        file = Path(os.path.realpath(path))
        sessions = os.environ.get(SESSIONS_VARIABLE) or Path.home() / ".cache" / "monailabel" / "sessions"
        uploads = Path(os.path.realpath(tempfile.gettempdir()))
        uploaded = file.parent == uploads and file.name.startswith(tempfile.gettempprefix())
        if uploaded or any(_inside(file, place) for place in (_studies(file), Path(os.path.realpath(sessions)))):
            return file
    # The same for what is not there and for what is elsewhere, so that nobody learns which files there are.
    raise RegZooError("image: no such image in the studies folder itself; give an id that GET /datastore/ lists")


def _studies(fixed: Path) -> Path:
    """The studies folder; without a server, that of the fixed image."""
    named = os.environ.get(STUDIES_VARIABLE)
    if named is None:
        return fixed.parent
    if not Path(named).is_dir():
        raise RegZooError("image: this bundle needs studies in a folder of the server; start it with --studies FOLDER")
    return Path(os.path.realpath(named))


def _inside(file: Path, folder: Path) -> bool:
    """Whether a path lies in a folder; both without symbolic links."""
    return folder in file.parents


def _noted(studies: Path, fixed: Path) -> dict[str, Any]:
    """What the datastore notes of the fixed image about its partner; viewers can only name one image.

    A client writes it there with ``PUT /datastore/image/info``, so it is trusted no more than a request.
    """
    try:
        objects = json.loads((studies / DATASTORE).read_text(encoding="utf-8"))["objects"]
        info = objects[case_name(fixed)]["image"]["info"] if fixed.parent == studies else {}
        return {key: info[key] for key in PAIR_KEYS if info.get(key) not in (None, "", [])}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _find(studies: Path, key: str, value: Any) -> str:
    """The file of the studies that a parameter names.

    Raises:
        RegZooError: one line that names the parameter.
    """
    if value in (None, ""):
        raise RegZooError(f"{key}: missing; give the id of an image of the studies, or a path inside their folder")
    if not isinstance(value, str) or not value.isprintable() or len(value) > LONGEST_NAME:
        raise RegZooError(f"{key}: {value!r:.80} is no name; give an image's id, or a path inside the studies folder")
    candidates = [studies / value]
    if len(Path(value).parts) == 1:
        folders = [studies / FINISHED, studies] if key.endswith("label") else [studies]
        named = [folder / f"{value}{suffix}" for folder in folders for suffix in ("", *SUFFIXES)]
        candidates = [file for file in named if file.is_symlink() or file.is_file()] or candidates
    for file in candidates:
        real = Path(os.path.realpath(file))
        # Before anything else is said of a file, so that nobody learns which files there are elsewhere.
        if not _inside(real, studies):
            raise RegZooError(f"{key}: {value} leads outside the studies folder; give an id, or upload the file first")
        if real.is_file():
            return str(real)
    raise RegZooError(f"{key}: no {value} in the studies; give an id that GET /datastore/ lists, or upload it first")


class _Answering(Transform):
    """Several steps as one, whose errors reach the client of a server."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.steps = Compose(transforms)

    def __call__(self, data: Mapping[Hashable, Any]) -> Any:
        try:
            return self.steps(data)
        except Exception as error:
            mine = user_error(error)
            if mine is None or not from_server(data):
                raise
            http_exception, found = optional_import("fastapi", name="HTTPException")
            if not found:
                raise mine from None
            raise http_exception(status_code=400, detail=str(mine)) from None


class Steps(Compose):
    """MONAI's `Compose`, for the steps of an inference; a mistake in a served request is answered with it in one line.

    MONAI Label takes a `Compose` apart and runs its parts, and hides from the client what is wrong. This one has a
    single part, in which an error that the client can mend becomes the answer (status 400).

    Args:
        transforms: the steps.
    """

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        super().__init__([_Answering(transforms)])
