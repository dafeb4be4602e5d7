"""How plots look."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg

INK = "#1f2933"
COLORS = ("#1273de", "#d97706", "#0f8a5f", "#b4307a", "#6b4fbb", "#7b8794", "#a3580f", "#0b7285")


def drawable(name: str) -> str:
    """A name for Matplotlib, which would read what is between two dollars as a formula.

    Question marks stand for the parts that are not text: names of files can be any bytes.
    """
    return name.encode("utf-8", "replace").decode().replace("$", r"\$")


def write_png(canvas: FigureCanvasAgg, path: str | os.PathLike[str]) -> None:
    """Draw a figure as a PNG file; a character that the font lacks becomes a box, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")
        canvas.print_png(str(path))


def tidy(axes: Axes, grid: Literal["both", "y"] = "both") -> None:
    """Dark text, a pale grid behind the data, and no frame but the axis at the bottom."""
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.grid(axis=grid, color="#e4e7eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#cbd2d9")


def tukey_box(axes: Axes, values: np.ndarray, position: float, color: str, **more: Any) -> None:
    """One box plot of values (N,): whiskers reach the last value within 1.5 box lengths. `more` is for ``boxplot``."""
    line = {"color": color, "lw": 1.2}
    axes.boxplot(
        values,
        positions=[position],
        whis=1.5,
        patch_artist=True,
        boxprops={"facecolor": color, "alpha": 0.30, "edgecolor": color, "lw": 1.2},
        medianprops=line | {"lw": 2.4},
        whiskerprops=line,
        capprops=line,
        **more,
    )
