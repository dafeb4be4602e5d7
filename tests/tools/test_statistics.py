"""Comparisons of methods: against examples of textbooks and papers, against SciPy and by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from regzoo_tools.statistics import (
    benjamini_hochberg,
    bias_variance,
    hodges_lehmann,
    mann_whitney,
    median,
    paired_differences,
    paired_wilcoxon,
    tukey_range,
)
from scipy.stats import wilcoxon


def cases(values: Iterable[float]) -> dict[str, float]:
    return {f"case{number}": value for number, value in enumerate(values)}


def test_paired_wilcoxon_matches_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.gamma(3, size=(2, 80))
    expected = wilcoxon(a, b, alternative="two-sided")
    gaps_a, gaps_b = np.insert(a, 3, np.nan), np.insert(b, 3, 1.0)
    gaps_a, gaps_b = np.append(gaps_a, [2.0, np.nan]), np.append(gaps_b, [np.nan, np.nan])
    # Each has a case of its own, and the order of the cases does not matter.
    first, second = cases(gaps_a) | {"more": 9.0}, {"else": 9.0} | dict(reversed(cases(gaps_b).items()))
    found = paired_differences(first, second)
    assert found == pytest.approx(a - b)
    assert paired_wilcoxon(found) == pytest.approx(expected.pvalue)
    other_way = paired_differences(second, first)
    assert sorted(other_way) == sorted(-found) and paired_wilcoxon(other_way) == pytest.approx(expected.pvalue)
    assert median(other_way) == pytest.approx(-np.median(a - b))


def test_paired_wilcoxon_by_hand() -> None:
    # Six differences of one sign: of the 2^6 equally likely signs two are as extreme.
    assert paired_wilcoxon(np.arange(1.0, 7)) == 2 / 64
    # Ranks 1 to 4 with the smallest negative: W = 1, and the signs with a rank sum of 0 or 1 are 2 of 16, twice.
    assert paired_wilcoxon(np.array([-1.0, 2, 3, 4])) == 4 / 16


def test_paired_wilcoxon_of_little() -> None:
    nothing = paired_differences({}, {})
    assert nothing.size == 0 and math.isnan(median(nothing)) and math.isnan(paired_wilcoxon(nothing))
    assert paired_differences({"a": float("nan")}, {"a": 1.0}).size == 0
    same = paired_differences(cases([1.0, 2.0, float("nan")]), cases([1.0, 2.0, 3.0]))
    assert same.tolist() == [0, 0] and math.isnan(paired_wilcoxon(same))
    assert paired_wilcoxon(np.ones(1)) == 1


def test_hodges_lehmann_of_a_textbook() -> None:
    """Hollander, Wolfe and Chicken 2014, examples 3.1, 3.3 and 3.4: nine patients before and after a tranquillizer."""
    before = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
    after = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])
    # The distribution has few values: the book's interval of 96 % is also the shortest of at least 95 %.
    assert hodges_lehmann(after - before) == pytest.approx((-0.46, -0.786, -0.010))
    assert paired_wilcoxon(after - before) == pytest.approx(2 * 0.0195, abs=1e-4)


@pytest.mark.parametrize("n", [8, 13, 50, 51, 120])
def test_the_interval_holds_what_the_test_does_not_reject(n: int) -> None:
    differences = np.random.default_rng(n).gamma(2, size=n) - 1.3
    found = hodges_lehmann(differences)
    assert found.low < found.estimate < found.high
    how = {"method": "exact"} if n <= 50 else {"method": "approx", "correction": True}
    for limit, inwards in ((found.low, 1e-9), (found.high, -1e-9)):
        assert wilcoxon(differences - limit - inwards, **how).pvalue > 0.05
        assert wilcoxon(differences - limit + inwards, **how).pvalue <= 0.05


def test_hodges_lehmann_of_little() -> None:
    # Five differences of one sign have p = 2/32, so no interval of 95 % is limited.
    found = hodges_lehmann(np.arange(1.0, 6))
    assert found.estimate == 3 and math.isnan(found.low) and math.isnan(found.high)
    assert hodges_lehmann(np.arange(1.0, 7)) == (3.5, 1, 6)
    assert np.isnan(hodges_lehmann(np.empty(0))).all()


def test_mann_whitney_of_a_textbook() -> None:
    """Hollander, Wolfe and Chicken 2014, example 4.1: permeability of the amnion at term and at 12 to 26 weeks."""
    at_term = np.array([0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46])
    earlier = np.array([1.15, 0.88, 0.90, 0.74, 1.21])
    p = mann_whitney(at_term, earlier, "high")
    assert p == pytest.approx(0.1272, abs=5e-5)
    assert mann_whitney(earlier, at_term, "low") == pytest.approx(p)


def test_benjamini_and_hochberg_of_their_paper() -> None:
    """Their section 3.2: of 15 hypotheses on a treatment of infarction, the procedure rejects four at 0.05."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    p += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]
    found = benjamini_hochberg(np.array([*p[::-1], np.nan]))[::-1]
    assert np.isnan(found[0])
    assert (found[1:] <= 0.05).tolist() == [True] * 4 + [False] * 11
    # The largest p that is at most its share of 0.05 is the fourth, 0.0095 < 4/15 · 0.05 = 0.013.
    assert found[4] == pytest.approx(0.0095 * 15 / 4)


def test_tukeys_range_test_of_a_textbook() -> None:
    """Montgomery and Runger 2003, example 13-1 and table S13-2: strength of paper by its share of hardwood."""
    strength = {
        "5 %": np.array([7.0, 8, 15, 11, 9, 10]),
        "10 %": np.array([12.0, 17, 13, 18, 19, 15]),
        "15 %": np.array([14.0, 18, 19, 17, 16, 18]),
        "20 %": np.array([19.0, 25, 22, 23, 18, 20]),
    }
    found = tukey_range({**strength, "none": np.ones(1)})
    published = {
        ("5 %", "10 %"): (-9.791, -1.542),
        ("5 %", "15 %"): (-11.124, -2.876),
        ("5 %", "20 %"): (-15.291, -7.042),
        ("10 %", "15 %"): (-5.458, 2.791),
        ("10 %", "20 %"): (-9.624, -1.376),
        ("15 %", "20 %"): (-8.291, -0.042),
    }
    assert found.keys() == published.keys()
    for pair, limits in published.items():
        assert found[pair][1:3] == pytest.approx(limits, abs=3e-3)  # Minitab rounds q to 3.96
        assert (found[pair].p < 0.05) == (pair != ("10 %", "15 %"))
    assert tukey_range({"one": np.arange(3.0)}) == {}


def test_bias_and_variance_by_hand() -> None:
    # Four predictions around (3, 4, 0), each 2 mm from it.
    errors = np.array([[5.0, 4, 0], [1, 4, 0], [3, 6, 0], [3, 2, 0]])
    assert bias_variance(errors) == (25, 4)
    assert np.square(errors).sum(1).mean() == 29
    assert bias_variance(errors[:1]) == (41, 0)
