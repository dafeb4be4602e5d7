"""TRE, overlap, surface and deformation measures, one value per case, as MONAI metrics."""

from regzoo.metrics.deformation import FoldedVoxels, JacobianGradient, LogJacobianStd, deformation_statistics
from regzoo.metrics.handlers import metric_handlers
from regzoo.metrics.images import ImageCorrelation, ImageStructuralSimilarity
from regzoo.metrics.labels import (
    AdHocRegistrationError,
    LabelDice,
    LabelHausdorff,
    LostLabels,
    RegionDice,
    TargetRegistrationError,
    WeightSelection,
    centroid_distances,
    dice,
)
from regzoo.metrics.points import PointRegistrationError, point_distances

__all__ = [
    "AdHocRegistrationError",
    "FoldedVoxels",
    "ImageCorrelation",
    "ImageStructuralSimilarity",
    "JacobianGradient",
    "LabelDice",
    "LabelHausdorff",
    "LogJacobianStd",
    "LostLabels",
    "PointRegistrationError",
    "RegionDice",
    "TargetRegistrationError",
    "WeightSelection",
    "centroid_distances",
    "deformation_statistics",
    "dice",
    "metric_handlers",
    "point_distances",
]
