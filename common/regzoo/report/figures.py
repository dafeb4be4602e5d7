"""Quality-control pictures of registrations: the images, the labels and the deformation."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai.engines import IterationEvents
from regzoo.case import Key
from regzoo.files import file_name
from regzoo.report.engine import cases_of

if TYPE_CHECKING:
    from ignite.engine import Engine


def case_figure(path: str | PathLike[str], item: Mapping[str, Any]) -> None:
    """Draw a case in three orthogonal planes through the gland, as a PNG file.

    Columns: the fixed image; the moving image before and after registration, with the outlines of its labels and of the
    fixed labels; a checkerboard of the fixed and the warped image; a regular grid of the fixed image, drawn where its
    lines lie in the moving image; the local volume change (det J), with folded voxels marked. Edges are lettered, in
    the radiological convention. Labels that were propagated without a transformation are shown on the fixed image, in
    the third and last column, with their probabilities.

    The planes go through the centroid of the fixed gland, channel 0, else of another label, else through the image
    centre. In a label map (``moving_label_is_map``) they go through the largest label.

    Args:
        item: has ``reference_image``, a `MetaTensor`, ``unregistered_image`` and ``warped_image`` (1, X, Y, Z), and may
            have ``reference_label``, ``unregistered_label``, ``warped_label`` (C, X, Y, Z, or held as a map), and
            ``field`` or ``ddf`` (3, X, Y, Z) in voxels, all on the grid of ``reference_image``. With
            ``labels_predicted``, it has no warped image and may have a ``probability`` (C, X, Y, Z).
    """
    # matplotlib is slow to import, and a server that only registers may lack it.
    from regzoo.report.picture import Picture

    Picture(item).write(path)


class FigureWriter:
    """Ignite handler that draws every case of an evaluator to ``<output_dir>/<case>.png``; see `case_figure`.

    Each rank draws its own cases.

    Args:
        limit: the largest number of pictures per run and rank; None for all cases.
    """

    def __init__(self, output_dir: str | PathLike[str], limit: int | None = None) -> None:
        self.output_dir = Path(output_dir)
        self.limit = limit
        self._drawn: list[str] = []

    def attach(self, engine: Engine) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: self._drawn.clear())
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._draw)

    def _draw(self, engine: Engine) -> None:
        for item in cases_of(engine):
            if self.limit is None or len(self._drawn) < self.limit:
                case = str(item[Key.CASE])
                case_figure(self.output_dir / f"{file_name(case)}.png", item)
                self._drawn.append(case)
