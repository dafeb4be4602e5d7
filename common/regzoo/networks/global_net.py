"""Networks with an affine part: the earlier variants of Hu et al. 2018."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from regzoo.networks.blocks import Encoder, initialise
from regzoo.networks.local_net import LocalNet
from regzoo.spatial import warp
from torch import nn


class GlobalNet(nn.Module):
    """Predicts one affine transformation as a DDF, the identity at initialisation.

    The bottom features are pooled to 4³. Images of any size therefore work, unlike in MONAI's GlobalNet.

    Args:
        in_channels: channels of the stacked input, fixed image first.
        channels: width of the first level.
        depth: number of down-sampling levels.
        norm: ``batch`` or ``instance``.

    Source: Hu et al. 2018, section 3.2.1 ("Global-Net", 8 initial channels).
    """

    def __init__(self, in_channels: int = 2, channels: int = 8, depth: int = 4, norm: str = "batch") -> None:
        super().__init__()
        self.encoder = Encoder(in_channels, channels, depth, norm)
        self.theta = nn.Linear(channels * 2**depth * 4**3, 12)
        initialise(self)
        nn.init.zeros_(self.theta.weight)

    def contracting_path(self) -> list[nn.Module]:
        """The modules that ``freeze_encoder`` freezes."""
        return [self.encoder]

    def affine(self, image: torch.Tensor) -> torch.Tensor:
        """The map minus the identity, (B, 3, 4), in coordinates from -1 to 1 along each axis, array order."""
        bottom, _ = self.encoder(image.contiguous(memory_format=torch.channels_last_3d))
        pooled = F.adaptive_avg_pool3d(bottom.float(), 4).flatten(1)
        # Written out, because autocast would run the layer in half precision.
        return ((pooled[:, None] * self.theta.weight).sum(dim=2) + self.theta.bias).view(-1, 3, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, X, Y, Z) → DDF (B, 3, X, Y, Z) float32, voxels."""
        return affine_displacement(self.affine(image), voxels_of(image))


class CompositeNet(nn.Module):
    """A `GlobalNet` followed by a `LocalNet` that sees the globally warped moving image; the two are composed.

    Args:
        channels: width of the local network.
        global_channels: width of the global network.
        levels, additive_upsampling, norm: see `LocalNet`.

    Source: Hu et al. 2018, section 3.2.1 ("Composite-Net").
    """

    def __init__(
        self,
        channels: int = 32,
        global_channels: int = 8,
        depth: int = 4,
        levels: Sequence[int] = (0, 1, 2, 3, 4),
        additive_upsampling: bool = True,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.global_net = GlobalNet(2, global_channels, depth, norm)
        self.local_net = LocalNet(2, 3, channels, depth, levels, additive_upsampling, norm)

    def contracting_path(self) -> list[nn.Module]:
        """The modules that ``freeze_encoder`` freezes."""
        return [*self.global_net.contracting_path(), *self.local_net.contracting_path()]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 2, X, Y, Z), fixed image first → DDF (B, 3, X, Y, Z) float32, voxels."""
        points = voxels_of(image)
        theta = self.global_net.affine(image)
        moved = warp(image[:, 1:], affine_displacement(theta, points), padding="border")
        local = self.local_net(torch.cat([image[:, :1], moved.to(image.dtype)], dim=1))
        # moved(x + local) = moving(A(x + local)), so the whole displacement is local plus that of A at x + local.
        return local + affine_displacement(theta, points + local)


def voxels_of(image: torch.Tensor) -> torch.Tensor:
    """The coordinates of every voxel of an image (B, C, X, Y, Z): (B, 3, X, Y, Z) float32."""
    x, y, z = [torch.arange(n, device=image.device, dtype=torch.float32) for n in image.shape[2:]]
    return torch.stack(torch.meshgrid(x, y, z, indexing="ij")).expand(image.shape[0], -1, -1, -1, -1)


def affine_displacement(theta: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Displacement by an affine map, for one point per voxel of a grid.

    Args:
        theta: (B, 3, 4), the map minus the identity, in coordinates from -1 to 1 along each axis.
        points: (B, 3, X, Y, Z), voxels.

    Returns:
        (B, 3, X, Y, Z), voxels.
    """
    # Filled on the device: an upload would make the host wait in every step.
    half = torch.stack([torch.full([], max(n - 1, 1) / 2, device=points.device) for n in points.shape[2:]])
    half = half.view(1, 3, 1, 1, 1)
    normalised = points / half - 1
    # Written as sums, because autocast would run a matrix product in half precision.
    columns = theta[:, :, :, None, None, None]
    change = columns[:, :, 3]
    for axis in range(3):
        change = change + columns[:, :, axis] * normalised[:, axis : axis + 1]
    return change * half
