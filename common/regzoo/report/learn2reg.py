"""The fields of an evaluation as files that the evaluation of Learn2Reg reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.engines import IterationEvents
from regzoo.case import MOVING, SIDES, Key
from regzoo.datasets.folders import case_name
from regzoo.errors import bad_file
from regzoo.files import atomic_path
from regzoo.report.engine import cases_of
from regzoo.spatial import DisplacementField, Grid

if TYPE_CHECKING:
    from ignite.engine import Engine


def field_files(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The name of the file of each case, ``disp_0001_0002.npz`` with the numbers of the fixed and the moving image.

    The images of a pair of one patient have one number: ``disp_0001_0001.npz``. Unless the modalities of the pair are
    equal, or 0000 and 0001, they follow the numbers: ``disp_0001_0001_0001_0000.npz``. If an image has no number, or
    two pairs have the same ones, all files have the names of the images instead.

    Source: ``evaluation/L2RTest/evaluation.py`` of github.com/MDL-UzL/L2R.
    """
    names = {str(record[Key.CASE]): [case_name(record[side.image]) for side in SIDES] for record in records}
    numbered = {case: _numbers(*images) for case, images in names.items()}
    if all(numbered.values()) and len(set(map(tuple, numbered.values()))) == len(names):
        names = numbered
    return {case: f"disp_{'_'.join(parts)}.npz" for case, parts in names.items()}


def _numbers(fixed: str, moving: str) -> list[str]:
    """The numbers, and perhaps the modalities, by which Learn2Reg knows a pair of images; none for other names."""
    found = [re.search(r"(\d+)(?:_(\d{4}))?$", name) for name in (fixed, moving)]
    numbers = [(f"{int(match[1]):04d}", match[2]) for match in found if match]
    if len(numbers) < 2:
        return []
    (first, from_fixed), (second, from_moving) = numbers
    if from_fixed == from_moving or (from_fixed, from_moving) == ("0000", "0001"):
        return [first, second]
    return [first, from_fixed, second, from_moving] if from_fixed and from_moving else []


def voxel_displacement(field: DisplacementField, moving: Grid) -> np.ndarray:
    """From each voxel of the fixed image to the corresponding one of the moving image, voxels, (3, X, Y, Z)."""
    there = np.linalg.inv(moving.affine)
    matrix = there @ field.grid.affine
    indices = np.indices(field.grid.shape, dtype=np.float64)
    moved = np.einsum("ij,jxyz->ixyz", matrix[:3, :3] - np.eye(3), indices) + matrix[:3, 3].reshape(3, 1, 1, 1)
    return (moved + np.einsum("ij,jxyz->ixyz", there[:3, :3], field.displacement.cpu().numpy())).astype(np.float32)


class Learn2RegFields:
    """Ignite handler that writes the field of each case for the evaluation of Learn2Reg, see `field_files`.

    A file has one array (3, X, Y, Z), float16, see `voxel_displacement`. Each rank writes its own cases.

    Args:
        wanted: whether to write anything.

    Raises:
        RegZooError: a case has no field.

    Source: Hering et al. 2023, and the page "Submission" of learn2reg.grand-challenge.org.
    """

    def __init__(self, output_dir: str | PathLike[str], wanted: bool = True) -> None:
        self.output_dir, self.wanted = Path(output_dir), wanted
        self.files: dict[str, str] = {}

    def attach(self, engine: Engine) -> None:
        from ignite.engine import Events

        if self.wanted:
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self.files = field_files(engine.data_loader.dataset.data)

    def _write(self, engine: Engine) -> None:
        for item in cases_of(engine):
            case = str(item[Key.CASE])
            if Key.FIELD not in item:
                fix = "refine the case, or use a bundle that predicts a field"
                raise bad_file(case, "its labels were predicted without a field to write for Learn2Reg", fix)
            values = voxel_displacement(item[Key.FIELD], Grid.of(item[MOVING.native_image]))
            with atomic_path(self.output_dir / self.files[case]) as temporary:
                np.savez_compressed(temporary, values.astype(np.float16))
