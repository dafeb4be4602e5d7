"""Similarity of images of different modality: the modality-independent neighbourhood descriptor, MIND-SSC.

A descriptor tells which of the neighbours of a voxel resemble each other, not how bright they are. Patches of two
neighbours at x + a and x + b have the distance D(x), the mean over the patch of ``(I(x + a + p) − I(x + b + p))²``. The
neighbours are the six at a distance of `dilation` along the axes. The 12 pairs of neighbours on different axes make the
12 channels ``exp(−(D − min D) / V)``, where V is the mean of D over the channels.

Two pairs are always displaced by the same vector b − a, so six volumes of squared differences, filtered with the patch,
hold all 12 distances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

import torch
from regzoo.errors import RegZooError
from regzoo.losses.similarity import Prepared, Similarity
from regzoo.losses.windows import Window, in_slabs, slabs
from torch import nn

CHANNELS = 12
PLANES = ((0, 1), (0, 2), (1, 2))

#: Called with the descriptors of a slab, (12, x, Y, Z), and its place along X. Returns a value that is summed over the
#: slabs and the derivative of the sum with respect to the descriptors, which is then overwritten.
Head = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]

Pairs = list[tuple[torch.Tensor, torch.Tensor]]


class _Descriptors:
    """The descriptors of an image (X, Y, Z) and the gradient of a function of them.

    Args:
        radius: a patch reaches this many voxels from its centre.
        dilation: distance of the neighbours, voxels.
        mask: weights of the voxels, (X, Y, Z). A distance is then the weighted mean over the voxels of the patch that
            count at both neighbours.

    Attributes:
        known: where every channel has such voxels, (X, Y, Z), if there is a mask.
    """

    known: torch.Tensor

    def __init__(self, radius: int, dilation: int, like: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        self.reach, self.dilation = radius + dilation, dilation
        self.window = Window([(1.0,) * (2 * radius + 1)] * 3, valid=True)
        self.inverse_mass = like.new_full((), 1 / self.window.mass)
        self.pair_weights: Pairs = []
        self._memory: list[torch.Tensor | None] = [None, None]
        if mask is not None:
            self.pair_weights = pairs = self._pairs(self._extended(mask))
            self._memory[0] = memory = self._filtered(
                pairs, lambda slab: torch.stack([a[slab] * b[slab] for a, b in pairs])
            )
            mean = self._inner(memory)
            self.known = torch.ones_like(mask, dtype=torch.bool)
            for k, place in self._places(mask.shape):
                self.known &= mean[k][place] > 0
            self.inverse_mass = (self.inverse_mass / mean).masked_fill_(mean == 0, 0)

    def evaluate(
        self, image: torch.Tensor, floor: torch.Tensor, head: Head, slopes: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Sum of the values of `head`, and if `slopes` its derivatives by the image and by the floor of V."""
        pairs = self._pairs(self._extended(image))
        distances = self._distances(pairs)
        by_distance = self._zeros(pairs, distances) if slopes else distances
        total, by_floor = image.new_zeros(()), image.new_zeros(())
        places = self._places(image.shape)
        for slab in slabs(image, 0, CHANNELS):
            channels = torch.stack([distances[k][place][slab] for k, place in places])
            raw = channels.mean(0)
            scale = torch.maximum(raw, floor).reciprocal_().neg_()
            exponents = channels.sub_(channels.amin(0)).mul_(scale)
            descriptors = exponents.exp()
            value, slope = head(descriptors, slab)
            total += value
            if not slopes:
                continue
            slope.mul_(descriptors)
            by_scale = exponents.mul_(slope).sum(0)
            nearest = descriptors.floor_()  # the descriptor is 1 where the distance is smallest
            slope.addcmul_(nearest, slope.sum(0).div_(nearest.sum(0)), value=-1)
            flat = raw <= floor
            by_floor += torch.where(flat, by_scale * scale, 0).sum()
            slope.add_(by_scale.mul_(1 / CHANNELS).masked_fill_(flat, 0)).mul_(scale)
            for part, (k, place) in zip(slope, places, strict=True):
                by_distance[k][place][slab].add_(part)
        if not slopes:
            return total, None, None
        return total, self._gradient(pairs, by_distance), by_floor

    def describe(self, image: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
        """(X, Y, Z) → (12, X, Y, Z)."""
        channels = image.new_empty(CHANNELS, *image.shape)

        def keep(descriptors: torch.Tensor, slab: slice) -> tuple[torch.Tensor, torch.Tensor]:
            channels[:, slab] = descriptors
            return image.new_zeros(()), descriptors

        self.evaluate(image, floor, keep, slopes=False)
        return channels

    def _extended(self, image: torch.Tensor) -> torch.Tensor:
        """The image goes on beyond its border as it ends there."""
        return nn.functional.pad(image[None, None], [self.reach] * 6, mode="replicate")[0, 0]

    def _pairs(self, extended: torch.Tensor) -> Pairs:
        """For each displacement, the extended image at x + a + p and at x + b + p."""
        size = [n - self.dilation for n in extended.shape]
        pairs = []
        for i, j in PLANES:
            for a, b in (({i}, {j}), ({i, j}, set())):
                pairs.append((extended[self._cut(size, a)], extended[self._cut(size, b)]))
        return pairs

    def _places(self, size: Sequence[int]) -> list[tuple[int, tuple[slice, ...]]]:
        """For each channel, the number of its displacement and the place of its distances in that volume."""
        axes = {0, 1, 2}
        places = []
        for k, (i, j) in enumerate(PLANES):
            for kind, back in ((0, set()), (0, {i, j}), (1, {j}), (1, {i})):
                places.append((2 * k + kind, self._cut(size, axes - back)))
        return places

    def _cut(self, size: Sequence[int], shifted: Set[int]) -> tuple[slice, ...]:
        starts = [self.dilation if axis in shifted else 0 for axis in range(3)]
        return tuple(slice(start, start + n) for start, n in zip(starts, size, strict=True))

    def _weigh(self, squares: torch.Tensor, slab: slice) -> torch.Tensor:
        for square, (a, b) in zip(squares, self.pair_weights, strict=False):  # without a mask there are none
            square.mul_(a[slab]).mul_(b[slab])
        return squares

    def _inverse_mass(self, slab: slice) -> torch.Tensor:
        return self.inverse_mass[:, :, slab] if self.inverse_mass.ndim else self.inverse_mass

    def _distances(self, pairs: Pairs) -> torch.Tensor:
        """The mean squared differences for each displacement, (6, X + dilation, Y + dilation, Z + dilation)."""

        def squares(slab: slice) -> torch.Tensor:
            return self._weigh(torch.stack([a[slab] - b[slab] for a, b in pairs]).square_(), slab)

        self._memory[0] = memory = self._filtered(pairs, squares, self._memory[0])
        return self._inner(memory)

    def _filtered(
        self, pairs: Pairs, make: Callable[[slice], torch.Tensor], memory: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Make six volumes slab by slab, filter them and divide by the mass; the result is its `_inner` part."""

        def along_x(slab: slice) -> torch.Tensor:
            return self.window.filter(partial[:, :, slab], (0,)).mul_(self._inverse_mass(slab))

        partial = in_slabs(pairs[0][0], 0, 6, lambda slab: self.window.filter(make(slab), (2, 1)), memory)
        in_slabs(partial, 1, 6, along_x, self._inner(partial))
        return partial

    def _zeros(self, pairs: Pairs, distances: torch.Tensor) -> torch.Tensor:
        memory = self._memory[1]
        if memory is None:
            memory = self._memory[1] = distances.new_empty(6, len(pairs[0][0]), *distances.shape[2:])
        return self._inner(memory).zero_()

    def _inner(self, memory: torch.Tensor) -> torch.Tensor:
        """The part of the memory for volumes that the window has made smaller along X."""
        return memory[:, : memory.shape[1] - len(self.window.kernels[0]) + 1]

    def _gradient(self, pairs: Pairs, by_distance: torch.Tensor) -> torch.Tensor:
        def along_x(slab: slice) -> torch.Tensor:
            return self.window.adjoint(by_distance[:, :, slab] * self._inverse_mass(slab), (0,))

        partial = in_slabs(by_distance, 1, 6, along_x, self._memory[1])
        gradient = partial.new_zeros([n + self.dilation for n in pairs[0][0].shape])
        targets = self._pairs(gradient)
        for slab in slabs(pairs[0][0], 0, 6):
            slopes = self._weigh(self.window.adjoint(partial[:, slab], (2, 1)), slab)
            for slope, (a, b), (to_a, to_b) in zip(slopes, pairs, targets, strict=True):
                slope.mul_(a[slab] - b[slab]).mul_(2)
                to_a[slab].add_(slope)
                to_b[slab].sub_(slope)
        # Beyond the border, the voxels of the border were repeated.
        for axis in range(3):
            size = gradient.shape[axis] - 2 * self.reach
            inner = gradient.narrow(axis, self.reach, size)
            inner.select(axis, 0).add_(gradient.narrow(axis, 0, self.reach).sum(axis))
            inner.select(axis, -1).add_(gradient.narrow(axis, self.reach + size, self.reach).sum(axis))
            gradient = inner
        return gradient.contiguous()


class _Sum(torch.autograd.Function):
    """`_Descriptors.evaluate`, whose forward pass also computes the gradient."""

    @staticmethod
    def forward(
        ctx: Any, image: torch.Tensor, floor: torch.Tensor, descriptors: _Descriptors, head: Head
    ) -> torch.Tensor:
        total, *gradients = descriptors.evaluate(image, floor, head, ctx.needs_input_grad[0])
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        by_image, by_floor = ctx.saved_tensors
        return by_image * grads[0], by_floor * grads[0], None, None


@torch.no_grad()
def mind_ssc(image: torch.Tensor, radius: int = 2, dilation: int = 2, eps: float = 1e-4) -> torch.Tensor:
    """The MIND-SSC descriptors of an image, without gradient.

    Args:
        image: (B, 1, X, Y, Z); it goes on beyond its border as it ends there.
        radius: a patch reaches this many voxels from its centre; 0 compares single voxels.
        dilation: distance of the six neighbours, voxels.
        eps: lower limit of V, as a share of the variance of the image. It keeps flat areas flat.

    Returns:
        (B, 12, X, Y, Z) in [0, 1]; the largest channel of each voxel is 1. The pairs of neighbours on the axes X and Y
        are (+X, +Y), (−X, −Y), (+X, −Y) and (−X, +Y); X and Z, then Y and Z, follow likewise.

    Source: Heinrich et al. 2012, equations 3 to 5 (MIND); Heinrich et al. 2013, equation 3 (self-similarity context).
    """
    images = (image if image.dtype == torch.float64 else image.float())[:, 0]
    descriptors = _Descriptors(radius, dilation, images)
    return torch.stack([descriptors.describe(one, _floor(one, None, eps)) for one in images])


class MindSimilarity(Similarity):
    """Mean squared difference of the MIND-SSC descriptors of two images, which may be of different modality.

    The loss does not change if the intensities of an image are inverted, scaled or shifted. It is 0 for identical
    images.

    With a mask, the patches are compared over the voxels that count, and voxels without such voxels in each of their
    patches do not count.

    Args:
        radius: a patch reaches this many voxels from its centre; 0 compares single voxels.
        dilation: distance of the neighbours that a descriptor compares, voxels.
        eps: lower limit of the noise estimate V, as a share of the variance of the image.

    Source: see `mind_ssc`; the squared difference is that of Heinrich et al. 2012, equation 8.
    """

    def __init__(self, radius: int = 2, dilation: int = 2, eps: float = 1e-4) -> None:
        super().__init__()
        if radius < 0 or dilation < 1 or not eps > 0:
            raise ValueError(f"radius must be ≥ 0, dilation ≥ 1 and eps > 0, got {radius}, {dilation} and {eps}")
        self.radius, self.dilation, self.eps = int(radius), int(dilation), float(eps)

    def extra_repr(self) -> str:
        return f"radius={self.radius} voxels, dilation={self.dilation} voxels, eps={self.eps}"

    def against(self, fixed: torch.Tensor, weights: torch.Tensor | None) -> Prepared:
        images = fixed.flatten(0, 1)
        masks = [None] * len(images) if weights is None else list(weights.flatten(0, 1))
        prepared = [self._prepare(image, mask, 1 / len(images)) for image, mask in zip(images, masks, strict=True)]

        def loss(warped: torch.Tensor) -> torch.Tensor:
            values = [
                _Sum.apply(image, _floor(image, mask, self.eps), descriptors, head)  # type: ignore[no-untyped-call]
                for image, mask, (descriptors, head) in zip(warped.flatten(0, 1), masks, prepared, strict=True)
            ]
            return torch.stack(values).sum()

        return loss

    def _prepare(self, fixed: torch.Tensor, mask: torch.Tensor | None, share: float) -> tuple[_Descriptors, Head]:
        descriptors = _Descriptors(self.radius, self.dilation, fixed, mask)
        target = descriptors.describe(fixed, _floor(fixed, mask, self.eps))
        if mask is None:
            weight = fixed.new_full((), 2 * share / target.numel())
        else:
            weight = torch.where(descriptors.known, mask, 0)
            mass = weight.sum()
            if not bool(mass > 0):
                raise RegZooError("no voxel has a whole neighbourhood that counts; enlarge the masks or align first")
            weight = weight * (2 * share / (CHANNELS * mass))

        def head(found: torch.Tensor, slab: slice) -> tuple[torch.Tensor, torch.Tensor]:
            difference = found - target[:, slab]
            slope = difference * (weight[slab] if weight.ndim else weight)
            return torch.dot(slope.flatten(), difference.flatten()) / 2, slope

        return descriptors, head


def _floor(image: torch.Tensor, mask: torch.Tensor | None, eps: float) -> torch.Tensor:
    """`eps` times the variance of an image (X, Y, Z) over the voxels that count."""
    weights = torch.ones_like(image) if mask is None else mask
    share = weights / weights.sum()
    variance = ((image - (image * share).sum()).square() * share).sum()
    return (eps * variance).clamp(min=1e-30)
