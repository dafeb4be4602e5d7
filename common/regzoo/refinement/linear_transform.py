"""Rigid, similarity and affine transformations as functions of a few parameters that an optimiser can step along."""

from __future__ import annotations

from collections.abc import Callable

import torch
from regzoo.refinement.levels import Level
from regzoo.refinement.options import Linear


class LinearTransform:
    """Transformations x → exp(B)(x − centre) + centre + t; one unit of a parameter is about a mm at the radius.

    The first three parameters are t. The others weigh the directions of B, per radius: three rotations; for a
    similarity also the logarithm of the scale; for an affine transformation all nine entries, which are rotations,
    logarithms of scales, and shears.

    Args:
        kind: of the transformation.
        center: (3,), or (B, 3) for B transformations; mm.
        radius: half the diagonal of the image, mm.
    """

    def __init__(self, kind: Linear, center: torch.Tensor, radius: float) -> None:
        self.center, self.radius = center, radius
        self.directions = _directions(kind).to(center)

    def start(self) -> torch.Tensor:
        """The parameters (B, K) of the identity."""
        center = self.center.view(-1, 3)
        return center.new_zeros(len(center), 3 + len(self.directions))

    def __call__(self, parameters: torch.Tensor) -> torch.Tensor:
        """The matrices (B, 4, 4) of parameters (B, K)."""
        bend = torch.einsum("bk,kij->bij", parameters[:, 3:] / self.radius, self.directions)
        linear = torch.linalg.matrix_exp(bend)
        center = self.center.expand(len(parameters), 3)
        offset = center + parameters[:, :3] - torch.einsum("bij,bj->bi", linear, center)
        last = torch.eye(4, dtype=linear.dtype, device=linear.device)[3:].expand(len(parameters), 1, 4)
        return torch.cat([torch.cat([linear, offset[..., None]], dim=2), last], dim=1)


def voxels(level: Level) -> torch.Tensor:
    """The voxels of a level in the layout of a displacement, (1, X, Y, Z, 3)."""
    ticks = [torch.arange(n, dtype=torch.float32, device=level.fixed.device) for n in level.size]
    return torch.stack(torch.meshgrid(*ticks, indexing="ij")[::-1], dim=-1)[None]


def following(level: Level, start: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The displacement that follows a displacement of a level with a matrix (4, 4), RAS mm, as a function of it."""
    points = voxels(level) + start
    affine = torch.as_tensor(level.grid.affine, device=start.device)
    back, identity = torch.linalg.inv(affine), torch.eye(4, dtype=affine.dtype, device=start.device)

    def displacement(matrix: torch.Tensor) -> torch.Tensor:
        change = (back @ matrix @ affine - identity).float()
        return start + points @ change[:3, :3].flip(0, 1).T + change[:3, 3].flip(0)

    return displacement


def _directions(kind: Linear) -> torch.Tensor:
    """(K, 3, 3)."""
    if kind == "affine":
        return torch.eye(9).view(9, 3, 3)
    turns = torch.zeros(3, 3, 3)
    for axis in range(3):
        turns[axis, (axis + 2) % 3, (axis + 1) % 3], turns[axis, (axis + 1) % 3, (axis + 2) % 3] = 1, -1
    return torch.cat([turns, torch.eye(3)[None]]) if kind == "similarity" else turns
