"""A page that shows a registration in a browser: one HTML file that needs no network."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from regzoo.case import REFERENCE, UNREGISTERED, WARPED, Key
from regzoo.errors import RegZooError
from regzoo.files import write_text
from regzoo.spatial import DisplacementField, Grid, as_tensor
from regzoo.spatial.held import is_map, label_map
from regzoo.spatial.warp import resample

#: The template of the page, and NiiVue (`make niivue`). A packaged bundle has neither.
FILES = Path(__file__).with_name("viewer_files")
#: The largest number of voxels of an image on the page, and of points at which the deformation is given.
VOXELS, NODES = 1 << 22, 1 << 17


def check_viewer() -> None:
    """Check that the page can be written.

    Raises:
        RegZooError: this is a packaged bundle, which lacks NiiVue.
    """
    if not FILES.is_dir():
        raise RegZooError('outputs: viewer is not part of a packaged bundle; pip install "regzoo[zoo]", or use picture')


def case_page(path: str | PathLike[str], item: Mapping[str, Any]) -> None:
    """Write a page with the images, the labels and the deformation of a case, for looking, not for measuring.

    Images have 256 grey levels between the limits of the display window, and at most `VOXELS` voxels.

    Args:
        path: HTML file to write.
        item: as for `regzoo.report.case_figure`; its ``field`` is a `DisplacementField`.

    Raises:
        RegZooError: see `check_viewer`.
    """
    from regzoo.report.picture import Picture  # imports matplotlib, which is slow

    check_viewer()
    picture = Picture(item)
    source = Grid.of(item[REFERENCE.image])
    target = coarser(source, VOXELS)
    views = {"fixed": REFERENCE, "warped": WARPED, "moving": UNREGISTERED}
    images = {name: image for name, view in views.items() if (image := item.get(view.image)) is not None}
    labels = {name: label for name, view in views.items() if (label := item.get(view.label)) is not None}
    shown = "×".join(f"{size:.3g}" for size in target.spacing)
    content = {
        "name": picture.title or "Registration",
        "facts": picture.facts(),
        "note": f"256 grey levels, voxels of {shown} mm",
        "images": {
            name: _image(_on(target, image[:1], source), target, picture.windows[name])
            for name, image in images.items()
        },
        "labels": {name: _labels(label, source, target) for name, label in labels.items()},
        "field": _deformation(item[Key.FIELD]) if Key.FIELD in item else None,
        "niivue": base64.b64encode((FILES / "niivue.umd.js.gz").read_bytes()).decode(),
    }
    page = (FILES / "page.html").read_text(encoding="utf-8")
    before, between, after = page.replace("{{license}}", "{{case}}").split("{{case}}")
    text = json.dumps(content).replace("<", "\\u003c")  # so that no name ends the script
    write_text(path, before + (FILES / "LICENSE.niivue.txt").read_text(encoding="utf-8") + between + text + after)


def coarser(grid: Grid, voxels: int) -> Grid:
    """A grid over the same field of view with at most `voxels` voxels; the axes of the smallest spacing lose most."""
    shape, size = np.asarray(grid.shape), grid.spacing.min()
    while math.prod(shape) > voxels:
        size *= 1.01
        shape = np.maximum(np.asarray(grid.shape) * grid.spacing / np.maximum(grid.spacing, size), 1).astype(int)
    step = np.asarray(grid.shape) / shape
    affine = grid.affine * np.array([*step, 1.0])
    affine[:3, 3] = grid.to_world((step - 1) / 2)
    return Grid((shape[0], shape[1], shape[2]), affine)


def _on(target: Grid, volume: torch.Tensor, source: Grid, mode: Any = "bilinear") -> np.ndarray:
    """A volume (1, X, Y, Z) on the grid of the page, (X', Y', Z') float32."""
    volume = as_tensor(volume).detach()
    if target.shape != source.shape:
        volume = resample(volume, source, target, mode, "border", anti_alias=mode == "bilinear")
    return volume[0].float().cpu().numpy()


def _image(volume: np.ndarray, grid: Grid, window: tuple[float, float]) -> str:
    low, high = window
    return _nifti(np.clip(np.nan_to_num(volume, nan=low), low, high), grid, np.uint8, (high - low) / 255, low)


def _labels(labels: torch.Tensor, source: Grid, target: Grid) -> str:
    held = labels if is_map(labels) else as_tensor(labels) >= 0.5
    count = int(held.max()) if is_map(held) else len(held)
    numbers = _on(target, label_map(held, range(1, count + 1))[None], source, "nearest")
    return _nifti(numbers, target, np.uint8 if count < 256 else np.uint16)


def _deformation(field: DisplacementField) -> str:
    """The displacements, RAS mm, without the shift and the turn that fit the whole field best."""
    grid = coarser(field.grid, NODES)
    start = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)).reshape(-1, 3)
    goal = field.transform_points(start)
    start, goal = start - start.mean(0), goal - goal.mean(0)
    left, _, right = np.linalg.svd(goal.T @ start)
    turn = left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right
    rest = (goal @ turn - start).reshape(*grid.shape, 3)
    return _nifti(rest, grid, np.int16, max(float(np.abs(rest).max()), 1e-3) / 32767)


def _nifti(values: np.ndarray, grid: Grid, stored: Any, slope: float = 1.0, low: float = 0.0) -> str:
    """A volume as a compressed NIfTI file in base64, with its axes in the order and direction nearest to RAS."""
    numbers = np.rint((values - low) / slope).astype(stored)
    image = nib.as_closest_canonical(nib.Nifti1Image(numbers, grid.affine))
    image.header.set_slope_inter(slope, low)
    image.header.set_xyzt_units("mm")
    return base64.b64encode(gzip.compress(image.to_bytes(), mtime=0)).decode()
