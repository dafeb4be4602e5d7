"""Tables of methods that were measured on the same cases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from regzoo.errors import RegZooError, bad_file
from regzoo.report import percentile_summary, read_csv
from regzoo.report.tables import BEFORE
from regzoo_tools.statistics import paired_wilcoxon
from regzoo_tools.study.words import chance, short, title

TESTED = ("tre_mm", "adhoc_tre_mm", "gland_dsc")
TESTS = "Paired two-sided Wilcoxon signed-rank tests, p not corrected for their number:"
Values = dict[str, dict[str, float]]  # metric → case → value; NaN: could not be measured


def pooled(tables: Sequence[Path]) -> Values:
    """The values of all cases in some ``cases.csv``; no case may be in two of them."""
    values: Values = {}
    for table in tables:
        columns = read_csv(table)
        cases = columns.pop("case")
        for metric, cells in columns.items():
            known = values.setdefault(metric, {})
            if twice := known.keys() & set(cases):
                raise bad_file(table, f"{min(twice)} is in another fold too", "remove the folders of these runs")
            known |= {case: float(cell or "nan") for case, cell in zip(cases, cells, strict=True)}
    return values


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


def table(found: dict[str, Values], minutes: dict[str, float], metrics: Sequence[str]) -> str:
    """What was measured, a line for each method and the first for the unregistered pairs.

    Args:
        found: method → what was measured; all of the same cases.
        minutes: method → time of a training; methods without one were not trained.
        metrics: what to show, as far as any method has it.

    Raises:
        RegZooError: the methods were not measured on the same cases.
    """
    count = str(len(same_cases(found)))
    shown = measured(found, metrics)
    before = [next((v[BEFORE + m] for v in found.values() if BEFORE + m in v), None) for m in shown]
    lines = [["method", "pairs", *map(title, shown), "training, min"]]
    lines.append(["unregistered", count, *map(summary, before), "—"])
    for name, values in found.items():
        lines.append([name, count, *(summary(values.get(m)) for m in shown), short(minutes.get(name, math.nan))])
    return markdown(lines)


def measured(found: dict[str, Values], metrics: Iterable[str]) -> list[str]:
    """Those of some metrics that any method has a value of."""
    return [m for m in metrics if any(summary(values.get(m)) != "—" for values in found.values())]


def same_cases(found: dict[str, Values]) -> list[str]:
    """The cases that methods were measured on.

    Raises:
        RegZooError: they are not the same for all.
    """
    cases = {name: sorted(set().union(*values.values())) for name, values in found.items()}
    first = next(iter(cases))
    if other := next((name for name in cases if cases[name] != cases[first]), None):
        raise RegZooError(f"{first} and {other} were measured on different cases; remove their runs and start again")
    return cases[first]


def report(found: dict[str, Values], minutes: dict[str, float], pairs: Sequence[tuple[str, str]]) -> str:
    """The table of all methods and that of the tests.

    Args:
        found: method → what was measured; all of the same cases.
        minutes: method → time of a training.
        pairs: the methods to compare.

    Raises:
        RegZooError: the methods were not measured on the same cases.
    """
    cases = same_cases(found)
    every = dict.fromkeys(metric for values in found.values() for metric in values)
    shown = measured(found, [metric for metric in every if not metric.startswith(BEFORE)])
    tests = [["comparison", "metric", "pairs", "median difference", "p"]]
    for metric, (a, b) in itertools.product([m for m in TESTED if m in shown], pairs):
        if metric in found[a] and metric in found[b]:
            n, difference, p = paired_wilcoxon(*([found[x][metric][case] for case in cases] for x in (b, a)))
            tests.append([f"{b} − {a}", title(metric), str(n), short(difference), chance(p)])
    text = table(found, minutes, shown)
    return text + ("" if len(tests) == 1 else f"\n\n{TESTS}\n\n{markdown(tests)}")
