"""What is compared: for each component ours and MONAI's on the same input, and an independent truth where there is one.

A contestant is prepared once and returns a function that runs forward and backward and gives back its result, detached.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import monai.losses
import numpy as np
import torch
from monai.networks.blocks import Warp
from monai.networks.nets import LocalNet as MonaiLocalNet
from regzoo.losses import (
    BendingEnergy,
    Deformation,
    LabelSimilarity,
    LocalNormalizedCrossCorrelation,
    MultiScaleDice,
    RegistrationLoss,
    StructuralSimilarity,
)
from regzoo.networks import LocalNet
from regzoo.spatial import warp
from scipy.ndimage import gaussian_filter, map_coordinates, uniform_filter
from torch import nn

Side = Literal["ours", "theirs"]
Size = tuple[int, int, int]
Run = Callable[[], torch.Tensor]

#: Of the paper, here in voxels of 1 mm, because MONAI's loss knows no voxel size.
SIGMAS = (0, 1, 2, 4, 8, 16, 32)
CHANNELS = 16
DEFORMATION_WEIGHT = 0.5
#: Of the network input for abdominal CT, voxels, and the windows of the similarities of intensities.
ABDOMEN: Size = (128, 128, 128)
SSIM_WINDOW, SSIM_SIGMA, LOCAL_WINDOW = 11, 1.5, 9


# MONAI 1.6 indexes tensors with lists, of which PyTorch warns at every call.
warnings.filterwarnings("ignore", message=".*non-tuple sequence.*")


@dataclass(frozen=True)
class Contest:
    """One row of the table.

    Attributes:
        title: what is compared.
        prepare: makes a contestant for a side, a size and a device.
        truth: the result ours must have, computed independently on the CPU; None where there is none.
        truth_from: where the truth comes from.
        target: how many times faster than MONAI's ours has to be on a CPU at full size.
        size: the full size, where it is not that of the other rows.
    """

    title: str
    prepare: Callable[[Side, Size, torch.device], Run]
    truth: Callable[[Size], np.ndarray] | None
    truth_from: str
    target: float
    size: Size | None = None


def _coordinates(size: Size) -> list[torch.Tensor]:
    """Voxel coordinates along each axis, shaped to broadcast."""
    return [torch.arange(float(n)).view([-1 if i == axis else 1 for i in range(3)]) for axis, n in enumerate(size)]


def sigmas(size: Size) -> list[int]:
    """All seven scales, without those that are wider than half a small test volume."""
    return [sigma for sigma in SIGMAS if sigma <= min(size) / 2]


def ellipsoid(size: Size, shift: float = 0.0) -> torch.Tensor:
    """A label (1, 1, X, Y, Z) in the middle of a volume with an edge one voxel wide, moved by `shift` voxels."""
    x, y, z = ((a - n / 2 - shift) / (n / 4) for a, n in zip(_coordinates(size), size, strict=True))
    distance = (1 - (x * x + y * y + z * z).sqrt()) * min(size) / 4
    return (distance + 0.5).clamp(0, 1)[None, None]


def smooth_field(size: Size) -> torch.Tensor:
    """A DDF (1, 3, X, Y, Z) of a few voxels, part of which leads out of the volume."""
    x, y, z = (torch.pi * a / n for a, n in zip(_coordinates(size), size, strict=True))
    components = [3 * torch.sin(2 * y + z), 2 * torch.cos(x - 3 * z), 4 * torch.sin(x + y + z)]
    return torch.stack([component.expand(size) for component in components])[None].contiguous()


def image_pair(size: Size) -> torch.Tensor:
    """Fixed and moving image stacked, (1, 2, X, Y, Z)."""
    return torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0))


def _backward(value: torch.Tensor, leaf: torch.Tensor) -> None:
    leaf.grad = None
    value.backward()


def multiscale_dice(side: Side, size: Size, device: torch.device) -> Run:
    """Loss of a warped label, gradient to it."""
    fixed = ellipsoid(size).to(device)
    warped = ellipsoid(size, shift=2.0).to(device).requires_grad_()
    if side == "ours":
        loss: Callable[[], torch.Tensor] = _bind(MultiScaleDice(sigmas(size)), warped, fixed)
    else:
        loss = _bind(_monai_multiscale_dice(size), fixed, warped)  # takes the target first

    def run() -> torch.Tensor:
        value = loss()
        _backward(value, warped)
        return value.detach()

    return run


def direct_multiscale_dice(size: Size) -> np.ndarray:
    """The same by SciPy: both labels filtered in float64 with kernels of nine standard deviations to each side."""
    fixed, warped = (ellipsoid(size, shift)[0, 0].double().numpy() for shift in (0.0, 2.0))
    scores = []
    for sigma in sigmas(size):
        a, b = (
            gaussian_filter(label, sigma, mode="constant", truncate=9.0) if sigma else label
            for label in (warped, fixed)
        )
        scores.append(2 * (a * b).sum() / (a.sum() + b.sum() + 1e-6))
    return np.asarray(1 - np.mean(scores))


def bending_energy(side: Side, size: Size, device: torch.device) -> Run:
    """Penalty of a DDF, gradient to it."""
    ddf = smooth_field(size).to(device).requires_grad_()
    loss = BendingEnergy() if side == "ours" else monai.losses.BendingEnergyLoss()

    def run() -> torch.Tensor:
        value = loss(ddf)
        _backward(value, ddf)
        return value.detach()

    return run


def direct_bending_energy(size: Size) -> np.ndarray:
    """The same from MONAI, in float64."""
    return monai.losses.BendingEnergyLoss()(smooth_field(size).double()).numpy()


def warp_label(side: Side, size: Size, device: torch.device) -> Run:
    """Warped label, gradient to the DDF."""
    label = ellipsoid(size).to(device)
    ddf = smooth_field(size).to(device).requires_grad_()
    apply: Callable[..., torch.Tensor] = warp if side == "ours" else _monai_warp()

    def run() -> torch.Tensor:
        warped = apply(label, ddf)
        _backward(warped.sum(), ddf)
        return warped.detach()

    return run


def direct_warp(size: Size) -> np.ndarray:
    """The same by SciPy, in float64; outside of the volume is zero."""
    coordinates = [x + u for x, u in zip(_coordinates(size), smooth_field(size)[0].double(), strict=True)]
    label = ellipsoid(size)[0, 0].double().numpy()
    return map_coordinates(label, [c.numpy() for c in coordinates], order=1, mode="grid-constant")[None, None]


def textures(size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """A warped and a fixed image that resemble each other, values between 0 and 1, (1, 1, X, Y, Z)."""
    fixed, other = torch.sigmoid(image_pair(size)).chunk(2, dim=1)
    return (0.6 * fixed + 0.4 * other), fixed


def _similarity(ours: nn.Module, theirs: nn.Module) -> Callable[[Side, Size, torch.device], Run]:
    """Loss of a warped image, gradient to it."""

    def prepare(side: Side, size: Size, device: torch.device) -> Run:
        warped, fixed = (image.to(device) for image in textures(size))
        warped.requires_grad_()
        loss = (ours if side == "ours" else theirs).to(device)

        def run() -> torch.Tensor:
            value = loss(warped, fixed)
            _backward(value, warped)
            return value.detach()

        return run

    return prepare


def direct_structural_similarity(size: Size) -> np.ndarray:
    """The same by SciPy, in float64; half a window is left out at the border."""
    margin = SSIM_WINDOW // 2

    def mean(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, SSIM_SIGMA, radius=margin)[(slice(margin, -margin),) * 3]

    a, b = (image[0, 0].double().numpy() for image in textures(size))
    mean_a, mean_b = mean(a), mean(b)
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
    return np.asarray(1 - (luminance * (2 * (mean(a * b) - mean_a * mean_b) + 0.03**2) / (variances + 0.03**2)).mean())


def direct_local_correlation(size: Size) -> np.ndarray:
    """The same by SciPy, in float64; outside of the volume is zero."""

    def mean(image: np.ndarray) -> np.ndarray:
        return uniform_filter(image, LOCAL_WINDOW, mode="constant")

    a, b = (image[0, 0].double().numpy() for image in textures(size))
    variance_a, variance_b = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2
    return np.asarray(1 - ((mean(a * b) - mean(a) * mean(b)) ** 2 / (variance_a * variance_b)).mean())


structural_similarity = _similarity(
    StructuralSimilarity(SSIM_WINDOW, SSIM_SIGMA),
    monai.losses.SSIMLoss(3, win_size=SSIM_WINDOW, kernel_sigma=SSIM_SIGMA),
)
local_correlation = _similarity(
    LocalNormalizedCrossCorrelation(LOCAL_WINDOW), monai.losses.LocalNormalizedCrossCorrelationLoss(3, LOCAL_WINDOW)
)


@dataclass
class Training:
    """All that a training step of ours needs."""

    network: nn.Module
    loss: RegistrationLoss
    optimizer: torch.optim.Optimizer
    image: torch.Tensor
    targets: dict[str, torch.Tensor]

    @classmethod
    def of(cls, size: Size, device: torch.device) -> Training:
        """The paper's configuration with n0 = 16, for one pair."""
        torch.manual_seed(0)
        network = LocalNet(in_channels=2, out_channels=3, channels=CHANNELS).to(device)
        loss = RegistrationLoss(
            {"label": LabelSimilarity(MultiScaleDice(sigmas(size))), "deformation": Deformation(BendingEnergy())},
            weights={"deformation": DEFORMATION_WEIGHT},
        )
        targets = {"fixed_label": ellipsoid(size).to(device), "moving_label": ellipsoid(size, 2.0).to(device)}
        return cls(network, loss, torch.optim.Adam(network.parameters(), 1e-5), image_pair(size).to(device), targets)


def training_step(side: Side, size: Size, device: torch.device) -> Run:
    """Network, label warp, multiscale Dice, bending energy, backward and Adam."""
    training = Training.of(size, device)
    if side == "theirs":
        network = MonaiLocalNet(
            spatial_dims=3, in_channels=2, out_channels=3, num_channel_initial=CHANNELS, extract_levels=(0, 1, 2, 3, 4)
        ).to(device)
        optimizer: torch.optim.Optimizer = torch.optim.Adam(network.parameters(), 1e-5)
        loss = _monai_loss(training.targets, size)
    else:
        network, optimizer = training.network, training.optimizer
        loss = _bind_last(training.loss, training.targets)

    def run() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss(network(training.image))
        value.backward()
        optimizer.step()
        return value.detach()

    return run


def _monai_loss(targets: dict[str, torch.Tensor], size: Size) -> Callable[[torch.Tensor], torch.Tensor]:
    """The loss of a DDF put together from MONAI's components."""
    dice, bending, warping = _monai_multiscale_dice(size), monai.losses.BendingEnergyLoss(), _monai_warp()

    def loss(ddf: torch.Tensor) -> torch.Tensor:
        warped = warping(targets["moving_label"], ddf)
        return dice(targets["fixed_label"], warped) + DEFORMATION_WEIGHT * bending(ddf)

    return loss


def _monai_multiscale_dice(size: Size) -> nn.Module:
    return monai.losses.MultiScaleLoss(monai.losses.DiceLoss(), scales=sigmas(size), kernel="gaussian")


def _monai_warp() -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*native grid_sample.*")
        return Warp(mode="bilinear", padding_mode="zeros")


def _bind(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: function(*arguments)


def _bind_last(function: Callable[..., torch.Tensor], last: object) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda first: function(first, last)


CONTESTS = {
    "dice": Contest("multiscale Dice", multiscale_dice, direct_multiscale_dice, "SciPy, untruncated kernels", 200),
    "bending": Contest("bending energy", bending_energy, direct_bending_energy, "MONAI, float64", 1),
    "warp": Contest("label warp", warp_label, direct_warp, "SciPy, float64", 1),
    "ssim": Contest(
        "SSIM, 128×128×128 voxels", structural_similarity, direct_structural_similarity, "SciPy, float64", 30, ABDOMEN
    ),
    "lncc": Contest(
        f"local NCC, window {LOCAL_WINDOW}, 128×128×128 voxels",
        local_correlation,
        direct_local_correlation,
        "SciPy, float64",
        2,
        ABDOMEN,
    ),
    "step": Contest(f"training step, n0 = {CHANNELS}", training_step, None, "", 5),
}
