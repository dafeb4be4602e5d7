"""Image similarity against NumPy, SciPy and MONAI, and means over labels against SimpleITK."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import ball, smooth_noise
from monai.data import MetaTensor
from monai.metrics import SSIMMetric
from regzoo.errors import RegZooError
from regzoo.metrics import ImageCorrelation, ImageStructuralSimilarity, LabelDice, LabelHausdorff

SHAPE = (24, 22, 20)


def hounsfield(seed: int) -> np.ndarray:
    return smooth_noise(SHAPE, 2.0, seed, top=1500.0) - 900


def image(array: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array[None]), affine=torch.eye(4, dtype=torch.float64))


def test_correlation_is_numpys_within_the_window() -> None:
    warped, fixed = hounsfield(0), hounsfield(1)
    for window in ((-160, 240), None):
        low, high = window or (fixed.min(), fixed.max())
        expected = np.corrcoef(np.clip(warped, low, high).ravel(), np.clip(fixed, low, high).ravel())[0, 1]
        assert float(ImageCorrelation(window).measure(image(warped), image(fixed))) == pytest.approx(expected, abs=1e-4)
    same, opposite = (ImageCorrelation((-900, 600)).measure(image(s * fixed), image(fixed)) for s in (1, -1))
    assert float(same) == pytest.approx(1, abs=1e-5) and float(opposite) < -0.5


def test_structural_similarity_is_monais_within_the_window() -> None:
    fixed = hounsfield(1)
    warped = fixed + 0.6 * hounsfield(0)
    scaled = [torch.from_numpy((np.clip(a, -160, 240) + 160) / 400)[None, None] for a in (warped, fixed)]
    expected = float(SSIMMetric(spatial_dims=3, data_range=1.0)(*scaled))
    assert 0.1 < expected < 0.95
    found = float(ImageStructuralSimilarity((-160, 240)).measure(image(warped), image(fixed)))
    assert found == pytest.approx(expected, abs=1e-3)
    # Beyond the window nothing counts.
    beyond = np.where(fixed > 240, fixed + 500, np.where(fixed < -160, fixed - 500, fixed))
    assert float(ImageStructuralSimilarity((-160, 240)).measure(image(beyond), image(fixed))) == pytest.approx(1)


def test_bad_windows_and_shapes() -> None:
    with pytest.raises(RegZooError, match="window"):
        ImageCorrelation((240, -160))
    with pytest.raises(ValueError, match="one shape"):
        ImageCorrelation()(image(hounsfield(0))[None], image(hounsfield(1)[:-1])[None])


def labels() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Warped and fixed: two that overlap, one that got lost, one that the fixed image does not have."""
    empty = np.zeros(SHAPE, dtype=np.float32)
    warped = [ball(SHAPE, (9, 9, 9), 5), ball(SHAPE, (16, 12, 10), 3), empty, ball(SHAPE, (5, 5, 5), 2)]
    fixed = [ball(SHAPE, (11, 9, 8), 5), ball(SHAPE, (13, 12, 12), 4), ball(SHAPE, (18, 15, 5), 2), empty]
    return warped, fixed


def label(masks: list[np.ndarray], spacing: tuple[float, ...]) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.stack(masks)), affine=torch.diag(torch.tensor([*spacing, 1.0])).double())


def test_means_over_labels_are_simpleitks() -> None:
    spacing = (1.5, 0.8, 2.0)
    warped, fixed = labels()
    overlaps, distances = [], []
    for a, b in zip(warped[:2], fixed[:2], strict=True):
        images = [sitk.GetImageFromArray(mask.astype(np.uint8).transpose(2, 1, 0)) for mask in (a, b)]
        for item in images:
            item.SetSpacing(spacing)
        overlap, hausdorff = sitk.LabelOverlapMeasuresImageFilter(), sitk.HausdorffDistanceImageFilter()
        overlap.Execute(*images)
        hausdorff.Execute(*images)
        overlaps.append(overlap.GetDiceCoefficient())
        distances.append(hausdorff.GetHausdorffDistance())
    pair = label(warped, spacing), label(fixed, spacing)
    # The label that got lost counts 0, the one that is not in the fixed image does not count.
    assert float(LabelDice(label=None).measure(*pair)) == pytest.approx(np.mean([*overlaps, 0]), abs=1e-5)
    assert float(LabelHausdorff(label=None, percentile=100).measure(*pair)) == pytest.approx(
        np.mean(distances), abs=1e-4
    )
    assert float(LabelHausdorff(label=None, percentile=95).measure(*pair)) < np.mean(distances)


def test_a_case_without_labels_is_not_measured() -> None:
    nothing = label([np.zeros(SHAPE, dtype=np.float32)], (1, 1, 1))
    for metric in (LabelDice(label=None), LabelHausdorff(label=None)):
        metric([nothing], [nothing])
        assert math.isnan(metric.get_buffer()[0, 0]) and math.isnan(metric.aggregate())


def test_similarity_of_images_thinner_than_the_window_is_not_known() -> None:
    thin = torch.rand(1, 20, 20, 9)
    assert torch.isnan(ImageStructuralSimilarity([0, 1]).measure(thin, thin))
    thick = thin.repeat(1, 1, 1, 2)
    assert float(ImageStructuralSimilarity([0, 1]).measure(thick, thick)) == pytest.approx(1, abs=1e-6)
