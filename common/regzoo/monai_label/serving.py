"""What is different where MONAI Label serves a bundle: what it is given of a registration, where trainings go."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import MapTransform
from regzoo.errors import RegZooError
from regzoo.inference.outputs import propagated_labels, registration_statistics
from regzoo.monai_label.request import from_server
from regzoo.monai_label.studies import is_served
from regzoo.transforms import label_map


class Answerd(MapTransform):
    """Last step of an inference: put into ``pred`` what a viewer shows, and for a server all else into ``result``.

    Servers such as MONAI Label hand out ``pred``, which cannot carry several channels, and ``result`` as JSON.

    Results:
        ``pred`` (1, X, Y, Z) on the fixed image's grid: the propagated labels as one map, int32, or without a moving
        label the warped moving image, float32. A label map keeps its values; masks get 1, 2, … in their order, and
        where they overlap the smallest one shows.

        ``result``, if a server asked: ``case``, ``answer`` (``label`` or ``image``) and what `registration_statistics`
        finds, labels called by their value in ``pred``. Volumes and centroids are those of the whole masks, whatever
        overlaps them.
    """

    def __init__(self) -> None:
        super().__init__(["pred"])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        labels = propagated_labels(item)
        values = None
        if labels is None:
            item["pred"] = item["warped_image"]
        else:
            values = item.get("moving_label_values") or list(range(1, len(labels) + 1))
            item["pred"] = MetaTensor(label_map(labels.as_tensor(), values)[None], affine=labels.affine)
        if from_server(item):
            _check_type(item.get("result_dtype"), item["pred"])
            answer = {"case": item.get("case"), "answer": "image" if labels is None else "label"}
            item["result"] = answer | registration_statistics(item, labels, values)
        return item


def _check_type(name: str | None, shown: MetaTensor) -> None:
    """Refuse to have an answer written in a type of voxels that would change its values.

    Raises:
        RegZooError: one line that names the parameter.
    """
    if name is None or not np.issubdtype(np.dtype(name), np.integer):
        return
    if shown.is_floating_point():
        raise RegZooError(f"result_dtype: {name} cannot hold the warped image; name a moving_label, or ask for float32")
    if (largest := int(shown.max())) > np.iinfo(name).max:
        raise RegZooError(f"result_dtype: {name} cannot hold the label {largest}; ask for int32")


def training_folder(bundle_root: str | Path) -> str:
    """Where a training goes that nobody named a folder for.

    ``output/train`` of the bundle; of MONAI Label's trainings, each of which starts anew from some weights, every one
    has a folder of its own, ``output/monai_label/<time>``.
    """
    output = Path(bundle_root) / "output"
    return str(output / "monai_label" / f"{datetime.now():%Y%m%d-%H%M%S}" if is_served() else output / "train")


def served_weights(bundle_root: str | Path) -> str | None:
    """Where MONAI Label's trainings leave their weights, beside the released ones; None for other trainings."""
    return str(Path(bundle_root) / "models" / "monai_label.pt") if is_served() else None
