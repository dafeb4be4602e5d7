"""Building blocks of the registration networks of Hu et al. 2018."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class ConvNorm(nn.Sequential):
    """A convolution that keeps the size, without bias; a normalisation; and a ReLU, unless `relu` is False."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, norm: str = "batch", relu: bool = True) -> None:
        convolution = nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        super().__init__(convolution, normalisation(norm, outputs), *([nn.ReLU(inplace=True)] if relu else []))


class BatchNorm3d(nn.BatchNorm3d):
    """PyTorch's batch normalisation, extended to batches with one value per channel.

    Such a batch occurs if the last batch has one sample and the coarsest level has one voxel. PyTorch refuses it; this
    class normalises it with the running statistics.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        learn = self.training and values.numel() > values.size(1)
        if learn and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = 0.1 if self.momentum is None else self.momentum
        return F.batch_norm(
            values, self.running_mean, self.running_var, self.weight, self.bias, learn, momentum, self.eps
        )


class InstanceNorm3d(nn.InstanceNorm3d):
    """PyTorch's instance normalisation, which keeps the channels-last layout when it trains on the CPU.

    A batch normalisation of each sample computes the same up to rounding. A group normalisation does not: in this
    layout its variance is the difference of two large sums. On CUDA no layout is kept. Inference uses PyTorch's
    operation: a loop over samples would fix the batch size of an exported network.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if values.is_cuda or not self.training:
            return F.instance_norm(values, weight=self.weight, bias=self.bias, eps=self.eps)
        weight, bias, eps = self.weight, self.bias, self.eps
        samples = [F.batch_norm(sample, None, None, weight, bias, training=True, eps=eps) for sample in values.split(1)]
        return torch.cat(samples)


def normalisation(kind: str, channels: int) -> nn.Module:
    """A 3-D ``batch`` (running statistics at inference) or ``instance`` normalisation with affine parameters."""
    if kind == "batch":
        return BatchNorm3d(channels)
    if kind == "instance":
        return InstanceNorm3d(channels, affine=True)
    raise ValueError(f"norm must be 'batch' or 'instance', not {kind!r}")


def keep_channels_last(network: nn.Module) -> None:
    """Replace the instance normalisations of a network of MONAI's by `InstanceNorm3d`, with new parameters."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.InstanceNorm3d:
                setattr(module, name, InstanceNorm3d(child.num_features, child.eps, affine=child.affine))


def residual(channels: int, norm: str) -> nn.Sequential:
    """The two convolutions of a residual block; the second ReLU follows the sum."""
    return nn.Sequential(ConvNorm(channels, channels, norm=norm), ConvNorm(channels, channels, norm=norm, relu=False))


class DownBlock(nn.Module):
    """Residual block of one resolution level, then max-pooling.

    ``h0 = relu(norm(conv(x)))``, ``h = relu(h0 + norm(conv(relu(norm(conv(h0))))))``.
    Returns the pooled ``h`` for the next level and ``h0`` for the skip connection, as the papers' code does.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: str) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, kernel, norm)
        self.residual = residual(outputs, norm)
        # Rounding up uses every voxel of an odd-sized volume.
        self.pool = nn.MaxPool3d(2, ceil_mode=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h0 = self.first(x)
        return self.pool(F.relu(h0 + self.residual(h0))), h0


class UpBlock(nn.Module):
    """Residual up-sampling block with a summed skip connection.

    ``up = relu(norm(deconv(x))) [+ additive up-sampling of x]``,
    ``h = relu(up + skip + norm(conv(relu(norm(conv(up))))))``.
    The additive up-sampling is a trilinear resize with the two halves of the channels added.
    """

    def __init__(self, inputs: int, outputs: int, norm: str, additive: bool) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose3d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.norm = normalisation(norm, outputs)
        self.residual = residual(outputs, norm)
        self.additive = additive

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        # If the size of a level was rounded up, doubling it gives one voxel too many: crop it to the size of the skip.
        up = F.relu(self.norm(self.deconv(x)))[:, :, : skip.shape[2], : skip.shape[3], : skip.shape[4]]
        if self.additive:
            first, second = torch.chunk(x, 2, dim=1)
            up = up + resize(first + second, skip)
        return F.relu(up + skip + self.residual(up))


class FieldHead(nn.Conv3d):
    """3³ convolution that predicts a field.

    It runs in float32, because half precision would round displacements. `initialise` sets it to zero.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return self._conv_forward(x.float(), self.weight, self.bias)
        with torch.autocast(x.device.type, enabled=False):
            return self._conv_forward(x.float(), self.weight, self.bias)


def resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Trilinear resize of (B, C, …) to the spatial size of another tensor, keeping the field of view."""
    return F.interpolate(x, size=like.shape[2:], mode="trilinear", align_corners=False)


class Encoder(nn.Module):
    """The contracting path: `depth` residual levels with doubling channels, then one convolution block.

    Only the first convolution has a 7³ kernel. Returns the bottom features and the skips, full resolution first.
    """

    def __init__(self, inputs: int, channels: int, depth: int, norm: str) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(depth + 1)]
        self.levels = nn.ModuleList(
            DownBlock(inputs if level == 0 else widths[level - 1], widths[level], 7 if level == 0 else 3, norm)
            for level in range(depth)
        )
        self.bottom = ConvNorm(widths[-2], widths[-1], 3, norm)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        skips: list[torch.Tensor] = []
        for level in self.levels:
            x, skip = level(x)
            skips.append(skip)
        return self.bottom(x), skips


def initialise(network: nn.Module) -> None:
    """Xavier-uniform weights for every convolution and linear layer; zero biases and field heads."""
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, FieldHead):
                nn.init.zeros_(module.weight)
