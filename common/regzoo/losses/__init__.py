"""Loss functions: label overlap, deformation, and how they are combined."""

from regzoo.losses.deformation import BendingEnergy, GradientNorm
from regzoo.losses.label_overlap import PAPER_SIGMAS, MultiScaleCrossEntropy, MultiScaleDice
from regzoo.losses.registration import Deformation, LabelSimilarity, RegistrationLoss

__all__ = [
    "PAPER_SIGMAS",
    "BendingEnergy",
    "Deformation",
    "GradientNorm",
    "LabelSimilarity",
    "MultiScaleCrossEntropy",
    "MultiScaleDice",
    "RegistrationLoss",
]
