"""A set of phantoms in the file layout of a Learn2Reg task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import ClassVar

from regzoo.files import write_json
from regzoo.spatial.grid import Grid
from regzoo_phantoms.writing import Case, PhantomSet

PARTS = {"train": "Tr", "val": "Ts"}


@dataclass(frozen=True)
class Learn2RegSet(PhantomSet):
    """Images ``images{Tr,Ts}/<task>_NNNN_MMMM.nii.gz``, label maps under the same names and ``<task>_dataset.json``.

    Patients held out are in ``imagesTs``; ``registration_val`` lists all their pairs. Where each patient has two
    images, ``training_paired_images`` and ``test_paired_images`` list them; the first one is fixed.

    Attributes:
        cases: patients to train on.
        held_out: further patients.
        seed: of everything random.
        spacing: voxel size, mm.
        task: the name of the task.
        modality: of all images.
    """

    cases: int = 24
    held_out: int = 6
    seed: int = 0
    spacing: float = 2.0

    task: ClassVar[str]
    modality: ClassVar[str]
    most: ClassVar[int] = 9999

    @property
    def states(self) -> int:
        """Images of a patient, 1 or 2."""
        return 1

    @property
    def grid(self) -> Grid:
        """The grid of all images, though their places may differ."""
        raise NotImplementedError

    def folders(self) -> list[str]:
        return [f"{kind}{part}" for kind in ("images", "labels") for part in PARTS.values()]

    def name(self, case: Case, state: int = 0) -> str:
        """The name of a patient's files."""
        return f"{self.task}_{case.number:04d}_{state:04d}"

    def path(self, case: Case, kind: str, state: int = 0) -> str:
        """An image, label or ddf, as the set's JSON file names it."""
        return f"./{kind}{PARTS[case.split]}/{self.name(case, state)}.nii.gz"

    def write_list(self, root: Path, cases: Sequence[Case]) -> None:
        """Write the JSON file that describes a Learn2Reg task."""
        states = range(self.states)
        splits = {split: [case for case in cases if case.split == split] for split in PARTS}

        def images(split: str) -> list[dict[str, str]]:
            return [
                {"image": self.path(case, "images", state), "label": self.path(case, "labels", state)}
                for case in splits[split]
                for state in states
            ]

        def pairs(split: str) -> list[dict[str, str]]:
            found = splits[split] if self.states > 1 else []
            return [{"fixed": self.path(case, "images"), "moving": self.path(case, "images", 1)} for case in found]

        between = combinations((self.path(case, "images") for case in splits["val"]), 2)
        lists: dict[str, list[dict[str, str]]] = {
            "training": images("train"),
            "test": images("val"),
            "training_paired_images": pairs("train"),
            "test_paired_images": pairs("val"),
            "registration_val": [{"fixed": fixed, "moving": moving} for fixed, moving in between],
            "registration_test": [],
        }
        counts = ("Training", "Test", "PairedTraining", "PairedTest", "Registration_val", "Registration_test")
        content = {
            "name": self.task,
            "release": "phantoms",
            "description": f"Phantoms in the layout of Learn2Reg's {self.task}; drawn, not taken from patients",
            "licence": "Apache-2.0",
            "pairings": "hybrid" if self.states > 1 else "unpaired",
            "provided_data": {str(i): ["image", "label"] for i in states},
            "registration_direction": {"fixed": 0, "moving": states[-1]},
            "modality": {str(i): self.modality for i in states},
            "labels": {"0": "background", **{str(value): name for value, name in self.labels.items()}},
            "tensorImageSize": {str(i): "3D" for i in states},
            "tensorImageShape": {str(i): list(self.grid.shape) for i in states},
            **{f"num{count}": len(entries) for count, entries in zip(counts, lists.values(), strict=True)},
            **lists,
        }
        write_json(root / f"{self.task}_dataset.json", content)
