"""A request of MONAI Label becomes the record of a pair; the client gets its mistakes back in one line.

MONAI Label calls a bundle's transforms with the fixed image's file as ``image`` and ``image_path``, and with every
parameter that the client sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.transforms import Compose, MapTransform, Transform
from monai.utils import optional_import
from regzoo.case import FIXED, LABEL_KEYS, MASK_KEYS, MOVING, Key
from regzoo.datasets.records import case_name
from regzoo.errors import RegZooError, user_error
from regzoo.monai_label.files import (
    PAIR_KEYS,
    check_files,
    find_file,
    find_files,
    fixed_file,
    noted_pair,
    remove_upload,
    studies_folder,
    without_folders,
)
from regzoo.monai_label.parameters import WRITING, check_parameters, suffix_for
from regzoo.refinement.options import refinement_asked

#: What MONAI Label itself needs of a request after the preprocessing, all of it checked.
SERVER_KEYS = ("image_path", "model", "device", "model_filename")


class RequestedPaird(MapTransform):
    """First step of an inference: the record of the pair that was asked for.

    Without ``fixed_image``, ``image`` is the fixed image. In a request to a server, which `ServedCompose` marks,
    ``moving_image``, labels and masks name files of the studies, by the id of an image or by a path inside the studies
    folder. For a label or a mask, an id means the finished label of that image, or else the image itself. Labels may be
    lists with one mask each. ``align``, ``refine`` and ``refine_seconds`` are kept, the last within the limit. The
    datastore's notes on the fixed image fill in what the request leaves out of these. Everything else that the client
    sent is dropped, except what the server needs.

    Args:
        models: the folder of the bundle's weights; ``model_filename`` of a request must name one of them.
        max_voxels: limit for the images and labels of a request together.
        max_refine_seconds: limit for ``refine_seconds`` of a request, and its value if the request gives none.

    Raises:
        RegZooError: a file is not named, missing, too large or outside the studies folder, or names one that is
            outside; or another parameter is wrong.
    """

    def __init__(
        self, models: str | os.PathLike[str] = "models", max_voxels: int = 500_000_000, max_refine_seconds: float = 30
    ) -> None:
        super().__init__([Key.IMAGE])
        self.models = Path(models)
        self.max_voxels = max_voxels
        self.max_refine_seconds = max_refine_seconds

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if not data.get(Key.SERVED):
            return {FIXED.image: data.get(Key.IMAGE), **data, Key.REQUESTED: True}
        fixed = fixed_file(data.get("image_path"))
        studies = studies_folder(fixed)
        check_parameters(data, self.models)
        item: dict[Hashable, Any] = {key: data[key] for key in (*SERVER_KEYS, *WRITING) if key in data}
        asked = {key: data[key] for key in PAIR_KEYS if data.get(key) not in (None, "", [])}
        pair = noted_pair(studies, fixed) | asked
        item[Key.IMAGE] = item[FIXED.image] = str(fixed)
        item[MOVING.image] = find_file(studies, MOVING.image, pair.get(MOVING.image))
        files = {Key.IMAGE: [item[FIXED.image]], MOVING.image: [item[MOVING.image]]}
        for key in (MOVING.label, FIXED.label, *MASK_KEYS):
            if isinstance(value := pair.get(key), list) and key in LABEL_KEYS:
                item[key] = files[key] = find_files(studies, key, value)
            elif value is not None:
                item[key] = find_file(studies, key, value)
                files[key] = [item[key]]
        for key in (*LABEL_KEYS, *MASK_KEYS):  # an id without a finished label means the image itself
            if not {item[FIXED.image], item[MOVING.image]}.isdisjoint(files.get(key, ())):
                raise RegZooError(f"{key}: {pair[key]} has no finished label; submit it, or name a mask of it")
        item |= refinement_asked(pair, self.max_refine_seconds)
        if Key.ALIGN in pair:
            item[Key.ALIGN] = pair[Key.ALIGN]
        check_files(studies, files, self.max_voxels)
        # MONAI Label would write the answer under the suffix of the fixed image, which it may not be able to write.
        item["result_extension"] = item.get("result_extension") or suffix_for(fixed)
        return item | {Key.CASE: case_name(fixed), Key.REQUESTED: True, Key.SERVED: True}


class _Answering(Transform):
    """Several steps as one, whose errors a server passes on to the client."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]], served: bool) -> None:
        self.steps = Compose(transforms)
        self.served = served

    def __call__(self, data: Mapping[Hashable, Any]) -> Any:
        try:
            return self.steps({**data, Key.SERVED: self.served})
        except Exception as error:
            if self.served:
                remove_upload(data.get("image_path"))
            known = user_error(error)
            if known is None or not self.served:
                raise
            http_exception, found = optional_import("fastapi", name="HTTPException")
            if not found:
                raise known from None
            raise http_exception(status_code=400, detail=without_folders(str(known), data.get("image_path"))) from None


class ServedCompose(Compose):
    """MONAI's `Compose` for the steps of an inference; a client's mistake is answered in one line, with status 400.

    MONAI Label takes a `Compose` apart, runs its parts and hides their errors from the client. So this one has a single
    part. It also marks each case as served or not.

    Args:
        served: whether a server runs them, see `is_served`.
    """

    def __init__(self, transforms: Sequence[Callable[[Any], Any]], served: bool = False) -> None:
        super().__init__([_Answering(transforms, served)])
