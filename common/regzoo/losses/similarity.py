"""What all losses have in common that compare a warped volume with a fixed one: precision, checks, preparation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from regzoo.errors import RegZooError
from torch import nn

#: The loss of a warped volume (B, C, X, Y, Z) against a fixed volume that was given before; returns a scalar.
Prepared = Callable[[torch.Tensor], torch.Tensor]


class Similarity(nn.Module):
    """Base class of losses that compare a warped moving volume with a fixed volume.

    A loss that is called many times with one fixed volume is prepared once: after
    ``prepared = loss.prepare(fixed, mask)``, ``prepared(warped)`` equals ``loss(warped, fixed, mask)`` and costs less.
    """

    @abstractmethod
    def against(self, fixed: torch.Tensor, weights: torch.Tensor | None) -> Prepared:
        """The loss against one fixed volume (B, C, X, Y, Z), given the weights of its voxels in the same shape.

        Both volumes have the same type, float32 or float64, and gradients are off during this call.
        """

    def forward(self, warped: torch.Tensor, fixed: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Loss of a warped moving volume against a fixed volume.

        Args:
            warped: (B, C, X, Y, Z); gradients flow to it.
            fixed: (B, C, X, Y, Z); taken as constant.
            mask: (B, 1, X, Y, Z), weights ≥ 0 of the voxels, of which only the ratios matter; what lies where the
                weight is 0 has no influence. None means that all voxels count equally.

        Returns:
            Scalar, in float32, or in float64 if either volume is.

        Raises:
            RegZooError: the mask of an image has no voxel that counts, or the volumes are too small for the loss.
            ValueError: the volumes differ in shape.
        """
        return self.prepare(fixed.to(torch.promote_types(warped.dtype, fixed.dtype)), mask)(warped)

    def prepare(self, fixed: torch.Tensor, mask: torch.Tensor | None = None) -> Prepared:
        """The loss against one fixed volume, after all that depends on it alone has been computed; see `forward`.

        Calls of one prepared loss share memory, so they must not run in several threads at the same time.
        """
        with torch.no_grad(), torch.autocast(fixed.device.type, enabled=False):
            fixed = fixed.detach()
            fixed = fixed if fixed.dtype == torch.float64 else fixed.float()
            against = self.against(fixed, None if mask is None else _weights(mask, fixed))

        def loss(warped: torch.Tensor) -> torch.Tensor:
            if warped.ndim != 5 or warped.shape != fixed.shape:
                shapes = f"{list(warped.shape)} and {list(fixed.shape)}"
                raise ValueError(f"volumes must have the same shape (B, C, X, Y, Z), got {shapes}")
            with torch.autocast(warped.device.type, enabled=False):
                return against(warped.to(fixed.dtype))

        return loss


def _weights(mask: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    if mask.shape != (len(fixed), 1, *fixed.shape[2:]):
        raise ValueError(f"the mask of volumes {list(fixed.shape)} must have one channel, got {list(mask.shape)}")
    mask = mask.detach().to(fixed)
    if not bool((mask >= 0).all() & (mask.amax((1, 2, 3, 4)) > 0).all()):
        raise RegZooError("no voxel of the mask counts, or a weight is negative; give a mask with voxels above 0")
    return mask.expand_as(fixed)
