"""Similarity of two images, one value per case."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from regzoo.case import REFERENCE, UNREGISTERED, WARPED
from regzoo.errors import RegZooError
from regzoo.losses import NormalizedCrossCorrelation, StructuralSimilarity
from regzoo.metrics.base import CaseMetric
from regzoo.spatial import as_tensor


class _ImageSimilarity(CaseMetric):
    """Base of the image metrics: both images are clipped to one window of intensities and scaled to [0, 1].

    Args:
        window: lowest and highest intensity (CT: in Hounsfield units); None for the range of the fixed image.
    """

    after = (WARPED.image, REFERENCE.image)
    before = (UNREGISTERED.image, REFERENCE.image)

    def __init__(self, window: Sequence[float] | None = None) -> None:
        super().__init__()
        if window is not None and (len(window) != 2 or not window[0] < window[1]):
            raise RegZooError(f"window {list(window)} is not valid; give the lowest and then the highest intensity")
        self.window = None if window is None else (float(window[0]), float(window[1]))

    def _scaled(self, y_pred: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The warped and the fixed image (1, 1, X, Y, Z), float32 in [0, 1]."""
        if y_pred.ndim != 4 or len(y_pred) != 1 or y_pred.shape != y.shape:
            raise ValueError(f"both images must have one shape (1, X, Y, Z): {tuple(y_pred.shape)}, {tuple(y.shape)}")
        fixed = as_tensor(y).to(y_pred.device).float()
        low, high = self.window or (float(fixed.min()), float(fixed.max()))
        width = max(high - low, torch.finfo(torch.float32).tiny)
        warped, fixed = ((image.clamp(low, high) - low) / width for image in (as_tensor(y_pred).float(), fixed))
        return warped[None], fixed[None]


class ImageCorrelation(_ImageSimilarity):
    """Normalised cross-correlation (NCC) of the warped and the fixed image: their correlation coefficient, −1 to 1.

    Source: Pérez de Frutos et al. 2023, whose code does not remove the means.
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """NCC of one case, images (1, X, Y, Z)."""
        return 1 - NormalizedCrossCorrelation()(*self._scaled(y_pred, y))


class ImageStructuralSimilarity(_ImageSimilarity):
    """Structural similarity index (SSIM) of the warped and the fixed image, with a 3-D Gaussian window.

    Source: Wang et al. 2004, see `regzoo.losses.StructuralSimilarity`.
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """SSIM of one case, images (1, X, Y, Z); NaN if the image is smaller than the window along any axis."""
        similarity, images = StructuralSimilarity(), self._scaled(y_pred, y)
        if any(n < len(kernel) for n, kernel in zip(images[0].shape[2:], similarity.window.kernels, strict=True)):
            return torch.tensor(torch.nan)
        return 1 - similarity(*images)
