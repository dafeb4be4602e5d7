"""Augmentation of a batch on its device."""

from regzoo.augmentation.affine import RandomAffinePair, random_affine
from regzoo.augmentation.single_image import SingleImageAugmentation
from regzoo.augmentation.thin_plate import ThinPlateSpline

__all__ = ["RandomAffinePair", "SingleImageAugmentation", "ThinPlateSpline", "random_affine"]
