"""Random affine augmentation of a batch, on the device of the batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from regzoo.case import LABEL_KEYS, SIDES

#: Four affinely independent corners of the cube [-1, 1]³; the other four are opposite.
_CORNERS = torch.tensor([[-1.0, -1, -1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]])


def random_affine(seeds: torch.Tensor, max_corner_shift: float, mirror: bool = False) -> torch.Tensor:
    """Random affine maps about the image centre that move the corners of the field of view.

    Args:
        seeds: (B,) int64 on the CPU, one per sample; the map of a sample depends only on its seed.
        max_corner_shift: largest movement of a corner along each axis, as a fraction of its distance to the centre.
        mirror: whether half of the maps also mirror the first array axis, X.

    Returns:
        (B, 3, 4) in coordinates from −1 to 1 along each axis, order (Z, Y, X) as `F.affine_grid` takes it.

    Source: Hu et al. 2018, section 3.2; the paper's code applies its map about voxel (0, 0, 0), which adds a
    translation to every change of scale.
    """
    homogeneous = torch.cat([_CORNERS, torch.ones(4, 1)], dim=1)
    maps = []
    for seed in seeds.tolist():
        generator = torch.Generator().manual_seed(int(seed))
        shift = (torch.rand(4, 3, generator=generator) * 2 - 1) * max_corner_shift
        # The opposite corners follow from these four and may move twice as far, so the shift is scaled back per axis.
        move = _CORNERS * shift
        farthest = (2 * move.mean(dim=0) - move).abs().amax(dim=0)
        shift = shift * (max_corner_shift / farthest.clamp(min=max(max_corner_shift, 1e-6)))
        matrix = torch.linalg.solve(homogeneous, _CORNERS * (1 + shift)).T
        if mirror and bool(torch.rand((), generator=generator) < 0.5):
            matrix[2] *= -1
        maps.append(matrix)
    return torch.stack(maps)


class RandomAffinePair:
    """Moves the fixed and the moving image of each sample, with their labels, by independent random affine maps.

    A batch is a dict of (B, C, X, Y, Z) tensors named ``fixed_…`` and ``moving_…``. Images are extended by their border
    values, labels by zeros.

    Args:
        max_corner_shift: see `random_affine`; 0.1 in the paper.
        mirror: see `random_affine`; for structures that both halves of the body have.
    """

    def __init__(self, max_corner_shift: float = 0.1, mirror: bool = False) -> None:
        if not 0 <= max_corner_shift < 0.5:
            raise ValueError(f"max_corner_shift must lie in [0, 0.5), got {max_corner_shift}")
        self.max_corner_shift = max_corner_shift
        self.mirror = bool(mirror)

    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, torch.Tensor]:
        """The moved tensors of a batch, under the same keys, on its device; `seeds` is (B,) int64 on the CPU."""
        if self.max_corner_shift == 0 and not self.mirror:
            return dict(batch)
        moved: dict[str, torch.Tensor] = {}
        for offset, side in enumerate(SIDES):
            keys = [key for key in batch if key in side]
            if not keys:
                continue
            first = batch[keys[0]]
            # One seed gives two random streams: of twice the seed, and of the next odd number.
            theta = random_affine(2 * seeds + offset, self.max_corner_shift, self.mirror)
            theta = theta.to(first.device, non_blocking=True)
            grid = F.affine_grid(theta, [len(first), 1, *first.shape[2:]], align_corners=True)
            for key in keys:
                padding = "zeros" if key in LABEL_KEYS else "border"
                moved[key] = F.grid_sample(batch[key].float(), grid, padding_mode=padding, align_corners=True)
        return moved
