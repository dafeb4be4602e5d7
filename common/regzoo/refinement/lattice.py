"""Displacements and velocities on the lattice of a level, in the memory layout that `torch` samples with.

Layout: a lattice holds (1, X, Y, Z, 3), voxels of the lattice; the components follow the array axes from last to first,
as `F.grid_sample` wants its coordinates. Adding a scaled lattice to the identity is then the only step between the
parameters of an optimisation and the sampling of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from regzoo.filters import matrix_for, separable_filter
from regzoo.spatial.warp import grid_sample


class Sampler:
    """Samples an image at the voxels of a lattice, moved by displacements of that lattice.

    Args:
        size: of the lattice.
        image_size: of the image that is sampled.
        step: voxels of the image per voxel of the lattice, along each axis.
        first: the voxel of the image at which the first voxel of the lattice lies, along each axis.
    """

    def __init__(
        self,
        size: Sequence[int],
        image_size: Sequence[int],
        step: Sequence[float] = (1.0, 1.0, 1.0),
        first: Sequence[float] = (0.0, 0.0, 0.0),
        device: torch.device | None = None,
    ) -> None:
        ticks = []
        for n, count, one, start in zip(size, image_size, step, first, strict=True):
            voxels = torch.arange(n, dtype=torch.float64) * one + start
            ticks.append((2 * voxels / max(count - 1, 1) - 1).float().to(device))
        self.identity = torch.stack(torch.meshgrid(*ticks, indexing="ij")[::-1], dim=-1)[None]
        scale = [2 * one / max(count - 1, 1) for one, count in zip(step, image_size, strict=True)]
        self.scale = torch.tensor(scale[::-1], device=device)
        # Half a voxel of the image beyond its first and last voxel.
        self.limit = torch.tensor([1 + 1 / max(count - 1, 1) for count in image_size][::-1], device=device)

    def stays(self, displacement: torch.Tensor) -> torch.Tensor:
        """Where displacements (1, X, Y, Z, 3) lead to a place within the image: (1, 1, X, Y, Z) bool."""
        places = torch.addcmul(self.identity, displacement, self.scale)
        return (places.abs_() <= self.limit).all(dim=-1)[:, None]

    def __call__(self, image: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
        """(1, C, X', Y', Z') at displacements (1, X, Y, Z, 3) → (1, C, X, Y, Z); border values beyond the image."""
        return grid_sample(image, torch.addcmul(self.identity, displacement, self.scale), "bilinear", "border")


class Lattice:
    """A lattice of displacements, of `size` voxels, that can be composed, integrated and interpolated."""

    def __init__(self, size: Sequence[int], device: torch.device) -> None:
        self.size = tuple(int(n) for n in size)
        self.device = device
        self.sampler = Sampler(size, size, device=device)

    def zeros(self) -> torch.Tensor:
        return torch.zeros(1, *self.size, 3, device=self.device)

    def compose(self, first: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
        """The displacement that applies `first`, then `then`."""
        return first + self.sampler(then.movedim(-1, 1), first).movedim(1, -1)

    def exponential(self, velocity: torch.Tensor, squarings: int) -> torch.Tensor:
        """The displacement at time 1 of a stationary velocity field, by scaling and squaring.

        Source: Arsigny et al. 2006, A log-Euclidean framework for statistics on diffeomorphisms.
        """
        displacement = velocity * 2.0**-squarings
        for _ in range(squarings):
            displacement = self.compose(displacement, displacement)
        return displacement

    def resized(self, displacement: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """The same displacement on a lattice of another size over the same field of view, in voxels of that lattice."""
        old = displacement.shape[1:4]
        if tuple(size) == tuple(old):
            return displacement
        ratio = [(n - 1) / max(m - 1, 1) for n, m in zip(size, old, strict=True)][::-1]
        scales = (1.0,), (1.0,), tuple(ratio)
        # The last axis also holds the components of each voxel, next to each other.
        matrices = [matrix_for(self.device, linear_matrix, *axis) for axis in zip(old, size, scales, strict=True)]
        return separable_filter(displacement.flatten(3)[None], matrices)[0].unflatten(3, (size[2], 3))


def linear_matrix(size: int, target: int, scales: Sequence[float]) -> torch.Tensor:
    """(target · n, size · n): interpolates an axis at `target` voxels from its first to its last.

    Each voxel has n components next to each other, which are multiplied by `scales`. On the CPU, the products take less
    time than `F.interpolate`, forward and backward.
    """
    weights = (1 - _distances(size, target)).clamp(min=0)
    return torch.kron(weights, torch.diag(torch.tensor(scales, dtype=torch.float64))).float()


def _distances(size: int, target: int) -> torch.Tensor:
    """(target, size): of `target` voxels, spread from the first to the last voxel of an axis, to the voxels there."""
    places = torch.arange(target, dtype=torch.float64)[:, None] * ((size - 1) / max(target - 1, 1))
    return (torch.arange(size, dtype=torch.float64)[None] - places).abs()


def roughness(velocity: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of neighbouring velocities (1, X, Y, Z, 3), summed over the axes."""
    return torch.stack([velocity.diff(dim=axis).square().mean() for axis in (1, 2, 3)]).sum()


def add_roughness_gradient(gradient: torch.Tensor, velocity: torch.Tensor, weight: float) -> None:
    """Add the gradient of ``weight * roughness(velocity)`` to `gradient`, in place."""
    for axis in (1, 2, 3):
        difference = velocity.diff(dim=axis)
        difference *= 2 * weight / max(difference.numel(), 1)
        n = velocity.shape[axis]
        gradient.narrow(axis, 1, n - 1).add_(difference)
        gradient.narrow(axis, 0, n - 1).sub_(difference)


def shrinking_matrix(size: int, target: int) -> torch.Tensor:
    """(target, size): blurs an axis against aliasing and samples it at `target` voxels from its first to its last."""
    distance = _distances(size, target)
    sigma = max((size - 1) / max(target - 1, 1) - 1, 0.0) / 2
    weights = torch.exp(-0.5 * (distance / sigma).square()) if sigma > 0.2 else (1 - distance).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def shrunk(volume: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(1, C, X, Y, Z) on a coarser grid of the same field of view, blurred against aliasing."""
    matrices = [
        None if n == m else shrinking_matrix(n, m).to(volume.device)
        for n, m in zip(volume.shape[2:], size, strict=True)
    ]
    return separable_filter(volume, matrices)
