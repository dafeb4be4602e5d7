"""The parameters of a request that MONAI Label itself uses, checked before it does."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from regzoo.errors import RegZooError

#: The parameters that say how the answer is written, and their values.
WRITING: dict[str, tuple[Any, ...]] = {
    "result_extension": (None, ".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha"),
    "result_dtype": (None, "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"),
    "result_compress": (None, False, True),
}
#: The only kind of label that a request may write; only a person may write finished labels.
TAG = "original"


def check_parameters(data: Mapping[Hashable, Any], models: Path) -> None:
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
        weights = sorted(path.name for path in models.glob("*.pt"))
        name = data["model_filename"]
        # Nobody having asked, the server puts all that it knew at its start there, and takes the first.
        if (name[0] if isinstance(name, list) and name else name) not in weights:
            raise RegZooError(f"model_filename: no {name!r:.80} among the weights here, {', '.join(weights)}")
