"""Signed distance maps against ITK and against the analytic distance to a ball."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import from_sitk, make_affine, to_sitk
from monai.data import MetaTensor
from regzoo.errors import RegZooError
from regzoo.spatial.distance import signed_distance
from regzoo.spatial.volumes import FILE
from regzoo.transforms import SignedDistanced
from scipy.ndimage import gaussian_filter

SHAPE = (23, 19, 17)
SPACING = (0.7, 1.1, 2.3)


def itk_distance(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """The signed Maurer map: outside positive, not squared, in mm."""
    image = to_sitk(mask.astype(np.uint8), np.diag([*spacing, 1.0]))
    return from_sitk(sitk.SignedMaurerDistanceMap(image, False, False, True))


def blob(seed: int, margin: int) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), (3, 2, 1))
    mask = noise > np.quantile(noise, 0.7)
    inner = np.zeros(SHAPE, dtype=bool)
    inner[tuple(slice(margin, n - margin) for n in SHAPE)] = True
    return mask & inner


def at_the_border() -> np.ndarray:
    """An ellipsoid cut by three faces of the image, one of them on the far side."""
    x, y, z = np.indices(SHAPE)
    return ((x - 2) / 8) ** 2 + ((y - 16) / 7) ** 2 + ((z - 1) / 5) ** 2 <= 1


def one_voxel() -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[4, 15, 0] = True
    return mask


@pytest.mark.parametrize(
    "mask",
    [*(blob(seed, margin=2) for seed in range(3)), blob(3, margin=0), at_the_border(), ~at_the_border(), one_voxel()],
    ids=["blob 0", "blob 1", "blob 2", "blob cut off", "cut off", "hole", "voxel"],
)
def test_equals_itk(mask: np.ndarray) -> None:
    found = signed_distance(mask, SPACING)
    assert found.dtype == np.float32
    # Asked for is half a voxel.
    np.testing.assert_allclose(found, itk_distance(mask, SPACING), atol=1e-4)


def test_takes_tensors() -> None:
    mask = blob(0, margin=1)
    expected = signed_distance(mask, SPACING)
    for tensor in (torch.from_numpy(mask), MetaTensor(torch.from_numpy(mask).float())):
        np.testing.assert_array_equal(signed_distance(tensor, SPACING), expected)


def test_of_a_full_mask_the_edge_of_the_image_is_the_boundary() -> None:
    found = signed_distance(np.ones((5, 7, 9)), (1, 1, 0.5))
    x, y, z = np.indices((5, 7, 9))
    to_the_edge = np.min([x, 4 - x, y, 6 - y, 0.5 * z, 0.5 * (8 - z)], axis=0)
    np.testing.assert_allclose(found, -to_the_edge)


@pytest.mark.parametrize("mask", [np.zeros(SHAPE), np.ones((1, *SHAPE))])
def test_masks_without_a_boundary_are_refused(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"empty|shape"):
        signed_distance(mask, SPACING)


COARSE = (14, 12, 10)
VOXEL = (3.0, 3.5, 4.0)
#: Off the lattice, so that nothing is symmetric by chance, mm from the first voxel.
CENTER = np.array([19.3, 18.1, 16.7])


def to_ball(radius: float) -> np.ndarray:
    """Analytic signed distance of every voxel centre to a ball's surface, mm."""
    points = np.indices(COARSE).transpose(1, 2, 3, 0) * VOXEL
    return np.linalg.norm(points - CENTER, axis=-1) - radius


def soft_ball(radius: float, fine: int = 8) -> np.ndarray:
    """The share of every voxel that lies in the ball."""
    offsets = (np.arange(fine) + 0.5) / fine - 0.5
    axes = [((np.arange(n)[:, None] + offsets).ravel() * s) for n, s in zip(COARSE, VOXEL, strict=True)]
    squares = [(axis - c) ** 2 for axis, c in zip(axes, CENTER, strict=True)]
    inside = squares[0][:, None, None] + squares[1][:, None] + squares[2] <= radius**2
    blocks = inside.reshape(COARSE[0], fine, COARSE[1], fine, COARSE[2], fine)
    return blocks.mean((1, 3, 5), dtype=np.float32)


def item(fixed: np.ndarray, moving: np.ndarray) -> dict[str, Any]:
    affine = torch.from_numpy(make_affine(COARSE, VOXEL, (20, -35, 10), (0, 1, 2), (1, -1, 1), (5, 6, 7)))
    labels = {"fixed_label": fixed, "moving_label": moving}
    return {"case": "A"} | {
        key: MetaTensor(torch.from_numpy(np.stack([label, 1 - label])), affine=affine, meta={FILE: f"{key}.nii.gz"})
        for key, label in labels.items()
    }


def test_maps_of_the_gland_on_the_grid_of_the_labels() -> None:
    given = item(soft_ball(11), soft_ball(14))
    before = {key: given[key].clone() for key in ("fixed_label", "moving_label")}
    out = SignedDistanced()(given)
    for side, radius in (("fixed", 11), ("moving", 14)):
        found = out[f"{side}_distance"]
        assert isinstance(found, MetaTensor)
        assert found.shape == (1, *COARSE)
        assert found.dtype == torch.float32
        assert torch.equal(found.affine, out[f"{side}_label"].affine)
        assert torch.equal(out[f"{side}_label"], before[f"{side}_label"])
        expected = itk_distance(soft_ball(radius) >= 0.5, VOXEL)  # the affine is oblique, its spacing is not
        np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-4)
    again = SignedDistanced()(given)
    assert torch.equal(again["fixed_distance"], out["fixed_distance"])


def test_supersampling_comes_closer_to_the_ball() -> None:
    radius = 11.4
    label = soft_ball(radius)
    errors = {}
    for k in (1, 3, 5):
        found = SignedDistanced(supersampling=k)(item(label, label))["fixed_distance"][0].numpy()
        errors[k] = np.abs(found - to_ball(radius)).mean()
    # A voxel's half, 1.7 mm, is how far the boundary voxels lie within the surface.
    assert 0.8 < errors[1] < 2.5
    assert errors[3] < 0.5 * errors[1]
    assert errors[5] < 0.75 * errors[3]


@pytest.mark.parametrize("k", [3, 5])
def test_supersampling_samples_at_the_voxel_centres(k: int) -> None:
    # A shift by part of a voxel would show when the image is turned round.
    label = soft_ball(9)
    turned = np.ascontiguousarray(label[::-1, ::-1, ::-1])
    out = SignedDistanced(supersampling=k)(item(label, turned))
    difference = out["moving_distance"][0].flip(0, 1, 2) - out["fixed_distance"][0]
    # Where a fine voxel is one half but for rounding, the two may disagree on it.
    assert float(difference.abs().mean()) < 1e-2
    assert float((difference.abs() > 1e-4).float().mean()) < 0.03


@pytest.mark.parametrize("k", [1, 3])
def test_a_gland_smaller_than_a_voxel_is_kept(k: int) -> None:
    small = np.zeros(COARSE, np.float32)
    small[6, 5, 4], small[7, 5, 4] = 0.4, 0.1
    out = SignedDistanced(supersampling=k)(item(small, soft_ball(9)))
    found = out["fixed_distance"][0].numpy()
    away = np.linalg.norm((np.indices(COARSE).transpose(1, 2, 3, 0) - (6, 5, 4)) * VOXEL, axis=-1)
    assert found[6, 5, 4] <= 0
    assert (found > 0).sum() == found.size - 1
    np.testing.assert_allclose(found, away, atol=np.linalg.norm(VOXEL) / 2 if k > 1 else 1e-4)


@pytest.mark.parametrize("side", ["fixed", "moving"])
@pytest.mark.parametrize("trace", [0.0, 0.05])
def test_a_case_without_gland_is_named(side: str, trace: float) -> None:
    given = item(soft_ball(9), soft_ball(9))
    given[f"{side}_label"][0] = 0
    given[f"{side}_label"][0, 3, 3, 3] = trace
    with pytest.raises(RegZooError, match=rf"^{side}_label\.nii\.gz: holds no gland") as error:
        SignedDistanced()(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("k", [0, 2, -1])
def test_supersampling_is_odd(k: int) -> None:
    with pytest.raises(RegZooError, match="supersampling"):
        SignedDistanced(supersampling=k)
