"""Multiscale Dice and cross-entropy, against filtering both labels with SciPy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import ball, smooth_noise
from regzoo.errors import RegZooError
from regzoo.losses import PAPER_SIGMAS, MultiScaleCrossEntropy, MultiScaleDice
from scipy.ndimage import gaussian_filter, shift

SHAPE = (22, 18, 14)
SPACING = (0.8, 1.5, 2.2)


def filtered(label: np.ndarray, sigma: float, spacing: tuple[float, ...] = SPACING) -> np.ndarray:
    widths = [sigma / size for size in spacing]
    return gaussian_filter(label.astype(float), widths, mode="constant", truncate=9) if sigma else label.astype(float)


def dice_loss(a: np.ndarray, b: np.ndarray, sigma: float, squared: bool) -> float:
    """One scale, one label."""
    a, b = filtered(a, sigma), filtered(b, sigma)
    mass = (a**2).sum() + (b**2).sum() if squared else a.sum() + b.sum()
    return 1 - 2 * (a * b).sum() / (mass + 1e-6)


def cross_entropy(a: np.ndarray, b: np.ndarray, sigma: float) -> float:
    p, t = filtered(a, sigma).clip(1e-6, 1 - 1e-6), filtered(b, sigma)
    return float(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean())


def soft(mask: np.ndarray) -> np.ndarray:
    """As a warped label is: moved by parts of a voxel."""
    return shift(mask, (0.3, -0.4, 0.2), order=1).clip(0, 1)


def labels() -> tuple[np.ndarray, np.ndarray]:
    """Warped and fixed, (2 cases, 2 labels, X, Y, Z): in the middle, small, at the border, in a corner."""
    places = [((11, 9, 7), 5), ((14, 6, 8), 1.5), ((0, 9, 13), 4), ((21, 17, 0), 3)]
    fixed = np.stack([ball(SHAPE, center, radius) for center, radius in places])
    warped = np.stack([soft(ball(SHAPE, np.add(center, (1, -1, 1)), radius)) for center, radius in places])
    return warped.reshape(2, 2, *SHAPE), fixed.reshape(2, 2, *SHAPE)


@pytest.mark.parametrize("squared", [False, True])
def test_dice_equals_filtering_both_labels(squared: bool) -> None:
    warped, fixed = labels()
    pairs = list(zip(warped.reshape(-1, *SHAPE), fixed.reshape(-1, *SHAPE), strict=True))
    tensors = torch.from_numpy(warped).float(), torch.from_numpy(fixed)
    everything = []
    for sigma in PAPER_SIGMAS:
        expected = np.mean([dice_loss(a, b, sigma, squared) for a, b in pairs])
        everything.append(expected)
        loss = MultiScaleDice([sigma], SPACING, squared_denominator=squared)(*tensors)
        assert float(loss) == pytest.approx(expected, abs=1e-4)
    loss = MultiScaleDice(spacing=SPACING, squared_denominator=squared)(*tensors)
    assert float(loss) == pytest.approx(np.mean(everything), abs=1e-4)


def test_squared_denominator_is_zero_at_identity() -> None:
    label = torch.from_numpy(labels()[1][:1, :1])
    # At the largest scale little of a label is left within so small a volume, and eps begins to count.
    assert float(MultiScaleDice(spacing=SPACING, squared_denominator=True)(label, label)) == pytest.approx(0, abs=1e-4)
    assert float(MultiScaleDice(spacing=SPACING)(label, label)) > 0.3


@pytest.mark.parametrize(("radius", "floor"), [(20, 0.43), (3, 0.76)])
def test_floor_of_the_linear_denominator(radius: int, floor: float) -> None:
    label = torch.from_numpy(ball((81, 81, 81), (40, 40, 40), radius))[None, None]
    assert float(MultiScaleDice()(label, label)) == pytest.approx(floor, abs=0.01)


@pytest.mark.parametrize("squared", [False, True])
def test_dice_prepared_and_masked(squared: bool) -> None:
    warped, fixed = labels()
    mask = smooth_noise((2, *SHAPE), 2.0, 3, 1.0)[:, None]
    mask = np.where(mask > 0.4, mask, 0)
    share = mask / mask.max((1, 2, 3, 4), keepdims=True)
    pairs = zip((share * warped).reshape(-1, *SHAPE), (share * fixed).reshape(-1, *SHAPE), strict=True)
    expected = np.mean([[dice_loss(a, b, sigma, squared) for sigma in (0.0, 3.0)] for a, b in pairs])
    a, b, m = (torch.from_numpy(x).float() for x in (warped, fixed, mask))
    loss = MultiScaleDice((0.0, 3.0), SPACING, squared_denominator=squared)
    for weights in (m, 5 * m):
        prepared = loss.prepare(b, weights)
        assert float(prepared(b)) != pytest.approx(expected, abs=1e-3)
        assert float(prepared(a)) == pytest.approx(expected, abs=1e-4)
    changed = [torch.where(m > 0, label, 1 - label).requires_grad_() for label in (a, b)]
    value = loss(*changed, m)
    value.backward()
    assert value.item() == pytest.approx(expected, abs=1e-4)
    assert changed[0].grad is not None and float(changed[0].grad[(m == 0).expand_as(a)].abs().max()) == 0
    assert changed[1].grad is None
    with pytest.raises(RegZooError, match="no voxel of the mask counts"):
        loss(a, b, 0 * m)


@pytest.mark.parametrize("kind", ["dice", "squared", "cross-entropy"])
def test_gradient_is_the_slope_of_the_direct_computation(kind: str) -> None:
    sigmas = (0.0, 1.5, 8.0)
    warped, fixed = labels()
    warped = 0.1 + 0.8 * warped  # away from 0 and 1, where the cross-entropy is clipped
    a, b = torch.from_numpy(warped).float().requires_grad_(), torch.from_numpy(fixed)
    loss = {
        "dice": MultiScaleDice(sigmas, SPACING),
        "squared": MultiScaleDice(sigmas, SPACING, squared_denominator=True),
        "cross-entropy": MultiScaleCrossEntropy(sigmas, SPACING),
    }[kind]
    (gradient,) = torch.autograd.grad(loss(a, b), a)

    def direct(moved: np.ndarray) -> float:
        values = []
        for x, y in zip(moved.reshape(-1, *SHAPE), fixed.reshape(-1, *SHAPE), strict=True):
            for s in sigmas:
                values.append(
                    cross_entropy(x, y, s) if kind == "cross-entropy" else dice_loss(x, y, s, kind == "squared")
                )
        return float(np.mean(values))

    rng = np.random.default_rng(0)
    for step in (rng.normal(size=warped.shape), fixed - warped):
        slope = (direct(warped + 1e-4 * step) - direct(warped - 1e-4 * step)) / 2e-4
        assert float((gradient.double().numpy() * step).sum()) == pytest.approx(slope, rel=2e-3, abs=1e-7)


@pytest.mark.parametrize("sigma", PAPER_SIGMAS)
def test_cross_entropy_equals_scipy_and_numpy(sigma: float) -> None:
    warped, fixed = labels()
    pairs = zip(warped.reshape(-1, *SHAPE), fixed.reshape(-1, *SHAPE), strict=True)
    expected = np.mean([cross_entropy(a, b, sigma) for a, b in pairs])
    loss = MultiScaleCrossEntropy([sigma], SPACING)(torch.from_numpy(warped).float(), torch.from_numpy(fixed))
    assert float(loss) == pytest.approx(expected, rel=5e-4)  # 1 - 1e-6 is rounded in float32


@pytest.mark.parametrize("loss", [MultiScaleDice, MultiScaleCrossEntropy])
def test_losses_are_float32_under_autocast(loss: type) -> None:
    warped, fixed = (torch.from_numpy(x).float() for x in labels())
    exact = loss(spacing=SPACING)(warped, fixed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(spacing=SPACING)(warped, fixed)
    assert value.dtype == torch.float32
    assert float(value) == float(exact)
    assert loss(spacing=SPACING)(warped.bfloat16(), fixed.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("loss", [MultiScaleDice, MultiScaleCrossEntropy])
def test_an_empty_label_gives_a_finite_loss_and_gradient(loss: type) -> None:
    warped = torch.zeros(1, 1, *SHAPE, requires_grad=True)
    value = loss(spacing=SPACING)(warped, torch.from_numpy(ball(SHAPE, (11, 9, 7), 3))[None, None])
    value.backward()
    assert bool(value.isfinite())
    assert warped.grad is not None
    assert bool(warped.grad.isfinite().all())


@pytest.mark.parametrize("loss", [MultiScaleDice, MultiScaleCrossEntropy])
@pytest.mark.parametrize("arguments", [{"sigmas": []}, {"sigmas": [-1]}, {"spacing": (1, 1)}, {"spacing": (1, 0, 1)}])
def test_scales_and_spacing_are_checked(loss: type, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="mm"):
        loss(**arguments)
