"""Random affine augmentation: what moves, how far, and that a sample depends on its own seed alone."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from helpers import ball
from regzoo.augmentation import RandomAffinePair, random_affine
from scipy.ndimage import affine_transform, center_of_mass

CORNERS = np.array(list(product((-1.0, 1.0), repeat=3)))
SHAPE = (31, 27, 29)
SEEDS = torch.tensor([11, 2**60 + 5, 7])


def batch_of(count: int = 3) -> dict[str, torch.Tensor]:
    """Balls off the centre; the label of an image lies on it."""
    fixed, moving = ball(SHAPE, (19, 9, 17), 4), ball(SHAPE, (9, 17, 10), 4)
    sides = {"fixed_image": fixed, "fixed_label": fixed, "moving_image": moving, "moving_label": moving}
    return {key: torch.from_numpy(value).expand(count, 1, *SHAPE).clone() for key, value in sides.items()}


@pytest.mark.parametrize("limit", [0.05, 0.1, 0.3])
def test_no_corner_moves_more_than_the_limit(limit: float) -> None:
    maps = random_affine(torch.arange(500), limit).numpy()
    moved = CORNERS @ maps[:, :, :3].transpose(0, 2, 1) + maps[:, None, :, 3]
    steps = np.abs(moved - CORNERS)
    assert steps.max() <= limit * (1 + 1e-5)
    # The range is used, along every axis and at every corner.
    assert (steps.max(0) > 0.8 * limit).all()


def test_maps_are_about_the_centre() -> None:
    # On average a map is the identity, whatever its scale, and the centre moves no more than a corner does.
    maps = random_affine(torch.arange(2000), 0.1).numpy()
    np.testing.assert_allclose(maps.mean(0), np.eye(3, 4), atol=0.005)
    assert np.abs(maps[:, :, 3]).max() < 0.1
    scale, shift = np.linalg.det(maps[:, :, :3]), maps[:, :, 3]
    assert np.ptp(scale) > 0.2
    assert max(abs(np.corrcoef(scale, shift[:, axis])[0, 1]) for axis in range(3)) < 0.1


def test_a_pure_scale_leaves_the_centre_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *size, generator: torch.ones(size))  # every corner outwards, all the way
    np.testing.assert_allclose(random_affine(torch.tensor([0]), 0.1)[0].numpy(), 1.1 * np.eye(3, 4), atol=1e-6)


def test_a_sample_depends_on_its_own_seed_alone() -> None:
    augment, batch = RandomAffinePair(), batch_of()
    together = augment(batch, SEEDS)
    again = augment(batch, SEEDS)
    for key, value in together.items():
        assert torch.equal(value, again[key])
        for i in range(3):
            alone = augment({k: v[i : i + 1] for k, v in batch.items()}, SEEDS[i : i + 1])
            np.testing.assert_allclose(alone[key][0].numpy(), value[i].numpy(), atol=1e-5)
        assert not torch.allclose(value[0], value[1])
        assert not torch.allclose(value[0], value[2])


def test_labels_move_with_their_image() -> None:
    batch = batch_of()
    moved = RandomAffinePair(0.2)(batch, SEEDS)
    for side in ("fixed", "moving"):
        for i in range(3):
            image, label = (moved[f"{side}_{kind}"][i, 0].numpy() for kind in ("image", "label"))
            np.testing.assert_allclose(center_of_mass(image), center_of_mass(label), atol=1e-3)
            start = center_of_mass(batch[f"{side}_label"][i, 0].numpy())
            assert np.abs(np.subtract(center_of_mass(label), start)).max() > 0.1


def test_the_two_sides_move_apart() -> None:
    same = torch.from_numpy(ball(SHAPE, (19, 9, 17), 4)).expand(3, 1, *SHAPE)
    moved = RandomAffinePair(0.2)({"fixed_label": same, "moving_label": same}, SEEDS)
    for fixed, moving in zip(moved["fixed_label"].numpy(), moved["moving_label"].numpy(), strict=True):
        assert np.abs(np.subtract(center_of_mass(fixed[0]), center_of_mass(moving[0]))).max() > 0.1


def test_equals_scipy_with_the_same_map() -> None:
    channels = {"fixed_image": 1, "fixed_label": 2, "fixed_distance": 1}
    batch = {key: torch.rand(1, count, *SHAPE) for key, count in channels.items()}
    moved = RandomAffinePair(0.2)(batch, SEEDS[:1])
    theta = random_affine(2 * SEEDS[:1], 0.2)[0].double().numpy()
    # theta is in units of half the image, last array axis first.
    flip, half = np.eye(3)[::-1], (np.array(SHAPE) - 1) / 2
    matrix = np.diag(half) @ flip @ theta[:, :3] @ flip @ np.diag(1 / half)
    offset = half + half * (flip @ theta[:, 3]) - matrix @ half
    for key, mode in (("fixed_image", "nearest"), ("fixed_label", "grid-constant"), ("fixed_distance", "nearest")):
        for channel, values in enumerate(batch[key][0].numpy()):
            expected = affine_transform(values, matrix, offset, order=1, mode=mode)
            np.testing.assert_allclose(moved[key][0, channel].numpy(), expected, atol=1e-4)


def test_images_continue_at_the_border_and_labels_end() -> None:
    ones = {key: torch.ones(3, 1, *SHAPE) for key in batch_of()}
    moved = RandomAffinePair(0.3)(ones, SEEDS)
    np.testing.assert_allclose(moved["fixed_image"].numpy(), 1, atol=1e-5)
    assert float(moved["fixed_label"].min()) == 0


def test_distance_maps_move_with_their_label() -> None:
    centers = {"fixed": (19, 9, 17), "moving": (9, 17, 10)}
    batch = {}
    for side, center in centers.items():
        offsets = np.indices(SHAPE) - np.reshape(center, (3, 1, 1, 1))
        distance = np.sqrt((offsets**2).sum(0)) - 6  # 0 at the surface of a ball
        for kind, values in (("label", distance <= 0), ("distance", distance)):
            volume = torch.from_numpy(values.astype(np.float32))
            batch[f"{side}_{kind}"] = volume.expand(3, 1, *SHAPE).clone()
    moved = RandomAffinePair(0.2)(batch, SEEDS)
    for side in centers:
        label, distance = (moved[f"{side}_{kind}"].numpy() for kind in ("label", "distance"))
        clear = np.abs(distance) > 1  # a voxel away from the surface
        np.testing.assert_array_equal((label >= 0.5)[clear], (distance < 0)[clear])
        before = batch[f"{side}_distance"].numpy()
        assert ((before < 0) != (distance < 0)).mean() > 0.005  # it has moved
        # Beyond the border it is still far to the label; 0 would be its surface.
        assert distance[:, :, [0, -1]][:, :, :, [0, -1]].min() > 2


def test_half_of_the_samples_are_mirrored() -> None:
    """Left and right are exchanged, and nothing else: a mirrored sample is the mirrored result without the option."""
    seeds = torch.arange(40)
    batch = {key: torch.rand(1, 1, *SHAPE).expand(40, -1, -1, -1, -1) for key in ("fixed_image", "moving_image")}
    plain, mirrored = (RandomAffinePair(0, mirror=mirror)(batch, seeds) for mirror in (False, True))
    for key, value in mirrored.items():
        pairs = list(zip(value, plain[key], strict=True))
        same = [torch.allclose(found, given, atol=1e-4) for found, given in pairs]
        flipped = [torch.allclose(found, given.flip(1), atol=1e-4) for found, given in pairs]
        assert [not other for other in same] == flipped and 10 < sum(flipped) < 30


def test_zero_changes_nothing() -> None:
    batch = batch_of()
    for key, value in RandomAffinePair(0)(batch, SEEDS).items():
        assert value is batch[key]


@pytest.mark.parametrize("limit", [-0.1, 0.5])
def test_limit_is_checked(limit: float) -> None:
    with pytest.raises(ValueError, match="max_corner_shift"):
        RandomAffinePair(limit)
