"""The registration network of Pérez de Frutos et al. 2023: MONAI's VoxelMorph U-Net as a network from pair to DDF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets import VoxelMorphUNet
from torch import nn

from regzoo.networks.blocks import initialise
from regzoo.networks.pyramid_net import FieldHead
from regzoo.spatial import compose


class VoxelMorphNet(nn.Module):
    """VoxelMorph U-Net that predicts a displacement field, or a velocity field that is integrated to one.

    An encoder of one convolution (3³, leaky ReLU) per level with max-pooling between, a decoder of the same widths with
    nearest up-sampling and skip connections, and a head of two convolutions before the field. The field's layer is zero
    at the start: an untrained network predicts no displacement. Any input size works: it is extended by its border to
    a multiple of 2 to the number of levels.

    Args:
        in_channels: channels of the stacked input, an even number (MONAI's demand).
        channels: width of each level of the encoder; the decoder has the same.
        head: widths of the convolutions at full resolution between the last skip connection and the field.
        norm: ``batch`` or ``instance`` normalisation after each convolution; None, as in the paper, for none.
        diffeomorphic: take what is predicted for a stationary velocity field and integrate it, so that the
            transformation is smooth and has an inverse, up to discretisation. TorchScript then exports traced networks
            only.
        steps: doublings of the integration (scaling and squaring).

    Source: Pérez de Frutos et al. 2023, section "Model architecture"; Balakrishnan et al. 2019; integration, Dalca et
    al. 2018.
    """

    # For TorchScript, which then leaves out what is not used.
    __constants__ = ("diffeomorphic",)

    def __init__(
        self,
        in_channels: int = 2,
        channels: Sequence[int] = (32, 64, 128, 256, 512, 1024),
        head: Sequence[int] = (16, 16),
        norm: str | None = None,
        diffeomorphic: bool = False,
        steps: int = 7,
    ) -> None:
        super().__init__()
        if norm not in (None, "batch", "instance"):
            raise ValueError(f"norm must be None, 'batch' or 'instance', not {norm!r}")
        self.diffeomorphic = bool(diffeomorphic)
        self.steps = int(steps)
        self.multiple = 2 ** len(channels)
        self.unet = VoxelMorphUNet(
            spatial_dims=3,
            in_channels=in_channels,
            unet_out_channels=head[0],
            # Pairs, down and up, level by level; the last up is the bottom.
            channels=[width for width in channels for _ in range(2)],
            final_conv_channels=list(head[1:]),
            norm=(norm, {"affine": True}) if norm else None,
        )
        # MONAI's last layer would predict displacements in half precision under autocast.
        field = FieldHead(head[-1], 3)
        self.unet.net[1].final_conv_out = field
        initialise(self)
        nn.init.zeros_(field.weight)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, X, Y, Z), fixed image first → DDF (B, 3, X, Y, Z) float32, voxels."""
        x, y, z = image.shape[2], image.shape[3], image.shape[4]
        extra = [-z % self.multiple, -y % self.multiple, -x % self.multiple]
        if sum(extra) > 0:
            image = F.pad(image, [0, extra[0], 0, extra[1], 0, extra[2]], mode="replicate")
        # Channels last is the layout in which convolutions are fastest, on the CPU and on tensor cores.
        field = self.unet(image.contiguous(memory_format=torch.channels_last_3d))[:, :, :x, :y, :z]
        if self.diffeomorphic:
            field = integrate(field, self.steps)
        return field

    def encoder(self) -> Iterator[nn.Module]:
        """The convolutions of the contracting path, full resolution first."""
        block = self.unet.net[0]
        while True:
            yield block[0]
            block = block[1].submodule
            if not isinstance(block[1], SkipConnection):
                return  # the bottom, which the decoder begins with

    def freeze_encoder(self) -> VoxelMorphNet:
        """Leave the encoder out of the training, for the first step of a fine-tuning; returns the network."""
        for module in self.encoder():
            module.requires_grad_(False)
        return self


def integrate(velocity: torch.Tensor, steps: int = 7) -> torch.Tensor:
    """The displacement after unit time in a stationary velocity field, by scaling and squaring.

    Args:
        velocity: (B, 3, X, Y, Z), voxels per unit of time; beyond the border its border value holds.
        steps: doublings, from a time of 2^-steps.

    Returns:
        DDF (B, 3, X, Y, Z), voxels.

    Source: Arsigny et al. 2006; Dalca et al. 2018.
    """
    ddf = velocity / 2**steps
    for _ in range(steps):
        ddf = compose(ddf, ddf)
    return ddf
