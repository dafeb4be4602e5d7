"""The tables of ``peers.py`` and the goals that are read from them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from comparison import markdown, summary
from peer_pairs import GROUPS
from peer_runs import BUSY_SHARE

Row = Mapping[str, float]
Found = Mapping[str, Mapping[str, Sequence[Row]]]  # group → method ("" is unregistered) → a row for each pair
#: Measure → heading, digits after the point.
COLUMNS = {
    "dice": ("Dice", 3),
    "tre_mm": ("TRE, mm", 2),
    "hd95_mm": ("HD95, mm", 2),
    "error_mm": ("error, mm", 2),
    "sdlogj": ("SDlogJ", 3),
    "folds_percent": ("folds, %", 3),
    "lost": ("lost labels", 0),
    "seconds": ("s", 1),
    "cpu_seconds": ("CPU s", 1),
    "peak_mib": ("memory, MiB", 0),
}
#: A peer that takes this many times as long as ours may be ahead.
SLOWER = 10
MET = {True: "met", False: "missed"}


def report(found: Found) -> str:
    """All tables and the goals."""
    parts = [
        f"## {GROUPS[group].title}\n\n![One slice, all methods](peers_{group}.png)\n\n{table(rows)}"
        for group, rows in found.items()
    ]
    return "\n\n".join([*parts, f"## Goals\n\n{goal_table(found)}"])


def table(rows: Mapping[str, Sequence[Row]]) -> str:
    """One line a method: values of the pair, or medians (10th–90th percentile) over the pairs."""
    pairs = len(next(iter(rows.values())))
    shown = [key for key in COLUMNS if any(key in row for every in rows.values() for row in every)]
    lines = [["method", *(COLUMNS[key][0] for key in shown)]]
    for method, every in rows.items():
        busy = any(row["others"] > BUSY_SHARE for row in every)
        cells = [cell(key, every) + ("*" if busy and key == "seconds" else "") for key in shown]
        lines.append([method or "unregistered", *cells])
    text = markdown(lines)
    notes = [f"Medians (10th–90th percentile) over {pairs} pairs."] if pairs > 1 else []
    if any(row["others"] > BUSY_SHARE for every in rows.values() for row in every):
        notes.append("\\*: the machine had other work; only the CPU-seconds compare.")
    return "\n\n".join([text, *([" ".join(notes)] if notes else [])])


def cell(key: str, rows: Sequence[Row]) -> str:
    """A measure of a method."""
    values = [row.get(key, math.nan) for row in rows]
    if len(values) > 1:
        return summary({str(i): value for i, value in enumerate(values)})
    return "—" if math.isnan(values[0]) else f"{values[0]:.{COLUMNS[key][1]}f}"


@dataclass(frozen=True)
class Goal:
    """A figure that a method has to reach.

    Attributes:
        group: of pairs.
        method: of ours.
        key: the measure; its median over the pairs counts.
        least: whether it has to be at least the limit; otherwise at most.
        limit: a number, or what another method reaches, times a factor.
    """

    group: str
    method: str
    key: str
    least: bool
    limit: float | tuple[str, float]

    def line(self, found: Found) -> list[str] | None:
        """Group, method, what is asked, what was measured, and whether it is met; None where it was not measured."""
        rows = found.get(self.group, {})
        if self.method not in rows:
            return None
        asked, limit = self._asked(rows)
        value = middle(rows[self.method], self.key)
        met = value >= limit if self.least else value <= limit
        title, digits = COLUMNS[self.key]
        words = f"{title} {'≥' if self.least else '≤'} {asked}"
        return [self.group, self.method, words, f"{value:.{digits}f}", MET[met]]

    def _asked(self, rows: Mapping[str, Sequence[Row]]) -> tuple[str, float]:
        if not isinstance(self.limit, tuple):
            return f"{self.limit:g}", self.limit
        other, factor = self.limit
        reached = middle(rows[other], self.key) if other in rows else math.nan
        times = "" if factor == 1 else f"{factor:g} × "
        return f"{times}{reached:.{COLUMNS[self.key][1]}f} ({times}{other})", factor * reached


def middle(rows: Sequence[Row], key: str) -> float:
    """The median over the pairs."""
    return median(row.get(key, math.nan) for row in rows)


def ahead(found: Found) -> Iterator[list[str]]:
    """A line for every group: which peers are ahead of ours in Dice or TRE, and do not take `SLOWER` times as long."""
    better: dict[str, Callable[[float, float], bool]] = {"dice": operator.gt, "tre_mm": operator.lt}
    for group, rows in found.items():
        ours = GLAND if group == "phantom_prostate" else REFINED
        if ours not in rows:
            continue
        limit = SLOWER * middle(rows[ours], "seconds")
        words = []
        for peer in (name for name in rows if name and not name.startswith(REFINED)):
            for key, beats in better.items():
                value = middle(rows[peer], key)
                if middle(rows[peer], "seconds") < limit and beats(value, middle(rows[ours], key)):
                    title, digits = COLUMNS[key]
                    words.append(f"{peer} {title} {value:.{digits}f}")
        yield [group, ours, f"no peer ahead in {SLOWER} × the time", "; ".join(words) or "none", MET[not words]]


def goal_table(found: Found) -> str:
    """All goals that something was measured for."""
    lines = [line for goal in GOALS if (line := goal.line(found))]
    lines += ahead(found)
    if not lines:
        return "Nothing was measured that a goal is set for."
    return markdown([["pairs", "method", "goal", "measured", "result"], *lines])


#: Names of ours begin with the first one.
REFINED = "RegZoo"
GLAND, NETWORK, MIND = "RegZoo, network and gland", "RegZoo, network", "RegZoo, network and MIND"
SYN, GREEDY = "ANTs SyN (MI)", "greedy NCC 100×100×50"
GOALS = (
    Goal("brain_2mm", REFINED, "dice", True, 0.77),
    Goal("brain_2mm", REFINED, "tre_mm", False, 1.55),
    Goal("brain_2mm", REFINED, "folds_percent", False, 0.02),
    Goal("brain_2mm", REFINED, "seconds", False, (SYN, 0.5)),
    Goal("brain_1mm", REFINED, "dice", True, 0.785),
    Goal("brain_1mm", REFINED, "seconds", False, (SYN, 1)),
    Goal("abdomen_2mm", REFINED, "dice", True, 0.83),
    Goal("abdomen_2mm", REFINED, "tre_mm", False, 7.5),
    Goal("abdomen_2mm", REFINED, "folds_percent", False, 0.05),
    Goal("abdomen_2mm", REFINED, "seconds", False, (GREEDY, 0.1)),
    Goal("abdomen_native", "RegZoo, bundle", "dice", True, 0.80),
    Goal("phantom_abdomen", REFINED, "tre_mm", False, (SYN, 1)),
    Goal("phantom_abdomen", REFINED, "seconds", False, (SYN, 1)),
    Goal("phantom_prostate", GLAND, "dice", True, 0.97),
    Goal("phantom_prostate", GLAND, "tre_mm", False, (NETWORK, 0.8)),
    Goal("phantom_prostate", MIND, "tre_mm", False, (NETWORK, 1)),
)
