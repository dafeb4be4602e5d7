"""Proposed ``spacing``, ``size`` and ``folds`` for a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from regzoo.case import Record
from regzoo.datasets.splits import linked_groups
from regzoo_tools.checking.cases import CaseFacts

#: Around the labels, mm on each side.
MARGIN = 10.0
#: The percentage of cases that must fit.
CASES = 99.0
#: The size of a network grid is a multiple of this, so that networks need no padding.
MULTIPLE = 8
SMALLEST = 16
#: Number of voxels of a network grid if no bundle is named.
VOXELS = 64**3
#: Patients that a fold holds out at least, and the fewest and the most folds.
PER_FOLD, FEWEST, MOST = 5, 5, 20


def propose_grid(
    facts: Sequence[CaseFacts], spacing: Sequence[float] | None, times: float = 1.0
) -> tuple[list[float], list[int]] | None:
    """Spacing and size for a data set; None without a case that can be read.

    The field of view holds 99 % of every label along each axis in 99 % of the cases, and a margin; without labels, the
    fixed image.

    Args:
        facts: of the cases.
        spacing: of the bundle; without it, that with which 64³ voxels cover the field of view.
        times: factor by which the voxel size grows so that a training fits into memory.

    Returns:
        Voxel sizes, never finer than the images and in half millimetres unless they are the bundle's own, and the
        smallest size that covers the field of view.
    """
    reaches = [case.reach for case in facts if case.reach is not None]
    if not reaches:
        return None
    margin = MARGIN if any(case.volumes for case in facts) else 0.0
    box = 2 * (np.percentile(np.asarray(reaches), CASES, axis=0) + margin)
    if spacing is None:
        spacing = [float((box.prod() / VOXELS) ** (1 / 3))] * 3
        times = max(times, 1 + 1e-9)
    finest = float(np.median([min(image.spacing) for case in facts for image in case.images.values()]))
    found = [max(float(mm) * times, finest) for mm in spacing]
    if found != [float(mm) for mm in spacing]:
        found = [float(np.ceil(round(mm * 2, 3)) / 2) if mm > 0.25 else float(f"{mm:.2g}") for mm in found]
    voxels = np.ceil(np.round(box / np.asarray(found), 3) / MULTIPLE) * MULTIPLE
    return found, [max(SMALLEST, int(n)) for n in voxels]


def propose_folds(records: Sequence[Record]) -> int | None:
    """How many folds for a cross-validation: five patients each, 5 to 20 folds; None for fewer than two patients."""
    patients = len(linked_groups(records))
    return None if patients < 2 else min(patients, max(FEWEST, min(MOST, patients // PER_FOLD)))
