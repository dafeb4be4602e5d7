"""MIND-SSC voxel by voxel from the papers' formulas, gradients against finite differences, and behaviour."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers import smooth_ddf, smooth_noise
from regzoo.errors import RegZooError
from regzoo.losses import ImageSimilarity, MindSimilarity, mind_ssc, windows
from scipy.ndimage import map_coordinates

SHAPE = (9, 8, 10)


def image(seed: int, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    return torch.from_numpy(smooth_noise(shape, 1.2, seed, 1.0))[None, None].double()


def direct(
    volume: np.ndarray, radius: int, dilation: int, eps: float = 1e-4, weights: np.ndarray | None = None
) -> np.ndarray:
    """(12, X, Y, Z), voxel by voxel and patch by patch; NaN where a pair of patches has no voxel that counts."""
    neighbours = [sign * dilation * np.eye(3, dtype=int)[axis] for axis in range(3) for sign in (1, -1)]
    pairs = [(a, b) for a, b in itertools.combinations(neighbours, 2) if (a * b == 0).all()]
    assert len(pairs) == 12
    weights = np.ones(volume.shape) if weights is None else weights
    mean = (volume * weights).sum() / weights.sum()
    floor = eps * ((volume - mean) ** 2 * weights).sum() / weights.sum()
    last = np.array(volume.shape) - 1
    patch = list(itertools.product(range(-radius, radius + 1), repeat=3))
    out = np.full((12, *volume.shape), np.nan)
    for x in np.ndindex(*volume.shape):
        distances = []
        for a, b in pairs:
            total = mass = 0.0
            for p in patch:
                here, there = (tuple(np.clip(np.add(x, p) + shift, 0, last)) for shift in (a, b))
                weight = weights[here] * weights[there]
                total, mass = total + weight * (volume[here] - volume[there]) ** 2, mass + weight
            distances.append(total / mass if mass else np.nan)
        d = np.array(distances)
        # The normaliser n of the paper makes the largest entry 1.
        out[(slice(None), *x)] = np.exp(-(d - d.min()) / max(d.mean(), floor))
    return out


@pytest.mark.parametrize(("radius", "dilation"), [(1, 1), (2, 2), (0, 2)])
def test_descriptors_are_those_of_the_papers(radius: int, dilation: int) -> None:
    volume = image(1, (5, 4, 6))
    volume[..., 3:] = 0.4  # flat, where V is at its floor
    expected = direct(volume[0, 0].numpy(), radius, dilation)
    found = mind_ssc(volume, radius, dilation)
    assert found.shape == (1, 12, 5, 4, 6)
    np.testing.assert_allclose(np.sort(found[0], 0), np.sort(expected, 0), atol=1e-9)
    # The documented order: (+X, +Y), (−X, −Y), (+X, −Y), (−X, +Y), and so on.
    order = [0, 5, 1, 4, 2, 7, 3, 6, 8, 11, 9, 10]
    np.testing.assert_allclose(found[0], expected[order], atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
def test_loss_is_the_mean_squared_difference(masked: bool) -> None:
    shape = (5, 4, 6)
    warped, fixed = torch.cat([image(1, shape), image(2, shape)]), torch.cat([image(3, shape), image(4, shape)])
    mask = torch.from_numpy(smooth_noise((2, *shape), 1.2, 7, 1.0))[:, None].double()
    mask = torch.where(mask > 0.45, mask, 0)
    expected = []
    for w, f, m in zip(warped[:, 0].numpy(), fixed[:, 0].numpy(), mask[:, 0].numpy(), strict=True):
        weights = m if masked else None
        squares = ((direct(w, 1, 2, weights=weights) - direct(f, 1, 2, weights=weights)) ** 2).mean(0)
        weights = np.where(np.isnan(squares), 0, m if masked else 1)
        assert 0 < weights.astype(bool).sum() < weights.size or not masked
        expected.append((np.nan_to_num(squares) * weights).sum() / weights.sum())
    loss = MindSimilarity(radius=1, dilation=2)
    assert float(loss(warped, fixed, mask if masked else None)) == pytest.approx(np.mean(expected), abs=1e-9)
    assert float(loss(warped.float(), fixed.float(), mask if masked else None)) == pytest.approx(
        np.mean(expected), abs=1e-5
    )


def gradient(loss: object, warped: torch.Tensor, *rest: torch.Tensor | None) -> torch.Tensor:
    leaf = warped.clone().requires_grad_()
    loss(leaf, *rest).backward()  # type: ignore[operator]
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shape", "radius"), [(SHAPE, 1), (SHAPE, 0), ((6, 7, 1), 1)])
def test_gradients_against_finite_differences(masked: bool, shape: tuple[int, int, int], radius: int) -> None:
    warped, fixed = image(1, shape), image(2, shape)
    warped[..., :4, :4, :] = 0.5 + 1e-3 * warped[..., :4, :4, :]  # V at its floor
    mask = torch.from_numpy(smooth_noise(shape, 1.2, 7, 1.0))[None, None].double() if masked else None
    if mask is not None:
        mask = torch.where(mask > 0.4, mask, 0)
    prepared = MindSimilarity(radius, 2, eps=1e-2).prepare(fixed, mask)
    assert torch.autograd.gradcheck(prepared, warped.requires_grad_(), fast_mode=True, eps=1e-7, atol=1e-6)


def test_contrast_does_not_matter() -> None:
    warped, fixed = image(1), image(2)
    loss = MindSimilarity()
    expected = float(loss(warped, fixed))
    assert expected > 0.01
    for other in (1 - warped, 300 * warped - 1000, -0.01 * warped):
        assert float(loss(other, fixed)) == pytest.approx(expected, abs=1e-9)
        assert float(loss(other, warped)) == pytest.approx(0, abs=1e-12)


def test_leads_to_the_field_between_two_modalities() -> None:
    shape = (22, 20, 21)
    moving, ddf = smooth_noise(shape, 2.5, 3, 1.0), smooth_ddf(shape, 2.0)
    there = map_coordinates(moving, np.indices(shape) + ddf, order=1, mode="nearest")
    fixed = np.abs(there - np.median(there))  # dark and bright are both bright here
    assert abs(np.corrcoef(there.ravel(), fixed.ravel())[0, 1]) < 0.3
    targets = {
        key: torch.from_numpy(v)[None, None].float() for key, v in (("moving_image", moving), ("fixed_image", fixed))
    }
    term = ImageSimilarity(MindSimilarity(1, 1))
    right = torch.from_numpy(ddf)[None]
    start = torch.zeros_like(right).requires_grad_()
    value = term(start, targets)
    value.backward()
    assert start.grad is not None
    assert float(term(right, targets)) < 0.8 * value.item()
    assert float((start.grad * right).sum()) < 0


def test_the_border_is_not_an_edge() -> None:
    # An image that continues beyond the border as it ends there is described there as further in.
    volume = image(1)
    volume[..., :6] = volume[..., 5:6]
    described = mind_ssc(volume)
    torch.testing.assert_close(described[..., 0], described[..., 1], atol=1e-12, rtol=0)


def test_slabs_and_prepared_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    warped, fixed = image(1), image(2)
    mask = torch.from_numpy(smooth_noise(SHAPE, 1.2, 7, 1.0))[None, None].double()
    loss = MindSimilarity(1, 1)
    for weights in (None, mask):
        whole = float(loss(warped, fixed, weights)), gradient(loss, warped, fixed, weights)
        with monkeypatch.context() as patch:
            patch.setattr(windows, "SLAB", 1000)
            prepared = loss.prepare(fixed, weights)
            for other in (fixed, warped):
                value, slope = float(prepared(other)), gradient(prepared, other)
        assert value == pytest.approx(whole[0], abs=1e-12)
        np.testing.assert_allclose(slope, whole[1], atol=1e-12)


def test_nothing_outside_the_mask_matters() -> None:
    warped, fixed = image(1), image(2)
    mask = (torch.from_numpy(smooth_noise(SHAPE, 2, 3, 1.0)) > 0.45).double()[None, None]
    loss = MindSimilarity(1, 1)
    before = float(loss(warped, fixed, mask)), gradient(loss, warped, fixed, mask)
    changed = [torch.where(mask > 0, volume, 5 - 3 * volume.flip(2)) for volume in (warped, fixed)]
    for weights in (mask, 3.7 * mask):
        assert float(loss(*changed, weights)) == pytest.approx(before[0], abs=1e-12)
        np.testing.assert_allclose(gradient(loss, *changed, weights), before[1], atol=1e-12)
    assert float(before[1][mask == 0].abs().max()) == 0
    with pytest.raises(RegZooError, match="no voxel of the mask counts"):
        loss(warped, fixed, 0 * mask)
    with pytest.raises(RegZooError, match="neighbourhood"):
        loss(warped, fixed, torch.zeros_like(mask).index_fill_(2, torch.tensor([4]), 1) * torch.eye(8, 10))


def test_flat_images() -> None:
    texture = image(1)
    flat = torch.full_like(texture, 0.7)
    for warped, fixed in ((flat, texture), (texture, flat), (flat, flat), (0 * flat, 0 * flat)):
        assert 0 <= float(MindSimilarity()(warped.float(), fixed.float())) <= 1
        assert bool(gradient(MindSimilarity(), warped.float(), fixed.float()).isfinite().all())


def test_settings_that_cannot_be() -> None:
    for wrong in ({"radius": -1}, {"dilation": 0}, {"eps": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            MindSimilarity(**wrong)  # type: ignore[arg-type]
