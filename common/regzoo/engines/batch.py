"""From a batch of the data loader to the input of the network and of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from regzoo.case import IMAGE_KEYS, LABEL_KEYS, Key
from regzoo.samplers import SAMPLE_KEYS, float_masks
from regzoo.spatial import as_tensor

Augmentation = Callable[[Mapping[str, torch.Tensor], torch.Tensor], dict[str, torch.Tensor]]


class PreparePair:
    """MONAI ``prepare_batch``: move a batch to the device, augment it there, stack the network's input.

    Args:
        augmentation: called with the tensors on the device and the samples' seeds on the CPU; None for no augmentation.
        inputs: the network's inputs in order, the fixed image first.

    MONAI calls it with (batch, device, non_blocking). It returns ``(image, targets)``: the stacked input
    (B, C, X, Y, Z) and the dict that `regzoo.losses.RegistrationLoss` takes.
    """

    def __init__(self, augmentation: Augmentation | None = None, inputs: Sequence[str] = IMAGE_KEYS) -> None:
        self.augmentation = augmentation
        self.inputs = tuple(inputs)

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        there = {
            key: as_tensor(batch[key]).to(device=device, non_blocking=non_blocking)
            for key in (*SAMPLE_KEYS, Key.LABEL_NUMBERS)
            if key in batch
        }
        numbers = there.pop(Key.LABEL_NUMBERS, None)
        pair = {key: float_masks(value, numbers if key in LABEL_KEYS else None) for key, value in there.items()}
        if self.augmentation is not None:
            pair = self.augmentation(pair, batch["seed"])
        return torch.cat([pair[key] for key in self.inputs], dim=1), pair
