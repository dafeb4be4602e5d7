"""From a prediction to warped images and labels: the first steps of every bundle's postprocessing."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from regzoo.errors import bad_file
from regzoo.spatial import DisplacementField, Grid, as_tensor, carry_labels, sample, warp
from regzoo.spatial.carry import TOLERANCE, carry_held, subdivisions
from regzoo.spatial.held import is_map, one_mask
from regzoo.spatial.warp import slab_points, slabs
from regzoo.transforms.load import REQUESTED, SERVED

#: Where `ResamplePaird(keep_native=True)` keeps the moving image and label.
NATIVE = {"image": "moving_native", "label": "moving_label_native"}


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


def warped_masks(item: Mapping[Any, Any]) -> torch.Tensor:
    """The masks (C, X, Y, Z) uint8 of the soft ``warped_label`` of a case.

    Those of a label map that a field has carried over exclude each other; labels predicted one by one may overlap.
    """
    return label_masks(as_tensor(item["warped_label"]), "moving_label_values" in item and "probability" not in item)


def label_map(labels: torch.Tensor, values: Sequence[int]) -> torch.Tensor:
    """One map of labels, each shown by its value; where they overlap the smallest shows.

    Args:
        labels: masks (C, X, Y, Z) bool, or a map of numbers (1, X, Y, Z), see `regzoo.spatial.held`.
        values: of each label.

    Returns:
        (X, Y, Z) int32.
    """
    if is_map(labels):
        table = torch.tensor([0, *(int(value) for value in values)], dtype=torch.int32, device=labels.device)
        return torch.cat([table[labels[0, rows].int()] for rows in slabs(labels.shape[1:])])
    shown = torch.zeros(labels.shape[1:], dtype=torch.int32, device=labels.device)
    for channel in torch.stack([mask.sum() for mask in labels]).argsort(descending=True, stable=True).tolist():
        shown.masked_fill_(labels[channel] > 0, int(values[channel]))
    return shown


class WarpOnNetworkGridd(MapTransform):
    """Warp what lies on the network grid with the prediction: quick, for validation during training.

    Adds ``warped_image``, ``warped_label``, ``unregistered_image``, ``unregistered_label``, ``reference_image``,
    ``reference_label`` (the fixed image and label) and ``ddf``, all on the network grid with its affine. Labels are the
    linear interpolation, values in [0, 1].
    """

    def __init__(self) -> None:
        super().__init__(["pred"])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        ddf = _prediction(data)
        item = _network_references(data, ddf)
        affine = item["reference_image"].affine
        item["ddf"] = MetaTensor(ddf, affine=affine)
        for kind, padding in (("image", "border"), ("label", "zeros")):
            if (moving := item.get(f"unregistered_{kind}")) is not None:
                warped = warp(as_tensor(moving)[None], ddf[None], padding=padding)[0]  # type: ignore[arg-type]
                item[f"warped_{kind}"] = MetaTensor(warped, affine=affine)
        return item


def _prediction(data: Mapping[Hashable, Any]) -> torch.Tensor:
    """What the network predicted for a case.

    Raises:
        RegZooError: it holds NaN or infinity.
    """
    prediction = as_tensor(data["pred"])
    if not prediction.isfinite().all():
        mend = "use other weights (--checkpoint; in training, lower --learning_rate), or look for extreme values in it"
        raise bad_file(str(data.get("case", "case")), "the network predicts NaN or infinity", mend)
    return prediction


def _network_references(data: Mapping[Hashable, Any], pred: torch.Tensor) -> dict[Hashable, Any]:
    """What `with_references` adds, here on the network grid, on the device and in the type of the prediction."""
    item = dict(data)
    affine = torch.as_tensor(item["fixed_image"].affine)
    for side, name in (("fixed", "reference"), ("moving", "unregistered")):
        for kind in ("image", "label"):
            if f"{side}_{kind}" in item:
                item[f"{name}_{kind}"] = MetaTensor(as_tensor(item[f"{side}_{kind}"]).to(pred), affine=affine)
    return item


class ApplyFieldd(MapTransform):
    """Turn the prediction into the whole fixed-to-moving field, and warp the moving file's own voxels with it.

    Needs what `ResamplePaird(keep_native=True)` and `AlignPaird` leave. Adds, all on the fixed image's own grid,
    ``field`` (a `DisplacementField` that includes the pre-alignment), ``ddf`` (the same in voxels), ``warped_image``
    and, with a moving label, ``warped_label``, see `regzoo.spatial.carry_labels`; and what `with_references` adds.

    Args:
        background: intensity of the moving image beyond its field of view; −1000, air, for CT.
    """

    def __init__(self, background: float = 0.0) -> None:
        super().__init__(["pred"])
        self.background = float(background)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        ddf = _prediction(data)
        network, fixed = Grid.of(data["fixed_image"]), Grid.of(data["fixed_native"])
        field = DisplacementField.from_ddf(ddf, network, fixed, _edit(data))
        item = with_references(data, ddf.device, self.background)
        item["field"] = field
        if not data.get(REQUESTED):
            item["ddf"] = field.ddf()
        for kind, moving in _moving(data):
            item[f"warped_{kind}"] = _carried(field, moving, data, self.background if kind == "image" else None)
        return item


def _carried(
    field: DisplacementField, moving: MetaTensor, data: Mapping[Hashable, Any], background: float | None
) -> MetaTensor:
    """A moving image, which has a background, or a moving label, in the form it has, through a field."""
    if background is not None:
        return field.warp(moving, background=background)
    if data.get(REQUESTED):
        # On the network grid some of the labels may have been left out.
        return carry_held(field, moving, len(data.get("moving_label_values") or moving))
    return carry_labels(field, moving, "moving_label_values" in data)


def with_references(data: Mapping[Hashable, Any], device: torch.device, background: float = 0.0) -> dict[Hashable, Any]:
    """A copy of a case with what a result is compared with, on the fixed image's own grid.

    ``reference_image`` and, with a fixed label, ``reference_label``; ``unregistered_image`` and, with a moving label,
    ``unregistered_label``: the moving file seen through the pre-alignment alone. Labels have values in [0, 1].
    The latter are not made for a served case: nobody waits for a comparison there.
    """
    item = dict(data)
    item["reference_image"] = item["fixed_native"]
    if "fixed_label_native" in item:
        item["reference_label"] = item["fixed_label_native"].to(device)
    if data.get(SERVED):
        return item
    fixed = Grid.of(data["fixed_native"])
    # What was kept carries the edited affine: it is seen from where it lies.
    still = _still(fixed, device)
    for kind, native in NATIVE.items():
        if native in data:
            item[f"unregistered_{kind}"] = _carried(still, data[native], data, background if kind == "image" else None)
    return item


def _edit(data: Mapping[Hashable, Any]) -> np.ndarray:
    """The matrix of the pre-alignment, old moving world → new moving world, RAS mm."""
    return np.asarray(as_tensor(data["prealignment"]).cpu().numpy())


def _moving(data: Mapping[Hashable, Any]) -> Iterator[tuple[str, MetaTensor]]:
    """The moving image and label as they were loaded, in the file's own world."""
    for kind, native in NATIVE.items():
        if native in data:
            # What was kept carries the edited affine; a field leads to the file's own world.
            affine = np.linalg.inv(_edit(data)) @ np.asarray(data[native].affine.cpu(), dtype=np.float64)
            yield kind, MetaTensor(as_tensor(data[native]), affine=torch.as_tensor(affine))


class PropagatedLabelsd(MapTransform):
    """Turn predicted logits, one channel for each moving label, into the propagated labels.

    With what `ResamplePaird(keep_native=True)` and `AlignPaird` leave they come on the fixed image's own grid, together
    with what `with_references` adds; otherwise, for quick validation, all of it on the network grid.

    Adds ``probability`` (C, X, Y, Z), 0 beyond the network's field of view and for labels that are empty there, and
    ``warped_label``, where it reaches 0.5, each label by itself. Where the fixed image is coarser than the network and
    that changes the volume of a label, what reaches 0.5 on the network grid is carried over, see `carry_labels`.
    ``unseen`` are the channels that the network was shown nothing of, ``cut_off`` those that it finds at the border of
    its field of view.

    Args:
        preserve_volume: on the fixed image's grid, cut each label that reaches 0.5 where it has the volume of the
            moving label instead. What is likely grows with what the network is unsure of; this gives small labels
            their size back, at the price of centroids that follow the likeliest place and not the middle of all
            likely ones.
    """

    def __init__(self, preserve_volume: bool = False) -> None:
        super().__init__(["pred"])
        self.preserve_volume = preserve_volume

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        logits, network = _prediction(data).float(), Grid.of(data["fixed_image"])
        full = "fixed_native" in data
        item = with_references(data, logits.device) if full else _network_references(data, logits)
        seen = as_tensor(data["moving_label"]).flatten(1).any(1).to(logits.device)
        target = Grid.of(item["reference_image"])
        matrix = torch.as_tensor(np.linalg.inv(network.affine) @ target.affine)
        # Half a voxel of tolerance: the outermost voxels of the network grid reach that far.
        last = torch.tensor(network.shape, device=logits.device).view(1, 3, 1, 1, 1) - 0.5
        values = logits.new_empty(len(logits), *target.shape)
        edge = torch.empty(target.shape, dtype=torch.bool, device=logits.device)
        for rows in slabs(target.shape):
            coordinates = slab_points(matrix, target.shape, rows, logits.device)
            inside = ((coordinates >= -0.5) & (coordinates <= last)).all(dim=1)
            found = sample(logits[None], coordinates.float(), padding="border")[0]
            values[:, rows] = found.masked_fill_(~(inside & seen.view(-1, 1, 1, 1)), -torch.inf)
            edge[rows] = ((coordinates < 0.5) | (coordinates > last - 1)).any(dim=1)[0]
        chosen = values >= 0
        if full and subdivisions(network, target) != (1, 1, 1):
            _keep_volumes(chosen, (logits >= 0) & seen.view(-1, 1, 1, 1), network, target)
        if self.preserve_volume and full:
            there = chosen.flatten(1).any(1).view(-1, 1, 1, 1)
            chosen = (values >= self._cuts(data, values, target)) & there
        affine = torch.as_tensor(target.affine)
        item["probability"] = MetaTensor(values.sigmoid_(), affine=affine)
        item["warped_label"] = MetaTensor(chosen if data.get(REQUESTED) else chosen.to(values), affine=affine)
        item["unseen"] = (~seen).nonzero()[:, 0].tolist()
        item["cut_off"] = (chosen & edge).flatten(1).any(1).nonzero()[:, 0].tolist()
        return item

    def _cuts(self, data: Mapping[Hashable, Any], logits: torch.Tensor, target: Grid) -> torch.Tensor:
        """The logit (C, 1, 1, 1) at which each label has the volume of the moving label."""
        moving = data["moving_label_native"]
        voxel, fixed_voxel = (abs(np.linalg.det(grid.affine[:3, :3])) for grid in (Grid.of(moving), target))
        sizes = [float(one_mask(moving, index).sum(dtype=torch.float64)) for index in range(len(logits))]
        counts = [min(max(round(size * voxel / fixed_voxel), 1), logits[0].numel()) for size in sizes]
        cuts = [channel.flatten().topk(count).values[-1] for channel, count in zip(logits, counts, strict=True)]
        # A volume that is larger than what is visible does not reach beyond it.
        return torch.stack(cuts).clamp(min=torch.finfo(torch.float32).min).view(-1, 1, 1, 1)


def _keep_volumes(chosen: torch.Tensor, found: torch.Tensor, network: Grid, target: Grid) -> None:
    """Choose other voxels of the target for labels that are of another volume there than on the network grid.

    Args:
        chosen: (C, X, Y, Z) bool on the target, which is coarser; changed in place.
        found: (C, X', Y', Z') bool on the network grid.
    """
    labels = MetaTensor(found.float(), affine=torch.as_tensor(network.affine))
    carried = as_tensor(carry_labels(_still(target, found.device), labels, exclusive=False)) > 0
    counts, wanted = (masks.flatten(1).sum(1) for masks in (chosen, carried))
    off = (counts - wanted).abs() > TOLERANCE * wanted
    chosen[off] = carried[off]


def _still(grid: Grid, device: torch.device) -> DisplacementField:
    """The field that moves nothing."""
    return DisplacementField(torch.zeros(1, device=device).expand(3, *grid.shape), grid)
