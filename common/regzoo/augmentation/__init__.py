"""Augmentation of a batch on its device."""

from regzoo.augmentation.affine import RandomAffinePair, random_affine
from regzoo.augmentation.intensity import RandomIntensityPair
from regzoo.augmentation.partners import PartnerInBatch
from regzoo.augmentation.single_image import SingleImageAugmentation
from regzoo.augmentation.thin_plate import ThinPlateSpline

__all__ = [
    "PartnerInBatch",
    "RandomAffinePair",
    "RandomIntensityPair",
    "SingleImageAugmentation",
    "ThinPlateSpline",
    "random_affine",
]
