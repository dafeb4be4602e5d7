"""Paired comparisons: against SciPy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from regzoo_tools.statistics import paired_wilcoxon
from scipy.stats import wilcoxon


def test_paired_wilcoxon_matches_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.gamma(3, size=(2, 80))
    expected = wilcoxon(a, b, alternative="two-sided")
    gaps_a, gaps_b = np.insert(a, 3, np.nan), np.insert(b, 3, 1.0)
    gaps_a, gaps_b = np.append(gaps_a, [2.0, np.nan]), np.append(gaps_b, [np.nan, np.nan])
    found = paired_wilcoxon(gaps_a.tolist(), gaps_b)
    assert found.n == 80
    assert found.p == pytest.approx(expected.pvalue)
    assert found.difference == pytest.approx(np.median(a - b))
    other_way = paired_wilcoxon(gaps_b, gaps_a)
    assert (other_way.n, other_way.difference, other_way.p) == pytest.approx((80, -found.difference, found.p))


def test_paired_wilcoxon_by_hand() -> None:
    # Six differences of one sign: of the 2^6 equally likely signs two are as extreme.
    assert paired_wilcoxon([2, 4, 6, 8, 10, 12], [1, 2, 3, 4, 5, 6]) == (6, 3.5, 2 / 64)
    # Ranks 1 to 4 with the smallest negative: W = 1, and the signs with a rank sum of 0 or 1 are 2 of 16, twice.
    assert paired_wilcoxon([0, 2, 3, 4], [1, 0, 0, 0]) == (4, 2.5, 4 / 16)


def test_paired_wilcoxon_of_little() -> None:
    nothing = paired_wilcoxon([], [])
    assert nothing.n == 0
    assert math.isnan(nothing.difference)
    assert math.isnan(nothing.p)
    assert paired_wilcoxon([float("nan")], [1.0]).n == 0
    same = paired_wilcoxon([1.0, 2.0, float("nan")], [1.0, 2.0, 3.0])
    assert (same.n, same.difference) == (2, 0)
    assert math.isnan(same.p)
    assert paired_wilcoxon([1.0], [0.0]) == (1, 1, 1)
    with pytest.raises(ValueError, match="2 and 1"):
        paired_wilcoxon([1.0, 2.0], [1.0])
