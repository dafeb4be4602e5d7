"""Penalties on the roughness of a displacement field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from regzoo.filters import matrix_for
from torch import nn

Offset = tuple[int, int, int]


class Term(NamedTuple):
    """One squared finite difference: Σ weight · (Σ_k coefficient_k · u[voxel + offset_k])²."""

    weight: float
    taps: tuple[tuple[Offset, float], ...]


def _unit(axis: int, length: int = 1) -> Offset:
    return (length * (axis == 0), length * (axis == 1), length * (axis == 2))


def _first_difference(axis: int) -> tuple[tuple[Offset, float], ...]:
    return ((_unit(axis), 0.5), (_unit(axis, -1), -0.5))


def _second_difference(i: int, j: int, wide: bool) -> tuple[tuple[Offset, float], ...]:
    if i == j and not wide:
        return ((_unit(i), 1.0), ((0, 0, 0), -2.0), (_unit(i, -1), 1.0))
    taps: dict[Offset, float] = {}
    for a, ca in _first_difference(i):
        for b, cb in _first_difference(j):
            offset = (a[0] + b[0], a[1] + b[1], a[2] + b[2])
            taps[offset] = taps.get(offset, 0.0) + ca * cb
    return tuple(taps.items())


class _SquaredDifferences(torch.autograd.Function):
    """The sum over terms of the weighted mean squared difference in the interior; `forward` also finds the gradient.

    The penalty is quadratic, so its gradient is the adjoint of each difference applied to the difference itself.
    Accumulating in place needs no padded copies and only one gradient buffer, unlike autograd on slices.
    """

    @staticmethod
    def forward(ctx: Any, ddf: torch.Tensor, terms: tuple[Term, ...], margin: int) -> torch.Tensor:
        size = [n - 2 * margin for n in ddf.shape[2:]]

        def shifted(volume: torch.Tensor, offset: Offset) -> torch.Tensor:
            for axis in range(3):
                volume = volume.narrow(2 + axis, margin + offset[axis], size[axis])
            return volume

        gradient = torch.zeros_like(ddf) if ctx.needs_input_grad[0] else None
        count = ddf.shape[0] * ddf.shape[1] * size[0] * size[1] * size[2]
        total = ddf.new_zeros(())
        for weight, taps in terms:
            difference = shifted(ddf, taps[0][0]) * taps[0][1]
            for offset, coefficient in taps[1:]:
                difference.add_(shifted(ddf, offset), alpha=coefficient)
            total = total + difference.square().sum() * (weight / count)
            if gradient is not None:
                for offset, coefficient in taps:
                    shifted(gradient, offset).add_(difference, alpha=2 * weight * coefficient / count)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None


class _Roughness(nn.Module):
    """Base class that converts displacements to mm if a spacing is given and evaluates the terms in float32."""

    def __init__(self, terms: Sequence[Term], margin: int, spacing: Sequence[float] | None) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self.margin = margin
        self.spacing = None if spacing is None else [float(s) for s in spacing]

    def extra_repr(self) -> str:
        return f"margin={self.margin}, spacing={self.spacing}"

    def forward(self, ddf: torch.Tensor) -> torch.Tensor:
        """DDF (B, 3, X, Y, Z), voxels → scalar."""
        if min(ddf.shape[2:]) <= 2 * self.margin:
            raise ValueError(f"a field of {tuple(ddf.shape[2:])} voxels is too small for this stencil")
        with torch.autocast(ddf.device.type, enabled=False):
            ddf = ddf.float()
            if self.spacing is not None:
                ddf = ddf * matrix_for(ddf.device, torch.tensor, tuple(self.spacing)).view(1, 3, 1, 1, 1)
            penalty = _SquaredDifferences.apply(ddf, self.terms, self.margin)  # type: ignore[no-untyped-call]
        return torch.as_tensor(penalty)


def _per_mm(spacing: Sequence[float] | None, *axes: int) -> float:
    """The product of 1 / spacing² over the axes of a derivative; 1 in voxel units."""
    return 1.0 if spacing is None else math.prod(float(spacing[axis]) ** -2 for axis in axes)


class BendingEnergy(_Roughness):
    """Mean over voxels and components of the squared second derivatives; mixed derivatives count twice.

    Args:
        stencil: ``compact`` is [1, −2, 1]; ``wide`` applies the central difference twice, as the papers' code does, and
            so reaches two voxels.
        spacing: voxel size in mm, to compute displacements and derivatives in mm; None keeps voxel units.

    Source: Rueckert et al. 1999, equation 4; Hu et al. 2018, section 2.1.
    """

    def __init__(self, stencil: Literal["compact", "wide"] = "compact", spacing: Sequence[float] | None = None) -> None:
        if stencil not in ("compact", "wide"):
            raise ValueError(f"stencil must be 'compact' or 'wide', not {stencil!r}")
        wide = stencil == "wide"
        terms = [
            Term((1.0 if i == j else 2.0) * _per_mm(spacing, i, j), _second_difference(i, j, wide))
            for i in range(3)
            for j in range(i, 3)
        ]
        super().__init__(terms, 2 if wide else 1, spacing)


class GradientNorm(_Roughness):
    """Mean over voxels and components of the squared first derivatives (central differences), summed over directions.

    Args:
        spacing: voxel size in mm, to compute displacements and derivatives in mm; None keeps voxel units.

    Source: Hu et al. 2018, section 3.2.1 ("Baseline-L2"); Balakrishnan et al. 2019.
    """

    def __init__(self, spacing: Sequence[float] | None = None) -> None:
        terms = [Term(_per_mm(spacing, axis), _first_difference(axis)) for axis in range(3)]
        super().__init__(terms, 1, spacing)
