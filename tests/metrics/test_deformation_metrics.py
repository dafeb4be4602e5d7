"""Deformation metrics against analytic fields and SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from regzoo.errors import RegZooError
from regzoo.metrics import FoldedVoxels, JacobianGradient, LogJacobianStd, deformation_statistics
from regzoo.spatial import DisplacementField, Grid
from scipy.ndimage import gaussian_filter

SHAPE = (14, 12, 10)


def coordinates() -> torch.Tensor:
    return torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in SHAPE], indexing="ij"))


def sheared_growth(rate: float) -> torch.Tensor:
    """u = (rate·x·y, 0, 0): det J = 1 + rate·y, exact under finite differences everywhere."""
    x, y, _ = coordinates()
    return torch.stack([rate * x * y, torch.zeros(SHAPE), torch.zeros(SHAPE)])


def random_field(seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).normal(size=(3, *SHAPE))
    smooth = np.stack([gaussian_filter(component, 1.5) for component in noise])
    return torch.from_numpy((smooth * 8).astype(np.float32))


def itk_determinant(ddf: torch.Tensor) -> np.ndarray:
    image = sitk.GetImageFromArray(ddf.numpy().transpose(3, 2, 1, 0).astype(np.float64), isVector=True)
    return sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image)).transpose(2, 1, 0)


def value(metric: FoldedVoxels | LogJacobianStd | JacobianGradient, ddf: torch.Tensor) -> float:
    metric.reset()
    metric([MetaTensor(ddf)], [torch.zeros(1)])
    assert metric.get_buffer().shape == (1, 1)
    return metric.aggregate().item()


def test_no_deformation() -> None:
    still = torch.zeros(3, *SHAPE)
    assert value(FoldedVoxels(), still) == 0
    assert value(LogJacobianStd(), still) == 0
    assert value(LogJacobianStd(mode="learn2reg"), still) == 0
    assert value(JacobianGradient(), still) == 0


def test_folds_of_an_analytic_field() -> None:
    # det J = 1 - y/4 is zero at y = 4 and negative beyond: 8 of 12 planes.
    assert value(FoldedVoxels(), sheared_growth(-0.25)) == pytest.approx(100 * 8 / 12)
    assert value(FoldedVoxels(), sheared_growth(0.25)) == 0
    # A mirror image folds everywhere; a uniform shrinking does not.
    mirror = coordinates() * torch.tensor([-2.0, 0, 0]).view(3, 1, 1, 1)
    assert value(FoldedVoxels(), mirror) == 100
    assert value(FoldedVoxels(), coordinates() * -0.5) == 0


def test_a_field_that_is_not_finite_counts_as_folded() -> None:
    assert value(FoldedVoxels(), torch.full((3, *SHAPE), torch.nan)) == 100


def test_log_jacobian_std_of_an_analytic_field() -> None:
    expected = np.std(np.log1p(0.1 * np.arange(SHAPE[1])))
    assert value(LogJacobianStd(), sheared_growth(0.1)) == pytest.approx(expected, rel=1e-5)
    # Folded planes have no logarithm and are left out.
    expected = np.std(np.log1p(-0.25 * np.arange(4)))
    assert value(LogJacobianStd(), sheared_growth(-0.25)) == pytest.approx(expected, rel=1e-5)
    # A uniform change of volume has no spread.
    assert value(LogJacobianStd(), coordinates() * 0.3) == pytest.approx(0, abs=1e-5)


def test_log_jacobian_std_of_learn2reg_matches_itk() -> None:
    field = random_field()
    determinant = itk_determinant(field)[2:-2, 2:-2, 2:-2]
    assert determinant.min() < 0 < 0.5 < determinant.std()  # a hard field, or the test says little
    expected = np.std(np.log(np.clip(determinant + 3, 1e-9, 1e9)))
    assert value(LogJacobianStd(mode="learn2reg"), field) == pytest.approx(expected, rel=1e-4)


def test_jacobian_gradient_of_an_analytic_field() -> None:
    assert value(JacobianGradient(), sheared_growth(0.03)) == pytest.approx(0.03, rel=1e-4)
    assert value(JacobianGradient(), coordinates() * 0.3) == pytest.approx(0, abs=1e-5)


def test_cases_and_batches() -> None:
    fields = [torch.zeros(3, *SHAPE), sheared_growth(-0.25)]
    metric = FoldedVoxels()
    metric(torch.stack(fields))
    assert metric.get_buffer().flatten().tolist() == pytest.approx([0, 100 * 8 / 12])
    assert metric.aggregate().item() == pytest.approx(50 * 8 / 12)


def test_half_precision_field() -> None:
    assert value(FoldedVoxels(), sheared_growth(-0.25).half()) == pytest.approx(100 * 8 / 12)


def test_statistics_for_json() -> None:
    ddf, spacing = sheared_growth(0.1), np.array([2.0, 1.0, 1.0])
    grid = Grid(SHAPE, np.diag([*spacing, 1.0]))
    found = deformation_statistics(DisplacementField(ddf * torch.from_numpy(spacing).view(3, 1, 1, 1), grid))
    assert found["folded_voxels_percent"] == 0
    assert found["jacobian_min"] == pytest.approx(1)
    assert found["jacobian_max"] == pytest.approx(1 + 0.1 * 11, rel=1e-5)
    assert found["jacobian_mean"] == pytest.approx(1 + 0.1 * 5.5, rel=1e-5)
    assert found["displacement_max_mm"] == pytest.approx(2 * 0.1 * 13 * 11, rel=1e-5)
    assert found["displacement_mean_mm"] == pytest.approx(2 * 0.1 * 6.5 * 5.5, rel=1e-5)
    assert found["jacobian_gradient"] == pytest.approx(0.1, rel=1e-4)
    assert all(type(v) is float for v in found.values())


def test_bad_arguments() -> None:
    with pytest.raises(RegZooError, match="plain or learn2reg"):
        LogJacobianStd(mode="log10")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(3, X, Y, Z\)"):
        FoldedVoxels()([torch.zeros(2, 4, 4, 4)])
