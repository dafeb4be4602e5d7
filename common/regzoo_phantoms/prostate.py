"""Writes a set of MR–ultrasound prostate phantoms in the file layout of µ-RegPro, with the true displacement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from regzoo.spatial import DisplacementField, Grid, write_nifti
from regzoo_phantoms.fields import TrusToMr, random_transformation
from regzoo_phantoms.prostate_anatomy import ProstateAnatomy, random_anatomy
from regzoo_phantoms.prostate_mr import mr_image
from regzoo_phantoms.prostate_trus import Probe, trus_image
from regzoo_phantoms.scene import Scene, world_points
from regzoo_phantoms.writing import SPLITS, Case, PhantomSet, grid_about
from scipy.spatial.transform import Rotation

#: Fields of view, mm: of the MR along left-right, front-back, up-down; of the ultrasound along front-back, left-right,
#: up-down.
MR_FIELD = (96.0, 102.4, 102.4)
TRUS_FIELD = np.array([64.8, 94.4, 70.4])
#: Probabilities that a label other than the gland is drawn in both images, in none, in the MR only, in the ultrasound
#: only.
LABELLED = (0.72, 0.12, 0.08, 0.08)
FOLDERS = ("mr_images", "mr_labels", "us_images", "us_labels", "ddf")
#: The purposes of a patient's random numbers; those of the visits follow.
VISITS, ANATOMY, FIRST_PAIR = 0, 1, 2


@dataclass(frozen=True)
class ProstatePhantoms(PhantomSet):
    """MR–ultrasound pairs of random patients, with labels and the true displacement, in the µ-RegPro layout.

    ``{train,val}/{mr_images,mr_labels,us_images,us_labels}/caseNNNNNN.nii.gz`` with 4-D labels (last axis = label,
    channel 0 the gland, an all-zero channel = not labelled), ``{train,val}/ddf/caseNNNNNN.nii.gz`` with the true
    displacement ultrasound → MR on the ultrasound grid (ITK convention: LPS mm, shape X,Y,Z,1,3, intent 1007), and
    ``manifest.json``.

    Attributes:
        pairs: number of pairs in ``train``; about a third of the patients have two or three.
        held_out: number of pairs, of further patients, in ``val``.
        seed: of everything random.
        spacing: voxel size of both images, mm.
        slice_thickness: distance of the MR slices (along S), mm; None: `spacing`.
    """

    pairs: int = 40
    held_out: int = 10
    seed: int = 0
    spacing: float = 0.8
    slice_thickness: float | None = None

    kind: ClassVar[str] = "prostate"
    field: ClassVar[tuple[float, float, float]] = MR_FIELD
    unit: ClassVar[str] = "pair"
    most: ClassVar[int] = 999_999

    def sizes(self) -> list[float]:
        return [self.spacing, self.spacing if self.slice_thickness is None else self.slice_thickness]

    def visits(self, split: str, patient: int) -> int:
        return int(self.random(split, patient, VISITS).choice([1, 2, 3], p=[0.66, 0.22, 0.12]))

    def folders(self) -> list[str]:
        return [f"{split}/{name}" for split in SPLITS for name in FOLDERS]

    def name(self, case: Case) -> str:
        return f"case{case.number - 1:06d}"

    def write_case(self, root: Path, case: Case) -> dict[str, Any]:
        patient_rng = self.random(case.split, case.patient, ANATOMY)
        anatomy = random_anatomy(patient_rng)
        mr_grid = _mr_grid(patient_rng, anatomy, self.sizes())
        rng = self.random(case.split, case.patient, FIRST_PAIR + case.visit)
        coarse = _coarse_points(anatomy.centre)
        rectum = anatomy.to_world(np.array([0, -1.05 * anatomy.radii[1] - 3, 0]))
        transformation = random_transformation(rng, anatomy.centre, rectum, coarse.reshape(3, -1))
        trus_grid, probe = _trus_view(rng, anatomy, transformation, coarse, self.spacing)
        drawn = _drawn_labels(rng, anatomy.label_names)

        def path(kind: str) -> Path:
            return root / case.split / kind / f"{self.name(case)}.nii.gz"

        fine, slices = _fine_slices(mr_grid, self.spacing)
        points = world_points(fine)
        scene = Scene(anatomy, fine, points, points)
        write_nifti(path("mr_images"), mr_image(scene, slices, rng), mr_grid.affine)
        mr_labels = scene.masks()[:, :, slices // 2 :: slices]
        mr_labels[..., ~drawn[0]] = 0
        write_nifti(path("mr_labels"), mr_labels, mr_grid.affine)

        points = world_points(trus_grid)
        tissue = transformation(points)
        scene = Scene(anatomy, trus_grid, points, tissue)
        marks = transformation.inverse(anatomy.landmark_positions().T).T
        write_nifti(path("us_images"), trus_image(scene, probe, marks, rng), trus_grid.affine)
        us_labels = scene.masks()
        us_labels[..., ~drawn[1]] = 0
        _clear_unseen(us_labels, probe.sees(*probe.polar(points)))
        write_nifti(path("us_labels"), us_labels, trus_grid.affine)
        DisplacementField(torch.from_numpy(tissue - points), trus_grid).save(path("ddf"))
        return _entry(anatomy, transformation, coarse, mr_labels, us_labels)


def _entry(
    anatomy: ProstateAnatomy, transformation: TrusToMr, coarse: np.ndarray, mr_labels: np.ndarray, us_labels: np.ndarray
) -> dict[str, Any]:
    """What the manifest says about a pair."""
    names = anatomy.label_names
    length = np.linalg.norm(transformation.smooth(coarse), axis=0)
    return {
        "label_names": names,
        "labelled_mr": [name for i, name in enumerate(names) if mr_labels[..., i].any()],
        "labelled_us": [name for i, name in enumerate(names) if us_labels[..., i].any()],
        "pose": {
            "rotation_deg": np.degrees(transformation.rotation).round(4).tolist(),
            "translation_mm": transformation.translation.round(4).tolist(),
        },
        "probe_pressure_mm": round(transformation.pressure.amount, 4),
        "smooth_field_mm": round(float(length.max()), 4),
        "least_jacobian": round(float(transformation.jacobian_determinant(coarse.reshape(3, -1)).min()), 4),
    }


def _coarse_points(centre: np.ndarray) -> np.ndarray:
    """A lattice of 4 mm over everything that an ultrasound of a gland at `centre` can show, RAS mm (3, ...)."""
    axes = [np.arange(c - half, c + half + 1, 4.0) for c, half in zip(centre, (66, 66, 54), strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _mr_grid(rng: np.random.Generator, anatomy: ProstateAnatomy, sizes: list[float]) -> Grid:
    """A slightly oblique grid, axes to L, P and S, about the gland; of these voxel sizes in and across the slices."""
    tilt = Rotation.from_rotvec(rng.normal(0, np.radians(3), 3)).as_matrix()
    spacing = np.array([sizes[0], *sizes])
    return grid_about(tilt @ np.diag([-1.0, -1.0, 1.0]), MR_FIELD, spacing, anatomy.centre + rng.normal(0, 3, 3))


def _fine_slices(grid: Grid, spacing: float) -> tuple[Grid, int]:
    """A grid with several points per slice, about `spacing` apart, and their number; the middle one is on the slice."""
    slices = 2 * max(0, round((grid.spacing[2] / spacing - 1) / 2)) + 1
    affine = grid.affine.copy()
    affine[:3, 2] /= slices
    affine[:3, 3] -= affine[:3, 2] * (slices // 2)
    return Grid((*grid.shape[:2], grid.shape[2] * slices), affine), slices


def _trus_view(
    rng: np.random.Generator, anatomy: ProstateAnatomy, transformation: TrusToMr, coarse: np.ndarray, spacing: float
) -> tuple[Grid, Probe]:
    """The probe, held so that the gland is in view above it, and the grid of its image, axes to A, L and S."""
    inside = anatomy.gland(anatomy.to_body(transformation(coarse))) < 0
    gland = coarse[:, inside]
    low, high = gland.min(axis=1), gland.max(axis=1)
    middle = (low + high) / 2 + rng.normal(0, 2, 3)
    radius = rng.uniform(8.5, 10.5)
    axis = float(low[1]) - rng.uniform(4, 7) - radius
    probe = Probe((float(middle[0]), axis), radius, TRUS_FIELD[0] - 0.5, np.radians(rng.uniform(64, 78)))
    centre = np.array([middle[0], axis + TRUS_FIELD[0] / 2 - 0.5, middle[2]])
    directions = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    return grid_about(directions, TRUS_FIELD, spacing, centre), probe


def _drawn_labels(rng: np.random.Generator, names: list[str]) -> np.ndarray:
    """Which labels are drawn in the MR and in the ultrasound, bool (2, C): always the gland and two others."""
    choice = rng.choice(4, size=len(names), p=LABELLED)
    choice[0] = 0
    choice[1 + rng.choice(len(names) - 1, size=2, replace=False)] = 0
    return np.stack([(choice == 0) | (choice == 2), (choice == 0) | (choice == 3)])


def _clear_unseen(labels: np.ndarray, visible: np.ndarray) -> None:
    """Empty the channels, other than the gland, that reach out of the fan or to the border of the grid, in place.

    The centroid of half a structure is not that of the whole, so it is not the same landmark.
    """
    inside = np.zeros_like(visible)
    inside[1:-1, 1:-1, 1:-1] = visible[1:-1, 1:-1, 1:-1]
    for channel in range(1, labels.shape[-1]):
        mask = labels[..., channel].astype(bool)
        if (mask & ~inside).sum() > 0.05 * mask.sum():
            labels[..., channel] = 0
