"""The figures of a study's report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from regzoo.report.style import COLORS, INK, drawable, tidy, tukey_box
from regzoo_tools.study.results import BIAS, VARIANCE, Group
from regzoo_tools.study.tables import Row
from regzoo_tools.study.words import title

_GREY = "#7b8794"
#: What the deformation maps show → the colour map, and the value of its middle.
_MAPS = {"det J": ("RdBu_r", 1.0), "‖u‖, mm": ("viridis", None), "‖∇u‖": ("magma", None)}


def box_plots(groups: Sequence[Group], metric: str) -> bytes:
    """Tukey box plots of a metric, as SVG: whiskers reach the last value within 1.5 box lengths, dots lie beyond."""
    shown = [group for group in groups if group.known(metric).size]
    figure = Figure(figsize=(max(3.0, 0.62 * len(shown) + 1.3), 3.4), layout="constrained")
    axes = figure.subplots()
    for position, group in enumerate(shown, 1):
        color = _GREY if np.isnan(group.trained_on) else COLORS[0]
        dots = {"marker": "o", "markersize": 2.5, "markerfacecolor": color, "markeredgecolor": "none", "alpha": 0.7}
        tukey_box(axes, group.known(metric), position, color, widths=0.55, flierprops=dots)
    axes.set_xticks(range(1, len(shown) + 1), [drawable(group.method) for group in shown], rotation=35, ha="right")
    axes.set_ylabel(title(metric), color=INK)
    tidy(axes, "y")
    return _svg(figure)


def size_curves(rows: Sequence[Row], metric: str) -> bytes:
    """The mean of an error, and the medians of squared bias and variance, against the training cases, as SVG.

    Bars span the quartiles.

    Source: Hu et al. 2019, figure 3.
    """
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (name, kind) in zip(panels, ((metric, "mean"), (BIAS, "median"), (VARIANCE, "median")), strict=True):
        for i, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            found = [row for row in rows if row["method"] == method and row["metric"] == name]
            found.sort(key=lambda row: float(row["trained_on"]))
            if not found:
                continue
            middle = np.array([row[kind] for row in found])
            around = np.abs(np.array([[row["p25"] for row in found], [row["p75"] for row in found]]) - middle)
            bars: dict[str, Any] = {"yerr": around, "capsize": 2} if kind == "median" else {}
            sizes = [row["trained_on"] for row in found]
            bars |= {"label": drawable(method), "color": COLORS[i % len(COLORS)]}
            axes.errorbar(sizes, middle, marker="o", ms=4, lw=1.4, **bars)
        axes.set_xlabel("training cases", color=INK)
        axes.set_title(f"{kind} {title(name)}", color=INK, fontsize=10)
        axes.set_ylim(bottom=0)
        tidy(axes, "y")
    panels[0].legend(frameon=False, labelcolor=INK, fontsize=8)
    return _svg(figure)


def deformation_maps(columns: dict[str, tuple[dict[str, np.ndarray], float]]) -> bytes:
    """One axial plane of det J, ‖u‖ and ‖∇u‖ for each method, on common scales, as PNG; see `case_maps`.

    Source: Hu et al. 2018, figure 10.
    """
    figure = Figure(figsize=(1.75 * len(columns) + 0.9, 5.0), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(len(_MAPS), len(columns), squeeze=False)
    for axis, method in zip(panels[0], columns, strict=True):
        axis.set_title(drawable(method), fontsize=9, color=INK)
    for axes, (name, (colors, middle)) in zip(panels, _MAPS.items(), strict=True):
        everything = np.concatenate([planes[name].ravel() for planes, _ in columns.values()])
        low, high = np.nanmin(everything), np.nanmax(everything)
        if middle is not None:
            reach = max(high - middle, middle - low, 1e-3)
            low, high = middle - reach, middle + reach
        for axis, (planes, aspect) in zip(axes, columns.values(), strict=True):
            picture = axis.imshow(planes[name].T, origin="lower", cmap=colors, vmin=low, vmax=high, aspect=aspect)
            if name == "det J" and (planes[name] <= 0).any():
                axis.contour(planes[name].T <= 0, levels=[0.5], colors="#7dff3a", linewidths=0.8)
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(name, color=INK)
        figure.colorbar(picture, ax=list(axes), shrink=0.85).ax.tick_params(labelsize=7)
    file = io.BytesIO()
    canvas.print_png(file, metadata={"Software": None})
    return file.getvalue()


def _svg(figure: Figure) -> bytes:
    """A figure whose text stays text; the same figure gives the same bytes."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "regzoo", "font.family": "sans-serif"}):
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return file.getvalue()
