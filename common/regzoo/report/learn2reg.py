"""The fields of an evaluation as files that the evaluation of Learn2Reg reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.engines import IterationEvents
from regzoo.case import FIXED, MOVING, Key
from regzoo.datasets.folders import case_name
from regzoo.errors import bad_file
from regzoo.files import atomic_path
from regzoo.report.engine import cases_of
from regzoo.spatial import DisplacementField, Grid

if TYPE_CHECKING:
    from ignite.engine import Engine


def field_files(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The name of the file of each case, ``disp_0001_0002.npz`` with the numbers of the fixed and the moving image.

    Names of images stand in for numbers if the numbers do not tell the images apart.
    """
    names = {str(record[side.image]): case_name(record[side.image]) for record in records for side in (FIXED, MOVING)}
    found = {path: re.search(r"(\d+)(_\d{4})?$", name) for path, name in names.items()}
    numbers = {path: f"{int(match[1]):04d}" for path, match in found.items() if match}
    if len(set(numbers.values())) == len(names):
        names = numbers
    return {
        str(record[Key.CASE]): "disp_{}_{}.npz".format(*(names[str(record[side.image])] for side in (FIXED, MOVING)))
        for record in records
    }


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
