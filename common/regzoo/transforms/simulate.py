"""A moving image for a single image, once and for all."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from regzoo.spatial import as_tensor


class SimulateMovingd(MapTransform):
    """Make the moving image and label of a single image on the network grid, always the same; pairs stay as they are.

    For validation where there are not two patients to make a pair of.

    Args:
        augmentation: called with a batch of tensors and their seeds, see `regzoo.augmentation.SingleImageAugmentation`.
        seed: with the name of the case it determines what is drawn.
    """

    def __init__(
        self, augmentation: Callable[[Mapping[str, torch.Tensor], torch.Tensor], dict[str, torch.Tensor]], seed: int = 0
    ) -> None:
        super().__init__(["fixed_image", "fixed_label"], allow_missing_keys=True)
        self.augmentation = augmentation
        self.seed = int(seed)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if "moving_image" in item:
            return item
        batch = {str(key): as_tensor(item[key])[None] for key in self.key_iterator(item)}
        seed = zlib.crc32(f"{self.seed} {item.get('case')}".encode())
        made = self.augmentation(batch, torch.tensor([seed]))
        for key in batch:
            moving = key.replace("fixed", "moving", 1)
            item[moving] = MetaTensor(made[moving][0], affine=item[key].affine)
        return item
