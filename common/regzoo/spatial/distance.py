"""Signed distances to the surface of an object."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from regzoo.spatial.volumes import as_tensor
from scipy.ndimage import binary_erosion, distance_transform_edt

_ALL_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


def signed_distance(mask: np.ndarray | torch.Tensor, spacing: Sequence[float] | np.ndarray) -> np.ndarray:
    """Distance of every voxel centre to the boundary of an object, mm: positive outside, negative inside.

    The boundary, where the distance is 0, consists of the object's voxels that have one of their 26 neighbours outside.
    This equals ITK's ``SignedMaurerDistanceMapImageFilter`` with its spacing on: an object that the edge of the image
    cuts off has no boundary at that edge, unless it fills the whole image.

    Args:
        mask: (X, Y, Z); voxels that are not 0 belong to the object.
        spacing: voxel size along X, Y, Z, mm.

    Returns:
        (X, Y, Z) float32, mm.

    Raises:
        ValueError: the mask is empty or not a volume.
    """
    inside = np.asarray(as_tensor(mask).cpu() if isinstance(mask, torch.Tensor) else mask) != 0
    if inside.ndim != 3:
        raise ValueError(f"a mask must have shape (X, Y, Z), this has {inside.shape}")
    if not inside.any():
        raise ValueError("an empty mask has no boundary to measure distances from")
    boundary = inside & ~binary_erosion(inside, _ALL_NEIGHBOURS, border_value=0 if inside.all() else 1)
    distance = distance_transform_edt(~boundary, sampling=[float(s) for s in spacing]).astype(np.float32)
    np.negative(distance, out=distance, where=inside)
    return np.asarray(distance)
