"""Similarity of intensities against SciPy, NumPy and MONAI, gradients against finite differences and autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import monai.losses
import numpy as np
import pytest
import torch
from helpers import smooth_ddf, smooth_noise
from regzoo.errors import RegZooError
from regzoo.losses import (
    ImageSimilarity,
    LocalNormalizedCrossCorrelation,
    NormalizedCrossCorrelation,
    RegistrationLoss,
    StructuralSimilarity,
    windows,
)
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import nn

SHAPE = (18, 14, 16)
Loss = Callable[..., torch.Tensor]


def images(shape: tuple[int, int, int] = SHAPE, batch: int = 2, channels: int = 2) -> list[torch.Tensor]:
    """Two textures in [0, 1] that have something in common, (B, C, X, Y, Z) float32."""
    count = batch * channels
    a = np.stack([smooth_noise(shape, 1.2, seed, 1.0) for seed in range(count)])
    b = np.stack([smooth_noise(shape, 1.2, seed, 1.0) for seed in range(10, 10 + count)])
    return [torch.from_numpy(v.reshape(batch, channels, *shape)) for v in (0.6 * a + 0.4 * b, a)]


def gradient(loss: Loss, warped: torch.Tensor, *fixed: torch.Tensor) -> torch.Tensor:
    leaf = warped.clone().requires_grad_()
    loss(leaf, *fixed).backward()
    assert leaf.grad is not None
    return leaf.grad


def all_losses() -> list[nn.Module]:
    return [
        NormalizedCrossCorrelation(),
        LocalNormalizedCrossCorrelation(5),
        LocalNormalizedCrossCorrelation((5, 3, 7)),
        StructuralSimilarity(5),
        StructuralSimilarity((5, 7, 3), sigma=(1.0, 1.5, 0.8)),
    ]


LOSSES = pytest.mark.parametrize(
    "loss", all_losses(), ids=lambda loss: f"{type(loss).__name__}-{loss.extra_repr()}"[:60]
)


def test_global_correlation_is_numpys() -> None:
    warped, fixed = images()
    coefficients = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1]
        for a, b in zip(warped.flatten(0, 1).double().numpy(), fixed.flatten(0, 1).double().numpy(), strict=True)
    ]
    assert float(NormalizedCrossCorrelation()(warped, fixed)) == pytest.approx(1 - np.mean(coefficients), abs=1e-5)


@pytest.mark.parametrize(("slope", "expected"), [(0.3, 0.0), (7.0, 0.0), (-2.0, 2.0)])
def test_global_correlation_of_linear_relations(slope: float, expected: float) -> None:
    fixed = images()[1]
    assert float(NormalizedCrossCorrelation()(slope * fixed - 5, fixed)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("window", [3, 9, 13])
def test_local_correlation_is_monais(window: int) -> None:
    warped, fixed = images()
    theirs = monai.losses.LocalNormalizedCrossCorrelationLoss(3, window)
    ours = LocalNormalizedCrossCorrelation(window, eps=1e-5 / float(theirs.kernel_vol))
    assert float(ours(warped, fixed)) == pytest.approx(1 + float(theirs(warped, fixed)), abs=1e-4)
    expected = gradient(theirs, warped, fixed)
    np.testing.assert_allclose(gradient(ours, warped, fixed), expected, atol=2e-3 * float(expected.abs().max()))


def test_local_correlation_ignores_the_slope() -> None:
    fixed = torch.zeros(1, 1, *SHAPE)
    fixed[..., 4:-4, 4:-4, 4:-4] = images()[1][:1, :1, 4:-4, 4:-4, 4:-4]
    # Windows without contrast count as unrelated.
    contrast = float(torch.nn.functional.max_pool3d((fixed != 0).float(), 3, 1, 1).mean())
    for slope in (2.0, -0.5):
        assert float(LocalNormalizedCrossCorrelation(3, eps=1e-9)(slope * fixed, fixed)) == pytest.approx(
            1 - contrast, abs=0.01
        )


def direct_ssim(a: np.ndarray, b: np.ndarray, sigma: float, window: int, data_range: float) -> float:
    """As scikit-image does it: filtered with reflection by SciPy, half a window cropped from the index."""

    def blur(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, sigma, mode="reflect", radius=window // 2)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    index = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    crop = slice(window // 2, -(window // 2))
    return float(index[crop, crop, crop].mean())


@pytest.mark.parametrize(("window", "sigma"), [(11, 1.5), (5, 0.8), (13, 2.5)])
@pytest.mark.parametrize("data_range", [1.0, 80.0])
def test_structural_similarity_is_scipys_and_monais(window: int, sigma: float, data_range: float) -> None:
    warped, fixed = (data_range * image for image in images())
    pairs = zip(warped.flatten(0, 1).double().numpy(), fixed.flatten(0, 1).double().numpy(), strict=True)
    expected = 1 - np.mean([direct_ssim(a, b, sigma, window, data_range) for a, b in pairs])
    ours = StructuralSimilarity(window, sigma, data_range)
    assert float(ours(warped, fixed)) == pytest.approx(expected, abs=1e-5)
    theirs = monai.losses.SSIMLoss(3, data_range, win_size=window, kernel_sigma=sigma)
    assert float(ours(warped, fixed)) == pytest.approx(float(theirs(warped, fixed)), abs=1e-4)
    if window == 11:
        expected_gradient = gradient(theirs, warped, fixed)
        np.testing.assert_allclose(
            gradient(ours, warped, fixed), expected_gradient, atol=1e-3 * float(expected_gradient.abs().max())
        )


@LOSSES
def test_gradient_against_finite_differences(loss: nn.Module) -> None:
    warped, fixed = (image.double() for image in images((8, 7, 9), 1, 2))
    assert torch.autograd.gradcheck(lambda x: loss(x, fixed), warped.requires_grad_(), fast_mode=True)
    # Where the window's variance is at its floor, too.
    flat = (0.5 + 1e-6 * (warped.detach() - 0.5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, fixed), flat, eps=1e-8, atol=1e-4, fast_mode=True)


@LOSSES
def test_slabs_equal_the_whole_and_a_loss_is_prepared_once(loss: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    warped, fixed = (image.double() for image in images())
    mask = torch.from_numpy(np.stack([smooth_noise(SHAPE, 2, seed, 1.0) for seed in (1, 2)]))[:, None]
    for weights in (None, mask):
        whole = loss(warped, fixed, weights), gradient(partial(loss, mask=weights), warped, fixed)
        with monkeypatch.context() as patch:
            patch.setattr(windows, "SLAB", 500)
            prepared = loss.prepare(fixed, weights)
            for other in (fixed, warped):  # the second call finds the memory of the first
                value, slope = prepared(other), gradient(prepared, other)
        assert float(value) == pytest.approx(float(whole[0]), abs=1e-12)
        np.testing.assert_allclose(slope, whole[1], atol=1e-12)


def direct_correlations(a: np.ndarray, b: np.ndarray, weights: np.ndarray, width: int, eps: float) -> float:
    """Voxel by voxel: np.cov over the voxels of the window that count, and the weighted mean."""
    values, reach = np.zeros(a.shape), width // 2
    for x, y, z in np.argwhere(weights > 0):
        box = tuple(slice(max(n - reach, 0), n + reach + 1) for n in (x, y, z))
        pair = np.stack([a[box].ravel(), b[box].ravel()])
        (var_a, cov), (_, var_b) = np.cov(pair, aweights=weights[box].ravel(), ddof=0)
        values[x, y, z] = cov**2 / (max(var_a, eps) * max(var_b, eps))
    return 1 - float((values * weights).sum() / weights.sum())


@pytest.mark.parametrize("binary", [True, False])
def test_masked_correlations_are_numpys(binary: bool) -> None:
    warped, fixed = images((9, 8, 10), 1, 1)
    weights = smooth_noise((9, 8, 10), 1.5, 5, 1.0)
    weights = np.where(weights > 0.5, 1.0 if binary else weights, 0)
    a, b = warped[0, 0].double().numpy(), fixed[0, 0].double().numpy()
    mask = torch.from_numpy(weights)[None, None]
    ours = LocalNormalizedCrossCorrelation(5, eps=1e-3)(warped, fixed, mask)
    assert float(ours) == pytest.approx(direct_correlations(a, b, weights, 5, 1e-3), abs=1e-5)
    covariance = np.cov(np.stack([a.ravel(), b.ravel()]), aweights=weights.ravel(), ddof=0)
    coefficient = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert float(NormalizedCrossCorrelation()(warped, fixed, mask)) == pytest.approx(1 - coefficient, abs=1e-5)


@LOSSES
def test_nothing_outside_the_mask_matters(loss: nn.Module) -> None:
    warped, fixed = (image.double() for image in images())
    mask = (torch.from_numpy(smooth_noise(SHAPE, 2, 3, 1.0)) > 0.45).double().expand(2, 1, *SHAPE)
    before = loss(warped, fixed, mask), gradient(partial(loss, mask=mask), warped, fixed)
    changed = [torch.where(mask > 0, image, 5 - 3 * image.flip(2)) for image in (warped, fixed)]
    for weights in (mask, 3.7 * mask):
        assert float(loss(*changed, weights)) == pytest.approx(float(before[0]), abs=1e-12)
        after = gradient(partial(loss, mask=weights), *changed)
        np.testing.assert_allclose(after, before[1], atol=1e-10)
    assert float(before[1][mask.expand_as(warped) == 0].abs().max()) == 0
    assert float(loss(warped, fixed)) != pytest.approx(float(before[0]), abs=1e-4)


@LOSSES
def test_mask_gradient_against_finite_differences(loss: nn.Module) -> None:
    warped, fixed = (image.double() for image in images((8, 7, 9), 1, 2))
    mask = torch.from_numpy(smooth_noise((8, 7, 9), 1.5, 5, 1.0))[None, None]
    prepared = loss.prepare(fixed, torch.where(mask > 0.4, mask, 0))
    assert torch.autograd.gradcheck(prepared, warped.requires_grad_(), fast_mode=True)


@LOSSES
def test_masks_that_are_refused(loss: nn.Module) -> None:
    warped, fixed = images(batch=2)
    mask = torch.ones(2, 1, *SHAPE)
    mask[1] = 0
    for wrong in (mask, mask - 0.1, mask * math.nan):
        with pytest.raises(RegZooError, match="mask"):
            loss(warped, fixed, wrong)
    with pytest.raises(ValueError, match="one channel"):
        loss(warped, fixed, torch.ones_like(fixed))


@LOSSES
def test_flat_images(loss: nn.Module) -> None:
    texture = images()[1]
    flat = torch.full_like(texture, 0.7)
    for warped, fixed in ((flat, texture), (texture, flat), (flat, flat), (0 * flat, 0 * flat)):
        value = float(loss(warped, fixed))
        assert math.isfinite(value) and -1e-4 <= value <= 2
        assert bool(gradient(loss, warped, fixed).isfinite().all())


def test_saturated_areas_do_not_count_as_a_match() -> None:
    # What varies there are rounding errors, which a plain quotient would take for anything.
    generator = torch.Generator().manual_seed(0)
    a, b = (0.7 + 1e-7 * torch.randn(1, 1, *SHAPE, generator=generator) for _ in range(2))
    assert float(NormalizedCrossCorrelation()(a, b)) == pytest.approx(1, abs=1e-3)
    # At the border the local windows see the images end, which is a match.
    inner = math.prod(n - 4 for n in SHAPE) / math.prod(SHAPE)
    assert float(LocalNormalizedCrossCorrelation(5)(a, b)) == pytest.approx(inner, abs=1e-3)


@LOSSES
def test_batch_is_the_mean_of_its_images(loss: nn.Module) -> None:
    warped, fixed = images()
    single = [
        float(loss(warped[b : b + 1, c : c + 1], fixed[b : b + 1, c : c + 1])) for b in range(2) for c in range(2)
    ]
    assert float(loss(warped, fixed)) == pytest.approx(np.mean(single), abs=1e-5)


@LOSSES
def test_float32_under_autocast_and_without_gradient(loss: nn.Module) -> None:
    warped, fixed = images(batch=1)
    expected = loss(warped, fixed)
    assert expected.dtype == torch.float32 and not expected.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(warped, fixed), expected)
    assert torch.equal(loss(warped.requires_grad_(), fixed).detach(), expected)
    scaled = gradient(lambda a, b: 3 * loss(a, b), warped.detach(), fixed)
    torch.testing.assert_close(scaled, 3 * gradient(loss, warped.detach(), fixed))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LocalNormalizedCrossCorrelation(4),
        lambda: LocalNormalizedCrossCorrelation((3, 3)),
        lambda: LocalNormalizedCrossCorrelation(eps=0),
        lambda: StructuralSimilarity(sigma=0),
        lambda: StructuralSimilarity(data_range=-1),
        lambda: NormalizedCrossCorrelation(eps=float("nan")),
    ],
)
def test_settings_that_cannot_be(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()


def test_images_that_do_not_fit() -> None:
    a = torch.rand(1, 1, 20, 20, 8)
    with pytest.raises(RegZooError, match=r"window of \[11, 11, 11\] voxels does not fit .* \[20, 20, 8\]"):
        StructuralSimilarity()(a, a)
    for loss in all_losses():
        with pytest.raises(ValueError, match="same shape"):
            loss(a, a[..., :7])


@LOSSES
def test_term_compares_the_warped_image(loss: nn.Module) -> None:
    shape = (22, 20, 21)
    moving, ddf = smooth_noise(shape, 2.5, 3, 1.0), smooth_ddf(shape, 2.0)
    places = np.indices(shape) + ddf
    fixed = map_coordinates(moving, places, order=1, mode="nearest")
    targets = {key: torch.from_numpy(v)[None, None] for key, v in (("moving_image", moving), ("fixed_image", fixed))}
    term = RegistrationLoss({"image": ImageSimilarity(loss)})
    there = torch.from_numpy(ddf)[None].requires_grad_()
    # Also at the border, beyond which the image goes on as it ends there.
    assert float(term(there, targets).detach()) == pytest.approx(0, abs=2e-3)
    start = torch.zeros_like(there).requires_grad_()
    value = term(start, targets)
    value.backward()
    before = float(value.detach())
    assert before > 0.02 and start.grad is not None
    downhill = -start.grad / start.grad.abs().max()
    assert float(term(0.2 * downhill, targets)) < before
    assert float((downhill * torch.from_numpy(ddf)).sum()) > 0
