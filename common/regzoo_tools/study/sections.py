"""The sections of a study's page, from the rows of its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from regzoo_tools.study.description import Study
from regzoo_tools.study.page import Cell, image, paragraph, subheading, table
from regzoo_tools.study.plots import box_plots, deformation_maps, size_curves
from regzoo_tools.study.results import BIAS, VARIANCE, Group
from regzoo_tools.study.tables import Row
from regzoo_tools.study.words import chance, short, title

#: The largest number of metrics side by side in a table.
COLUMNS = 4
PERCENTILES = ("p10", "p25", "p75", "p90")
#: Differences with a smaller p are marked.
SIGNIFICANT = 0.05
#: What readers need to know about each table.
_NOTES = {
    "claims": (
        "Medians are those of the method that should be better and of the other. The difference, the first minus the "
        "second, its interval and p are those of the paired test. A claim holds if the interval excludes 0."
    ),
    "missing": (
        "The tables hold what is there. Tests use the cases that both methods measured. Cells that were run with other "
        "code count as done; cells that were run with other settings or data (outdated) are left out."
    ),
    "wilcoxon": (
        "Two-sided Wilcoxon signed-rank tests over the cases that both methods measured. The last column is corrected "
        "for the number of comparisons in wilcoxon.csv (Benjamini and Hochberg, for each metric)."
    ),
    "better": (
        "One-sided Mann–Whitney U tests: p for the method of the row being better than that of the column, corrected "
        "for the number of tests (Benjamini and Hochberg, for each metric)."
    ),
    "ranges": "Tukey's range test of the means of all methods, p. tukey.csv holds the differences and their intervals.",
    "sizes": (
        "Squared bias: squared distance of the mean of the predicted centroids to the true one. Variance: mean squared "
        "distance of the predicted centroids to their mean. Both for each label of each case, over the repeats. "
        "Differences are from the smallest training set of the method: Hodges–Lehmann estimate with 95 % interval, and "
        "p of a paired Wilcoxon test."
    ),
    "scores": (
        "µ-RegPro: errors in mm; for the score they are divided by those of the unregistered pairs. Learn2Reg: means "
        "over the cases; 30 marks the 30th percentile of DSC and the 70th of errors. SDlogJ is Learn2Reg's if the "
        "evaluation has a metric sdlogj, else the standard deviation of log det J. The rank score counts the methods "
        "that are significantly worse."
    ),
    "maps": (
        "axial plane through the first label. Green outlines: folded (det J ≤ 0). u contains the pre-alignment. "
        "deformations.csv holds the mean, SD and range over the whole volume."
    ),
}
#: How the numbers came about.
_METHODS = (
    "A case counts once: with several repeats, its value is the mean over them. With several numbers of folds or sizes "
    "of the training set, tests use the largest training set.",
    "The interval of a paired difference belongs to the signed-rank test: exact for up to 50 pairs, then a normal "
    "approximation. Box plots: the whiskers reach the last value within 1.5 box lengths.",
    "Tests by SciPy. Sources: Hu et al. 2018 and 2019, Bashkanov et al. 2021, Pérez de Frutos et al. 2023.",
)


def top(study: Study, complete: str) -> str:
    """What the study is, and how much of it the report is made from."""
    text = paragraph(study.source, "quiet") if study.source else ""
    text += paragraph(f"Made from {complete} of {study.file.name}. The CSV files beside this page hold all numbers.")
    if any("phantoms" in source for source in study.data.values()):
        text += paragraph("Measured on phantoms: drawn images, not images of patients.", "notice")
    return text


def claims(rows: Sequence[Row]) -> str:
    """A row for each claim, with its verdict."""
    lines: list[dict[str, Cell]] = [
        {
            "claim": row["claim"],
            "metric": title(row["metric"]),
            "runs": row["runs"],
            "pairs": row["pairs"],
            "medians": (
                f"{short(row['median_better'])} against {short(row['median_than'])}",
                "" if np.isnan(row["change_percent"]) else f"{row['change_percent']:+.3g} %",
            ),
            "difference [95 % CI]": _interval(row),
            "p": chance(row["p"]),
            "p, corrected": chance(row["p_corrected"]),
            "verdict": row["verdict"],
        }
        for row in rows
    ]
    marked = {(i, "verdict") for i, row in enumerate(rows) if row["verdict"] == "holds"}
    return _noted("claims", table(lines, 2, marked))


def missing(progress: Sequence[Row]) -> str:
    """How many cells of each method are in which state, for the methods that are not complete."""
    return _noted("missing", table([row for row in progress if row["done"] < row["cells"] or row["with other code"]]))


def results(study: Study, groups: Sequence[Group], rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """All metrics of all methods, as medians with percentiles and as mean (median) ± SD."""
    known = {(row["method"], row["folds"], row["training_size"], row["metric"]): row for row in rows}
    text = ""
    for heading, shown in (
        ("Median, and 10th · 25th · 75th · 90th percentile over the cases", _percentiles),
        ("Mean (median) ± SD over the cases", _mean_and_sd),
    ):
        text += subheading(heading)
        for first in range(0, len(metrics), COLUMNS):
            lines: list[dict[str, Cell]] = []
            for group in groups:
                lines.append({"method": _name(study, group), "runs": len(group.cells) or "—"})
                lines[-1]["training, min"] = short(group.training_minutes)
                for metric in metrics[first : first + COLUMNS]:
                    row = known.get((group.method, group.folds, group.size, metric))
                    lines[-1][title(metric)] = "—" if row is None else shown(row)
            text += table(lines)
    return text


def boxes(groups: Sequence[Group], metrics: Sequence[str]) -> str:
    """Tukey box plots of each tested metric."""
    return "".join(
        image(box_plots(groups, metric), "svg+xml", f"Box plots of {title(metric)} by method") for metric in metrics
    )


def wilcoxon(rows: Sequence[Row]) -> str:
    """Paired Wilcoxon tests."""
    lines: list[dict[str, Cell]] = [
        {
            "comparison": f"{row['first']} − {row['second']}",
            "metric": title(row["metric"]),
            "pairs": row["pairs"],
            "median difference": short(row["median_difference"]),
            "Hodges–Lehmann [95 % CI]": _interval(row),
            "p": chance(row["p"]),
            "p, corrected": chance(row["p_corrected"]),
        }
        for row in rows
    ]
    marked = {(i, "p, corrected") for i, row in enumerate(rows) if row["p_corrected"] < SIGNIFICANT}
    return _noted("wilcoxon", table(lines, 2, marked))


def better(rows: Sequence[Row], names: Sequence[str]) -> str:
    """One-sided Mann–Whitney U tests of each method against each other, a square for each metric."""
    return _noted("better", _squares(rows, names, ("better", "than", "p_corrected"), mirrored=False))


def ranges(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Tukey's range tests, a square for each metric."""
    return _noted("ranges", _squares(rows, names, ("first", "second", "p"), mirrored=True))


def _squares(rows: Sequence[Row], names: Sequence[str], keys: tuple[str, str, str], mirrored: bool) -> str:
    first, second, value = keys
    text = ""
    for metric in dict.fromkeys(row["metric"] for row in rows):
        known = {(row[first], row[second]): row[value] for row in rows if row["metric"] == metric}
        known |= {(b, a): p for (a, b), p in known.items()} if mirrored else {}
        shown = [name for name in names if any(name in pair for pair in known)]
        lines = [{"": a} | {b: chance(known[a, b]) if (a, b) in known else "" for b in shown} for a in shown]
        marked = {(shown.index(a), b) for (a, b), p in known.items() if p < SIGNIFICANT}
        text += subheading(title(metric)) + table(lines, marked=marked)
    return text


def kinds(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Centroid distance and DSC of each kind of label."""
    text = ""
    for measure, heading in (("distance_after_mm", "Centroid distance, mm"), ("dsc_after", "DSC")):
        known = {(row["label"], row["method"]): row for row in rows if row["measure"] == measure and row["n"]}
        lines: list[dict[str, Cell]] = []
        for label in dict.fromkeys(label for label, _ in known):
            found = {name: known.get((label, name)) for name in names}
            lines.append({"label": label} | {n: "—" if row is None else _quartiles(row) for n, row in found.items()})
        text += subheading(f"{heading}: median, and quartiles") + table(lines) if lines else ""
    return text


def sizes(rows: Sequence[Row], tested: Sequence[str]) -> str:
    """Error, bias and variance against the size of the training set."""
    if not rows:
        return ""
    description = "Error, bias and variance against the number of training cases"
    text = image(size_curves(rows, tested[0]), "svg+xml", description)
    lines: list[dict[str, Cell]] = [
        {
            "method": row["method"],
            "training cases": short(row["trained_on"]),
            "repeats": row["repeats"],
            "metric": title(row["metric"]),
            "n": row["n"],
            "mean": short(row["mean"]),
            "median": short(row["median"]),
            "quartiles": f"{short(row['p25'])} – {short(row['p75'])}",
            "difference from the smallest": _interval(row) if row["pairs"] else "",
            "p": chance(row["p"]) if row["pairs"] else "",
        }
        for row in rows
        if row["metric"] in (tested[0], BIAS, VARIANCE)
    ]
    return _noted("sizes", text + table(lines))


def scores(muregpro: Sequence[Row], learn2reg: Sequence[Row]) -> str:
    """The scores of µ-RegPro and Learn2Reg."""
    text = ""
    for heading, rows in (("µ-RegPro", muregpro), ("Learn2Reg", learn2reg)):
        if rows:
            names = [name for name in rows[0] if name not in ("data", "method", "folds", "training_size")]
            lines = [{"method": r["method"]} | {n.replace("_", " "): short(r[n]) for n in names} for r in rows]
            text += subheading(heading) + table(lines)
    return _noted("scores", text)


def maps(cases: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The deformation maps of the chosen cases."""
    return "".join(
        image(deformation_maps(columns), "png", f"Deformation of {case} by method", f"{case}: {_NOTES['maps']}")
        if columns
        else paragraph(f"{case}: no cell has kept a field of this case.")
        for case, columns in cases
    )


def notes() -> str:
    """How the numbers came about."""
    return "".join(map(paragraph, _METHODS))


def _noted(name: str, text: str) -> str:
    """A section with what readers need to know about it; empty for an empty one."""
    return text and text + paragraph(_NOTES[name], "quiet")


def _name(study: Study, group: Group) -> str:
    """A method, and its setting where the study has several."""
    name = group.method
    if isinstance(study.folds, list) and len(study.folds) > 1 and group.folds:
        name += f", {group.folds} folds"
    if len(study.training_sizes or ()) > 1 and group.size:
        name += f", {group.size} cases"
    return name


def _percentiles(row: Row) -> Cell:
    return _median(row), " · ".join(short(row[name]) for name in PERCENTILES)


def _median(row: Row) -> str:
    """The median, the number of values, and how many are missing."""
    missing = f", {row['missing']} missing" if row["missing"] else ""
    return f"{short(row['median'])} (n = {row['n']}{missing})"


def _mean_and_sd(row: Row) -> Cell:
    return f"{short(row['mean'])} ({short(row['median'])}) ± {short(row['std'])}"


def _quartiles(row: Row) -> Cell:
    return _median(row), f"{short(row['p25'])} – {short(row['p75'])}"


def _interval(row: Row) -> str:
    return f"{short(row['estimate'])} [{short(row['low'])}, {short(row['high'])}]"
