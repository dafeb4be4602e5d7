"""Loss functions: label overlap, intensity, deformation, and their combination.

The ``extra_repr`` of a loss shows its settings, because checkpoints tell losses apart by their repr.
"""

from regzoo.losses.deformation import BendingEnergy, GradientNorm
from regzoo.losses.distance import LogDistance, SignedDistanceSimilarity
from regzoo.losses.hausdorff import SoftHausdorff
from regzoo.losses.intensity import LocalNormalizedCrossCorrelation, NormalizedCrossCorrelation, StructuralSimilarity
from regzoo.losses.label_overlap import PAPER_SIGMAS, MultiScaleCrossEntropy, MultiScaleDice, WeightedCrossEntropy
from regzoo.losses.mind import MindSimilarity, mind_ssc
from regzoo.losses.registration import (
    Deformation,
    ImageSimilarity,
    LabelSimilarity,
    PredictedLabel,
    PredictedOutlines,
    RegistrationLoss,
)
from regzoo.losses.weighting import LearnedWeights, SoftmaxWeights, UncertaintyWeights

__all__ = [
    "PAPER_SIGMAS",
    "BendingEnergy",
    "Deformation",
    "GradientNorm",
    "ImageSimilarity",
    "LabelSimilarity",
    "LearnedWeights",
    "LocalNormalizedCrossCorrelation",
    "LogDistance",
    "MindSimilarity",
    "MultiScaleCrossEntropy",
    "MultiScaleDice",
    "NormalizedCrossCorrelation",
    "PredictedLabel",
    "PredictedOutlines",
    "RegistrationLoss",
    "SignedDistanceSimilarity",
    "SoftHausdorff",
    "SoftmaxWeights",
    "StructuralSimilarity",
    "UncertaintyWeights",
    "WeightedCrossEntropy",
    "mind_ssc",
]
