"""Augmentation of a batch on its device."""

from regzoo.augmentation.affine import RandomAffinePair, random_affine

__all__ = ["RandomAffinePair", "random_affine"]
