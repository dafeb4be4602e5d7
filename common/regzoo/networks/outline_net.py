"""A network that outlines the labels in both images and registers the images with the help of these outlines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from regzoo.networks.voxelmorph import VoxelMorphNet
from regzoo.spatial import warp
from torch import nn


class OutlineNet(VoxelMorphNet):
    """Outlines the labels with MONAI's U-Net, then predicts a velocity field with a `VoxelMorphNet`.

    One U-Net outlines both images, each on its own. Its probabilities are shown to the registration as further channels
    of the images; no gradient flows back through them. The network is antisymmetric: the velocity is half the
    difference between the predictions for the pair and for the pair with its images swapped. So an image that is
    registered to itself stays where it is, and swapped images give the inverse transformation, up to discretisation.
    Each pass adds to the velocity; it sees both images as half the velocity so far warps them to the middle.

    Args:
        labels: number of labels, which exclude each other.
        outline_channels: width of each level of the U-Net that outlines; each level has half the resolution.
        channels, norm, stride, passes, steps: of the registration, see `VoxelMorphNet`.

    Source: label-driven training, Hu et al. 2018; outlines as input, Xu and Niethammer 2019 ("DeepAtlas", where the two
    networks learn jointly); middle, Avants et al. 2008.
    """

    def __init__(
        self,
        labels: int = 2,
        outline_channels: Sequence[int] = (16, 32, 64, 128),
        channels: Sequence[int] = (32, 32, 32),
        norm: str | None = "instance",
        stride: int = 2,
        passes: int = 2,
        steps: int = 5,
    ) -> None:
        super().__init__(
            2 * (1 + labels), channels, norm=norm, stride=stride, passes=passes, diffeomorphic=True, steps=steps
        )
        strides = [2] * (len(outline_channels) - 1)
        self.multiple = math.lcm(self.multiple, 2 ** len(strides))
        self.outliner = UNet(3, 1, labels + 1, outline_channels, strides, num_res_units=1, norm="instance")

    def contracting_path(self) -> list[nn.Module]:
        """The modules that ``freeze_encoder`` freezes: those that outline, and the encoder of the registration."""
        return [self.outliner, *super().contracting_path()]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 2, X, Y, Z), fixed image first → (B, 3 + 2 (labels + 1), X, Y, Z) float32.

        The channels are the DDF in voxels, the logits of the background and of each label in the fixed image, and the
        same in the moving image.
        """
        x, y, z = image.shape[2], image.shape[3], image.shape[4]
        extra = [-z % self.multiple, -y % self.multiple, -x % self.multiple]
        if sum(extra) > 0:
            image = F.pad(image, [0, extra[0], 0, extra[1], 0, extra[2]], mode="replicate")
        # Both sides are one batch: the fixed images, then the moving ones.
        sides = torch.cat([image[:, :1], image[:, 1:]])
        logits = self.outliner(sides).float()
        sides = torch.cat([sides.float(), logits.detach().softmax(dim=1)[:, 1:]], dim=1)
        velocity = self.velocity(sides)
        for _ in range(self.passes - 1):
            half = 0.5 * velocity.detach()
            moved = warp(sides, self.displacement(torch.cat([-half, half])), padding="border")
            velocity = velocity + self.velocity(moved)
        fixed, moving = logits.chunk(2)
        return torch.cat([self.displacement(velocity), fixed, moving], dim=1)[:, :, :x, :y, :z]

    def velocity(self, sides: torch.Tensor) -> torch.Tensor:
        """The velocity that takes the first half of a batch of sides to the second, on every `stride`-th voxel."""
        fixed, moving = sides.chunk(2)
        pairs = torch.cat([torch.cat([fixed, moving], dim=1), torch.cat([moving, fixed], dim=1)])
        there, back = self.coarse_field(pairs).chunk(2)
        return 0.5 * (there - back)
