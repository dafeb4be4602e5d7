"""The panels of the quality-control picture of one registration."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from regzoo.files import atomic_path
from regzoo.metrics.labels import dice
from regzoo.report.planes import PLANES, Orientation, Plane
from regzoo.spatial import jacobian_determinant

_BACKGROUND, _TEXT, _MUTED = "#14171c", "#f2f4f7", "#9aa4b2"
_FIXED, _MOVING, _FOLDED = "#35d0ff", "#ffb02e", "#7dff3a"
_MARGIN_MM = 18.0  # around the labels
_CHECKER_MM = 12.0
_PANEL = 2.35  # width, inches
_GRID_LINES = 20  # across the widest view


class Picture:
    """The volumes of one case, turned for display, and the drawing of their panels."""

    def __init__(
        self,
        images: dict[str, np.ndarray],
        labels: dict[str, np.ndarray],
        ddf: np.ndarray | None,
        spacing: Sequence[float],
        affine: np.ndarray | None,
    ) -> None:
        labels = {k: v[None] if v.ndim == 3 else v for k, v in labels.items()}
        self.spacing = np.asarray(spacing, dtype=float)
        self.oriented = affine is not None
        if affine is not None:
            turn = Orientation.of(affine)
            images = {k: turn.volume(v) for k, v in images.items()}
            labels = {k: turn.volume(v) for k, v in labels.items()}
            ddf = None if ddf is None else turn.field(ddf)
            self.spacing = self.spacing[turn.source]
        self.images = {k: np.asarray(v, dtype=np.float32) for k, v in images.items()}
        self.labels = labels
        self.ddf = None if ddf is None else np.asarray(ddf, dtype=np.float32)
        self.det = None
        if self.ddf is not None:
            self.det = jacobian_determinant(torch.from_numpy(self.ddf.copy())[None])[0, 0].numpy()
        self.shape = np.asarray(self.images["fixed"].shape)
        self.center, self.view = self._center_and_view()
        self.windows = {k: _window(self.images[k]) for k in ("fixed", "moving")}
        self.windows["warped"] = self.windows["moving"]

    def _center_and_view(self) -> tuple[np.ndarray, np.ndarray]:
        """The voxel the planes go through, and the first and last voxel to show along each axis (3, 2)."""
        whole = np.stack([np.zeros(3), self.shape - 1.0], axis=1)
        center, view = (self.shape - 1) // 2, whole
        for label in self.labels.values():
            glands = [mask >= 0.5 for mask in label if mask.max() >= 0.5]
            if glands:
                inside = np.argwhere(glands[0])
                center = np.round(inside.mean(0)).astype(int)
                break
        masks = [label.max(0) >= 0.5 for label in self.labels.values() if label.max() >= 0.5]
        if masks:
            inside = np.argwhere(np.any(masks, axis=0))
            margin = _MARGIN_MM / self.spacing
            view = np.stack([inside.min(0) - margin, inside.max(0) + margin], axis=1)
            view = np.clip(view, whole[:, :1], whole[:, 1:])
        return center, view

    def write(self, path: str | PathLike[str], title: str) -> None:
        """Lay out all panels and write the PNG file."""
        columns = ["fixed", "unregistered", "registered", "checkerboard"]
        columns += [] if self.ddf is None else ["deformed grid", "volume change (det J)"]
        extent = (self.view[:, 1] - self.view[:, 0] + 1) * self.spacing
        scale = _PANEL / max(extent[plane.right] for plane in PLANES)  # inches per mm
        heights = [extent[plane.up] * scale for plane in PLANES]
        left, top, bottom, gap = 0.34, 0.78, 0.42, 0.05
        right = 0.12 if self.ddf is None else 0.72
        width = left + right + len(columns) * (_PANEL + gap)
        height = top + bottom + sum(heights) + 2 * gap
        figure = Figure(figsize=(width, height), dpi=120, facecolor=_BACKGROUND)
        canvas = FigureCanvasAgg(figure)

        def place(x: float, y: float, wide: float, high: float) -> tuple[float, float, float, float]:
            """Inches → the fractions of the figure that matplotlib wants."""
            return x / width, y / height, wide / width, high / height

        y = height - top
        for row, plane in enumerate(PLANES):
            y -= heights[row]
            for column, name in enumerate(columns):
                axes = figure.add_axes(place(left + column * (_PANEL + gap), y, _PANEL, heights[row]))
                self._panel(axes, name, plane)
                if row == 0:
                    axes.set_title(name, color=_TEXT, fontsize=9.5, pad=5)
            name = plane.name if self.oriented else f"axis {plane.cut}"
            middle = (y + heights[row] / 2) / height
            figure.text(0.17 / width, middle, name, color=_MUTED, fontsize=9, rotation=90, va="center", ha="center")
            y -= gap
        if self.det is not None:
            bar = place(width - right + 0.08, bottom + 0.25 * sum(heights), 0.11, sum(heights) / 2)
            self._color_bar(figure, bar)
        figure.text(left / width, 1 - 0.16 / height, title, color=_TEXT, fontsize=12, weight="bold", va="top")
        figure.text(
            1 - 0.12 / width, 1 - 0.18 / height, self._facts(), color=_MUTED, fontsize=9.5, va="top", ha="right"
        )
        self._legend(figure)
        with atomic_path(path) as temporary:
            canvas.print_png(str(temporary))

    def _panel(self, axes: Axes, name: str, plane: Plane) -> None:
        axes.set_facecolor("black")
        if name == "checkerboard":
            self._checkerboard(axes, plane)
        elif name == "deformed grid":
            self._image(axes, "moving", plane, dim=0.55)
            self._grid(axes, plane)
            self._outline(axes, "moving", plane, _MOVING)
        elif name.startswith("volume"):
            self._determinant(axes, plane)
            self._outline(axes, "fixed", plane, "#1d2733")
        else:
            key = {"fixed": "fixed", "unregistered": "moving", "registered": "warped"}[name]
            self._image(axes, key, plane)
            self._outline(axes, "fixed", plane, _FIXED)
            if key != "fixed":
                self._outline(axes, key, plane, _MOVING)
        self._frame(axes, plane, lettered=name == "fixed")

    def _frame(self, axes: Axes, plane: Plane, lettered: bool) -> None:
        (left, right), (bottom, top) = (
            ((self.view[axis] + [-0.5, 0.5]) * self.spacing[axis]).tolist() for axis in (plane.right, plane.up)
        )
        mirrored = plane.mirrored and self.oriented
        axes.set_xlim((right, left) if mirrored else (left, right))
        axes.set_ylim(bottom, top)
        axes.set_aspect("equal", adjustable="box")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        if lettered and self.oriented:
            places = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.03), (0.5, 0.97))
            aligned = (("left", "center"), ("right", "center"), ("center", "bottom"), ("center", "top"))
            for letter, place, (ha, va) in zip(plane.edges, places, aligned, strict=True):
                axes.text(*place, letter, transform=axes.transAxes, color=_TEXT, fontsize=8, ha=ha, va=va, alpha=0.9)

    def _extent(self, plane: Plane) -> tuple[float, float, float, float]:
        width, height = (self.shape[axis] * self.spacing[axis] for axis in (plane.right, plane.up))
        dx, dy = self.spacing[plane.right] / 2, self.spacing[plane.up] / 2
        return (-dx, width - dx, -dy, height - dy)

    def _gray(self, key: str, plane: Plane) -> np.ndarray:
        """A plane of an image between its black (0) and its white (1)."""
        low, high = self.windows[key]
        return np.clip((plane.of(self.images[key], self.center) - low) / (high - low), 0, 1)

    def _show(self, axes: Axes, plane: Plane, values: np.ndarray, **style: Any) -> Any:
        return axes.imshow(values.T, origin="lower", extent=self._extent(plane), **style)

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
        """Outlines of a volume's labels, the gland's thicker."""
        if key not in self.labels:
            return
        x, y = (np.arange(self.shape[a]) * self.spacing[a] for a in (plane.right, plane.up))
        for channel, mask in enumerate(plane.of(self.labels[key], self.center)):
            if mask.max() > 0.5 > mask.min():
                axes.contour(x, y, mask.T, levels=[0.5], colors=[color], linewidths=1.5 if channel == 0 else 0.9)

    def _grid(self, axes: Axes, plane: Plane) -> None:
        assert self.ddf is not None
        shown = (self.view[:, 1] - self.view[:, 0]) * self.spacing
        step = np.maximum(np.round(shown.max() / _GRID_LINES / self.spacing), 1).astype(int)
        field = plane.of(self.ddf, self.center)
        axis_x, axis_y = plane.right, plane.up
        x = (np.arange(self.shape[axis_x])[:, None] + field[axis_x]) * self.spacing[axis_x]
        y = (np.arange(self.shape[axis_y])[None] + field[axis_y]) * self.spacing[axis_y]
        points = np.stack([x, y], axis=-1)
        lines = [*points[:: step[axis_x]], *points[:, :: step[axis_y]].transpose(1, 0, 2)]
        axes.add_collection(LineCollection(lines, colors=_TEXT, linewidths=0.65, alpha=0.8), autolim=False)

    def _norm(self) -> TwoSlopeNorm:
        assert self.det is not None
        spread = float(np.nanpercentile(np.abs(self.det - 1), 99.5))
        reach = float(np.clip(np.ceil(spread * 5) / 5, 0.2, 1.0))
        return TwoSlopeNorm(1.0, 1 - reach, 1 + reach)

    def _determinant(self, axes: Axes, plane: Plane) -> None:
        assert self.det is not None
        det = plane.of(self.det, self.center)
        self._show(axes, plane, det, cmap="RdBu_r", norm=self._norm(), interpolation="nearest")
        folded = np.ma.masked_where(det > 0, np.ones_like(det))
        self._show(axes, plane, folded, cmap=ListedColormap([_FOLDED]), interpolation="nearest")

    def _color_bar(self, figure: Figure, box: tuple[float, float, float, float]) -> None:
        axes = figure.add_axes(box)
        norm = self._norm()
        low, high = float(norm.vmin or 0), float(norm.vmax or 2)
        ramp = np.linspace(low, high, 256)[:, None]
        axes.imshow(ramp, origin="lower", extent=(0, 1, low, high), aspect="auto", cmap="RdBu_r", norm=norm)
        axes.set_xticks([])
        axes.yaxis.tick_right()
        axes.set_yticks([low, 1, high])
        axes.tick_params(colors=_TEXT, labelsize=8, length=2)

    def _facts(self) -> str:
        """Dice of the gland before and after, and the share of folded voxels."""
        facts = []
        if "fixed" in self.labels:
            fixed = torch.from_numpy(np.ascontiguousarray(self.labels["fixed"][:1]))
            moved = [self.labels[k][:1] for k in ("moving", "warped") if k in self.labels]
            scores = [dice(torch.from_numpy(np.ascontiguousarray(m)), fixed).item() for m in moved]
            if scores and np.isfinite(scores).all():
                facts.append("gland DSC " + " → ".join(f"{s:.2f}" for s in scores))
        if self.det is not None:
            facts.append(f"{100 * np.mean(~(self.det > 0)):.2f} % of voxels folded")
        return "   ·   ".join(facts)

    def _legend(self, figure: Figure) -> None:
        handles: list[Any] = []
        if "fixed" in self.labels:
            handles.append(Line2D([], [], color=_FIXED, lw=2, label="fixed label"))
        if self.labels.keys() & {"moving", "warped"}:
            handles.append(Line2D([], [], color=_MOVING, lw=2, label="moving label"))
        if self.det is not None:
            handles.append(Patch(color=_FOLDED, label="folded (det J ≤ 0)"))
        if handles:
            figure.legend(
                handles=handles, loc="lower center", ncols=len(handles), frameon=False, labelcolor=_TEXT, fontsize=9
            )


def _window(image: np.ndarray) -> tuple[float, float]:
    """Black and white of an image: the 1st and 99.5th percentile of its finite values."""
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, (1, 99.5)) if finite.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))
