"""Overlap at the base, in the middle and at the apex of the gland."""

from __future__ import annotations

from typing import Literal

import torch
from monai.metrics import compute_dice
from regzoo.errors import RegZooError
from regzoo.metrics.base import CaseMetric, Summary, affine_of
from regzoo.metrics.labels import masks

Region = Literal["base", "mid", "apex"]


class RegionDice(CaseMetric):
    """Dice similarity coefficient (DSC) in one third of a label's extent from superior to inferior.

    The extent is that of the fixed label along the world's inferior–superior axis, to half a voxel layer beyond its
    outermost voxel centres. The upper third is the base, the lower third the apex. A voxel belongs to the third that
    contains its centre. Voxels above the extent count as base and voxels below it as apex, so no part of the warped
    label is left out.

    NaN if the fixed label is empty in this third, 0 if only the warped label is.

    Args:
        region: ``base``, ``mid`` or ``apex``.
        label: channel to measure.
        threshold: the lowest value of a soft label that counts as inside.
        summary: over the cases, ``mean`` or ``median``.

    Source: Bashkanov et al. 2021, section 3.
    """

    def __init__(self, region: Region, label: int = 0, threshold: float = 0.5, summary: Summary = "mean") -> None:
        super().__init__(summary)
        if region not in ("base", "mid", "apex"):
            raise RegZooError(f"region: {region!r} is not known; use base, mid or apex")
        self.region = region
        self.label = label
        self.threshold = threshold

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """DSC of one case within the third, labels (C, X, Y, Z); geometry from the affine of `y`."""
        warped, fixed = masks(y_pred, y, self.label, self.threshold)
        if not fixed.any():
            return torch.tensor(torch.nan)
        upwards = affine_of(y)[2, :3]
        height = heights(fixed.shape[1:], upwards).to(fixed.device)
        # Half the distance between voxel layers. Without it, a third could end at the voxel centres of a layer of a
        # (nearly) straight grid, and rounding would decide on which side they are.
        half = float(upwards.abs().max()) / 2
        lowest, highest = float(height[fixed[0]].min()) - half, float(height[fixed[0]].max()) + half
        third = (highest - lowest) / 3
        if self.region == "base":
            inside = height > highest - third
        elif self.region == "apex":
            inside = height < lowest + third
        else:
            inside = (height >= lowest + third) & (height <= highest - third)
        return compute_dice((warped & inside)[None], (fixed & inside)[None])


def heights(shape: torch.Size, upwards: torch.Tensor) -> torch.Tensor:
    """Height of every voxel centre (X, Y, Z) along the world's superior axis, relative to the first voxel, mm.

    Args:
        shape: (X, Y, Z).
        upwards: (3,), the rise per voxel along each array axis, mm: the third row of the affine.
    """
    x, y, z = (step * torch.arange(n, dtype=torch.float64) for step, n in zip(upwards, shape, strict=True))
    return x[:, None, None] + y[:, None] + z
