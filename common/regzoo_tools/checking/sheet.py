"""A contact sheet: one slice of each case, fixed and moving, with the outlines of the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from regzoo.case import FIXED, MOVING, SIDES
from regzoo.ownership import own_path
from regzoo.report.style import drawable, write_png
from regzoo.spatial import Grid, as_tensor, centroids, resample
from regzoo.spatial.volumes import even_step

#: Pixels along the longer side of a slice.
PIXELS = 128
#: About this many voxels are enough for the percentiles of an image.
SAMPLE = 100_000
#: Cases in a row, and inches of a slice.
ACROSS, INCHES = 4, 1.5


class Thumbnail(NamedTuple):
    """One axial slice of a case, the patient's right on the left.

    Attributes:
        case: name.
        images: by side, uint8 (W, H).
        labels: by side, bool (C, W, H).
    """

    case: str
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def thumbnail(item: Mapping[Any, Any], view: Grid, case: str) -> Thumbnail:
    """Cut a case, aligned but not resampled, in the middle of its first label, or of the view if it has no label.

    The view is the network grid, which fills the slice.
    """
    plane = _plane(view, _height(item, view))
    images: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    for side in SIDES:
        for key, found in ((side.image, images), (side.label, labels)):
            if key in item:
                values = resample(torch.nan_to_num(as_tensor(item[key])), Grid.of(item[key]), plane)
                found[side.name] = values[..., 0].numpy()[:, ::-1]
        if (pixels := images.get(side.name)) is not None:
            values = as_tensor(item[side.image]).flatten()
            some = values[:: even_step(len(values), SAMPLE)]
            low, high = np.percentile(some.nan_to_num().numpy(), (1, 99.5))
            images[side.name] = (255 * np.clip((pixels[0] - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)
    return Thumbnail(case, images, {side: values >= 0.5 for side, values in labels.items()})


def _height(item: Mapping[Any, Any], view: Grid) -> float:
    """The voxel of the view's third axis at which to cut."""
    middle = (view.shape[2] - 1) / 2
    label = item.get(FIXED.label, item.get(MOVING.label))
    if label is None:
        return middle
    places = centroids(label, label.affine).numpy()
    places = places[np.isfinite(places).all(axis=1)]
    return float(np.clip(view.to_voxels(places[0])[2], 0, view.shape[2] - 1)) if len(places) else middle


def _plane(view: Grid, height: float) -> Grid:
    """One slice of a view, in square pixels."""
    extent = view.spacing[:2] * view.shape[:2]
    pixel = float(extent.max()) / PIXELS
    width, high = (max(8, round(float(mm) / pixel)) for mm in extent)
    affine = np.eye(4)
    affine[:3, :3] = view.affine[:3, :3] / view.spacing * pixel
    middle = view.to_world([(view.shape[0] - 1) / 2, (view.shape[1] - 1) / 2, height])
    affine[:3, 3] = middle - affine[:3, :3] @ [(width - 1) / 2, (high - 1) / 2, 0]
    return Grid((width, high, 1), affine)


def contact_sheet(path: str | PathLike[str], thumbnails: Sequence[Thumbnail], title: str) -> None:
    """Draw slices side by side, below a title, and write them as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from regzoo.report.picture import BACKGROUND, FIXED, MOVING, MUTED, TEXT

    sides = 1 + any(len(one.images) > 1 for one in thumbnails)
    across = min(ACROSS, len(thumbnails))
    rows = -(-len(thumbnails) // across)
    size = (across * sides * INCHES, rows * (INCHES + 0.25) + 0.6)
    figure = Figure(figsize=size, dpi=120, facecolor=BACKGROUND, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(rows, across * sides, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for one, axes_of_case in zip(thumbnails, panels.reshape(-1, sides), strict=False):
        axes_of_case[0].set_title(drawable(one.case[:34]), color=MUTED, fontsize=7, loc="left")
        for axes, (side, image) in zip(axes_of_case, one.images.items(), strict=False):
            axes.imshow(image.T, origin="lower", cmap="gray", vmin=0, vmax=255)
            for name, color in (("fixed", FIXED), ("moving", MOVING)):
                for mask in one.labels.get(name, ()) if side == "moving" or name == "fixed" else ():
                    if mask.any() and not mask.all():
                        axes.contour(mask.T.astype(float), levels=[0.5], colors=[color], linewidths=0.8)
    figure.suptitle(drawable(title), x=0.01, ha="left", color=TEXT, fontsize=9)
    outlines = {FIXED: "fixed labels" + " (in both)" * (sides > 1)} | ({MOVING: "moving labels"} if sides > 1 else {})
    handles = [Line2D([], [], color=color, label=text) for color, text in outlines.items()]
    figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, labelcolor=TEXT, fontsize=7.5)
    with own_path(path) as temporary:
        write_png(canvas, temporary)
