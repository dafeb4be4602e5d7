"""Linear transformations with the similarities of a refinement, on scenes with known transformations."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import make_affine, rigid, write
from monai.data import MetaTensor
from regzoo.inference import register
from regzoo.refinement import Volumes, options_for, refine
from regzoo.spatial import DisplacementField, Grid
from scipy.ndimage import affine_transform, gaussian_filter

SHAPE = (44, 40, 36)
FIXED = Grid(SHAPE, make_affine(SHAPE, (2.0, 2.0, 2.5), (5, 10, 0)))
MOVING = Grid((40, 44, 38), make_affine((40, 44, 38), (2.2, 2.0, 2.3), center=(2, -3, 1)))
TURNED = rigid((8, -6, 7), (5, -4, 6))
TRUTHS = {
    "rigid": TURNED,
    "similarity": TURNED @ np.diag([1.08, 1.08, 1.08, 1]),
    "affine": TURNED @ np.array([[1.06, 0.04, 0, 0], [0, 0.95, -0.03, 0], [0.02, 0, 1.02, 0], [0, 0, 0, 1]]),
}


def scene(noise: int = 0) -> np.ndarray:
    """Texture in a ball, on the moving grid."""
    points = np.stack(np.meshgrid(*[np.linspace(-1.1, 1.1, n) for n in MOVING.shape], indexing="ij"))
    texture = gaussian_filter(np.random.default_rng(noise).standard_normal(MOVING.shape), 2.0)
    texture = (texture - texture.min()) / np.ptp(texture)
    return gaussian_filter(np.where(np.linalg.norm(points, axis=0) < 0.85, texture, 0), 0.5).astype(np.float32)


def seen(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """An image on the moving grid through a matrix, fixed world → moving world, on the fixed grid, by SciPy."""
    voxels = np.linalg.inv(MOVING.affine) @ matrix @ FIXED.affine
    return affine_transform(image, voxels, output_shape=SHAPE, order=1)


def volumes(grid: Grid, image: np.ndarray, **others: torch.Tensor) -> Volumes:
    return Volumes(grid, torch.from_numpy(image)[None], **others)


def error(found: np.ndarray, truth: np.ndarray) -> float:
    """The largest distance at the corners of a box in the middle of the fixed image, mm."""
    corners = FIXED.center + 0.5 * (FIXED.corners.reshape(-1, 3) - FIXED.center)
    points = np.append(corners, np.ones((8, 1)), axis=1).T
    return float(np.linalg.norm((found @ points - truth @ points)[:3], axis=0).max())


@pytest.mark.parametrize("similarity", ["lncc", "ncc", "mind"])
@pytest.mark.parametrize("kind", TRUTHS)
def test_a_known_transformation_is_recovered(kind: str, similarity: str) -> None:
    truth, image = TRUTHS[kind], scene()
    fixed = 1 - seen(image, truth) if similarity == "mind" else seen(image, truth)
    options = options_for("mr", similarity={similarity: 1.0}, transformation=kind, spacing=2.0)
    result = refine(volumes(FIXED, fixed), volumes(MOVING, image), options)
    assert result.matrix is not None
    assert error(result.matrix, truth) < 1 < 5 < error(np.eye(4), truth)
    assert result.statistics["objective_after"] < result.statistics["objective_before"]
    linear = result.matrix[:3, :3]
    if kind != "affine":
        scale = np.cbrt(np.linalg.det(linear)) if kind == "similarity" else 1.0
        np.testing.assert_allclose(linear.T @ linear, scale**2 * np.eye(3), atol=1e-6)
    field = DisplacementField.from_ddf(result.ddf, result.grid, FIXED)
    expected = DisplacementField.from_affine(result.matrix, FIXED)
    torch.testing.assert_close(field.displacement, expected.displacement, atol=1e-3, rtol=0)


@pytest.mark.parametrize("similarity", ["labels", "distance"])
def test_labels_alone(similarity: str) -> None:
    """An ellipsoid with three different axes determines a rigid transformation."""
    truth = rigid((0, 0, 12), (6, -4, 3))
    points = MOVING.to_world(np.moveaxis(np.indices(MOVING.shape), 0, -1)) - MOVING.center
    moving = (np.square(points / (28, 18, 12)).sum(-1) < 1).astype(np.float32)
    masks = [torch.from_numpy(mask)[None] > 0.5 for mask in (seen(moving, truth), moving)]
    options = options_for("labels", similarity={similarity: 1.0}, transformation="rigid")
    result = refine(Volumes(FIXED, labels=masks[0]), Volumes(MOVING, labels=masks[1]), options)
    assert result.matrix is not None
    assert error(result.matrix, truth) < 1.5 < 5 < error(np.eye(4), truth)


def test_a_mask_hides_what_moved_otherwise() -> None:
    truth, image, other = TRUTHS["rigid"], scene(), scene(1)
    fixed, hidden = seen(image, truth), np.zeros(SHAPE, dtype=bool)
    hidden[:24] = True
    fixed = np.where(hidden, 2 * seen(other, np.eye(4)), fixed)
    moving = image.copy()
    moving[:18] = 2 * other[:18]
    counts = torch.from_numpy((~hidden).astype(np.float32))[None]
    options = options_for("mr", similarity={"ncc": 1.0}, transformation="rigid", spacing=2.0)
    errors = []
    for masks in ({"mask": counts}, {}):
        result = refine(volumes(FIXED, fixed, **masks), volumes(MOVING, moving), options)
        assert result.matrix is not None
        errors.append(error(result.matrix, truth))
    assert errors[0] < 1 < 5 < errors[1]


def test_it_follows_a_start_and_never_harms_it() -> None:
    """A network found the bend but not the position: the transformation is applied after its field."""
    truth, image = TRUTHS["rigid"], scene()
    x = np.linspace(0, np.pi, SHAPE[0])[:, None, None]
    bend = np.zeros((3, *SHAPE), dtype=np.float32)
    bend[1] = 4 * np.sin(x)
    start = DisplacementField(torch.from_numpy(bend), FIXED)
    whole = start.compose(
        DisplacementField.from_affine(truth, Grid((90, 90, 90), make_affine((90, 90, 90), (2, 2, 2))))
    )
    still = volumes(MOVING, image)
    fixed = volumes(FIXED, whole.warp(MetaTensor(image[None], affine=torch.as_tensor(MOVING.affine)))[0].numpy())
    options = options_for("mr", similarity={"ncc": 1.0}, transformation="rigid", spacing=2.0)
    result = refine(fixed, still, options, start)
    assert result.matrix is None
    found = DisplacementField.from_ddf(result.ddf, result.grid, FIXED)
    apart = (found.displacement - whole.displacement).norm(dim=0)[8:-8, 8:-8, 8:-8]
    assert float(apart.max()) < 0.6
    kept = refine(fixed, still, options_for("mr", transformation="rigid", spacing=2.0, steps=(0,)), whole)
    assert not kept.statistics["improved"]


@pytest.mark.parametrize("similarity", ["lncc", "ncc", "mind"])
def test_identical_images_stay(similarity: str) -> None:
    image = scene() + np.random.default_rng(2).normal(0, 0.02, MOVING.shape).astype(np.float32)
    options = options_for("mr", similarity={similarity: 1.0}, transformation="affine", spacing=2.0)
    result = refine(volumes(MOVING, image), volumes(MOVING, image), options)
    np.testing.assert_array_equal(result.matrix, np.eye(4))
    assert not result.statistics["improved"]


def test_the_statistics_hold_the_matrix_of_the_files(tmp_path: Path) -> None:
    """With the pre-alignment, beyond the content of the image too: the matrix is the field that is written."""
    image = scene()
    files = [
        write(tmp_path / f"{side}.nii", values, grid.affine)
        for side, values, grid in (("fixed", seen(image, TURNED), FIXED), ("moving", image, MOVING))
    ]
    settings = {"align": "center", "refine": "mr", "refine_options": {"transformation": "rigid", "spacing": 2.0}}
    register("none", *files, out=tmp_path / "out", **settings)
    matrix = np.array(json.loads((tmp_path / "out" / "statistics.json").read_text())["refinement"]["matrix"])
    assert error(matrix, TURNED) < 0.6
    lps = np.asarray(nib.load(tmp_path / "out" / "field.nii.gz").dataobj)[:, :, :, 0]
    points = FIXED.to_world(np.moveaxis(np.indices(SHAPE), 0, -1))
    expected = points @ matrix[:3, :3].T + matrix[:3, 3] - points
    np.testing.assert_allclose(lps * (-1, -1, 1), expected, atol=2e-3)
