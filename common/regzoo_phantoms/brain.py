"""Writes a set of brain MR phantoms in the file layout of IXI, and label maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from regzoo.spatial import write_nifti
from regzoo_phantoms.brain_anatomy import LABELS, random_anatomy
from regzoo_phantoms.brain_mr import t1_image
from regzoo_phantoms.writing import Case, PhantomSet, grid_about

#: Field of view along front-back, up-down, left-right, mm: IXI's T1 images are sagittal, their axes lead to P, S and R.
FIELD = (232.0, 200.0, 192.0)
DIRECTIONS = ((0.0, 0.0, 1.0), (-1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
SITES = ("Guys", "HH", "IOP")
LABEL_FOLDER = "labels"
#: The purposes of a patient's random numbers.
ANATOMY, IMAGE, NAME = range(3)


@dataclass(frozen=True)
class BrainPhantoms(PhantomSet):
    """T1-weighted brains of random patients, with label maps, in the layout of IXI.

    ``IXI###-<site>-####-T1.nii.gz`` (int16, axes to P, S and R as in IXI), ``labels/`` under the same names (uint8, 17
    values as in `LABELS`) and ``manifest.json``, which also says who is held out: IXI has no splits of its own.

    Attributes:
        cases: patients to train on.
        held_out: further patients, of the split ``val``.
        seed: of everything random.
        spacing: voxel size, mm.
        scalp: whether there is a head around the brain, as in IXI, or nothing, as after skull stripping.
    """

    cases: int = 24
    held_out: int = 6
    seed: int = 0
    spacing: float = 2.0
    scalp: bool = False

    kind: ClassVar[str] = "brain"
    field: ClassVar[tuple[float, float, float]] = FIELD
    most: ClassVar[int] = 999
    labels: ClassVar[dict[int, str]] = LABELS

    def folders(self) -> list[str]:
        return [LABEL_FOLDER]

    def name(self, case: Case) -> str:
        """A name as in IXI: number, hospital, scan."""
        rng = self.random(case.split, case.patient, NAME)
        return f"IXI{case.number:03d}-{rng.choice(SITES)}-{rng.integers(10000):04d}-T1"

    def write_case(self, root: Path, case: Case) -> dict[str, Any]:
        grid = grid_about(DIRECTIONS, FIELD, self.spacing)
        anatomy = random_anatomy(self.random(case.split, case.patient, ANATOMY))
        image, labels = t1_image(anatomy, grid, self.scalp, self.random(case.split, case.patient, IMAGE))
        write_nifti(root / f"{self.name(case)}.nii.gz", image, grid.affine)
        write_nifti(root / LABEL_FOLDER / f"{self.name(case)}.nii.gz", labels, grid.affine)
        return {"volumes_ml": self.volumes(labels), "scale": anatomy.scale.round(4).tolist()}
