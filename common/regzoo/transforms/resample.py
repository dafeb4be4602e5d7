"""From two files on their own grids to the tensors a network sees."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from regzoo.case import FIXED, LABEL_KEYS, MOVING, SIDES, VIEWS, Case, Key, Side
from regzoo.datasets.records import is_of_kind
from regzoo.errors import RegZooError, bad_file
from regzoo.filters import gaussian_filter, voxel_sigmas
from regzoo.spatial import Grid, as_tensor, resample
from regzoo.spatial.held import Box, boxes, is_map, one_mask, part_of, sizes_and_centres
from regzoo.spatial.transformation import within_grid
from regzoo.spatial.volumes import FILE
from regzoo.transforms.load import aligned, file_of, label_number, overlap

logger = logging.getLogger(__name__)

#: A training warns if less than this share of a label lies in the network's field of view.
IN_VIEW = 0.98
#: A label with less than this mass, in voxels of the network grid, counts as absent: only a trace of it is in view.
MIN_VOXELS = 0.1
#: How far the blur before coarser sampling spreads a label, standard deviations.
REACH = 6.0


class ResamplePaird(MapTransform):
    """Resample a pair and its labels onto the network grid, through their affines and the pre-alignment, once each.

    The network grid has the fixed image's obliquity, axes in the order and direction nearest to R, A, S, and the given
    voxel and matrix size. Its centre is ``view_center`` (RAS mm) where `regzoo.transforms.FieldOfViewd` has found one,
    otherwise the centre of the fixed image. Images and labels are blurred before they are sampled more coarsely; labels
    stay soft, so that small landmarks keep their mass and their centroid. A single image has no moving side.

    Args:
        spacing: voxel size of the network grid, mm.
        size: matrix size of the network grid.
        interpolation: of the images, ``linear`` or ``bspline`` (cubic).
        binarise: cut the resampled labels at 0.5.
        keep_native: keep the images and labels as loaded, for results at full resolution: ``fixed_native``,
            ``moving_native``, ``fixed_label_native`` and ``moving_label_native``.

    Adds ``full_resolution``, which is `keep_native`, and without it ``fixed_label_in_view`` and
    ``moving_label_in_view`` (C,), the share of each label that lies on the network grid, for a training.

    Raises:
        RegZooError: the moving image lies outside the network grid.
    """

    def __init__(
        self,
        spacing: Sequence[float],
        size: Sequence[int],
        keep_native: bool = False,
        interpolation: Literal["linear", "bspline"] = "linear",
        binarise: bool = False,
    ) -> None:
        super().__init__([FIXED.image, MOVING.image])
        # From a command line either may come as a single number.
        if np.size(spacing) != 3 or np.min(spacing) <= 0 or np.size(size) != 3 or np.min(size) < 8:
            raise RegZooError(f"spacing {spacing} and size {size}: give three mm > 0 and three sizes ≥ 8")
        self.spacing = [float(s) for s in spacing]
        self.size = [int(n) for n in size]
        if interpolation not in ("linear", "bspline"):
            raise RegZooError(f"interpolation {interpolation!r} is not known; use linear or bspline")
        self.mode: Literal["bilinear", "bspline"] = "bilinear" if interpolation == "linear" else "bspline"
        self.keep_native = keep_native
        self.binarise = binarise

    def __call__(self, data: Case) -> Case:
        item = data.copy()
        target = self.target(data)
        affine = torch.as_tensor(target.affine)
        for side in SIDES:
            if side.image in data:
                native = data[side.image]
                placed = aligned(data, native) if side is MOVING else native
                values = resample(
                    placed.as_tensor(), Grid.of(placed), target, self.mode, padding="border", anti_alias=True
                )
                item[side.image] = MetaTensor(values, affine=affine, meta={FILE: file_of(native)})
                if self.keep_native:
                    item[side.native_image] = native
            if side.label in data:
                native = data[side.label]
                placed = aligned(data, native) if side is MOVING else native
                values = _labels_on(target, placed, len(data[Key.LABEL_VALUES]) if is_map(native) else len(native))
                if self.binarise:
                    values = (values >= 0.5).float()
                item[side.label] = MetaTensor(values, affine=affine, meta={FILE: file_of(native)})
                if self.keep_native:
                    item[side.native_label] = native
                else:
                    item[side.label_in_view] = share_in_view(placed, target)
        item[Key.FULL_RESOLUTION] = self.keep_native
        return item

    def target(self, item: Case) -> Grid:
        """The network grid of a case; raises `RegZooError` if the moving image lies outside."""
        grid = Grid.of(item[FIXED.image]).network_grid(self.spacing, self.size)
        if Key.VIEW_CENTER in item:
            affine = grid.affine.copy()
            affine[:3, 3] += np.asarray(item[Key.VIEW_CENTER]) - grid.center
            extent, view = item.get(Key.VIEW_EXTENT), np.multiply(self.spacing, self.size)
            if extent is not None and (np.asarray(extent) > view).any():
                sides = ["×".join(f"{mm:.0f}" for mm in box) for box in (np.asarray(extent), view)]
                text = "%s: %s mm are wanted, the network's field of view has %s mm"
                logger.warning(text, item.get(Key.CASE), *sides)
            grid = Grid(grid.shape, affine)
        if MOVING.image in item and not overlap(grid, Grid.of(aligned(item, item[MOVING.image]))):
            fixed, moving = (file_of(item[side.image], f"the {side.name} image") for side in SIDES)
            problem = f"lies outside the network's field of view on {fixed}"
            raise bad_file(moving, problem, "set align to center, or enlarge size and spacing")
        return grid


def share_in_view(label: MetaTensor, view: Grid) -> torch.Tensor:
    """The share of each label (C, X, Y, Z) that lies on a grid, from 0 to 1, shape (C,); NaN for an empty label."""
    masks, affine = as_tensor(label), np.linalg.inv(view.affine) @ Grid.of(label).affine
    total = masks.flatten(1).sum(1)
    inside = torch.ones(masks.shape[1:], dtype=torch.bool, device=masks.device)
    for row, count in zip(affine[:3], view.shape, strict=True):
        steps = [torch.arange(n, device=masks.device) * float(step) for n, step in zip(inside.shape, row, strict=False)]
        place = steps[0][:, None, None] + steps[1][:, None] + (steps[2] + float(row[3]))
        inside &= (place >= -0.5) & (place <= count - 0.5)
    seen = masks.flatten(1) @ inside.flatten().float()
    return torch.where(total > 0, seen / total, torch.nan)


class SelectLabelsd(MapTransform):
    """Keep some of the labels that lie on the network grid; those on the files' own grids stay as they are.

    Args:
        channels: which to keep, in this order; None for all.
        without: kinds of label to leave out, by the ``label_names`` of the case; see `regzoo.datasets.is_of_kind`.
        need: keys of labels of which every channel kept must lie in the network's field of view.

    Raises:
        RegZooError: a case has fewer channels, no names for its labels, or a label that is needed is empty.
    """

    def __init__(
        self, channels: Sequence[int] | None = None, without: Sequence[str] = (), need: Sequence[str] = ()
    ) -> None:
        super().__init__(LABEL_KEYS)
        self.channels = None if channels is None else [int(channel) for channel in channels]
        self.without = tuple(without)
        self.need = tuple(need)

    def __call__(self, data: Case) -> Case:
        item = data.copy()
        for side in SIDES:
            if side.label not in data:
                continue
            label = data[side.label]
            kept = list(range(len(label))) if self.channels is None else self.channels
            if max(kept, default=0) >= len(label):
                problem = f"has {len(label)} labels, and label {max(kept)} (from 0) is asked for"
                raise bad_file(file_of(label, side.label), problem, "give a file with that label")
            if self.without:
                left_out = of_kind(data, self.without, len(label))
                kept = [channel for channel in kept if not left_out[channel]]
            for channel in kept if side.label in self.need else ():
                if not float(as_tensor(label)[channel].sum()) > MIN_VOXELS:
                    which = label_number(data.get(Key.LABEL_VALUES), channel)
                    problem = f"{which} is empty or outside the network's field of view, but needed"
                    raise bad_file(file_of(label, side.label), problem, "draw it, or set align to another method")
            item[side.label] = label[kept]
            if (shares := data.get(side.label_in_view)) is not None:  # no warning about labels that are left out
                item[side.label_in_view] = torch.full_like(shares, torch.nan)
                item[side.label_in_view][kept] = shares[kept]
        return item


def _labels_on(target: Grid, labels: MetaTensor, count: int) -> torch.Tensor:
    """Labels (C, X, Y, Z) float32 on the network grid, each resampled only from and to where it is."""
    grid = Grid.of(labels)
    steps = np.abs(np.linalg.solve(grid.affine, target.affine))[:3, :3].max(axis=1)
    margin = np.ceil(REACH * np.maximum(steps - 1, 0) / 2) + 1
    values = torch.zeros(count, *target.shape, device=labels.device)
    for index, box in enumerate(boxes(labels, count)):
        if box is not None:
            ends = zip(box, margin.astype(int).tolist(), grid.shape, strict=True)
            x, y, z = (slice(max(side.start - more, 0), min(side.stop + more, n)) for side, more, n in ends)
            part, mask = part_of(grid, (x, y, z)), one_mask(labels, index, (x, y, z)).float()
            reached = _reached(target, part)
            if all(side.start < side.stop for side in reached):
                values[(index, *reached)] = resample(mask[None], part, part_of(target, reached), anti_alias=True)[0]
    return values


def _reached(target: Grid, part: Grid) -> Box:
    """The box of a grid's voxels outside which none lies in another grid; it may be empty."""
    ends = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in part.shape], indexing="ij"), -1).reshape(-1, 3)
    voxels = target.to_voxels(part.to_world(ends))
    low, high = (np.clip(limit, 0, target.shape) for limit in (np.floor(voxels.min(0)), np.ceil(voxels.max(0)) + 1))
    x, y, z = (slice(int(first), int(last)) for first, last in zip(low, high, strict=True))
    return x, y, z


def of_kind(item: Case, kinds: Sequence[str], count: int) -> list[bool]:
    """For each of the `count` labels of a case, whether it is of certain kinds, see `regzoo.datasets.is_of_kind`.

    Raises:
        RegZooError: the case does not have as many ``label_names`` as labels.
    """
    names = [str(name) for name in item.get(Key.LABEL_NAMES) or []]
    if len(names) != count:
        raise RegZooError(f"{item.get(Key.CASE)}: it has {count} labels and {len(names)} names; fix its label_names")
    return [is_of_kind(name, kinds) for name in names]


class RegionInputd(MapTransform):
    """Scale each moving label on the network grid to a maximum of 1, as the network sees it.

    A region smaller than the voxels of the grid has small values there. A region whose centre is out of view is
    emptied, because only a trace of it, at the border, would be scaled up. That needs the labels as loaded, which
    ``ResamplePaird(keep_native=True)`` keeps; in training, `MatchLabelsd` has already left out such labels.
    """

    def __init__(self) -> None:
        super().__init__([MOVING.label])

    def __call__(self, data: Case) -> Case:
        item = data.copy()
        label = data[MOVING.label]
        top = as_tensor(label).amax(dim=(1, 2, 3))
        scale = torch.where(top > 0, 1 / top.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
        if data.get(Key.FULL_RESOLUTION, False):
            native, grid = aligned(data, data[MOVING.native_label]), Grid.of(label)
            _, centres = sizes_and_centres(native, boxes(native, len(top)))
            scale = scale * torch.as_tensor(within_grid(centres, grid), device=scale.device)
        item[MOVING.label] = label * scale.view(-1, 1, 1, 1)
        return item


class AdHocLabelsd(MapTransform):
    """Single out the labels of kinds that the training did not see, for metrics of their own.

    Adds ``adhoc_reference_label``, ``adhoc_warped_label`` and ``adhoc_unregistered_label`` where the case has the label
    without ``adhoc_``, with no channel where a case has no such label.

    Args:
        kinds: one or several, see `regzoo.datasets.is_of_kind`.
    """

    def __init__(self, kinds: str | Sequence[str]) -> None:
        super().__init__([view.label for view in VIEWS])
        self.kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)

    def __call__(self, data: Case) -> Case:
        item = data.copy()
        for view in VIEWS:
            if view.label not in data:
                continue
            label = data[view.label]
            chosen = of_kind(data, self.kinds, len(label)) if self.kinds else [False] * len(label)
            item[view.adhoc_label] = label[torch.tensor(chosen, device=label.device)]
        return item


class MatchLabelsd(MapTransform):
    """Keep the labels that are non-empty in both images: the label pairs a training step may draw.

    For a single image, keep those that are non-empty in it; without labels nothing changes. Warns about the first label
    of a data set of which less than 98 % lies in the network's field of view, by the shares of `ResamplePaird`.

    Raises:
        RegZooError: no label of the case is left.
    """

    def __init__(self) -> None:
        super().__init__(LABEL_KEYS)
        self._warned = False

    def __call__(self, data: Case) -> Case:
        item = data.copy()
        sides = [side for side in SIDES if side.label in data]
        if not sides:
            return item
        present = torch.stack([as_tensor(data[side.label]).flatten(1).sum(1) > MIN_VOXELS for side in sides]).all(dim=0)
        if not bool(present.any()):
            shared = "in common with its moving image " if MOVING.image in data else ""
            name = file_of(data[FIXED.image], f"case {data.get(Key.CASE, '')}")
            problem = f"has no label {shared}within the network's field of view"
            raise bad_file(name, problem, "leave the case out, or enlarge size and spacing")
        for side in sides:
            item[side.label] = data[side.label][present]
            self._warn(item, side)
        return item

    def _warn(self, item: Case, side: Side) -> None:
        """Warn once per data set about a label that is cut off."""
        shares = item.get(side.label_in_view)
        if self._warned or shares is None or not bool((shares < IN_VIEW).any()):
            return
        self._warned = True
        worst = int(torch.nan_to_num(shares, nan=1.0).argmin())
        which = label_number(item.get(Key.LABEL_VALUES), worst)
        logger.warning(
            "%s: only %.0f %% of %s lies in the network's field of view; enlarge size or spacing, or "
            "choose another align (said once; regzoo check lists all)",
            *(file_of(item[side.label], side.label), 100 * float(shares[worst]), which),
        )


class FilterLabelsd(MapTransform):
    """Filter the labels in advance, once per scale: (C, X, Y, Z) → (C, scales, X, Y, Z).

    With this in the cached preprocessing and a single-scale Dice loss, a training follows the paper's "preFilt"
    variant, which warps filtered labels instead of filtering warped labels.

    Args:
        sigmas: standard deviations, mm.
        spacing: voxel size of the network grid, mm.

    Source: Hu et al. 2018, section 3.2.1 ("Baseline-preFilt").
    """

    def __init__(self, sigmas: Sequence[float], spacing: Sequence[float]) -> None:
        super().__init__(LABEL_KEYS)
        self.sigmas = voxel_sigmas(sigmas, spacing)

    def __call__(self, data: Case) -> Case:
        item = data.copy()
        for side in SIDES:
            label = as_tensor(data[side.label])[None]
            item[side.label] = torch.stack([gaussian_filter(label, sigma)[0] for sigma in self.sigmas], dim=1)
        return item
