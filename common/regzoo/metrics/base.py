"""What all per-case metrics share: one value per case, whatever the number of its labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from monai.metrics import CumulativeIterationMetric
from regzoo.errors import RegZooError

Summary = Literal["mean", "median"]


class CaseMetric(CumulativeIterationMetric):
    """A MONAI metric with one value per case, NaN where a case cannot be measured.

    MONAI's own metrics keep one value per case *and channel*, so all cases must have the same number of labels. Here
    the buffer has shape (cases, 1). Inputs are lists of channel-first `MetaTensor`s, as decollated by MONAI's
    evaluators, or a batch-first tensor; geometry comes from the affine of `y`.

    Args:
        summary: how `aggregate` sums up the cases: ``mean`` or ``median``, ignoring NaN.
    """

    def __init__(self, summary: Summary = "mean") -> None:
        super().__init__()
        if summary not in ("mean", "median"):
            raise RegZooError(f"summary: {summary!r} is not known; use mean or median")
        self.summary = summary

    @abstractmethod
    def measure(self, y_pred: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor | float:
        """The value of one case, or several that `chosen` chooses from; inputs are channel-first (C, X, Y, Z)."""

    def chosen(self, values: torch.Tensor) -> torch.Tensor:
        """Those of the measured values (cases, …) of all ranks that are summed up."""
        return values

    def aggregate(self, summary: Summary | None = None) -> torch.Tensor:
        """Mean or median over the cases that could be measured, on all ranks; NaN when there are none."""
        values = self.get_buffer()
        if values is None:
            return torch.tensor(float("nan"))
        values = self.chosen(values)
        values = values[~torch.isnan(values)]
        if values.numel() == 0:
            return torch.tensor(float("nan"), device=values.device)
        if (summary or self.summary) == "mean":
            return values.mean()
        # torch.median takes the lower of the two middle values; the median of an even number is their mean.
        return values.quantile(0.5)

    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> torch.Tensor:
        truths: Sequence[torch.Tensor | None] = [None] * len(y_pred) if y is None else y
        if len(truths) != len(y_pred):
            raise ValueError(f"{len(y_pred)} predictions but {len(truths)} references")
        values = []
        for prediction, truth in zip(y_pred, truths, strict=True):
            value = self.measure(prediction.detach(), None if truth is None else truth.detach())
            values.append(torch.as_tensor(value, dtype=torch.float32, device=prediction.device).reshape(1, -1))
        return torch.cat(values)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        # Indexing a batched MetaTensor gives each case its own affine.
        return self._compute_list(list(y_pred), None if y is None else list(y))


def affine_of(image: torch.Tensor) -> torch.Tensor:
    """The affine of a `MetaTensor` (voxel → RAS mm), 4×4 float64 on the CPU.

    Raises:
        ValueError: the tensor carries no affine, so nothing can be measured in mm.
    """
    affine = getattr(image, "affine", None)
    if affine is None:
        raise ValueError("distances in mm need a MetaTensor with an affine; this is a plain tensor")
    return torch.as_tensor(affine, dtype=torch.float64, device="cpu").reshape(-1, 4, 4)[0]


def spacing_of(image: torch.Tensor) -> tuple[float, float, float]:
    """Distance between neighbouring voxel centres of a `MetaTensor` along X, Y, Z, mm."""
    x, y, z = affine_of(image)[:3, :3].norm(dim=0).tolist()
    return x, y, z
