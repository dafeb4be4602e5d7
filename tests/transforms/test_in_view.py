"""How much of each label lies in the network's field of view, and the warning of a training."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ball, make_grid, smooth_noise, to_sitk
from monai.data import MetaTensor
from regzoo.transforms import MatchLabelsd, ResamplePaird, SelectLabelsd

#: On a slanted grid; the view is 16 mm wide, so that the large ball sticks out and the small one not.
IMAGE = make_grid((30, 28, 26), (1, 1.2, 1.1), (10, -15, 20), (1, 0, 2), (-1, 1, 1), (20, -30, 10))
VIEW = {"spacing": (2, 2, 2), "size": (8, 8, 8)}


def pair() -> dict[str, Any]:
    """A pair whose second label is empty in the moving image."""
    item: dict[str, Any] = {"case": "A"}
    affine = torch.from_numpy(IMAGE.affine)
    for side in ("fixed", "moving"):
        masks = np.stack([ball(IMAGE.shape, (14.5, 13.5, 12.5), radius) for radius in (10, 4, 5)])
        masks[1] *= side == "fixed"
        item[f"{side}_image"] = MetaTensor(torch.from_numpy(smooth_noise(IMAGE.shape, 3, 1))[None], affine=affine)
        item[f"{side}_label"] = MetaTensor(torch.from_numpy(masks), affine=affine)
    return item


def test_shares_are_those_of_voxels_that_itk_finds_inside() -> None:
    item = pair()
    resample = ResamplePaird(**VIEW)
    out, target = resample(item), resample.target(item)
    image, view = (to_sitk(np.zeros(grid.shape, np.float32), grid.affine) for grid in (IMAGE, target))
    mask = item["fixed_label"][0].numpy() > 0
    inside = []
    for voxel in np.argwhere(mask).tolist():
        index = view.TransformPhysicalPointToContinuousIndex(image.TransformIndexToPhysicalPoint(voxel))
        inside.append(all(-0.5 <= place <= 7.5 for place in index))
    share = np.mean(inside)
    assert 0.2 < share < 0.9
    np.testing.assert_allclose(out["fixed_label_in_view"], [share, 1, 1], atol=1e-3)
    np.testing.assert_allclose(out["moving_label_in_view"], [share, np.nan, 1], atol=1e-3)
    assert not any("in_view" in key for key in ResamplePaird(**VIEW, keep_native=True)(item))


def test_a_training_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    """Of all cases and sides together, and not of labels that it does not use."""
    resample, match = ResamplePaird(**VIEW), MatchLabelsd()
    with caplog.at_level(logging.WARNING, "regzoo"):
        match(SelectLabelsd(channels=[2])(resample(pair())))
        assert caplog.messages == []
        for _ in range(3):
            match(resample(pair()))
    (message,) = caplog.messages
    assert "% of label 0 (from 0) lies in the network's field of view" in message and "regzoo check" in message
