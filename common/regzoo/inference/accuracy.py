"""The accuracy of one registered pair, from the labels and the points that both of its images have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from regzoo.case import REFERENCE, UNREGISTERED, WARPED, Key
from regzoo.inference.statistics import label_count, propagated_labels
from regzoo.metrics import LabelDice, LabelHausdorff, PointRegistrationError, TargetRegistrationError
from regzoo.report.tables import point_rows
from regzoo.spatial import Grid
from regzoo.spatial.held import Box, boxes, one_mask, part_of
from regzoo.transforms import CarryPointsd

#: The measures of a label, by the name that precedes ``_before`` and ``_after``.
MEASURES = {"dsc": LabelDice(), "hd95_mm": LabelHausdorff(), "tre_mm": TargetRegistrationError("mean", first_label=0)}
_POINTS = {"point_tre_mm": PointRegistrationError(), "point_tre_median_mm": PointRegistrationError("median")}


def accuracy(item: Mapping[Any, Any]) -> dict[str, Any]:
    """The accuracy of a case before and after registration, as plain values for JSON.

    Args:
        item: the case after `regzoo.transforms.ApplyFieldd` or `regzoo.transforms.PropagatedLabelsd`.

    Returns:
        Each measure before and after registration, such as ``dsc_before`` and ``dsc_after``. With labels of both
        images, ``dsc`` and ``hd95_mm`` are means over the labels of a label map, or those of the first of several
        masks, the gland; ``tre_mm`` is the mean distance of the centroids of the labels of a map, or of all masks but
        the first. As in an evaluation, a label that is lost has a ``dsc`` of 0 and no distance. With points,
        ``point_tre_mm`` and ``point_tre_median_mm`` are over the points, and ``points`` has an entry for each. None
        where a measure has no value.
    """
    found: dict[str, Any] = {}
    warped = propagated_labels(item)
    if warped is not None and REFERENCE.label in item:
        found |= _of_labels(item, warped)
    carried = CarryPointsd()(item)  # type: ignore[arg-type]
    if carried[Key.POINT_NAMES]:
        for name, metric in _POINTS.items():
            for when, view in (("before", UNREGISTERED), ("after", WARPED)):
                found[f"{name}_{when}"] = float(metric.measure(carried[view.points], carried[REFERENCE.points]))
        header = ("point", "before_mm", "after_mm")
        found["points"] = [dict(zip(header, map(_plain, row), strict=True)) for row in point_rows(carried)]
    return {name: _plain(value) for name, value in found.items()}


def _of_labels(item: Mapping[Any, Any], warped: MetaTensor) -> dict[str, float]:
    views = (item[REFERENCE.label], item[UNREGISTERED.label], warped)
    count = label_count(item, warped)
    found = list(zip(*(boxes(view, count) for view in views), strict=True))
    # A label that one of the two images lacks is not measured.
    known = [index for index, (fixed, *moved) in enumerate(found) if fixed and any(moved)]
    is_map = item.get(Key.MOVING_LABEL_IS_MAP, False)
    measured: dict[str, list[float]] = {}
    for index in known:
        fixed, *moved = (_cut(view, index, found[index]) for view in views)
        for name, metric in MEASURES.items():
            if is_map or (name == "tre_mm") == (index > 0):
                for when, mask in zip(("before", "after"), moved, strict=True):
                    measured.setdefault(f"{name}_{when}", []).append(float(metric.measure(mask, fixed)))
    return {name: float(torch.tensor(values).nanmean()) for name, values in measured.items()}


def _cut(labels: torch.Tensor, index: int, found: Sequence[Box | None]) -> MetaTensor:
    """One label (1, X, Y, Z) within a box that holds it in all views, so that large volumes take little memory."""
    sides = zip(*(box for box in found if box is not None), strict=True)
    box = tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in sides)
    mask = one_mask(labels, index, box)  # type: ignore[arg-type]
    return MetaTensor(mask[None].float(), affine=torch.as_tensor(part_of(Grid.of(labels), box).affine))  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
