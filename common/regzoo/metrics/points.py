"""Target registration error of points, one value per case."""

from __future__ import annotations

from typing import Literal

import torch
from regzoo.case import REFERENCE, UNREGISTERED, WARPED
from regzoo.errors import RegZooError
from regzoo.metrics.base import CaseMetric
from regzoo.spatial import as_tensor


def point_distances(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Distances (N,) between corresponding points (N, 3), mm."""
    return (as_tensor(y_pred) - as_tensor(y).to(y_pred.device)).norm(dim=1)


class PointRegistrationError(CaseMetric):
    """Target registration error (TRE) of the points of a case, mm: the mean or the median over the points.

    It is measured in the moving image, like that of Learn2Reg: the distance between a point of the moving image and the
    place to which the transformation takes the corresponding point of the fixed image. NaN for a case without points.

    Args:
        reduction: over the points of a case, ``mean`` or ``median``.
    """

    after = (WARPED.points, REFERENCE.points)
    before = (UNREGISTERED.points, REFERENCE.points)

    def __init__(self, reduction: Literal["mean", "median"] = "mean") -> None:  # noqa: B042 - an error in mm
        super().__init__()
        if reduction not in ("mean", "median"):
            raise RegZooError(f"reduction: {reduction!r} is not known; use mean or median")
        self.reduction = reduction

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """TRE in mm of one case, points (N, 3), RAS mm."""
        distances = point_distances(y_pred, y)
        if not len(distances):
            return torch.tensor(torch.nan)
        return distances.mean() if self.reduction == "mean" else distances.quantile(0.5)
