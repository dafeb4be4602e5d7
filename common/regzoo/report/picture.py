"""The panels of the quality-control picture of one registration."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from monai.data import MetaTensor
from regzoo.case import REFERENCE, UNREGISTERED, WARPED, Key
from regzoo.files import atomic_path
from regzoo.metrics.base import affine_of
from regzoo.metrics.labels import TargetRegistrationError
from regzoo.report.planes import PLANES, Orientation, Plane
from regzoo.report.style import drawable, write_png
from regzoo.report.volumes import Deformation, Labels, overlap, some_of
from regzoo.spatial import as_tensor

BACKGROUND, TEXT, MUTED = "#14171c", "#f2f4f7", "#9aa4b2"
FIXED, MOVING, _PROPAGATED, _FOLDED = "#35d0ff", "#ffb02e", "#ff5fb0", "#7dff3a"
_HEAT = LinearSegmentedColormap.from_list("probability", ["#ff2f8a00", "#ff2f8a68", "#ffd84a88"])
_LARGE = 0.1  # share of the largest label's volume; larger labels would cover the others in the heat map
_MARGIN_MM = 18.0  # around the labels
_CHECKER_MM = 12.0
_PANEL = 2.35  # width, inches
_GRID_LINES = 20  # across the widest view


class Picture:
    """The volumes of one case, turned for display, and the drawing of their panels; see `case_figure`."""

    def __init__(self, item: Mapping[str, Any]) -> None:
        affine = affine_of(item[REFERENCE.image]).numpy()
        turn = Orientation(affine)
        self.title = str(item.get(Key.CASE, ""))
        self.label_map = bool(item.get(Key.MOVING_LABEL_IS_MAP))
        self.spacing = np.linalg.norm(affine[:3, :3], axis=0)[turn.source]
        views = {"fixed": REFERENCE, "moving": UNREGISTERED, "warped": WARPED}
        self.warps = not item.get(Key.LABELS_PREDICTED)
        shown = list(views) if self.warps else ["fixed", "moving"]
        self.images = {name: turn.volume(_array(item[views[name].image])[0]) for name in shown}
        # Without a fixed label, the planes go through the propagated label, not the moving one.
        order = list(views) if self.warps else ["fixed", "warped", "moving"]
        known = {name: label for name in order if (label := item.get(views[name].label)) is not None}
        count = len(item.get(Key.LABEL_VALUES) or ())
        self.labels = {name: Labels.of(label, count).turned(turn) for name, label in known.items()}
        if not self.warps and "moving" in self.labels and not self.labels["moving"].is_map:
            # A point may be smaller than a voxel of the fixed image, and then reach no value of one half.
            soft = self.labels["moving"].volume
            largest = soft.max(axis=(1, 2, 3), keepdims=True)
            self.labels["moving"] = Labels(soft / np.where(largest > 0, largest, 1), len(soft))
        deformation = item.get(Key.FIELD, item.get(Key.DDF))
        self.deformation = None if deformation is None else Deformation(deformation, turn)
        probability = None if self.warps else item.get(Key.PROBABILITY)
        self.heat = None if probability is None else _heat(turn.volume(_array(probability)))
        self.shape = np.asarray(self.images["fixed"].shape)
        self.center, self.view = self._center_and_view()
        self.windows = {k: _window(some_of(self.images[k])) for k in ("fixed", "moving")}
        self.windows["warped"] = self.windows["moving"]
        self._silhouettes = False
        self._single = not self.warps and all(label.count == 1 for label in self.labels.values())
        self.result = "registered" if self.warps else "propagated"

    def _center_and_view(self) -> tuple[np.ndarray, np.ndarray]:
        """The voxel that the planes go through, and the first and last voxel shown along each axis (3, 2)."""
        whole = np.stack([np.zeros(3), self.shape - 1.0], axis=1)
        center, view = (self.shape - 1) // 2, whole
        for label in self.labels.values():
            boxes = label.boxes()
            present = [(index, box) for index, box in enumerate(boxes) if box is not None]
            if not present:
                continue
            masks = [(label.mask(index)[box], box) for index, box in (present if self.label_map else present[:1])]
            inside, box = max(masks, key=lambda mask_and_box: int(mask_and_box[0].sum()))
            center = np.round(np.argwhere(inside).mean(0) + [side.start for side in box]).astype(int)
            ends = np.array([[(side.start, side.stop - 1) for side in box] for _, box in present], dtype=float)
            margin = _MARGIN_MM / self.spacing
            view = np.stack([ends[..., 0].min(0) - margin, ends[..., 1].max(0) + margin], axis=1)
            view = np.clip(view, whole[:, :1], whole[:, 1:])
            break
        return center, view

    def write(self, path: str | PathLike[str]) -> None:
        """Lay out all panels and write the PNG file."""
        columns = ["fixed", "unregistered", self.result]
        columns += ["checkerboard"] if self.warps else []
        columns += [] if self.deformation is None else ["deformed grid", "volume change (det J)"]
        extent = (self.view[:, 1] - self.view[:, 0] + 1) * self.spacing
        scale = _PANEL / max(extent[plane.right] for plane in PLANES)  # inches per mm
        heights = [extent[plane.up] * scale for plane in PLANES]
        left, top, bottom, gap = 0.34, 0.78, 0.42, 0.05
        right = 0.12 if self.deformation is None and self.heat is None else 0.72
        width = left + right + len(columns) * (_PANEL + gap)
        height = top + bottom + sum(heights) + 2 * gap
        figure = Figure(figsize=(width, height), dpi=120, facecolor=BACKGROUND)
        canvas = FigureCanvasAgg(figure)

        def place(x: float, y: float, wide: float, high: float) -> tuple[float, float, float, float]:
            """Inches → fractions of the figure."""
            return x / width, y / height, wide / width, high / height

        y = height - top
        for row, plane in enumerate(PLANES):
            y -= heights[row]
            for column, name in enumerate(columns):
                axes = figure.add_axes(place(left + column * (_PANEL + gap), y, _PANEL, heights[row]))
                self._panel(axes, name, plane)
                if row == 0:
                    axes.set_title(name, color=TEXT, fontsize=9.5, pad=5)
            middle = (0.17 / width, (y + heights[row] / 2) / height)
            figure.text(*middle, plane.name, color=MUTED, fontsize=9, rotation=90, va="center", ha="center")
            y -= gap
        bars = ([] if self.heat is None else [_probability_bar]) + ([] if self.deformation is None else [self._det_bar])
        high = sum(heights) / max(len(bars), 1)
        for number, draw in enumerate(bars):
            draw(figure.add_axes(place(width - right + 0.08, bottom + (number + 0.25) * high, 0.11, high / 2)))
        style: dict[str, Any] = {"color": TEXT, "fontsize": 12, "weight": "bold", "va": "top"}
        figure.text(left / width, 1 - 0.16 / height, drawable(self.title), **style)
        figure.text(1 - 0.12 / width, 1 - 0.18 / height, self.facts(), color=MUTED, fontsize=9.5, va="top", ha="right")
        self._legend(figure)
        with atomic_path(path) as temporary:
            write_png(canvas, temporary)

    def _panel(self, axes: Axes, name: str, plane: Plane) -> None:
        axes.set_facecolor("black")
        if name == "checkerboard":
            self._checkerboard(axes, plane)
        elif name == "deformed grid":
            self._image(axes, "moving", plane, dim=0.55)
            self._grid(axes, plane)
            self._outline(axes, "moving", plane, MOVING)
        elif name.startswith("volume"):
            self._determinant(axes, plane)
            self._outline(axes, "fixed", plane, "#1d2733")
        else:
            key = {"fixed": "fixed", "unregistered": "moving"}.get(name, "warped")
            self._image(axes, "fixed" if name == "propagated" else key, plane)
            if name == "propagated" and self.heat is not None:
                heat = plane.of(self.heat, self.center)
                self._show(axes, plane, heat, cmap=_HEAT, vmin=0, vmax=1, interpolation="bilinear")
            self._outline(axes, "fixed", plane, FIXED)
            if key != "fixed":
                self._outline(axes, key, plane, _PROPAGATED if name == "propagated" else MOVING)
        self._frame(axes, plane, lettered=name == "fixed")

    def _frame(self, axes: Axes, plane: Plane, lettered: bool) -> None:
        (left, right), (bottom, top) = (
            ((self.view[axis] + [-0.5, 0.5]) * self.spacing[axis]).tolist() for axis in (plane.right, plane.up)
        )
        axes.set_xlim((right, left) if plane.mirrored else (left, right))
        axes.set_ylim(bottom, top)
        axes.set_aspect("equal", adjustable="box")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if lettered:
            places = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.03), (0.5, 0.97))
            aligned = (("left", "center"), ("right", "center"), ("center", "bottom"), ("center", "top"))
            for letter, place, (ha, va) in zip(plane.edges, places, aligned, strict=True):
                text = axes.text(*place, letter, transform=axes.transAxes, color=TEXT, fontsize=8, ha=ha, va=va)
                text.set_path_effects([withStroke(linewidth=2, foreground="black")])

    def _extent(self, plane: Plane) -> tuple[float, float, float, float]:
        width, height = (self.shape[axis] * self.spacing[axis] for axis in (plane.right, plane.up))
        dx, dy = self.spacing[plane.right] / 2, self.spacing[plane.up] / 2
        return (-dx, width - dx, -dy, height - dy)

    def _gray(self, key: str, plane: Plane) -> np.ndarray:
        """A plane of an image, scaled from black (0) to white (1)."""
        low, high = self.windows[key]
        return np.clip((plane.of(self.images[key], self.center) - low) / (high - low), 0, 1)

    def _show(self, axes: Axes, plane: Plane, values: np.ndarray, **style: Any) -> None:
        axes.imshow(values.T, origin="lower", extent=self._extent(plane), **style)

    def _image(self, axes: Axes, key: str, plane: Plane, dim: float = 1.0) -> None:
        self._show(axes, plane, dim * self._gray(key, plane), cmap="gray", vmin=0, vmax=1, interpolation="bilinear")

    def _checkerboard(self, axes: Axes, plane: Plane) -> None:
        squares = [
            np.floor((np.arange(self.shape[a]) - self.view[a, 0]) * self.spacing[a] / _CHECKER_MM).astype(int)
            for a in (plane.right, plane.up)
        ]
        from_fixed = (squares[0][:, None] + squares[1][None]) % 2 == 0
        mixed = np.where(from_fixed, self._gray("fixed", plane), self._gray("warped", plane))
        self._show(axes, plane, mixed, cmap="gray", vmin=0, vmax=1, interpolation="nearest")

    def _outline(self, axes: Axes, key: str, plane: Plane, color: str) -> None:
        """Outlines of a volume's labels, thicker for the gland."""
        if key not in self.labels:
            return
        x, y = (np.arange(self.shape[a]) * self.spacing[a] for a in (plane.right, plane.up))
        for channel, mask in enumerate(self.labels[key].planes(plane, self.center)):
            width = 1.5 if channel == 0 and not self.label_map else 0.9
            if mask.max() > 0.5 > mask.min():
                axes.contour(x, y, mask.T, levels=[0.5], colors=[color], linewidths=width)
            elif self._single:  # the only label does not meet this plane: draw its silhouette
                mask = self.labels[key].values(channel).max(axis=plane.cut)
                if mask.max() > 0.5 > mask.min():
                    axes.contour(x, y, mask.T, levels=[0.5], colors=[color], linewidths=width, linestyles="dotted")
                    self._silhouettes = True

    def _grid(self, axes: Axes, plane: Plane) -> None:
        assert self.deformation is not None
        shown = (self.view[:, 1] - self.view[:, 0]) * self.spacing
        step = np.maximum(np.round(shown.max() / _GRID_LINES / self.spacing), 1).astype(int)
        field = self.deformation.plane(plane, self.center)
        axis_x, axis_y = plane.right, plane.up
        x = (np.arange(self.shape[axis_x])[:, None] + field[axis_x]) * self.spacing[axis_x]
        y = (np.arange(self.shape[axis_y])[None] + field[axis_y]) * self.spacing[axis_y]
        points = np.stack([x, y], axis=-1)
        lines = [*points[:: step[axis_x]], *points[:, :: step[axis_y]].transpose(1, 0, 2)]
        axes.add_collection(LineCollection(lines, colors=TEXT, linewidths=0.65, alpha=0.8), autolim=False)

    @cached_property
    def _norm(self) -> TwoSlopeNorm:
        assert self.deformation is not None
        spread = float(np.nanpercentile(np.abs(some_of(self.deformation.determinant) - 1), 99.5))
        reach = float(np.clip(np.ceil(spread * 5) / 5, 0.2, 1.0))
        return TwoSlopeNorm(1.0, 1 - reach, 1 + reach)

    def _determinant(self, axes: Axes, plane: Plane) -> None:
        assert self.deformation is not None
        det = plane.of(self.deformation.determinant, self.center)
        self._show(axes, plane, det, cmap="RdBu_r", norm=self._norm, interpolation="nearest")
        folded = np.ma.masked_where(det > 0, np.ones_like(det))
        self._show(axes, plane, folded, cmap=ListedColormap([_FOLDED]), interpolation="nearest")

    def _det_bar(self, axes: Axes) -> None:
        _color_bar(axes, "RdBu_r", self._norm, [float(self._norm.vmin or 0), 1, float(self._norm.vmax or 2)])

    def facts(self) -> str:
        """Gland DSC or mean DSC before and after, the TRE of propagated landmarks, and the share of folded voxels."""
        facts = []
        if "fixed" in self.labels:
            fixed = self.labels["fixed"]
            moved = [self.labels[k] for k in ("moving", "warped") if k in self.labels]
            with warnings.catch_warnings():  # NumPy warns about the mean of no values, which is NaN
                warnings.simplefilter("ignore", RuntimeWarning)
                scores = [np.nanmean(overlap(m, fixed, fixed.count if self.label_map else 1)) for m in moved]
            if scores and np.isfinite(scores).all():
                name = "DSC" if self._single else "mean DSC" if self.label_map else "gland DSC"
                facts.append(f"{name} " + " → ".join(f"{s:.2f}" for s in scores))
        facts += self._landmark_facts() if self.result == "propagated" else []
        if self.deformation is not None:
            facts.append(f"{100 * np.mean(~(self.deformation.determinant > 0)):.2f} % of voxels folded")
        return "   ·   ".join(facts)

    def _landmark_facts(self) -> list[str]:
        """Target registration error before and after, and how many labels were not found."""
        affine = torch.diag(torch.tensor([*self.spacing, 1.0]))
        labels = {
            k: MetaTensor(torch.from_numpy(np.stack([v.values(i) for i in range(v.count)]).astype(np.float32)), affine)
            for k, v in self.labels.items()
        }
        fixed, moving, warped = (labels.get(key) for key in ("fixed", "moving", "warped"))
        if moving is None or warped is None or moving.shape != warped.shape:
            return []
        facts = []
        if fixed is not None and fixed.shape == warped.shape:
            errors = [TargetRegistrationError().measure(label, fixed).item() for label in (moving, warped)]
            if np.isfinite(errors).all():
                facts.append(f"landmark TRE {errors[0]:.1f} → {errors[1]:.1f} mm")
        in_moving, in_warped = ((label >= 0.5).flatten(1).any(1) for label in (moving, warped))
        lost = int((in_moving & ~in_warped).sum())
        return [*facts, f"{lost} of {int(in_moving.sum())} labels not found"] if lost else facts

    def _legend(self, figure: Figure) -> None:
        shown = self.labels.keys()
        moved = {"moving", "warped"} if self.warps else {"moving"}
        lines = {"fixed label": (FIXED, "fixed" in shown), "moving label": (MOVING, bool(shown & moved))}
        lines["propagated label"] = (_PROPAGATED, not self.warps and "warped" in shown)
        handles: list[Any] = [
            Line2D([], [], color=color, lw=2, label=name) for name, (color, drawn) in lines.items() if drawn
        ]
        if self._silhouettes:
            handles.append(Line2D([], [], color=MUTED, lw=1.5, ls="dotted", label="outside this plane"))
        if self.deformation is not None:
            handles.append(Patch(color=_FOLDED, label="folded (det J ≤ 0)"))
        if handles:
            style: dict[str, Any] = {"frameon": False, "labelcolor": TEXT, "fontsize": 9}
            figure.legend(handles=handles, loc="lower center", ncols=len(handles), **style)


def _array(values: torch.Tensor) -> np.ndarray:
    return as_tensor(values).detach().float().cpu().numpy()


def _color_bar(axes: Axes, colors: Any, norm: Normalize, ticks: list[float]) -> None:
    low, high = ticks[0], ticks[-1]
    ramp = np.linspace(low, high, 256)[:, None]
    axes.imshow(ramp, origin="lower", extent=(0, 1, low, high), aspect="auto", cmap=colors, norm=norm)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks(ticks)
    axes.tick_params(colors=TEXT, labelsize=8, length=2)


def _probability_bar(axes: Axes) -> None:
    axes.set_facecolor("#55585e")  # as on a grey image
    _color_bar(axes, _HEAT, Normalize(0, 1), [0, 0.5, 1])
    axes.yaxis.set_label_position("right")
    axes.set_ylabel("probability", color=MUTED, fontsize=8.5, labelpad=2)


def _heat(probability: np.ndarray) -> np.ndarray:
    """The largest probability (X, Y, Z) of any small label; the gland and its zones would cover the small labels."""
    known = np.nan_to_num(np.asarray(probability, dtype=np.float32))
    volumes = (known >= 0.5).sum(axis=(1, 2, 3))
    small = volumes < _LARGE * volumes.max()
    if not small.any():
        small = np.arange(len(known)) >= min(1, len(known) - 1)
    return known[small].max(axis=0)


def _window(image: np.ndarray) -> tuple[float, float]:
    """The intensities drawn black and white: the 1st and 99.5th percentile of the finite values."""
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, (1, 99.5)) if finite.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))
