"""A moving image for a single image, the same in every run."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from regzoo.case import FIXED, MOVING, Case, Key
from regzoo.spatial import as_tensor


class SimulateMovingd(MapTransform):
    """Make the moving image and label of a single image on the network grid; pairs stay as they are.

    For validation where there are too few patients to make pairs of.

    Args:
        augmentation: called with a batch of tensors and their seeds, see `regzoo.augmentation.SingleImageAugmentation`.
        seed: with the name of the case it determines the result.
    """

    def __init__(
        self, augmentation: Callable[[Mapping[str, torch.Tensor], torch.Tensor], dict[str, torch.Tensor]], seed: int = 0
    ) -> None:
        super().__init__([FIXED.image, FIXED.label], allow_missing_keys=True)
        self.augmentation = augmentation
        self.seed = int(seed)

    def __call__(self, data: Case) -> Case:
        item = data.copy()
        if MOVING.image in data:
            return item
        seed = zlib.crc32(f"{self.seed} {data.get(Key.CASE)}".encode())
        batch: dict[str, torch.Tensor] = {
            key: as_tensor(data[key])[None] for key in (FIXED.image, FIXED.label) if key in data
        }
        made = self.augmentation(batch, torch.tensor([seed]))
        for key in (MOVING.image, MOVING.label):
            if key in made:
                item[key] = MetaTensor(made[key][0], affine=data[FIXED.image].affine)
        return item
