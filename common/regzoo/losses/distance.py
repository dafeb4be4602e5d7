"""Similarity of signed distance maps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from regzoo.case import FIXED, MOVING
from regzoo.spatial.warp import warp
from torch import nn


class SignedDistanceSimilarity(nn.Module):
    """Mean squared difference between the logarithms of the warped moving and the fixed signed distance maps.

    ``L = 1/N Σ_x (log(1 + max(d_m(x + u(x)), 0)) − log(1 + max(d_f(x), 0)))²``

    where u is the DDF and d the distance to the gland in mm, positive outside. The moving map is computed once and then
    warped, so the gradient reaches the DDF everywhere outside the gland, even if the glands do not overlap. Distances
    inside the gland do not count. The logarithm gives more weight to errors close to the surface of the gland.

    A loss term, called with the DDF (B, 3, X, Y, Z), voxels, and targets with ``fixed_distance`` and
    ``moving_distance``, (B, 1, X, Y, Z), mm, on the grid of the DDF; returns a scalar.

    Source: Bashkanov et al. 2021, equation 2. The logarithm needs distances ≥ 0; the paper applies the measure to the
    positive side of the maps, which is the outside here.
    """

    def forward(self, ddf: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast(ddf.device.type, enabled=False):
            # Padding with a distance of zero would mean "in the gland".
            warped = warp(targets[MOVING.distance], ddf, padding="border")
            fixed = targets[FIXED.distance].float()
            return (warped.relu().log1p() - fixed.relu().log1p()).square().mean()
