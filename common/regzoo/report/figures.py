"""Quality-control picture of a registration: the images, the labels and the deformation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from regzoo.case import REFERENCE, UNREGISTERED, WARPED, Key, View
from regzoo.files import file_name
from regzoo.report.engine import cases_of, name_of_case
from regzoo.report.volumes import Labels
from regzoo.spatial import DisplacementField, as_tensor
from regzoo.spatial.held import is_map


def registration_figure(
    path: str | PathLike[str],
    fixed: np.ndarray,
    moving: np.ndarray,
    warped: np.ndarray | None = None,
    fixed_label: np.ndarray | Labels | None = None,
    moving_label: np.ndarray | Labels | None = None,
    warped_label: np.ndarray | Labels | None = None,
    ddf: np.ndarray | DisplacementField | None = None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    title: str = "",
    affine: np.ndarray | None = None,
    probability: np.ndarray | None = None,
    label_map: bool = False,
) -> None:
    """Draw a registration in three orthogonal planes through the gland, as a PNG file.

    Columns: the fixed image; the moving image before and after registration, with the outlines of its labels and of the
    fixed labels; a checkerboard of the fixed and the warped image; a regular grid of the fixed image, drawn where its
    lines lie in the moving image; the local volume change (det J), with folded voxels marked.

    There is no warped image if the labels were propagated without a transformation. Then the third column is the last;
    it shows the labels on the fixed image, with their probabilities before thresholding.

    Args:
        path: PNG file to write.
        fixed, moving: images (X, Y, Z) on the fixed grid.
        warped: the warped image (X, Y, Z), or None for labels propagated without a transformation.
        fixed_label, moving_label, warped_label: labels (X, Y, Z) or (C, X, Y, Z) on the fixed grid, or `Labels`;
            channel 0 is the gland. The planes go through the centroid of the fixed gland, else of another label, else
            through the image centre.
        ddf: (3, X, Y, Z), voxels, or a field; without it, the last two columns are left out.
        spacing: voxel size along X, Y, Z, mm.
        title: usually the name of the case.
        affine: 4×4, voxel → RAS mm; with it, the picture has lettered edges and the radiological convention.
        probability: (C, X, Y, Z) in [0, 1], of the propagated labels; drawn if there is no warped image.
        label_map: the labels come from a label map, where channel 0 is not special: the planes go through the largest.
    """
    # matplotlib is slow to import, and a server that only registers may lack it.
    from regzoo.report.picture import Picture

    images = {"fixed": fixed, "moving": moving}
    labels = {"fixed": fixed_label, "moving": moving_label, "warped": warped_label}
    if warped is not None:
        images, probability = images | {"warped": warped}, None
    else:  # without a fixed label, the planes go through the propagated label, not the moving one
        labels = {key: labels[key] for key in ("fixed", "warped", "moving")}
    known = {key: label for key, label in labels.items() if label is not None}
    Picture(images, known, ddf, spacing, affine, probability, label_map).write(path, title)


class FigureWriter:
    """Ignite handler that draws every case of an evaluator to ``<output_dir>/<case>.png``, see `registration_figure`.

    Each case must have ``reference_image``, ``unregistered_image`` and ``warped_image`` (1, X, Y, Z), and may have
    ``reference_label``, ``unregistered_label``, ``warped_label`` (C, X, Y, Z) and ``ddf`` (3, X, Y, Z) in voxels, all
    on the grid of ``reference_image``, a `MetaTensor`. A case whose labels were propagated without a transformation has
    no ``warped_image``, but may have a ``probability`` (C, X, Y, Z). Each rank draws its own cases.

    Args:
        output_dir: folder to write to.
        limit: the largest number of pictures per run and rank; None for all cases.
    """

    def __init__(self, output_dir: str | PathLike[str], limit: int | None = None) -> None:
        self.output_dir = Path(output_dir)
        self.limit = limit
        self._drawn: list[str] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: self._drawn.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._draw)

    def _draw(self, engine: Engine) -> None:
        for item in cases_of(engine):
            if self.limit is None or len(self._drawn) < self.limit:
                self._drawn.append(name_of_case(item))
                case_figure(self.output_dir / f"{file_name(name_of_case(item))}.png", item)


def case_figure(path: str | PathLike[str], item: Mapping[str, Any]) -> None:
    """Draw `registration_figure` from the entries of a case; see `FigureWriter` for their keys."""

    def array(key: str) -> np.ndarray | None:
        value = item.get(key)
        return None if value is None else as_tensor(torch.as_tensor(value)).detach().float().cpu().numpy()

    def labels(view: View) -> Labels | np.ndarray | None:
        label = item.get(view.label)
        if label is None or label.is_floating_point():
            return array(view.label)
        volume = as_tensor(label).cpu().numpy()
        return Labels(volume[0], len(item[Key.LABEL_VALUES])) if is_map(label) else Labels(volume, len(volume))

    def image(view: View) -> np.ndarray:
        volume = array(view.image)
        if volume is None:
            raise KeyError(f"the case has no {view.image!r}, which its picture needs")
        return volume[0]

    affine = getattr(item[REFERENCE.image], "affine", None)
    affine = None if affine is None else np.asarray(torch.as_tensor(affine).cpu(), dtype=float)
    registration_figure(
        path,
        image(REFERENCE),
        image(UNREGISTERED),
        None if item.get(Key.LABELS_PREDICTED) else image(WARPED),
        labels(REFERENCE),
        labels(UNREGISTERED),
        labels(WARPED),
        item[Key.FIELD] if Key.FIELD in item else array(Key.DDF),
        spacing=(1, 1, 1) if affine is None else np.linalg.norm(affine[:3, :3], axis=0).tolist(),
        title=name_of_case(item) if Key.CASE in item else "",
        affine=affine,
        probability=array(Key.PROBABILITY),
        label_map=item.get(Key.MOVING_LABEL_IS_MAP, False),
    )
