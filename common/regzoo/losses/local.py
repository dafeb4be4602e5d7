"""Compare statistics of two images within a window around every voxel, with the gradient.

The statistics are functions of a few filtered products of the images, so their gradient takes a few more passes, with
the transposed filter. The forward pass computes the gradient and keeps nothing else for the backward pass. What depends
on the fixed image alone is computed once. The work is done in slabs that fit into the cache of the CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from regzoo.losses.windows import Window, in_slabs, slabs


class Slopes(NamedTuple):
    """Derivatives with respect to the filtered warped image, its filtered square, and the filtered product of both."""

    mean: torch.Tensor
    square: torch.Tensor
    product: torch.Tensor


class LocalMeasure(ABC):
    """The similarity of a warped image w to one fixed image f; all volumes are (X, Y, Z).

    With the filter K, the weights m of the voxels and the moments m₁ = K m w, m₂ = K m w² and m₃ = K m w f, the
    gradient of the similarity S is ``m (Kᵀ ∂S/∂m₁ + 2 w Kᵀ ∂S/∂m₂ + f Kᵀ ∂S/∂m₃)``.

    Args:
        fixed: f.
        window: the filter K.
        mask: the weights m; None for 1 everywhere.
        share: sum of the weights of all windows.

    Attributes:
        mass: sum of the weights within each window, a volume of the size of a moment, or a single number.
        weight: weight of each window, likewise.
        constants: what `score` needs of the fixed image, likewise.
    """

    constants: Sequence[torch.Tensor]

    def __init__(self, fixed: torch.Tensor, window: Window, mask: torch.Tensor | None, share: float) -> None:
        self.fixed, self.window, self.mask = fixed, window, mask
        self._workspace: torch.Tensor | None = None
        if mask is None:
            self.mass = fixed.new_full((), window.mass)
            self.weight = fixed.new_full((), share / window.center(fixed).numel())
        else:
            # Windows without a voxel that counts have the weight 0 and must not divide by 0.
            self.mass = window.filter(mask[None])[0].clamp_(min=1e-30)
            center = window.center(mask)
            self.weight = center * (share / center.sum())

    @abstractmethod
    def score(
        self, moments: Sequence[torch.Tensor], constants: Sequence[torch.Tensor], slopes: bool
    ) -> tuple[torch.Tensor, Slopes | None]:
        """The similarity of a slab, weighted, and if `slopes` its derivatives, from m₁, m₂ and m₃ and the constants."""

    def moments(self, *factors: torch.Tensor | None) -> torch.Tensor:
        """K m f and K m f g for each factor g, None for 1: (N, X', Y', Z')."""

        def products(slab: slice) -> torch.Tensor:
            weighted = self.fixed[slab] if self.mask is None else self.fixed[slab] * self.mask[slab]
            return torch.stack([weighted if factor is None else weighted * factor[slab] for factor in factors])

        partial = in_slabs(self.fixed, 0, 3, lambda slab: self.window.filter(products(slab), (2, 1)))
        return in_slabs(partial, 1, 3, lambda slab: self.window.filter(partial[:, :, slab], (0,)))

    def evaluate(self, warped: torch.Tensor, slopes: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The similarity and, if `slopes`, its gradient with respect to the warped image."""
        window = self.window
        partial = self._workspace = in_slabs(
            warped, 0, 3, lambda slab: window.filter(self._products(warped[slab], slab), (2, 1)), self._workspace
        )
        total = warped.new_zeros(())
        for slab in slabs(partial, 1, 3):
            constants = [c[:, slab] if c.ndim else c for c in self.constants]
            value, derivatives = self.score(window.filter(partial[:, :, slab], (0,)).unbind(), constants, slopes)
            total += value
            if derivatives is not None:
                partial[:, :, slab] = window.adjoint(torch.stack(derivatives), (0,))
        if not slopes:
            return total, None
        return total, in_slabs(
            warped, 0, 3, lambda slab: self._gradient(warped[slab], window.adjoint(partial[:, slab], (2, 1)), slab)
        )

    def _products(self, warped: torch.Tensor, slab: slice) -> torch.Tensor:
        products = warped.new_empty(3, *warped.shape)
        weighted = (
            products[0].copy_(warped) if self.mask is None else torch.mul(warped, self.mask[slab], out=products[0])
        )
        torch.mul(weighted, warped, out=products[1])
        torch.mul(weighted, self.fixed[slab], out=products[2])
        return products

    def _gradient(self, warped: torch.Tensor, slopes: torch.Tensor, slab: slice) -> torch.Tensor:
        by_mean, by_square, by_product = slopes
        gradient: torch.Tensor = by_mean.addcmul(warped, by_square, value=2).addcmul_(self.fixed[slab], by_product)
        return gradient if self.mask is None else gradient.mul_(self.mask[slab])


class LocalSum(torch.autograd.Function):
    """Sum of the similarities of images (B, C, X, Y, Z) to one measure each; `forward` also computes the gradient."""

    @staticmethod
    def forward(ctx: Any, warped: torch.Tensor, measures: Sequence[LocalMeasure]) -> torch.Tensor:
        pairs = zip(measures, warped.flatten(0, 1), strict=True)
        results = [measure.evaluate(image, ctx.needs_input_grad[0]) for measure, image in pairs]
        gradients = [gradient for _, gradient in results if gradient is not None]
        if gradients:
            together = gradients[0][None] if len(gradients) == 1 else torch.stack(gradients)
            ctx.save_for_backward(together.view_as(warped))
        return torch.stack([similarity for similarity, _ in results]).sum()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None
