"""A picture for each table of ``peers.py``: one slice of its first pair, as every method leaves it."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import SimpleITK as sitk
from peer_measures import IDENTITY, read_field, read_masks, warp
from peer_pairs import Facts
from peer_runs import Run
from PIL import Image

SIDES = ("fixed", "moving")
COLUMNS = 5
#: Axis of (Z, Y, X), in LPS, that a slice is cut across: coronal for CTs, axial for the rest.
ACROSS = {"ct": 1}


def picture(runs: Mapping[str, Run], path: Path) -> None:
    """Draw the fixed image and, for every method, the warped image with the outlines of the warped labels.

    The outlines of the fixed labels are white, those of the moving labels, warped, have a colour each.

    Args:
        runs: method → its run on the pair.
        path: of the PNG.
    """
    some = next(iter(runs.values()))
    facts = Facts.of(some.pair)
    values = sorted({*facts.labels, *facts.landmarks})
    fixed, moving = (
        sitk.ReadImage(str(some.pair / f"{side}.nii.gz"), sitk.sitkFloat32) for side in ("fixed", "moving")
    )
    labels, moving_labels = (label_map(some.pair / f"{side}_label.nii.gz", values) for side in ("fixed", "moving"))
    labels = sitk.Resample(labels, fixed, IDENTITY, sitk.sitkNearestNeighbor)
    axis = ACROSS.get(facts.kind, 0)
    index = fullest(volume(labels), axis)
    background = float(sitk.GetArrayViewFromImage(moving).min())
    panels = {"fixed": (volume(fixed), volume(labels))}
    for method, run in runs.items():
        field = read_field(run.folder / "field.nii.gz")
        warped, carried = warp(moving, field, outside=background), warp(moving_labels, field, nearest=True)
        panels[method or "moving, unregistered"] = (volume(warped), volume(carried))
    spacing = sitk.DICOMOrient(fixed, "LPS").GetSpacing()[::-1]
    height, width = (spacing[k] for k in range(3) if k != axis)
    fixed_map = panels["fixed"][1].take(index, axis)
    seen = around(np.asarray(panels["fixed"][1].any(axis)))
    rows = math.ceil(len(panels) / COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(2.1 * COLUMNS, 2.3 * rows), squeeze=False)
    for axes_ in axes.flat:
        axes_.axis("off")
    for axes_, (title, (image, carried)) in zip(axes.flat, panels.items(), strict=False):
        cut = image.take(index, axis)[seen]
        axes_.imshow(cut, cmap="gray", vmin=image.min(), vmax=np.percentile(image, 99.7), aspect=height / width)
        outline(axes_, fixed_map[seen], "white")
        if title != "fixed":
            outline(axes_, carried.take(index, axis)[seen], None)
        if axis:
            axes_.invert_yaxis()  # the head is up
        axes_.set_title(title, fontsize=8)
    figure.tight_layout(pad=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    plt.close(figure)
    Image.open(buffer).convert("RGB").quantize(96).save(path, optimize=True)


def label_map(path: Path, values: list[int]) -> sitk.Image:
    """One map of the labels, numbered from 1; later ones lie on top."""
    masks = read_masks(path, values)
    whole = masks[0] * 0
    for number, mask in enumerate(masks, start=1):
        whole = sitk.Maximum(whole, mask * number)
    return whole


def volume(image: sitk.Image) -> np.ndarray:
    """The voxels (Z, Y, X) with the axes in LPS."""
    return np.asarray(sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS")))


def fullest(labels: np.ndarray, axis: int) -> int:
    """The slice that shows most labels, of several the one in the middle."""
    counts = [len(np.unique(labels.take(index, axis))) for index in range(labels.shape[axis])]
    best = np.flatnonzero(np.asarray(counts) == max(counts))
    return int(best[len(best) // 2])


def around(mask: np.ndarray, margin: float = 0.12) -> tuple[slice, ...]:
    """The box of a mask (2-D) and some of what is around it."""
    ends = [np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0)]
    more = int(margin * max(high - low for low, high in ends))
    return tuple(slice(max(low - more, 0), high + more + 1) for low, high in ends)


def outline(axes: plt.Axes, labels: np.ndarray, colour: str | None) -> None:
    """Draw the outlines of all labels of a slice."""
    for value in np.unique(labels[labels > 0]):
        shade = colour or matplotlib.colormaps["hsv"](value * 0.618 % 1)
        axes.contour(labels == value, [0.5], colors=[shade], linewidths=0.5 if colour else 0.7)
