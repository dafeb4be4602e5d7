"""The refinement of one pair, on deformations that are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from regzoo.errors import RegZooError
from regzoo.refinement import KINDS, RefinementOptions, Volumes, options_for, refine
from regzoo.refinement.lattice import Lattice
from regzoo.refinement.levels import make_levels
from regzoo.refinement.objective import Objective
from regzoo.spatial import DisplacementField, Grid, jacobian_determinant
from scipy.ndimage import gaussian_filter, map_coordinates

SHAPE = (40, 36, 32)
QUICK = RefinementOptions(spacing=2.0, steps=(20, 10, 10))


@pytest.fixture(scope="module")
def texture() -> np.ndarray:
    rng = np.random.default_rng(0)
    noise = gaussian_filter(rng.standard_normal(SHAPE), 2.0)
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def displacement(size: float = 3.0) -> np.ndarray:
    """A smooth displacement (3, X, Y, Z), voxels, that is 0 at the border."""
    x, y, z = np.meshgrid(*[np.linspace(0, np.pi, n) for n in SHAPE], indexing="ij")
    bump = np.sin(x) * np.sin(y) * np.sin(z)
    return size * np.stack([bump, -0.5 * bump, 0.7 * bump])


def moved(image: np.ndarray, ddf: np.ndarray) -> np.ndarray:
    """An image sampled at x + ddf(x) by SciPy."""
    points = np.stack(np.meshgrid(*[np.arange(n) for n in image.shape], indexing="ij")) + ddf
    return map_coordinates(image, points, order=1, mode="nearest")


def volumes(image: np.ndarray, spacing: float = 2.0, **others: torch.Tensor | None) -> Volumes:
    return Volumes(Grid(SHAPE, np.diag([spacing, spacing, spacing, 1.0])), torch.from_numpy(image)[None], **others)


def error(result: torch.Tensor, grid: Grid, truth: np.ndarray, spacing: float = 2.0) -> float:
    """Mean distance to the true displacement in the middle of the image, voxels of the image."""
    fixed = Grid(SHAPE, np.diag([spacing, spacing, spacing, 1.0]))
    found = DisplacementField.from_ddf(result, grid, fixed).displacement.numpy() / spacing
    return float(np.linalg.norm(found - truth, axis=0)[6:-6, 6:-6, 6:-6].mean())


@pytest.mark.parametrize("similarity", ["lncc", "ncc", "mind"])
def test_a_known_deformation_is_recovered(texture: np.ndarray, similarity: str) -> None:
    truth = displacement()
    options = dataclasses.replace(QUICK, similarity={similarity: 1.0}, steps=(30, 20, 10))
    result = refine(volumes(moved(texture, truth)), volumes(texture), options)
    before = float(np.linalg.norm(truth, axis=0)[6:-6, 6:-6, 6:-6].mean())
    assert error(result.ddf, result.grid, truth) < 0.25 * before
    assert result.statistics["improved"]
    assert result.statistics["objective_after"] < result.statistics["objective_before"]
    assert jacobian_determinant(result.ddf[None]).min() > 0


def test_a_known_deformation_of_a_mouse_is_recovered(texture: np.ndarray) -> None:
    """In an image of 4 mm, of which the spacing for people leaves a few voxels."""
    truth = displacement()
    fixed = volumes(moved(texture, truth), 0.1)
    result = refine(fixed, volumes(texture, 0.1), options_for("mr", fixed.grid, steps=(20, 10, 10)))
    before = float(np.linalg.norm(truth, axis=0)[6:-6, 6:-6, 6:-6].mean())
    assert error(result.ddf, result.grid, truth, 0.1) < 0.5 * before


@pytest.mark.parametrize("shape", [(35, 51, 35), (30, 30, 20), (200, 200, 4)])
def test_the_defaults_of_all_but_small_images_stay(shape: tuple[int, int, int]) -> None:
    """A crop round the hippocampus, a small image without finer voxels to gain, and a thin stack."""
    for kind in KINDS if max(shape) > 36 else ("mr", "outlines"):
        assert options_for(kind, Grid(shape, np.eye(4))) == KINDS[kind]


@pytest.mark.parametrize("similarity", ["lncc", "mind"])
@pytest.mark.parametrize(("slices", "whole"), [(10, True), (2, False)])
def test_what_lies_beyond_a_thin_slab_does_not_count(
    texture: np.ndarray, similarity: str, slices: int, whole: bool
) -> None:
    def slab(image: np.ndarray, first: int, count: int) -> Volumes:
        affine = np.eye(4)
        affine[2, 3] = first
        part = torch.from_numpy(np.ascontiguousarray(image[..., first : first + count]))[None]
        return Volumes(Grid(part.shape[1:], affine), part)

    fixed, moving = slab(texture, 12, slices), np.roll(texture, 2, 0)
    other = slab(moving, 0, SHAPE[2]) if whole else slab(moving, 12, slices)
    options = RefinementOptions(similarity={similarity: 1.0}, spacing=2.0, lattice=4.0, steps=(30, 20, 20), window=7)
    result = refine(fixed, other, options)
    ends = fixed.grid.to_voxels(result.grid.corners.reshape(-1, 3))[:, 2]
    assert ends.min() > -0.01 and ends.max() < slices - 0.99
    found = DisplacementField.from_ddf(result.ddf, result.grid, fixed.grid).displacement[:, 10:-10, 10:-10]
    assert float((found - torch.tensor([2.0, 0, 0]).view(3, 1, 1, 1)).norm(dim=0).mean()) < 0.6


def test_inverted_contrast_needs_mind(texture: np.ndarray) -> None:
    truth = displacement()
    options = dataclasses.replace(QUICK, similarity={"mind": 1.0}, steps=(30, 20, 10))
    result = refine(volumes(1 - moved(texture, truth)), volumes(texture), options)
    assert error(result.ddf, result.grid, truth) < 0.3 * float(np.linalg.norm(truth, axis=0)[6:-6, 6:-6, 6:-6].mean())


@pytest.mark.parametrize("kind", [kind for kind, options in KINDS.items() if "labels" not in options.similarity])
def test_identical_images_do_not_move(texture: np.ndarray, kind: str) -> None:
    options = options_for(kind, spacing=2.0, steps=(20, 10, 10))
    result = refine(volumes(texture), volumes(texture), options)
    assert float(result.ddf.abs().max()) * 2.0 < 0.05
    assert not result.statistics["improved"]


def test_a_start_is_kept_or_improved(texture: np.ndarray) -> None:
    truth = displacement()
    pair = volumes(moved(texture, truth)), volumes(texture)
    grid = pair[0].grid
    start = DisplacementField(torch.from_numpy(truth * 2.0).float(), grid)
    kept = refine(*pair, dataclasses.replace(QUICK, steps=(0, 0)), start)
    assert not kept.statistics["improved"]
    assert error(kept.ddf, kept.grid, truth) < 0.1
    half = DisplacementField(torch.from_numpy(truth).float(), grid)
    better = refine(*pair, QUICK, half)
    assert error(better.ddf, better.grid, truth) < 0.5 * error(half.ddf().as_tensor(), grid, truth)


@pytest.mark.parametrize("started", [False, True])
def test_a_symmetric_refinement_agrees_better_with_its_reverse(texture: np.ndarray, started: bool) -> None:
    """Each image has noise of its own. The fields there and back should be inverse to each other."""
    truth, rng = displacement(), np.random.default_rng(1)
    noise = [0.1 * gaussian_filter(rng.standard_normal(SHAPE), 1.5) for _ in range(2)]
    one, two = volumes(np.float32(moved(texture, truth) + noise[0])), volumes(np.float32(texture + noise[1]))
    half = DisplacementField(torch.from_numpy(truth).float(), one.grid) if started else None
    gap = []
    for symmetric in (False, True):
        options = dataclasses.replace(QUICK, steps=(30, 20, 10), symmetric=symmetric)
        there, back = refine(one, two, options, half), refine(two, one, options, half.inverse() if half else None)
        fields = [DisplacementField.from_ddf(result.ddf, result.grid, one.grid) for result in (there, back)]
        round_trip = fields[0].compose(fields[1]).displacement.numpy() / 2
        gap.append(float(np.linalg.norm(round_trip, axis=0)[6:-6, 6:-6, 6:-6].mean()))
        assert error(there.ddf, there.grid, truth) < 0.5 * np.linalg.norm(truth, axis=0)[6:-6, 6:-6, 6:-6].mean()
    assert gap[1] < 0.85 * gap[0]


@pytest.mark.parametrize("similarity", ["labels", "distance"])
def test_labels_alone_bring_structures_together(similarity: str) -> None:
    points = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
    balls = [np.linalg.norm(points - np.reshape(c, (3, 1, 1, 1)), axis=0) < 8 for c in ((18, 18, 16), (23, 17, 14))]
    grid = Grid(SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]))
    fixed, moving = (Volumes(grid, labels=torch.from_numpy(ball)[None]) for ball in balls)
    result = refine(fixed, moving, options_for("labels", similarity={similarity: 1.0}))
    field = DisplacementField.from_ddf(result.ddf, result.grid, grid).displacement.numpy() / 2
    warped = moved(balls[1].astype(np.float32), field) >= 0.5
    assert 2 * (warped & balls[0]).sum() / (warped.sum() + balls[0].sum()) > 0.95
    assert jacobian_determinant(result.ddf[None]).min() > 0


def test_excluded_voxels_have_no_influence(texture: np.ndarray) -> None:
    """Two different lesions are pulled together, unless a mask leaves them out."""
    points = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
    distances = [np.linalg.norm(points - np.reshape(c, (3, 1, 1, 1)), axis=0) for c in ((17, 18, 16), (22, 18, 16))]
    fixed, moving = (np.where(distance < 5, 1.5, texture).astype(np.float32) for distance in distances)
    counts = torch.from_numpy((np.minimum(*distances) > 6).astype(np.float32))[None]
    free = refine(volumes(fixed), volumes(moving), QUICK)
    masked = refine(volumes(fixed, mask=counts), volumes(moving, mask=counts), QUICK)
    assert float(free.ddf.norm(dim=0).max()) > 2
    assert float(masked.ddf.norm(dim=0).max()) < 0.1


def test_masks_too_thin_for_the_coarse_levels(texture: np.ndarray) -> None:
    """Two plates of two voxels count on both sides; no voxel of a coarse level is inside of them."""
    truth = displacement(1.5)
    plates = np.zeros(SHAPE, np.float32)
    plates[13:15] = plates[25:27] = 1.0
    masks = [torch.from_numpy(mask)[None] for mask in (plates, np.float32(moved(plates, -truth) > 0.5))]
    pair = volumes(moved(texture, truth), mask=masks[0]), volumes(texture, mask=masks[1])
    options = dataclasses.replace(QUICK, steps=(10, 10, 20), window=5)
    for level, overlaps in zip(make_levels(*pair, ["image"], 2.0, 3, 10**6), (False, False, True), strict=True):
        objective = Objective(level, options)
        objective.look(torch.zeros(1, *level.size, 3))
        assert objective.overlaps == overlaps
    result = refine(*pair, options)
    fixed = pair[0].grid
    found = DisplacementField.from_ddf(result.ddf, result.grid, fixed).displacement.numpy() / 2
    inside = plates.astype(bool)
    inside[:, :6] = inside[:, -6:] = inside[:, :, :6] = inside[:, :, -6:] = False
    assert np.linalg.norm(found - truth, axis=0)[inside].mean() < 0.8 * np.linalg.norm(truth, axis=0)[inside].mean()


def test_voxels_beyond_the_moving_field_of_view_do_not_count(texture: np.ndarray) -> None:
    """A moving image that ends in the middle of the fixed one is not stretched over all of it."""
    truth = displacement(2.0)
    half = Volumes(Grid((24, *SHAPE[1:]), np.diag([2.0, 2.0, 2.0, 1.0])), torch.from_numpy(texture[:24])[None])
    result = refine(volumes(moved(texture, truth)), half, QUICK)
    fixed = Grid(SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]))
    found = DisplacementField.from_ddf(result.ddf, result.grid, fixed).displacement.numpy() / 2
    inside = np.linalg.norm(found - truth, axis=0)[6:18, 6:-6, 6:-6].mean()
    assert inside < 0.5 * np.linalg.norm(truth, axis=0)[6:18, 6:-6, 6:-6].mean()
    assert np.linalg.norm(found[:, 28:], axis=0).max() < 4


@pytest.mark.parametrize("masked", [False, True])
def test_voxels_that_move_out_of_the_moving_image_do_not_count(texture: np.ndarray, masked: bool) -> None:
    """Both images have the same field of view, which a shift by 7 voxels leaves; the truth is NumPy's correlation."""
    noise = np.random.default_rng(2).random(SHAPE, dtype=np.float32)
    mask = np.ones(SHAPE, np.float32)
    mask[20:, :5] = 1 - masked
    options = dataclasses.replace(QUICK, similarity={"ncc": 1.0}, steps=(0,))
    moving = volumes(texture, mask=torch.from_numpy(mask)[None] if masked else None)
    (level,) = make_levels(volumes(noise), moving, ["image"], 2.0, 1, 10**6)
    assert level.size == SHAPE
    objective = Objective(level, options)
    objective.look(torch.zeros(1, *SHAPE, 3))
    shift = torch.tensor([0.0, 0.0, 7.0]).expand(1, *SHAPE, 3)
    objective.look(shift)
    counts = mask[7:] > 0
    truth = np.corrcoef(noise[:-7][counts], texture[7:][counts])[0, 1]
    assert float(objective(shift)) == pytest.approx(1 - truth, abs=1e-4)


def test_a_mask_with_a_sharp_edge_counts_for_mind(texture: np.ndarray) -> None:
    counts = torch.zeros(1, *SHAPE)
    counts[:, :24] = 1
    options = dataclasses.replace(QUICK, similarity={"mind": 1.0})
    result = refine(volumes(moved(texture, displacement()), mask=counts), volumes(texture), options)
    assert result.statistics["improved"]
    assert result.ddf.isfinite().all()


def test_no_voxel_in_common_is_an_error(texture: np.ndarray) -> None:
    far = Volumes(Grid(SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]) + np.eye(4, k=3) * 500), torch.from_numpy(texture)[None])
    with pytest.raises(RegZooError, match="voxels in common"):
        refine(volumes(texture), far, QUICK)


def test_a_time_limit_ends_the_steps(texture: np.ndarray) -> None:
    pair = volumes(moved(texture, displacement())), volumes(texture)
    result = refine(*pair, dataclasses.replace(QUICK, seconds=1e-9))
    assert result.statistics["steps"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"similarity": {"mi": 1.0}}, "mi"),
        ({"similarity": {}}, "similarity"),
        ({"transformation": "spline"}, "transformation"),
        ({"spacing": 0}, "spacing"),
        ({"window": 4}, "window"),
        ({"window": 9.5}, "window"),
        ({"trust": 0}, "trust"),
        ({"steps": ()}, "steps"),
        ({"smoothness": -1}, "smoothness"),
        ({"smoothness": "a"}, "smoothness"),
        ({"stiffening": 0}, "stiffening"),
        ({"symmetric": "yes"}, "symmetric: 'yes' is not True or False"),
        ({"stiffening": 1e300}, "stiffening: 1e.300 over 3 levels"),
        ({"steps": "a"}, "steps"),
        ({"steps": [1.5]}, "steps"),
        ({"steps": [1.0]}, "steps"),
        ({"sigmas": []}, "sigmas"),
        ({"sigmas": ["a"]}, "sigmas"),
        ({"intensities": [1]}, "intensities"),
        ({"intensities": [1, 0]}, "intensities"),
        ({"similarity": "lncc"}, "similarity"),
        ({"spacing": float("nan")}, "spacing"),
        ({"smothness": 1}, "smothness"),
    ],
)
def test_wrong_options_are_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(RegZooError, match=words):
        options_for("mr", **change)
    with pytest.raises(RegZooError, match="pet"):
        options_for("pet")


def test_the_derivative_of_a_small_exponential_is_near_the_identity() -> None:
    """The finest level relies on it; the truth is autograd through the squarings."""
    lattice = Lattice((24, 22, 20), torch.device("cpu"))
    noise = torch.from_numpy(
        gaussian_filter(np.random.default_rng(1).standard_normal((2, 3, 24, 22, 20)), (0, 0, 4, 4, 4))
    )
    velocity, weight = (part.movedim(0, -1)[None].float().contiguous() for part in noise / noise.abs().max())
    velocity = (0.5 * velocity).requires_grad_()
    (exact,) = torch.autograd.grad((lattice.exponential(velocity, 4) * weight).sum(), velocity)
    assert float((exact - weight).norm() / weight.norm()) < 0.15
