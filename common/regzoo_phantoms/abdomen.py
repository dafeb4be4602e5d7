"""Writes a set of abdominal CT phantoms in the file layout of Learn2Reg's AbdomenCTCT task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from regzoo.spatial import DisplacementField, Grid, write_nifti
from regzoo_phantoms.abdomen_anatomy import LABELS, random_anatomy
from regzoo_phantoms.abdomen_breathing import random_breathing
from regzoo_phantoms.abdomen_ct import ct_image, random_contrast
from regzoo_phantoms.learn2reg_set import PARTS, Learn2RegSet
from regzoo_phantoms.writing import Case, grid_about

#: Field of view along left-right, front-back, up-down, mm, and the direction of the axes: to L, P and S.
FIELD = (352.0, 288.0, 256.0)
DIRECTIONS = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
#: The purposes of a patient's random numbers.
ANATOMY, CONTRAST, BREATH, IMAGE, BREATHED_IN_IMAGE = range(5)
#: Displacements are rounded to this, mm, which halves their files.
PRECISION = np.float32(1 / 64)


@dataclass(frozen=True)
class AbdomenPhantoms(Learn2RegSet):
    """Contrast-enhanced CTs of random patients, with label maps, in the layout of Learn2Reg's AbdomenCTCT.

    ``images{Tr,Ts}/AbdomenCTCT_NNNN_0000.nii.gz`` (Hounsfield units, int16), ``labels{Tr,Ts}/`` under the same names
    (uint8, values as in `LABELS`), ``AbdomenCTCT_dataset.json`` and ``manifest.json``. Patients held out are in
    ``imagesTs``; ``registration_val`` lists all their pairs. With `breathing`, every patient has a second image
    ``…_0001``, breathed in; ``training_paired_images`` and ``test_paired_images`` list these pairs (the breathed-out
    image is fixed) and ``ddf{Tr,Ts}/…_0000.nii.gz`` holds the true displacement fixed → moving on the fixed grid (ITK
    convention: LPS mm, shape X,Y,Z,1,3, intent 1007).

    Attributes:
        breathing: whether to write a second, breathed-in image of every patient, and the true displacement.
    """

    breathing: bool = False

    kind: ClassVar[str] = "abdomen"
    field: ClassVar[tuple[float, float, float]] = FIELD
    task: ClassVar[str] = "AbdomenCTCT"
    modality: ClassVar[str] = "CT"
    labels: ClassVar[dict[int, str]] = LABELS

    @property
    def grid(self) -> Grid:
        """The grid of all images."""
        return grid_about(DIRECTIONS, FIELD, self.spacing)

    @property
    def states(self) -> int:
        """Breathed out, and breathed in."""
        return 1 + self.breathing

    def folders(self) -> list[str]:
        return super().folders() + [f"ddf{part}" for part in PARTS.values() if self.breathing]

    def write_case(self, root: Path, case: Case) -> dict[str, Any]:
        def rng(purpose: int) -> np.random.Generator:
            return self.random(case.split, case.patient, purpose)

        def write(modality: int, image: np.ndarray, labels: np.ndarray) -> None:
            write_nifti(root / self.path(case, "images", modality), image, self.grid.affine)
            write_nifti(root / self.path(case, "labels", modality), labels, self.grid.affine)

        anatomy, hounsfield = random_anatomy(rng(ANATOMY)), random_contrast(rng(CONTRAST))
        image, labels = ct_image(anatomy, hounsfield, self.grid, lambda points: points, rng(IMAGE))
        write(0, image, labels)
        entry: dict[str, Any] = {
            "volumes_ml": self.volumes(labels),
            "fat_mm": round(anatomy.fat, 3),
            "scale": anatomy.scale.round(4).tolist(),
        }
        if self.breathing:
            breath = random_breathing(rng(BREATH), anatomy, self.grid)
            write(1, *ct_image(anatomy, hounsfield, self.grid, breath, rng(BREATHED_IN_IMAGE)))
            field = np.rint(breath.field(self.grid) / PRECISION) * PRECISION
            DisplacementField(torch.from_numpy(field), self.grid).save(root / self.path(case, "ddf"))
            entry |= {
                "breath_down_mm": round(breath.down, 3),
                "breath_forward_mm": round(breath.forward, 3),
                "least_jacobian": round(breath.least_jacobian(self.grid), 4),
            }
        return entry
