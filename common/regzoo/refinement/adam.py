"""Adam for one tensor."""

from __future__ import annotations

import torch
from torch.optim.adam import adam


class Adam:
    """`torch.optim.Adam` with ``fused=True``, for parameters that are updated in place.

    The first optimiser object of `torch.optim` imports PyTorch's compiler, which takes longer than the registration of
    a small pair. The function behind it does not.
    """

    def __init__(self, parameters: torch.Tensor, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.parameters, self.betas = parameters.detach(), betas
        self.mean, self.square = torch.zeros_like(self.parameters), torch.zeros_like(self.parameters)
        self.count = torch.zeros((), device=parameters.device)

    def step(self, gradient: torch.Tensor, rate: float) -> None:
        """Update the parameters by a gradient; the type and the memory layout of both must be the same."""
        adam(
            [self.parameters],
            [gradient],
            [self.mean],
            [self.square],
            [],
            [self.count],
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
