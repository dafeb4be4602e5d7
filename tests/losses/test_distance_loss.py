"""The distance-map loss against SciPy's interpolation and finite differences of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import smooth_ddf
from regzoo.losses import LogDistance, RegistrationLoss, SignedDistanceSimilarity
from scipy.ndimage import map_coordinates

SHAPE = (13, 12, 11)


def to_ball(center: tuple[float, ...], radius: float) -> np.ndarray:
    """Analytic signed distance to a ball, voxels of 1 mm."""
    return np.linalg.norm(np.indices(SHAPE).transpose(1, 2, 3, 0) - center, axis=-1) - radius


FIXED = np.stack([to_ball((6, 5, 4), 3), to_ball((7, 6, 5), 3.4)])
MOVING = np.stack([to_ball((7, 6, 6), 3.5), to_ball((4, 4, 6), 2.2)])


def targets(fixed: np.ndarray = FIXED, moving: np.ndarray = MOVING) -> dict[str, torch.Tensor]:
    named = {"fixed_distance": fixed, "moving_distance": moving}
    return {key: torch.from_numpy(value.astype(np.float32))[:, None] for key, value in named.items()}


def voxelwise(ddf: np.ndarray) -> np.ndarray:
    """The loss at every voxel (B, X, Y, Z), in float64 and with SciPy's linear interpolation."""
    places = np.indices(SHAPE) + ddf
    pairs = zip(MOVING, places, strict=True)
    warped = np.stack([map_coordinates(volume, place, order=1, mode="nearest") for volume, place in pairs])
    return (np.log(1 + warped.clip(min=0)) - np.log(1 + FIXED.clip(min=0))) ** 2


def fields() -> np.ndarray:
    """Displacements of up to five voxels, many of them out of the image, that end well between the voxels."""
    rough = np.stack([smooth_ddf(SHAPE, 5, sigma=2, seed=seed) for seed in range(2)])
    return np.floor(rough) + np.random.default_rng(0).uniform(0.2, 0.8, rough.shape)


def test_value_equals_scipy() -> None:
    ddf = fields()
    expected = voxelwise(ddf).mean()
    found = SignedDistanceSimilarity()(torch.from_numpy(ddf), targets())
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert expected > 0.05


def test_gradient_equals_finite_differences() -> None:
    ddf = fields()
    leaf = torch.from_numpy(ddf).requires_grad_()
    SignedDistanceSimilarity()(leaf, targets()).backward()
    assert leaf.grad is not None
    found = leaf.grad.numpy()
    # A voxel's displacement acts on this voxel alone, so a step at all voxels at once gives every derivative.
    step = 1e-5
    for axis in range(3):
        nudge = np.zeros((3, 1, 1, 1))
        nudge[axis] = step
        slope = (voxelwise(ddf + nudge) - voxelwise(ddf - nudge)) / (2 * step) / FIXED.size
        np.testing.assert_allclose(found[:, axis], slope, rtol=1e-3, atol=2e-4 * np.abs(slope).max())
        assert (np.abs(slope) > 0).mean() > 0.3


def test_nothing_to_gain_where_the_maps_agree() -> None:
    leaf = torch.zeros(2, 3, *SHAPE, requires_grad=True)
    loss = SignedDistanceSimilarity()(leaf, targets(moving=FIXED))
    loss.backward()
    assert leaf.grad is not None
    assert loss.item() == pytest.approx(0, abs=1e-10)
    assert float(leaf.grad.abs().max()) < 1e-7


def test_pulls_far_outside_and_leaves_the_inside_alone() -> None:
    # Two balls that do not overlap, their centres apart along the first axis: everywhere outside the field is drawn
    # towards the moving one's side, but not within both.
    fixed, moving = to_ball((4, 5, 5), 2), to_ball((9, 5, 5), 2)
    leaf = torch.zeros(1, 3, *SHAPE, requires_grad=True)
    SignedDistanceSimilarity()(leaf, targets(fixed[None], moving[None])).backward()
    assert leaf.grad is not None
    downhill = -leaf.grad[0, 0]
    assert float(downhill[1, 1, 1]) > 0  # the corner far from either
    assert float(downhill[2:11, 5, 5].min()) >= 0
    assert float(downhill.sum()) > 0
    inside = torch.from_numpy(moving) < -1
    assert bool(inside.any())
    assert not bool(leaf.grad[0][:, inside].any())


def test_a_right_field_costs_less_than_a_wrong_one() -> None:
    fixed, moving = to_ball((5, 6, 5), 3), to_ball((7, 5, 6), 3)
    there = torch.tensor([2.0, -1, 1]).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    loss = SignedDistanceSimilarity()
    right, none, wrong = (float(loss(u, targets(fixed[None], moving[None]))) for u in (there, 0 * there, -there))
    assert right < 0.1 * none < 0.1 * wrong


def test_float32_under_autocast_and_as_a_term() -> None:
    ddf = torch.from_numpy(fields()).float()
    alone = float(SignedDistanceSimilarity()(ddf, targets()))
    loss = RegistrationLoss({"distance": SignedDistanceSimilarity()}, {"distance": 0.8})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(ddf, targets())
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(0.8 * alone, rel=1e-6)


def test_prepared_and_masked_as_numpy() -> None:
    warped, fixed = (torch.from_numpy(x)[:, None] for x in (MOVING, FIXED))
    mask = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, fixed.shape)).clamp(min=0)
    squares = (np.log1p(MOVING.clip(min=0)) - np.log1p(FIXED.clip(min=0))) ** 2
    assert float(LogDistance()(warped, fixed)) == pytest.approx(squares.mean(), rel=1e-9)
    expected = np.average(squares, weights=mask[:, 0].numpy())
    for weights in (mask, 7 * mask):
        prepared = LogDistance().prepare(torch.where(mask > 0, fixed, 50), weights)
        assert float(prepared(fixed)) == pytest.approx(0, abs=1e-9)
        assert float(prepared(torch.where(mask > 0, warped, 80))) == pytest.approx(expected, rel=1e-9)
