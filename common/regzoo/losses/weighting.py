"""Weights of loss terms that are learned along with the network.

In a config, one of these classes replaces the numbers in `RegistrationLoss`, and the optimiser gets the parameters of
both: ``list(network.parameters()) + list(loss.parameters())``. ``loss.state_dict()`` contains the learned weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn


class LearnedWeights(nn.Module):
    """Base class of learned weights: one free parameter per term.

    Args:
        names: the terms whose weights are learned.
        fixed: name → weight of terms with a fixed weight. A penalty on the deformation belongs here: no data oppose
            it, so its learned weight would depend on nothing but the penalty itself.
        initial: name → positive initial weight; 1 for terms without one.

    Raises:
        ValueError: no names, a repeated name, a name both learned and fixed, or an invalid initial weight.
    """

    def __init__(
        self, names: Sequence[str], fixed: Mapping[str, float] | None = None, initial: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.fixed = {name: float(weight) for name, weight in (fixed or {}).items()}
        self.initial = {name: float((initial or {}).get(name, 1.0)) for name in self.names}
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"names must be different loss terms, at least one, got {list(self.names)}")
        if both := sorted(set(self.names) & set(self.fixed)):
            raise ValueError(f"the weights of {both} cannot be both learned and fixed; give them in one place")
        if unknown := sorted(set(initial or {}) - set(self.names)):
            raise ValueError(
                f"initial weights for {unknown}, which are not learned; the learned weights are {self.names}"
            )
        if min(self.initial.values()) <= 0:
            raise ValueError(f"initial weights must be positive, got {self.initial}")

    def extra_repr(self) -> str:
        return f"names={self.names}, fixed={self.fixed}, initial={self.initial}"

    def forward(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum of the terms in `names`, given name → value (scalars); other terms are ignored."""
        raise NotImplementedError

    def weights(self) -> dict[str, torch.Tensor]:
        """Name → current weight, detached, on the device."""
        raise NotImplementedError

    def _parameter(self, sign: float) -> nn.Parameter:
        """One number per name: `sign` times the logarithm of its initial weight."""
        return nn.Parameter(torch.tensor([sign * math.log(weight) for weight in self.initial.values()]))

    def _values(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([values[name] for name in self.names])


class UncertaintyWeights(LearnedWeights):
    """Σ exp(−sᵢ)·Lᵢ + sᵢ with learned sᵢ = log σᵢ², the uncertainty of each term.

    At the optimum the weight of a term is the inverse of its value, so terms of any scale contribute equally. Terms
    must be positive: the weight of a term that falls to zero or below would grow without bound.

    Source: Kendall et al. 2018, without the factors of ½, which a change of sᵢ absorbs.
    """

    def __init__(
        self, names: Sequence[str], fixed: Mapping[str, float] | None = None, initial: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(names, fixed, initial)
        self.log_variances = self._parameter(-1.0)

    def forward(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Σ exp(−sᵢ)·Lᵢ + sᵢ, given name → Lᵢ (scalars)."""
        log_variances = _shared(self.log_variances)
        return ((-log_variances).exp() * self._values(values) + log_variances).sum()

    def weights(self) -> dict[str, torch.Tensor]:
        """Name → exp(−sᵢ), detached, on the device."""
        return dict(zip(self.names, (-self.log_variances.detach()).exp().unbind(), strict=True))


class SoftmaxWeights(LearnedWeights):
    """Σ wᵢ·Lᵢ, where the weights are the softmax of free parameters and therefore sum to 1.

    This follows the paper's code. Nothing opposes a shift of weight to the smallest term, so the weights move there.

    Source: Pérez de Frutos et al. 2023, equation 1, and its code.
    """

    def __init__(
        self, names: Sequence[str], fixed: Mapping[str, float] | None = None, initial: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(names, fixed, initial)
        self.logits = self._parameter(1.0)

    def forward(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Σ wᵢ·Lᵢ, given name → Lᵢ (scalars)."""
        return (_shared(self.logits).softmax(0) * self._values(values)).sum()

    def weights(self) -> dict[str, torch.Tensor]:
        """Name → wᵢ, detached, on the device."""
        return dict(zip(self.names, self.logits.detach().softmax(0).unbind(), strict=True))


def _shared(parameter: torch.Tensor) -> torch.Tensor:
    """The parameter, with its gradient averaged over all processes, as in `DistributedDataParallel`."""
    if torch.is_grad_enabled() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        parameter = parameter.view_as(parameter)
        parameter.register_hook(_mean)
    return parameter


def _mean(gradient: torch.Tensor) -> torch.Tensor:
    mean = gradient / dist.get_world_size()
    dist.all_reduce(mean)
    return mean
