"""Writes a set of abdominal CT phantoms in the file layout of Learn2Reg's AbdomenCTCT task."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from regzoo.files import write_json
from regzoo.spatial import DisplacementField, Grid, write_nifti
from regzoo_phantoms.abdomen_anatomy import LABELS, random_anatomy
from regzoo_phantoms.abdomen_breathing import random_breathing
from regzoo_phantoms.abdomen_ct import ct_image, random_contrast
from regzoo_phantoms.writing import Case, PhantomSet, grid_about

TASK = "AbdomenCTCT"
DESCRIPTION = "Phantoms in the layout of the AbdomenCTCT task of Learn2Reg; drawn, not taken from patients"
#: Field of view along left-right, front-back, up-down, mm, and the direction of the axes: to L, P and S.
FIELD = (352.0, 288.0, 256.0)
DIRECTIONS = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
PARTS = {"train": "Tr", "val": "Ts"}
#: The purposes of a patient's random numbers.
ANATOMY, CONTRAST, BREATH, IMAGE, BREATHED_IN_IMAGE = range(5)
#: Displacements are rounded to this, mm, which halves their files.
PRECISION = np.float32(1 / 64)


@dataclass(frozen=True)
class AbdomenPhantoms(PhantomSet):
    """Contrast-enhanced CTs of random patients, with label maps, in the layout of Learn2Reg's AbdomenCTCT.

    ``images{Tr,Ts}/AbdomenCTCT_NNNN_0000.nii.gz`` (Hounsfield units, int16), ``labels{Tr,Ts}/`` under the same names
    (uint8, values as in `LABELS`), ``AbdomenCTCT_dataset.json`` and ``manifest.json``. Patients held out are in
    ``imagesTs``; ``registration_val`` lists all their pairs. With `breathing`, every patient has a second image
    ``…_0001``, breathed in; ``training_paired_images`` and ``test_paired_images`` list these pairs (the breathed-out
    image is fixed) and ``ddf{Tr,Ts}/…_0000.nii.gz`` holds the true displacement fixed → moving on the fixed grid (ITK
    convention: LPS mm, shape X,Y,Z,1,3, intent 1007).

    Attributes:
        cases: patients to train on.
        held_out: further patients.
        seed: of everything random.
        spacing: voxel size, mm.
        breathing: whether to write a second, breathed-in image of every patient, and the true displacement.
    """

    cases: int = 24
    held_out: int = 6
    seed: int = 0
    spacing: float = 2.0
    breathing: bool = False

    kind: ClassVar[str] = "abdomen"
    most: ClassVar[int] = 9999
    labels: ClassVar[dict[int, str]] = LABELS

    @property
    def grid(self) -> Grid:
        """The grid of all images."""
        return grid_about(DIRECTIONS, FIELD, self.spacing)

    def folders(self) -> list[str]:
        kinds = ("images", "labels", *(["ddf"] if self.breathing else []))
        return [f"{kind}{part}" for kind in kinds for part in PARTS.values()]

    def name(self, case: Case, modality: int = 0) -> str:
        """The name of a patient's files: modality 0 is breathed out, 1 is breathed in."""
        return f"{TASK}_{case.number:04d}_{modality:04d}"

    def path(self, case: Case, kind: str, modality: int = 0) -> str:
        """An image, label or ddf, as the set's JSON file names it."""
        return f"./{kind}{PARTS[case.split]}/{self.name(case, modality)}.nii.gz"

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

    def write_list(self, root: Path, cases: Sequence[Case]) -> None:
        """Write the JSON file that describes a Learn2Reg task."""
        states = range(1 + self.breathing)
        splits = {split: [case for case in cases if case.split == split] for split in PARTS}

        def images(split: str) -> list[dict[str, str]]:
            return [
                {"image": self.path(case, "images", state), "label": self.path(case, "labels", state)}
                for case in splits[split]
                for state in states
            ]

        def breaths(split: str) -> list[dict[str, str]]:
            found = splits[split] if self.breathing else []
            return [{"fixed": self.path(case, "images"), "moving": self.path(case, "images", 1)} for case in found]

        pairs = combinations((self.path(case, "images") for case in splits["val"]), 2)
        lists: dict[str, list[dict[str, str]]] = {
            "training": images("train"),
            "test": images("val"),
            "training_paired_images": breaths("train"),
            "test_paired_images": breaths("val"),
            "registration_val": [{"fixed": fixed, "moving": moving} for fixed, moving in pairs],
            "registration_test": [],
        }
        counts = ("Training", "Test", "PairedTraining", "PairedTest", "Registration_val", "Registration_test")
        content = {
            "name": TASK,
            "release": "phantoms",
            "description": DESCRIPTION,
            "licence": "Apache-2.0",
            "pairings": "hybrid" if self.breathing else "unpaired",
            "provided_data": {str(i): ["image", "label"] for i in states},
            "registration_direction": {"fixed": 0, "moving": states[-1]},
            "modality": {str(i): "CT" for i in states},
            "labels": {"0": "background", **{str(value): name for value, name in LABELS.items()}},
            "tensorImageSize": {str(i): "3D" for i in states},
            "tensorImageShape": {str(i): list(self.grid.shape) for i in states},
            **{f"num{count}": len(entries) for count, entries in zip(counts, lists.values(), strict=True)},
            **lists,
        }
        write_json(root / f"{TASK}_dataset.json", content)


def write_abdomen_phantoms(folder: str | os.PathLike[str], workers: int | None = None, **parameters: Any) -> Path:
    """Write `AbdomenPhantoms` with these parameters; see `PhantomSet.write`."""
    return AbdomenPhantoms(**parameters).write(folder, workers)
