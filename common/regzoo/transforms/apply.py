"""From a prediction to warped images and labels: the first steps of every bundle's postprocessing."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from regzoo.case import FIXED, MOVING, REFERENCE, UNREGISTERED, WARPED, Case, Key
from regzoo.errors import bad_file
from regzoo.spatial import DisplacementField, Grid, as_tensor, carry_labels, sample, warp
from regzoo.spatial.carry import TOLERANCE, carry_held, subdivisions
from regzoo.spatial.held import one_mask
from regzoo.spatial.warp import slab_points, slabs
from regzoo.transforms.load import aligned, prealignment


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


def warped_masks(item: Case) -> torch.Tensor:
    """The masks (C, X, Y, Z) uint8 of the soft ``warped_label`` of a case.

    The labels of a map exclude each other, unless they were predicted one by one.
    """
    exclusive = item.get(Key.MOVING_LABEL_IS_MAP, False) and not item.get(Key.LABELS_PREDICTED, False)
    return label_masks(as_tensor(item[WARPED.label]), exclusive)


class WarpOnNetworkGridd(MapTransform):
    """Warp the moving side on the network grid with the prediction: quick, for validation during training.

    Adds ``ddf`` and what is compared, see `regzoo.case.View`, all on the network grid with its affine. Labels are
    interpolated linearly and have values in [0, 1].
    """

    def __init__(self) -> None:
        super().__init__([Key.PRED])

    def __call__(self, data: Case) -> Case:
        ddf = _prediction(data)
        item = _network_references(data, ddf)
        affine = item[REFERENCE.image].affine
        item[Key.DDF] = MetaTensor(ddf, affine=affine)
        moving = as_tensor(item[UNREGISTERED.image])[None]
        item[WARPED.image] = MetaTensor(warp(moving, ddf[None], padding="border")[0], affine=affine)
        if UNREGISTERED.label in item:
            moving = as_tensor(item[UNREGISTERED.label])[None]
            item[WARPED.label] = MetaTensor(warp(moving, ddf[None], padding="zeros")[0], affine=affine)
        return item


def _prediction(data: Case) -> torch.Tensor:
    """The network's prediction for a case; raises `RegZooError` if it holds NaN or infinity."""
    prediction = as_tensor(data[Key.PRED])
    if not prediction.isfinite().all():
        fix = "use other weights (in training, a lower learning_rate), or look for extreme values in it"
        raise bad_file(str(data.get(Key.CASE, "case")), "the network predicts NaN or infinity", fix)
    return prediction


def _network_references(data: Case, pred: torch.Tensor) -> Case:
    """What `with_references` adds, here on the network grid, on the device and in the type of the prediction."""
    item = data.copy()
    affine = torch.as_tensor(item[FIXED.image].affine)
    for side, view in ((FIXED, REFERENCE), (MOVING, UNREGISTERED)):
        if side.image in item:
            item[view.image] = MetaTensor(as_tensor(item[side.image]).to(pred), affine=affine)
        if side.label in item:
            item[view.label] = MetaTensor(as_tensor(item[side.label]).to(pred), affine=affine)
    return item


class ApplyFieldd(MapTransform):
    """Turn the prediction into the whole fixed-to-moving field, and warp the moving file's own voxels with it.

    Must come after ``ResamplePaird(keep_native=True)`` and `AlignPaird`. Adds, all on the fixed image's own grid,
    ``field`` (a `DisplacementField` that includes the pre-alignment), ``ddf`` (the same in voxels), ``warped_image``
    and, with a moving label, ``warped_label``, see `regzoo.spatial.carry_labels`; and what `with_references` adds.
    A case whose labels were predicted without a field, and not refined into one, stays as it is.

    Args:
        background: intensity of the moving image beyond its field of view; −1000, air, for CT. None takes the lowest
            intensity of the moving image.
    """

    def __init__(self, background: float | None = 0.0) -> None:
        super().__init__([Key.PRED])
        self.background = None if background is None else float(background)

    def __call__(self, data: Case) -> Case:
        if data.get(Key.LABELS_PREDICTED, False):
            return data
        ddf = _prediction(data)
        grid, fixed = data.get(Key.PRED_GRID) or Grid.of(data[FIXED.image]), Grid.of(data[FIXED.native_image])
        field = DisplacementField.from_ddf(ddf, grid, fixed, prealignment(data))
        background = self.background
        if background is None:
            background = float(data[MOVING.native_image].min())
        item = with_references(data, ddf.device, background)
        item[Key.FIELD] = field
        if not data.get(Key.REQUESTED):
            item[Key.DDF] = field.ddf()
        item[WARPED.image] = field.warp(data[MOVING.native_image], background=background)
        if MOVING.native_label in data:
            item[WARPED.label] = _carried(field, data[MOVING.native_label], data)
        return item


def _carried(field: DisplacementField, label: MetaTensor, data: Case) -> MetaTensor:
    """A moving label through a field: held small for a request, otherwise soft."""
    if data.get(Key.REQUESTED):
        # On the network grid some of the labels may have been left out.
        return carry_held(field, label, len(data.get(Key.MOVING_LABEL_VALUES) or label))
    return carry_labels(field, label, data.get(Key.MOVING_LABEL_IS_MAP, False))


def with_references(data: Case, device: torch.device, background: float = 0.0) -> Case:
    """A copy of a case with what a result is compared with, on the fixed image's own grid.

    ``reference_image`` and, with a fixed label, ``reference_label``; ``unregistered_image`` and, with a moving label,
    ``unregistered_label``: the moving file seen through the pre-alignment alone. Labels have values in [0, 1].
    A case for a server gets no unregistered image and label: nobody waits for a comparison there.
    """
    item = data.copy()
    item[REFERENCE.image] = item[FIXED.native_image]
    if FIXED.native_label in item:
        item[REFERENCE.label] = item[FIXED.native_label].to(device)
    if data.get(Key.SERVED):
        return item
    still = _still(Grid.of(data[FIXED.native_image]), device)
    item[UNREGISTERED.image] = still.warp(aligned(data, data[MOVING.native_image]), background=background)
    if MOVING.native_label in data:
        item[UNREGISTERED.label] = _carried(still, aligned(data, data[MOVING.native_label]), data)
    return item


class PropagatedLabelsd(MapTransform):
    """Turn predicted logits, one channel for each moving label, into the propagated labels.

    A case with ``full_resolution`` gets them on the fixed image's own grid, together with what `with_references` adds;
    otherwise, for quick validation, everything is on the network grid.

    Adds ``probability`` (C, X, Y, Z), 0 beyond the network's field of view and for labels that are empty there, and
    ``warped_label``, where it reaches 0.5, each label by itself. Where the fixed image is coarser than the network and
    that changes the volume of a label, the label is cut on the network grid first and then carried over, see
    `carry_labels`. ``unseen`` are the channels that are empty in the network's input, ``cut_off`` those that the
    network finds at the border of its field of view.

    Args:
        preserve_volume: on the fixed image's grid, cut each label that reaches 0.5 at the level at which it has the
            volume of the moving label. Probabilities shrink where the network is unsure; this gives small labels
            their size back, but their centroids then follow the likeliest place, not the middle of all likely places.
    """

    def __init__(self, preserve_volume: bool = False) -> None:
        super().__init__([Key.PRED])
        self.preserve_volume = preserve_volume

    def __call__(self, data: Case) -> Case:
        logits, network = _prediction(data).float(), Grid.of(data[FIXED.image])
        full = data.get(Key.FULL_RESOLUTION, False)
        item = with_references(data, logits.device) if full else _network_references(data, logits)
        seen = as_tensor(data[MOVING.label]).flatten(1).any(1).to(logits.device)
        target = Grid.of(item[REFERENCE.image])
        values, edge = _logits_on(target, logits, network, seen)
        chosen = values >= 0
        if full and subdivisions(network, target) != (1, 1, 1):
            _keep_volumes(chosen, (logits >= 0) & seen.view(-1, 1, 1, 1), network, target)
        if self.preserve_volume and full:
            there = chosen.flatten(1).any(1).view(-1, 1, 1, 1)
            chosen = (values >= _volume_cuts(aligned(data, data[MOVING.native_label]), values, target)) & there
        affine = torch.as_tensor(target.affine)
        item[Key.LABELS_PREDICTED] = True
        item[Key.PROBABILITY] = MetaTensor(values.sigmoid_(), affine=affine)
        item[WARPED.label] = MetaTensor(chosen if data.get(Key.REQUESTED) else chosen.to(values), affine=affine)
        item[Key.UNSEEN] = (~seen).nonzero()[:, 0].tolist()
        item[Key.CUT_OFF] = (chosen & edge).flatten(1).any(1).nonzero()[:, 0].tolist()
        return item


def _logits_on(
    target: Grid, logits: torch.Tensor, network: Grid, seen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits on another grid: −inf beyond the network's field of view and for labels that were not seen.

    Returns:
        (C, X, Y, Z) logits, and (X, Y, Z) bool: voxels at the border of the field of view, or beyond it.
    """
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
    return values, edge


def _volume_cuts(moving: MetaTensor, logits: torch.Tensor, target: Grid) -> torch.Tensor:
    """The logit (C, 1, 1, 1) at which each label has the volume of the moving label."""
    voxel, fixed_voxel = (abs(np.linalg.det(grid.affine[:3, :3])) for grid in (Grid.of(moving), target))
    sizes = [float(one_mask(moving, index).sum(dtype=torch.float64)) for index in range(len(logits))]
    counts = [min(max(round(size * voxel / fixed_voxel), 1), logits[0].numel()) for size in sizes]
    cuts = [channel.flatten().topk(count).values[-1] for channel, count in zip(logits, counts, strict=True)]
    # A volume that is larger than what is visible does not reach beyond it.
    return torch.stack(cuts).clamp(min=torch.finfo(torch.float32).min).view(-1, 1, 1, 1)


def _keep_volumes(chosen: torch.Tensor, found: torch.Tensor, network: Grid, target: Grid) -> None:
    """Choose other voxels of the target for labels whose volume there differs from that on the network grid.

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
