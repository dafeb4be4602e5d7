"""Similarity of intensities: global and local normalised cross-correlation, structural similarity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from regzoo.errors import RegZooError
from regzoo.losses.local import LocalMeasure, LocalSum, Slopes
from regzoo.losses.similarity import Prepared, Similarity
from regzoo.losses.windows import Window, gaussian_weights


class NormalizedCrossCorrelation(Similarity):
    """1 − the correlation coefficient of the intensities of two images, mean over images and channels.

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

    def against(self, fixed: torch.Tensor, weights: torch.Tensor | None) -> Prepared:
        weights = torch.ones_like(fixed) if weights is None else weights
        share = (weights / weights.sum((2, 3, 4), keepdim=True)).flatten(2)

        def centered(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """An image (B, C, voxels) without its mean, and its standard deviation."""
            image = image - (image * share).sum(-1, keepdim=True)
            return image, (image.square() * share).sum(-1, keepdim=True).clamp(min=self.eps).sqrt()

        values, deviation = centered(fixed.flatten(2))
        direction = values * share / deviation

        def loss(warped: torch.Tensor) -> torch.Tensor:
            values, deviation = centered(warped.flatten(2))
            return 1 - ((values * direction).sum(-1) / deviation[..., 0]).mean()

        return loss


class _WindowedSimilarity(Similarity):
    """Base class of the losses that compare statistics within a window around every voxel."""

    window: Window

    @abstractmethod
    def measure(self, fixed: torch.Tensor, mask: torch.Tensor | None, share: float) -> LocalMeasure:
        """The measure of one image (X, Y, Z), times its share of the loss."""

    def against(self, fixed: torch.Tensor, weights: torch.Tensor | None) -> Prepared:
        widths = [len(kernel) for kernel in self.window.kernels]
        if any(n < width for n, width in zip(fixed.shape[2:], widths, strict=True)):
            problem = f"a window of {widths} voxels does not fit into a volume of {list(fixed.shape[2:])}"
            raise RegZooError(f"{problem}; enlarge size or use a smaller window")
        images = fixed.flatten(0, 1)
        masks = [None] * len(images) if weights is None else weights.flatten(0, 1)
        measures = [self.measure(*pair, 1 / len(images)) for pair in zip(images, masks, strict=True)]

        def loss(warped: torch.Tensor) -> torch.Tensor:
            return 1 - torch.as_tensor(LocalSum.apply(warped, measures))  # type: ignore[no-untyped-call]

        return loss


class LocalNormalizedCrossCorrelation(_WindowedSimilarity):
    """1 − the mean over all voxels of the squared correlation coefficient within a window around the voxel.

    The loss is 0 if the images are linearly related in every window, whatever the slope, and about 1 if they are
    unrelated. Windows that reach beyond the border see zeros there; with a mask, they see only the voxels that count.

    Equal to 1 + ``monai.losses.LocalNormalizedCrossCorrelationLoss`` with ``kernel_size=window`` and
    ``smooth_dr=eps * v``, where v is the number of voxels of the window.
    MONAI's default, 1e-5 for any window, is below the rounding errors of float32, so flat areas get arbitrary values.

    Args:
        window: odd width in voxels, one number or one per axis.
        eps: lower limit of the variance in a window, squared intensities; the default suits images in [0, 1].

    Source: Avants et al. 2008; Balakrishnan et al. 2019.
    """

    def __init__(self, window: int | Sequence[int] = 9, eps: float = 1e-5) -> None:
        super().__init__()
        self.widths, self.eps = _widths(window), _positive("eps", eps)
        self.window = Window([(1.0,) * width for width in self.widths], valid=False)

    def extra_repr(self) -> str:
        return f"window={self.widths} voxels, eps={self.eps}"

    def measure(self, fixed: torch.Tensor, mask: torch.Tensor | None, share: float) -> LocalMeasure:
        return _LocalCorrelation(fixed, self.window, mask, share, self.eps)


class _LocalCorrelation(LocalMeasure):
    """Squared correlation coefficients. Sums over a window stand for means, so a variance is multiplied by its mass."""

    def __init__(
        self, fixed: torch.Tensor, window: Window, mask: torch.Tensor | None, share: float, eps: float
    ) -> None:
        super().__init__(fixed, window, mask, share)
        total, square = self.moments(None, fixed)
        floor = self.mass * eps
        variance = torch.maximum(square - total.square() / self.mass, floor)
        self.constants = [1 / self.mass, floor, total * (2 / self.mass), self.weight / variance]

    def score(
        self, moments: Sequence[torch.Tensor], constants: Sequence[torch.Tensor], slopes: bool
    ) -> tuple[torch.Tensor, Slopes | None]:
        sum_w, square_w, product = moments
        inverse_mass, floor, twice_mean_f, gain = constants
        mean_w = sum_w * inverse_mass
        raw = torch.addcmul(square_w, sum_w, mean_w, value=-1)
        cross = torch.addcmul(product, sum_w, twice_mean_f, value=-0.5)
        slope = cross / torch.maximum(raw, floor)
        by_product = slope * gain
        value = torch.dot(cross.flatten(), by_product.flatten())
        if not slopes:
            return value, None
        # Below the limit, the variance of the warped image has no influence.
        by_square = slope.mul_(by_product).neg_().masked_fill_(raw <= floor, 0)
        by_mean = by_product.mul(twice_mean_f).addcmul_(mean_w, by_square, value=2).neg_()
        return value, Slopes(by_mean, by_square, by_product.mul_(2))


class StructuralSimilarity(_WindowedSimilarity):
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
        self.window = Window(list(map(gaussian_weights, self.widths, self.sigmas)), valid=True)

    def extra_repr(self) -> str:
        constants = f"data_range={self.data_range}, k1={self.k1}, k2={self.k2}"
        return f"window={self.widths} voxels, sigma={self.sigmas} voxels, {constants}"

    def measure(self, fixed: torch.Tensor, mask: torch.Tensor | None, share: float) -> LocalMeasure:
        limits = [(k * self.data_range) ** 2 for k in (self.k1, self.k2)]
        return _Structure(fixed, self.window, mask, share, limits)


class _Structure(LocalMeasure):
    def __init__(
        self, fixed: torch.Tensor, window: Window, mask: torch.Tensor | None, share: float, limits: Sequence[float]
    ) -> None:
        super().__init__(fixed, window, mask, share)
        self.limits = limits
        mean, square = self.moments(None, fixed) / self.mass
        self.constants = [1 / self.mass, mean, square, self.weight]

    def score(
        self, moments: Sequence[torch.Tensor], constants: Sequence[torch.Tensor], slopes: bool
    ) -> tuple[torch.Tensor, Slopes | None]:
        inverse_mass, mean_f, square_f, weight = constants
        mean_w, square_w, product = (moment * inverse_mass for moment in moments)
        c1, c2 = self.limits
        both = mean_w * mean_f
        energy = (mean_w * mean_w).addcmul_(mean_f, mean_f)
        # SSIM = (top_1 / bottom_1) · (top_2 / bottom_2): means, then contrast and structure.
        top_2 = product.sub_(both).mul_(2).add_(c2)
        top_1 = both.mul_(2).add_(c1)
        bottom_2 = square_w.add_(square_f).sub_(energy).add_(c2)
        bottom_1 = energy.add_(c1)
        inverse = (bottom_1 * bottom_2).reciprocal_()
        index = (top_1 * top_2).mul_(inverse)
        inverse.mul_(weight)
        value = (index * weight).sum()
        if not slopes:
            return value, None
        inverse.mul_(inverse_mass)
        by_mean = (bottom_1 - bottom_2).mul_(index).mul_(mean_w)
        by_mean.addcmul_(mean_f, top_2.sub_(top_1)).mul_(inverse).mul_(2)
        by_square = index.mul_(bottom_1).mul_(inverse).neg_()
        by_product = top_1.mul_(inverse).mul_(2)
        return value, Slopes(by_mean, by_square, by_product)


def _widths(window: int | Sequence[int]) -> list[int]:
    widths = [int(width) for width in (window if isinstance(window, Sequence) else [window] * 3)]
    if len(widths) != 3 or any(width < 1 or width % 2 == 0 for width in widths):
        raise ValueError(f"window must be one odd number of voxels or one per axis, got {window}")
    return widths


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return float(value)
