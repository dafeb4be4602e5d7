"""The scores of µ-RegPro and Learn2Reg against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from regzoo_tools.challenge import (
    CaseValues,
    challenge_measures,
    challenge_score,
    rank_scores,
    robust_mean,
    robust_quantile,
)

NAN = float("nan")


def test_robust_mean_keeps_the_best_share() -> None:
    # 68 % of ten values is seven of them.
    assert robust_mean(np.arange(10.0), "low") == pytest.approx(3)
    assert robust_mean(np.arange(10.0), "high") == pytest.approx(6)
    assert robust_mean([4.0], "low") == 4
    assert robust_mean([NAN, 5.0, 1.0, 3.0], "low") == pytest.approx(2)
    assert math.isnan(robust_mean([NAN], "low"))


CASES = [
    CaseValues(dsc=0.9, landmarks=[3.0, 4.0, NAN], hd95=2.0),
    CaseValues(dsc=0.8, landmarks=[1.0, 1.0, 7.0], hd95=4.0),
    CaseValues(dsc=0.4, landmarks=[NAN, NAN, NAN], hd95=NAN),
]


def test_measures_by_hand() -> None:
    found = challenge_measures(CASES)
    first, second = math.sqrt(12.5), math.sqrt(17.0)
    assert found["DSC"] == pytest.approx(0.7)
    assert found["RDSC"] == pytest.approx(0.85)  # two of three cases
    assert found["TRE"] == pytest.approx((first + second) / 2)
    assert found["RTRE"] == pytest.approx(first)  # one of two cases with landmarks
    assert found["RTs"] == pytest.approx((3 + 1) / 2)  # one of two landmarks, two of three
    assert found["HD95"] == pytest.approx(3)


def test_score_of_perfect_unchanged_and_worse_registration() -> None:
    before = [CaseValues(0.5, [10.0, 10.0], 8.0)] * 3
    perfect = [CaseValues(1.0, [0.0, 0.0], 0.0)] * 3
    assert challenge_score(perfect, before)["score"] == pytest.approx(1)
    assert challenge_score(before, before)["score"] == pytest.approx(0.3 * 0.5)
    worse = [CaseValues(0.5, [30.0, 30.0], 80.0)] * 3
    assert challenge_score(worse, before)["score"] == pytest.approx(0.3 * 0.5)
    half = [CaseValues(0.8, [5.0, 5.0], 2.0)] * 3
    # .2·.8 + .1·.8 + .3·.5 + .1·.5 + .1·.5 + .2·.75
    assert challenge_score(half, before)["score"] == pytest.approx(0.64)


def test_robust_quantile_looks_at_the_worse_cases() -> None:
    assert robust_quantile([*range(11), NAN], "high") == pytest.approx(3)
    assert robust_quantile([*range(11), NAN], "low") == pytest.approx(7)
    assert math.isnan(robust_quantile([NAN], "low"))


def test_rank_scores_share_the_places_of_methods_with_as_many_wins() -> None:
    """Six methods with 0, 2, 4, 3, 4 and 0 wins, the example at the end of Learn2Reg's own script."""
    # Five cases cannot be significant, p = 2/32; six of one sign are, p = 2/64.
    cases = [f"case{i}" for i in range(6)]
    level = {"a": 5.0, "b": 3.0, "c": 1.0, "d": 2.0, "e": 1.0, "f": 5.0}
    errors = {name: {case: value + 0.1 * i for i, case in enumerate(cases)} for name, value in level.items()}
    expected = {"a": 0.19, "b": 0.46, "c": 0.91, "d": 0.64, "e": 0.91, "f": 0.19}
    assert rank_scores(errors, "low") == pytest.approx(expected)
    agreement = {name: {case: -value for case, value in values.items()} for name, values in errors.items()}
    assert rank_scores(agreement, "high") == pytest.approx(expected)
    fewer = {name: dict(list(values.items())[:5]) for name, values in errors.items()}
    assert list(rank_scores(fewer, "low").values()) == pytest.approx([0.55] * 6)
    assert rank_scores({"only": fewer["a"]}, "low") == {"only": 1}
    unmeasured = {"a": fewer["a"], "b": fewer["b"], "none": {"case0": NAN}}
    assert rank_scores(unmeasured, "low") == pytest.approx({"a": 0.775, "b": 0.775, "none": 0.1})
