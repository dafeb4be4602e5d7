"""Training pairs of different images: the moving image of a sample is another image of its batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from regzoo.case import COUNTERPART, FIXED


class PartnerInBatch:
    """Gives each single image of a batch the next image of the batch as its moving image, and the last one the first.

    A sampler that shuffles the images draws new pairs in every epoch, and each image is fixed as often as it is moving.
    A batch of one image pairs the image with itself.

    Args:
        augmentations: applied in turn to the pairs, each called with the batch and the seeds.
    """

    def __init__(
        self,
        augmentations: Sequence[Callable[[Mapping[str, torch.Tensor], torch.Tensor], dict[str, torch.Tensor]]] = (),
    ) -> None:
        self.augmentations = list(augmentations)

    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, torch.Tensor]:
        """Make the moving side of a batch.

        Args:
            batch: tensors (B, C, X, Y, Z) named ``fixed_…``; the labels of all images have the same order.
            seeds: (B,) int64 on the CPU, for the augmentations.

        Returns:
            The batch with ``moving_…``.
        """
        fixed = {key: value for key, value in batch.items() if key in FIXED}
        pairs = fixed | {COUNTERPART[key]: value.roll(-1, 0) for key, value in fixed.items()}
        for augmentation in self.augmentations:
            pairs = augmentation(pairs, seeds)
        return pairs
