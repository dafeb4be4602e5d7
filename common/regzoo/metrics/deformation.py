"""Is a deformation plausible: folds, spread and smoothness of the local change of volume."""

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
    """Shared: a metric of the DDF (3, X, Y, Z) in voxels, passed as `y_pred`; `y` is not used."""

    after = ("ddf", "ddf")
    before = None


class FoldedVoxels(_DeformationMetric):
    """Percentage of voxels where the transformation folds (det J ≤ 0); one that is not finite folds there."""

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Percent of folded voxels of one case."""
        return 100 * (~(_determinant(y_pred) > 0)).double().mean()


class LogJacobianStd(_DeformationMetric):
    """Standard deviation of log det J over the voxels.

    Args:
        mode: ``plain``: of log det J over the voxels that are not folded (a fold has no logarithm; count them with
            `FoldedVoxels`), NaN if all are. ``learn2reg``: of log(clip(det J + 3, 1e-9, 1e9)) without a border of two
            voxels, as the Learn2Reg challenge defines it.
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
        spacing: voxel size along X, Y, Z in mm, which a field knows itself; adds the length of the displacements in mm.

    Returns:
        ``folded_voxels_percent``, ``jacobian_{min,mean,max}``, ``log_jacobian_std``, ``jacobian_gradient`` and, with a
        spacing, ``displacement_{mean,max}_mm``.
    """
    if isinstance(ddf, DisplacementField):
        spacing, shape, part = ddf.grid.spacing.tolist(), ddf.grid.shape, ddf.voxel_displacement
    else:
        _check_ddf(ddf)
        shape, part = (ddf.shape[1], ddf.shape[2], ddf.shape[3]), lambda rows: as_tensor(ddf)[:, rows].float()
    found: defaultdict[str, _Running] = defaultdict(_Running)
    for rows in slabs(shape):
        # Two neighbours on both sides: one for det J, one for its gradient.
        low, high = max(rows.start - 2, 0), min(rows.stop + 2, shape[0])
        block = part(slice(low, high))
        determinant = jacobian_determinant(block[None])[0, 0]
        inner = slice(rows.start - low, rows.stop - low)
        # Where the image is cut the outermost det J is wrong, and not needed.
        first, last = int(low > 0), len(determinant) - int(high < shape[0])
        gradient = torch.stack(torch.gradient(determinant[first:last])).norm(dim=0)
        found["gradient"].add(gradient[inner.start - first : inner.stop - first])
        determinant = determinant[inner]
        found["jacobian"].add(determinant)
        found["folded"].add(~(determinant > 0))
        found["log"].add(determinant[determinant > 0].double().log())
        if spacing is not None:
            scale = torch.as_tensor(spacing, dtype=torch.float32, device=block.device).view(3, 1, 1, 1)
            found["displacement"].add((block[:, inner] * scale).norm(dim=0))
    statistics = {
        "folded_voxels_percent": 100 * found["folded"].mean,
        "jacobian_min": found["jacobian"].least,
        "jacobian_mean": found["jacobian"].mean,
        "jacobian_max": found["jacobian"].most,
        "log_jacobian_std": found["log"].deviation,
        "jacobian_gradient": found["gradient"].mean,
    }
    if spacing is not None:
        statistics["displacement_mean_mm"] = found["displacement"].mean
        statistics["displacement_max_mm"] = found["displacement"].most
    return statistics


class _Running:
    """Mean, standard deviation, least and greatest of values that come in parts; NaN spreads, and stands for none."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares, self.least, self.most = 0, 0.0, 0.0, math.inf, -math.inf

    def add(self, values: torch.Tensor) -> None:
        if values.numel():
            values = values.double()
            self.count += values.numel()
            self.sum += float(values.sum())
            self.squares += float(values.square().sum())
            self.least = float(np.minimum(self.least, float(values.min())))
            self.most = float(np.maximum(self.most, float(values.max())))

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
        raise ValueError(f"a DDF must have shape (3, X, Y, Z), this has {tuple(ddf.shape)}")
