"""The scores of the challenges µ-RegPro (MICCAI 2023) and Learn2Reg, from values per case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from regzoo_tools.statistics import known, paired_differences
from scipy.stats import rankdata, wilcoxon

#: Share of cases, or of a case's landmarks, that the robust measures keep.
ROBUST_SHARE = 0.68

_WEIGHTS = {"DSC": 0.2, "RDSC": 0.1, "TRE": 0.3, "RTRE": 0.1, "RTs": 0.1, "HD95": 0.2}
_ERRORS = ("TRE", "RTRE", "RTs", "HD95")


@dataclass(frozen=True)
class CaseValues:
    """What the score needs of one case.

    Attributes:
        dsc: Dice of the gland, 0 to 1.
        landmarks: error of each landmark, NaN where it is not labelled.
        hd95: 95th percentile of the Hausdorff distance of the gland.
    """

    dsc: float
    landmarks: Sequence[float]
    hd95: float


def robust_mean(values: Sequence[float] | np.ndarray, best: Literal["low", "high"]) -> float:
    """Mean of the best `ROBUST_SHARE` of the values, at least one; NaN ignored, NaN when there is no value."""
    return _mean(_best(values, best))


def challenge_measures(cases: Sequence[CaseValues]) -> dict[str, float]:
    """DSC, RDSC, TRE, RTRE, RTs and HD95 over all cases, errors in the unit of the case values.

    A case's TRE is the root mean square over its landmarks; RTs takes its best 68 % of landmarks first.
    """
    tre = [_rms(case.landmarks) for case in cases]
    dsc = [case.dsc for case in cases]
    return {
        "DSC": _mean(dsc),
        "RDSC": robust_mean(dsc, "high"),
        "TRE": _mean(tre),
        "RTRE": robust_mean(tre, "low"),
        "RTs": _mean([_rms(_best(case.landmarks, "low")) for case in cases]),
        "HD95": _mean([case.hd95 for case in cases]),
    }


def challenge_score(registered: Sequence[CaseValues], unregistered: Sequence[CaseValues]) -> dict[str, float]:
    """The challenge's measures and its score.

    Args:
        registered: values of each case after registration.
        unregistered: values of the same cases before it; the error measures are divided by theirs and clipped to
            [0, 1], so a method gains nothing by making an error larger than doing nothing would.

    Returns:
        The measures of `challenge_measures` for the registered cases (not divided) and ``score``, 0 to 1, where more
        is better: .2 DSC + .1 RDSC + .3 (1 − TRE) + .1 (1 − RTRE) + .1 (1 − RTs) + .2 (1 − HD95).

    Source: assessment criteria and evaluation code of µ-RegPro (muregpro.github.io). Where the page would divide by
    the largest landmark error and the code divides by the same measure before registration, this follows the code.
    """
    measures, before = challenge_measures(registered), challenge_measures(unregistered)
    goodness = dict(measures)
    for name in _ERRORS:
        goodness[name] = 1 - float(np.clip(np.divide(measures[name], before[name]), 0, 1))
    return {**measures, "score": sum(weight * goodness[name] for name, weight in _WEIGHTS.items())}


def robust_quantile(values: Sequence[float] | np.ndarray, best: Literal["low", "high"]) -> float:
    """Learn2Reg's robust measure of a metric: its 30th percentile over the cases, or the 70th of an error; NaN ignored.

    `best` says whether low values (errors) or high values are good.
    """
    found = known(values)
    return float(np.quantile(found, 0.7 if best == "low" else 0.3)) if found.size else float("nan")


def rank_scores(methods: Mapping[str, Mapping[str, float]], best: Literal["low", "high"]) -> dict[str, float]:
    """Learn2Reg's rank score of each method for one metric, 0.1 to 1, where more is better.

    A method wins against another if it is significantly better in a Wilcoxon signed-rank test, p < 0.05. The ranks of
    the numbers of wins are spread evenly over 0.1 to 1; ties share their mean. Methods without any value come last.

    Args:
        methods: method → case → value; NaN where it could not be measured.
        best: whether low values (errors) or high values are good.

    Source: the ranking of Learn2Reg (Hering et al. 2023; ranking/ in github.com/MDL-UzL/L2R). Its text asks for signed
    ranks; its script tests rank sums, which ignore that the cases are the same.
    """
    wins = [
        sum(_wins(values, other, best) for other in methods.values()) if not np.isnan(_mean([*values.values()])) else -1
        for values in methods.values()
    ]
    ranks = rankdata(wins)
    spread = (ranks - 1) / (len(ranks) - 1) if len(ranks) > 1 else np.ones(len(ranks))
    return dict(zip(methods, (0.1 + 0.9 * spread).tolist(), strict=True))


def _wins(first: Mapping[str, float], second: Mapping[str, float], best: Literal["low", "high"]) -> bool:
    differences = paired_differences(first, second)
    if not differences.any():
        return False
    # One side of the two-sided test at 0.05.
    return bool(wilcoxon(differences, alternative="less" if best == "low" else "greater").pvalue < 0.025)


def _best(values: Sequence[float] | np.ndarray, best: Literal["low", "high"]) -> np.ndarray:
    found = np.sort(known(values))
    if best == "high":
        found = found[::-1]
    return found[: max(round(len(found) * ROBUST_SHARE), 1)]


def _mean(values: Sequence[float] | np.ndarray) -> float:
    found = known(values)
    return float(found.mean()) if found.size else float("nan")


def _rms(values: Sequence[float] | np.ndarray) -> float:
    return _mean(np.square(np.asarray(values, dtype=np.float64))) ** 0.5
