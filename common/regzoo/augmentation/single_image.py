"""Training pairs from single images: the moving image is made from the fixed one, on the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from regzoo.augmentation.spline_transform import SplineTransform, limit_scale, unfold_scale
from regzoo.augmentation.thin_plate import thin_plate_spline
from regzoo.case import COUNTERPART, FIXED, LABEL_KEYS, MOVING, Key
from regzoo.spatial import sample
from regzoo.spatial.warp import Mode, slabs
from scipy.spatial.transform import Rotation

#: Voxels that the CPU resamples at a time, so that the working memory does not grow with the image.
_SLAB = 3 * 2**16
#: The smallest det J of a spline.
MIN_JACOBIAN = 0.3


@dataclass(frozen=True)
class DrawnDeformation:
    """The random numbers of one sample.

    Attributes:
        gamma: exponent for the intensities of the moving image.
        brightness: added to the intensities afterwards.
        rotation: degrees about each of the three array axes, applied in turn.
        translation: (3,) mm.
        displacements: (3, control points…) mm, before `SingleImageAugmentation` scales them down.
    """

    gamma: float
    brightness: float
    rotation: np.ndarray
    translation: np.ndarray
    displacements: np.ndarray


class SingleImageAugmentation:
    """Makes the moving image, its labels and the true DDF of each sample from its fixed image.

    A voxel x of the fixed image goes to ``T(x) = c + R (x + u(x) - c) + t``: a thin-plate spline u through random
    displacements of a regular grid of control points, then a rotation R about the image centre c and a translation t.
    The moving image is ``fixed(T⁻¹(y))``, resampled once, and the DDF is ``T(x) - x``. So ``warp(moving, ddf)`` is the
    fixed image, up to interpolation, wherever T stays within the image. T and T⁻¹ are exact to a small part of a voxel.
    A spline whose det J is below 0.3, or that exceeds its limit between the control points, is scaled down. Beyond its
    border, an image is extended by its border values, a label by zeros.

    Args:
        spacing: voxel size of the network grid along each axis, mm.
        gamma: smallest and largest exponent of intensities in [0, 1]; log-uniform.
        max_brightness: largest value added to intensities in [0, 1], of either sign.
        max_rotation: degrees, about each array axis.
        max_translation: mm, length of the translation; uniform in a ball.
        max_displacement: mm, of the spline along each axis, anywhere in the image.
        control_points: number along each axis; the outermost lie on the outermost voxels.
        tolerance: largest deviation from the thin-plate spline, voxels; smaller is slower.
        label_mode: ``nearest`` for label maps and binary channels, ``bilinear`` for soft channels.
        with_ddf: return the true DDF.

    Source: Pérez de Frutos et al. 2023, section "Augmentation layer", and its code, which also changes the intensities
    of the fixed image, moves along each axis by up to 30 mm, rotates about one axis only and does not prevent folds.
    """

    def __init__(
        self,
        spacing: Sequence[float],
        gamma: Sequence[float] = (0.5, 2.0),
        max_brightness: float = 0.2,
        max_rotation: float = 10.0,
        max_translation: float = 30.0,
        max_displacement: float = 6.0,
        control_points: int | Sequence[int] = 8,
        tolerance: float = 0.02,
        label_mode: Mode = "nearest",
        with_ddf: bool = True,
    ) -> None:
        counts = [control_points] * 3 if isinstance(control_points, int) else list(control_points)
        if len(spacing) != 3 or min(spacing) <= 0:
            raise ValueError(f"spacing must be three positive numbers in mm, got {list(spacing)}")
        if len(gamma) != 2 or not 0 < gamma[0] <= gamma[1]:
            raise ValueError(f"gamma must be two positive numbers, the smaller first, got {list(gamma)}")
        if len(counts) != 3 or min(counts) < 2:
            raise ValueError(f"control_points must be at least 2 along each of three axes, got {control_points}")
        if tolerance <= 0:
            raise ValueError(f"tolerance must be positive, got {tolerance}")
        if label_mode not in get_args(Mode):
            raise ValueError(f"label_mode must be one of {get_args(Mode)}, got {label_mode!r}")
        self.spacing = tuple(float(mm) for mm in spacing)
        self.gamma = (float(gamma[0]), float(gamma[1]))
        self.max_brightness = _limit("max_brightness", max_brightness)
        self.max_rotation = _limit("max_rotation", max_rotation)
        self.max_translation = _limit("max_translation", max_translation)
        self.max_displacement = _limit("max_displacement", max_displacement)
        self.control_points = tuple(counts)
        # The lattice's interpolation error falls with the square of the number of cells per control point.
        self.subdivisions = max(3, math.ceil(math.sqrt(0.16 * max_displacement / min(spacing) / tolerance)))
        self.label_mode = label_mode
        self.with_ddf = with_ddf

    def draw(self, seed: int) -> DrawnDeformation:
        """Draw the values of a seed, uniformly within their limits, gamma on a logarithmic scale."""
        # Unlike PyTorch, NumPy gives unrelated streams for other uses of the same seed.
        random = np.random.default_rng([seed % 2**64, 0x7D5])
        low, high = np.log(self.gamma)
        # The second number of each is not used; without it, a seed would give other numbers below.
        gamma, _ = np.exp(random.uniform(low, high, 2)).clip(*self.gamma)
        brightness, _ = random.uniform(-1, 1, 2) * self.max_brightness
        rotation = random.uniform(-1, 1, 3) * self.max_rotation
        direction = random.normal(size=3)
        length = self.max_translation * random.uniform() ** (1 / 3)
        return DrawnDeformation(
            gamma=float(gamma),
            brightness=float(brightness),
            rotation=rotation,
            translation=direction * (length / np.linalg.norm(direction)),
            displacements=random.uniform(-1, 1, (3, *self.control_points)) * self.max_displacement,
        )

    @torch.no_grad()
    def transform(
        self,
        drawn: Sequence[DrawnDeformation],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        memory: torch.Tensor | None = None,
    ) -> SplineTransform:
        """The transformations T of some samples on images of `shape`, in `memory` (B, 3, X, Y, Z) if given."""
        device = torch.device(device)
        spline = thin_plate_spline(tuple(shape), self.spacing, self.control_points, self.subdivisions)
        millimetres = torch.tensor(self.spacing, dtype=torch.float64)
        limits = (self.max_displacement / millimetres).float().to(device, non_blocking=True)
        angles = np.stack([one.rotation for one in drawn])
        rotation = torch.from_numpy(Rotation.from_euler("xyz", angles, degrees=True).as_matrix())
        matrix = rotation * millimetres / millimetres[:, None]  # voxels to mm, rotate, back to voxels
        translation = torch.from_numpy(np.stack([one.translation for one in drawn])) / millimetres
        displacements = torch.from_numpy(np.stack([one.displacements for one in drawn]))
        field = torch.empty(len(drawn), 3, *shape, device=device) if memory is None else memory
        with torch.autocast(device.type, enabled=False):
            values = spline(displacements / millimetres.view(3, 1, 1, 1), device)
            for slab in _slabs(shape, device):
                field[:, :, slab] = spline.lattice.on_voxels(values, slab)
            factor = _per_sample(limit_scale(field, limits))
            factor = factor * _per_sample(unfold_scale(spline.lattice, values * factor, MIN_JACOBIAN))
            return SplineTransform(spline.lattice, values * factor, field.mul_(factor), matrix, translation)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, torch.Tensor]:
        """Make the moving side of a batch.

        Args:
            batch: tensors (B, C, X, Y, Z) named ``fixed_…``, images in [0, 1]. A moving tensor is made from each of
                them (image, label, distance map) and replaces any in the batch.
            seeds: (B,) int64 on the CPU. A sample depends only on its seed, bit for bit if computed on the CPU.

        Returns:
            The batch with ``moving_…`` and, unless switched off, ``ddf`` (B, 3, X, Y, Z) in voxels, from each fixed
            voxel to its moving correspondent.
        """
        fixed = {key: value for key, value in batch.items() if key in COUNTERPART}
        if FIXED.image not in fixed:
            raise ValueError(f"no fixed_image among {sorted(batch)}")
        image = fixed[FIXED.image]
        if len(seeds) != len(image):
            raise ValueError(f"{len(image)} samples need as many seeds, got {len(seeds)}")
        moving = {COUNTERPART[key]: torch.empty_like(value) for key, value in fixed.items()}
        result = {key: value for key, value in batch.items() if key not in COUNTERPART.values()} | moving
        if self.with_ddf:
            result[Key.DDF] = torch.empty(len(image), 3, *image.shape[2:], device=image.device)
        # A GPU makes all samples at once. The CPU makes one by one, so that a sample does not depend on its batch and
        # only one sample needs working memory.
        together = 1 if image.device.type == "cpu" else max(len(image), 1)
        for start in range(0, len(image), together):
            part = slice(start, start + together)
            drawn = [self.draw(seed) for seed in seeds[part].tolist()]
            sources, targets = ({key: value[part] for key, value in one.items()} for one in (fixed, result))
            self._fill(sources, targets, drawn)
        return result

    def _fill(
        self, fixed: Mapping[str, torch.Tensor], result: Mapping[str, torch.Tensor], drawn: Sequence[DrawnDeformation]
    ) -> None:
        """Fill the moving side of some samples, (B, C, X, Y, Z)."""
        shape, device = fixed[FIXED.image].shape[2:], fixed[FIXED.image].device
        # The memory of the DDF holds the displacement until the moving image is made.
        field = result[Key.DDF] if self.with_ddf else None
        transform = self.transform(drawn, shape, device, field)
        sources = {key: value.float() for key, value in fixed.items()}
        with torch.autocast(device.type, enabled=False):
            for slab in _slabs(shape, device):
                origin = transform.inverse(slab)
                for key, source in sources.items():
                    is_label = key in LABEL_KEYS
                    mode: Mode = self.label_mode if is_label else "bilinear"
                    moved = sample(source, origin, mode, "zeros" if is_label else "border")
                    result[COUNTERPART[key]][:, :, slab] = moved
            if field is not None:
                for slab in _slabs(shape, device):
                    field[:, :, slab] = transform.ddf(slab)
            numbers = torch.tensor([(one.gamma, one.brightness) for one in drawn])
            gamma, brightness = map(_per_sample, numbers.to(device, non_blocking=True).unbind(1))
            result[MOVING.image].clamp_(0, 1).pow_(gamma).add_(brightness).clamp_(0, 1)


def _limit(name: str, value: float) -> float:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must not be negative, got {value}")
    return value


def _slabs(shape: Sequence[int], device: torch.device) -> Iterable[slice]:
    """The parts of an image that are resampled one after another: only on the CPU more than one."""
    return slabs(shape, _SLAB) if device.type == "cpu" else [slice(None)]


def _per_sample(values: torch.Tensor) -> torch.Tensor:
    """One number for each sample, to multiply (B, C, X, Y, Z) with."""
    return values.view(-1, 1, 1, 1, 1)
