"""Side-by-side statistics of two methods on the same cases."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.stats import wilcoxon


class PairedTest(NamedTuple):
    """Outcome of a paired comparison: number of pairs, median of their differences, p value."""

    n: int
    difference: float
    p: float


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
    first, second = (np.asarray(list(values), dtype=np.float64) for values in (a, b))
    if first.shape != second.shape:
        raise ValueError(f"{first.size} and {second.size} values do not form pairs")
    differences = first - second
    differences = differences[~np.isnan(differences)]
    if not differences.any():
        return PairedTest(differences.size, 0.0 if differences.size else float("nan"), float("nan"))
    p = wilcoxon(differences, zero_method="wilcox", alternative="two-sided").pvalue
    return PairedTest(differences.size, float(np.median(differences)), float(p))
