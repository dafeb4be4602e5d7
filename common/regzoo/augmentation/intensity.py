"""Random intensities for the images of a batch, on the device of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from regzoo.case import SIDES


class RandomIntensityPair:
    """Changes the intensities of the fixed and the moving image of each sample, independently of each other.

    Intensities in [0, 1] are raised to a random power, multiplied by a smooth field, as an uneven receive coil does,
    and get noise.

    Args:
        gamma: smallest and largest exponent; log-uniform.
        bias: standard deviation of the logarithm of the field, at 3 × 3 × 3 points that span the image.
        noise: largest standard deviation of the noise; uniform from 0.
    """

    def __init__(self, gamma: Sequence[float] = (0.67, 1.5), bias: float = 0.1, noise: float = 0.05) -> None:
        if len(gamma) != 2 or not 0 < gamma[0] <= gamma[1]:
            raise ValueError(f"gamma must be two positive numbers, the smaller first, got {gamma}")
        if bias < 0 or noise < 0:
            raise ValueError(f"bias and noise must be at least 0, got {bias} and {noise}")
        self.gamma = torch.tensor([float(value) for value in gamma]).log()
        self.bias, self.noise = float(bias), float(noise)

    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, torch.Tensor]:
        """The batch with other images (B, 1, X, Y, Z); `seeds` is (B,) int64 on the CPU."""
        result = dict(batch)
        for offset, side in enumerate(SIDES):
            image = batch[side.image]
            drawn = [self._draw(2 * int(seed) + offset, image.shape[1:]) for seed in seeds]
            power, field, noise = (
                torch.stack(parts).to(image.device, non_blocking=True) for parts in zip(*drawn, strict=True)
            )
            field = F.interpolate(field, image.shape[2:], mode="trilinear", align_corners=True).exp()
            result[side.image] = image.clamp(0, 1) ** power * field + noise
        return result

    def _draw(self, seed: int, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The exponent, the logarithm of the field, and the noise of one image."""
        generator = torch.Generator().manual_seed(seed ^ 0x1F3A)
        low, high = self.gamma
        power, strength = torch.rand(2, 1, 1, 1, 1, generator=generator)
        field = torch.randn(1, 3, 3, 3, generator=generator) * self.bias
        noise = torch.randn(tuple(shape), generator=generator) * (strength * self.noise)
        return (low + (high - low) * power).exp(), field, noise
