"""Is a deformation plausible: folds, spread and smoothness of the local change of volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from regzoo.errors import RegZooError
from regzoo.metrics.base import CaseMetric, Summary
from regzoo.spatial import jacobian_determinant, plain

LogJacobianMode = Literal["plain", "learn2reg"]


def _determinant(ddf: torch.Tensor) -> torch.Tensor:
    """det J of one DDF (3, X, Y, Z) → (X, Y, Z) float32."""
    if ddf.ndim != 4 or ddf.shape[0] != 3:
        raise ValueError(f"a DDF must have shape (3, X, Y, Z), this has {tuple(ddf.shape)}")
    return jacobian_determinant(plain(ddf).float()[None])[0, 0]


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


def deformation_statistics(ddf: torch.Tensor, spacing: Sequence[float] | None = None) -> dict[str, float]:
    """What to know about a deformation, ready for a JSON file.

    Args:
        ddf: (3, X, Y, Z), voxels.
        spacing: voxel size along X, Y, Z in mm; adds the length of the displacements in mm.

    Returns:
        ``folded_voxels_percent``, ``jacobian_{min,mean,max}``, ``log_jacobian_std``, ``jacobian_gradient`` and, with a
        spacing, ``displacement_{mean,max}_mm``.
    """
    determinant = _determinant(ddf)
    statistics = {
        "folded_voxels_percent": folded_percentage(determinant),
        "jacobian_min": determinant.min(),
        "jacobian_mean": determinant.double().mean(),
        "jacobian_max": determinant.max(),
        "log_jacobian_std": log_jacobian_std(determinant),
        "jacobian_gradient": jacobian_gradient(determinant),
    }
    if spacing is not None:
        scale = torch.as_tensor(spacing, dtype=torch.float32, device=ddf.device).view(3, 1, 1, 1)
        length = (plain(ddf).float() * scale).norm(dim=0)
        statistics["displacement_mean_mm"] = length.double().mean()
        statistics["displacement_max_mm"] = length.max()
    return {name: float(value) for name, value in statistics.items()}
