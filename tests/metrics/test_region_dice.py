"""Dice of the gland's thirds: counted by hand, on grids that lie any way, and against an integral over the world."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from helpers import make_affine
from monai.data import MetaTensor
from regzoo.errors import RegZooError
from regzoo.metrics import LabelDice, RegionDice
from scipy.ndimage import gaussian_filter

SHAPE = (12, 10, 18)
SPACING = (0.7, 1.1, 2.3)
REGIONS = ("base", "mid", "apex")


def label(mask: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(mask[None].astype(np.float32)), affine=torch.from_numpy(affine))


def values(warped: np.ndarray, fixed: np.ndarray, affine: np.ndarray | None = None) -> dict[str, float]:
    affine = make_affine(fixed.shape, SPACING) if affine is None else affine
    found = {}
    for region in REGIONS:
        metric = RegionDice(region)
        metric([label(warped, affine)], [label(fixed, affine)])
        assert metric.get_buffer().shape == (1, 1)
        found[region] = float(metric.aggregate())
    return found


def boxes() -> tuple[np.ndarray, np.ndarray]:
    """Fixed: 4 voxels wide in slices 4 to 12. Warped: all 4 of them at the apex, 2 in the middle, 1 at the base."""
    fixed, warped = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    fixed[3:7, 2:8, 4:13] = True
    warped[3:7, 2:8, 4:7] = True
    warped[5:9, 2:8, 7:10] = True
    warped[6:10, 2:8, 10:13] = True
    return warped, fixed


EXPECTED = {"apex": 1.0, "mid": 2 / 4, "base": 1 / 4}


def test_boxes() -> None:
    assert values(*boxes()) == pytest.approx(EXPECTED)


def test_what_reaches_out_of_the_fixed_extent_counts_at_its_end() -> None:
    warped, fixed = boxes()
    warped = fixed.copy()
    warped[3:7, 2:8, 13:18] = True  # five slices more at the base
    warped[3:7, 2:8, 3] = True  # one more at the apex
    assert values(warped, fixed) == pytest.approx({"base": 2 * 3 / (3 + 8), "mid": 1, "apex": 2 * 3 / (3 + 4)})


@pytest.mark.parametrize(("slices", "thirds"), [(9, (3, 3, 3)), (10, (3, 4, 3)), (11, (4, 3, 4)), (3, (1, 1, 1))])
def test_thirds_of_any_number_of_slices_are_symmetric(slices: int, thirds: tuple[int, int, int]) -> None:
    # With one voxel per slice, a warped label that has one slice alone tells which third this slice is in.
    fixed = np.zeros(SHAPE, bool)
    fixed[5, 5, 2 : 2 + slices] = True
    counts = dict.fromkeys(REGIONS, 0)
    for z in range(2, 2 + slices):
        warped = np.zeros(SHAPE, bool)
        warped[5, 5, z] = True
        hit = [region for region, value in values(warped, fixed).items() if value > 0]
        assert len(hit) == 1
        counts[hit[0]] += 1
    assert (counts["apex"], counts["mid"], counts["base"]) == thirds


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product((1, -1), repeat=3))[1::3])
def test_the_order_and_direction_of_the_array_axes_do_not_matter(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    warped, fixed = (
        np.flip(mask.transpose(axes), [axis for axis in range(3) if flips[axis] < 0]).copy() for mask in boxes()
    )
    spacing = [SPACING[axis] for axis in axes]
    affine = make_affine(fixed.shape, spacing, axes=axes, flips=flips, center=(-31, 12.5, 87))
    assert values(warped, fixed, affine) == pytest.approx(EXPECTED)


@pytest.mark.parametrize("slices", range(7, 13))
def test_a_hair_of_obliquity_does_not_split_a_slice(slices: int) -> None:
    fixed, warped = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    fixed[2:10, 1:9, 2 : 2 + slices] = True
    warped[2:10, 1:6, 2 : 2 + slices : 2] = True
    tilted = make_affine(SHAPE, SPACING, (0.2, -0.2, 0.1))
    assert values(warped, fixed, tilted) == pytest.approx(values(warped, fixed))


CENTER, RADII = np.array([3.0, -4.0, 11.0]), np.array([13.0, 10.0, 16.0])
#: Moved up and to the side, so that the thirds differ.
MOVED = CENTER + np.array([3.0, -1.0, 4.0])


def ellipsoid(points: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Which points of the world (..., 3), RAS mm, lie in it; its radii follow the world's axes."""
    return (((points - center) / RADII) ** 2).sum(-1) <= 1


def integral() -> dict[str, float]:
    """DSC of the thirds from a dense straight lattice and the extent that is known."""
    axes = [np.arange(c - 25, c + 25, 0.4) for c in CENTER]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    fixed, warped = ellipsoid(points, CENTER), ellipsoid(points, MOVED)
    height = (points[..., 2] - CENTER[2]) / RADII[2]
    slabs = {"base": height > 1 / 3, "mid": np.abs(height) <= 1 / 3, "apex": height < -1 / 3}
    return {
        region: 2 * (fixed & warped & slab).sum() / ((fixed & slab).sum() + (warped & slab).sum())
        for region, slab in slabs.items()
    }


@pytest.mark.parametrize(
    ("degrees", "axes", "flips"),
    [
        ((0, 0, 0), (0, 1, 2), (1, 1, 1)),
        ((30, 0, 0), (0, 1, 2), (1, 1, 1)),
        ((-25, 40, 15), (2, 0, 1), (1, -1, -1)),
        ((10, -50, 70), (1, 2, 0), (-1, 1, -1)),
    ],
)
def test_thirds_follow_the_world_on_oblique_grids(
    degrees: tuple[float, ...], axes: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    shape = (48, 50, 52)
    affine = make_affine(shape, (0.9, 1.1, 1.0), degrees, axes, flips, CENTER + 1)
    points = np.indices(shape).transpose(1, 2, 3, 0) @ affine[:3, :3].T + affine[:3, 3]
    found = values(ellipsoid(points, MOVED), ellipsoid(points, CENTER), affine)
    expected = integral()
    assert np.ptp(list(expected.values())) > 0.1
    assert found == pytest.approx(expected, abs=0.015)


def test_the_whole_lies_between_its_thirds() -> None:
    for seed in range(3):
        noise = gaussian_filter(np.random.default_rng(seed).normal(size=(2, *SHAPE)), (0, 2, 2, 2))
        warped, fixed = noise + 0.5 * noise[::-1] > 0.02
        affine = make_affine(SHAPE, SPACING, (20, 30, -10))
        parts = values(warped, fixed, affine)
        whole = float(LabelDice()([label(warped, affine)], [label(fixed, affine)]))
        assert min(parts.values()) < whole < max(parts.values())
        assert values(fixed, fixed, affine) == dict.fromkeys(REGIONS, 1.0)


def test_empty_labels() -> None:
    warped, fixed = boxes()
    nothing = np.zeros(SHAPE, bool)
    assert all(np.isnan(value) for value in values(warped, nothing).values())
    assert values(nothing, fixed) == dict.fromkeys(REGIONS, 0.0)
    metric = RegionDice("mid")
    affine = make_affine(SHAPE, SPACING)
    metric([label(warped, affine)] * 2, [label(nothing, affine), label(fixed, affine)])
    assert float(metric.aggregate()) == pytest.approx(EXPECTED["mid"])


def test_channel() -> None:
    warped, fixed = boxes()
    affine = make_affine(SHAPE, SPACING)
    soft = [
        MetaTensor(torch.from_numpy(np.stack([mask > -1, 0.6 * mask])).float(), affine=torch.from_numpy(affine))
        for mask in (warped, fixed)
    ]
    assert float(RegionDice("mid", label=1)([soft[0]], [soft[1]])) == pytest.approx(EXPECTED["mid"])
    with pytest.raises(RegZooError, match="label 2"):
        RegionDice("mid", label=2)([soft[0]], [soft[1]])


def test_bad_arguments() -> None:
    with pytest.raises(RegZooError, match="region"):
        RegionDice("middle")  # type: ignore[arg-type]
    affine = make_affine(SHAPE, SPACING)
    with pytest.raises(ValueError, match="pass the fixed labels"):
        RegionDice("mid")([label(boxes()[0], affine)])
