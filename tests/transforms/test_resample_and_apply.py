"""From files to the network's tensors and from its field back to the fixed image's grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import ball, from_sitk, make_affine, make_grid, smooth_ddf, smooth_noise, to_sitk
from monai.data import MetaTensor
from regzoo.errors import RegZooError
from regzoo.monai_label import BuildAnswerd
from regzoo.spatial import Grid
from regzoo.transforms import (
    AdHocLabelsd,
    AlignPaird,
    ApplyFieldd,
    FilterLabelsd,
    MatchLabelsd,
    ResamplePaird,
    SelectLabelsd,
    WarpOnNetworkGridd,
)
from regzoo.transforms.apply import label_masks
from regzoo.transforms.resample import of_kind
from scipy.ndimage import center_of_mass, gaussian_filter, map_coordinates

FIXED = make_grid((25, 20, 23), (1.2, 1.6, 1), (10, -15, 20), (1, 0, 2), (-1, 1, 1), (20, -30, 10))
MOVING = make_grid((22, 26, 21), (1.3, 1, 1.5), (-5, 8, 12), (2, 1, 0), (1, -1, 1), (21, -29, 11))
GRIDS = {"fixed": FIXED, "moving": MOVING}
NETWORK = {"spacing": (1.5, 1.4, 1.3), "size": (20, 18, 16)}


def loaded(image: np.ndarray | None = None) -> dict[str, Any]:
    """A pair as `LoadPaird` leaves it, one label empty in the moving image."""
    item: dict[str, Any] = {"case": "A"}
    for seed, (side, grid) in enumerate(GRIDS.items(), start=1):
        center = grid.to_voxels((20, -30, 10))
        labels = np.stack([ball(grid.shape, center + offset, radius) for offset, radius in ((0, 6), (4, 3), (-3, 3))])
        labels[1] *= side == "fixed"
        affine = torch.from_numpy(grid.affine)
        item[f"{side}_image"] = MetaTensor(torch.from_numpy(smooth_noise(grid.shape, 3, seed))[None], affine=affine)
        item[f"{side}_label"] = MetaTensor(torch.from_numpy(labels), affine=affine)
    return item


def test_resampling_equals_simpleitk() -> None:
    item = loaded()
    # Voxels of the network at least as fine as the files': images are not blurred beforehand.
    out = ResamplePaird((0.9, 0.9, 0.9), (27, 26, 24))(item)
    target = Grid.of(out["fixed_image"])
    np.testing.assert_allclose(target.spacing, 0.9)
    np.testing.assert_allclose(target.center, FIXED.center, atol=1e-6)
    frame = to_sitk(np.zeros(target.shape, np.float32), target.affine)
    for key, grid in [(f"{side}_{kind}", GRIDS[side]) for side in GRIDS for kind in ("image", "label")]:
        assert Grid.of(out[key]).same_as(target)
        voxels = grid.to_voxels(target.to_world(np.indices(target.shape).transpose(1, 2, 3, 0)))
        inner = ((voxels >= 0) & (voxels <= np.array(grid.shape) - 1)).all(-1)
        assert inner.mean() > 0.6
        for ours, volume in zip(out[key].numpy(), item[key].numpy(), strict=True):
            theirs = from_sitk(sitk.Resample(to_sitk(volume, grid.affine), frame, sitk.Transform(), sitk.sitkLinear))
            np.testing.assert_allclose(ours[inner], theirs[inner], atol=0.01)


def test_bspline_and_binary_labels_equal_simpleitk() -> None:
    item = loaded()
    out = ResamplePaird((0.9, 0.9, 0.9), (27, 25, 23), interpolation="bspline", binarise=True)(item)
    target = Grid.of(out["fixed_image"])
    frame = to_sitk(np.zeros(target.shape, np.float32), target.affine)
    for side, grid in GRIDS.items():
        voxels = grid.to_voxels(target.to_world(np.indices(target.shape).transpose(1, 2, 3, 0)))
        moving = to_sitk(item[f"{side}_image"][0].numpy(), grid.affine)
        cubic, linear = (
            from_sitk(sitk.Resample(moving, frame, sitk.Transform(), kind))
            for kind in (sitk.sitkBSpline, sitk.sitkLinear)
        )
        # What lies beyond the border is taken differently, and fades by a factor of four with every voxel.
        inner = ((voxels >= 4) & (voxels <= np.array(grid.shape) - 5)).all(-1)
        assert inner.mean() > 0.2
        ours = out[f"{side}_image"][0].numpy()
        assert np.abs(ours - cubic)[inner].max() < 0.1
        assert np.abs(ours - linear)[inner].max() > 0.5
        for mask, volume in zip(out[f"{side}_label"].numpy(), item[f"{side}_label"].numpy(), strict=True):
            soft = from_sitk(sitk.Resample(to_sitk(volume, grid.affine), frame, sitk.Transform(), sitk.sitkLinear))
            clear = np.abs(soft - 0.5) > 1e-3
            np.testing.assert_array_equal(mask[clear], (soft >= 0.5)[clear])
            assert set(np.unique(mask)) <= {0, 1}
            assert clear.mean() > 0.95


def test_images_are_bspline_only_when_asked() -> None:
    item = loaded()
    linear, cubic = (ResamplePaird(**NETWORK, interpolation=kind)(item) for kind in ("linear", "bspline"))
    assert torch.equal(ResamplePaird(**NETWORK)(item)["fixed_image"], linear["fixed_image"])
    assert float((cubic["fixed_image"] - linear["fixed_image"]).abs().max()) > 0.5
    assert torch.equal(cubic["fixed_label"], linear["fixed_label"])
    assert bool(((linear["fixed_label"] > 0.1) & (linear["fixed_label"] < 0.9)).any())  # soft
    with pytest.raises(RegZooError, match="'cubic' is not known; use linear or bspline"):
        ResamplePaird(**NETWORK, interpolation="cubic")  # type: ignore[arg-type]


def test_natives_are_kept_on_request() -> None:
    item = loaded()
    assert not [key for key in ResamplePaird(**NETWORK)(item) if "native" in key]
    out = ResamplePaird(**NETWORK, keep_native=True)(item)
    for side in ("fixed", "moving"):
        assert out[f"{side}_native"] is item[f"{side}_image"]
        assert out[f"{side}_label_native"] is item[f"{side}_label"]


@pytest.mark.parametrize(
    ("spacing", "size"), [((1, 1), (16, 16, 16)), ((1, 0, 1), (16, 16, 16)), ((1, 1, 1), (16, 4, 16))]
)
def test_network_grid_is_checked(spacing: tuple[float, ...], size: tuple[int, ...]) -> None:
    with pytest.raises(RegZooError, match="spacing"):
        ResamplePaird(spacing, size)


def test_labels_of_one_image_only_are_left_out() -> None:
    item = loaded()
    out = MatchLabelsd()(ResamplePaird(**NETWORK)(item))
    whole = ResamplePaird(**NETWORK)(item)
    for key in ("fixed_label", "moving_label"):
        assert out[key].shape[0] == 2
        np.testing.assert_array_equal(out[key].numpy(), whole[key].numpy()[[0, 2]])
    item["moving_label"] *= 0
    with pytest.raises(RegZooError, match=r"case A.*no label"):
        MatchLabelsd()(ResamplePaird(**NETWORK)(item))


def named(count: int = 4) -> dict[str, Any]:
    """A case of which label l is the constant l, on the network grid and on the files' own."""
    item: dict[str, Any] = {"case": "A", "label_names": ["gland", "cyst_1", "apex", "cyst_2"]}
    values = torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 2, 3, 4)
    for key in ("fixed_label", "moving_label", "reference_label", "warped_label", "unregistered_label"):
        item[key] = MetaTensor(values + 10 * len(item), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    item["moving_label_native"] = item["moving_label"]
    return item


@pytest.mark.parametrize(
    ("channels", "without", "kept"),
    [
        (None, (), [0, 1, 2, 3]),
        ([0], (), [0]),
        ([2, 0], (), [2, 0]),
        (None, ("cyst",), [0, 2]),
        ([3, 2, 1], ("cyst_1",), [3, 2]),
        ([1], ("cyst", "apex"), []),
    ],
)
def test_labels_are_selected(channels: list[int] | None, without: tuple[str, ...], kept: list[int]) -> None:
    item = named()
    out = SelectLabelsd(channels, without)(item)
    for key in ("fixed_label", "moving_label"):
        assert out[key].shape == (len(kept), 2, 3, 4)
        assert out[key][:, 0, 0, 0].tolist() == [float(item[key][label, 0, 0, 0]) for label in kept]
        np.testing.assert_array_equal(out[key].affine, item[key].affine)
        assert len(item[key]) == 4
    assert len(out["moving_label_native"]) == len(out["reference_label"]) == 4
    del item["moving_label"]
    assert "moving_label" not in SelectLabelsd(channels, without)(item)


def test_labels_that_cannot_be_selected() -> None:
    with pytest.raises(RegZooError, match=r"moving_label: has 2 labels, and label 3 \(from 0\) is asked for; give"):
        SelectLabelsd([0, 3])(named() | {"moving_label": named(2)["moving_label"]})
    for names in (None, [], ["gland", "apex", "cyst"]):
        with pytest.raises(RegZooError, match=f"A: it has 4 labels and {len(names or [])} names; fix its label_names"):
            SelectLabelsd(without=["cyst"])(named() | {"label_names": names})


def test_which_labels_are_of_a_kind() -> None:
    assert of_kind(named(), ["cyst"], 4) == [False, True, False, True]
    assert of_kind({"label_names": [7, "7_1"]}, ["7"], 2) == [True, True]
    for count in (3, 5):  # whose names they are is not known
        with pytest.raises(RegZooError, match=f"A: it has {count} labels and 4 names"):
            of_kind(named(), ["cyst"], count)


@pytest.mark.parametrize(("kinds", "kept"), [(["cyst"], [1, 3]), (["apex", "gland"], [0, 2]), (["bone"], []), ([], [])])
def test_labels_unseen_in_training_are_singled_out(kinds: list[str], kept: list[int]) -> None:
    item = named()
    out = AdHocLabelsd(kinds)(item)
    for key in ("reference_label", "warped_label", "unregistered_label"):
        assert out[f"adhoc_{key}"].shape == (len(kept), 2, 3, 4)
        assert out[f"adhoc_{key}"][:, 0, 0, 0].tolist() == [float(item[key][label, 0, 0, 0]) for label in kept]
        np.testing.assert_array_equal(out[f"adhoc_{key}"].affine, item[key].affine)
        assert out[key] is item[key]
    if not kinds:  # then no names are needed
        assert AdHocLabelsd(())(item | {"label_names": None})["adhoc_warped_label"].shape[0] == 0


def test_labels_are_filtered_in_advance_as_scipy_does() -> None:
    item = ResamplePaird(**NETWORK)(loaded())
    sigmas = (0, 2, 5)
    out = FilterLabelsd(sigmas, NETWORK["spacing"])(item)
    for key in ("fixed_label", "moving_label"):
        assert out[key].shape == (3, 3, *NETWORK["size"])
        for channel, label in enumerate(item[key].numpy()):
            for scale, sigma in enumerate(sigmas):
                widths = np.divide(sigma, NETWORK["spacing"])
                expected = gaussian_filter(label, widths, mode="constant", truncate=9)
                np.testing.assert_allclose(out[key][channel, scale].numpy(), expected, atol=1e-6)


def applied(item: dict[str, Any], ddf: np.ndarray, method: str = "header") -> tuple[dict[Any, Any], dict[Any, Any]]:
    """What both ways of applying a prediction give: on the network grid, and on the fixed image's own."""
    ready = ResamplePaird(**NETWORK, keep_native=True)(AlignPaird(method)(item))
    ready["pred"] = torch.from_numpy(ddf)
    return WarpOnNetworkGridd()(ready), ApplyFieldd()(ready)


@pytest.mark.parametrize("method", ["header", "center"])
def test_both_ways_of_applying_a_field_agree(method: str) -> None:
    item = loaded()
    if method == "center":
        for key in ("moving_image", "moving_label"):
            affine = item[key].affine.clone()
            affine[:3, 3] += torch.tensor([200.0, -90, 40])
            item[key] = MetaTensor(item[key].as_tensor(), affine=affine)
    quick, full = applied(item, smooth_ddf(NETWORK["size"], 5.0), method)
    fixed, network = Grid.of(full["warped_image"]), Grid.of(quick["warped_image"])
    assert fixed.same_as(FIXED)
    # Seen at the network's voxels, by SciPy; inside both images.
    voxels = fixed.to_voxels(network.to_world(np.indices(network.shape).transpose(1, 2, 3, 0))).transpose(3, 0, 1, 2)
    inner = ((voxels >= 2) & (voxels <= np.reshape(fixed.shape, (3, 1, 1, 1)) - 3)).all(0)
    inner &= quick["warped_label"][0].numpy() > 0.9  # the gland is well inside
    assert inner.sum() > 100
    moved = (quick["warped_image"] - quick["unregistered_image"])[0].numpy()[inner]
    for key in ("warped_image", "unregistered_image", "reference_image"):
        seen = map_coordinates(full[key][0].numpy(), voxels, order=1)
        # One is interpolated twice and a little blurred.
        assert np.abs(seen - quick[key][0].numpy())[inner].mean() < 0.15 * np.abs(moved).mean()
    for key in ("warped_label", "unregistered_label", "reference_label"):
        volumes = [
            full[key].sum((1, 2, 3)).numpy() * np.prod(fixed.spacing),
            quick[key].sum((1, 2, 3)).numpy() * np.prod(network.spacing),
        ]
        np.testing.assert_allclose(volumes[0], volumes[1], rtol=0.1, atol=1)


def test_on_one_grid_both_ways_are_equal() -> None:
    # Stored left-posterior-superior; the network sees the same voxels in the other order.
    shape = (16, 15, 14)
    grid = make_grid(shape, (2, 1, 1.5), flips=(-1, -1, 1), center=(3, 4, 5))
    item: dict[str, Any] = {"case": "A"}
    for seed, side in enumerate(("fixed", "moving")):
        image = torch.from_numpy(smooth_noise(shape, 1, seed))[None]
        item[f"{side}_image"] = MetaTensor(image, affine=torch.from_numpy(grid.affine))
    ready = ResamplePaird((2, 1, 1.5), shape, keep_native=True)(AlignPaird()(item))
    ready["pred"] = torch.from_numpy(smooth_ddf(shape, 2.0))
    quick, full = WarpOnNetworkGridd()(ready), ApplyFieldd()(ready)
    inner = (slice(3, -3),) * 3
    ours = quick["warped_image"][0].numpy()[inner]
    np.testing.assert_allclose(full["warped_image"][0].flip(0, 1).numpy()[inner], ours, atol=0.01)
    flipped = full["ddf"].flip(1, 2).numpy() * np.reshape([-1, -1, 1], (3, 1, 1, 1))
    np.testing.assert_allclose(flipped, ready["pred"].numpy(), atol=1e-4)


def test_warped_image_is_simpleitks_with_the_field_of_the_item() -> None:
    _, full = applied(loaded(), smooth_ddf(NETWORK["size"], 2.5))
    lps = full["field"].displacement.double().numpy().transpose(1, 2, 3, 0) * (-1, -1, 1)
    moving = to_sitk(loaded()["moving_image"][0].numpy(), MOVING.affine)
    frame = to_sitk(np.zeros(FIXED.shape, np.float32), FIXED.affine)
    transform = sitk.DisplacementFieldTransform(to_sitk(lps, FIXED.affine))
    theirs = from_sitk(sitk.Resample(moving, frame, transform, sitk.sitkLinear, 0.0))
    assert (theirs != 0).mean() > 0.5
    np.testing.assert_allclose(full["warped_image"][0].numpy(), theirs, atol=0.05)


def test_without_labels_there_are_none() -> None:
    item = {key: value for key, value in loaded().items() if "label" not in key}
    for result in applied(item, smooth_ddf(NETWORK["size"], 1)):
        assert not [key for key in result if "label" in str(key)]


@pytest.mark.parametrize("values", [None, [4, 300]])
def test_what_a_server_shows_is_one_label_map(values: list[int] | None) -> None:
    shape = (9, 9, 9)
    masks = np.stack([ball(shape, (4, 4, 4), 3), ball(shape, (4, 4, 5), 1)])
    if values:
        masks[0] -= masks[1]  # the values of a map exclude each other, masks may overlap
    affine = torch.from_numpy(make_affine(shape, (1, 2, 3)))
    item: dict[Any, Any] = {"warped_image": MetaTensor(torch.rand(1, *shape), affine=affine), "pred": None}
    assert BuildAnswerd()(item)["pred"] is item["warped_image"]
    item["warped_label"] = MetaTensor(torch.from_numpy(masks) * 0.8, affine=affine)
    if values:
        item |= {"moving_label_is_map": True, "moving_label_values": values}
        masks[0] *= 1 - masks[1]  # a map has one value in each voxel
        item["warped_label"] = MetaTensor(torch.from_numpy(masks) * 0.8, affine=affine)
    shown = BuildAnswerd()(item)["pred"]
    assert shown.dtype == torch.int32
    np.testing.assert_array_equal(shown.affine, affine)
    expected = np.zeros(shape, int)
    for mask, value in zip(masks, values or (1, 2), strict=True):
        expected[mask > 0] = value
    np.testing.assert_array_equal(shown[0].numpy(), expected)


def test_masks_of_a_map_leave_no_holes_and_do_not_overlap() -> None:
    # Three labels that meet: linear interpolation leaves none of them with half of a voxel.
    soft = torch.tensor([[0.4, 0.1, 0.45, 0.2], [0.35, 0.2, 0.0, 0.1], [0.25, 0.3, 0.0, 0.1]]).view(3, 4, 1, 1)
    exclusive = label_masks(soft, exclusive=True).view(3, 4)
    assert exclusive.dtype == torch.uint8
    shares = np.concatenate([1 - soft.view(3, 4).sum(0, keepdim=True).numpy(), soft.view(3, 4).numpy()])
    assert shares.argmax(0).tolist() == [1, 0, 0, 0]
    np.testing.assert_array_equal(exclusive.numpy(), np.eye(4, dtype=np.uint8)[shares.argmax(0)].T[1:])
    overlapping = torch.tensor([0.5, 0.9, 0.4]).view(3, 1, 1, 1)
    assert label_masks(overlapping, exclusive=False).flatten().tolist() == [1, 1, 0]


@pytest.mark.parametrize("radius", [1.5, 3.0])
def test_small_landmarks_keep_mass_and_centroid_on_a_coarse_grid(radius: float) -> None:
    grid = make_grid((31, 31, 31), (0.8, 0.8, 0.8))
    for offset in np.random.default_rng(0).uniform(-1, 1, (10, 3)):
        mask = ball(grid.shape, 15 + offset / 0.8, radius / 0.8)
        item = {f"{side}_image": MetaTensor(torch.rand(1, *grid.shape), affine=grid.affine) for side in GRIDS}
        item["fixed_label"] = MetaTensor(torch.from_numpy(mask)[None], affine=grid.affine)
        coarse = ResamplePaird((2, 2, 2), (12, 12, 12))(item)["fixed_label"]
        assert float(coarse.sum()) * 2**3 == pytest.approx(mask.sum() * 0.8**3, rel=0.1)
        centres = [Grid.of(m).to_world(center_of_mass(m[0].numpy())) for m in (coarse, item["fixed_label"])]
        assert np.linalg.norm(centres[0] - centres[1]) < 0.15


@pytest.mark.parametrize(
    ("spacing", "size"), [(2, (16, 16, 16)), ((2, 2, 2), 16), ((2, 2), (16, 16, 16)), ((2, 2, 0), (16, 16, 16))]
)
def test_a_grid_that_is_none(spacing: Any, size: Any) -> None:
    with pytest.raises(RegZooError, match="give three mm > 0 and three sizes"):
        ResamplePaird(spacing, size)


def test_a_moving_image_outside_the_network_grid() -> None:
    item = loaded()
    affine = item["moving_image"].affine.clone()
    affine[:3, 3] += 60
    item["moving_image"] = MetaTensor(item["moving_image"].as_tensor(), affine=affine)
    message = r"the moving image: .*network's field of view on the fixed image; .*set align to center"
    with pytest.raises(RegZooError, match=message):
        ResamplePaird(**NETWORK)(item)
