"""The registration network of Pérez de Frutos et al. 2023: MONAI's VoxelMorph U-Net, from image pair to DDF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets import VoxelMorphUNet
from regzoo.networks.blocks import FieldHead, initialise, keep_channels_last
from regzoo.spatial import compose, warp
from regzoo.spatial.warp import grid_sample
from torch import nn


class VoxelMorphNet(nn.Module):
    """VoxelMorph U-Net that predicts a displacement field, or a velocity field that is integrated to one.

    The encoder has one convolution (3³, leaky ReLU) per level, with max-pooling in between. The decoder has equal
    widths, nearest up-sampling and skip connections. A head of two convolutions precedes the field layer, which starts
    at zero, so an untrained network predicts no displacement. Any input size works: the input is extended by its border
    values to a multiple of ``stride · 2^levels``.

    Args:
        in_channels: channels of the stacked input; MONAI requires an even number.
        channels: width of each level of the encoder; the decoder has the same.
        head: widths of the convolutions at full resolution between the last skip connection and the field.
        norm: ``batch`` or ``instance`` normalisation after each convolution; None, as in the paper, for none.
        stride: predict the field on every n-th voxel along each axis and interpolate it linearly, as VoxelMorph does
            with 2. Smooth displacements lose nothing, and the network takes 1/n³ of the time. The voxels in between
            become further input channels. The paper uses 1.
        passes: number of times the network is applied, with the same weights, to the fixed image and the moving image
            as warped so far. Each pass adds to the displacement. The paper uses 1.
        diffeomorphic: treat the prediction as a stationary velocity field and integrate it, so that the
            transformation is smooth and invertible up to discretisation.
        steps: number of doublings in the integration (scaling and squaring).

    Source: Pérez de Frutos et al. 2023, section "Model architecture"; Balakrishnan et al. 2019; integration, Dalca et
    al. 2018; passes, Zhao et al. 2019 ("Recursive cascaded networks", with shared weights).
    """

    def __init__(
        self,
        in_channels: int = 2,
        channels: Sequence[int] = (32, 64, 128, 256, 512, 1024),
        head: Sequence[int] = (16, 16),
        norm: str | None = None,
        stride: int = 1,
        passes: int = 1,
        diffeomorphic: bool = False,
        steps: int = 7,
    ) -> None:
        super().__init__()
        if norm not in (None, "batch", "instance"):
            raise ValueError(f"norm must be None, 'batch' or 'instance', not {norm!r}")
        if stride < 1 or passes < 1:
            raise ValueError(f"stride and passes must be at least 1, not {stride} and {passes}")
        if passes > 1 and in_channels != 2:
            raise ValueError(f"more than one pass needs a fixed and a moving image, not {in_channels} channels")
        self.stride = int(stride)
        self.passes = int(passes)
        self.diffeomorphic = bool(diffeomorphic)
        self.steps = int(steps)
        self.multiple = self.stride * 2 ** len(channels)
        # Saved with the weights, because their shapes also fit networks with other settings.
        form = [self.stride, self.passes, self.steps if self.diffeomorphic else 0]
        self.register_buffer("form", torch.tensor(form))
        self.unet = VoxelMorphUNet(
            spatial_dims=3,
            in_channels=in_channels * self.stride**3,
            unet_out_channels=head[0],
            # A (down, up) pair of widths per level; the last "up" is the bottom.
            channels=[width for width in channels for _ in range(2)],
            final_conv_channels=list(head[1:]),
            norm=(norm, {"affine": True}) if norm else None,
        )
        keep_channels_last(self.unet)
        # MONAI's last layer would predict displacements in half precision under autocast.
        self.unet.net[1].final_conv_out = FieldHead(head[-1], 3)
        initialise(self)

    def extra_repr(self) -> str:
        """The settings for the repr, because checkpoints tell networks apart by it."""
        return f"stride={self.stride}, passes={self.passes}, diffeomorphic={self.diffeomorphic}, steps={self.steps}"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        given, form = state_dict.get(f"{prefix}form"), self.get_buffer("form")
        if given is not None and given.tolist() != form.tolist():
            args[-1].append(f"weights for (stride, passes, integration steps) {given.tolist()}, not {form.tolist()}")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, X, Y, Z), fixed image first → DDF (B, 3, X, Y, Z) float32, voxels."""
        x, y, z = image.shape[2], image.shape[3], image.shape[4]
        extra = [-z % self.multiple, -y % self.multiple, -x % self.multiple]
        if sum(extra) > 0:
            image = F.pad(image, [0, extra[0], 0, extra[1], 0, extra[2]], mode="replicate")
        ddf = self.predict(image)
        for _ in range(self.passes - 1):
            moved = torch.cat([image[:, :1], warp(image[:, 1:], ddf, padding="border").to(image.dtype)], dim=1)
            ddf = compose(self.predict(moved), ddf)
        return ddf[:, :, :x, :y, :z]

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        """One pass on an image whose sizes are multiples of `multiple`."""
        if self.stride > 1:
            image = space_to_channels(image, self.stride)
        # Convolutions are fastest in the channels-last layout, on the CPU and on tensor cores.
        field = self.unet(image.contiguous(memory_format=torch.channels_last_3d))
        if self.diffeomorphic:
            field = integrate(field, self.steps)
        if self.stride > 1:
            field = self.stride * F.interpolate(field, scale_factor=float(self.stride), mode="trilinear")
        return field

    def contracting_path(self) -> list[nn.Module]:
        """The modules that ``freeze_encoder`` freezes: the encoder's convolutions, without the bottom."""
        parts, block = [], self.unet.net[0]
        while True:
            parts.append(block[0])
            block = block[1].submodule
            if not isinstance(block[1], SkipConnection):
                return parts


def space_to_channels(image: torch.Tensor, n: int) -> torch.Tensor:
    """(B, C, n·X, n·Y, n·Z) → (B, n³·C, X, Y, Z): `torch.pixel_unshuffle` in three dimensions."""
    b, c, x, y, z = image.shape
    blocks = image.view(b, c, x // n, n, y // n, n, z // n, n)
    return blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * n * n * n, x // n, y // n, z // n)


def integrate(velocity: torch.Tensor, steps: int = 7) -> torch.Tensor:
    """The displacement after unit time in a stationary velocity field, by scaling and squaring.

    Args:
        velocity: (B, 3, X, Y, Z), voxels per unit of time; beyond the border, the border values apply.
        steps: number of doublings, starting from a time of 2^-steps.

    Returns:
        DDF (B, 3, X, Y, Z), voxels.

    Source: Arsigny et al. 2006; Dalca et al. 2018.
    """
    identity = identity_grid(velocity)
    return from_grid(square(to_grid(velocity), identity, steps))


def square(velocity: torch.Tensor, identity: torch.Tensor, steps: int) -> torch.Tensor:
    """`integrate` in the units of `to_grid`, where a squaring is two additions and one sampling."""
    field = velocity / 2**steps
    for _ in range(steps):
        field = field + grid_sample(field, (identity + field).movedim(1, -1), "bilinear", "border")
    return field


def identity_grid(ddf: torch.Tensor) -> torch.Tensor:
    """The place of each voxel of a DDF's grid in `grid_sample`'s units, (1, 3, X, Y, Z), last array axis first."""
    parts: list[torch.Tensor] = []
    for axis in range(3):
        n = ddf.shape[2 + axis]
        along = [1, 1, 1, 1, 1]
        along[2 + axis] = n
        places = torch.arange(n, device=ddf.device, dtype=torch.float32) * (2.0 / float(max(n - 1, 1))) - 1.0
        parts.insert(0, places.view(along).expand(1, 1, ddf.shape[2], ddf.shape[3], ddf.shape[4]))
    return torch.cat(parts, dim=1)


def to_grid(ddf: torch.Tensor) -> torch.Tensor:
    """A DDF (B, 3, X, Y, Z) in voxels → `grid_sample`'s units, in which an image is 2 wide, last array axis first."""
    x, y, z = max(ddf.shape[2] - 1, 1), max(ddf.shape[3] - 1, 1), max(ddf.shape[4] - 1, 1)
    return torch.cat([ddf[:, 2:] * (2.0 / z), ddf[:, 1:2] * (2.0 / y), ddf[:, :1] * (2.0 / x)], dim=1).float()


def from_grid(field: torch.Tensor) -> torch.Tensor:
    """The opposite of `to_grid`."""
    x, y, z = max(field.shape[2] - 1, 1), max(field.shape[3] - 1, 1), max(field.shape[4] - 1, 1)
    return torch.cat([field[:, 2:] * (x / 2.0), field[:, 1:2] * (y / 2.0), field[:, :1] * (z / 2.0)], dim=1)
