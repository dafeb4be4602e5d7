"""Filtering by matrix products, against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from regzoo.filters import gaussian_filter, gaussian_gram, gaussian_mass, gaussian_matrix, separable_filter

VOLUME = np.random.default_rng(0).random((2, 1, 13, 9, 11))
#: per axis, voxels; the last reach far beyond the volume
SIGMAS = [(1.0, 1.0, 1.0), (0.4, 2.5, 0.0), (0.0, 0.0, 3.0), (8.0, 4.0, 20.0)]


def scipy_filter(volume: np.ndarray, sigma: tuple[float, ...], mode: str = "constant") -> np.ndarray:
    """The same of SciPy, without truncation to speak of."""
    for axis, s in enumerate(sigma):
        if s > 0:
            volume = scipy.ndimage.gaussian_filter1d(volume, s, axis + volume.ndim - 3, mode=mode, truncate=9)
    return volume


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gaussian_equals_scipy_up_to_the_border(sigma: tuple[float, ...]) -> None:
    ours = gaussian_filter(torch.from_numpy(VOLUME), sigma)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), scipy_filter(VOLUME, sigma), atol=1e-6)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_renormalised_gaussian_is_a_weighted_mean(sigma: tuple[float, ...]) -> None:
    ours = gaussian_filter(torch.from_numpy(VOLUME), sigma, border="renormalise")
    expected = scipy_filter(VOLUME, sigma) / scipy_filter(np.ones_like(VOLUME), sigma)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gram_and_mass_give_what_filtering_both_would(sigma: tuple[float, ...]) -> None:
    a, b = VOLUME[0, 0], np.random.default_rng(1).random(VOLUME.shape[2:])
    filtered_a, filtered_b = scipy_filter(a, sigma), scipy_filter(b, sigma)
    grams = [gaussian_gram(n, s) for n, s in zip(a.shape, sigma, strict=True)]
    twice = separable_filter(torch.from_numpy(b)[None, None], grams)[0, 0].double().numpy()
    assert (a * twice).sum() == pytest.approx((filtered_a * filtered_b).sum(), rel=1e-5)
    x, y, z = (gaussian_mass(n, s).double().numpy() for n, s in zip(a.shape, sigma, strict=True))
    assert np.einsum("xyz,x,y,z", a, x, y, z) == pytest.approx(filtered_a.sum(), rel=1e-5)


def test_filter_is_its_own_adjoint_and_differentiable() -> None:
    volume, weight = torch.rand(1, 2, 7, 8, 9, requires_grad=True), torch.rand(1, 2, 7, 8, 9)
    (gradient,) = torch.autograd.grad((gaussian_filter(volume, (2, 1, 3)) * weight).sum(), volume)
    np.testing.assert_allclose(gradient[0].numpy(), scipy_filter(weight[0].numpy(), (2, 1, 3)), atol=1e-6)


def test_matrix_may_change_the_size_of_an_axis() -> None:
    volume = torch.rand(1, 1, 4, 5, 6)
    matrices = [torch.rand(2, 4), None, torch.rand(3, 6)]
    expected = np.einsum("bcxyz,ix,kz->bciyk", volume.numpy(), matrices[0].numpy(), matrices[2].numpy())
    np.testing.assert_allclose(separable_filter(volume, matrices).numpy(), expected, atol=1e-5)


def test_scale_zero_is_the_identity() -> None:
    np.testing.assert_array_equal(gaussian_matrix(5, 0).numpy(), np.eye(5))


def test_stays_exact_under_autocast_and_trainable_after_inference_mode() -> None:
    volume = torch.rand(1, 1, 6, 10, 14)
    with torch.inference_mode():  # the matrices are made and cached here
        expected = gaussian_filter(volume, (1.7, 1.7, 1.7)).numpy()
    volume.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        filtered = gaussian_filter(volume, (1.7, 1.7, 1.7))
    assert filtered.dtype == torch.float32
    np.testing.assert_array_equal(filtered.detach().numpy(), expected)
    filtered.sum().backward()
    assert volume.grad is not None
