"""Is a deformation plausible: folds, spread and smoothness of the local change of volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from regzoo.errors import RegZooError
from regzoo.metrics.base import CaseMetric, Summary
from regzoo.spatial import DisplacementField, as_tensor, jacobian_determinant
from regzoo.spatial.warp import slabs

LogJacobianMode = Literal["plain", "learn2reg"]


def _determinant(ddf: torch.Tensor) -> torch.Tensor:
    """det J of one DDF (3, X, Y, Z) → (X, Y, Z) float32."""
    _check_ddf(ddf)
    return jacobian_determinant(as_tensor(ddf).float()[None])[0, 0]


def _check_ddf(ddf: torch.Tensor) -> None:
    if ddf.ndim != 4 or ddf.shape[0] != 3:
        raise ValueError(f"a DDF must have shape (3, X, Y, Z), this has {tuple(ddf.shape)}")


def folded_percentage(determinant: torch.Tensor) -> torch.Tensor:
    """Share of voxels with det J ≤ 0, percent; a DDF with values that are not finite folds there."""
    return 100 * (~(determinant > 0)).double().mean()


def log_jacobian_std(determinant: torch.Tensor, mode: LogJacobianMode = "plain") -> torch.Tensor:
    """Standard deviation of log det J over the voxels.

    Args:
        determinant: (X, Y, Z).
        mode: ``plain``: of log det J over the voxels that are not folded (a fold has no logarithm; count them with
            `FoldedVoxels`), NaN if all are. ``learn2reg``: of log(clip(det J + 3, 1e-9, 1e9)) without a border of two
            voxels, as the Learn2Reg challenge defines it.
    """
    if mode == "learn2reg":
        inner = determinant[2:-2, 2:-2, 2:-2]
        return (inner.double() + 3).clip(1e-9, 1e9).log().std(correction=0)
    return determinant[determinant > 0].double().log().std(correction=0)


def jacobian_gradient(determinant: torch.Tensor) -> torch.Tensor:
    """Mean gradient magnitude of det J, per voxel; central differences, one-sided at the border.

    Source: Bashkanov et al. 2021 (reported there ×10⁻²).
    """
    return torch.stack(torch.gradient(determinant)).norm(dim=0).double().mean()


class FoldedVoxels(CaseMetric):
    """Percentage of voxels where the transformation folds (det J ≤ 0). `y_pred` is the DDF (3, X, Y, Z) in voxels."""

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        """Percent of folded voxels of one case; `y` is not used."""
        return folded_percentage(_determinant(y_pred))


class LogJacobianStd(CaseMetric):
    """Standard deviation of log det J. `y_pred` is the DDF (3, X, Y, Z) in voxels.

    Args:
        mode: ``plain`` or ``learn2reg``, see `log_jacobian_std`.
        summary: over the cases, ``mean`` or ``median``.
    """

    def __init__(self, mode: LogJacobianMode = "plain", summary: Summary = "mean") -> None:
        super().__init__(summary)
        if mode not in ("plain", "learn2reg"):
            raise RegZooError(f"mode: {mode!r} is not known; use plain or learn2reg")
        self.mode = mode

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        """Standard deviation of one case; `y` is not used."""
        return log_jacobian_std(_determinant(y_pred), self.mode)


class JacobianGradient(CaseMetric):
    """Mean gradient magnitude of det J, per voxel. `y_pred` is the DDF (3, X, Y, Z) in voxels.

    Source: Bashkanov et al. 2021 (reported there ×10⁻²).
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        """Mean gradient magnitude of one case; `y` is not used."""
        return jacobian_gradient(_determinant(y_pred))


def deformation_statistics(
    ddf: torch.Tensor | DisplacementField, spacing: Sequence[float] | None = None
) -> dict[str, float]:
    """What to know about a deformation, ready for a JSON file; computed slab by slab.

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
    totals, logs = _Totals(), _Spread()
    for rows in slabs(shape):
        # Two neighbours on both sides: one for det J, one for its gradient.
        low, high = max(rows.start - 2, 0), min(rows.stop + 2, shape[0])
        block = part(slice(low, high))
        determinant = jacobian_determinant(block[None])[0, 0]
        inner = slice(rows.start - low, rows.stop - low)
        # At a cut through the image the outermost det J is wrong, and not needed.
        first, last = int(low > 0), len(determinant) - int(high < shape[0])
        gradient = torch.stack(torch.gradient(determinant[first:last])).norm(dim=0)
        totals.add("jacobian_gradient", gradient[inner.start - first : inner.stop - first])
        determinant = determinant[inner]
        totals.add("jacobian", determinant)
        totals.add("folded", (~(determinant > 0)).float())
        logs.add(determinant[determinant > 0].double().log())
        if spacing is not None:
            scale = torch.as_tensor(spacing, dtype=torch.float32, device=block.device).view(3, 1, 1, 1)
            totals.add("displacement", (block[:, inner] * scale).norm(dim=0))
    statistics = {
        "folded_voxels_percent": 100 * totals.mean("folded"),
        "jacobian_min": totals.least["jacobian"],
        "jacobian_mean": totals.mean("jacobian"),
        "jacobian_max": totals.most["jacobian"],
        "log_jacobian_std": logs.deviation,
        "jacobian_gradient": totals.mean("jacobian_gradient"),
    }
    if spacing is not None:
        statistics["displacement_mean_mm"] = totals.mean("displacement")
        statistics["displacement_max_mm"] = totals.most["displacement"]
    return statistics


class _Totals:
    """Sum, least and greatest value of quantities that come in parts; NaN spreads."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {}
        self.sum: dict[str, float] = {}
        self.least: dict[str, float] = {}
        self.most: dict[str, float] = {}

    def add(self, name: str, values: torch.Tensor) -> None:
        self.count[name] = self.count.get(name, 0) + values.numel()
        self.sum[name] = self.sum.get(name, 0.0) + float(values.sum(dtype=torch.float64))
        self.least[name] = float(np.minimum(self.least.get(name, np.inf), float(values.min())))
        self.most[name] = float(np.maximum(self.most.get(name, -np.inf), float(values.max())))

    def mean(self, name: str) -> float:
        return self.sum[name] / self.count[name]


class _Spread:
    """Standard deviation of values that come in parts; NaN if there are none.

    Source: Chan et al. 1979, Updating formulae and a pairwise algorithm for computing sample variances.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, values: torch.Tensor) -> None:
        """Take more values, float64."""
        if values.numel() == 0:
            return
        count, mean = self.count + values.numel(), float(values.mean())
        self.squares += float((values - mean).square().sum())
        self.squares += (mean - self.mean) ** 2 * self.count * values.numel() / count
        self.mean += (mean - self.mean) * values.numel() / count
        self.count = count

    @property
    def deviation(self) -> float:
        """The standard deviation so far."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan
