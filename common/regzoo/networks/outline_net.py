"""A network that outlines the labels in both images and registers the images by these outlines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet
from regzoo.errors import RegZooError
from regzoo.networks.blocks import keep_channels_last
from regzoo.networks.voxelmorph import identity_grid, integrate, square, to_grid
from regzoo.spatial.warp import grid_sample
from torch import nn


class OutlineNet(nn.Module):
    """Outlines the labels with MONAI's U-Net, then matches the outlines of both images by demons.

    One U-Net outlines both images, each on its own. The registration has no parameters: a stationary velocity field
    begins as the shift between the centres of the outlines, and each iteration adds the force of the demons that pulls
    the outlines of the moving image, as warped so far, to those of the fixed image. So an image that is registered to
    itself stays where it is. The iterations run at half resolution first, then at full resolution. Labels train the
    outlines only, so in training the demons do not run, and the DDF is the shift between the centres.

    Args:
        labels: number of labels, which exclude each other.
        channels: width of each level of the U-Net, the image's resolution first, and of its last convolutions.
        iterations: of the demons, at half and at full resolution.

    Raises:
        RegZooError: not six channels, or iterations that are not two numbers of at least 0.

    Source: label-driven training, Hu et al. 2018; registration by predicted outlines, Xu and Niethammer 2019
    ("DeepAtlas"); forces, Thirion 1998; on velocity fields, Vercauteren et al. 2008 ("log-demons").
    """

    def __init__(
        self, labels: int = 2, channels: Sequence[int] = (16, 16, 32, 64, 64, 16), iterations: Sequence[int] = (20, 4)
    ) -> None:
        super().__init__()
        if len(iterations) != 2 or min(iterations) < 0:
            raise RegZooError(f"iterations: must be two whole numbers of at least 0, not {list(iterations)}; write two")
        if len(channels) != 6:
            raise RegZooError(f"channels: has {len(channels)} widths, and this U-Net six; write six")
        self.coarse, self.fine = int(iterations[0]), int(iterations[1])
        self.outliner = BasicUNet(3, 1, labels + 1, channels, norm=("instance", {"affine": True}))
        keep_channels_last(self.outliner)

    def extra_repr(self) -> str:
        """The settings for the repr, because checkpoints tell networks apart by it."""
        return f"iterations=({self.coarse}, {self.fine})"

    def contracting_path(self) -> list[nn.Module]:
        """The modules that ``freeze_encoder`` freezes: the encoder of the U-Net, without the bottom."""
        unet = self.outliner
        return [unet.conv_0, unet.down_1, unet.down_2, unet.down_3]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 2, X, Y, Z), fixed image first → (B, 3 + 2 (labels + 1), X, Y, Z) float32.

        The channels are the DDF in voxels, the logits of the background and of each label in the fixed image, and the
        same in the moving image.
        """
        x, y, z = image.shape[2], image.shape[3], image.shape[4]
        # Half of the size has to be whole, and instances need more than one voxel at the bottom of the U-Net.
        extra = [max(n + n % 2, 32) - n for n in (z, y, x)]
        if sum(extra) > 0:
            image = F.pad(image, [0, extra[0], 0, extra[1], 0, extra[2]], mode="replicate")
        # Convolutions are fastest in the channels-last layout, on the CPU and on tensor cores.
        image = image.contiguous(memory_format=torch.channels_last_3d)
        # Both sides are one batch: the fixed images, then the moving ones. `chunk` would make ONNX keep one size.
        logits = self.outliner(torch.cat([image[:, :1], image[:, 1:]])).float()
        outlines, count = logits.detach().softmax(dim=1)[:, 1:], image.shape[0]
        coarse = F.avg_pool3d(outlines, 2)
        shift = (centres(coarse[count:]) - centres(coarse[:count])).view(-1, 3, 1, 1, 1)
        if self.training:
            ddf = (2 * shift).expand(-1, -1, image.shape[2], image.shape[3], image.shape[4])
        else:
            velocity = shift.expand(-1, -1, coarse.shape[2], coarse.shape[3], coarse.shape[4])
            velocity = demons(velocity, coarse[:count], coarse[count:], self.coarse, 1.0)
            velocity = 2 * F.interpolate(velocity, scale_factor=2.0, mode="trilinear")
            ddf = integrate(demons(velocity, outlines[:count], outlines[count:], self.fine, 1.5), 5)
        return torch.cat([ddf, logits[:count], logits[count:]], dim=1)[:, :, :x, :y, :z]


def demons(
    velocity: torch.Tensor,
    fixed: torch.Tensor,
    moving: torch.Tensor,
    iterations: int,
    step: float,
    momentum: float = 0.7,
) -> torch.Tensor:
    """The velocity (B, 3, …), voxels, after iterations that match the moving to the fixed outlines (B, labels, …)."""
    update, identity = torch.zeros_like(velocity), identity_grid(velocity)
    for _ in range(iterations):
        # Computed in the sampler's own units, because a graph of all iterations takes minutes to export to ONNX.
        field = square(to_grid(velocity), identity, 4)
        warped = grid_sample(moving, (identity + field).movedim(1, -1), "bilinear", "border")
        difference = (fixed - warped)[:, None]
        slopes = gradient(warped)
        force = (difference * slopes).sum(dim=2)
        scale = difference.square().sum(dim=2) + slopes.square().sum(dim=(1, 2))[:, None]
        update = momentum * update + step * smooth(force / (scale + 1e-3))
        velocity = velocity + update
    return velocity


def centres(outlines: torch.Tensor) -> torch.Tensor:
    """The centre of all labels of each image, (B, labels, X, Y, Z) → (B, 3), voxels from the centre of the grid."""
    # Squares leave little of faint probabilities far away.
    inside = outlines.sum(dim=1).square()
    mass = inside.sum(dim=(1, 2, 3)).clamp(min=1)
    parts: list[torch.Tensor] = []
    for axis, others in ((0, (2, 3)), (1, (1, 3)), (2, (1, 2))):
        n = inside.shape[1 + axis]
        voxels = torch.arange(n, device=inside.device, dtype=torch.float32) - 0.5 * (n - 1)
        parts.append((inside.sum(dim=others) * voxels).sum(dim=1) / mass)
    return torch.stack(parts, dim=1)


def gradient(image: torch.Tensor) -> torch.Tensor:
    """Central differences, (B, C, X, Y, Z) → (B, 3, C, X, Y, Z); beyond the border, the border values apply."""
    parts: list[torch.Tensor] = []
    for axis in range(3):
        pad, n = [0, 0, 0, 0, 0, 0], image.shape[2 + axis]
        pad[4 - 2 * axis] = pad[5 - 2 * axis] = 1
        padded = F.pad(image, pad, mode="replicate")
        parts.append(padded.narrow(2 + axis, 2, n) - padded.narrow(2 + axis, 0, n))
    return 0.5 * torch.stack(parts, dim=1)


def smooth(field: torch.Tensor) -> torch.Tensor:
    """A binomial filter along each axis, which has a standard deviation of one voxel."""
    # Not a convolution, which mixed precision would round.
    field = F.pad(field, [2, 2, 2, 2, 2, 2], mode="replicate")
    for axis in range(2, 5):
        n = field.shape[axis] - 4
        ends = field.narrow(axis, 0, n) + field.narrow(axis, 4, n)
        sides = field.narrow(axis, 1, n) + field.narrow(axis, 3, n)
        field = (ends + 4 * sides + 6 * field.narrow(axis, 2, n)) / 16
    return field
