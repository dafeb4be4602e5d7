"""What the finished cells of a study measured, by method and by case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from regzoo.errors import bad_file
from regzoo.report import read_csv
from regzoo.report.tables import BEFORE
from regzoo_tools.statistics import bias_variance, known

Facts = Mapping[str, Any]
#: Case, or case and label → repeat → value; NaN where it could not be measured.
Values = dict[str, dict[int, float]]

BIAS, VARIANCE = "bias_mm2", "variance_mm2"
#: The columns of the tables of an evaluation that are not numbers.
_WORDS = ("case", "label", "name")


@dataclass(frozen=True)
class Label:
    """One label of one case, as one cell measured it; NaN where it is absent.

    Attributes:
        index: its channel; 0 is the gland, if there is one.
        values: the columns of ``labels.csv``.
        error: (3,), from the fixed to the warped centroid, RAS mm.
        fixed: (3,), the fixed centroid, RAS mm.
    """

    case: str
    index: int
    name: str
    repeat: int
    values: Mapping[str, float]
    error: np.ndarray
    fixed: np.ndarray


@dataclass
class Group:
    """A method in one setting: the cells that differ only in their fold and their repeat.

    Attributes:
        size: the limit of the training set, or None.
        cells: the facts of its cells.
        metrics: metric → its values. ``bias_mm2`` and ``variance_mm2`` have a value for each label of each case.
    """

    data: str
    method: str
    folds: int | None
    size: int | None
    cells: list[Facts] = field(default_factory=list)
    metrics: dict[str, Values] = field(default_factory=dict)
    labels: list[Label] = field(default_factory=list)

    @property
    def trained_on(self) -> float:
        """Mean number of training cases; NaN for a baseline."""
        return mean(cell["trained_on"] for cell in self.cells if cell["trained_on"] is not None)

    @property
    def training_minutes(self) -> float:
        """Mean time of a training; NaN for a baseline."""
        times = [cell["training_seconds"] for cell in self.cells if cell["training_seconds"] is not None]
        return mean(times) / 60

    @property
    def repeats(self) -> list[int]:
        """The repeats that were measured."""
        return sorted({cell["repeat"] for cell in self.cells})

    def values(self, metric: str) -> dict[str, float]:
        """The value of each case: the mean over the repeats in which it could be measured."""
        return {case: mean(runs.values()) for case, runs in self.metrics.get(metric, {}).items()}

    def known(self, metric: str) -> np.ndarray:
        """The values of all cases that could be measured."""
        return known(self.values(metric).values())

    def in_repeat(self, metric: str, repeat: int) -> dict[str, float]:
        """The value of each case in one repeat."""
        return {case: runs[repeat] for case, runs in self.metrics.get(metric, {}).items() if repeat in runs}


def mean(values: Iterable[float]) -> float:
    """The mean of the finite values, to nine digits; NaN without any.

    Without rounding, the means of equal values could differ in their last bits, and a test of ranks would count that.
    """
    found = known(values)
    return float(f"{found.mean():.9g}") if found.size else float("nan")


def read_groups(cells: Sequence[Facts], folder: Path) -> list[Group]:
    """Read what finished cells measured, from their facts and the study's folder.

    Raises:
        RegZooError: a table is missing or cannot be read, or holds a case that another fold measured as well.
    """
    groups: dict[tuple[Any, ...], Group] = {}
    for cell in cells:
        key = (cell["data"], cell["method"], cell["folds"], cell["training_size"])
        group = groups.setdefault(key, Group(*key))
        group.cells.append(cell)
        evaluation = folder / "cells" / cell["cell"] / "evaluation"
        _add_cases(group, cell["repeat"], evaluation / "cases.csv")
        if (evaluation / "labels.csv").is_file():
            group.labels += _labels(cell["repeat"], evaluation)
    for group in groups.values():
        _decompose(group)
    return list(groups.values())


def _table(path: Path) -> list[tuple[dict[str, str], dict[str, float]]]:
    """For each row of a table, its words and its numbers."""
    try:
        columns = read_csv(path)
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        words = [{key: row.pop(key) for key in _WORDS if key in row} for row in rows]
        numbers = [{key: float(cell or "nan") for key, cell in row.items()} for row in rows]
    except (OSError, ValueError, IndexError) as error:
        fix = "remove the folder of this cell, and run the study again"
        raise bad_file(path, "is missing or is not a table of an evaluation", fix) from error
    return list(zip(words, numbers, strict=True))


def _add_cases(group: Group, repeat: int, path: Path) -> None:
    for words, numbers in _table(path):
        for metric, value in numbers.items():
            runs = group.metrics.setdefault(metric, {}).setdefault(words["case"], {})
            if repeat in runs:
                fix = "remove the folder of one of the two cells, and run the study again"
                raise bad_file(path, f"case {words['case']} was measured in another fold of this repeat too", fix)
            runs[repeat] = value


def _labels(repeat: int, evaluation: Path) -> list[Label]:
    places: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    if (evaluation / "centroids.csv").is_file():
        for words, numbers in _table(evaluation / "centroids.csv"):
            fixed, warped = (np.array([numbers[f"{side}_{a}_mm"] for a in "xyz"]) for side in ("fixed", "warped"))
            places[words["case"], words["label"]] = (warped - fixed, fixed)
    unknown = (np.full(3, np.nan), np.full(3, np.nan))
    return [
        Label(w["case"], int(w["label"]), w["name"], repeat, numbers, *places.get((w["case"], w["label"]), unknown))
        for w, numbers in _table(evaluation / "labels.csv")
    ]


def _decompose(group: Group) -> None:
    """Add bias and variance over the repeats, for each label of each case that at least two repeats measured."""
    errors: dict[str, list[np.ndarray]] = {}
    for label in group.labels:
        if not np.isnan(label.error).any():
            errors.setdefault(f"{label.case}, {label.name} ({label.index})", []).append(label.error)
    for place, vectors in errors.items():
        if len(vectors) > 1:
            bias, variance = bias_variance(np.stack(vectors))
            group.metrics.setdefault(BIAS, {})[place] = {0: bias}
            group.metrics.setdefault(VARIANCE, {})[place] = {0: variance}


def main_setting(groups: Sequence[Group]) -> list[Group]:
    """Of several numbers of folds or training sizes, the groups with the largest training set, and the baselines."""
    trained = [group for group in groups if not np.isnan(group.trained_on)]
    if not trained:
        return list(groups)
    largest = max(trained, key=lambda group: group.trained_on)
    setting = (largest.folds, largest.size)
    same_folds = {group.method for group in groups if group.folds == largest.folds}

    def belongs(group: Group) -> bool:
        if not np.isnan(group.trained_on):
            return (group.folds, group.size) == setting
        return group.folds == largest.folds or group.method not in same_folds

    return [group for group in groups if belongs(group)]


def unregistered(groups: Sequence[Group]) -> list[Group]:
    """The cases before registration, as groups; several if trained methods pre-align differently."""
    found: list[Group] = []
    for group in [group for group in groups if not np.isnan(group.trained_on)] or groups:
        before = {m.removeprefix(BEFORE): dict(v) for m, v in group.metrics.items() if m.startswith(BEFORE)}
        same = next((other for other in found if _agree(before, other.metrics)), None)
        if same is not None:
            for metric, values in before.items():
                same.metrics[metric] = values | same.metrics.get(metric, {})
        elif before:
            name = "unregistered" if not found else f"unregistered, as for {group.method}"
            found.append(Group(group.data, name, None, None, metrics=before))
    return found


def _agree(first: Mapping[str, Values], second: Mapping[str, Values]) -> bool:
    """Whether two groups have the same values, to the digits of a table, for each case that both have."""
    pairs = [
        (mean(runs.values()), mean(second[metric][case].values()))
        for metric in first.keys() & second.keys()
        for case, runs in first[metric].items()
        if case in second[metric]
    ]
    one, other = np.array(pairs).reshape(-1, 2).T
    return np.allclose(one, other, rtol=1e-4, atol=1e-4, equal_nan=True)
