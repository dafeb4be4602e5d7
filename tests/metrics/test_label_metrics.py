"""Label metrics against SimpleITK and SciPy on oblique, anisotropic, flipped grids."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from regzoo.errors import RegZooError
from regzoo.metrics import (
    LabelDice,
    LabelHausdorff,
    LostLabels,
    TargetRegistrationError,
    WeightSelection,
    centroid_distances,
    dice,
)
from regzoo.spatial import centroids
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.spatial.transform import Rotation

SHAPE = (30, 26, 22)
SPACING = (0.7, 1.1, 2.3)


def oblique_affine(spacing: tuple[float, ...] = SPACING, seed: int = 0) -> np.ndarray:
    rotation = Rotation.from_euler("xyz", np.random.default_rng(seed).uniform(-60, 60, 3), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-spacing[0], spacing[1], spacing[2]])  # first axis flipped
    affine[:3, 3] = [-31.0, 12.5, 87.0]
    return affine


def ellipsoid(center: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    """A mask, centre and radii in voxels."""
    coordinates = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    return (((coordinates - center) / radii) ** 2).sum(-1) <= 1


def as_label(masks: list[np.ndarray], affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.stack(masks).astype(np.float32)), affine=torch.from_numpy(affine))


def as_itk(mask: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """The same mask as an ITK image, i.e. with an LPS frame."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(mask.astype(np.uint8).transpose(2, 1, 0)))
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def itk_centroid(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centroid in RAS mm as ITK sees it."""
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(as_itk(mask, affine))
    return np.asarray(statistics.GetCentroid(1)) * [-1, -1, 1]


@pytest.fixture
def pair() -> tuple[MetaTensor, MetaTensor]:
    """Warped and fixed labels: gland, two landmarks, one labelled in the fixed image only."""
    affine = oblique_affine()
    empty = np.zeros(SHAPE, bool)
    fixed = [
        ellipsoid((14, 13, 11), (9, 8, 6)),
        ellipsoid((10, 9, 8), (3, 2, 2)),
        ellipsoid((18, 15, 14), (2, 3, 2)),
        ellipsoid((9, 9, 9), (2, 2, 2)),
    ]
    warped = [
        ellipsoid((16, 12, 12), (9, 7, 6)),
        ellipsoid((12, 8, 9), (3, 2, 2)),
        ellipsoid((17, 18, 13), (2, 2, 2)),
        empty,
    ]
    return as_label(warped, affine), as_label(fixed, affine)


def test_centroids_match_itk(pair: tuple[MetaTensor, MetaTensor]) -> None:
    fixed = pair[1]
    expected = [itk_centroid(mask.numpy(), fixed.affine.numpy()) for mask in fixed]
    np.testing.assert_allclose(centroids(fixed, fixed.affine).numpy(), expected, atol=1e-6)


def test_centroids_weigh_soft_values_and_mark_empty_labels() -> None:
    masks = torch.zeros(3, 4, 4, 4)
    masks[0, 0, 1, 2], masks[0, 3, 1, 2] = 0.25, 0.75
    masks[2, 3, 3, 3] = 1
    found = centroids(masks, torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0])))
    assert found[0].tolist() == pytest.approx([2 * (0.75 * 3), 1, 2])
    assert found[1].isnan().all()
    assert found[2].tolist() == pytest.approx([6, 3, 3])
    assert torch.equal(centroids(masks[2:] > 0.5, torch.eye(4)), torch.full((1, 3), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("reduction", ["rms", "mean"])
@pytest.mark.parametrize("first_label", [0, 1])
def test_tre_matches_itk(pair: tuple[MetaTensor, MetaTensor], reduction: str, first_label: int) -> None:
    warped, fixed = pair
    affine = fixed.affine.numpy()
    labels = range(first_label, 3)  # the last label is empty in the warped image
    distances = [
        np.linalg.norm(itk_centroid(warped[i].numpy(), affine) - itk_centroid(fixed[i].numpy(), affine)) for i in labels
    ]
    expected = math.sqrt(np.mean(np.square(distances))) if reduction == "rms" else np.mean(distances)
    metric = TargetRegistrationError(reduction=reduction, first_label=first_label)  # type: ignore[arg-type]
    metric([warped], [fixed])
    assert metric.get_buffer().shape == (1, 1)
    assert metric.aggregate().item() == pytest.approx(expected, rel=1e-5)
    assert centroid_distances(warped, fixed)[3].isnan()


def test_tre_of_a_known_shift_in_mm() -> None:
    # A shift by whole voxels has a known length in mm, whatever the obliquity.
    fixed_mask = ellipsoid((12, 12, 10), (4, 3, 3))
    fixed = as_label([fixed_mask, fixed_mask], oblique_affine(seed=3))
    warped = as_label([fixed_mask, np.roll(fixed_mask, (3, -2, 4), (0, 1, 2))], oblique_affine(seed=3))
    metric = TargetRegistrationError()
    metric([warped], [fixed])
    expected = math.hypot(3 * SPACING[0], 2 * SPACING[1], 4 * SPACING[2])
    assert metric.aggregate().item() == pytest.approx(expected, rel=1e-5)


def test_a_lost_landmark_counts_what_it_is_said_to() -> None:
    mask = ellipsoid((12, 12, 10), (4, 3, 3))
    shifted, nothing = np.roll(mask, 2, 1), np.zeros_like(mask)
    fixed = as_label([mask, mask, mask, nothing], oblique_affine(seed=3))
    warped = as_label([nothing, shifted, nothing, mask], oblique_affine(seed=3))
    distance = 2 * SPACING[1]
    for lost, first_label, expected in (
        (None, 0, [distance]),
        (50.0, 1, [distance, 50]),
        (50.0, 0, [50, distance, 50]),
    ):
        metric = TargetRegistrationError(first_label=first_label, lost=lost)
        metric([warped], [fixed])
        assert metric.aggregate().item() == pytest.approx(math.sqrt(np.mean(np.square(expected))), rel=1e-5)


def test_dice_matches_itk(pair: tuple[MetaTensor, MetaTensor]) -> None:
    warped, fixed = pair
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    for label in range(3):
        affine = fixed.affine.numpy()
        overlap.Execute(as_itk(fixed[label].numpy(), affine), as_itk(warped[label].numpy(), affine))
        metric = LabelDice(label=label)
        metric([warped * 0.6], [fixed * 0.5])  # soft labels count from the threshold on
        assert metric.aggregate().item() == pytest.approx(overlap.GetDiceCoefficient(), rel=1e-5)
        assert dice(warped, fixed)[label].item() == pytest.approx(overlap.GetDiceCoefficient(), rel=1e-5)


def directed_surface_distances(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    surface_a, surface_b = a & ~binary_erosion(a), b & ~binary_erosion(b)
    return distance_transform_edt(~surface_b, sampling=spacing)[surface_a]


@pytest.mark.parametrize("percentile", [95, 50])
def test_hausdorff_percentile_matches_scipy(pair: tuple[MetaTensor, MetaTensor], percentile: float) -> None:
    warped, fixed = pair
    a, b = warped[0].numpy() > 0, fixed[0].numpy() > 0
    expected = max(
        np.percentile(directed_surface_distances(a, b, SPACING), percentile),
        np.percentile(directed_surface_distances(b, a, SPACING), percentile),
    )
    metric = LabelHausdorff(percentile=percentile)
    metric([warped], [fixed])
    assert metric.aggregate().item() == pytest.approx(expected, rel=1e-5)


def test_hausdorff_matches_itk_in_mm(pair: tuple[MetaTensor, MetaTensor]) -> None:
    warped, fixed = pair
    affine = fixed.affine.numpy()
    hausdorff = sitk.HausdorffDistanceImageFilter()
    for label in range(3):
        hausdorff.Execute(as_itk(warped[label].numpy(), affine), as_itk(fixed[label].numpy(), affine))
        metric = LabelHausdorff(label=label, percentile=100)
        metric([warped], [fixed])
        assert metric.aggregate().item() == pytest.approx(hausdorff.GetHausdorffDistance(), rel=1e-4)


def test_hausdorff_at_the_image_border() -> None:
    # A gland cut by the image border has a surface there.
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    a, b = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    a[5:15, 5:15, :], b[5:15, 5:15, 3:] = True, True
    metric = LabelHausdorff(percentile=100)
    metric([as_label([a], affine)], [as_label([b], affine)])
    assert metric.aggregate().item() == pytest.approx(9.0)


def test_empty_labels_are_nan_and_ignored(pair: tuple[MetaTensor, MetaTensor]) -> None:
    warped, fixed = pair
    for metric in (TargetRegistrationError(), LabelDice(), LabelHausdorff()):
        metric([warped], [fixed])
        alone = metric.aggregate().item()
        metric([warped], [fixed * 0])
        values = metric.get_buffer()
        assert values.shape == (2, 1)
        assert values[1].isnan().all()
        assert metric.aggregate().item() == pytest.approx(alone)
    lost = LabelDice(label=3)
    lost([warped], [fixed])
    assert lost.aggregate().item() == 0  # a label that was lost on the way overlaps nothing
    nothing = LabelHausdorff(label=3)
    nothing([warped], [fixed])
    assert nothing.aggregate().isnan()
    nothing.reset()
    assert nothing.aggregate().isnan()


def test_lost_labels_are_counted() -> None:
    one = torch.zeros(5, 3, 4, 5)
    one[:, 1, 2, 3] = 0.3
    there = one * torch.tensor([1, 1, 1, 0, 0]).view(5, 1, 1, 1)
    metric = LostLabels()
    # Kept, lost, lost, never there, out of nowhere.
    metric([one * torch.tensor([1, 0, 0, 0, 1]).view(5, 1, 1, 1)], [there])
    metric([there, torch.zeros(2, 3, 4, 5)], [there, there[:2].bool()])
    metric([MetaTensor(one[:0])], [MetaTensor(there[:0])])
    assert metric.get_buffer().flatten().tolist() == [2, 0, 2, 0]
    assert metric.aggregate().item() == 1
    with pytest.raises(ValueError, match="one shape"):
        LostLabels()([one[:2]], [there])


def test_cases_with_different_numbers_of_labels(pair: tuple[MetaTensor, MetaTensor]) -> None:
    warped, fixed = pair
    metric = TargetRegistrationError()
    metric([warped, warped[:2]], [fixed, fixed[:2]])
    metric([warped[:3]], [fixed[:3]])
    values = metric.get_buffer()
    assert values.shape == (3, 1)
    assert values[0] == values[2] != values[1]
    assert metric.aggregate().item() == pytest.approx(values.mean().item())


def test_a_batched_tensor_keeps_the_affine_of_each_case(pair: tuple[MetaTensor, MetaTensor]) -> None:
    warped, fixed = pair
    coarse = [MetaTensor(x.as_tensor(), affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))) for x in pair]
    items = [{"warped": warped, "fixed": fixed}, {"warped": coarse[0], "fixed": coarse[1]}]
    batch = list_data_collate(items)
    for metric in (TargetRegistrationError(), LabelHausdorff()):
        metric(batch["warped"], batch["fixed"])
        batched = metric.get_buffer()
        metric.reset()
        cases = decollate_batch(batch)
        metric([c["warped"] for c in cases], [c["fixed"] for c in cases])
        assert torch.equal(batched, metric.get_buffer())
        assert batched[0] != batched[1]


def test_bad_arguments(pair: tuple[MetaTensor, MetaTensor]) -> None:
    warped, fixed = pair
    with pytest.raises(RegZooError, match=r"label 7 .* 4 labels; choose 0 to 3"):
        LabelDice(label=7)([warped], [fixed])
    with pytest.raises(RegZooError, match="rms or mean"):
        TargetRegistrationError(reduction="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one shape"):
        LabelDice()([warped[:2]], [fixed])
    with pytest.raises(ValueError, match="affine"):
        TargetRegistrationError()([warped], [fixed.as_tensor()])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_values_on_the_gpu(pair: tuple[MetaTensor, MetaTensor]) -> None:
    for metric in (TargetRegistrationError(), LabelDice(), LabelHausdorff()):
        metric([pair[0]], [pair[1]])
        on_cpu = metric.aggregate().item()
        metric.reset()
        metric([pair[0].cuda()], [pair[1].cuda()])
        assert metric.aggregate().item() == pytest.approx(on_cpu, rel=1e-5)


def test_weights_are_chosen_by_the_tre_or_without_landmarks_by_the_dsc(caplog: pytest.LogCaptureFixture) -> None:
    """One landmark in one case is enough for the TRE; the DSC is SimpleITK's; one line says that it is used."""
    affine = oblique_affine()
    gland, moved, landmark = (
        ellipsoid(c, r) for c, r in (((14, 12, 11), (8, 7, 6)), ((15, 12, 11), (8, 7, 6)), ((12, 9, 8), (2, 2, 2)))
    )
    shifted = np.roll(landmark, 2, axis=0)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(as_itk(gland, affine), as_itk(moved, affine))
    alone, empty = as_label([gland], affine), as_label([gland, np.zeros_like(gland)], affine)
    with caplog.at_level("INFO"):
        for first_label in (0, 1):
            metric = WeightSelection(first_label=first_label)
            for _ in range(2):
                metric.reset()
                metric([as_label([moved], affine), as_label([moved, landmark], affine)], [alone, empty])
                assert metric.aggregate().item() == pytest.approx(1 - overlap.GetDiceCoefficient(), abs=1e-6)
    assert len(caplog.messages) == 2 and "the gland's DSC chooses the epoch" in caplog.messages[0]
    metric = WeightSelection()
    metric(
        [as_label([moved], affine), as_label([moved, shifted], affine)], [alone, as_label([gland, landmark], affine)]
    )
    assert metric.aggregate().item() == pytest.approx(2 * SPACING[0], abs=1e-4)
    # A landmark that the network loses does not turn mm into an overlap from one epoch to the next.
    metric.reset()
    metric([as_label([moved, np.zeros_like(gland)], affine)], [as_label([gland, landmark], affine)])
    assert math.isnan(metric.aggregate().item())
