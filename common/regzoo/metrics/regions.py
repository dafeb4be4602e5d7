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

    The extent is that of the fixed label along the world's inferior–superior axis, half a layer of voxels beyond its
    outermost centres; the upper third is the base, the lower one the apex. A voxel belongs to the third that its centre
    lies in. Above the extent everything counts for the base, below it for the apex, so no part of the warped label is
    left out.

    NaN where the fixed label is empty in this third, 0 where only the warped one is.

    Args:
        region: ``base``, ``mid`` or ``apex``.
        label: channel to measure.
        threshold: soft labels count as inside from this value on.
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
        # Half the distance of the layers of voxels. With it, no third ends at the centres of a layer of a (nearly)
        # straight grid, where rounding would choose their side.
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
    """Position of every voxel centre (X, Y, Z) along the world's superior axis, from that of the first voxel, mm.

    Args:
        shape: (X, Y, Z).
        upwards: (3,), how far one voxel along each array axis leads upwards, mm: third row of the affine.
    """
    x, y, z = (step * torch.arange(n, dtype=torch.float64) for step, n in zip(upwards, shape, strict=True))
    return x[:, None, None] + y[:, None] + z
