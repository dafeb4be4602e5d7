"""The moving image made from the fixed one: against SciPy, and that the DDF returned is the true one."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from helpers import smooth_noise
from regzoo.augmentation import SingleImageAugmentation
from regzoo.engines.batch import PreparePair
from regzoo.spatial import compose, jacobian_determinant, warp
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import affine_transform, map_coordinates
from scipy.spatial.transform import Rotation

SHAPE = (41, 35, 30)
SPACING = (2.0, 2.5, 4.0)
INDEX = np.indices(SHAPE).astype(float)
CENTER = (np.array(SHAPE) - 1) / 2
#: Nothing but the geometry, small enough for most of the image to stay in view.
GEOMETRY: dict[str, Any] = {"gamma": (1, 1), "max_brightness": 0, "max_translation": 8}
#: Nothing at all.
NOTHING: dict[str, Any] = {**GEOMETRY, "max_translation": 0, "max_rotation": 0, "max_displacement": 0}


def augmentation(**options: Any) -> SingleImageAugmentation:
    """On the grid of the tests."""
    return SingleImageAugmentation(SPACING, **{"control_points": 5, **options})


def batch_of(count: int = 1, labels: int = 1) -> dict[str, torch.Tensor]:
    """Smooth images in [0, 1] and label maps with values 0 to 3, one field of view for all."""
    images = [smooth_noise(SHAPE, 3, seed, top=1) for seed in range(count)]
    maps = [np.floor(3.99 * smooth_noise(SHAPE, 4, 100 + seed, top=1)) for seed in range(count * labels)]
    return {
        "fixed_image": torch.from_numpy(np.stack(images)[:, None]),
        "fixed_label": torch.from_numpy(np.stack(maps).reshape(count, labels, *SHAPE).astype(np.float32)),
    }


def seeds(*values: int) -> torch.Tensor:
    """As the loader gives them."""
    return torch.tensor(values)


def inside(ddf: torch.Tensor, border: float = 1) -> torch.Tensor:
    """Whether a voxel's correspondent lies in the image, (X, Y, Z)."""
    end = torch.tensor(SHAPE).view(3, 1, 1, 1) - 1
    target = torch.from_numpy(np.indices(SHAPE)).float() + ddf
    return ((target >= border) & (target <= end - border)).all(dim=0)


@pytest.mark.parametrize("seed", range(3))
def test_rigid_part_equals_scipy(seed: int) -> None:
    augment = augmentation(**{**GEOMETRY, "max_displacement": 0, "max_translation": 30})
    batch = batch_of()
    made, drawn = augment(batch, seeds(seed)), augment.draw(seed)
    # A voxel in mm about the centre, turned about x, then y, then z, and moved.
    matrix = Rotation.from_euler("xyz", drawn.rotation, degrees=True).as_matrix()
    scale = np.diag(SPACING)
    forward = np.linalg.inv(scale) @ matrix @ scale
    offset = CENTER + drawn.translation / SPACING - forward @ CENTER
    expected = np.einsum("ij,jxyz->ixyz", forward, INDEX) + offset.reshape(3, 1, 1, 1) - INDEX
    np.testing.assert_allclose(made["ddf"][0].numpy(), expected, atol=1e-4)
    backward = np.linalg.inv(forward)
    image = affine_transform(batch["fixed_image"][0, 0].numpy(), backward, -backward @ offset, order=1, mode="nearest")
    np.testing.assert_allclose(made["moving_image"][0, 0].numpy(), image, atol=1e-4)
    assert np.abs(drawn.rotation).max() > 1


@pytest.mark.parametrize("seed", range(3))
def test_whole_ddf_equals_scipy(seed: int) -> None:
    augment = augmentation(**GEOMETRY)
    ddf, drawn = augment(batch_of(), seeds(seed))["ddf"][0].numpy(), augment.draw(seed)
    # Undo the rigid motion; what is left is the spline.
    turn = Rotation.from_euler("xyz", drawn.rotation, degrees=True)
    millimetres = np.reshape(SPACING, (3, 1, 1, 1))
    target = (INDEX + ddf - CENTER.reshape(3, 1, 1, 1)) * millimetres - drawn.translation.reshape(3, 1, 1, 1)
    spline = (
        turn.inv().apply(target.reshape(3, -1).T)
        - ((INDEX - CENTER.reshape(3, 1, 1, 1)) * millimetres).reshape(3, -1).T
    )
    axes = [np.linspace(0, (n - 1) * mm, 5) for n, mm in zip(SHAPE, SPACING, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    truth = RBFInterpolator(points, drawn.displacements.reshape(3, -1).T, kernel="thin_plate_spline", degree=1)
    expected = truth((INDEX * millimetres).reshape(3, -1).T[::11])
    found = spline[::11]
    factor = float((found * expected).sum() / (expected**2).sum())  # by which it was scaled down
    assert 0.6 < factor <= 1
    error = np.abs(found - factor * expected) / SPACING
    assert error.max() < 0.02  # the tolerance
    assert error.mean() < 0.002


@pytest.mark.parametrize("seed", range(3))
def test_moving_image_and_labels_equal_scipy(seed: int) -> None:
    batch = batch_of(labels=2)
    batch["fixed_distance"] = batch["fixed_image"] * 40 - 20
    for label_mode, order in (("nearest", 0), ("bilinear", 1)):
        augment = augmentation(**GEOMETRY, label_mode=label_mode)
        made = augment(batch, seeds(seed))
        transform = augment.transform([augment.draw(seed)], SHAPE)
        origin = transform.inverse()[0].numpy()
        modes = {"image": (1, "nearest"), "distance": (1, "nearest"), "label": (order, "grid-constant")}
        for kind, (spline_order, mode) in modes.items():
            for channel, values in enumerate(batch[f"fixed_{kind}"][0].numpy()):
                expected = map_coordinates(values, origin, order=spline_order, mode=mode)
                found = made[f"moving_{kind}"][0, channel].numpy()
                close = np.abs(found - expected) < 1e-3
                assert close.mean() > (0.9999 if spline_order == 0 else 0.999999)  # nearest may round either way


@pytest.mark.parametrize("seed", range(4))
def test_ddf_warps_the_moving_image_back_onto_the_fixed(seed: int) -> None:
    batch = batch_of()
    made = augmentation(**GEOMETRY, label_mode="bilinear")(batch, seeds(seed))
    seen = inside(made["ddf"][0])
    assert seen.float().mean() > 0.4
    back = warp(made["moving_image"], made["ddf"])
    before = (made["moving_image"] - batch["fixed_image"])[0, 0][seen].abs()
    after = (back - batch["fixed_image"])[0, 0][seen].abs()
    assert after.mean() < 0.06 * before.mean()  # two linear interpolations blur a little
    labels = warp((made["moving_label"] > 1.5).float(), made["ddf"])
    agreement = ((labels > 0.5) == (batch["fixed_label"] > 1.5))[0, 0][seen]
    assert agreement.float().mean() > 0.98


@pytest.mark.parametrize(("spacing", "seed"), [(SPACING, 0), (SPACING, 1), ((1.0, 1.0, 1.0), 2), ((1.2, 2.0, 1.0), 3)])
def test_image_and_ddf_are_of_one_transformation(spacing: tuple[float, ...], seed: int) -> None:
    # With voxels of 1 mm, 6 mm are most of the way to the next control point: the inverse must hold there as well.
    augment = SingleImageAugmentation(spacing, max_translation=8, control_points=5)
    transform = augment.transform([augment.draw(seed)], SHAPE)
    ddf = transform.ddf()
    inverse = transform.inverse() - torch.from_numpy(np.indices(SHAPE)).float()
    residual = compose(inverse, ddf)[0].abs().amax(dim=0)[inside(inverse[0])]
    assert residual.numel() > 0.3 * np.prod(SHAPE)
    assert float(residual.max()) < 0.05
    assert float(residual.mean()) < 1e-3


def test_drawn_limits_hold_and_are_used() -> None:
    drawn = [augmentation().draw(seed) for seed in range(2000)]
    gamma = np.array([d.gamma for d in drawn])
    assert gamma.min() >= 0.5
    assert gamma.max() <= 2
    assert abs(np.median(gamma) - 1) < 0.05
    ranges = {
        0.2: np.abs([d.brightness for d in drawn]),
        10: np.abs([d.rotation for d in drawn]),
        30: np.linalg.norm([d.translation for d in drawn], axis=1),
        6: np.abs([d.displacements for d in drawn]),
    }
    for limit, values in ranges.items():
        assert 0.98 * limit < values.max() <= limit
    # Uniform in the ball: half of its volume lies within 0.79 radii; no direction is preferred.
    assert abs(np.median(ranges[30]) / 30 - 0.5 ** (1 / 3)) < 0.02
    assert np.abs(np.mean([d.translation for d in drawn], axis=0)).max() < 1


@pytest.mark.parametrize(("spacing", "limit"), [(SPACING, 6.0), ((1.0, 1.0, 1.0), 6.0), ((1.0, 2.0, 1.0), 15.0)])
def test_no_voxel_exceeds_the_limit_and_nothing_folds(spacing: tuple[float, ...], limit: float) -> None:
    count = 4 if spacing == SPACING else 8
    augment = SingleImageAugmentation(
        spacing, max_rotation=0, max_translation=0, max_displacement=limit, control_points=count
    )
    millimetres = torch.tensor(spacing).view(3, 1, 1, 1)
    reached = []
    for seed in range(12):
        ddf = augment.transform([augment.draw(seed)], (26, 31, 23)).ddf()
        reached.append(float((ddf * millimetres).abs().max()))
        assert float(jacobian_determinant(ddf).min()) > 0.2
    assert max(reached) <= limit * (1 + 1e-4)
    if count == 4:  # large enough that folds do not limit it further
        assert min(reached) > 0.5 * limit


def test_the_total_stays_invertible() -> None:
    augment = SingleImageAugmentation((1.0, 1.5, 1.0), max_displacement=20)
    for seed in range(12):
        ddf = augment.transform([augment.draw(seed)], (26, 31, 23)).ddf()
        assert float(jacobian_determinant(ddf).min()) > 0.2


def test_a_sample_depends_on_its_own_seed_alone() -> None:
    augment, batch = augmentation(), batch_of(4)
    values = (11, 2**60 + 5, 7, 11)
    together = augment(batch, seeds(*values))
    for index, seed in enumerate(values):
        alone = augment({key: value[index : index + 1] for key, value in batch.items()}, seeds(seed))
        assert set(alone) == set(together)
        for key, value in alone.items():
            assert torch.equal(value[0], together[key][index]), key
    assert torch.equal(together["ddf"][0], together["ddf"][3])
    assert not torch.allclose(together["ddf"][0], together["ddf"][1])
    assert not torch.allclose(together["ddf"][0], together["ddf"][2])


def test_slabs_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of()
    whole = augmentation()(batch, seeds(5))
    monkeypatch.setattr("regzoo.augmentation.single_image._SLAB", 7 * 35 * 30)
    for key, value in augmentation()(batch, seeds(5)).items():
        difference = (value - whole[key]).abs()
        assert float((difference > 1e-4).float().mean()) < 1e-3, key  # of labels a few voxels may round differently


def test_nearest_keeps_label_values_and_type() -> None:
    batch = batch_of()
    batch["fixed_label"] = batch["fixed_label"].to(torch.uint8) * 7
    label = augmentation()(batch, seeds(3))["moving_label"]
    assert label.dtype == torch.uint8
    assert set(label.unique().tolist()) == {0, 7, 14, 21}


def test_outside_is_border_and_no_label() -> None:
    batch = {"fixed_image": torch.full((1, 1, *SHAPE), 0.75), "fixed_label": torch.ones(1, 1, *SHAPE)}
    options = {**GEOMETRY, "max_translation": 30}
    border = augmentation(**options)(batch, seeds(1))
    np.testing.assert_allclose(border["moving_image"].numpy(), 0.75, atol=1e-6)
    assert 0.02 < float((border["moving_label"] == 0).float().mean()) < 0.9


@pytest.mark.parametrize("seed", range(4))
def test_intensity(seed: int) -> None:
    augment = augmentation(**{**NOTHING, "gamma": (0.5, 2), "max_brightness": 0.2})
    batch = batch_of()
    made, drawn = augment(batch, seeds(seed)), augment.draw(seed)
    image = batch["fixed_image"].numpy().astype(np.float64)
    np.testing.assert_allclose(
        made["moving_image"].numpy(), np.clip(image**drawn.gamma + drawn.brightness, 0, 1), atol=1e-5
    )
    assert made["fixed_image"] is batch["fixed_image"]
    np.testing.assert_allclose(batch["fixed_image"].numpy(), image, atol=0)  # the cached image is untouched


def test_nothing_changes_without_limits() -> None:
    batch = batch_of()
    made = augmentation(**NOTHING)(batch, seeds(4))
    for kind in ("image", "label"):
        np.testing.assert_allclose(made[f"moving_{kind}"].numpy(), batch[f"fixed_{kind}"].numpy(), atol=1e-4)
    np.testing.assert_allclose(made["ddf"].numpy(), 0, atol=1e-5)


def test_what_is_drawn_is_what_is_done() -> None:
    # One component at a time: 6 mm along y everywhere are 6 / 2.5 voxels.
    augment = augmentation()
    drawn = augment.draw(0)
    zeros = np.zeros(3)
    displacements = np.zeros_like(drawn.displacements)
    displacements[1] = 6
    pushed = dataclasses.replace(drawn, rotation=zeros, translation=zeros, displacements=displacements)
    ddf = augment.transform([pushed], SHAPE).ddf()[0].numpy()
    np.testing.assert_allclose(ddf[1], 6 / 2.5, atol=1e-3)
    np.testing.assert_allclose(ddf[[0, 2]], 0, atol=1e-3)


def test_no_graph_and_float32_under_autocast() -> None:
    batch = batch_of()
    plain = augmentation()(batch, seeds(2))
    batch["fixed_image"].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = augmentation()(batch, seeds(2))
    for key in ("moving_image", "moving_label", "ddf"):
        assert not made[key].requires_grad
        assert made[key].dtype == torch.float32
        assert torch.equal(made[key], plain[key])


def test_first_use_in_inference_mode_does_not_spoil_training() -> None:
    shape, spacing = (17, 16, 15), (3.0, 3.0, 3.1)  # a grid nothing else uses, so that all is made here
    augment = SingleImageAugmentation(spacing)
    with torch.inference_mode():
        augment({"fixed_image": torch.rand(1, 1, *shape)}, seeds(0))
    made = augment({"fixed_image": torch.rand(1, 1, *shape)}, seeds(0))
    weight = torch.ones(1, requires_grad=True)
    (made["ddf"] * weight * made["moving_image"]).sum().backward()
    assert weight.grad is not None


def test_plugs_into_prepare_batch() -> None:
    batch: dict[str, Any] = {**batch_of(2), "seed": seeds(1, 2)}
    batch["moving_image"] = batch["fixed_image"] * 0 - 5  # a pair's moving image is not used
    image, targets = PreparePair(augmentation())(batch, device="cpu")
    assert image.shape == (2, 2, *SHAPE)
    assert torch.equal(image[:, 1:], targets["moving_image"])
    assert set(targets) == {"fixed_image", "moving_image", "fixed_label", "moving_label", "ddf"}
    assert 0 <= float(targets["moving_image"].min()) <= float(targets["moving_image"].max()) <= 1
    assert targets["ddf"].shape == (2, 3, *SHAPE)
    without, targets = PreparePair(augmentation(with_ddf=False))(batch, device="cpu")
    assert torch.equal(without, image)
    assert "ddf" not in targets


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": (1, 1)}, "spacing"),
        ({"spacing": (1, 0, 1)}, "spacing"),
        ({"gamma": (2, 0.5)}, "gamma"),
        ({"gamma": (0, 1)}, "gamma"),
        ({"max_rotation": -1}, "max_rotation"),
        ({"max_displacement": float("inf")}, "max_displacement"),
        ({"control_points": 1}, "control_points"),
        ({"control_points": (8, 8)}, "control_points"),
        ({"tolerance": 0}, "tolerance"),
        ({"label_mode": "cubic"}, "label_mode"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SingleImageAugmentation(**{"spacing": SPACING, **options})


def test_batches_are_checked() -> None:
    with pytest.raises(ValueError, match="fixed_image"):
        augmentation()({"moving_image": torch.zeros(1, 1, *SHAPE)}, seeds(1))
    with pytest.raises(ValueError, match="seeds"):
        augmentation()(batch_of(2), seeds(1))
