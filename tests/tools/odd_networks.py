"""Networks that fit a bundle, but that TorchScript cannot export as they are."""

from __future__ import annotations

import torch
from torch import nn


class Branching(nn.Module):
    """Does something else with dark images than with bright ones, which a trace does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(3, 3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result = self.convolution(image)
        if bool(image.mean() > 0.25):
            result = -result
        return result


class Unscriptable(Branching):
    """Uses what TorchScript has no word for."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.convolution(torch.stack([*(channel for channel in image)]))


class Faint(Branching):
    """The same with values far below what is tolerated where values are as large as one."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 1e-6 * super().forward(image)
