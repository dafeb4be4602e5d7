"""Writes a set of brain MR phantoms in the file layout of IXI, with label maps beside."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from regzoo.errors import RegZooError
from regzoo.files import write_json
from regzoo.spatial import write_nifti
from regzoo_phantoms.brain_anatomy import LABELS, random_anatomy
from regzoo_phantoms.brain_mr import t1_image
from regzoo_phantoms.writing import grid_about, new_set, write_cases

#: Grows whenever the same seed gives other files, so that an old set is recognised.
VERSION = 1
#: Field of view along front-back, up-down, left-right, mm: IXI's T1 images are sagittal, their axes lead to P, S and R.
FIELD = (232.0, 200.0, 192.0)
DIRECTIONS = ((0.0, 0.0, 1.0), (-1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
SITES = ("Guys", "HH", "IOP")
LABEL_FOLDER = "labels"
SPLITS = ("train", "val")
#: What a patient's random numbers are for.
ANATOMY, IMAGE, NAME = range(3)


@dataclass(frozen=True)
class BrainParameters:
    """What a set is made from; written to its manifest."""

    cases: int = 24
    held_out: int = 6
    seed: int = 0
    spacing: float = 2.0
    scalp: bool = False


@dataclass(frozen=True)
class Case:
    """One patient to be written."""

    split: str
    patient: int
    number: int


def write_brain_phantoms(
    folder: str | os.PathLike[str],
    cases: int = 24,
    held_out: int = 6,
    seed: int = 0,
    spacing: float = 2.0,
    scalp: bool = False,
    workers: int | None = None,
) -> Path:
    """Write T1-weighted brains of random patients, with label maps, in the layout of IXI.

    ``IXI###-<site>-####-T1.nii.gz`` (int16, axes to P, S and R as in IXI), ``labels/`` under the same names (uint8, 17
    values as in `LABELS`) and ``manifest.json``, which also says who is held out: IXI has no splits of its own. Voxels
    depend on `seed`, `spacing`, `scalp` and the patient only: asking for more cases adds some and changes none.

    Args:
        folder: where to; must not exist or be empty.
        cases: patients to train on.
        held_out: further patients, of the split ``val``.
        seed: of everything random.
        spacing: voxel size, mm.
        scalp: whether there is a head around the brain, as in IXI, or nothing, as after skull stripping.
        workers: processes; None: one per processor.

    Raises:
        RegZooError: a number makes no sense, or the folder is not empty or cannot be written to.
    """
    if cases < 1 or held_out < 0 or seed < 0 or not 0 < spacing <= 32 or cases + held_out > 999:
        raise RegZooError(
            "brain phantoms need at least one case and at most 999, a seed of 0 or more, and a spacing above 0 mm; "
            "correct the numbers"
        )
    parameters = BrainParameters(cases, held_out, seed, float(spacing), bool(scalp))
    patients = [Case("train", i, i + 1) for i in range(cases)]
    patients += [Case("val", i, i + 1 + cases) for i in range(held_out)]
    with new_set(folder) as root:
        (root / LABEL_FOLDER).mkdir()
        entries = write_cases(partial(_write_case, root, parameters), patients, workers)
        manifest = {
            "kind": "brain",
            "version": VERSION,
            "parameters": asdict(parameters),
            "labels": LABELS,
            "cases": {_name(parameters, case): entry for case, entry in zip(patients, entries, strict=True)},
        }
        write_json(root / "manifest.json", manifest)
    return Path(folder)


def _generator(parameters: BrainParameters, case: Case, purpose: int) -> np.random.Generator:
    """The randomness of one purpose of a patient, whatever else is written."""
    return np.random.default_rng([parameters.seed, SPLITS.index(case.split), case.patient, purpose])


def _name(parameters: BrainParameters, case: Case) -> str:
    """A name as in IXI: number, hospital, scan."""
    rng = _generator(parameters, case, NAME)
    return f"IXI{case.number:03d}-{rng.choice(SITES)}-{rng.integers(10000):04d}-T1"


def _write_case(root: Path, parameters: BrainParameters, case: Case) -> dict[str, Any]:
    """Draw and write one patient; the entry in the manifest."""
    grid = grid_about(DIRECTIONS, FIELD, parameters.spacing)
    anatomy = random_anatomy(_generator(parameters, case, ANATOMY))
    image, labels = t1_image(anatomy, grid, parameters.scalp, _generator(parameters, case, IMAGE))
    name = _name(parameters, case)
    write_nifti(root / f"{name}.nii.gz", image, grid.affine)
    write_nifti(root / LABEL_FOLDER / f"{name}.nii.gz", labels, grid.affine)
    present = np.bincount(labels.ravel(), minlength=256)
    voxel = parameters.spacing**3 / 1000
    return {
        "split": case.split,
        "patient": f"{case.split}{case.patient:04d}",
        "volumes_ml": {label: round(float(present[value]) * voxel, 3) for value, label in LABELS.items()},
        "scale": anatomy.scale.round(4).tolist(),
    }
