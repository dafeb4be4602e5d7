"""The refinement of two modalities, on phantoms whose true deformation is known."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from regzoo.refinement import Refined, Volumes, options_for, refine
from regzoo.spatial import DisplacementField, Grid
from regzoo.transforms.refine import scaled
from regzoo_phantoms import ProstatePhantoms
from regzoo_phantoms.abdomen import DIRECTIONS, FIELD
from regzoo_phantoms.abdomen_anatomy import VALUES, random_anatomy
from regzoo_phantoms.abdomen_breathing import random_breathing
from regzoo_phantoms.abdomen_ct import ct_image, random_contrast
from regzoo_phantoms.fields import SmoothField
from regzoo_phantoms.scene import world_points
from regzoo_phantoms.writing import grid_about

#: T1-weighted intensities, of which `AIR` is taken off: fat is bright, bone and vessels are dark, and the liver is
#: brighter than the spleen. No linear function of the Hounsfield units gives this order.
T1 = {
    **{"fat": 900, "marrow": 640, "pancreas": 600, "liver": 560, "skin": 500, "kidney": 430, "blood": 420, "wall": 400},
    **{"muscle": 360, "bowel": 340, "spleen": 330, "cord": 320, "disc": 300, "portal": 290, "vein": 270, "artery": 250},
    **{"fluid": 230, "meal": 200, "lung": 180, "cortex": 160},
}
AIR = 150


def volumes(image: np.ndarray, grid: Grid) -> Volumes:
    return Volumes(grid, scaled(torch.from_numpy(image.astype(np.float32))[None], None))


@pytest.fixture(scope="module")
def ct_and_mr() -> tuple[Volumes, Volumes, np.ndarray, np.ndarray]:
    """A CT breathed out, an MR of the patient breathed in, the true displacement (3, X, Y, Z), mm, and the organs."""
    rng, grid = np.random.default_rng(1), grid_about(DIRECTIONS, FIELD, 4.0)
    anatomy, hounsfield = random_anatomy(rng), random_contrast(rng)
    ct, labels = ct_image(anatomy, hounsfield, grid, lambda points: points, rng)
    breath = random_breathing(rng, anatomy, grid)
    mr, _ = ct_image(anatomy, {**T1, "filled": hounsfield["filled"]}, grid, breath, rng)
    bias = SmoothField.random(rng, length=150.0, components=1)(world_points(grid))[0]
    mr = np.maximum(mr - AIR, 0) * np.exp(0.2 * bias)
    return volumes(ct, grid), volumes(mr, grid), breath.field(grid), (labels > 0) & (labels != VALUES["vertebrae"])


def error(result: Refined, fixed: Grid, truth: np.ndarray, where: np.ndarray) -> float:
    """Mean distance to the true displacement, mm."""
    found = DisplacementField.from_ddf(result.ddf, result.grid, fixed).displacement.numpy()
    return float(np.linalg.norm(found - truth, axis=0)[where].mean())


def test_a_ct_and_an_mr_of_one_patient(ct_and_mr: tuple[Volumes, Volumes, np.ndarray, np.ndarray]) -> None:
    fixed, moving, truth, organs = ct_and_mr
    before = float(np.linalg.norm(truth, axis=0)[organs].mean())
    result = refine(fixed, moving, options_for("other"))
    found = error(result, fixed.grid, truth, organs)
    assert found < 0.5 * before
    assert DisplacementField.from_ddf(result.ddf, result.grid, fixed.grid).jacobian().min() > 0
    assert found < error(refine(fixed, moving, options_for("mr")), fixed.grid, truth, organs)


@pytest.mark.slow
def test_a_field_to_start_from_is_trusted(ct_and_mr: tuple[Volumes, Volumes, np.ndarray, np.ndarray]) -> None:
    fixed, moving, truth, organs = ct_and_mr
    half = DisplacementField(torch.from_numpy(truth / 2).float(), fixed.grid)
    left = float(np.linalg.norm(truth / 2, axis=0)[organs].mean())
    kept, changed = (
        error(refine(fixed, moving, options_for("other", trust=trust), half), fixed.grid, truth, organs)
        for trust in (100.0, 1.0)
    )
    assert kept == pytest.approx(left, rel=0.02)
    assert changed < 0.9 * left


def test_speckle_does_not_spoil_a_good_start(tmp_path: Path) -> None:
    """An MR and an ultrasound of the prostate look too different to improve a field that is nearly right."""
    folder = ProstatePhantoms(pairs=1, held_out=1, spacing=1.6).write(tmp_path, workers=0) / "val"
    sides = []
    for side in ("us", "mr"):
        image = nib.load(folder / f"{side}_images" / "case000001.nii.gz")
        sides.append(volumes(np.asarray(image.dataobj), Grid(image.shape, image.affine)))
    fixed, moving = sides
    gland = np.asarray(nib.load(folder / "us_labels" / "case000001.nii.gz").dataobj)[..., 0] > 0
    truth = DisplacementField.load(folder / "ddf" / "case000001.nii.gz").displacement.numpy()
    start = DisplacementField(torch.from_numpy(0.75 * truth), fixed.grid)
    left = float(np.linalg.norm(0.25 * truth, axis=0)[gland].mean())
    assert error(refine(fixed, moving, options_for("other"), start), fixed.grid, truth, gland) < 1.05 * left
    assert error(refine(fixed, moving, options_for("other", trust=1.0), start), fixed.grid, truth, gland) > 1.2 * left
