"""Separable filtering as matrix products: exact at any scale and at the border, fast on a CPU and on tensor cores.

A separable filter of a volume is one n×n matrix per axis. The product is a BLAS call, whose cost does not depend on the
width of the kernel. The transposed matrix is the exact adjoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import torch

Border = Literal["zeros", "renormalise"]


def gaussian_matrix(size: int, sigma: float, border: Border = "zeros") -> torch.Tensor:
    """The matrix that filters an axis of `size` voxels with a sampled, untruncated Gaussian.

    Args:
        size: number of voxels n.
        sigma: standard deviation, voxels; 0 gives the identity.
        border: ``zeros`` treats everything outside as 0; ``renormalise`` leaves a constant volume unchanged.

    Returns:
        (n, n) float32, symmetric for ``zeros``. The kernel sums to 1 over the whole integer line.
    """
    if sigma <= 0:
        return torch.eye(size)
    distance = torch.arange(size, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (distance[:, None] - distance[None]).square() / sigma**2)
    if border == "renormalise":
        return (kernel / kernel.sum(dim=1, keepdim=True)).float()
    reach = math.ceil(9 * sigma)
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    return (kernel / torch.exp(-0.5 * line.square() / sigma**2).sum()).float()


def gaussian_gram(size: int, sigma: float) -> torch.Tensor:
    """KᵀK of the zero-border `gaussian_matrix` K: one product filters twice, ⟨K a, K b⟩ = ⟨a, KᵀK b⟩."""
    kernel = gaussian_matrix(size, sigma).double()
    return (kernel.T @ kernel).float()


def gaussian_mass(size: int, sigma: float) -> torch.Tensor:
    """Kᵀ1 of the zero-border `gaussian_matrix` K, shape (n,): Σ K a = ⟨a, Kᵀ1⟩."""
    return gaussian_matrix(size, sigma).sum(dim=0)


@lru_cache(maxsize=256)
def matrix_for(device: torch.device, make: Callable[..., torch.Tensor], *arguments: object) -> torch.Tensor:
    """A filter matrix, or another constant, on a device; cached, so that a training step does not upload it again."""
    # Training cannot use a matrix that was made in inference mode.
    with torch.inference_mode(False):
        return make(*arguments).to(device)


def separable_filter(volume: torch.Tensor, matrices: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Multiply each axis of a volume by a matrix, in float32.

    Args:
        volume: (B, C, X, Y, Z).
        matrices: one (m, n) matrix for each of X, Y, Z; None leaves the axis unchanged.

    Returns:
        (B, C, X', Y', Z').
    """
    along_x, along_y, along_z = matrices
    with torch.autocast(volume.device.type, enabled=False):
        volume = volume.float()
        if along_z is not None:
            volume = volume @ along_z.T
        if along_y is not None:
            volume = along_y @ volume
        if along_x is not None:
            tail = volume.shape[3:]
            volume = (along_x @ volume.flatten(3)).unflatten(3, tail)
    return volume


def gaussian_filter(volume: torch.Tensor, sigma: Sequence[float], border: Border = "zeros") -> torch.Tensor:
    """Gaussian filter, differentiable.

    Args:
        volume: (B, C, X, Y, Z).
        sigma: standard deviation along each axis, voxels; 0 leaves the axis unchanged.
        border: see `gaussian_matrix`.

    Returns:
        (B, C, X, Y, Z) float32.
    """
    matrices = [
        matrix_for(volume.device, gaussian_matrix, int(size), float(s), border) if s > 0 else None
        for size, s in zip(volume.shape[2:], sigma, strict=True)
    ]
    return separable_filter(volume, matrices)


def voxel_sigmas(sigmas: Sequence[float], spacing: Sequence[float]) -> list[tuple[float, ...]]:
    """Convert each standard deviation from mm to voxels, one number per axis."""
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"spacing must be three positive numbers in mm, got {list(spacing)}")
    if not sigmas or min(sigmas) < 0:
        raise ValueError(f"sigmas must be non-negative numbers in mm, got {list(sigmas)}")
    return [tuple(float(sigma) / float(size) for size in spacing) for sigma in sigmas]
