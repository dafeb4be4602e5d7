"""Linear registration: known transformations of a scene that is a function of the world, so nothing is interpolated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import make_affine, rigid
from regzoo.errors import RegZooError
from regzoo.refinement.linear import register_linear
from regzoo.spatial import Grid
from scipy.ndimage import affine_transform

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SHAPE, SPACING = (64, 56, 48), (3.0, 3.0, 3.5)
RNG = np.random.default_rng(5)
#: Centres, radii and values of the organs of a body.
ORGANS = [(RNG.uniform(-50, 50, 3), RNG.uniform(8, 24, 3), RNG.uniform(60, 250)) for _ in range(25)]


def scene(points: np.ndarray) -> np.ndarray:
    """Values at points (..., 3), RAS mm: a body without symmetry, about 130 mm wide."""
    x, y, z = np.moveaxis(points, -1, 0)
    inside = (x / 72) ** 2 + (y / 58) ** 2 + (z / (66 + 0.1 * x)) ** 2
    values = 90 / (1 + np.exp((inside - 1) * 20))
    for center, radii, value in ORGANS:
        apart = (((points - center) / radii) ** 2).sum(-1)
        share = 1 / (1 + np.exp((apart - 1) * 4))
        values = values * (1 - share) + value * share
    return np.asarray(values, dtype=np.float32)


def seen(shape: tuple[int, int, int], affine: np.ndarray, there: np.ndarray, noise: float = 2) -> torch.Tensor:
    """The scene (1, X, Y, Z) as a scanner sees it whose world is that of the scene through a matrix."""
    back = np.linalg.inv(there) @ affine
    values = scene(np.moveaxis(np.indices(shape), 0, -1) @ back[:3, :3].T + back[:3, 3])
    noisy = values + np.random.default_rng(len(shape)).normal(0, noise, shape)
    return torch.from_numpy(noisy.astype(np.float32))[None]


def error(matrix: np.ndarray, truth: np.ndarray) -> float:
    """The largest distance in a ball of 60 mm, mm."""
    points = 60 / np.sqrt(3) * np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1)
    points = np.concatenate([points, np.ones((1, 8))])
    return float(np.linalg.norm((matrix @ points - truth @ points)[:3], axis=0).max())


FIXED = make_affine(SHAPE, SPACING)
STRETCHED = rigid((4, -6, 5), (12, -9, 4)) @ np.array(
    [[1.1, 0.06, 0, 0], [0, 0.92, -0.05, 0], [0.04, 0, 1.07, 0], [0, 0, 0, 1]]
)
CASES: dict[str, tuple[str, np.ndarray]] = {
    **{f"45 degrees about {'xyz'[i]}": ("rigid", rigid(45 * np.eye(3)[i], (0, 0, 0))) for i in range(3)},
    "turned about all axes": ("rigid", rigid((30, -20, 25), (10, 20, -15))),
    "60 mm away": ("rigid", rigid((5, 0, -5), (60, -60, 60))),
    "another world": ("rigid", rigid((0, 10, 0), (900, -700, 400))),
    "smaller": ("similarity", rigid((10, 0, 8), (5, 8, 0)) @ np.diag([0.8, 0.8, 0.8, 1])),
    "larger": ("affine", rigid((0, -12, 0), (0, 8, 9)) @ np.diag([1.25, 1.25, 1.25, 1])),
    "sheared": ("affine", STRETCHED),
}


@pytest.mark.parametrize("name", CASES)
def test_known_transformations(name: str) -> None:
    """The moving image has other voxels and an oblique header of its own."""
    kind, truth = CASES[name]
    shape, affine = (50, 60, 54), make_affine((50, 60, 54), (4, 3, 3.2), (12, -8, 20), (1, 0, 2), (1, -1, 1))
    affine[:3, 3] += truth[:3, 3]
    fixed, moving = seen(SHAPE, FIXED, np.eye(4)), seen(shape, affine, truth)
    found = register_linear(fixed, Grid(SHAPE, FIXED), moving, Grid(shape, affine), kind)
    assert error(found, truth) < 1.5
    linear = found[:3, :3]
    if kind != "affine":
        scale = np.cbrt(np.linalg.det(linear))
        np.testing.assert_allclose(linear.T @ linear, scale**2 * np.eye(3), atol=1e-5)
    if kind == "rigid":
        assert np.linalg.det(linear) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("cropped", ["fixed", "moving"])
@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_one_image_is_a_part_of_the_other(cropped: str, kind: Any) -> None:
    truth = rigid((8, -10, 6), (15, -20, 10))
    small = make_affine((30, 26, 24), SPACING, center=(12, -9, 14))
    if cropped == "fixed":
        sides = ((30, 26, 24), small), (SHAPE, make_affine(SHAPE, SPACING))
    else:
        sides = (SHAPE, FIXED), ((30, 26, 24), truth @ small @ rigid((10, 0, 0), (0, 0, 0)))
    (fixed_shape, fixed_affine), (shape, affine) = sides
    fixed, moving = seen(fixed_shape, fixed_affine, np.eye(4)), seen(shape, affine, truth)
    found = register_linear(fixed, Grid(fixed_shape, fixed_affine), moving, Grid(shape, affine), kind)
    assert error(found, truth) < 3


def test_fields_of_view_that_share_a_half() -> None:
    truth = rigid((6, 5, -8), (20, 0, 12))
    shape = (64, 56, 30)
    lower, upper = (make_affine(shape, SPACING, center=(0, 0, z)) for z in (-30, 22))
    fixed, moving = seen(shape, lower, np.eye(4)), seen(shape, truth @ upper, truth)
    found = register_linear(fixed, Grid(shape, lower), moving, Grid(shape, truth @ upper), "rigid")
    assert error(found, truth) < 3


@pytest.mark.parametrize("remap", [lambda v: 500 - v, lambda v: 100 * (v / 60).sin().abs()], ids=["inverted", "folded"])
def test_another_modality(remap: Any) -> None:
    truth = STRETCHED
    fixed, moving = seen(SHAPE, FIXED, np.eye(4)), remap(seen(SHAPE, FIXED, truth))
    found = register_linear(fixed, Grid(SHAPE, FIXED), moving, Grid(SHAPE, FIXED))
    assert error(found, truth) < 1.5


def test_identical_images_stay() -> None:
    image, grid = seen(SHAPE, FIXED, np.eye(4)), Grid(SHAPE, FIXED)
    found = register_linear(image, grid, image, grid)
    assert error(found, np.eye(4)) < 0.05
    again = register_linear(image, grid, image, grid)
    np.testing.assert_array_equal(found, again)


def test_the_moving_world_is_the_target() -> None:
    """Swapping the images inverts the matrix."""
    truth = rigid((8, -10, 6), (15, -20, 10))
    fixed, moving, grid = seen(SHAPE, FIXED, np.eye(4)), seen(SHAPE, FIXED, truth), Grid(SHAPE, FIXED)
    back = register_linear(moving, grid, fixed, grid, "rigid")
    assert error(np.linalg.inv(back), truth) < 1.5


def test_what_does_not_count() -> None:
    """A bright block that moved is left out by a mask, or because it is not a number."""
    truth = rigid((8, -10, 6), (15, -20, 10))
    grid = Grid(SHAPE, FIXED)
    fixed, moving = seen(SHAPE, FIXED, np.eye(4)), seen(SHAPE, FIXED, truth)
    fixed[:, 5:30, 10:40, 8:24] = 250
    moving[:, 30:60, 10:40, 20:40] = 250
    masks = [(image != 250).float() for image in (fixed, moving)]
    found = register_linear(fixed, grid, moving, grid, "rigid", *masks)
    assert error(found, truth) < 2
    holes = [image.where(mask > 0, torch.nan) for image, mask in zip((fixed, moving), masks, strict=True)]
    np.testing.assert_array_equal(register_linear(holes[0], grid, holes[1], grid, "rigid"), found)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda image: image * 0 + 7, "the same value everywhere"),
        (lambda image: image * torch.nan, "no voxel that counts"),
        (lambda image: image[..., :1], "only 1 voxels along an axis"),
    ],
    ids=["constant", "nan", "one slice"],
)
@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_images_that_determine_nothing(side: str, spoil: Any, words: str) -> None:
    image = seen(SHAPE, FIXED, np.eye(4))
    images = {"fixed": image, "moving": image} | {side: spoil(image)}
    grids = {name: Grid(one.shape[1:], FIXED) for name, one in images.items()}  # type: ignore[arg-type]
    with pytest.raises(RegZooError, match=f"the {side} image: has {words}.*set align to header or center"):
        register_linear(images["fixed"], grids["fixed"], images["moving"], grids["moving"])


def real(name: str) -> tuple[torch.Tensor, np.ndarray]:
    image = nib.load(DATA / name)
    return torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32).squeeze())[None], image.affine


def overlap(name: str, matrix: np.ndarray, there: np.ndarray) -> float:
    """Mean Dice of the labels, nearest neighbour by SciPy, of a pair whose moving world was moved by a matrix."""
    (fixed, affine), (moving, moving_affine) = (real(name.format(side)) for side in ("fixed", "moving"))
    voxels = np.linalg.inv(there @ moving_affine) @ matrix @ affine
    warped = affine_transform(moving[0].numpy(), voxels, output_shape=fixed[0].shape, order=0)
    values = np.intersect1d(np.unique(fixed), np.unique(moving))[1:]
    pairs = [(fixed[0].numpy() == value, warped == value) for value in values]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]))


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no real images")
@pytest.mark.parametrize("degrees", [(0, 0, 0), (45, 0, 0), (0, 0, -45)])
def test_brains_in_a_turned_world(degrees: tuple[int, int, int]) -> None:
    """The two brains were aligned with a template beforehand: Dice .42."""
    there = rigid(degrees, (30, -20, 10))
    (fixed, affine), (moving, moving_affine) = (real(f"brain_mr/{side}_2mm.nii.gz") for side in ("fixed", "moving"))
    grids = Grid(fixed.shape[1:], affine), Grid(moving.shape[1:], there @ moving_affine)  # type: ignore[arg-type]
    found = register_linear(fixed, grids[0], moving, grids[1])
    assert overlap("brain_mr/{}_2mm_label.nii.gz", found, there) > 0.36
