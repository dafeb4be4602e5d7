"""Refinement of a case: from a prediction to the field that fits the pair at hand best."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from regzoo.case import FIXED, MOVING, SIDES, WARPED, Case, Key, Side
from regzoo.errors import RegZooError
from regzoo.refinement import RefinementOptions, Volumes, options_for, refine
from regzoo.spatial import DisplacementField, Grid, as_tensor, resample
from regzoo.spatial.held import boxes, is_map
from regzoo.spatial.volumes import even_step
from regzoo.transforms.ct import HounsfieldUnitsd
from regzoo.transforms.load import aligned, file_of, prealignment
from tqdm import tqdm

logger = logging.getLogger(__name__)

#: Quantiles of the intensities that are mapped to 0 and 1 where there is no window.
QUANTILES = (0.005, 0.995)
#: About this many voxels are enough for the quantiles.
SAMPLE = 1 << 20


class RefinePaird(MapTransform):
    """Refine the prediction of a case on the pair itself, see `regzoo.refinement`.

    Must come after ``ResamplePaird(keep_native=True)`` and `AlignPaird`. The refinement starts from ``pred``, a DDF, or
    from the pre-alignment alone if labels were predicted. It replaces ``pred`` by a DDF on ``pred_grid``, which is
    finer than the network grid. ``refinement`` says what was done.

    If the network has outlined both images (`SplitOutlinesd`), a similarity of labels compares these outlines, unless
    the case has labels of both images.

    Args:
        refine: whether to refine; or for which kind of pair, see `regzoo.refinement.options_for`. A case's own
            ``refine`` takes precedence.
        kind: the kind of pair if `refine` is only True.
        options: other values of `RefinementOptions`.
        seconds: time limit; None for none. A case's own ``refine_seconds`` takes precedence.
        labels: the channels of the labels to compare, from 0; None for all that both sides have.
        prefer_predicted: compare predicted labels, or outlines, even if the case has labels. In an evaluation, those
            are the truth.
        show_progress: show a progress bar.

    Raises:
        RegZooError: an unknown kind or option, or a case that has no labels on both sides where they are compared.
    """

    def __init__(
        self,
        refine: bool | str = False,
        kind: str = "mr",
        options: Mapping[str, Any] | None = None,
        seconds: float | None = None,
        labels: Sequence[int] | None = None,
        prefer_predicted: bool = False,
        show_progress: bool = False,
    ) -> None:
        super().__init__([Key.PRED])
        self.refine, self.kind, self.seconds = refine, kind, seconds
        self.changes = {str(name): value for name, value in (options or {}).items()}
        self.channels = None if labels is None else [int(index) for index in labels]
        self.prefer_predicted, self.show_progress = prefer_predicted, show_progress
        if (asked := self.kind_of(refine)) is not None:
            self.options_of(asked)

    def kind_of(self, refine: bool | str) -> str | None:
        """The kind of pair for a value of `refine`; None if nothing is refined."""
        return None if refine is False else self.kind if refine is True else str(refine)

    def options_of(self, kind: str, seconds: float | None = None, fixed: Grid | None = None) -> RefinementOptions:
        """The options for a kind of pair, and for a time limit and the fixed grid of the case."""
        limit = {"seconds": seconds or self.seconds} if seconds or self.seconds else {}
        return options_for(kind, fixed, **self.changes | limit)

    def __call__(self, data: Case) -> Case:
        kind = self.kind_of(data.get(Key.REFINE, self.refine))
        if kind is None:
            return data
        options = self.options_of(kind, data.get(Key.REFINE_SECONDS), Grid.of(data[FIXED.native_image]))
        item = data.copy()
        window = options.intensities if options.compares_images else None
        if kind == "ct" and window and window[0] < 0:
            data = _in_hounsfield_units(data)
        prediction = as_tensor(data[Key.PRED])
        start = None
        if not data.get(Key.LABELS_PREDICTED, False) and bool(prediction.any()):
            network = data.get(Key.PRED_GRID) or Grid.of(data[FIXED.image])
            start = DisplacementField.from_ddf(prediction, network, network)
        try:
            compares_labels = bool({"labels", "distance"} & options.similarity.keys())
            has_labels = FIXED.native_label in data and MOVING.native_label in data
            has_outlines = FIXED.outline in data and (self.prefer_predicted or not has_labels)
            if compares_labels and has_outlines:
                fixed, moving = _outlined(data, prediction.device)
            else:
                labels = self._labels(data) if compares_labels else None
                fixed, moving = (self._volumes(data, side, options, labels, prediction.device) for side in SIDES)
            with tqdm(
                total=sum(options.steps), desc="refine", leave=False, disable=None if self.show_progress else True
            ) as bar:
                refined = refine(fixed, moving, options, start, lambda: bar.update() and None)
        except RegZooError as error:
            raise RegZooError(f"{file_of(data[FIXED.native_image], str(data.get(Key.CASE)))}: {error}") from None
        if not refined.statistics["steps"] and any(options.steps):
            problem = "the refinement took no step: too few voxels count, or its time was over"
            fix = "give refine_options a smaller spacing, or give a larger mask or more refine_seconds"
            logger.warning("%s: %s; %s", file_of(data[FIXED.native_image], str(data.get(Key.CASE))), problem, fix)
        item[Key.PRED], item[Key.PRED_GRID], item[Key.REFINEMENT] = refined.ddf, refined.grid, refined.statistics
        if refined.matrix is not None:
            item[Key.REFINEMENT] |= {"matrix": (np.linalg.inv(prealignment(data)) @ refined.matrix).tolist()}
        item[Key.LABELS_PREDICTED] = False
        return item

    def _volumes(
        self,
        data: Case,
        side: Side,
        options: RefinementOptions,
        labels: Mapping[str, torch.Tensor] | None,
        device: torch.device,
    ) -> Volumes:
        image = data[side.native_image]
        return Volumes(
            Grid.of(aligned(data, image) if side is MOVING else image),
            scaled(as_tensor(image).to(device), options.intensities) if options.compares_images else None,
            None if labels is None else labels[side.name].to(device),
            None if side.mask not in data else as_tensor(data[side.mask]).to(device).float(),
        )

    def _labels(self, data: Case) -> dict[str, torch.Tensor]:
        """The labels that both sides have, as held labels with the same numbers."""
        fixed = data.get(FIXED.native_label)
        if data.get(Key.LABELS_PREDICTED, False) and (fixed is None or self.prefer_predicted):
            fixed = data.get(WARPED.label)
        moving = data.get(MOVING.native_label)
        missing = [side.label for side, label in ((FIXED, fixed), (MOVING, moving)) if label is None]
        if fixed is None or moving is None:
            raise RegZooError(f"labels are compared, but the pair has no {' and no '.join(missing)}; name one")
        count = len(data[Key.LABEL_VALUES]) if is_map(fixed) or is_map(moving) else len(moving)
        found = [[box is not None for box in boxes(label, count)] for label in (fixed, moving)]
        channels = range(count) if self.channels is None else [index for index in self.channels if index < count]
        common = [index for index in channels if found[0][index] and found[1][index]]
        if not common:
            fix = "give the same structure the same value, or the same place, in both"
            raise RegZooError(f"labels are compared, but the two label files have no label in common; {fix}")
        return {"fixed": selected(fixed, common), "moving": selected(moving, common)}


def _in_hounsfield_units(data: Case) -> Case:
    """Both native images in Hounsfield units, to be compared: the files' own values are what the results have."""
    for side in SIDES:
        try:
            data = HounsfieldUnitsd([side.native_image])(data)
        except RegZooError as error:
            # It may be a crop of an organ without fat and air, so an export without a window need not help.
            problem = str(error).rpartition("; ")[0]
            logger.warning("%s; its values are compared as they are: subtract 1024 if they are too high", problem)
    return data


def _outlined(data: Case, device: torch.device) -> list[Volumes]:
    """What the network sees of both images and finds in them; the network grid already contains the pre-alignment."""
    # As masks: probabilities would blur the boundary of a label.
    outlines = [(data[side.outline] > 0.5).to(device) for side in SIDES]
    common = torch.stack([masks.flatten(1).any(dim=1) for masks in outlines]).all(dim=0)
    if not common.any():
        problem = "labels are compared, but the network finds no label in both images"
        raise RegZooError(f"{problem}; set refine to another kind, such as mr, or give the labels of both")
    sides = []
    for side, masks in zip(SIDES, outlines, strict=True):
        grid, mask = Grid.of(data[side.image]), None
        if side.mask in data:
            own = aligned(data, data[side.mask]) if side is MOVING else data[side.mask]
            mask = resample(as_tensor(own).to(device), Grid.of(own), grid, mode="nearest")
        sides.append(Volumes(grid, as_tensor(data[side.image]).to(device), masks[common], mask))
    return sides


def scaled(image: torch.Tensor, intensities: tuple[float, float] | None) -> torch.Tensor:
    """An image with `intensities` mapped to 0 and 1 and others clipped; None maps its quantiles, see `QUANTILES`."""
    if intensities is None:
        values = image.flatten()[:: even_step(image.numel(), SAMPLE)].float()
        low, high = torch.quantile(values, torch.tensor(QUANTILES, device=image.device)).tolist()
    else:
        low, high = intensities
    return ((image - low) / max(high - low, 1e-6)).clamp_(0, 1)


class StillPaird(MapTransform):
    """Keep a pair on its own grids and predict no displacement: for a registration without a network.

    Adds what `regzoo.transforms.ResamplePaird` adds with ``keep_native``, and ``image``, the zeros that a network
    without layers returns. The fixed image's corners are the network grid, for which these zeros are the DDF.
    """

    def __init__(self) -> None:
        super().__init__([FIXED.image, MOVING.image])

    def __call__(self, data: Case) -> Case:
        item = data.copy()
        for side in SIDES:
            item[side.native_image] = data[side.image]
            if side.label in data:
                item[side.native_label] = data[side.label]
        item[Key.FULL_RESOLUTION] = True
        corners = Grid.of(data[FIXED.image]).corner_grid
        item[FIXED.image] = MetaTensor(torch.zeros(1, *corners.shape), affine=torch.as_tensor(corners.affine))
        item[Key.IMAGE] = torch.zeros(3, *corners.shape)
        return item


def selected(labels: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
    """Some of the labels of one side, numbered anew, in the form in which they are held."""
    labels = as_tensor(labels)
    if not is_map(labels):
        return labels[list(indices)]
    table = torch.zeros(int(labels.max()) + 1, dtype=labels.dtype, device=labels.device)
    for number, index in enumerate(indices, 1):
        table[index + 1] = number
    return table[labels.int()]
