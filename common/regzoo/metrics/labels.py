"""How well labels agree: distance of centroids, overlap and distance of surfaces, one value per case."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from monai.metrics import compute_dice, compute_hausdorff_distance

from regzoo.errors import RegZooError
from regzoo.metrics.base import CaseMetric, Summary, affine_of, spacing_of
from regzoo.spatial import plain

Reduction = Literal["rms", "mean"]


def centroids(masks: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """Centres of mass of labels.

    Args:
        masks: (C, X, Y, Z), binary or soft; soft values weigh the voxels.
        affine: 4×4, voxel → RAS mm.

    Returns:
        (C, 3) float64, RAS mm; NaN for an empty label.
    """
    masks = plain(masks)
    # Marginal sums first: the data are read twice, not once per coordinate, and only short sums run in float32.
    plane = masks.sum(dim=3, dtype=torch.float32).double()
    other = masks.sum(dim=1, dtype=torch.float32).double()
    marginals = (plane.sum(2), plane.sum(1), other.sum(1))
    mass = marginals[0].sum(1)
    index = [m @ torch.arange(m.shape[1], dtype=torch.float64, device=m.device) for m in marginals]
    voxels = torch.stack(index, dim=1) / torch.where(mass > 0, mass, torch.nan)[:, None]
    affine = torch.as_tensor(affine, dtype=torch.float64).to(voxels.device)
    return voxels @ plain(affine)[:3, :3].T + plain(affine)[:3, 3]


def centroid_distances(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Distances between the centroids of two sets of labels on one grid.

    Args:
        y_pred: warped labels (C, X, Y, Z), binary or soft.
        y: fixed labels (C, X, Y, Z), a `MetaTensor`.

    Returns:
        (C,) float64, mm; NaN where a label is empty in either.
    """
    _check_same_shape(y_pred, y)
    affine = affine_of(y)
    return (centroids(y_pred, affine) - centroids(y, affine)).norm(dim=1)


class TargetRegistrationError(CaseMetric):
    """Target registration error (TRE) of a case: its landmarks' centroid distances in mm.

    Landmarks that are empty in the fixed or in the warped label are left out; a case without landmarks is NaN.

    Args:
        reduction: over the landmarks of a case, ``rms`` (root mean square) or ``mean``.
        first_label: first channel that is a landmark; by default channel 0, the gland, is none.
        summary: over the cases, ``mean`` or ``median``.

    Source: RMS, Hu et al. 2018, section 3.3; mean, Bashkanov et al. 2021 and Pérez de Frutos et al. 2023.
    """

    def __init__(self, reduction: Reduction = "rms", first_label: int = 1, summary: Summary = "mean") -> None:
        super().__init__(summary)
        if reduction not in ("rms", "mean"):
            raise RegZooError(f"reduction: {reduction!r} is not known; use rms or mean")
        self.reduction = reduction
        self.first_label = first_label

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        """TRE in mm of one case, labels (C, X, Y, Z)."""
        distances = centroid_distances(y_pred, _required(y))[self.first_label :]
        distances = distances[~distances.isnan()]
        # The mean of nothing is NaN, which says "no landmark to measure".
        return distances.square().mean().sqrt() if self.reduction == "rms" else distances.mean()


class LabelDice(CaseMetric):
    """Dice similarity coefficient (DSC) of one label, by default the gland.

    NaN where the fixed label is empty, 0 where only the warped one is.

    Args:
        label: channel to measure.
        threshold: soft labels count as inside from this value on.
        summary: over the cases, ``mean`` or ``median``.
    """

    def __init__(self, label: int = 0, threshold: float = 0.5, summary: Summary = "mean") -> None:
        super().__init__(summary)
        self.label = label
        self.threshold = threshold

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        """DSC of one case, labels (C, X, Y, Z)."""
        warped, fixed = _one_label(y_pred, _required(y), self.label, self.threshold)
        return compute_dice(warped[None, None], fixed[None, None])


class LabelHausdorff(CaseMetric):
    """Hausdorff distance between the surfaces of one label in mm, by default the 95th percentile for the gland.

    The larger of the two directed percentiles, over the voxels of the surfaces. NaN where either label is empty.

    Args:
        label: channel to measure.
        percentile: 95 for HD95, 100 for the largest distance.
        threshold: soft labels count as inside from this value on.
        summary: over the cases, ``mean`` or ``median``.
    """

    def __init__(
        self, label: int = 0, percentile: float = 95, threshold: float = 0.5, summary: Summary = "mean"
    ) -> None:
        super().__init__(summary)
        self.label = label
        self.percentile = percentile
        self.threshold = threshold

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor | float:
        """Hausdorff distance in mm of one case, labels (C, X, Y, Z)."""
        fixed_labels = _required(y)
        warped, fixed = _one_label(y_pred, fixed_labels, self.label, self.threshold)
        if not (warped.any() and fixed.any()):
            return float("nan")
        with warnings.catch_warnings():
            # MONAI 1.5 and 1.6 call a function of their own with an argument they have deprecated.
            warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*")
            return compute_hausdorff_distance(
                warped[None, None],
                fixed[None, None],
                include_background=True,
                percentile=self.percentile,
                spacing=spacing_of(fixed_labels),
            )


def dice(y_pred: torch.Tensor, y: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """Dice similarity coefficient of every label of a case.

    Args:
        y_pred: warped labels (C, X, Y, Z), binary or soft.
        y: fixed labels (C, X, Y, Z).
        threshold: soft labels count as inside from this value on.

    Returns:
        (C,); NaN where the fixed label is empty.
    """
    _check_same_shape(y_pred, y)
    return compute_dice(plain(y_pred)[None] >= threshold, plain(y)[None] >= threshold)[0]


def _one_label(
    y_pred: torch.Tensor, y: torch.Tensor, label: int, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    _check_same_shape(y_pred, y)
    if not 0 <= label < y.shape[0]:
        raise RegZooError(f"label {label} is asked for, but the case has {y.shape[0]}; choose 0 to {y.shape[0] - 1}")
    return plain(y_pred)[label] >= threshold, plain(y)[label] >= threshold


def _required(y: torch.Tensor | None) -> torch.Tensor:
    if y is None:
        raise ValueError("this metric compares labels: pass the fixed labels as y")
    return y


def _check_same_shape(y_pred: torch.Tensor, y: torch.Tensor) -> None:
    if y_pred.ndim != 4 or y_pred.shape != y.shape:
        raise ValueError(
            f"labels must have one shape (C, X, Y, Z): warped {tuple(y_pred.shape)}, fixed {tuple(y.shape)}"
        )
