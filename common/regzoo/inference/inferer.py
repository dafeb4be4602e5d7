"""Inference with a network that takes one label at a time."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from regzoo.case import IMAGE_KEYS
from regzoo.errors import RegZooError
from regzoo.spatial import as_tensor


class LabelWiseInferer(Inferer):
    """MONAI inferer: passes the image pair to the network with one moving label at a time, several in one batch.

    Args:
        batch_size: the number of labels in one batch; None for all, as in training.

    Source: Hu et al. 2019, section 2.1, where regions are propagated one by one.
    """

    def __init__(self, batch_size: int | None = None) -> None:
        super().__init__()
        if batch_size is not None and batch_size < 1:
            raise RegZooError(f"{batch_size} labels at a time is not a valid batch; use 1 or more")
        self.batch_size = batch_size

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(B, 2 + L, X, Y, Z), the images and L moving labels → (B, L, X, Y, Z), the prediction for each."""
        inputs = as_tensor(inputs)
        images, labels = inputs[:, : len(IMAGE_KEYS)], inputs[:, len(IMAGE_KEYS) :]
        pairs = images.repeat_interleave(labels.shape[1], dim=0)
        stacked = torch.cat([pairs, labels.flatten(0, 1)[:, None]], dim=1)
        parts = stacked.split(self.batch_size or len(stacked))
        return torch.cat([network(part, *args, **kwargs) for part in parts]).view(labels.shape)
