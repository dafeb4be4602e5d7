"""Agreement of labels: centroid distance, overlap and surface distance, one value per case."""

from __future__ import annotations

import logging
import warnings
from typing import Literal

import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from regzoo.case import REFERENCE, UNREGISTERED, WARPED
from regzoo.errors import RegZooError
from regzoo.metrics.base import CaseMetric, affine_of
from regzoo.spatial import as_tensor, centroids

logger = logging.getLogger(__name__)

Reduction = Literal["rms", "mean"]
Region = Literal["base", "mid", "apex"]


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
    return (centroids(y_pred, affine) - centroids(y, affine).to(y_pred.device)).norm(dim=1)


class TargetRegistrationError(CaseMetric):
    """Target registration error (TRE) of a case: the distance between its landmarks' centroids, mm.

    Landmarks that are empty in the fixed or the warped label are left out; a case without landmarks is NaN.

    Args:
        reduction: over the landmarks of a case, ``rms`` (root mean square) or ``mean``.
        first_label: the first channel that is a landmark; by default channel 0, the gland, is not one.
        lost: the error of a landmark that is empty only in the warped label, mm; None leaves the landmark out. Set it
            when choosing weights; otherwise, weights that find only the easy landmarks look best.

    Source: RMS, Hu et al. 2018, section 3.3; mean, Bashkanov et al. 2021 and Pérez de Frutos et al. 2023.
    """

    def __init__(  # noqa: B042 - an error in mm, not an exception
        self, reduction: Reduction = "rms", first_label: int = 1, lost: float | None = None
    ) -> None:
        super().__init__()
        if reduction not in ("rms", "mean"):
            raise RegZooError(f"reduction: {reduction!r} is not known; use rms or mean")
        self.reduction = reduction
        self.first_label = first_label
        self.lost = lost

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """TRE in mm of one case, labels (C, X, Y, Z)."""
        distances = centroid_distances(y_pred, y)
        if self.lost is not None:
            distances[_emptied(y_pred, y)] = self.lost
        distances = distances[self.first_label :]
        return distances.square().nanmean().sqrt() if self.reduction == "rms" else distances.nanmean()


class AdHocRegistrationError(TargetRegistrationError):
    """TRE of the kinds of label held out of the training, see `regzoo.transforms.AdHocLabelsd`."""

    after = (WARPED.adhoc_label, REFERENCE.adhoc_label)
    before = (UNREGISTERED.adhoc_label, REFERENCE.adhoc_label)

    def __init__(self) -> None:
        super().__init__(first_label=0)


class WeightSelection(TargetRegistrationError):
    """The metric for choosing the best weights, lower is better: the TRE or, without landmarks, 1 − DSC.

    The gland alone, channel 0, has no TRE, or one that says little. So if no case has a landmark among its fixed
    labels, `aggregate` returns 1 − DSC of the gland, and logs this once.

    Args: as for `TargetRegistrationError`.
    """

    logged = False

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(3,): TRE in mm, 1 − DSC, and 1 if the case has a landmark, else 0; labels (C, X, Y, Z)."""
        error, overlap = super().measure(y_pred, y), LabelDice().measure(y_pred, y)
        return torch.tensor([float(error), 1 - float(overlap), float(as_tensor(y)[1:].any())])

    def select(self, values: torch.Tensor) -> torch.Tensor:
        """The TRE of all cases (cases,), or 1 − DSC."""
        if bool(values[:, 2].any()):
            return values[:, 0]
        if not self.logged:
            logger.info("no landmark among the validation labels: the gland's DSC chooses the epoch, not the TRE")
            self.logged = True
        return values[:, 1]


class LostLabels(CaseMetric):
    """The number of labels that warping emptied; they have no centroid, so `TargetRegistrationError` skips them."""

    after = (WARPED.label, UNREGISTERED.label)
    before = None

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The number of lost labels of one case, labels (C, X, Y, Z)."""
        _check_same_shape(y_pred, y)
        return _emptied(y_pred, y).sum()


class LabelDice(CaseMetric):
    """Dice similarity coefficient (DSC), by default of the gland.

    NaN if the fixed label is empty, 0 if only the warped label is.

    Args:
        label: channel to measure; None for the mean over all labels that can be measured.
    """

    def __init__(self, label: int | None = 0) -> None:
        super().__init__()
        self.label = label

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """DSC of one case, labels (C, X, Y, Z)."""
        warped, fixed = masks(y_pred, y, self.label)
        return compute_dice(warped[None], fixed[None]).nanmean()


class LabelHausdorff(CaseMetric):
    """Hausdorff distance between surfaces in mm, by default the 95th percentile for the gland.

    The larger of the two directed percentiles, over the voxels of the surfaces. NaN if either label is empty.

    Args:
        label: channel to measure; None for the mean over all labels that can be measured.
        percentile: 95 for HD95, 100 for the largest distance.
    """

    def __init__(self, label: int | None = 0, percentile: float = 95) -> None:
        super().__init__()
        self.label = label
        self.percentile = percentile

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Hausdorff distance in mm of one case, labels (C, X, Y, Z); voxel size from the affine of `y`."""
        warped, fixed = masks(y_pred, y, self.label)
        present = warped.flatten(1).any(1) & fixed.flatten(1).any(1)
        if not present.any():
            return torch.tensor(torch.nan)
        with warnings.catch_warnings():
            # MONAI passes an argument that it has deprecated to a function of its own.
            warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*")
            return compute_hausdorff_distance(
                warped[present][None],
                fixed[present][None],
                include_background=True,
                percentile=self.percentile,
                spacing=affine_of(y)[:3, :3].norm(dim=0).tolist(),
            ).mean()


class RegionDice(CaseMetric):
    """Dice similarity coefficient (DSC) in one third of a label's extent from superior to inferior.

    The extent is that of the fixed label along the world's inferior–superior axis, to half a voxel layer beyond its
    outermost voxel centres. The upper third is the base, the lower third the apex. A voxel belongs to the third that
    contains its centre. Voxels above the extent count as base and voxels below it as apex, so no part of the warped
    label is left out.

    NaN if the fixed label is empty in this third, 0 if only the warped label is.

    Args:
        region: ``base``, ``mid`` or ``apex``.
        label: channel to measure.

    Source: Bashkanov et al. 2021, section 3.
    """

    def __init__(self, region: Region, label: int = 0) -> None:
        super().__init__()
        if region not in ("base", "mid", "apex"):
            raise RegZooError(f"region: {region!r} is not known; use base, mid or apex")
        self.region = region
        self.label = label

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """DSC of one case within the third, labels (C, X, Y, Z); geometry from the affine of `y`."""
        warped, fixed = masks(y_pred, y, self.label)
        if not fixed.any():
            return torch.tensor(torch.nan)
        upwards = affine_of(y)[2, :3]
        # How far each voxel centre lies above the first one, mm.
        rises = [step * torch.arange(n, dtype=torch.float64) for step, n in zip(upwards, fixed.shape[1:], strict=True)]
        height = (rises[0][:, None, None] + rises[1][:, None] + rises[2]).to(fixed.device)
        # Half the distance between voxel layers. Without it, a third could end at the voxel centres of a layer of a
        # (nearly) straight grid, and rounding would decide on which side they are.
        half = float(upwards.abs().max()) / 2
        lowest, highest = float(height[fixed[0]].min()) - half, float(height[fixed[0]].max()) + half
        third = (highest - lowest) / 3
        if self.region == "base":
            inside = height > highest - third
        elif self.region == "apex":
            inside = height < lowest + third
        else:
            inside = (height >= lowest + third) & (height <= highest - third)
        return compute_dice((warped & inside)[None], (fixed & inside)[None])


def dice(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Dice similarity coefficient of every label of a case.

    Args:
        y_pred: warped labels (C, X, Y, Z), binary or soft.
        y: fixed labels (C, X, Y, Z).

    Returns:
        (C,); NaN where the fixed label is empty.
    """
    warped, fixed = masks(y_pred, y, None)
    return compute_dice(warped[None], fixed[None])[0]


def masks(y_pred: torch.Tensor, y: torch.Tensor, label: int | None) -> tuple[torch.Tensor, ...]:
    """Where the warped and the fixed labels reach one half, (C, X, Y, Z) bool; all channels for None, else one.

    Raises:
        RegZooError: there is no such channel.
    """
    _check_same_shape(y_pred, y)
    if label is not None and not 0 <= label < len(y):
        raise RegZooError(f"label {label} does not exist: the case has {len(y)} labels; choose 0 to {len(y) - 1}")
    kept = slice(None) if label is None else slice(label, label + 1)
    return tuple(as_tensor(labels)[kept].to(y_pred.device) >= 0.5 for labels in (y_pred, y))


def _emptied(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Whether each label (C, X, Y, Z) is empty in `y_pred` but not in `y`, (C,) bool on the device of `y_pred`."""
    return as_tensor(y).flatten(1).any(1).to(y_pred.device) & ~as_tensor(y_pred).flatten(1).any(1)


def _check_same_shape(y_pred: torch.Tensor, y: torch.Tensor) -> None:
    if y_pred.ndim != 4 or y_pred.shape != y.shape:
        raise ValueError(f"both labels must have one shape (C, X, Y, Z): {tuple(y_pred.shape)}, {tuple(y.shape)}")
