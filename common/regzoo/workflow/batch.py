"""From a batch of the data loader to what the network and the loss take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from regzoo.datasets.records import IMAGE_KEYS, LABEL_KEYS
from regzoo.spatial import plain

Augmentation = Callable[[Mapping[str, torch.Tensor], torch.Tensor], dict[str, torch.Tensor]]


class PreparePair:
    """MONAI ``prepare_batch``: move a batch to the device, augment it there, stack the images with the fixed one first.

    Args:
        augmentation: called with the tensors on the device and the samples' seeds on the CPU; None for none.

    Called as MONAI does with (batch, device, non_blocking), returns ``(image, targets)``: the network's input
    (B, 2, X, Y, Z) and the dict that `regzoo.losses.RegistrationLoss` takes.
    """

    def __init__(self, augmentation: Augmentation | None = None) -> None:
        self.augmentation = augmentation

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        pair = {
            key: plain(batch[key]).to(device=device, dtype=torch.float32, non_blocking=non_blocking)
            for key in (*IMAGE_KEYS, *LABEL_KEYS)
            if key in batch
        }
        if self.augmentation is not None:
            pair = self.augmentation(pair, batch["seed"])
        return torch.cat([pair[key] for key in IMAGE_KEYS], dim=1), pair
