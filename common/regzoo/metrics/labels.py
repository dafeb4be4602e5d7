"""How well labels agree: distance of centroids, overlap and distance of surfaces, one value per case."""

from __future__ import annotations

import logging
import warnings
from typing import Literal

import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from regzoo.case import REFERENCE, UNREGISTERED, WARPED
from regzoo.errors import RegZooError
from regzoo.metrics.base import CaseMetric, Summary, affine_of
from regzoo.spatial import as_tensor, centroids

logger = logging.getLogger(__name__)

Reduction = Literal["rms", "mean"]


def centroid_distances(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Distances between the centroids of two sets of labels on one grid.

    Args:
        y_pred: warped labels (C, X, Y, Z), binary or soft.
        y: fixed labels (C, X, Y, Z), a `MetaTensor`.

    Returns:
        (C,) float64, mm; NaN where a label is empty in either set.
    """
    _check_same_shape(y_pred, y)
    affine = affine_of(y)
    return (centroids(y_pred, affine) - centroids(y, affine)).norm(dim=1)


class TargetRegistrationError(CaseMetric):
    """Target registration error (TRE) of a case: the distances of its landmarks' centroids, mm.

    Landmarks that are empty in the fixed or in the warped label are left out; a case without landmarks is NaN.

    Args:
        reduction: over the landmarks of a case, ``rms`` (root mean square) or ``mean``.
        first_label: first channel that is a landmark; by default channel 0, the gland, is not one.
        lost: the error of a landmark that is empty in the warped label alone, mm; None leaves it out as well. Use it to
            choose weights, or those that find only the easy landmarks would look best.
        summary: over the cases, ``mean`` or ``median``.

    Source: RMS, Hu et al. 2018, section 3.3; mean, Bashkanov et al. 2021 and Pérez de Frutos et al. 2023.
    """

    def __init__(  # noqa: B042 - an error in mm, not an exception
        self, reduction: Reduction = "rms", first_label: int = 1, lost: float | None = None, summary: Summary = "mean"
    ) -> None:
        super().__init__(summary)
        if reduction not in ("rms", "mean"):
            raise RegZooError(f"reduction: {reduction!r} is not known; use rms or mean")
        self.reduction = reduction
        self.first_label = first_label
        self.lost = lost

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """TRE in mm of one case, labels (C, X, Y, Z)."""
        distances = centroid_distances(y_pred, y)
        if self.lost is not None:
            distances[_emptied(y_pred, y).to(distances.device)] = self.lost
        distances = distances[self.first_label :]
        return distances.square().nanmean().sqrt() if self.reduction == "rms" else distances.nanmean()


class AdHocRegistrationError(TargetRegistrationError):
    """TRE of the kinds of label that the training did not see, as `regzoo.transforms.AdHocLabelsd` singles them out."""

    after = (WARPED.adhoc_label, REFERENCE.adhoc_label)
    before = (UNREGISTERED.adhoc_label, REFERENCE.adhoc_label)

    def __init__(self) -> None:
        super().__init__(first_label=0)


class WeightSelection(TargetRegistrationError):
    """The measure that the best weights are chosen by, lower is better: the TRE or, without landmarks, 1 − DSC.

    The gland alone, channel 0, has no TRE, or one that says little. So if the fixed labels of no case have a voxel in
    another channel, `aggregate` returns 1 − DSC of channel 0 and logs so once.

    Args: as for `TargetRegistrationError`.
    """

    told = False

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """TRE in mm, 1 − DSC, and whether the case has a landmark (1 or 0), (3,); labels (C, X, Y, Z)."""
        error, overlap = super().measure(y_pred, y), LabelDice().measure(y_pred, y)
        return torch.tensor([float(error), 1 - float(overlap), float(as_tensor(y)[1:].any())])

    def chosen(self, values: torch.Tensor) -> torch.Tensor:
        """The TRE of all cases (cases,), or 1 − DSC."""
        if bool(values[:, 2].any()):
            return values[:, 0]
        if not self.told:
            logger.info("no landmark among the labels to validate on: the gland's DSC chooses the epoch, not the TRE")
            self.told = True
        return values[:, 1]


class LostLabels(CaseMetric):
    """How many labels of a case came out empty; they have no centroid, so `TargetRegistrationError` leaves them out."""

    after = (WARPED.label, UNREGISTERED.label)
    before = None

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The number of lost labels of one case, labels (C, X, Y, Z)."""
        _check_same_shape(y_pred, y)
        return _emptied(y_pred, y).sum()


class LabelDice(CaseMetric):
    """Dice similarity coefficient (DSC), by default of the gland.

    NaN where the fixed label is empty, 0 where only the warped one is.

    Args:
        label: channel to measure; None for the mean over all labels that can be measured.
        threshold: soft labels count as inside from this value on.
        summary: over the cases, ``mean`` or ``median``.
    """

    def __init__(self, label: int | None = 0, threshold: float = 0.5, summary: Summary = "mean") -> None:
        super().__init__(summary)
        self.label = label
        self.threshold = threshold

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """DSC of one case, labels (C, X, Y, Z)."""
        warped, fixed = masks(y_pred, y, self.label, self.threshold)
        return compute_dice(warped[None], fixed[None]).nanmean()


class LabelHausdorff(CaseMetric):
    """Hausdorff distance between surfaces in mm, by default the 95th percentile for the gland.

    The larger of the two directed percentiles, over the voxels of the surfaces. NaN where either label is empty.

    Args:
        label: channel to measure; None for the mean over all labels that can be measured.
        percentile: 95 for HD95, 100 for the largest distance.
        threshold: soft labels count as inside from this value on.
        summary: over the cases, ``mean`` or ``median``.
    """

    def __init__(
        self, label: int | None = 0, percentile: float = 95, threshold: float = 0.5, summary: Summary = "mean"
    ) -> None:
        super().__init__(summary)
        self.label = label
        self.percentile = percentile
        self.threshold = threshold

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Hausdorff distance in mm of one case, labels (C, X, Y, Z); voxel size from the affine of `y`."""
        warped, fixed = masks(y_pred, y, self.label, self.threshold)
        there = warped.flatten(1).any(1) & fixed.flatten(1).any(1)
        if not there.any():
            return torch.tensor(torch.nan)
        with warnings.catch_warnings():
            # MONAI 1.5 and 1.6 call a function of their own with an argument that they have deprecated.
            warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*")
            return compute_hausdorff_distance(
                warped[there][None],
                fixed[there][None],
                include_background=True,
                percentile=self.percentile,
                spacing=affine_of(y)[:3, :3].norm(dim=0).tolist(),
            ).mean()


def dice(y_pred: torch.Tensor, y: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """Dice similarity coefficient of every label of a case.

    Args:
        y_pred: warped labels (C, X, Y, Z), binary or soft.
        y: fixed labels (C, X, Y, Z).
        threshold: soft labels count as inside from this value on.

    Returns:
        (C,); NaN where the fixed label is empty.
    """
    warped, fixed = masks(y_pred, y, None, threshold)
    return compute_dice(warped[None], fixed[None])[0]


def masks(y_pred: torch.Tensor, y: torch.Tensor, label: int | None, threshold: float) -> tuple[torch.Tensor, ...]:
    """The warped and the fixed labels as masks (C, X, Y, Z) bool on one device: one channel of them, or all for None.

    Raises:
        RegZooError: there is no such channel.
    """
    _check_same_shape(y_pred, y)
    if label is not None and not 0 <= label < len(y):
        raise RegZooError(f"label {label} is asked for, but the case has {len(y)}; choose 0 to {len(y) - 1}")
    kept = slice(None) if label is None else slice(label, label + 1)
    return tuple(as_tensor(labels)[kept].to(y_pred.device) >= threshold for labels in (y_pred, y))


def _emptied(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Which labels (C, X, Y, Z) there are in `y` and not in `y_pred`, (C,) bool."""
    return as_tensor(y).flatten(1).any(1) & ~as_tensor(y_pred).flatten(1).any(1)


def _check_same_shape(y_pred: torch.Tensor, y: torch.Tensor) -> None:
    if y_pred.ndim != 4 or y_pred.shape != y.shape:
        raise ValueError(
            f"labels must have one shape (C, X, Y, Z): warped {tuple(y_pred.shape)}, fixed {tuple(y.shape)}"
        )
