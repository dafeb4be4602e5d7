"""From a predicted DDF to warped images and labels: the first steps of every bundle's postprocessing."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from regzoo.spatial import DisplacementField, Grid, plain, warp


def label_masks(labels: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """Masks of labels that were interpolated linearly.

    Args:
        labels: (C, X, Y, Z), values in [0, 1].
        exclusive: the channels are the values of one map: every voxel goes to the largest of them and the background.
            Otherwise each is a mask of its own, cut at 0.5.

    Returns:
        (C, X, Y, Z) uint8.
    """
    if not exclusive:
        return (labels >= 0.5).to(torch.uint8)
    largest, channel = labels.max(dim=0)
    winner = torch.where(largest >= 1 - labels.sum(dim=0), channel, len(labels))
    return (winner == torch.arange(len(labels), device=labels.device).view(-1, 1, 1, 1)).to(torch.uint8)


def label_map(masks: torch.Tensor, values: Sequence[int]) -> torch.Tensor:
    """One map (X, Y, Z) int32 of masks (C, X, Y, Z), each shown by its value; where they overlap the largest shows."""
    return (masks * torch.tensor(list(values), dtype=torch.int32, device=masks.device).view(-1, 1, 1, 1)).amax(dim=0)


class WarpOnNetworkGridd(MapTransform):
    """Warp what lies on the network grid with the prediction: quick, for validation during training.

    Adds ``warped_image``, ``warped_label``, ``unregistered_image``, ``unregistered_label``, ``reference_image``,
    ``reference_label`` (the fixed image and label) and ``ddf``, all on the network grid with its affine. Labels are the
    linear interpolation, values in [0, 1].
    """

    def __init__(self) -> None:
        super().__init__(["pred"])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        ddf = plain(item["pred"])
        affine = torch.as_tensor(item["fixed_image"].affine)
        item["ddf"] = MetaTensor(ddf, affine=affine)
        for kind, padding in (("image", "border"), ("label", "zeros")):
            if f"moving_{kind}" not in item:
                continue
            moving = plain(item[f"moving_{kind}"]).to(ddf)
            warped = warp(moving[None], ddf[None], padding=padding)[0]  # type: ignore[arg-type]
            item[f"warped_{kind}"] = MetaTensor(warped, affine=affine)
            item[f"unregistered_{kind}"] = MetaTensor(moving, affine=affine)
            if f"fixed_{kind}" in item:
                item[f"reference_{kind}"] = MetaTensor(plain(item[f"fixed_{kind}"]).to(ddf), affine=affine)
        return item


class ApplyFieldd(MapTransform):
    """Turn the prediction into the whole fixed-to-moving field, and warp the moving file's own voxels with it.

    Needs what `ResamplePaird(keep_native=True)` and `AlignPaird` leave. Adds, all on the fixed image's own grid,
    ``field`` (a `DisplacementField` that includes the pre-alignment), ``ddf`` (the same in voxels), ``warped_image``,
    ``unregistered_image`` (the moving image through the pre-alignment alone) and ``reference_image`` (the fixed image);
    with a moving label ``warped_label`` and ``unregistered_label``; with a fixed label ``reference_label``. Labels are
    the linear interpolation, values in [0, 1].
    """

    def __init__(self) -> None:
        super().__init__(["pred"])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        ddf = plain(item["pred"])
        network, fixed = Grid.of(item["fixed_image"]), Grid.of(item["fixed_native"])
        edit = np.asarray(plain(item["prealignment"]).cpu().numpy())
        field = DisplacementField.from_ddf(ddf, network, fixed, edit)
        to_voxels = torch.as_tensor(np.linalg.inv(fixed.affine[:3, :3])).to(field.displacement)
        item["field"] = field
        item["ddf"] = MetaTensor(
            torch.einsum("ij,jxyz->ixyz", to_voxels, field.displacement), affine=torch.as_tensor(fixed.affine)
        )
        start = DisplacementField.from_affine(np.linalg.inv(edit), fixed, ddf.device)
        item["reference_image"] = item["fixed_native"]
        if "fixed_label_native" in item:
            item["reference_label"] = item["fixed_label_native"].to(ddf.device)
        for kind, native in (("image", "moving_native"), ("label", "moving_label_native")):
            if native not in item:
                continue
            # What was kept carries the edited affine; the field leads to the file's own world.
            affine = torch.as_tensor(np.linalg.inv(edit) @ np.asarray(item[native].affine.cpu(), dtype=np.float64))
            moving = MetaTensor(plain(item[native]), affine=affine)
            item[f"warped_{kind}"] = field.warp(moving)
            item[f"unregistered_{kind}"] = start.warp(moving)
        return item


class LabelAsPredictiond(MapTransform):
    """Put what a viewer shows into ``pred``: the propagated labels as one map, or without a moving label the image.

    Servers such as MONAI Label hand out ``pred`` as the answer and cannot carry several channels. A label map keeps its
    values; masks get 1, 2, … in their order, where they overlap the later one shows.

    Results: ``pred`` (1, X, Y, Z) on the fixed image's grid, int32 for labels, float32 for an image.
    """

    def __init__(self) -> None:
        super().__init__(["pred"])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        item["pred"] = item["warped_image"]
        if "warped_label" in item:
            label = item["warped_label"]
            values = item.get("moving_label_values")
            masks = label_masks(plain(label), values is not None)
            item["pred"] = MetaTensor(label_map(masks, values or range(1, len(masks) + 1))[None], affine=label.affine)
        return item
