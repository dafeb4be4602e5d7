"""Warping and sampling on voxel grids, against MONAI, SciPy, SimpleITK and plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from helpers import ball, from_sitk, make_grid, smooth_ddf, smooth_noise, to_sitk
from monai.networks.blocks import Warp
from regzoo.spatial import Grid, compose, jacobian_determinant, resample, warp
from scipy.ndimage import center_of_mass, map_coordinates

SHAPE = (19, 14, 17)
SCIPY_MODE = {"zeros": "grid-constant", "border": "nearest"}


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of PyTorch threads back after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pair(batch: int = 1, channels: int = 1, amplitude: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    image = np.stack([[smooth_noise(SHAPE, 1, 10 * b + c) for c in range(channels)] for b in range(batch)])
    return torch.from_numpy(image), torch.from_numpy(
        np.stack([smooth_ddf(SHAPE, amplitude, 3, b) for b in range(batch)])
    )


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("batch", [1, 2])
def test_warp_equals_scipy_and_monai(padding: str, batch: int) -> None:
    image, ddf = pair(batch, channels=2)
    warped = warp(image, ddf, padding=padding)
    assert warped.shape == image.shape
    for b in range(batch):
        points = np.indices(SHAPE) + ddf[b].numpy()
        for c in range(2):
            expected = map_coordinates(image[b, c].numpy(), points, order=1, mode=SCIPY_MODE[padding])
            np.testing.assert_allclose(warped[b, c].numpy(), expected, atol=2e-3)
    theirs = Warp(mode="bilinear", padding_mode=padding)(image, ddf)
    np.testing.assert_allclose(warped.numpy(), theirs.numpy(), atol=2e-3)


def test_nearest_warp_equals_scipy() -> None:
    image, ddf = pair()
    expected = map_coordinates(image[0, 0].numpy(), np.indices(SHAPE) + ddf[0].numpy(), order=0, mode="nearest")
    warped = warp(image, ddf, mode="nearest", padding="border")[0, 0].numpy()
    assert (warped != expected).mean() < 2e-3


def test_ddf_points_from_fixed_to_moving() -> None:
    fixed, moving = ball((24, 22, 20), (9, 12, 8), 4), ball((24, 22, 20), (14, 9, 10), 4)
    ddf = torch.tensor([5.0, -3.0, 2.0]).view(1, 3, 1, 1, 1).expand(1, 3, 24, 22, 20)
    warped = warp(torch.from_numpy(moving)[None, None], ddf)[0, 0].numpy()
    np.testing.assert_allclose(warped, fixed, atol=1e-5)
    np.testing.assert_allclose(center_of_mass(warped), (9, 12, 8), atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_sharing_the_work_among_threads_changes_nothing(count: int, padding: str, threads: None) -> None:
    image, ddf = pair(channels=2)
    weight = torch.rand(1, 2, *SHAPE)

    def plain(ddf: torch.Tensor) -> torch.Tensor:
        index = torch.from_numpy(np.indices(SHAPE)).float()
        half = (torch.tensor(SHAPE).float() - 1).view(3, 1, 1, 1) / 2
        grid = ((index + ddf) / half - 1).flip(1).permute(0, 2, 3, 4, 1)
        return F.grid_sample(image, grid, padding_mode=padding, align_corners=True)

    torch.set_num_threads(count)
    results = []
    for function in (plain, lambda field: warp(image, field, padding=padding)):
        leaf = ddf.clone().requires_grad_()
        value = function(leaf)
        (gradient,) = torch.autograd.grad((value * weight).sum(), leaf)
        results.append((value.detach().numpy(), gradient.numpy()))
    np.testing.assert_allclose(results[1][0], results[0][0], atol=2e-3)
    np.testing.assert_allclose(results[1][1], results[0][1], atol=5e-3)


def test_gradient_reaches_the_image() -> None:
    # Warping is linear in the image, so <warp(e), w> = <e, gradient> for any other image e.
    image, ddf = pair()
    weight, other = torch.rand(1, 1, *SHAPE), torch.rand(1, 1, *SHAPE)
    leaf = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((warp(leaf, ddf) * weight).sum(), leaf)
    assert float((gradient * other).sum()) == pytest.approx(float((warp(other, ddf) * weight).sum()), rel=1e-4)


def test_autocast_does_not_blur_positions() -> None:
    image, ddf = pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warped = warp(image, ddf)
    assert warped.dtype == torch.float32
    np.testing.assert_array_equal(warped.numpy(), warp(image, ddf).numpy())


def test_a_warp_after_inference_mode_can_be_trained() -> None:
    shape = (7, 6, 11)  # no other test uses it, so its coordinates are first made here
    with torch.inference_mode():
        warp(torch.rand(1, 1, *shape), torch.zeros(1, 3, *shape))
    ddf = torch.zeros(1, 3, *shape, requires_grad=True)
    warp(torch.rand(1, 1, *shape), ddf).sum().backward()
    assert ddf.grad is not None
    assert bool(ddf.grad.abs().sum() > 0)


def test_compose_equals_scipy() -> None:
    first, then = smooth_ddf(SHAPE, 4, 3, 1), smooth_ddf(SHAPE, 3, 3, 2)
    points = np.indices(SHAPE) + first
    expected = first + [map_coordinates(part, points, order=1, mode="nearest") for part in then]
    ours = compose(torch.from_numpy(first)[None], torch.from_numpy(then)[None])[0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_compose_is_one_warp_for_two() -> None:
    shape = (40, 36, 38)
    image = torch.from_numpy(smooth_noise(shape, 5, 0))[None, None]
    first, then = (torch.from_numpy(smooth_ddf(shape, 4, 6, seed))[None] for seed in (1, 2))
    both = warp(image, compose(first, then), padding="border")
    turns = warp(warp(image, then, padding="border"), first, padding="border")
    wrong = warp(warp(image, first, padding="border"), then, padding="border")
    inner = (..., *(slice(4, -4),) * 3)
    assert float((both - turns)[inner].abs().max()) < 0.6  # interpolated once or twice
    assert float((both - wrong)[inner].abs().max()) > 2


def test_jacobian_of_a_quadratic_field() -> None:
    x, y, z = np.indices(SHAPE).astype(float)
    u = np.stack([0.01 * x**2 + 0.1 * y, 0.02 * y * z, 0.015 * z**2 - 0.05 * x]).astype(np.float32)
    rows = [[1 + 0.02 * x, 0.1 + 0 * x, 0 * x], [0 * x, 1 + 0.02 * z, 0.02 * y], [-0.05 + 0 * x, 0 * x, 1 + 0.03 * z]]
    expected = np.linalg.det(np.array(rows).transpose(2, 3, 4, 0, 1))
    inner = (slice(1, -1),) * 3
    ours = jacobian_determinant(torch.from_numpy(u)[None])[0, 0].numpy()
    np.testing.assert_allclose(ours[inner], expected[inner], atol=2e-4)


def test_folds_are_negative() -> None:
    ddf = torch.zeros(1, 3, 8, 8, 8)
    ddf[:, 0] = -1.5 * torch.arange(8.0).view(-1, 1, 1)
    np.testing.assert_allclose(jacobian_determinant(ddf).numpy(), -0.5, atol=1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_resample_equals_simpleitk(mode: str) -> None:
    source = make_grid((21, 25, 17), (1.2, 0.9, 2.1), (15, -20, 35), (1, 0, 2), (1, -1, 1), (3, 4, 5))
    target = make_grid((19, 23, 20), (1.1, 1.3, 1), (-5, 12, 8), (2, 1, 0), (-1, 1, 1), (4, 3, 6))
    image = smooth_noise(source.shape, 1, 0)
    ours = resample(torch.from_numpy(image)[None], source, target, mode=mode)[0].numpy()
    interpolator = {"bilinear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor}[mode]
    frame = to_sitk(np.zeros(target.shape, np.float32), target.affine)
    theirs = from_sitk(sitk.Resample(to_sitk(image, source.affine), frame, sitk.Transform(), interpolator, 0.0))
    assert 0.3 < (theirs != 0).mean() < 1
    np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_bspline_resampling_equals_simpleitk() -> None:
    source = make_grid((27, 25, 23), (1.2, 0.9, 1.6), (15, -20, 35), (1, 0, 2), (1, -1, 1), (3, 4, 5))
    target = make_grid((19, 23, 21), (1.1, 1.3, 1), (-5, 12, 8), (2, 1, 0), (-1, 1, 1), (4, 3, 6))
    image = np.stack([smooth_noise(source.shape, 1, seed) for seed in (0, 1)])
    frame = to_sitk(np.zeros(target.shape, np.float32), target.affine)
    voxels = source.to_voxels(target.to_world(np.indices(target.shape).transpose(1, 2, 3, 0)))
    # What lies beyond the border is taken differently, and fades by a factor of four with every voxel.
    inner = ((voxels >= 5) & (voxels <= np.array(source.shape) - 6)).all(-1)
    assert inner.mean() > 0.2
    for padding in ("zeros", "border"):
        ours = resample(torch.from_numpy(image), source, target, mode="bspline", padding=padding)
        assert ours.dtype == torch.float32 and ours.shape == (2, *target.shape)
        for channel, volume in zip(ours.numpy(), image, strict=True):
            moving = to_sitk(volume, source.affine)
            theirs = from_sitk(sitk.Resample(moving, frame, sitk.Transform(), sitk.sitkBSpline, 0.0))
            assert np.abs(channel - theirs)[inner].max() < 0.05
            linear = from_sitk(sitk.Resample(moving, frame, sitk.Transform(), sitk.sitkLinear, 0.0))
            assert np.abs(channel - linear)[inner].max() > 1


def test_bspline_resampling_beyond_the_border() -> None:
    source, target = Grid((9, 9, 9), np.eye(4)), make_grid((9, 9, 9), center=(24, 4, 4))  # wholly outside
    image = torch.arange(1.0, 10).view(1, 9, 1, 1).expand(1, 9, 9, 9)
    np.testing.assert_allclose(resample(image, source, target, mode="bspline").numpy(), 0, atol=1e-4)
    border = resample(image, source, target, mode="bspline", padding="border").numpy()
    np.testing.assert_allclose(border, 9, atol=1e-4)
    same = resample(image, source, source, mode="bspline")
    np.testing.assert_allclose(same.numpy(), image.numpy(), atol=1e-4)  # it goes through the voxels' values


def test_anti_aliasing_removes_what_the_coarse_grid_cannot_show() -> None:
    source = Grid((33, 33, 33), np.eye(4))
    target = source.network_grid((4, 1, 1), (8, 33, 33))
    stripes = torch.zeros(1, 33, 33, 33)
    stripes[:, ::2] = 100.0  # a period of two voxels along x alone
    rough = resample(stripes, source, target)
    smooth = resample(stripes, source, target, anti_alias=True)
    assert float(rough.std()) > 20 or float((rough - 50).abs().max()) > 45
    np.testing.assert_allclose(smooth[:, 1:-1].numpy(), 50, atol=2)
    constant = resample(torch.full((1, 33, 33, 33), 7.0), source, target, anti_alias=True, padding="border")
    np.testing.assert_allclose(constant.numpy(), 7, atol=1e-4)
