"""Tables and statistical tests of the ablation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from comparison import Values, chance, markdown, table, title
from scipy.stats import false_discovery_control, mannwhitneyu, tukey_hsd

METRICS = ("ssim", "ncc", "dsc", "hd_mm", "hd95_mm", "tre_mm", "lost_labels", "folded_percent", "runtime_s")
#: What is tested, and which way is better.
TESTED = {"tre_mm": "less", "dsc": "greater"}
TUKEY = "Tukey's range test between the designs, p; above the diagonal TRE, below it DSC:"
MANN_WHITNEY = "One-sided Mann–Whitney U tests, p after Benjamini and Hochberg over each column:"
#: What else the paper asks of its best models, two-step fine-tuning: is the first better than the second?
CLAIMS = (
    ("SG-NSD", "BL-N"),
    ("UW-NSD", "SG-NSD"),
    ("BL-N", "SyN"),
    ("BL-N", "SyNCC"),
    ("SG-NSD", "SyN"),
    ("SG-NSD", "SyNCC"),
)


def result_table(found: dict[str, Values], minutes: dict[str, float], designs: Sequence[str]) -> str:
    """A table of the paper: the measures of all methods, and the designs compared with each other.

    Args:
        found: method → what was measured; all of the same cases.
        minutes: design → time of its training.
        designs: those of the methods that are designs.
    """
    text = table(found, minutes, METRICS)
    return text if len(designs) < 2 else f"{text}\n\n{TUKEY}\n\n{tukey({d: found[d] for d in designs})}"


def tukey(found: Mapping[str, Values]) -> str:
    """Tukey's range test of all pairs of methods: TRE above the diagonal, DSC below it.

    Source: Pérez de Frutos et al. 2023, section "Statistical tests"; there too on cases that all methods share.
    """
    names = list(found)
    tre, dsc = (tukey_hsd(*(known(found[name], metric) for name in names)).pvalue for metric in TESTED)
    rows = [
        [name, *("" if i == j else chance(float((tre if i < j else dsc)[i, j])) for j in range(len(names)))]
        for i, name in enumerate(names)
    ]
    return markdown([["", *names], *rows])


def one_sided(questions: Mapping[str, tuple[Values, Values]]) -> str:
    """Is the first better than the second? One-sided Mann–Whitney U tests, corrected for their number.

    Args:
        questions: in words → measures of the one that should be better and of the other.

    Source: Pérez de Frutos et al. 2023, section "Statistical tests".
    """
    columns = [list(questions)]
    for metric, better in TESTED.items():
        pairs = [(known(a, metric), known(b, metric)) for a, b in questions.values()]
        p = np.array(
            [mannwhitneyu(a, b, alternative=better).pvalue if a.size and b.size else math.nan for a, b in pairs]
        )
        p[~np.isnan(p)] = false_discovery_control(p[~np.isnan(p)], method="bh")
        columns.append([chance(float(value)) for value in p])
    return f"{MANN_WHITNEY}\n\n" + markdown([["better", *map(title, TESTED)], *zip(*columns, strict=True)])


def known(values: Values, metric: str) -> np.ndarray:
    """The values of all cases that could be measured."""
    found = np.array(list(values.get(metric, {}).values()), dtype=np.float64)
    return found[~np.isnan(found)]


def transfer_tests(found: Mapping[int, dict[str, Values]], designs: Sequence[str]) -> str:
    """Does training on brains first help, design by design (Tables 4 and 5 against 3)?"""
    steps = {4: "one step", 5: "two steps"}
    questions = {
        f"{design}: {words} than from scratch": (found[number][design], found[3][design])
        for number, words in steps.items()
        if {3, number} <= found.keys()
        for design in designs
    }
    return one_sided(questions) if questions else ""


def claim_tests(found: Mapping[str, Values]) -> str:
    """The paper's further questions, as far as the methods are there."""
    questions = {f"{a} than {b}": (found[a], found[b]) for a, b in CLAIMS if a in found and b in found}
    return one_sided(questions) if questions else ""
