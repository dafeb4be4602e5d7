"""Whether a deformation is plausible: its folds, and the spread and smoothness of its volume change."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Literal

import numpy as np
import torch
from regzoo.errors import RegZooError
from regzoo.metrics.base import CaseMetric
from regzoo.spatial import DisplacementField, as_tensor, jacobian_determinant
from regzoo.spatial.warp import slabs

LogJacobianMode = Literal["plain", "learn2reg"]


class _DeformationMetric(CaseMetric):
    """Base of the metrics of a DDF (3, X, Y, Z) in voxels, passed as `y_pred`; `y` is not used."""

    after = ("ddf", "ddf")
    before = None


class FoldedVoxels(_DeformationMetric):
    """Percentage of voxels where the transformation folds (det J ≤ 0); NaN counts as a fold."""

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 100 * (~(_determinant(y_pred) > 0)).double().mean()


class LogJacobianStd(_DeformationMetric):
    """Standard deviation of log det J over the voxels.

    Args:
        mode: ``plain`` measures log det J where the transformation does not fold (a fold has no logarithm; count folds
            with `FoldedVoxels`), and gives NaN if it folds everywhere. ``learn2reg`` measures
            log(clip(det J + 3, 1e-9, 1e9)) without a border of two voxels, as the Learn2Reg challenge defines it.
    """

    def __init__(self, mode: LogJacobianMode = "plain") -> None:
        super().__init__()
        if mode not in ("plain", "learn2reg"):
            raise RegZooError(f"mode: {mode!r} is not known; use plain or learn2reg")
        self.mode = mode

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        determinant = _determinant(y_pred).double()
        if self.mode == "learn2reg":
            return (determinant[2:-2, 2:-2, 2:-2] + 3).clip(1e-9, 1e9).log().std(correction=0)
        return determinant[determinant > 0].log().std(correction=0)


class JacobianGradient(_DeformationMetric):
    """Mean gradient magnitude of det J, per voxel; central differences, one-sided at the border.

    Source: Bashkanov et al. 2021 (reported there ×10⁻²).
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return _length(torch.stack(torch.gradient(_determinant(y_pred)))).double().mean()


def _length(vectors: torch.Tensor) -> torch.Tensor:
    """The lengths of vectors (3, …); `torch.linalg.vector_norm` along the first axis takes 13 times as long."""
    return vectors.square().sum(dim=0).sqrt()


def deformation_statistics(field: DisplacementField) -> dict[str, float]:
    """Statistics of a deformation, ready for a JSON file; computed slab by slab.

    Returns:
        ``folded_voxels_percent``, ``jacobian_{min,mean,max}``, ``log_jacobian_std``, ``jacobian_gradient`` and
        ``displacement_{mean,max}_mm``.
    """
    shape = field.grid.shape
    totals: defaultdict[str, _Running] = defaultdict(_Running)
    for rows in slabs(shape):
        # Two neighbours on both sides: one for det J, one for its gradient.
        low, high = max(rows.start - 2, 0), min(rows.stop + 2, shape[0])
        block = field.voxel_displacement(slice(low, high))
        determinant = jacobian_determinant(block[None])[0, 0]
        inner = slice(rows.start - low, rows.stop - low)
        # The outermost det J at a cut is wrong, and is not needed.
        first, last = int(low > 0), len(determinant) - int(high < shape[0])
        gradient = _length(torch.stack(torch.gradient(determinant[first:last])))
        totals["gradient"].add(gradient[inner.start - first : inner.stop - first])
        determinant = determinant[inner]
        totals["jacobian"].add(determinant)
        totals["folded"].add(~(determinant > 0))
        totals["log"].add(determinant[determinant > 0].double().log())
        spacing = torch.as_tensor(field.grid.spacing, dtype=torch.float32, device=block.device).view(3, 1, 1, 1)
        totals["displacement"].add(_length(block[:, inner] * spacing))
    return {
        "folded_voxels_percent": 100 * totals["folded"].mean,
        "jacobian_min": totals["jacobian"].minimum,
        "jacobian_mean": totals["jacobian"].mean,
        "jacobian_max": totals["jacobian"].maximum,
        "log_jacobian_std": totals["log"].deviation,
        "jacobian_gradient": totals["gradient"].mean,
        "displacement_mean_mm": totals["displacement"].mean,
        "displacement_max_mm": totals["displacement"].maximum,
    }


class _Running:
    """Running mean, standard deviation, minimum and maximum; one NaN makes them NaN, and so does a lack of values."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares, self.minimum, self.maximum = 0, 0.0, 0.0, math.inf, -math.inf

    def add(self, values: torch.Tensor) -> None:
        if values.numel():
            values = values.double()
            self.count += values.numel()
            self.sum += float(values.sum())
            self.squares += float(values.square().sum())
            self.minimum = float(np.minimum(self.minimum, float(values.min())))
            self.maximum = float(np.maximum(self.maximum, float(values.max())))

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else math.nan

    @property
    def deviation(self) -> float:
        return math.sqrt(max(self.squares / self.count - self.mean**2, 0.0)) if self.count else math.nan


def _determinant(ddf: torch.Tensor) -> torch.Tensor:
    """det J of one DDF (3, X, Y, Z) → (X, Y, Z) float32."""
    if ddf.ndim != 4 or ddf.shape[0] != 3:
        raise ValueError(f"a DDF must have shape (3, X, Y, Z), not {tuple(ddf.shape)}")
    return jacobian_determinant(as_tensor(ddf).float()[None])[0, 0]
