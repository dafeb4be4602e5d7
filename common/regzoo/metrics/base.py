"""The base class of all metrics: one value per case, however many labels the case has."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from monai.metrics import CumulativeIterationMetric
from regzoo.case import REFERENCE, UNREGISTERED, WARPED

#: The two items of a case that a metric compares: `y_pred` and `y`.
Compared = tuple[str, str]


class CaseMetric(CumulativeIterationMetric):
    """A MONAI metric with one value per case, NaN where a case cannot be measured.

    MONAI's own metrics keep one value per case *and channel*, so all cases must have the same number of labels. Here
    the buffer has shape (cases, 1). Inputs are lists of channel-first `MetaTensor`s, as decollated by MONAI's
    evaluators, or batch-first tensors; geometry comes from the affine of `y`.

    Attributes:
        after: the two items of a case that are compared after registration.
        before: the two items that are compared before registration; None for a metric that exists only after it.
    """

    after: ClassVar[Compared] = (WARPED.label, REFERENCE.label)
    before: ClassVar[Compared | None] = (UNREGISTERED.label, REFERENCE.label)

    @abstractmethod
    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor | float:
        """The value of one case, or several for `select`; inputs are channel-first (C, X, Y, Z)."""

    def select(self, values: torch.Tensor) -> torch.Tensor:
        """Select what `aggregate` combines from the values (cases, …) of all ranks."""
        return values

    def aggregate(self) -> torch.Tensor:
        """Mean over the measured cases of all ranks; NaN if there are none."""
        values = self.get_buffer()
        return torch.tensor(torch.nan) if values is None else self.select(values).nanmean()

    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> torch.Tensor:
        if y is None:  # a deformation is measured on its own
            if self.after[0] != self.after[1]:
                raise ValueError("this metric compares two items: pass the fixed labels or the fixed image as y")
            y = y_pred
        values = [self.measure(p.detach(), t.detach()) for p, t in zip(y_pred, y, strict=True)]
        return torch.stack([torch.as_tensor(v, dtype=torch.float32, device=y_pred[0].device).flatten() for v in values])

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        # Indexing a batched MetaTensor gives each case its own affine.
        return self._compute_list(list(y_pred), None if y is None else list(y))


def affine_of(image: torch.Tensor) -> torch.Tensor:
    """The affine of a `MetaTensor` (voxel → RAS mm), 4×4 float64 on the CPU; raises `ValueError` for a plain tensor."""
    affine = getattr(image, "affine", None)
    if affine is None:
        raise ValueError("distances in mm need a MetaTensor with an affine; this is a plain tensor")
    return torch.as_tensor(affine, dtype=torch.float64, device="cpu").reshape(-1, 4, 4)[0]
