"""Cross-entropy of predicted labels, weighed by the size of each label, against NumPy in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import ball
from regzoo.losses import PredictedLabel, RegistrationLoss, WeightedCrossEntropy
from scipy.ndimage import shift
from scipy.special import log_expit

SHAPE = (15, 13, 11)
BALANCES = (0.0, 0.5, 1.0)


def labels() -> np.ndarray:
    """Fixed labels (2 cases, 2 labels, X, Y, Z): soft and large, a few voxels, cut by the border, everything but it."""
    places = [((7, 6, 5), 4), ((9, 4, 6), 1.2), ((0, 6, 10), 3)]
    masks = [shift(ball(SHAPE, center, radius), (0.3, -0.4, 0.2), order=1).clip(0, 1) for center, radius in places]
    return np.stack([*masks, 1 - masks[2]]).reshape(2, 2, *SHAPE).astype(np.float32)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3, size=(2, 2, *SHAPE)).astype(np.float32)


def average(logits: np.ndarray, label: np.ndarray, balance: float) -> float:
    """One label: each voxel is its foreground's part and its background's part, averaged with their weights."""
    logits, label = logits.astype(float).ravel(), label.astype(float).ravel()
    ratio = (1 - label).sum() / label.sum()
    costs = np.concatenate([-log_expit(logits), -log_expit(-logits)])
    return float(np.average(costs, weights=np.concatenate([ratio**balance * label, 1 - label])))


@pytest.mark.parametrize("balance", BALANCES)
def test_equals_an_average_in_double_precision(balance: float) -> None:
    logits, fixed = noise(), labels()
    pairs = zip(logits.reshape(-1, *SHAPE), fixed.reshape(-1, *SHAPE), strict=True)
    expected = np.mean([average(a, b, balance) for a, b in pairs])
    loss = WeightedCrossEntropy(balance)(torch.from_numpy(logits), torch.from_numpy(fixed))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_without_balance_it_is_pytorchs() -> None:
    logits, fixed = torch.from_numpy(noise()), torch.from_numpy(labels())
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(logits, fixed)
    assert float(WeightedCrossEntropy(0)(logits, fixed)) == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("voxels", [0, 0.05, 1, 5, 500, 1000])
def test_not_knowing_costs_log_2_whatever_the_label(voxels: float, balance: float) -> None:
    fixed = torch.zeros(1, 1, 10, 10, 10)
    fixed.view(-1)[: math.ceil(voxels)] = 1 if voxels >= 1 else voxels
    loss = WeightedCrossEntropy(balance)(torch.zeros_like(fixed), fixed)
    assert float(loss) == pytest.approx(math.log(2), rel=1e-4)


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("radius", [1, 2, 5])
def test_balance_shares_out_the_gradient(radius: float, balance: float) -> None:
    mask = torch.from_numpy(ball(SHAPE, (7, 6, 5), radius))
    logits = torch.zeros(1, 1, *SHAPE, requires_grad=True)
    WeightedCrossEntropy(balance)(logits, mask[None, None]).backward()
    assert logits.grad is not None
    inside, outside = (float(logits.grad[0, 0][mask == value].sum()) for value in (1, 0))
    assert inside < 0 < outside  # the label is pushed up, the rest down
    size = float(mask.sum())
    # 1: both sides pull alike; 0: as many times as there are voxels; one half: the geometric mean of these.
    assert -inside / outside == pytest.approx((size / (mask.numel() - size)) ** (1 - balance), rel=1e-4)
    assert outside - inside == pytest.approx(0.5, rel=1e-4)


def test_labels_of_all_sizes_cost_the_same_at_the_same_rate_of_errors() -> None:
    values = []
    for count in (10, 40, 400):
        fixed, logits = torch.zeros(1, 1, 10, 10, 10), torch.full((1, 1, 10, 10, 10), -2.0)
        fixed.view(-1)[:count] = 1
        logits.view(-1)[: count // 2] = 3.0  # half of the label is found, a fifth of the rest is taken for it
        logits.view(-1)[-(1000 - count) // 5 :] = 3.0
        values.append(float(WeightedCrossEntropy(1)(logits, fixed)))
    found = (-log_expit(3) - log_expit(-2)) / 2
    spared = -0.2 * log_expit(-3) - 0.8 * log_expit(2)
    np.testing.assert_allclose(values, (found + spared) / 2, rtol=1e-5)


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("value", [-100.0, 100.0])
@pytest.mark.parametrize("voxels", [0, 7, 1000])
def test_finite_at_the_ends(voxels: int, value: float, balance: float) -> None:
    fixed = torch.zeros(1, 1, 10, 10, 10)
    fixed.view(-1)[:voxels] = 1
    logits = torch.full_like(fixed, value, requires_grad=True)
    loss = WeightedCrossEntropy(balance)(logits, fixed)
    loss.backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
    wrong = voxels if value < 0 else 1000 - voxels
    if wrong in (0, 1000):
        assert loss.item() == pytest.approx(0 if wrong == 0 else 100, rel=1e-4, abs=1e-4)
    else:
        assert 0 < loss.item() < 100


def test_a_label_that_sums_up_to_a_little_more_than_the_grid() -> None:
    # As interpolation leaves it.
    fixed = torch.full((1, 1, 8, 8, 8), 1 + 1e-6)
    assert bool(WeightedCrossEntropy(0.5)(torch.randn_like(fixed), fixed).isfinite())


def test_full_precision_under_autocast() -> None:
    logits, fixed = torch.from_numpy(noise()).bfloat16(), torch.from_numpy(labels())
    loss = WeightedCrossEntropy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, fixed.bfloat16().float())
    assert value.dtype == torch.float32
    assert float(value) == float(loss(logits.float(), fixed.bfloat16().float()))


@pytest.mark.parametrize("balance", [-0.1, 1.5])
def test_balance_is_checked(balance: float) -> None:
    with pytest.raises(ValueError, match="balance"):
        WeightedCrossEntropy(balance)


def test_balance_is_part_of_the_name() -> None:
    assert "0.25" in repr(PredictedLabel(WeightedCrossEntropy(0.25)))


def test_the_term_compares_with_the_fixed_label_alone() -> None:
    logits, fixed = torch.from_numpy(noise()), torch.from_numpy(labels())
    loss = RegistrationLoss({"label": PredictedLabel(WeightedCrossEntropy(0.5))})
    targets = {"fixed_label": fixed, "moving_label": torch.full_like(fixed, torch.nan)}
    assert float(loss(logits, targets)) == pytest.approx(float(WeightedCrossEntropy(0.5)(logits, fixed)))
    better = (2 * fixed - 1) * logits.abs()
    assert float(loss(better, targets)) < float(loss(logits, targets)) < float(loss(-better, targets))
