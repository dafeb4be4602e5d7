"""Tables of what a benchmark has measured."""

from __future__ import annotations

from collections.abc import Sequence

from regzoo.report import percentile_summary
from regzoo_tools.study.words import short


def summary(values: dict[str, float] | None) -> str:
    """Median (10th–90th percentile)."""
    found = percentile_summary((values or {}).values())
    if not found["n"]:
        return "—"
    missing = f", {found['missing']} missing" if found["missing"] else ""
    return f"{short(found['median'])} ({short(found['p10'])}–{short(found['p90'])}){missing}"


def verdict(met: bool) -> str:
    """The word for a goal that was met, or not."""
    return "met" if met else "missed"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns; the first line is the heading."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]])
