"""The registration network of Hu et al. 2018: image pair → dense displacement field."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from regzoo.networks.blocks import Encoder, FieldHead, UpBlock, initialise, resize
from torch import nn


class LocalNet(nn.Module):
    """Residual encoder–decoder whose output is the sum of predictions at several resolutions.

    Each chosen level has a 3³ convolution with bias that starts at zero, so an untrained network predicts no
    displacement. Its output is resized trilinearly to the size of the input. Any input size works.

    Args:
        in_channels: channels of the stacked input, fixed image first.
        out_channels: 3 for a DDF in voxels of the input grid.
        channels: width n0 of the first level; it doubles at each of the `depth` levels.
        depth: number of down-sampling levels.
        levels: levels whose predictions are summed: 0 is full resolution, `depth` the bottom.
        additive_upsampling: add a trilinear resize to each transposed convolution.
        norm: ``batch`` or ``instance``.

    Source: Hu et al. 2018, section 2.3 and figure 4; skip connections from the first convolution of a level, as in the
    paper's code. MONAI's LocalNet instead averages the levels and up-samples them by nearest neighbour.
    """

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 3,
        channels: int = 32,
        depth: int = 4,
        levels: Sequence[int] = (0, 1, 2, 3, 4),
        additive_upsampling: bool = True,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if not levels or min(levels) < 0 or max(levels) > depth:
            raise ValueError(f"levels must lie between 0 and depth={depth}, got {list(levels)}")
        widths = [channels * 2**level for level in range(depth + 1)]
        self.lowest = min(levels)
        self.encoder = Encoder(in_channels, channels, depth, norm)
        # Levels finer than the finest prediction do not reach the output and are not built.
        self.decoder = nn.ModuleList(
            UpBlock(widths[level + 1], widths[level], norm, additive_upsampling)
            for level in reversed(range(self.lowest, depth))
        )
        self.heads = nn.ModuleList(
            FieldHead(widths[level], out_channels) if level in levels else nn.Identity()
            for level in reversed(range(self.lowest, depth + 1))
        )
        self.active = [level in levels for level in reversed(range(self.lowest, depth + 1))]
        initialise(self)

    def contracting_path(self) -> list[nn.Module]:
        """The modules that ``freeze_encoder`` freezes."""
        return [self.encoder]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, X, Y, Z) → (B, out_channels, X, Y, Z) float32."""
        # Convolutions are fastest in the channels-last layout, on the CPU and on tensor cores.
        x, skips = self.encoder(image.contiguous(memory_format=torch.channels_last_3d))
        features = [x]
        for index, block in enumerate(self.decoder):
            x = block(x, skips[len(skips) - 1 - index])
            features.append(x)
        outputs: list[torch.Tensor] = []
        for index, head in enumerate(self.heads):
            if self.active[index]:
                level = head(features[index])
                if index < len(self.heads) - 1 or self.lowest > 0:
                    level = resize(level, image)
                outputs.append(level)
        total = outputs[0]
        for level in outputs[1:]:
            total = total + level
        return total
