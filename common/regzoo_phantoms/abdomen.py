"""Writes a set of abdominal CT phantoms in the file layout of Learn2Reg's AbdomenCTCT task."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from regzoo.errors import RegZooError
from regzoo.files import write_json
from regzoo.spatial import DisplacementField, Grid, write_nifti
from regzoo_phantoms.abdomen_anatomy import LABELS, random_anatomy
from regzoo_phantoms.abdomen_breathing import random_breathing
from regzoo_phantoms.abdomen_ct import ct_image, random_contrast
from regzoo_phantoms.writing import grid_about, new_set, write_cases

#: Grows whenever the same seed gives other files, so that an old set is recognised.
VERSION = 1
TASK = "AbdomenCTCT"
#: Field of view along left-right, front-back, up-down, mm, and the direction of the axes: to L, P and S.
FIELD = (352.0, 288.0, 256.0)
DIRECTIONS = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
SPLITS = {"train": "Tr", "val": "Ts"}
#: What a patient's random numbers are for.
ANATOMY, CONTRAST, BREATH, IMAGE, BREATHED_IN_IMAGE = range(5)
#: Displacements are rounded to this, mm, which halves their files.
PRECISION = 1 / 64


@dataclass(frozen=True)
class AbdomenParameters:
    """What a set is made from; written to its manifest."""

    cases: int = 24
    held_out: int = 6
    seed: int = 0
    spacing: float = 2.0
    breathing: bool = False


@dataclass(frozen=True)
class Case:
    """One patient to be written."""

    split: str
    patient: int
    number: int

    def name(self, modality: int = 0) -> str:
        """The name of the patient's files: modality 0 is breathed out, 1 is breathed in."""
        return f"{TASK}_{self.number:04d}_{modality:04d}"

    def path(self, kind: str, modality: int = 0) -> str:
        """An image, label or ddf, as the set's JSON file names it."""
        return f"./{kind}{SPLITS[self.split]}/{self.name(modality)}.nii.gz"


def write_abdomen_phantoms(
    folder: str | os.PathLike[str],
    cases: int = 24,
    held_out: int = 6,
    seed: int = 0,
    spacing: float = 2.0,
    breathing: bool = False,
    workers: int | None = None,
) -> Path:
    """Write contrast-enhanced CTs of random patients, with label maps, in the layout of Learn2Reg's AbdomenCTCT.

    ``images{Tr,Ts}/AbdomenCTCT_NNNN_0000.nii.gz`` (Hounsfield units, int16), ``labels{Tr,Ts}/`` under the same names
    (uint8, values as in `LABELS`), ``AbdomenCTCT_dataset.json`` and ``manifest.json``. Patients held out are in
    ``imagesTs``; ``registration_val`` lists all their pairs. With `breathing`, every patient has a second image
    ``…_0001``, breathed in; ``training_paired_images`` and ``test_paired_images`` list these pairs (the breathed-out
    image is fixed) and ``ddf{Tr,Ts}/…_0000.nii.gz`` holds the true displacement fixed → moving on the fixed grid (ITK
    convention: LPS mm, shape X,Y,Z,1,3, intent 1007). An image depends on `seed`, `spacing` and the patient only:
    asking for more cases adds some and changes none.

    Args:
        folder: where to; must not exist or be empty.
        cases: patients to train on.
        held_out: further patients.
        seed: of everything random.
        spacing: voxel size, mm.
        breathing: whether to write a second, breathed-in image of every patient, and the true displacement.
        workers: processes; None: one per processor.

    Raises:
        RegZooError: a number makes no sense, or the folder is not empty or cannot be written to.
    """
    if cases < 1 or held_out < 0 or seed < 0 or not 0 < spacing <= 32:
        raise RegZooError(
            "phantoms need at least one case, a seed of 0 or more, and a spacing above 0 mm; correct the numbers"
        )
    parameters = AbdomenParameters(cases, held_out, seed, float(spacing), bool(breathing))
    train = [Case("train", i, i + 1) for i in range(cases)]
    val = [Case("val", i, i + 1 + cases) for i in range(held_out)]
    with new_set(folder) as root:
        for kind in ("images", "labels", *(["ddf"] if breathing else [])):
            for part in SPLITS.values():
                (root / f"{kind}{part}").mkdir()
        entries = write_cases(partial(_write_case, root, parameters), [*train, *val], workers)
        write_json(root / f"{TASK}_dataset.json", _dataset_json(parameters, train, val))
        manifest = {
            "kind": "abdomen",
            "version": VERSION,
            "parameters": asdict(parameters),
            "labels": LABELS,
            "cases": {case.name(): entry for case, entry in zip([*train, *val], entries, strict=True)},
        }
        write_json(root / "manifest.json", manifest)
    return Path(folder)


def _generator(parameters: AbdomenParameters, case: Case, purpose: int) -> np.random.Generator:
    """The randomness of one purpose of a patient, whatever else is written."""
    return np.random.default_rng([parameters.seed, list(SPLITS).index(case.split), case.patient, purpose])


def _grid(parameters: AbdomenParameters) -> Grid:
    return grid_about(DIRECTIONS, FIELD, parameters.spacing)


def _write_case(root: Path, parameters: AbdomenParameters, case: Case) -> dict[str, Any]:
    """Draw and write one patient; the entry in the manifest."""
    grid = _grid(parameters)
    anatomy = random_anatomy(_generator(parameters, case, ANATOMY))

    def write(kind: str, modality: int, array: np.ndarray) -> None:
        write_nifti(root / case.path(kind, modality), array, grid.affine)

    hounsfield = random_contrast(_generator(parameters, case, CONTRAST))
    image, labels = ct_image(anatomy, hounsfield, grid, lambda points: points, _generator(parameters, case, IMAGE))
    write("images", 0, image)
    write("labels", 0, labels)
    present = np.bincount(labels.ravel(), minlength=256)
    voxel = parameters.spacing**3 / 1000
    entry: dict[str, Any] = {
        "split": case.split,
        "patient": f"{case.split}{case.patient:04d}",
        "volumes_ml": {name: round(float(present[value]) * voxel, 3) for value, name in LABELS.items()},
        "fat_mm": round(anatomy.fat, 3),
        "scale": anatomy.scale.round(4).tolist(),
    }
    if parameters.breathing:
        breath = random_breathing(_generator(parameters, case, BREATH), anatomy, grid)
        image, labels = ct_image(anatomy, hounsfield, grid, breath, _generator(parameters, case, BREATHED_IN_IMAGE))
        write("images", 1, image)
        write("labels", 1, labels)
        field = np.rint(breath.field(grid) / np.float32(PRECISION)) * np.float32(PRECISION)
        DisplacementField(torch.from_numpy(field), grid).save(root / case.path("ddf", 0))
        entry |= {
            "breath_down_mm": round(breath.down, 3),
            "breath_forward_mm": round(breath.forward, 3),
            "least_jacobian": round(breath.least_jacobian(grid), 4),
        }
    return entry


def _dataset_json(parameters: AbdomenParameters, train: Sequence[Case], val: Sequence[Case]) -> dict[str, Any]:
    """The JSON file that describes a Learn2Reg task."""
    states = (0, 1) if parameters.breathing else (0,)

    def images(cases: Sequence[Case]) -> list[dict[str, str]]:
        return [{"image": c.path("images", i), "label": c.path("labels", i)} for c in cases for i in states]

    def breaths(cases: Sequence[Case]) -> list[dict[str, str]]:
        return [{"fixed": c.path("images", 0), "moving": c.path("images", 1)} for c in cases if parameters.breathing]

    pairs = [{"fixed": a.path("images"), "moving": b.path("images")} for a, b in combinations(val, 2)]
    lists: dict[str, tuple[str, list[dict[str, str]]]] = {
        "training": ("numTraining", images(train)),
        "test": ("numTest", images(val)),
        "training_paired_images": ("numPairedTraining", breaths(train)),
        "test_paired_images": ("numPairedTest", breaths(val)),
        "registration_val": ("numRegistration_val", pairs),
        "registration_test": ("numRegistration_test", []),
    }
    shape = list(_grid(parameters).shape)
    return {
        "name": TASK,
        "release": "phantoms",
        "description": "Phantoms in the layout of the AbdomenCTCT task of Learn2Reg; drawn, not taken from patients",
        "licence": "Apache-2.0",
        "pairings": "hybrid" if parameters.breathing else "unpaired",
        "provided_data": {str(i): ["image", "label"] for i in states},
        "registration_direction": {"fixed": 0, "moving": states[-1]},
        "modality": {str(i): "CT" for i in states},
        "labels": {"0": "background", **{str(value): name for value, name in LABELS.items()}},
        "tensorImageSize": {str(i): "3D" for i in states},
        "tensorImageShape": {str(i): shape for i in states},
        **{count: len(entries) for count, entries in lists.values()},
        **{key: entries for key, (_, entries) in lists.items()},
    }
