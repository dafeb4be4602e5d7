"""The accuracy of one pair, on boxes whose overlap and distances are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from regzoo.case import REFERENCE, UNREGISTERED, WARPED, Key
from regzoo.inference.accuracy import accuracy


def label_map(*starts: int | None) -> MetaTensor:
    """A cube for each label, from a place along the first axis; voxels of 2 mm."""
    volume = torch.zeros(1, 40, 8, 16, dtype=torch.uint8)
    for number, start in enumerate(starts, 1):
        if start is not None:
            volume[0, start : start + 4, 2:6, 5 * number - 4 : 5 * number] = number
    return MetaTensor(volume, affine=torch.as_tensor(np.diag([2.0, 2, 2, 1])))


def test_a_lost_label_has_no_overlap_and_no_distance() -> None:
    """The second label is lost after registration, the third before it."""
    item = {
        REFERENCE.label: label_map(10, 10, 10),
        UNREGISTERED.label: label_map(14, 20, None),
        WARPED.label: label_map(12, None, 11),
        Key.MOVING_LABEL_IS_MAP: True,
        Key.MOVING_LABEL_VALUES: [1, 2, 3],
    }
    found = accuracy(item)
    assert (found["tre_mm_before"], found["tre_mm_after"]) == ((8 + 20) / 2, (4 + 2) / 2)
    assert (found["hd95_mm_before"], found["hd95_mm_after"]) == ((8 + 20) / 2, (4 + 2) / 2)
    assert found["dsc_before"] == 0
    assert found["dsc_after"] == pytest.approx((0.5 + 0 + 0.75) / 3, abs=1e-4)
