"""The prediction of a network that outlines both images besides registering them."""

from __future__ import annotations

from monai.transforms import MapTransform
from regzoo.case import FIXED, MOVING, Case, Key
from regzoo.spatial import as_tensor


class SplitOutlinesd(MapTransform):
    """Split a prediction into the DDF, which stays in ``pred``, and the probabilities of the labels in each image.

    The prediction is (3 + 2 (C + 1), X, Y, Z): the DDF, then the logits of the background and of C labels in the fixed
    image, and the same in the moving image. Adds ``fixed_outline`` and ``moving_outline``, (C, X, Y, Z) each.
    """

    def __init__(self) -> None:
        super().__init__([Key.PRED])

    def __call__(self, data: Case) -> Case:
        item = data.copy()
        prediction = as_tensor(data[Key.PRED])
        item[Key.PRED] = prediction[:3]
        for side, logits in zip((FIXED, MOVING), prediction[3:].float().chunk(2), strict=True):
            item[side.outline] = logits.softmax(0)[1:]
        return item
