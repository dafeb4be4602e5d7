"""Box plots of an evaluation before and after registration."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from regzoo.errors import bad_file
from regzoo.files import atomic_path
from regzoo.metrics.handlers import BEFORE
from regzoo.report.style import COLORS, INK, tidy, tukey_box
from regzoo.report.tables import read_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BEFORE, _AFTER = "#9aa5b1", COLORS[0]
_NAMES = {"tre_mm": "landmark TRE, mm", "gland_dsc": "gland DSC", "gland_hd95_mm": "gland HD95, mm"}


def summary_figure(path: str | PathLike[str], cases_csv: str | PathLike[str]) -> None:
    """Draw Tukey box plots of each metric before and after registration; a line joins the two values of a case.

    Metrics are those that the table also has as ``before_<name>``.

    Args:
        path: PNG file to write.
        cases_csv: table written by `regzoo.report.CaseTable`.

    Raises:
        RegZooError: the table cannot be read or has no such metric.
    """
    try:
        table = read_csv(cases_csv)
    except (OSError, ValueError, IndexError) as error:
        fix = "name the cases.csv of an evaluation"
        raise bad_file(cases_csv, "cannot be read as a table of cases", fix) from error
    metrics = [name for name in table if BEFORE + name in table and any(table[name] + table[BEFORE + name])]
    if not metrics:
        fix = "evaluate the unregistered pair as well, with the same metrics"
        raise bad_file(cases_csv, f"has no metric with a column {BEFORE}<metric>", fix)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.04)
    figure = Figure(figsize=(2.7 * len(metrics) + 0.4, 3.6), dpi=120, facecolor="white", layout=layout)
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, name in zip(panels, metrics, strict=True):
        _paired_boxes(axes, _numbers(table[BEFORE + name]), _numbers(table[name]))
        axes.set_title(_NAMES.get(name.lower(), name), fontsize=10.5, color=INK, pad=8)
    with atomic_path(path) as temporary:
        canvas.print_png(str(temporary))


def _numbers(cells: Sequence[str]) -> np.ndarray:
    return np.asarray([float(cell) if cell else np.nan for cell in cells])


def _paired_boxes(axes: Axes, before: np.ndarray, after: np.ndarray) -> None:
    joined = np.stack([before, after])
    axes.plot([1.27, 1.73], joined, color=_BEFORE, lw=0.7, alpha=0.55, zorder=1)
    for position, edge, place, side, values, color in (
        (1, 1.27, 0.74, "right", before, _BEFORE),
        (2, 1.73, 2.26, "left", after, _AFTER),
    ):
        values = values[~np.isnan(values)]
        if not values.size:
            continue
        tukey_box(axes, values, position, color, widths=0.42, showfliers=False)  # every case is drawn as a point
        axes.plot(np.full(values.size, edge), values, "o", ms=3.2, color=color, alpha=0.8, mew=0, zorder=3)
        median = float(np.median(values))
        axes.text(place, median, f"{median:.3g}", ha=side, va="center", fontsize=9, color=INK, weight="bold")
    axes.set_xlim(0.35, 2.65)
    axes.set_xticks([1, 2], ["unregistered", "registered"], fontsize=9)
    axes.margins(y=0.08)
    low, high = axes.get_ylim()
    if np.nanmin(joined) >= 0:
        axes.set_ylim(max(low, 0.0), high)
    tidy(axes, "y")
