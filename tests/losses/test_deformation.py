"""Penalties on roughness, against MONAI, NumPy, analytic fields and autograd."""

from __future__ import annotations

from collections.abc import Callable

import monai.losses.deform
import numpy as np
import pytest
import torch
from helpers import smooth_ddf
from regzoo.losses import BendingEnergy, GradientNorm

SHAPE = (11, 8, 9)
SPACING = (0.7, 1.3, 2.0)
DDF = torch.from_numpy(np.stack([smooth_ddf(SHAPE, 3, 1, seed) for seed in range(2)]))


def numpy_energy(ddf: np.ndarray, wide: bool, spacing: tuple[float, ...] = (1, 1, 1)) -> float:
    """Bending energy by NumPy, in mm where a spacing is given."""
    margin = 2 if wide else 1
    total = 0.0
    for field in ddf.astype(float):
        for component, scale in zip(field, spacing, strict=True):
            first = np.gradient(component * scale, *spacing)
            for i in range(3):
                second = list(np.gradient(first[i], *spacing))
                if not wide:
                    ahead, behind = np.roll(component, -1, i), np.roll(component, 1, i)
                    second[i] = (ahead - 2 * component + behind) * scale / spacing[i] ** 2
                total += sum((d[(slice(margin, -margin),) * 3] ** 2).mean() for d in second)
    return total / (len(ddf) * 3)


@pytest.mark.parametrize("spacing", [None, SPACING])
@pytest.mark.parametrize("stencil", ["compact", "wide"])
def test_bending_equals_numpy(stencil: str, spacing: tuple[float, ...] | None) -> None:
    expected = numpy_energy(DDF.numpy(), stencil == "wide", spacing or (1, 1, 1))
    assert float(BendingEnergy(stencil, spacing)(DDF)) == pytest.approx(expected, rel=1e-5)


def test_bending_equals_monai() -> None:
    # MONAI went from the wide stencil to the compact one.
    compact = hasattr(monai.losses.deform, "spatial_gradient_squared")
    theirs = monai.losses.BendingEnergyLoss()(DDF)
    assert float(BendingEnergy("compact" if compact else "wide")(DDF)) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("loss", [BendingEnergy("compact"), BendingEnergy("wide"), GradientNorm()])
def test_what_costs_nothing(loss: torch.nn.Module) -> None:
    x, y, z = np.indices(SHAPE).astype(np.float32)
    affine = torch.from_numpy(np.stack([0.2 * x - 0.1 * y + 1, 0.3 * z, 0.5 * x + 0.1 * z - 2]))[None]
    expected = (0.2**2 + 0.1**2 + 0.3**2 + 0.5**2 + 0.1**2) / 3 if isinstance(loss, GradientNorm) else 0
    assert float(loss(affine)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("stencil", ["compact", "wide"])
def test_bending_of_a_quadratic_field(stencil: str) -> None:
    # Σ over i, j of (∂²u/∂i∂j)²: mixed derivatives count twice.
    x, y, z = np.indices(SHAPE).astype(np.float32)
    field = np.stack([0.1 * x**2 - 0.05 * y * z, 0.08 * x * z, 0.02 * z**2 + 0.03 * y**2])
    expected = (0.2**2 + 2 * 0.05**2 + 2 * 0.08**2 + 0.04**2 + 0.06**2) / 3
    assert float(BendingEnergy(stencil)(torch.from_numpy(field)[None])) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("loss", [BendingEnergy, GradientNorm])
def test_in_mm_the_voxel_size_does_not_matter(loss: type) -> None:
    def sampled(shape: tuple[int, ...], spacing: tuple[float, ...]) -> torch.Tensor:
        """One field of the world, in mm by mm, as voxels of a grid."""
        x, y, z = np.indices(shape) * np.reshape(spacing, (3, 1, 1, 1)) - 8
        field = np.stack([0.05 * x * y + 0.02 * z, 0.04 * z**2 - 0.1 * x, 0.03 * y * z + 0.01 * x * x])
        if loss is GradientNorm:  # central differences of a plane are exact, and its mean does not depend on the grid
            field = np.stack([0.2 * x + 0.02 * z, 0.3 * y - 0.1 * x, 0.4 * z])
        return torch.from_numpy(field / np.reshape(spacing, (3, 1, 1, 1))).float()[None]

    values = [
        float(loss(spacing=spacing)(sampled(shape, spacing)))
        for shape, spacing in (((17, 17, 17), (1, 1, 1)), ((9, 12, 33), (2, 1.5, 0.5)), ((7, 7, 7), SPACING))
    ]
    np.testing.assert_allclose(values, values[0], rtol=2e-3)
    assert values[0] > 1e-3


@pytest.mark.parametrize("spacing", [None, SPACING])
def test_gradient_norm_equals_numpy(spacing: tuple[float, ...] | None) -> None:
    unit = spacing or (1, 1, 1)
    squares = [
        np.square(np.gradient(component * scale, *unit))[(slice(None), *(slice(1, -1),) * 3)].sum(0).mean()
        for field in DDF.double().numpy()
        for component, scale in zip(field, unit, strict=True)
    ]
    assert float(GradientNorm(spacing)(DDF)) == pytest.approx(np.mean(squares), rel=1e-5)


def sliced_bending(u: torch.Tensor, wide: bool) -> torch.Tensor:
    """Bending energy by slices, for autograd, in voxels."""

    def along(v: torch.Tensor, axis: int) -> torch.Tensor:
        n = v.shape[axis]
        return (v.narrow(axis, 2, n - 2) - v.narrow(axis, 0, n - 2)) / 2

    def cut(v: torch.Tensor, *done: int) -> torch.Tensor:
        """To the interior all differences share."""
        for axis in (2, 3, 4):
            rest = (2 if wide else 1) - done.count(axis)
            v = v.narrow(axis, rest, v.shape[axis] - 2 * rest)
        return v

    total = torch.zeros((), dtype=u.dtype)
    for i in (2, 3, 4):
        for j in (2, 3, 4):
            if i == j and not wide:
                second = cut(u.diff(n=2, dim=i), i)
            else:
                second = cut(along(along(u, i), j), i, j)
            total = total + second.square().mean()
    return total


def central_squares(u: torch.Tensor) -> torch.Tensor:
    return torch.stack([d[..., 1:-1, 1:-1, 1:-1].square().mean() for d in torch.gradient(u, dim=(2, 3, 4))]).sum()


@pytest.mark.parametrize(
    ("loss", "direct"),
    [
        (BendingEnergy("compact"), lambda u: sliced_bending(u, wide=False)),
        (BendingEnergy("wide"), lambda u: sliced_bending(u, wide=True)),
        (GradientNorm(), central_squares),
    ],
    ids=["compact", "wide", "gradient"],
)
def test_gradient_equals_autograd(loss: torch.nn.Module, direct: Callable[[torch.Tensor], torch.Tensor]) -> None:
    ours, theirs = DDF.clone().requires_grad_(), DDF.double().requires_grad_()
    (3 * loss(ours)).backward()
    (3 * direct(theirs)).backward()
    assert float(loss(DDF)) == pytest.approx(float(direct(DDF.double())), rel=1e-5)
    assert ours.grad is not None
    assert theirs.grad is not None
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), atol=1e-5 * float(theirs.grad.abs().max()))


def test_gradient_in_mm_is_the_slope_of_numpys_energy() -> None:
    ddf = DDF.clone().requires_grad_()
    BendingEnergy(spacing=SPACING)(ddf).backward()
    step = np.random.default_rng(0).normal(size=DDF.shape)
    ahead, behind = (numpy_energy(DDF.numpy() + h * step, wide=False, spacing=SPACING) for h in (1e-3, -1e-3))
    assert ddf.grad is not None
    assert float((ddf.grad.double().numpy() * step).sum()) == pytest.approx((ahead - behind) / 2e-3, rel=1e-4)


@pytest.mark.parametrize("loss", [BendingEnergy("compact"), BendingEnergy("wide"), GradientNorm(SPACING)])
def test_float32_under_autocast(loss: torch.nn.Module) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(DDF)
    assert value.dtype == torch.float32
    assert float(value) == float(loss(DDF))
    half = DDF.bfloat16().requires_grad_()
    loss(half).backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="stencil"):
        BendingEnergy("narrow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="too small"):
        BendingEnergy("wide")(torch.zeros(1, 3, 8, 4, 8))
