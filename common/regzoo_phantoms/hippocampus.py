"""Writes a set of hippocampus MR phantoms in the file layout of Learn2Reg's HippocampusMR task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from regzoo.spatial import Grid, write_nifti
from regzoo_phantoms.brain_anatomy import VALUES, random_anatomy
from regzoo_phantoms.brain_mr import t1_image
from regzoo_phantoms.learn2reg_set import Learn2RegSet
from regzoo_phantoms.scene import world_points
from regzoo_phantoms.writing import Case, grid_about

LABELS = {1: "anterior", 2: "posterior"}
#: Field of view, mm, along axes that lead to R, A and S.
FIELD = (36.0, 52.0, 40.0)
#: The middle of the right hippocampus, and the border between its two parts along y, in coordinates of the head, mm.
MIDDLE, BORDER = (26.0, -20.0, -13.0), -18.0
#: The purposes of a patient's random numbers.
ANATOMY, IMAGE, PLACE = range(3)


@dataclass(frozen=True)
class HippocampusPhantoms(Learn2RegSet):
    """T1-weighted MRs around the right hippocampus of random patients, in the layout of Learn2Reg's HippocampusMR.

    ``images{Tr,Ts}/HippocampusMR_NNNN_0000.nii.gz`` (float32, in units that differ by up to a factor of 1000),
    ``labels{Tr,Ts}/`` under the same names (uint8, values as in `LABELS`), ``HippocampusMR_dataset.json`` and
    ``manifest.json``. The heads are those of `BrainPhantoms`. Each grid lies elsewhere in the head, like the
    crops of the Decathlon.
    """

    spacing: float = 1.0

    kind: ClassVar[str] = "hippocampus"
    field: ClassVar[tuple[float, float, float]] = FIELD
    task: ClassVar[str] = "HippocampusMR"
    modality: ClassVar[str] = "MRI"
    labels: ClassVar[dict[int, str]] = LABELS

    @property
    def grid(self) -> Grid:
        return grid_about(np.eye(3), FIELD, self.spacing)

    def write_case(self, root: Path, case: Case) -> dict[str, Any]:
        anatomy = random_anatomy(self.random(case.split, case.patient, ANATOMY))
        place = self.random(case.split, case.patient, PLACE)
        middle = anatomy.centre + anatomy.rotation @ (anatomy.scale * MIDDLE) + place.normal(0, 1, 3)
        grid = grid_about(np.eye(3), FIELD, self.spacing, middle)
        image, structures = t1_image(anatomy, grid, True, self.random(case.split, case.patient, IMAGE))
        front = anatomy.to_body(world_points(grid))[1] > BORDER + place.normal(0, 1)
        labels = np.where(structures == VALUES["hippocampus_right"], np.where(front, 1, 2), 0).astype(np.uint8)
        unit = np.float32(10 ** place.uniform(-2, 1))
        write_nifti(root / self.path(case, "images"), image * unit, grid.affine)
        write_nifti(root / self.path(case, "labels"), labels, grid.affine)
        return {"volumes_ml": self.volumes(labels)}
