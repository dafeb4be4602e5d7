"""Summaries of values per case."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.stats import wilcoxon

#: The percentiles that the field reports beside the median (Hu et al. 2018, Table 1).
PERCENTILES = (10, 25, 75, 90)


def percentile_summary(values: Iterable[float]) -> dict[str, float | int]:
    """Summary of some values; NaN stands for a case that could not be measured.

    Args:
        values: one per case.

    Returns:
        ``n`` (measured), ``missing`` (NaN), ``mean``, ``std`` (of the sample, n − 1), ``median``, ``p10``, ``p25``,
        ``p75``, ``p90``; NaN where there are too few values.
    """
    everything = np.asarray(list(values), dtype=np.float64)
    known = everything[~np.isnan(everything)]
    summary: dict[str, float | int] = {"n": known.size, "missing": everything.size - known.size}
    if known.size == 0:
        names = ("mean", "std", "median", *(f"p{p}" for p in PERCENTILES))
        return summary | dict.fromkeys(names, float("nan"))
    summary["mean"] = float(known.mean())
    summary["std"] = float(known.std(ddof=1)) if known.size > 1 else float("nan")
    summary["median"] = float(np.median(known))
    for percent, value in zip(PERCENTILES, np.percentile(known, PERCENTILES), strict=True):
        summary[f"p{percent}"] = float(value)
    return summary


class PairedTest(NamedTuple):
    """Outcome of a paired comparison: pairs that could be compared, median of their differences, p value."""

    n: int
    difference: float
    p: float


def paired_wilcoxon(a: Iterable[float], b: Iterable[float]) -> PairedTest:
    """Two-sided Wilcoxon signed-rank test of paired values.

    Pairs that do not differ are counted, but have no rank (Wilcoxon's own treatment of zeros).

    Args:
        a: one value per case.
        b: the values of the same cases in the same order; a case that is NaN in either is left out.

    Returns:
        Number of pairs, median of ``a - b``, p; p is NaN where no pair differs.

    Raises:
        ValueError: the two are not equally long.
    """
    first, second = (np.asarray(list(values), dtype=np.float64) for values in (a, b))
    if first.shape != second.shape:
        raise ValueError(f"{first.size} and {second.size} values are no pairs")
    differences = first - second
    differences = differences[~np.isnan(differences)]
    if not differences.any():
        return PairedTest(differences.size, 0.0 if differences.size else float("nan"), float("nan"))
    p = wilcoxon(differences, zero_method="wilcox", alternative="two-sided").pvalue
    return PairedTest(differences.size, float(np.median(differences)), float(p))
