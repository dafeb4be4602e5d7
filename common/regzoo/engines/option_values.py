"""Valid values of settings, by the name and the default of the setting."""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from regzoo import refinement
from regzoo.bundles import NAMES
from regzoo.case import FIXED, MOVING
from regzoo.datasets.records import Alignment
from regzoo.errors import RegZooError

#: The smallest and the largest valid value of a number, or of each number of a list; None: no limit.
LIMITS: dict[str, tuple[float | None, float | None]] = {
    **dict.fromkeys(("batch_size", "max_epochs", "val_interval", "accumulation_steps", "roi_batch_size"), (1, None)),
    **dict.fromkeys(("size", "channels", "kernel", "stride", "passes", "labels"), (1, None)),
    **dict.fromkeys(("supersampling", "label_values", "folds"), (1, None)),
    **dict.fromkeys(("samples_per_epoch", "max_pairs", "max_images", "validation_pairs", "iterations"), (0, None)),
    **dict.fromkeys(("seed", "fold", "num_workers", "warmup_steps", "pictures", "region_label"), (0, None)),
    **dict.fromkeys(("plateau_patience", "early_stop", "margin", "deformation_weight", "bias", "noise"), (0, None)),
    **dict.fromkeys(("labels_per_pair", "labels_per_image"), (0, 1000)),  # all are held in memory at once
    **dict.fromkeys(("max_brightness", "max_rotation", "max_translation", "max_displacement"), (0, None)),
    **dict.fromkeys(("alpha", "beta"), (0, None)),
    **dict.fromkeys(("cache_rate", "balance", "max_corner_shift"), (0, 1)),
    "plateau_factor": (0, 0.99),
    **dict.fromkeys(("eval_pairs", "max_voxels", "max_refine_seconds"), (0, None)),
    "background": (-1e9, 1e9),
    "control_points": (2, 20),  # time and memory grow with its sixth power
    "integration_steps": (1, 30),
    "sigmas": (0, 1000),
    "spacing": (0.001, 1000),
    "percentile": (0, 100),
}
#: The largest whole number: both PyTorch and NumPy accept it as a seed.
LARGEST = 2**32 - 1
#: The most voxels of the network grid: 512³.
MOST_VOXELS = 1 << 27
#: Settings that name a folder to write to.
FOLDERS = {"output_dir", "evaluation_dir"}
#: The valid entries of settings that list parts of a case.
PARTS = {"inputs": (FIXED.image, MOVING.image, MOVING.label), "need": (FIXED.label, MOVING.label)}
#: Numbers that must be larger than zero.
POSITIVE = {"spacing", "learning_rate", "gamma", "percentile", "plateau_factor", "lost_mm", "refine_seconds"}
CHOICES: dict[str, tuple[str | bool | None, ...]] = {
    "refine": (False, True, *refinement.KINDS),
    "norm": ("batch", "instance", None),
    "align": get_args(Alignment),
    "direction": ("mr_to_us", "us_to_mr"),
    "interpolation": ("linear", "bspline"),
    "label_mode": ("bilinear", "nearest"),
}
#: Example values of settings whose default is an expression or null.
KINDS: dict[str, Any] = {"amp": True, "num_workers": 0, "fold": 0, "folds": 2}
KINDS |= {"label_values": [1], "providers": [""], "window": [0.0, 1.0], "refine_seconds": 10.0, "background": 0.0}
#: Settings that may be null.
NULLABLE = {"label_values", "providers", "window", "norm", "outputs", "fold", "folds", "refine_seconds"}


def check_value(name: str, value: Any, default: Any) -> None:
    """Raise `RegZooError` if a value is out of range, or its type is not that of the setting's default."""
    if (isinstance(value, str) and value.startswith(("$", "@", "%"))) or (value is None and default is None):
        return
    if name == "phantoms" and isinstance(value, dict):
        for key, part in value.items():
            if wrong := _problem(key, part, default.get(key)):
                raise RegZooError(f"phantoms#{key}: {part!r:.60} {wrong}")
    if isinstance(default, str) and default.startswith(("$", "@")):
        default = None
    if wrong := _problem(name, value, KINDS.get(name, "" if name in NAMES else default)):
        shown = f"{value!r:.60}" if isinstance(value, str) else f"{value!s:.60}"
        raise RegZooError(f"{name}: {shown} {wrong}")


def _problem(name: str, value: Any, kind: Any) -> str:
    """The problem with a value, and what to write instead; empty for a valid value."""
    if name == "device":
        return _device_problem(value)
    if value is None and (name in NULLABLE or kind is None):
        return ""
    if name in NAMES:
        if value == "" and name in FOLDERS:
            return "is no folder; name one, or leave the setting out"
        listed = name.endswith("label") and isinstance(value, list) and all(isinstance(item, str) for item in value)
        return "" if isinstance(value, str) or listed else f"is not a name; write ./{value} or put it in quotes"
    if name in CHOICES:
        if any(value == choice and type(value) is type(choice) for choice in CHOICES[name]):  # 0 is not False
            return ""
        return f"is not known; use one of {', '.join(str(choice) for choice in CHOICES[name] if choice)}"
    if isinstance(kind, bool):
        return "" if isinstance(value, bool) else "is neither True nor False; write one of them"
    if isinstance(kind, dict):
        return "" if isinstance(value, dict) else "is not a dictionary; write {'name': value}"
    if isinstance(kind, list):
        return _list_problem(name, value, kind)
    if isinstance(kind, (int, float)):
        return _number_problem(name, value, kind)
    return ""


def _device_problem(value: Any) -> str:
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError, ValueError):
        return "is not a device; write cpu, cuda or cuda:0"
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return f"does not exist: PyTorch finds {torch.cuda.device_count()} GPUs; write cpu"
    return ""


def _list_problem(name: str, value: Any, kind: list[Any]) -> str:
    example = 'write "' + str(kind) + '"' if kind else "write a list in quotes, such as \"['a', 'b']\""
    if not isinstance(value, (list, tuple)):
        return f"is not a list; {example}"
    if name in {"spacing", "size", "window", "gamma", "iterations"} and len(value) != len(kind):
        return f"has {len(value)} values, not {len(kind)}; {example}"
    if not value and kind and name not in {"label_values", "need"}:
        return f"is empty; {example}"
    if name in PARTS and (unknown := [part for part in value if part not in PARTS[name]]):
        return f"has {unknown[0]!r:.40}; use some of {', '.join(PARTS[name])}"
    if kind and isinstance(kind[0], (int, float)):
        problems = (_number_problem(name, item, kind[0]) for item in value)
        if problem := next(filter(None, problems), ""):
            return problem
        if name == "size" and math.prod(value) > MOST_VOXELS:
            return f"makes {math.prod(value):.2g} voxels, more than {MOST_VOXELS:,}; use a smaller grid"
        if name == "label_values" and len(set(value)) < len(value):
            return "has a value twice; write each value once"
        if name in {"window", "gamma"} and value[0] >= value[1]:
            return f"does not increase; {example}"
    return ""


def _number_problem(name: str, value: Any, kind: float) -> str:
    whole = isinstance(kind, int)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return f"is not a number; write one such as {kind}"
    if whole and isinstance(value, float):
        return f"is not a whole number; write one such as {kind}, without a point or an exponent"
    if whole and value > LARGEST:
        return f"is more than {LARGEST}; use a smaller value"
    low, high = LIMITS.get(name, (None, None))
    if name in POSITIVE and value <= 0:
        return "is not above 0; use a larger value"
    if low is not None and value < low:
        return f"is less than {low}; use a larger value"
    if high is not None and value > high:
        return f"is more than {high}; use a smaller value"
    return ""
