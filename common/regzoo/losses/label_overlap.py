"""Similarity of labels: Dice and cross-entropy averaged over Gaussian scales, and cross-entropy of predicted labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from regzoo.filters import gaussian_filter, gaussian_gram, gaussian_mass, matrix_for, separable_filter, voxel_sigmas
from regzoo.losses.similarity import Prepared, Similarity
from torch import nn

#: Scales of Hu et al. 2018, mm; 0 is the unfiltered label.
PAPER_SIGMAS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


class MultiScaleDice(Similarity):
    """Mean over Gaussian scales of 1 − soft Dice of the filtered labels, in float32; mean over batch and labels too.

    The warped label a is never filtered, because for a separable filter f, ``⟨f a, f b⟩ = ⟨a, fᵀf b⟩`` and
    ``Σ f a = ⟨a, fᵀ1⟩``. The fixed label b is filtered once per scale, without gradient, and each scale costs one dot
    product with a. The result is exact, also at the border. A mask multiplies both labels.

    Args:
        sigmas: standard deviations, mm; 0 is the unfiltered label.
        spacing: voxel size of the labels, mm.
        squared_denominator: use ``Σ(f a)² + Σ(f b)²`` in the denominator, which makes the loss 0 for identical labels.
            The default, ``Σ f a + Σ f b``, is the paper's; the loss then stays above about 0.43 for a gland with a
            radius of 20 voxels.
        eps: added to the denominator.

    Source: Hu et al. 2018, equations 4 and 5, with σ in mm.
    """

    def __init__(
        self,
        sigmas: Sequence[float] = PAPER_SIGMAS,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        squared_denominator: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.sigmas = voxel_sigmas(sigmas, spacing)
        self.squared_denominator = squared_denominator
        self.eps = eps

    def extra_repr(self) -> str:
        return f"sigmas={self.sigmas} voxels, squared_denominator={self.squared_denominator}, eps={self.eps}"

    def against(self, fixed: torch.Tensor, weights: torch.Tensor | None) -> Prepared:
        share = None if weights is None else (weights / weights.amax((2, 3, 4), keepdim=True)).float()

        def counted(label: torch.Tensor) -> torch.Tensor:
            return label.float() if share is None else label.float() * share

        fixed = counted(fixed)
        twice = torch.stack(self._filter_twice(fixed), dim=2).flatten(3)
        fixed_mass = self._overlap(twice, fixed) if self.squared_denominator else self._mass(fixed)

        def loss(warped: torch.Tensor) -> torch.Tensor:
            warped = counted(warped)
            if self.squared_denominator:
                # ⟨a, fᵀf a⟩ has the gradient 2 fᵀf a, which is already known: 2⟨a, c⟩ − c₀ with constant c needs no
                # filter in the backward pass.
                again = torch.stack(self._filter_twice(warped.detach()), dim=2).flatten(3)
                warped_mass = self._overlap(again, 2 * warped - warped.detach())
            else:
                warped_mass = self._mass(warped)
            dice = 2 * self._overlap(twice, warped) / (warped_mass + fixed_mass + self.eps)
            return 1 - dice.mean()

        return loss

    def _overlap(self, scales: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """(B, C, scales, voxels), (B, C, X, Y, Z) → (B, C, scales)."""
        return torch.einsum("bcsn,bcn->bcs", scales, label.flatten(2))

    def _filter_twice(self, label: torch.Tensor) -> list[torch.Tensor]:
        """fᵀf of a label at each scale, (B, C, X, Y, Z) each."""
        size = label.shape[2:]
        filtered = []
        for sigma in self.sigmas:
            matrices = [
                matrix_for(label.device, gaussian_gram, int(n), s) if s > 0 else None
                for n, s in zip(size, sigma, strict=True)
            ]
            filtered.append(separable_filter(label, matrices))
        return filtered

    def _mass(self, label: torch.Tensor) -> torch.Tensor:
        """Sum of the filtered label at each scale, (B, C, scales): a product with one weight vector per axis."""
        weights = [
            torch.stack([matrix_for(label.device, gaussian_mass, int(n), sigma[axis]) for sigma in self.sigmas])
            for axis, n in enumerate(label.shape[2:])
        ]
        along_z = label @ weights[2].T  # (B, C, X, Y, scales)
        along_y = torch.einsum("bcxys,sy->bcxs", along_z, weights[1])
        return torch.einsum("bcxs,sx->bcs", along_y, weights[0])


class MultiScaleCrossEntropy(nn.Module):
    """Mean over Gaussian scales of the voxel-wise cross-entropy of the filtered labels.

    Args:
        sigmas: standard deviations, mm; 0 is the unfiltered label.
        spacing: voxel size of the labels, mm.
        eps: probabilities are clipped to [eps, 1 − eps].

    Source: Hu et al. 2018, equation 6 ("Baseline-msCE"), averaged over voxels.
    """

    def __init__(
        self, sigmas: Sequence[float] = PAPER_SIGMAS, spacing: Sequence[float] = (1.0, 1.0, 1.0), eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.sigmas = voxel_sigmas(sigmas, spacing)
        self.eps = eps

    def extra_repr(self) -> str:
        return f"sigmas={self.sigmas} voxels, eps={self.eps}"

    def forward(self, warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Loss of warped moving labels against fixed labels, both (B, C, X, Y, Z) in [0, 1] → scalar."""
        with torch.autocast(warped.device.type, enabled=False):
            losses = []
            for sigma in self.sigmas:
                with torch.no_grad():
                    target = gaussian_filter(fixed.float(), sigma)
                probability = gaussian_filter(warped.float(), sigma).clamp(self.eps, 1 - self.eps)
                losses.append(nn.functional.binary_cross_entropy(probability, target.clamp(0, 1)))
            return torch.stack(losses).mean()


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy of predicted labels that balances the foreground of each label against its background.

    A foreground voxel has the weight ``w = (background / foreground)^balance``, a background voxel 1. The weighted sum
    is divided by the sum of the weights, so labels of all sizes count equally. A prediction of 0.5 everywhere costs
    log 2.

    Args:
        balance: 1, as in the paper, gives the foreground and the background of a label equal weight; the region p ≥ 0.5
            is then larger than the label where its border is uncertain. 0 weights all voxels equally; small labels are
            then never found.

    Source: Hu et al. 2019, section 2.2, with a separate ratio for each label.
    """

    def __init__(self, balance: float = 1.0) -> None:
        super().__init__()
        if not 0 <= balance <= 1:
            raise ValueError(f"balance must lie in [0, 1], got {balance}")
        self.balance = float(balance)

    def extra_repr(self) -> str:
        return f"balance={self.balance}"

    def forward(self, logits: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Logits (B, C, X, Y, Z) and fixed labels of the same shape in [0, 1] → scalar, mean over batch and labels."""
        with torch.autocast(logits.device.type, enabled=False):
            fixed = fixed.float()
            foreground = fixed.sum((2, 3, 4), keepdim=True)
            background = fixed[0, 0].numel() - foreground
            # Clamped so that a label almost out of view does not outweigh all others, and a label that fills the field
            # of view keeps some weight.
            weight = (background.clamp(min=1) / foreground.clamp(min=1)) ** self.balance
            loss = nn.functional.binary_cross_entropy_with_logits(
                logits.float(), fixed, pos_weight=weight, reduction="none"
            )
            return (loss.sum((2, 3, 4), keepdim=True) / (weight * foreground + background)).mean()
