"""The tables of a study's report, as rows that are written as CSV and shown on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from regzoo.report import percentile_summary
from regzoo.report.tables import BEFORE
from regzoo_tools.challenge import CaseValues, challenge_score, rank_scores, robust_quantile
from regzoo_tools.statistics import (
    benjamini_hochberg,
    hodges_lehmann,
    mann_whitney,
    median,
    paired,
    paired_differences,
    paired_wilcoxon,
    tukey_range,
)
from regzoo_tools.study.results import BIAS, VARIANCE, Group, mean
from regzoo_tools.study.words import best

#: All rows of a table have the same keys.
Row = dict[str, Any]
Pairs = Sequence[tuple[str, str]]

#: The metrics of Learn2Reg → their columns; the first that was measured counts.
_LEARN2REG = {"DSC": ("dsc", "gland_dsc"), "HD95": ("hd95_mm", "gland_hd95_mm"), "TRE": ("tre_mm",)}
_LEARN2REG |= {"SDlogJ": ("sdlogj", "log_jacobian_std")}


def measured(groups: Sequence[Group]) -> list[str]:
    """The metrics of which any group has a value after registration."""
    names = dict.fromkeys(name for group in groups for name in group.metrics if not name.startswith(BEFORE))
    return [name for name in names if any(group.known(name).size for group in groups)]


def setting(group: Group) -> Row:
    """The columns that say which group a row belongs to."""
    return {"data": group.data, "method": group.method, "folds": group.folds, "training_size": group.size}


def summary(groups: Sequence[Group]) -> list[Row]:
    """Mean, SD, median and percentiles of each metric of each group, over the cases."""
    return [
        setting(group)
        | {"trained_on": group.trained_on, "runs": len(group.cells), "repeats": len(group.repeats), "metric": metric}
        | percentile_summary(group.values(metric).values())
        for group in groups
        for metric in measured([group])
    ]


def values(groups: Sequence[Group]) -> list[Row]:
    """Each value that the other tables are computed from."""
    return [
        setting(group) | {"metric": metric, "case": case, "repeats": len(runs), "value": mean(runs.values())}
        for group in groups
        for metric, found in group.metrics.items()
        for case, runs in found.items()
    ]


def wilcoxon(groups: Sequence[Group], metrics: Sequence[str], pairs: Pairs) -> list[Row]:
    """Paired Wilcoxon tests of pairs of methods, on the cases that both measured, first minus second.

    Source: Hu et al. 2018, section 3.3; Bashkanov et al. 2021, section 3.
    """
    rows = [row for metric in metrics for row in _corrected([_compared(groups, metric, *pair) for pair in pairs])]
    return [row for row in rows if row["pairs"]]


def _compared(groups: Sequence[Group], metric: str, first: str, second: str) -> Row:
    """One paired Wilcoxon test, with the Hodges–Lehmann estimate of the difference and its 95 % interval."""
    known = {group.method: group.values(metric) for group in groups}
    row: Row = {"data": groups[0].data if groups else "", "metric": metric, "first": first, "second": second}
    return row | _difference(known.get(first, {}), known.get(second, {}))


def _difference(first: Mapping[str, float], second: Mapping[str, float]) -> Row:
    """The paired differences of the cases that both have, in numbers."""
    differences = paired_differences(first, second)
    row: Row = {"pairs": len(differences), "median_difference": median(differences)}
    return row | hodges_lehmann(differences)._asdict() | {"p": paired_wilcoxon(differences)}


def _corrected(rows: list[Row]) -> list[Row]:
    found = benjamini_hochberg(np.array([row["p"] for row in rows], dtype=np.float64))
    return [row | {"p_corrected": float(p)} for row, p in zip(rows, found, strict=True)]


def better(groups: Sequence[Group], metrics: Sequence[str], pairs: Pairs) -> list[Row]:
    """One-sided Mann–Whitney U tests of pairs of methods: is the first better than the second?

    Source: Pérez de Frutos et al. 2023, section "Statistical tests".
    """
    rows = []
    for metric in metrics:
        known = {group.method: group.known(metric) for group in groups if group.known(metric).size}
        tests: list[Row] = [
            {"data": groups[0].data, "metric": metric, "better": a, "than": b}
            | {"cases_better": len(known[a]), "cases_than": len(known[b])}
            | {"p": mann_whitney(known[a], known[b], best(metric))}
            for a, b in pairs
            if a in known and b in known
        ]
        rows += _corrected(tests)
    return rows


def ranges(groups: Sequence[Group], metrics: Sequence[str]) -> list[Row]:
    """Tukey's range test between all methods: the differences of the means, first minus second."""
    return [
        {"data": groups[0].data, "metric": metric, "first": first, "second": second} | test._asdict()
        for metric in metrics
        for (first, second), test in tukey_range({group.method: group.known(metric) for group in groups}).items()
    ]


def kinds(groups: Sequence[Group]) -> list[Row]:
    """Centroid distance and DSC of each kind of label, over its cases; a case counts with its mean over the repeats."""
    rows = []
    for group in groups:
        found: dict[str, dict[tuple[str, int], list[Mapping[str, float]]]] = {}
        for label in group.labels:
            found.setdefault(label.name, {}).setdefault((label.case, label.index), []).append(label.values)
        for name, places in found.items():
            for column in ("distance_after_mm", "dsc_after"):
                values = [mean(run[column] for run in runs) for runs in places.values()]
                rows.append(setting(group) | {"label": name, "measure": column} | percentile_summary(values))
    return rows


def training_sizes(groups: Sequence[Group], metrics: Sequence[str]) -> list[Row]:
    """Mean error, bias and variance of each group against the size of its training set.

    The paired differences are those from the smallest training set of the same method.
    Source: Hu et al. 2019, section 2.3 and figure 3.
    """
    rows, trained = [], [group for group in groups if not np.isnan(group.trained_on)]
    for group in trained:
        alike = [other for other in trained if (other.data, other.method) == (group.data, group.method)]
        smallest = min(alike, key=lambda other: other.trained_on)
        for metric in (*metrics, BIAS, VARIANCE):
            if (summary := percentile_summary(group.values(metric).values()))["n"]:
                row = setting(group) | {"trained_on": group.trained_on, "repeats": len(group.repeats), "metric": metric}
                first = {} if smallest is group else smallest.values(metric)
                rows.append(row | summary | _difference(group.values(metric), first))
    return rows


def muregpro(groups: Sequence[Group]) -> list[Row]:
    """The score of µ-RegPro for each group whose cases have a gland and landmarks: the mean over the repeats.

    Errors are divided by those of the method ``identity`` or, without it, by the group's own before registration.
    """
    identity = next((g for g in groups if any(cell["baseline"] == "identity" for cell in g.cells)), None)
    still: dict[str, CaseValues] = {}
    if identity is not None:
        for repeat in identity.repeats:
            still |= _challenge_cases(identity, repeat, "before")
    rows = []
    for group in groups:
        scores = []
        for repeat in group.repeats:
            after, before = _challenge_cases(group, repeat, "after"), _challenge_cases(group, repeat, "before")
            before |= still
            shared = [case for case in after if case in before]
            if shared:
                scores.append(challenge_score([after[c] for c in shared], [before[c] for c in shared]))
        if scores:
            rows.append(setting(group) | {name: mean(score[name] for score in scores) for name in scores[0]})
    return rows


def _challenge_cases(group: Group, repeat: int, when: str) -> dict[str, CaseValues]:
    """What the score needs of each case, before or after registration; only cases with a gland and a landmark."""
    prefix = BEFORE if when == "before" else ""
    overlap, surface = (group.in_repeat(prefix + name, repeat) for name in ("gland_dsc", "gland_hd95_mm"))
    landmarks: dict[str, list[float]] = {}
    for label in group.labels:
        if label.repeat == repeat and label.index > 0:
            landmarks.setdefault(label.case, []).append(label.values[f"distance_{when}_mm"])
    return {
        case: CaseValues(overlap[case], landmarks[case], surface[case])
        for case in landmarks
        if case in overlap and case in surface
    }


def learn2reg(groups: Sequence[Group]) -> list[Row]:
    """The measures of Learn2Reg, and its rank score: the geometric mean of those of DSC, HD95, TRE and SD log J."""
    ranked, rows = [], [setting(group) for group in groups]
    for name, metrics in _LEARN2REG.items():
        metric = next((m for m in metrics if any(group.known(m).size for group in groups)), None)
        if metric is None:
            continue
        scores = rank_scores({str(i): group.values(metric) for i, group in enumerate(groups)}, best(metric))
        ranked.append(list(scores.values()))
        for row, group in zip(rows, groups, strict=True):
            row[name] = mean(group.known(metric))
            if name != "SDlogJ":
                row[f"{name}30"] = robust_quantile(group.known(metric), best(metric))
    if not ranked or len(groups) < 2:
        return []
    for row, score in zip(rows, np.exp(np.log(ranked).mean(axis=0)), strict=True):
        row["rank_score"] = float(score)
    return rows


def claims(wanted: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> list[Row]:
    """The verdict on each claim; p is corrected for the number of claims.

    A claim holds if the interval of the paired difference excludes 0 on its side and the median differs by at least its
    percentage. It fails if the interval excludes 0 on the other side. The medians are those of the paired cases.
    """
    rows = []
    for claim in wanted:
        metric, names = claim["metric"], (claim["better"], claim["than"])
        test = _compared(groups, metric, *names)
        sides = [[group for group in groups if group.method == name] for name in names]
        known = {group.method: group.values(metric) for group in groups}
        medians = [median(values) for values in paired(*(known.get(name, {}) for name in names))]
        change = 100 * (medians[0] / medians[1] - 1) if medians[1] else np.nan
        sign = 1 if best(metric) == "high" else -1
        runs = "+".join(str(sum(len(group.cells) for group in side)) for side in sides)
        row = {"claim": claim["claim"], "better": names[0], "than": names[1], "metric": metric, "runs": runs}
        row |= {"pairs": test["pairs"], "median_better": medians[0], "median_than": medians[1]}
        row |= {"change_percent": change} | {key: test[key] for key in ("estimate", "low", "high", "p")}
        enough = sign * change >= claim["percent"]
        rows.append(row | {"verdict": _verdict(test, sign, bool(enough))})
    return _corrected(rows)


def _verdict(test: Row, sign: int, enough: bool) -> str:
    if not test["pairs"]:
        return "not measured"
    low, high = sorted((sign * test["low"], sign * test["high"]))
    if high < 0:
        return "fails"
    if not low > 0:
        return "not decided"
    return "holds" if enough else "holds, but by less"
