"""Curves of a training, from the TensorBoard files that it wrote."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from regzoo.engines.weights import read_checkpoint
from regzoo.errors import bad_file
from regzoo.ownership import check_file, own_path
from regzoo.report.style import COLORS, INK, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Values by epoch.
Curve = dict[int, float]

_LOSS, _TOTAL = "loss/", "loss/total"
_NAMES = {
    "tre": "validation: landmark TRE, mm",
    "gland_dsc": "validation: gland DSC",
    "dsc": "validation: mean DSC",
    "ncc": "validation: NCC",
    "folded_percent": "validation: folded voxels, %",
}
#: ``selection`` repeats one of the others.
_NOT_DRAWN = ("learning_rate", "selection")


def read_curves(folder: str | PathLike[str]) -> dict[str, Curve]:
    """The scalars in the output folder of a training, which may have been resumed: tag → the value of each epoch.

    Raises:
        RegZooError: the folder holds no log of a training.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not Path(folder).is_dir():
        raise bad_file(folder, "is not a folder", "name the --output_dir of a training")
    # Reads all files of the folder, without the epochs that a resumed training repeated.
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    curves = {
        # Logs of earlier versions may repeat an epoch; its latest value counts.
        tag: {event.step: event.value for event in sorted(events.Scalars(tag), key=lambda event: event.wall_time)}
        for tag in sorted(events.Tags()["scalars"])
    }
    if _TOTAL not in curves:
        raise bad_file(folder, "holds no log of a training", "name the --output_dir of one")
    return {tag: dict(sorted(curve.items())) for tag, curve in curves.items()}


def training_figure(path: str | PathLike[str], folder: str | PathLike[str]) -> int:
    """Draw the training loss, its terms and each metric of the validation over the epochs.

    A dotted line marks the epoch whose weights were kept, if ``last.pt`` says which.

    Returns:
        The number of epochs.

    Raises:
        RegZooError: the folder holds no log of a training, or `path` is another file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_file(path)
    curves = read_curves(folder)
    terms = {tag.removeprefix(_LOSS): curves[tag] for tag in curves if tag.startswith(_LOSS) and tag != _TOTAL}
    metrics = {tag: curve for tag, curve in curves.items() if "/" not in tag and tag not in _NOT_DRAWN}
    panels: list[tuple[str, Mapping[str, Curve]]] = [("training loss", {"": curves[_TOTAL]})]
    if len(terms) > 1:
        panels.append(("terms of the loss, unweighted", terms))
    panels += [(_NAMES.get(tag, f"validation: {tag}"), {"": curve}) for tag, curve in metrics.items()]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows), dpi=120, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    kept = _kept_epoch(Path(folder) / "last.pt")
    for axis, (title, drawn) in zip(axes, panels, strict=False):
        _draw(axis, title, drawn, kept if title.startswith("validation") else None)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    with own_path(path) as temporary:
        canvas.print_png(str(temporary))
    return len(curves[_TOTAL])


def _draw(axis: Axes, title: str, curves: Mapping[str, Curve], kept: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    for color, (name, curve) in zip(itertools.cycle(COLORS), curves.items(), strict=False):
        marker = "o" if len(curve) == 1 else None
        axis.plot(list(curve), list(curve.values()), color=color, lw=1.6, marker=marker, label=name)
    if kept is not None:
        axis.axvline(kept, color=INK, lw=1, ls=":")
    if len(curves) > 1:
        axis.legend(fontsize=8, frameon=False, labelcolor=INK)
    axis.set_title(title, fontsize=10.5, color=INK)
    axis.set_xlabel("epoch", fontsize=9, color=INK)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    tidy(axis)


def _kept_epoch(checkpoint: Path) -> int | None:
    """The epoch with the best key metric, from a training's ``last.pt``; None if unknown."""
    if not checkpoint.is_file():
        return None
    epoch = read_checkpoint(checkpoint).get("best_metric_epoch", -1)
    return epoch if epoch > 0 else None
