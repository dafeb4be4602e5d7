"""Whether a deformation is plausible: its folds, and the spread and smoothness of its volume change."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from regzoo.errors import RegZooError
from regzoo.metrics.base import CaseMetric, Summary
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
        """Percentage of folded voxels of one case."""
        return 100 * (~(_determinant(y_pred) > 0)).double().mean()


class LogJacobianStd(_DeformationMetric):
    """Standard deviation of log det J over the voxels.

    Args:
        mode: ``plain`` measures log det J where the transformation does not fold (a fold has no logarithm; count folds
            with `FoldedVoxels`), and gives NaN if it folds everywhere. ``learn2reg`` measures
            log(clip(det J + 3, 1e-9, 1e9)) without a border of two voxels, as the Learn2Reg challenge defines it.
        summary: over the cases, ``mean`` or ``median``.
    """

    def __init__(self, mode: LogJacobianMode = "plain", summary: Summary = "mean") -> None:
        super().__init__(summary)
        if mode not in ("plain", "learn2reg"):
            raise RegZooError(f"mode: {mode!r} is not known; use plain or learn2reg")
        self.mode = mode

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Standard deviation of one case."""
        determinant = _determinant(y_pred).double()
        if self.mode == "learn2reg":
            return (determinant[2:-2, 2:-2, 2:-2] + 3).clip(1e-9, 1e9).log().std(correction=0)
        return determinant[determinant > 0].log().std(correction=0)


class JacobianGradient(_DeformationMetric):
    """Mean gradient magnitude of det J, per voxel; central differences, one-sided at the border.

    Source: Bashkanov et al. 2021 (reported there ×10⁻²).
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean gradient magnitude of one case."""
        return torch.stack(torch.gradient(_determinant(y_pred))).norm(dim=0).double().mean()


def deformation_statistics(
    ddf: torch.Tensor | DisplacementField, spacing: Sequence[float] | None = None
) -> dict[str, float]:
    """Statistics of a deformation, ready for a JSON file; computed slab by slab.

    Args:
        ddf: (3, X, Y, Z), voxels, or a field.
        spacing: voxel size along X, Y, Z, mm; a field has its own.

    Returns:
        ``folded_voxels_percent``, ``jacobian_{min,mean,max}``, ``log_jacobian_std``, ``jacobian_gradient`` and, if the
        spacing is known, ``displacement_{mean,max}_mm``.
    """
    if isinstance(ddf, DisplacementField):
        spacing, shape, displacement = ddf.grid.spacing.tolist(), ddf.grid.shape, ddf.voxel_displacement
    else:
        _check_ddf(ddf)
        shape = (ddf.shape[1], ddf.shape[2], ddf.shape[3])
        displacement = lambda rows: as_tensor(ddf)[:, rows].float()  # noqa: E731
    totals: defaultdict[str, _Running] = defaultdict(_Running)
    for rows in slabs(shape):
        # Two neighbours on both sides: one for det J, one for its gradient.
        low, high = max(rows.start - 2, 0), min(rows.stop + 2, shape[0])
        block = displacement(slice(low, high))
        determinant = jacobian_determinant(block[None])[0, 0]
        inner = slice(rows.start - low, rows.stop - low)
        # The outermost det J at a cut is wrong, and is not needed.
        first, last = int(low > 0), len(determinant) - int(high < shape[0])
        gradient = torch.stack(torch.gradient(determinant[first:last])).norm(dim=0)
        totals["gradient"].add(gradient[inner.start - first : inner.stop - first])
        determinant = determinant[inner]
        totals["jacobian"].add(determinant)
        totals["folded"].add(~(determinant > 0))
        totals["log"].add(determinant[determinant > 0].double().log())
        if spacing is not None:
            scale = torch.as_tensor(spacing, dtype=torch.float32, device=block.device).view(3, 1, 1, 1)
            totals["displacement"].add((block[:, inner] * scale).norm(dim=0))
    statistics = {
        "folded_voxels_percent": 100 * totals["folded"].mean,
        "jacobian_min": totals["jacobian"].minimum,
        "jacobian_mean": totals["jacobian"].mean,
        "jacobian_max": totals["jacobian"].maximum,
        "log_jacobian_std": totals["log"].deviation,
        "jacobian_gradient": totals["gradient"].mean,
    }
    if spacing is not None:
        statistics["displacement_mean_mm"] = totals["displacement"].mean
        statistics["displacement_max_mm"] = totals["displacement"].maximum
    return statistics


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
    _check_ddf(ddf)
    return jacobian_determinant(as_tensor(ddf).float()[None])[0, 0]


def _check_ddf(ddf: torch.Tensor) -> None:
    if ddf.ndim != 4 or ddf.shape[0] != 3:
        raise ValueError(f"a DDF must have shape (3, X, Y, Z), not {tuple(ddf.shape)}")
