"""The registration network of Bashkanov et al. 2021: a U-Net with a displacement field at every resolution."""

from __future__ import annotations

import torch
from regzoo.networks.blocks import FieldHead, initialise, normalisation, resize
from torch import nn


class ActivatedNorm(nn.Sequential):
    """A convolution that keeps the size, without bias; a leaky ReLU (slope 0.1); a normalisation: the paper's order."""

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: str) -> None:
        # An even kernel needs one more voxel of padding after than before; padding="same" would warn in every run.
        before, after = (kernel - 1) // 2, kernel // 2
        pad = [nn.ZeroPad3d((before, after) * 3)] if before != after else []
        super().__init__(
            *pad,
            nn.Conv3d(inputs, outputs, kernel, padding=0 if pad else before, bias=False),
            nn.LeakyReLU(0.1, inplace=True),
            normalisation(norm, outputs),
        )


class PyramidLevel(nn.Module):
    """One level of the decoder: join the coarser features with the skip, refine them and add to the field."""

    def __init__(self, inputs: int, outputs: int, fields: int, kernel: int, norm: str) -> None:
        super().__init__()
        self.join = ActivatedNorm(inputs + outputs, outputs, kernel, norm)
        self.residual = nn.Sequential(
            ActivatedNorm(outputs, outputs, 3, norm), ActivatedNorm(outputs, outputs, 3, norm)
        )
        self.head = FieldHead(outputs, fields)

    def forward(self, x: torch.Tensor, skip: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and field of the coarser level, skip of this one → features and field of this level."""
        x = self.join(torch.cat([resize(x, skip), skip], dim=1))
        x = x + self.residual(x)
        return x, resize(total, skip) + self.head(x)


class PyramidNet(nn.Module):
    """U-Net that predicts a displacement field at every level and adds the fields up from coarse to fine.

    The field of a level is resized trilinearly to the next finer level and added to the field there. Displacements are
    in voxels of the full resolution at every level, so resizing does not scale them. The heads start at zero, so an
    untrained network predicts no displacement. Any input size works.

    Args:
        in_channels: channels of the stacked input: fixed image, moving image and, if 3, moving label.
        out_channels: 3 for a DDF in voxels of the input grid.
        channels: width of the first level; it doubles at each of the `depth` levels.
        depth: number of down-sampling levels.
        kernel: size of the convolutions of the encoder and the decoder; residual convolutions and heads are 3³.
        norm: ``batch`` or ``instance``.

    Source: Bashkanov et al. 2021, section 2.3 and figure 2.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 4,
        depth: int = 4,
        kernel: int = 4,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(
            ActivatedNorm(inputs, outputs, kernel, norm)
            for inputs, outputs in zip([in_channels, *widths[:-2]], widths[:-1], strict=True)
        )
        # Rounding up uses every voxel of an odd-sized volume.
        self.pool = nn.MaxPool3d(2, ceil_mode=True)
        self.bottom = ActivatedNorm(widths[-2], widths[-1], kernel, norm)
        self.head = FieldHead(widths[-1], out_channels)
        self.decoder = nn.ModuleList(
            PyramidLevel(widths[level + 1], widths[level], out_channels, kernel, norm)
            for level in reversed(range(depth))
        )
        initialise(self)

    def contracting_path(self) -> list[nn.Module]:
        """The modules that ``freeze_encoder`` freezes."""
        return [*self.encoder, self.bottom]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, X, Y, Z), fixed image first → (B, out_channels, X, Y, Z) float32."""
        # Convolutions are fastest in the channels-last layout, on the CPU and on tensor cores.
        x = image.contiguous(memory_format=torch.channels_last_3d)
        skips: list[torch.Tensor] = []
        for level in self.encoder:
            skip = level(x)
            skips.append(skip)
            x = self.pool(skip)
        x = self.bottom(x)
        total = self.head(x)
        for index, level in enumerate(self.decoder):
            x, total = level(x, skips[len(skips) - 1 - index], total)
        return total
