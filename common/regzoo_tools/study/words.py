"""Names of metrics and numbers, as tables show them."""

from __future__ import annotations

import math
from typing import Literal

_UNITS = {"_mm2": ", mm²", "_mm": ", mm", "_percent": ", %", "_s": ", s"}
_WORDS = {word.lower(): word for word in ("TRE", "DSC", "HD", "HD95", "NCC", "SSIM", "SDlogJ", "Jacobian")}
_WORDS |= {"adhoc": "ad hoc"}


def title(metric: str) -> str:
    """A metric's name and unit."""
    unit = next((end for end in _UNITS if metric.endswith(end)), "")
    words = metric.removesuffix(unit).split("_")
    return " ".join(_WORDS.get(word, word) for word in words) + _UNITS.get(unit, "")


def best(metric: str) -> Literal["low", "high"]:
    """Which values of a metric are good: high ones of agreement, low ones of an error, a cost or a time."""
    return "low" if {"dsc", "ncc", "ssim"}.isdisjoint(metric.split("_")) else "high"


def short(value: float) -> str:
    """Three digits."""
    return "—" if math.isnan(value) else f"{value:#.3g}".rstrip(".") if value else "0"


def chance(p: float) -> str:
    """A p value."""
    return "< 0.001" if p < 0.001 else short(p)
