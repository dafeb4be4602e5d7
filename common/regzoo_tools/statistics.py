"""Comparisons of methods that were measured on the same cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import false_discovery_control, mannwhitneyu, norm, tukey_hsd, wilcoxon

#: Up to this many pairs, the distribution of the signed ranks is computed; beyond, it is approximated by a normal one.
EXACT_PAIRS = 50


def known(values: Iterable[float]) -> np.ndarray:
    """The values that are finite (N,)."""
    found = np.array(list(values), dtype=np.float64)
    return found[np.isfinite(found)]


def median(values: np.ndarray) -> float:
    """The median; NaN without any value."""
    return float(np.median(values)) if values.size else float("nan")


class Estimate(NamedTuple):
    """An estimate, and the limits of its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


def paired(first: Mapping[str, float], second: Mapping[str, float]) -> np.ndarray:
    """Both values of each case that was measured in both (2, N).

    Args:
        first, second: case → value; NaN where it could not be measured.
    """
    both = np.array([(first[case], second[case]) for case in first if case in second], dtype=np.float64)
    return both[np.isfinite(both).all(axis=1)].T if both.size else np.empty((2, 0))


def paired_differences(first: Mapping[str, float], second: Mapping[str, float]) -> np.ndarray:
    """First minus second for each case that was measured in both (N,); see `paired`."""
    one, other = paired(first, second)
    return one - other


def paired_wilcoxon(differences: np.ndarray) -> float:
    """p of the two-sided Wilcoxon signed-rank test of paired differences (N,); NaN if none differs from zero.

    Zeros have no rank, as in Wilcoxon's own test.
    """
    return float(wilcoxon(differences).pvalue) if differences.any() else float("nan")


def hodges_lehmann(differences: np.ndarray) -> Estimate:
    """The Hodges–Lehmann estimate of a paired difference, with the interval that belongs to Wilcoxon's signed ranks.

    The estimate is the median of the Walsh averages, (dᵢ + dⱼ)/2 for i ≤ j, and the limits are two of these averages.
    The interval is exact for up to `EXACT_PAIRS` differences without ties; with ties it is conservative.

    Args:
        differences: (N,); zeros count. Both limits are NaN if there are too few for the interval, and all three values
            if there are none.

    Source: Hollander, Wolfe and Chicken 2014, Nonparametric Statistical Methods, sections 3.2 and 3.3.
    """
    n = len(differences)
    averages = np.sort(((differences[:, None] + differences) / 2)[np.triu_indices(n)])
    tail = 0.025
    if n <= EXACT_PAIRS:
        # The chance of each sum of ranks: every rank counts with a chance of one half.
        chances = np.ones(1)
        for rank in range(1, n + 1):
            chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
        left_out = int((chances.cumsum() <= tail).sum())
    else:
        spread = np.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        left_out = int(np.floor(n * (n + 1) / 4 - norm.ppf(1 - tail) * spread + 0.5))  # continuity correction
    limits = (averages[left_out - 1], averages[-left_out]) if left_out >= 1 else (np.nan, np.nan)
    return Estimate(median(averages), float(limits[0]), float(limits[1]))


def mann_whitney(first: np.ndarray, second: np.ndarray, best: Literal["low", "high"]) -> float:
    """p of the one-sided Mann–Whitney U test: are the first values better than the second?

    Args:
        first, second: at least one value each.
        best: whether low values (errors) or high values are good.

    Source: Pérez de Frutos et al. 2023, section "Statistical tests".
    """
    return float(mannwhitneyu(first, second, alternative="less" if best == "low" else "greater").pvalue)


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

    difference: float
    low: float
    high: float
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
    tables = (found.statistic, interval.low, interval.high, found.pvalue)
    pairs = zip(*np.triu_indices(len(names), 1), strict=True)
    return {(names[i], names[j]): RangeTest(*(float(values[i, j]) for values in tables)) for i, j in pairs}


def bias_variance(errors: np.ndarray) -> tuple[float, float]:
    """Squared bias and variance (mm²) of a point that several trainings predicted; their sum is the mean squared error.

    Args:
        errors: (R, 3), from the true position to each prediction, mm.

    Returns:
        The squared distance of the mean prediction to the truth, and the mean squared distance of the predictions to
        their mean.

    Source: Hu et al. 2019, section 2.3.
    """
    mean = errors.mean(axis=0)
    return float(mean @ mean), float(np.square(errors - mean).sum(axis=1).mean())
