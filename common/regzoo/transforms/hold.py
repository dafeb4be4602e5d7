"""Labels of a training in a small form, while they are cached, drawn, put into batches and copied to the device."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from regzoo.case import LABEL_KEYS, Case, Key
from regzoo.spatial import as_tensor
from regzoo.spatial.held import hold


class HoldLabelsd(MapTransform):
    """Hold labels of 0 and 1 in a small form, see `regzoo.spatial.held`; soft labels stay as they are.

    Labels of which no two overlap, in either image, become a map (1, X, Y, Z) of their numbers: one byte for each voxel
    instead of four for each voxel and label. Labels that overlap become masks (C, X, Y, Z), bool.
    `regzoo.engines.PreparePair` makes float32 masks of both on the device.

    Adds ``label_numbers`` (C,) for maps.
    """

    def __init__(self) -> None:
        super().__init__(LABEL_KEYS, allow_missing_keys=True)

    def __call__(self, data: Case) -> Case:
        item: Any = data.copy()
        labels = {key: as_tensor(item[key]) for key in self.key_iterator(data)}
        if not labels or not all(bool(((masks == 0) | (masks == 1)).all()) for masks in labels.values()):
            return item
        count = len(next(iter(labels.values())))
        numbers = torch.arange(1, count + 1, dtype=torch.uint8 if count < 256 else torch.int16)
        exclusive = all(bool((masks.sum(0) <= 1).all()) for masks in labels.values())
        for key, masks in labels.items():
            if exclusive:
                held = (masks * numbers.view(-1, 1, 1, 1)).amax(0, keepdim=True).to(numbers.dtype)
            else:
                held = as_tensor(hold(item[key], None))
            item[key] = MetaTensor(held, meta=item[key].meta)
        if exclusive:
            item[Key.LABEL_NUMBERS] = numbers
        return item
