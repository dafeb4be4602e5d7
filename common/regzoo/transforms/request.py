"""What a server such as MONAI Label sends, made into a record; and its mistakes, answered in one line.

MONAI Label calls a bundle's transforms with the fixed image's file as ``image`` and ``image_path`` and with all that
the client sent beside it. Clients are not trusted: they name files inside the studies folder, nothing else.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.transforms import Compose, MapTransform, Transform
from monai.utils import optional_import
from regzoo.datasets.studies import STUDIES_VARIABLE
from regzoo.errors import RegZooError, user_error

#: What MONAI Label itself needs of a request after the preprocessing.
SERVER_KEYS = ("image_path", "model", "device", "logging", "latencies", "description", "model_filename")
SERVER_PREFIX = "result_"
#: Where MONAI Label keeps finished labels within the studies.
FINISHED = Path("labels") / "final"
#: Longest name or path that is looked for at all.
LONGEST_NAME = 255
#: Where MONAI Label keeps the images of sessions, if not in its usual place.
SESSIONS_VARIABLE = "MONAI_LABEL_SESSION_PATH"


class RequestedPaird(MapTransform):
    """First step of an inference: the record of the pair that was asked for.

    ``image`` is the fixed image and becomes ``fixed_image``. A record with ``image_path`` comes from MONAI Label: then
    ``moving_image``, ``moving_label`` and ``fixed_label`` name files of the studies, by the id of an image or by a path
    inside the studies folder. Of a label, an id stands for the finished label of the image of that id, or else for that
    image itself. Labels may be lists, one mask each. ``align`` is taken over; what else the client sent, but for what
    the server needs, is dropped.

    Args:
        models: the folder of the bundle's weights, of which ``model_filename`` may name one to a server.

    Raises:
        RegZooError: a file is not named, not there or not inside the studies folder.
    """

    def __init__(self, models: str | os.PathLike[str] = "models") -> None:
        super().__init__(["image"])
        self.models = Path(models)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if "image_path" not in data:
            return dict(data) | {"fixed_image": data["image"]}
        fixed = _fixed_image(data["image_path"])
        item: dict[Hashable, Any] = {
            key: value for key, value in data.items() if key in SERVER_KEYS or str(key).startswith(SERVER_PREFIX)
        }
        studies = _studies(fixed)
        item["image"] = item["fixed_image"] = str(fixed)
        item["moving_image"] = _find(studies, "moving_image", data.get("moving_image"))
        for key in ("moving_label", "fixed_label"):
            if (value := data.get(key)) not in (None, "", []):
                several = isinstance(value, list)
                files = [_find(studies, key, name) for name in (value if several else [value])]
                item[key] = files if several else files[0]
        if data.get("align") not in (None, ""):
            item["align"] = data["align"]
        self._check_weights(data.get("model_filename"))
        item["case"] = _name(fixed)
        return item

    def _check_weights(self, name: Any) -> None:
        """Make sure that the weights asked for are there: the server would take the released ones in silence."""
        known = sorted(path.name for path in self.models.glob("*.pt"))
        # Nobody having asked, the server puts all that it knew at its start there, and takes the first.
        if name is None or (isinstance(name, list) and name and all(one in known for one in name)) or name in known:
            return
        raise RegZooError(f"model_filename: no {name!r:.80} among the weights of this bundle, {', '.join(known)}")


def _fixed_image(path: Any) -> Path:
    """The file that MONAI Label found for ``image``: of the studies, of a session, or uploaded with the request."""
    if not isinstance(path, str) or not path:
        raise RegZooError("image: no such image in the studies; give the id of one that GET /datastore/ lists")
    file = Path(os.path.realpath(path))
    sessions = os.environ.get(SESSIONS_VARIABLE) or Path.home() / ".cache" / "monailabel" / "sessions"
    uploads = Path(os.path.realpath(tempfile.gettempdir()))
    uploaded = file.parent == uploads and file.name.startswith(tempfile.gettempprefix())
    known = uploaded or any(_inside(file, place) for place in (_studies(file), Path(os.path.realpath(sessions))))
    if not known:
        raise RegZooError(f"image: {path} lies outside the studies folder; copy it into the folder, or upload it")
    return file


def _studies(fixed: Path) -> Path:
    """The studies folder; for a remote store, the folder that MONAI Label keeps copies of its images in."""
    named = os.environ.get(STUDIES_VARIABLE, "")
    return Path(os.path.realpath(named)) if Path(named).is_dir() and named else fixed.parent


def _inside(file: Path, folder: Path) -> bool:
    """Whether a path lies in a folder; both without symbolic links."""
    return folder in file.parents


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
        candidates = [file for folder in folders for file in _of_id(folder, value)] or candidates
    for file in candidates:
        real = Path(os.path.realpath(file))
        # Before anything else is said of a file, so that nobody learns which files there are elsewhere.
        if not _inside(real, studies):
            raise RegZooError(f"{key}: {value} leads outside the studies folder; give an id, or upload the file first")
        if real.is_file():
            return str(real)
    raise RegZooError(f"{key}: no {value} in the studies; give an id that GET /datastore/ lists, or upload it first")


def _of_id(folder: Path, name: str) -> list[Path]:
    """The files of a folder that a datastore's id stands for: those called so but for their suffix."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if _name(file) == name or file.name == name)


def _name(file: Path) -> str:
    """A file's name without its suffix, as MONAI Label makes ids of it."""
    return file.name[: -len(".nii.gz")] if file.name.lower().endswith(".nii.gz") else file.stem


class _Answering(Transform):
    """Several steps as one, whose errors reach the client of a server."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.steps = Compose(transforms)

    def __call__(self, data: Mapping[Hashable, Any]) -> Any:
        try:
            return self.steps(data)
        except Exception as error:
            mine = user_error(error)
            if mine is None or "image_path" not in data:
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
