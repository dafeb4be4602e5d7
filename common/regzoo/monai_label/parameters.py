"""The parameters of a request that MONAI Label itself uses, checked before it does."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from regzoo.errors import RegZooError

#: The parameters that say how the answer is written, and their values; and whether it is kept.
WRITING: dict[str, tuple[Any, ...]] = {
    "result_extension": (None, ".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha"),
    "result_dtype": (None, "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"),
    "result_compress": (None, False, True),
}
SAVING = {"save_label": (None, False, True)}
#: The only kind of label that a request may write; only a person may write finished labels.
TAG = "original"


def check_parameters(data: Mapping[Hashable, Any], models: Path) -> None:
    """Refuse values that MONAI Label cannot use, and those with which it would touch files that it must not.

    Raises:
        RegZooError: one line that names the parameter.
    """
    for key, known in (WRITING | SAVING).items():
        # Types are compared as well, because 1 == True.
        if not any(type(data.get(key)) is type(one) and data.get(key) == one for one in known):
            usable = ", ".join(str(one) for one in known[1:])
            raise RegZooError(f"{key}: {data[key]!r:.80} is not a valid value; use one of {usable}")
    if data.get("save_label") and data.get("label_tag", TAG) != TAG:
        raise RegZooError(f"label_tag: {data['label_tag']!r:.80} is not for answers; leave it out, or use {TAG}")
    if data.get("device") is not None and not is_known_device(data["device"]):
        raise RegZooError(f"device: {data['device']!r:.80} is not a device here; use cpu, or cuda where there is one")
    if "model_filename" in data:
        weights = sorted(path.name for path in models.glob("*.pt"))
        name = data["model_filename"]
        # If the client names no file, the server lists all that it knew at its start, and takes the first.
        if (name[0] if isinstance(name, list) and name else name) not in weights:
            raise RegZooError(f"model_filename: no {name!r:.80} among the weights here, {', '.join(weights)}")


def suffix_for(file: Path) -> str:
    """The suffix of an answer: that of a file if it can be written, or else ``.nii.gz``."""
    suffixes = sorted(WRITING["result_extension"][1:], key=len, reverse=True)
    return next((suffix for suffix in suffixes if file.name.lower().endswith(suffix)), ".nii.gz")


def is_known_device(value: Any) -> bool:
    """Whether a value names the CPU or a CUDA device of this machine."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return isinstance(value, str) and value in ("cpu", *(["cuda"] if cuda else []), *(f"cuda:{one}" for one in cuda))
