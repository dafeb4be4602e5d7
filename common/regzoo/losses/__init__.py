"""Loss functions: label overlap, deformation, and how they are combined."""

from regzoo.losses.deformation import BendingEnergy, GradientNorm
from regzoo.losses.distance import SignedDistanceSimilarity
from regzoo.losses.label_overlap import PAPER_SIGMAS, MultiScaleCrossEntropy, MultiScaleDice, WeightedCrossEntropy
from regzoo.losses.registration import Deformation, LabelSimilarity, PredictedLabel, RegistrationLoss

__all__ = [
    "PAPER_SIGMAS",
    "BendingEnergy",
    "Deformation",
    "GradientNorm",
    "LabelSimilarity",
    "MultiScaleCrossEntropy",
    "MultiScaleDice",
    "PredictedLabel",
    "RegistrationLoss",
    "SignedDistanceSimilarity",
    "WeightedCrossEntropy",
]
