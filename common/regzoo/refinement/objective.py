"""What a refinement minimises at one level: a weighted sum of similarities."""

from __future__ import annotations

from collections.abc import Callable

import torch
from regzoo.losses import (
    LocalNormalizedCrossCorrelation,
    LogDistance,
    MindSimilarity,
    MultiScaleDice,
    NormalizedCrossCorrelation,
)
from regzoo.losses.similarity import Prepared, Similarity
from regzoo.refinement.levels import Level
from regzoo.refinement.options import RefinementOptions

#: Share of the voxels of the smaller mask that must count on both sides.
OVERLAP = 0.01
#: The similarities that are means over the voxels that count.
MEANS = frozenset({"lncc", "ncc", "mind"})
#: The fewest voxels from which a level of a masked pair learns anything.
INFORMED = 100


class Objective:
    """The similarity of a level at a displacement; `look` must be called before the first evaluation.

    Attributes:
        share: the share of the voxels that counted at the first look, 1 for a similarity that is not a mean over them.
            A penalty is divided by it, so that the voxels that count weigh as much as they do without a mask.
        overlaps: whether voxels counted at the last look: more than hardly any of those that the masks keep.
        is_informed: whether a level can learn from the voxels that count.
    """

    def __init__(self, level: Level, options: RefinementOptions) -> None:
        self.level, self.options = level, options
        self.terms: list[tuple[float, str, Prepared]] = []
        #: Whether the terms were prepared for a displacement at which all voxels of the moving side count.
        self.all_counted = False
        self.share = 1.0
        self.overlaps = self.is_informed = True
        masks = [mask for mask in (level.fixed_mask, level.moving_mask) if mask is not None]
        self.fewest = OVERLAP * min((float(mask.sum()) for mask in masks), default=0.0)

    def look(self, displacement: torch.Tensor) -> None:
        """Find the voxels that count at a displacement (1, X, Y, Z, 3), and prepare the similarities for them.

        A voxel counts if both masks keep it and if it goes to a place within the moving field of view.
        """
        level = self.level
        with torch.no_grad():
            counts = level.sampler.stays(displacement)
            if level.moving_mask is not None:
                counts &= level.sampler(level.moving_mask, displacement) > 0.99
        all_count = bool(counts.all())
        if self.terms and all_count and self.all_counted:
            return
        self.all_counted = all_count
        mask = level.fixed_mask
        if not all_count:
            mask = counts.float() if mask is None else mask * counts
        self.overlaps = mask is None or float(mask.sum()) > self.fewest
        if not self.overlaps:
            self.is_informed = False
            return
        if not self.terms and mask is not None and MEANS.intersection(self.options.similarity):
            self.share = float(mask.mean())
            self.is_informed = float(mask.sum()) >= INFORMED
        self.terms = [(weight, name, self._term(name, mask)) for name, weight in self.options.similarity.items()]

    def _term(self, name: str, mask: torch.Tensor | None) -> Prepared:
        window = [min(self.options.window, n - (n + 1) % 2) for n in self.level.size]  # no wider than the level
        spacing = self.level.grid.spacing.tolist()
        similarities: dict[str, Callable[[], Similarity]] = {
            "lncc": lambda: LocalNormalizedCrossCorrelation(window),
            "ncc": NormalizedCrossCorrelation,
            "mind": MindSimilarity,
            "distance": LogDistance,
            "labels": lambda: MultiScaleDice(self.options.sigmas, spacing, squared_denominator=True),
        }
        return similarities[name]().prepare(self.level.fixed[:, self._channels(name)], mask)

    def _channels(self, name: str) -> slice:
        return self.level.slices[_part(name)]

    def __call__(self, displacement: torch.Tensor) -> torch.Tensor:
        """The objective at a displacement (1, X, Y, Z, 3), voxels of the level: a scalar that carries gradients."""
        warped = self.level.sampler(self.level.moving, displacement)
        values = [weight * term(warped[:, self._channels(name)]) for weight, name, term in self.terms]
        return torch.stack(values).sum()


def parts_of(options: RefinementOptions) -> list[str]:
    """The parts of both sides that a refinement compares, see `regzoo.refinement.levels.Volumes`."""
    return sorted({_part(name) for name in options.similarity})


def _part(similarity: str) -> str:
    return similarity if similarity in ("labels", "distance") else "image"
