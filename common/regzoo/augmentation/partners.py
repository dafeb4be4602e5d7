"""Training pairs of different images: the moving image of a pair is another image of its batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from regzoo.case import COUNTERPART, FIXED


class PartnerInBatch:
    """Makes pairs of the single images of a batch: the first with the second, the third with the fourth, and so on.

    A sampler that shuffles the images draws new pairs in every epoch, and an image is fixed as often as it is moving.
    The last image of an odd number is paired with the first one, and an image alone in its batch with itself.

    Args:
        augmentations: applied in turn to the pairs, each called with the batch and the seeds.
    """

    def __init__(
        self,
        augmentations: Sequence[Callable[[Mapping[str, torch.Tensor], torch.Tensor], dict[str, torch.Tensor]]] = (),
    ) -> None:
        self.augmentations = list(augmentations)

    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, torch.Tensor]:
        """Make the pairs of a batch of B images.

        Args:
            batch: tensors (B, C, X, Y, Z) named ``fixed_…``; the labels of all images have the same order.
            seeds: (B,) int64 on the CPU, for the augmentations.

        Returns:
            Tensors named ``fixed_…`` and ``moving_…`` of (B + 1) // 2 pairs.
        """
        pairs: dict[str, torch.Tensor] = {}
        for key, value in batch.items():
            if key in FIXED:
                pairs[key], pairs[COUNTERPART[key]] = value[::2], torch.cat([value, value[:1]])[1::2]
        for augmentation in self.augmentations:
            pairs = augmentation(pairs, seeds[::2])
        return pairs
