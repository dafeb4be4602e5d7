"""Comparisons of methods that were measured on the same cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import false_discovery_control, mannwhitneyu, norm, tukey_hsd, wilcoxon

#: With at most this many pairs, the distribution of the signed ranks is computed, not approximated by a normal one.
EXACT_PAIRS = 50


class PairedTest(NamedTuple):
    """Outcome of a paired comparison: number of pairs, median of their differences, p value."""

    n: int
    difference: float
    p: float


class Estimate(NamedTuple):
    """An estimate, and the limits of its confidence interval."""

    value: float
    low: float
    high: float


def paired_wilcoxon(a: Iterable[float], b: Iterable[float]) -> PairedTest:
    """Two-sided Wilcoxon signed-rank test of paired values.

    Pairs without a difference are counted, but have no rank (Wilcoxon's own treatment of zeros).

    Args:
        a: one value per case.
        b: the values of the same cases in the same order; a case that is NaN in either is skipped.

    Returns:
        Number of pairs, median of ``a - b``, p; p is NaN where no pair differs.

    Raises:
        ValueError: the two have different lengths.
    """
    differences = paired_differences(a, b)
    if not differences.any():
        return PairedTest(differences.size, 0.0 if differences.size else float("nan"), float("nan"))
    p = wilcoxon(differences, zero_method="wilcox", alternative="two-sided").pvalue
    return PairedTest(differences.size, float(np.median(differences)), float(p))


def paired_differences(a: Iterable[float], b: Iterable[float]) -> np.ndarray:
    """``a - b`` without the cases that are NaN in either.

    Raises:
        ValueError: the two have different lengths.
    """
    first, second = (np.asarray(list(values), dtype=np.float64) for values in (a, b))
    if first.shape != second.shape:
        raise ValueError(f"{first.size} and {second.size} values do not form pairs")
    differences = first - second
    return differences[~np.isnan(differences)]


def hodges_lehmann(differences: np.ndarray, confidence: float = 0.95) -> Estimate:
    """The Hodges–Lehmann estimate of a paired difference, with the interval that belongs to Wilcoxon's signed ranks.

    The estimate is the median of the Walsh averages, (dᵢ + dⱼ)/2 for i ≤ j, and the limits are two of these averages.
    The interval is exact for up to `EXACT_PAIRS` differences without ties, where its confidence is at least the one
    asked for; with ties it is conservative.

    Args:
        differences: at least one; zeros count.
        confidence: of the interval. Both limits are NaN if there are too few differences for it.

    Source: Hollander, Wolfe and Chicken 2014, Nonparametric Statistical Methods, sections 3.2 and 3.3.
    """
    n = len(differences)
    averages = np.sort(((differences[:, None] + differences) / 2)[np.triu_indices(n)])
    tail = (1 - confidence) / 2
    if n <= EXACT_PAIRS:
        # The chance of each sum of ranks: every rank counts with a chance of one half.
        chances = np.ones(1)
        for rank in range(1, n + 1):
            chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
        left_out = int((chances.cumsum() <= tail).sum())
    else:
        spread = np.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        left_out = int(np.floor(n * (n + 1) / 4 - norm.ppf(1 - tail) * spread + 0.5))  # continuity correction
    if left_out < 1:
        return Estimate(float(np.median(averages)), float("nan"), float("nan"))
    return Estimate(float(np.median(averages)), float(averages[left_out - 1]), float(averages[-left_out]))


def mann_whitney(
    questions: Sequence[tuple[np.ndarray, np.ndarray]], best: Literal["low", "high"]
) -> tuple[np.ndarray, np.ndarray]:
    """One-sided Mann–Whitney U tests: are the first values of each question better than the second?

    Args:
        questions: values of the one that should be better, and of the other.
        best: whether low values (errors) or high values are good.

    Returns:
        p of each question, and p after the correction of Benjamini and Hochberg for the number of questions. NaN, which
        does not count as a question, if either has no values.

    Source: Pérez de Frutos et al. 2023, section "Statistical tests".
    """
    side = "less" if best == "low" else "greater"
    p = np.array([mannwhitneyu(a, b, alternative=side).pvalue if len(a) and len(b) else np.nan for a, b in questions])
    return p, benjamini_hochberg(p)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """p values corrected for their number, so that they bound the false discovery rate; NaN stays and does not count.

    Source: Benjamini and Hochberg 1995, Controlling the false discovery rate.
    """
    corrected, known = np.full(len(p), np.nan), ~np.isnan(p)
    if known.any():
        corrected[known] = false_discovery_control(p[known], method="bh")
    return corrected


class RangeTest(NamedTuple):
    """Tukey's range test of two groups: the difference of their means with its simultaneous interval, and p."""

    difference: Estimate
    p: float


def tukey_range(groups: Mapping[str, np.ndarray]) -> dict[tuple[str, str], RangeTest]:
    """Tukey's range test between all pairs of groups, with simultaneous 95 % confidence intervals.

    Returns:
        For each pair of names, in their order, the test of the first minus the second. Groups of fewer than two values
        are left out.

    Source: Pérez de Frutos et al. 2023, section "Statistical tests".
    """
    names = [name for name, values in groups.items() if len(values) > 1]
    if len(names) < 2:
        return {}
    found = tukey_hsd(*(groups[name] for name in names))
    interval = found.confidence_interval(0.95)
    return {
        (names[i], names[j]): RangeTest(
            Estimate(float(found.statistic[i, j]), float(interval.low[i, j]), float(interval.high[i, j])),
            float(found.pvalue[i, j]),
        )
        for i in range(len(names))
        for j in range(i + 1, len(names))
    }


class BiasVariance(NamedTuple):
    """Squared bias and variance of a predicted position, mm²; their sum is the mean squared error."""

    bias: float
    variance: float


def bias_variance(errors: np.ndarray) -> BiasVariance:
    """Decompose the error of one point that several trainings predicted.

    Args:
        errors: (R, 3), from the true position to each prediction, mm.

    Returns:
        The squared distance of the mean prediction to the truth, and the mean squared distance of the predictions to
        their mean.

    Source: Hu et al. 2019, section 2.3.
    """
    mean = errors.mean(axis=0)
    return BiasVariance(float(mean @ mean), float(np.square(errors - mean).sum(axis=1).mean()))
