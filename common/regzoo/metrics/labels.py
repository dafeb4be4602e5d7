"""How well labels agree: distance of centroids, overlap and distance of surfaces, one value per case."""

from __future__ import annotations

import logging
import warnings
from typing import Literal

import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from regzoo.errors import RegZooError
from regzoo.metrics.base import CaseMetric, Summary, affine_of, spacing_of
from regzoo.spatial import as_tensor, centroids

logger = logging.getLogger(__name__)

Reduction = Literal["rms", "mean"]


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
        lost: what a landmark counts that is empty in the warped label alone, mm; None leaves it out, too. To choose
            weights by, or those that find the easy landmarks only would seem the best.
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

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        """TRE in mm of one case, labels (C, X, Y, Z)."""
        fixed = required(y)
        distances = centroid_distances(y_pred, fixed)
        if self.lost is not None:
            distances[_emptied(y_pred, fixed).to(distances.device)] = self.lost
        distances = distances[self.first_label :]
        distances = distances[~distances.isnan()]
        # The mean of nothing is NaN, which says "no landmark to measure".
        return distances.square().mean().sqrt() if self.reduction == "rms" else distances.mean()


class LostLabels(CaseMetric):
    """How many labels of a case came out empty: `TargetRegistrationError` leaves them out, since they have no centroid.

    `y_pred` is the warped label, `y` the unregistered one.
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        """The number of lost labels of one case, labels (C, X, Y, Z)."""
        moving = required(y)
        _check_same_shape(y_pred, moving)
        return _emptied(y_pred, moving).sum()


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
        warped, fixed = one_label(y_pred, required(y), self.label, self.threshold)
        return compute_dice(warped[None, None], fixed[None, None])


class WeightSelection(TargetRegistrationError):
    """What the best weights are chosen by, lower is better: the TRE or, without landmarks, 1 − DSC of the gland.

    The gland alone, channel 0, has no TRE, or one that says little. So where the fixed labels of no case have a voxel
    in another channel, `aggregate` gives 1 − DSC of channel 0, and one line says so.

    Args: as of `TargetRegistrationError`.
    """

    told = False

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        """TRE in mm, 1 − DSC, and whether the case has a landmark (1 or 0), (3,); labels (C, X, Y, Z)."""
        fixed = required(y)
        missed = 1 - LabelDice().measure(y_pred, fixed)
        values = (super().measure(y_pred, fixed), missed, as_tensor(fixed)[1:].any())
        return torch.tensor([float(value) for value in values])

    def chosen(self, values: torch.Tensor) -> torch.Tensor:
        """The TRE of all cases (cases,), or 1 − DSC."""
        if bool(values[:, 2].any()):
            return values[:, 0]
        if not self.told:
            logger.info("no landmark among the labels to validate on: the gland's DSC chooses the epoch, not the TRE")
            self.told = True
        return values[:, 1]


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
        fixed_labels = required(y)
        warped, fixed = one_label(y_pred, fixed_labels, self.label, self.threshold)
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
    return compute_dice(as_tensor(y_pred)[None] >= threshold, as_tensor(y)[None] >= threshold)[0]


def one_label(y_pred: torch.Tensor, y: torch.Tensor, label: int, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One channel of the warped and of the fixed labels as masks (X, Y, Z) bool, after checking that there is one."""
    _check_same_shape(y_pred, y)
    if not 0 <= label < y.shape[0]:
        raise RegZooError(f"label {label} is asked for, but the case has {y.shape[0]}; choose 0 to {y.shape[0] - 1}")
    return as_tensor(y_pred)[label] >= threshold, as_tensor(y)[label] >= threshold


def required(y: torch.Tensor | None) -> torch.Tensor:
    """The fixed labels, which MONAI's metrics may be called without."""
    if y is None:
        raise ValueError("this metric compares labels: pass the fixed labels as y")
    return y


def _emptied(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Which labels (C, X, Y, Z) there are in `y` and not in `y_pred`, (C,) bool."""
    return as_tensor(y).flatten(1).any(1) & ~as_tensor(y_pred).flatten(1).any(1)


def _check_same_shape(y_pred: torch.Tensor, y: torch.Tensor) -> None:
    if y_pred.ndim != 4 or y_pred.shape != y.shape:
        raise ValueError(
            f"labels must have one shape (C, X, Y, Z): warped {tuple(y_pred.shape)}, fixed {tuple(y.shape)}"
        )
