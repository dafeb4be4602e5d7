"""Which labels of a case a refinement compares."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from regzoo.case import FIXED, MOVING, Case
from regzoo.errors import RegZooError
from regzoo.transforms import RefinePaird

SHAPE = (6, 5, 4)


def case(fixed: torch.Tensor, moving: torch.Tensor) -> Case:
    return {FIXED.native_label: MetaTensor(fixed), MOVING.native_label: MetaTensor(moving)}  # type: ignore[misc]


@pytest.mark.parametrize("channels", [None, [0, 3]])
def test_labels_on_one_side_do_not_count(channels: list[int] | None) -> None:
    fixed, moving = torch.zeros(4, *SHAPE), torch.zeros(4, *SHAPE[::-1])
    fixed[[0, 2, 3], 1], moving[[1, 2, 3], 2] = 1, 1
    moving[3] *= 0.5
    refinement = RefinePaird("labels", labels=channels)
    found = refinement._labels(case(fixed, moving))
    first = 2 if channels is None else 3
    assert torch.equal(found["fixed"], fixed[first:]) and torch.equal(found["moving"], moving[first:])
    with pytest.raises(RegZooError, match="no label in common"):
        refinement._labels(case(fixed[:2], moving[:2]))
