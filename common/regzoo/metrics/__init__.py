"""TRE, overlap, surface and deformation measures, one value per case, as MONAI metrics."""

from regzoo.metrics.base import CaseMetric
from regzoo.metrics.challenge import CaseValues, challenge_measures, challenge_score, landmark_errors, robust_mean
from regzoo.metrics.deformation import FoldedVoxels, JacobianGradient, LogJacobianStd, deformation_statistics
from regzoo.metrics.images import ImageCorrelation, ImageStructuralSimilarity, MeanLabelDice, MeanLabelHausdorff
from regzoo.metrics.labels import (
    LabelDice,
    LabelHausdorff,
    LostLabels,
    TargetRegistrationError,
    WeightSelection,
    centroid_distances,
    centroids,
    dice,
)
from regzoo.metrics.regions import RegionDice

__all__ = [
    "CaseMetric",
    "CaseValues",
    "FoldedVoxels",
    "ImageCorrelation",
    "ImageStructuralSimilarity",
    "JacobianGradient",
    "LabelDice",
    "LabelHausdorff",
    "LogJacobianStd",
    "LostLabels",
    "MeanLabelDice",
    "MeanLabelHausdorff",
    "RegionDice",
    "TargetRegistrationError",
    "WeightSelection",
    "centroid_distances",
    "centroids",
    "challenge_measures",
    "challenge_score",
    "deformation_statistics",
    "dice",
    "landmark_errors",
    "robust_mean",
]
