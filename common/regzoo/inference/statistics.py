"""The statistics of a registration: its deformation, its labels, and warnings about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

import numpy as np
from monai.data import MetaTensor
from regzoo.case import MASK_KEYS, MOVING, WARPED, Case, Key
from regzoo.metrics import deformation_statistics
from regzoo.refinement.options import Linear
from regzoo.spatial import Grid, decimals
from regzoo.spatial.held import Box, boxes, is_map, sizes_and_centres
from regzoo.transforms import warped_masks


def registration_statistics(
    item: Mapping[Any, Any], labels: MetaTensor | None, values: Sequence[int] | None = None
) -> dict[str, Any]:
    """The statistics of a registration as plain values for JSON.

    Args:
        item: the case after `regzoo.transforms.ApplyFieldd` or `regzoo.transforms.PropagatedLabelsd`.
        labels: its `propagated_labels`.
        values: the number to report for each label; by default its value in a label map, or its index from 0.

    Returns:
        ``deformation`` (with a field); ``refinement`` (after one); ``labels`` (with a moving label), with the number,
        name, volume in mm³ and centroid in RAS mm of each label; and ``warnings``, one line each.
    """
    statistics: dict[str, Any] = {}
    if Key.FIELD in item:
        deformation = deformation_statistics(item[Key.FIELD])
        # JSON has no NaN, which log_jacobian_std is if every voxel folds.
        statistics["deformation"] = {k: v if math.isfinite(v) else None for k, v in deformation.items()}
    if Key.REFINEMENT in item:
        statistics["refinement"] = item[Key.REFINEMENT]
    statistics["warnings"] = _idle_masks(item)
    if labels is not None:
        label_boxes = boxes(labels, label_count(item, labels))
        statistics["labels"] = _label_statistics(item, labels, values, label_boxes)
        statistics["warnings"] += _label_warnings(item, labels.shape[1:], label_boxes, statistics["labels"])
    return statistics


def propagated_labels(item: Mapping[Any, Any]) -> MetaTensor | None:
    """The propagated labels of a case as held labels, see `regzoo.spatial.held`; None without a moving label."""
    label = item.get(WARPED.label)
    if label is None or not label.is_floating_point():
        return label
    return MetaTensor(warped_masks(cast(Case, item)) > 0, affine=label.affine)


def label_count(item: Mapping[Any, Any], labels: MetaTensor | None) -> int:
    """The number of the `propagated_labels` of a case."""
    return 0 if labels is None else len(item[Key.MOVING_LABEL_VALUES]) if is_map(labels) else len(labels)


def _label_statistics(
    item: Mapping[str, Any], labels: MetaTensor, values: Sequence[int] | None, label_boxes: Sequence[Box | None]
) -> list[dict[str, Any]]:
    grid = Grid.of(labels)
    voxel, digits = float(abs(np.linalg.det(grid.affine[:3, :3]))), decimals(float(grid.spacing.min()))
    values, names = values or item.get(Key.MOVING_LABEL_VALUES), item.get(Key.LABEL_NAMES)
    return [
        {
            "label": values[index] if values else index,
            **({"name": str(names[index])} if names and index < len(names) else {}),
            "volume_mm3": round(size * voxel, decimals(voxel)),
            "centroid_ras_mm": None if size == 0 else [round(float(x), digits) for x in centre],
        }
        for index, (size, centre) in enumerate(zip(*sizes_and_centres(labels, label_boxes), strict=True))
    ]


def _idle_masks(item: Mapping[str, Any]) -> list[str]:
    """A line for each mask that neither the pre-alignment nor a refinement used."""
    if Key.REFINEMENT in item or item.get(Key.ALIGN) in get_args(Linear):
        return []
    idle = [key for key in MASK_KEYS if key in item]
    return [f"{key}: this registration does not use it; set refine, or leave the mask out" for key in idle]


def _label_warnings(
    item: Mapping[str, Any],
    shape: Sequence[int],
    label_boxes: Sequence[Box | None],
    entries: Sequence[Mapping[str, Any]],
) -> list[str]:
    """A line for each label that is lost, or that reaches the border of the image or of the field of view."""
    lines = list[str]()
    before = boxes(item[MOVING.native_label], len(label_boxes))
    for index, (entry, box) in enumerate(zip(entries, label_boxes, strict=True)):
        name = f"label {entry['label']}" + (f" ({entry['name']})" if "name" in entry else "")
        was_there = before[index] is not None
        if was_there and index in item.get(Key.UNSEEN, ()):
            lines.append(f"{name}: lies outside the network's field of view, so the network cannot find it")
        elif was_there and box is None:
            lines.append(f"{name}: no part of it was found in the fixed image")
        elif box is not None and any(side.start == 0 or side.stop == n for side, n in zip(box, shape, strict=True)):
            lines.append(f"{name}: touches the border of the fixed image; part of it may lie beyond")
        elif index in item.get(Key.CUT_OFF, ()):
            lines.append(f"{name}: touches the border of the network's field of view; part of it may lie beyond")
    return lines
