"""The answer to an inference: what a viewer shows, and the statistics that a server returns with it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import MapTransform
from regzoo.case import WARPED, Key
from regzoo.errors import RegZooError
from regzoo.inference.statistics import propagated_labels, registration_statistics
from regzoo.spatial.held import label_map


class BuildAnswerd(MapTransform):
    """Last step of an inference: build ``pred``, which a viewer shows, and for a server ``result``, its statistics.

    MONAI Label writes ``pred`` to a file, which cannot hold several channels, and returns ``result`` as JSON.

    Results:
        ``pred`` (1, X, Y, Z) on the fixed image's grid: the propagated labels as one map, int32, or without a moving
        label the warped moving image, float32. A label map keeps its values; masks get 1, 2, … in their order, and
        where they overlap the smallest one shows.

        ``result``, if a server asked: ``case``, ``answer`` (``label`` or ``image``) and `registration_statistics`,
        which measure the whole masks, overlapping parts included.
    """

    def __init__(self) -> None:
        super().__init__(["pred"])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        labels = propagated_labels(item)
        values = None
        if labels is None:
            item[Key.PRED] = item[WARPED.image]
        else:
            values = item.get(Key.MOVING_LABEL_VALUES) or list(range(1, len(labels) + 1))
            item[Key.PRED] = MetaTensor(label_map(labels.as_tensor(), values)[None], affine=labels.affine)
        if item.get(Key.SERVED):
            _check_type(item.get("result_dtype"), item[Key.PRED])
            answer = {"case": item.get(Key.CASE), "answer": "image" if labels is None else "label"}
            item["result"] = answer | registration_statistics(item, labels, values)
        return item


def _check_type(name: str | None, shown: MetaTensor) -> None:
    """Refuse a voxel type that cannot hold the values of the answer.

    Raises:
        RegZooError: one line that names the parameter.
    """
    if name is None or not np.issubdtype(np.dtype(name), np.integer):
        return
    if shown.is_floating_point():
        raise RegZooError(f"result_dtype: {name} cannot hold the warped image; name a moving_label, or ask for float32")
    if (largest := int(shown.max())) > np.iinfo(name).max:
        raise RegZooError(f"result_dtype: {name} cannot hold the label {largest}; ask for int32")
