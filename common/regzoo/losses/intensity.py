"""Similarity of intensities: global and local normalised cross-correlation, structural similarity.

The two local measures compare statistics within a window around every voxel. They are functions of a few filtered
products of the images, so their gradient takes a few more passes, with the transposed filter. The forward pass computes
the gradient and keeps nothing else for the backward pass.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from regzoo.errors import RegZooError
from regzoo.losses.windows import Window, window_weights
from torch import nn


class NormalizedCrossCorrelation(nn.Module):
    """1 − the correlation coefficient of the intensities of two images.

    The mean of each image and channel is subtracted, so the loss is 0 if the images are linearly related with a
    positive slope, 1 if they are unrelated and 2 if the slope is negative.

    Args:
        eps: lower limit of the variance of an image, squared intensities. It gives a constant image a loss of 1 and a
            finite gradient.

    Source: Pérez de Frutos et al. 2023, whose code does not subtract the means.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = _positive("eps", eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"

    def forward(self, warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Warped and fixed image, both (B, C, X, Y, Z) → scalar in [0, 2], mean over images and channels."""
        _same_shape(warped, fixed)
        with torch.autocast(warped.device.type, enabled=False):
            warped, fixed = (_float(image).flatten(2) for image in (warped, fixed))
            warped, fixed = (image - image.mean(-1, keepdim=True) for image in (warped, fixed))
            variances = [image.square().mean(-1).clamp(min=self.eps) for image in (warped, fixed)]
            return 1 - ((warped * fixed).mean(-1) / (variances[0] * variances[1]).sqrt()).mean()


class _Slopes(NamedTuple):
    """Derivatives with respect to the filtered warped image, its filtered square, and the filtered product of both."""

    mean: torch.Tensor
    square: torch.Tensor
    product: torch.Tensor


class _LocalLoss(torch.autograd.Function):
    """The loss of a measure; `forward` also computes the gradient with respect to the warped image w.

    With the filter K, the fixed image f and the moments m₁ = K w, m₂ = K w² and m₃ = K w f, the gradient is
    ``Kᵀ ∂L/∂m₁ + 2 w Kᵀ ∂L/∂m₂ + f Kᵀ ∂L/∂m₃``.
    """

    @staticmethod
    def forward(ctx: Any, warped: torch.Tensor, fixed: torch.Tensor, measure: _LocalSimilarity) -> torch.Tensor:
        window = measure.window
        moments = [window.filter(product) for product in measure.products(warped, fixed)]
        loss, slopes = measure.score(moments, slopes=ctx.needs_input_grad[0])
        if slopes is not None:
            del moments
            gradient = window.adjoint(slopes.mean)
            gradient.addcmul_(warped, window.adjoint(slopes.square), value=2)
            gradient.addcmul_(fixed, window.adjoint(slopes.product))
            ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None


class _LocalSimilarity(nn.Module):
    """Base class that checks the images and evaluates the measure in float32, or in float64 if either image is."""

    window: Window

    @abstractmethod
    def products(self, warped: torch.Tensor, fixed: torch.Tensor) -> Iterator[torch.Tensor]:
        """The products of the images to filter."""

    @abstractmethod
    def score(self, moments: Sequence[torch.Tensor], slopes: bool) -> tuple[torch.Tensor, _Slopes | None]:
        """The loss and, if `slopes`, its derivatives, from the filtered products."""

    def forward(self, warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Loss of a warped moving image against the fixed image.

        Args:
            warped: (B, C, X, Y, Z); gradients flow to it.
            fixed: (B, C, X, Y, Z); taken as constant.

        Returns:
            Scalar, mean over batch, channels and windows.

        Raises:
            RegZooError: the images are smaller than the window.
            ValueError: the images differ in shape.
        """
        _same_shape(warped, fixed)
        widths = [len(kernel) for kernel in self.window.kernels]
        if any(n < width for n, width in zip(warped.shape[2:], widths, strict=True)):
            raise RegZooError(
                f"a window of {widths} voxels does not fit into a volume of {list(warped.shape[2:])}; enlarge size "
                "or use a smaller window"
            )
        with torch.autocast(warped.device.type, enabled=False):
            warped, fixed = _float(warped), _float(fixed.detach())
            dtype = torch.promote_types(warped.dtype, fixed.dtype)
            loss = _LocalLoss.apply(warped.to(dtype), fixed.to(dtype), self)  # type: ignore[no-untyped-call]
        return torch.as_tensor(loss)


class LocalNormalizedCrossCorrelation(_LocalSimilarity):
    """1 − the mean over all voxels of the squared correlation coefficient within a window around the voxel.

    The loss is 0 if the images are linearly related in every window, whatever the slope, and about 1 if they are
    unrelated. Windows that reach beyond the border see zeros there.

    Equal to 1 + ``monai.losses.LocalNormalizedCrossCorrelationLoss`` with ``kernel_size=window`` and
    ``smooth_dr=eps * v``, where v is the sum of the window's weights (for the rectangular one, its number of voxels).
    MONAI's default, 1e-5 for any window, is below the rounding errors of float32, so flat areas get arbitrary values.

    Args:
        window: odd width in voxels, one number or one per axis.
        kernel: ``rectangular``, or ``gaussian`` with σ = window / 3, cut off at the window.
        eps: lower limit of the variance in a window, squared intensities; the default suits images in [0, 1].

    Source: Avants et al. 2008; Balakrishnan et al. 2019.
    """

    def __init__(
        self,
        window: int | Sequence[int] = 9,
        kernel: Literal["rectangular", "gaussian"] = "rectangular",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if kernel not in ("rectangular", "gaussian"):
            raise ValueError(f"kernel must be 'rectangular' or 'gaussian', not {kernel!r}")
        self.widths, self.kernel, self.eps = _widths(window), kernel, _positive("eps", eps)
        sigmas = [width / 3 if kernel == "gaussian" else math.inf for width in self.widths]
        self.window = Window([window_weights(*pair) for pair in zip(self.widths, sigmas, strict=True)], valid=False)

    def extra_repr(self) -> str:
        return f"window={self.widths} voxels, kernel={self.kernel}, eps={self.eps}"

    def products(self, warped: torch.Tensor, fixed: torch.Tensor) -> Iterator[torch.Tensor]:
        yield from (warped, fixed, warped * warped, fixed * fixed, warped * fixed)

    def score(self, moments: Sequence[torch.Tensor], slopes: bool) -> tuple[torch.Tensor, _Slopes | None]:
        mean_w, mean_f, square_w, square_f, product = moments
        raw = torch.addcmul(square_w, mean_w, mean_w, value=-1)
        var_w = raw.clamp(min=self.eps)
        var_f = torch.addcmul(square_f, mean_f, mean_f, value=-1).clamp_(min=self.eps)
        cross = torch.addcmul(product, mean_w, mean_f, value=-1)
        ratio = cross / var_f.mul_(var_w)
        squared = cross.mul_(ratio)
        loss = 1 - squared.mean()
        if not slopes:
            return loss, None
        by_product = ratio.mul_(-2 / ratio.numel())
        # Below the limit, the variance of the warped image has no influence.
        by_square = squared.div_(var_w).mul_(1 / ratio.numel()).masked_fill_(raw <= self.eps, 0)
        by_mean = (by_product * mean_f).addcmul_(by_square, mean_w, value=2).neg_()
        return loss, _Slopes(by_mean, by_square, by_product)


class StructuralSimilarity(_LocalSimilarity):
    """1 − the structural similarity index (SSIM) with a three-dimensional Gaussian window.

    Only windows entirely inside the images count: voxels within half a window of a face contribute to windows further
    in but have no window of their own. ``monai.losses.SSIMLoss`` does the same and gives the same value. scikit-image's
    ``structural_similarity(gaussian_weights=True, use_sample_covariance=False)`` filters this margin by reflection and
    then leaves it out of the mean.

    Args:
        window: odd width in voxels, one number or one per axis.
        sigma: standard deviation of the window, voxels: one number or one per axis.
        data_range: range of the intensities; 1 for images in [0, 1].
        k1: stabilises the comparison of small means, relative to `data_range`.
        k2: stabilises the comparison of contrast and structure, relative to `data_range`.

    Source: Wang et al. 2004, equation 13, with the paper's window and constants.
    """

    def __init__(
        self,
        window: int | Sequence[int] = 11,
        sigma: float | Sequence[float] = 1.5,
        data_range: float = 1.0,
        k1: float = 0.01,
        k2: float = 0.03,
    ) -> None:
        super().__init__()
        self.widths = _widths(window)
        self.sigmas = [float(s) for s in (sigma if isinstance(sigma, Sequence) else [sigma] * 3)]
        if len(self.sigmas) != 3 or min(self.sigmas) <= 0:
            raise ValueError(f"sigma must be one positive number or one per axis, got {sigma}")
        self.data_range = _positive("data_range", data_range)
        self.k1, self.k2 = _positive("k1", k1), _positive("k2", k2)
        self.window = Window([window_weights(*pair) for pair in zip(self.widths, self.sigmas, strict=True)], valid=True)

    def extra_repr(self) -> str:
        constants = f"data_range={self.data_range}, k1={self.k1}, k2={self.k2}"
        return f"window={self.widths} voxels, sigma={self.sigmas} voxels, {constants}"

    def products(self, warped: torch.Tensor, fixed: torch.Tensor) -> Iterator[torch.Tensor]:
        # The index needs only the sum of the two squares.
        yield from (warped, fixed, (warped * warped).addcmul_(fixed, fixed), warped * fixed)

    def score(self, moments: Sequence[torch.Tensor], slopes: bool) -> tuple[torch.Tensor, _Slopes | None]:
        mean_w, mean_f, squares, product = moments
        c1, c2 = (self.k1 * self.data_range) ** 2, (self.k2 * self.data_range) ** 2
        both = mean_w * mean_f
        energy = (mean_w * mean_w).addcmul_(mean_f, mean_f)
        # SSIM = (top_1 / bottom_1) · (top_2 / bottom_2): means, then contrast and structure.
        top_2 = (product - both).mul_(2).add_(c2)
        top_1 = both.mul_(2).add_(c1)
        bottom_2 = (squares - energy).add_(c2)
        bottom_1 = energy.add_(c1)
        inverse = (bottom_1 * bottom_2).reciprocal_()
        index = (top_1 * top_2).mul_(inverse)
        loss = 1 - index.mean()
        if not slopes:
            return loss, None
        inverse.mul_(-1 / inverse.numel())
        by_mean = (bottom_1 - bottom_2).mul_(index).mul_(mean_w)
        by_mean.addcmul_(mean_f, top_2.sub_(top_1)).mul_(inverse).mul_(2)
        by_square = index.mul_(bottom_1).mul_(inverse).neg_()
        by_product = top_1.mul_(inverse).mul_(2)
        return loss, _Slopes(by_mean, by_square, by_product)


def _widths(window: int | Sequence[int]) -> list[int]:
    widths = [int(width) for width in (window if isinstance(window, Sequence) else [window] * 3)]
    if len(widths) != 3 or any(width < 1 or width % 2 == 0 for width in widths):
        raise ValueError(f"window must be one odd number of voxels or one per axis, got {window}")
    return widths


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return float(value)


def _same_shape(warped: torch.Tensor, fixed: torch.Tensor) -> None:
    if warped.ndim != 5 or warped.shape != fixed.shape:
        raise ValueError(
            f"images must have the same shape (B, C, X, Y, Z), got {list(warped.shape)} and {list(fixed.shape)}"
        )


def _float(image: torch.Tensor) -> torch.Tensor:
    return image if image.dtype == torch.float64 else image.float()
