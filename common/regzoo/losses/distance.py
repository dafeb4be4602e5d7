"""Similarity of signed distance maps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from regzoo.case import FIXED, MOVING
from regzoo.losses.similarity import Prepared, Similarity
from regzoo.spatial.warp import warp
from torch import nn


class LogDistance(Similarity):
    """Mean squared difference between the logarithms of the warped moving and the fixed signed distance maps.

    ``L = 1/N Σ_x (log(1 + max(d_w(x), 0)) − log(1 + max(d_f(x), 0)))²``

    where d is the distance to a structure in mm, positive outside; distances inside do not count. The logarithm gives
    more weight to errors close to the surface. The moving map is computed once and then warped with
    ``padding="border"``, because a distance of 0 beyond its border would mean that the structure is there. The gradient
    then reaches the field everywhere outside the structure, even if the structures do not overlap.

    Source: Bashkanov et al. 2021, equation 2. The logarithm needs distances ≥ 0; the paper applies the measure to the
    positive side of the maps, which is the outside here.
    """

    def against(self, fixed: torch.Tensor, weights: torch.Tensor | None) -> Prepared:
        target = fixed.relu().log1p()
        weights = torch.ones_like(fixed) if weights is None else weights
        share = weights / weights.sum()

        def loss(warped: torch.Tensor) -> torch.Tensor:
            return ((warped.relu().log1p() - target).square() * share).sum()

        return loss


class SignedDistanceSimilarity(nn.Module):
    """Warp the moving distance map with the predicted DDF and compare it with the fixed one, see `LogDistance`.

    A loss term, called with the DDF (B, 3, X, Y, Z), voxels, and targets with ``fixed_distance`` and
    ``moving_distance``, (B, 1, X, Y, Z), mm, on the grid of the DDF; returns a scalar.
    """

    def forward(self, ddf: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast(ddf.device.type, enabled=False):
            warped = warp(targets[MOVING.distance], ddf, padding="border")
            value: torch.Tensor = LogDistance()(warped.float(), targets[FIXED.distance].float())
        return value
