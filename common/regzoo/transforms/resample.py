"""From two files on their own grids to the tensors a network sees."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from regzoo.datasets.records import LABEL_KEYS, is_of_kind
from regzoo.errors import RegZooError, bad_file
from regzoo.filters import gaussian_filter, voxel_sigmas
from regzoo.spatial import Grid, as_tensor, resample
from regzoo.spatial.held import boxes, is_map, one_mask, part_of, sizes_and_centres
from regzoo.spatial.volumes import FILE
from regzoo.transforms.load import file_of, overlap

logger = logging.getLogger(__name__)

#: A training warns if less than this share of a label lies in the network's field of view.
IN_VIEW = 0.98
#: A label of less than this many voxels of the network grid counts as absent: it lies outside, all but a trace.
MIN_VOXELS = 0.1
#: How far the blur that goes before coarser sampling carries a label, standard deviations.
REACH = 6.0


class ResamplePaird(MapTransform):
    """Resample a pair and its labels onto the network grid, through the affines, one interpolation each.

    The network grid has the fixed image's obliquity, axes in the order and direction nearest to R, A, S, and the given
    voxel and matrix size. Its centre is that of the fixed image, or ``view_center`` (RAS mm) where
    `regzoo.transforms.FieldOfViewd` has found one. Images and labels are blurred before they are sampled more coarsely;
    labels stay soft, so that small landmarks keep their mass and their centroid. Of a single image there is no moving
    side.

    Args:
        spacing: voxel size of the network grid, mm.
        size: matrix size of the network grid.
        interpolation: of the images, ``linear`` or ``bspline`` (cubic).
        binarise: cut the resampled labels at 0.5.
        keep_native: keep what was loaded as ``fixed_native``, ``moving_native``, ``…_label_native`` for full-resolution
            outputs.

    Adds ``fixed_label_in_view`` and ``moving_label_in_view``, how much of each label lies on the network grid (C,), for
    a training, which does not keep what was loaded.

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
        super().__init__(["fixed_image", "moving_image"])
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

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        target = self.target(item)
        affine = torch.as_tensor(target.affine)
        for key in ("fixed_image", "moving_image", *LABEL_KEYS):
            if key not in item:
                continue
            native, label = item[key], key in LABEL_KEYS
            if label and not self.keep_native:
                item[f"{key}_in_view"] = share_in_view(native, target)
            if self.keep_native:
                item[key.replace("_image", "") + "_native"] = native
            values = (
                _labels_on(target, native, len(item["label_values"]) if is_map(native) else len(native))
                if label
                else resample(native.as_tensor(), Grid.of(native), target, self.mode, "border", anti_alias=True)
            )
            if label and self.binarise:
                values = (values >= 0.5).float()
            item[key] = MetaTensor(values, affine=affine, meta={FILE: file_of(native)})
        return item

    def target(self, item: Mapping[Hashable, Any]) -> Grid:
        """The network grid of a case, which its moving image reaches.

        Raises:
            RegZooError: the moving image lies outside.
        """
        grid = Grid.of(item["fixed_image"]).network_grid(self.spacing, self.size)
        if "view_center" in item:
            affine = grid.affine.copy()
            affine[:3, 3] += np.asarray(item["view_center"]) - grid.center
            extent, view = item.get("view_extent"), np.multiply(self.spacing, self.size)
            if extent is not None and (np.asarray(extent) > view).any():
                sides = ["×".join(f"{mm:.0f}" for mm in box) for box in (np.asarray(extent), view)]
                logger.warning("%s: %s mm are wanted, the network's field of view has %s mm", item.get("case"), *sides)
            grid = Grid(grid.shape, affine)
        if "moving_image" in item and not overlap(grid, Grid.of(item["moving_image"])):
            raise bad_file(
                file_of(item["moving_image"], "the moving image"),
                f"lies outside the network's field of view on {file_of(item['fixed_image'], 'the fixed image')}",
                "align the centres with --align center, or enlarge size and spacing",
            )
        return grid


def share_in_view(label: MetaTensor, view: Grid) -> torch.Tensor:
    """How much of each label (C, X, Y, Z) lies in the voxels of a grid, from 0 to 1, shape (C,); NaN if it is empty."""
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
        RegZooError: a case has fewer channels, no names for its labels, or nothing of a label that is needed.
    """

    def __init__(
        self, channels: Sequence[int] | None = None, without: Sequence[str] = (), need: Sequence[str] = ()
    ) -> None:
        super().__init__(LABEL_KEYS)
        self.channels = None if channels is None else [int(channel) for channel in channels]
        self.without = tuple(without)
        self.need = tuple(need)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in (key for key in LABEL_KEYS if key in item):
            count = len(item[key])
            kept = list(range(count)) if self.channels is None else self.channels
            if max(kept, default=0) >= count:
                problem = f"has {count} labels, and label {max(kept)} (from 0) is asked for"
                raise bad_file(file_of(item[key], key), problem, "give a file with that label")
            if self.without:
                left_out = of_kind(item, self.without, count)
                kept = [channel for channel in kept if not left_out[channel]]
            for channel in kept if key in self.need else ():
                if not float(as_tensor(item[key])[channel].sum()) > MIN_VOXELS:
                    problem = f"label {channel} (from 0) is empty or outside the network's field of view, but needed"
                    raise bad_file(file_of(item[key], key), problem, "draw it, or align the images otherwise (--align)")
            item[key] = item[key][kept]
            if (shares := item.get(f"{key}_in_view")) is not None:  # of those left out nobody need know
                item[f"{key}_in_view"] = torch.full_like(shares, torch.nan)
                item[f"{key}_in_view"][kept] = shares[kept]
        return item


def _labels_on(target: Grid, labels: MetaTensor, count: int) -> torch.Tensor:
    """Labels (C, X, Y, Z) float32 on the network grid: one after the other, each from what lies round it."""
    grid = Grid.of(labels)
    steps = np.abs(np.linalg.solve(grid.affine, target.affine))[:3, :3].max(axis=1)
    margin = np.ceil(REACH * np.maximum(steps - 1, 0) / 2) + 1
    values = torch.zeros(count, *target.shape, device=labels.device)
    for index, box in enumerate(boxes(labels, count)):
        if box is not None:
            ends = zip(box, margin.astype(int).tolist(), grid.shape, strict=True)
            x, y, z = (slice(max(side.start - more, 0), min(side.stop + more, n)) for side, more, n in ends)
            mask = one_mask(labels, index, (x, y, z)).float()
            values[index] = resample(mask[None], part_of(grid, (x, y, z)), target, anti_alias=True)[0]
    return values


def of_kind(item: Mapping[Hashable, Any], kinds: Sequence[str], count: int) -> list[bool]:
    """Which of the labels of a case are of certain kinds.

    Args:
        item: a case with ``label_names``.
        kinds: see `regzoo.datasets.is_of_kind`.
        count: how many labels the case has.

    Raises:
        RegZooError: there are not as many names as labels.
    """
    names = [str(name) for name in item.get("label_names") or []]
    if len(names) != count:
        raise RegZooError(f"{item.get('case')}: it has {count} labels and {len(names)} names; mend its label_names")
    return [is_of_kind(name, kinds) for name in names[:count]]


class RegionInputd(MapTransform):
    """Make of the moving labels on the network grid what a network can be shown: each with a maximum of 1.

    A region smaller than the voxels of the grid has small values there. One whose centre is out of view would be scaled
    up from a trace at the border: it is emptied. That takes the labels as they were loaded, which
    ``ResamplePaird(keep_native=True)`` keeps; in training `MatchLabelsd` has left such labels out before.
    """

    def __init__(self) -> None:
        super().__init__(["moving_label"])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        label = item["moving_label"]
        top = as_tensor(label).amax(dim=(1, 2, 3))
        scale = torch.where(top > 0, 1 / top.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
        if "moving_label_native" in item:
            native, grid = item["moving_label_native"], Grid.of(label)
            _, centres = sizes_and_centres(native, boxes(native, len(top)))
            voxels = grid.to_voxels(centres)
            inside = ((voxels >= -0.5) & (voxels <= np.asarray(grid.shape) - 0.5)).all(axis=1)
            scale = scale * torch.as_tensor(inside, device=scale.device)
        item["moving_label"] = label * scale.view(-1, 1, 1, 1)
        return item


class AdHocLabelsd(MapTransform):
    """Single out the labels of kinds that the training did not see, for metrics of their own.

    Adds ``adhoc_reference_label``, ``adhoc_warped_label`` and ``adhoc_unregistered_label``, with no channel where a
    case has no such label.

    Args:
        kinds: one or several, see `regzoo.datasets.is_of_kind`.
    """

    def __init__(self, kinds: str | Sequence[str]) -> None:
        super().__init__(["reference_label", "warped_label", "unregistered_label"])
        self.kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        count = len(item["reference_label"])
        chosen = of_kind(item, self.kinds, count) if self.kinds else [False] * count
        for key in self.keys:
            item[f"adhoc_{key}"] = item[key][torch.tensor(chosen, device=item[key].device)]
        return item


class MatchLabelsd(MapTransform):
    """Keep the labels that are non-empty in both images: the label pairs a training step may draw.

    Of a single image those that are non-empty in it; without labels there is nothing to do. The first label of a data
    set of which less than 98 % lies in the network's field of view is warned about, as `ResamplePaird` found it.

    Raises:
        RegZooError: no label of the case is left.
    """

    def __init__(self) -> None:
        super().__init__(LABEL_KEYS)
        self._warned = False

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        keys = [key for key in LABEL_KEYS if key in item]
        if not keys:
            return item
        present = torch.stack([as_tensor(item[key]).flatten(1).sum(1) > MIN_VOXELS for key in keys]).all(dim=0)
        if not bool(present.any()):
            shared = "in common with its moving image " if "moving_image" in item else ""
            raise bad_file(
                file_of(item["fixed_image"], f"case {item.get('case', '')}"),
                f"has no label {shared}within the network's field of view",
                "leave the case out, or enlarge size and spacing",
            )
        for key in keys:
            item[key] = item[key][present]
            self._warn(item, key)
        return item

    def _warn(self, item: Mapping[Hashable, Any], key: str) -> None:
        """Say once for all cases that a label is cut off."""
        shares = item.get(f"{key}_in_view")
        if self._warned or shares is None or not bool((shares < IN_VIEW).any()):
            return
        self._warned = True
        worst = int(torch.nan_to_num(shares, nan=1.0).argmin())
        logger.warning(
            "%s: only %.0f %% of label %d (from 0) lies in the network's field of view; enlarge size or spacing, or "
            "align otherwise (said once; regzoo check lists all)",
            file_of(item[key], key),
            100 * float(shares[worst]),
            worst,
        )


class FilterLabelsd(MapTransform):
    """Filter the labels in advance, once per scale: (C, X, Y, Z) → (C, scales, X, Y, Z).

    With this in the cached preprocessing and a single-scale Dice loss, training uses the paper's "preFilt" variant, in
    which filtered labels are warped instead of warped labels filtered.

    Args:
        sigmas: standard deviations, mm.
        spacing: voxel size of the network grid, mm.

    Source: Hu et al. 2018, section 3.2.1 ("Baseline-preFilt").
    """

    def __init__(self, sigmas: Sequence[float], spacing: Sequence[float]) -> None:
        super().__init__(LABEL_KEYS)
        self.sigmas = voxel_sigmas(sigmas, spacing)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in LABEL_KEYS:
            label = as_tensor(item[key])[None]
            item[key] = torch.stack([gaussian_filter(label, sigma)[0] for sigma in self.sigmas], dim=1)
        return item
