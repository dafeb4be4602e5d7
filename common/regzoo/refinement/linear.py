"""Rigid, similarity and affine registration of one pair by mutual information, of any two modalities."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from nibabel.affines import from_matvec
from regzoo.errors import bad_file
from regzoo.filters import gaussian_matrix, matrix_for
from regzoo.refinement.adam import Adam
from regzoo.refinement.lattice import shrunk
from regzoo.refinement.linear_transform import LinearTransform
from regzoo.refinement.options import SOFT_TISSUE, Linear
from regzoo.spatial import Grid, as_tensor
from regzoo.spatial.volumes import FILE, even_step
from scipy.spatial.transform import Rotation

#: Voxels along the mean edge of the smaller image, sample points, steps and first step (voxels) of each level.
LEVELS = ((24, 6_000, 25, 1.0), (40, 10_000, 25, 0.5), (80, 30_000, 30, 0.5))
#: Bins of each axis of the joint histogram.
BINS = 32
#: Starts that are optimised at the first level, and of those, at the second.
KEPT = (10, 2)
#: An image with positive values and values below this is taken for a CT, and clipped to the window of soft tissue.
HOUNSFIELD = -500.0
#: About this many voxels are enough for the quantiles of an image.
SAMPLE = 1_000_000
#: Fewest voxels along each axis.
THINNEST = 4


def register_linear(
    fixed: torch.Tensor,
    fixed_grid: Grid,
    moving: torch.Tensor,
    moving_grid: Grid,
    kind: Linear = "affine",
    fixed_mask: torch.Tensor | None = None,
    moving_mask: torch.Tensor | None = None,
) -> np.ndarray:
    """Find the rigid, similarity or affine transformation between two images, wherever their headers place them.

    The similarity is the mutual information of the images at sample points that lie in both, times their share of all
    points: a small overlap tells little. Three levels of resolution follow each other. The first one starts from the
    headers, the centres of the fields of view and the centres of mass, each unturned and turned by 45° about 26 axes.
    Points outside an image or its mask do not count. The result is the same each time, and never less similar than
    where the headers place the images.

    Args:
        fixed: (1, X, Y, Z) on `fixed_grid`; voxels that are not finite do not count.
        fixed_grid: grid of `fixed`.
        moving: (1, X', Y', Z') on `moving_grid`, on the device of `fixed`.
        moving_grid: grid of `moving`.
        kind: ``rigid`` (6 parameters), ``similarity`` (7) or ``affine`` (12).
        fixed_mask: (1, X, Y, Z), voxels of `fixed` that count; all by default.
        moving_mask: the same for `moving`.

    Returns:
        4×4 float64, fixed world → moving world, RAS mm. Its inverse is an edit of the moving affine.

    Raises:
        RegZooError: an image that does not determine the transformation: constant, masked entirely or too thin.

    Source: Mattes et al. 2003, section II (mutual information of sample points).
    """
    sides = [_Side.of("fixed", fixed, fixed_grid, fixed_mask), _Side.of("moving", moving, moving_grid, moving_mask)]
    # Points are drawn in the smaller image, so that the share of them in the other one can be large.
    swapped = sides[1].volume < sides[0].volume
    source, target = sides[::-1] if swapped else sides
    edge = source.volume ** (1 / 3)
    finest = [side.coarser(edge / LEVELS[-1][0]).equalised() for side in (source, target)]
    matrices = _starts(*finest)
    header = matrices[:1]
    for level, (voxels, points, steps, rate) in enumerate(LEVELS):
        spacing = edge / voxels
        similarity = _Similarity(finest[0].coarser(spacing), finest[1].coarser(spacing), points)
        if level < len(KEPT):
            matrices = matrices[similarity(matrices).topk(min(KEPT[level], len(matrices))).indices]
        search: Linear = "similarity" if kind == "affine" and level == 0 else kind
        matrices = _climb(similarity, matrices, search, steps, rate * spacing)
    matrices = torch.cat([header, matrices])
    matrix = matrices[similarity(matrices).argmax()].cpu().numpy()
    return np.linalg.inv(matrix) if swapped else matrix


@dataclass(frozen=True)
class _Side:
    """An image times the weight of its voxels, and that weight: (1, 2, X, Y, Z)."""

    channels: torch.Tensor
    grid: Grid

    @classmethod
    def of(cls, name: str, image: torch.Tensor, grid: Grid, mask: torch.Tensor | None) -> _Side:
        file = getattr(image, "meta", {}).get(FILE) or f"the {name} image"
        image = as_tensor(image).float()
        weight = image.isfinite()
        if mask is not None:
            weight = weight & (as_tensor(mask) > 0)
        known = image[weight]
        problem = ""
        if min(grid.shape) < THINNEST:
            problem = f"has only {min(grid.shape)} voxels along an axis, and a linear registration needs {THINNEST}"
        elif not len(known):
            problem = "has no voxel that counts"
        elif known.min() == known.max():
            problem = "has the same value everywhere"
        if problem:
            raise bad_file(file, problem, "set align to header or center")
        image = image.where(weight, 0)
        return cls(torch.stack([image, weight.float()], dim=1), grid)

    @property
    def volume(self) -> float:
        """Volume of the voxels that count, mm³."""
        return float(self.channels[0, 1].sum(dtype=torch.float64)) * abs(np.linalg.det(self.grid.affine[:3, :3]))

    def coarser(self, spacing: float) -> _Side:
        """The image at a spacing in mm, smoothed against aliasing; finer axes stay."""
        old = np.asarray(self.grid.shape)
        size = np.minimum(np.maximum(np.round((old - 1) * self.grid.spacing / spacing) + 1, THINNEST), old).astype(int)
        affine = self.grid.affine @ np.diag([*(old - 1) / (size - 1), 1])
        return _Side(shrunk(self.channels, size.tolist()), Grid(size, affine))

    def equalised(self) -> _Side:
        """Intensities from 0 to 1, spread by the square root of their histogram to suit any modality."""
        weight = self.channels[:, 1:]
        image = self.channels[:, :1] / weight.clamp_min(1e-6)
        known = image[weight > 0.5]
        low, high = known[:: even_step(len(known), SAMPLE)].quantile(known.new_tensor([0.001, 0.999])).tolist()
        if low < HOUNSFIELD and high > 0:
            low, high = SOFT_TISSUE[0], min(high, SOFT_TISSUE[1])
        if not low < high:
            low, high = float(known.min()), float(known.max())
        bins = 256
        position = ((image - low) / (high - low)).clamp(0, 1) * bins
        histogram = torch.histc(position[weight > 0.5], bins, 0, bins)
        curve = F.pad(histogram.sqrt().cumsum(0), (1, 0))
        lower = position.long().clamp_max(bins - 1)
        image = torch.lerp(curve[lower], curve[lower + 1], position - lower) / curve[-1]
        return _Side(torch.cat([image * weight, weight], dim=1), self.grid)

    def center_of_mass(self) -> np.ndarray:
        """Of the equalised image, RAS mm."""
        image = self.channels[0, 0].double()
        sums = [image.sum(dim=[other for other in range(3) if other != axis]).cpu().numpy() for axis in range(3)]
        return self.grid.to_world([float((line * np.arange(len(line))).sum() / line.sum()) for line in sums])


def _starts(source: _Side, target: _Side) -> torch.Tensor:
    """Transformations source world → target world to start from, (B, 4, 4) float64; the first is the identity."""
    axes = [axis for axis in itertools.product((-1, 0, 1), repeat=3) if any(axis)]
    turns = [np.eye(3)]
    turns += [Rotation.from_rotvec(np.array(axis) / np.linalg.norm(axis) * math.pi / 4).as_matrix() for axis in axes]
    pairs = [
        (source.grid.center, source.grid.center),
        (source.grid.center, target.grid.center),
        (source.center_of_mass(), target.center_of_mass()),
    ]
    starts = []
    for (here, there), turn in itertools.product(pairs, turns):
        starts.append(from_matvec(turn, there - turn @ here))
    return torch.as_tensor(np.stack(starts), device=source.channels.device)


class _Similarity:
    """The similarity of two images at points of the first, as a function of transformations (B, 4, 4) → (B,)."""

    def __init__(self, source: _Side, target: _Side, count: int) -> None:
        self.target, self.device = target, source.channels.device
        generator = torch.Generator().manual_seed(0)
        inside = (source.channels[0, 1] > 0.5).nonzero().cpu()
        voxels = inside[torch.randint(len(inside), (count,), generator=generator)]
        voxels = voxels + torch.rand(count, 3, generator=generator, dtype=torch.float64) - 0.5
        # Between the outermost voxel centres: beyond them the weight is less, and shrinking the image would raise it.
        voxels = voxels.clamp_min(0).minimum(torch.tensor(source.grid.shape) - 1.0)
        world = source.grid.to_world(voxels.numpy())
        self.center = torch.as_tensor(world.mean(axis=0), device=self.device)
        #: Half the diagonal of the box of the points, mm.
        self.radius = float(np.linalg.norm(np.ptp(world, axis=0))) / 2
        self.points = torch.as_tensor(world, device=self.device).float()
        self.to_voxels = torch.as_tensor(np.linalg.inv(target.grid.affine), device=self.device)
        value, self.weight = self._look(source.channels, voxels.float().to(self.device)[None])
        self.row = (value * (BINS - 1)).round().long() * BINS
        self.window = gaussian_matrix(BINS, 0.7, "renormalise").to(self.device)

    @staticmethod
    def _look(channels: torch.Tensor, voxels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and weights at voxels (B, N, 3): (B, N) each."""
        sizes = matrix_for(voxels.device, torch.tensor, tuple(channels.shape[2:]))
        places = ((2 * voxels + 1) / sizes - 1).flip(-1)[None, ..., None, :]
        found = F.grid_sample(channels, places, align_corners=False)[0, :, :, :, 0]
        return found[0] / found[1].clamp_min(1e-3), found[1]

    def __call__(self, matrices: torch.Tensor) -> torch.Tensor:
        onto = (self.to_voxels @ matrices)[:, :3].float()
        value, weight = self._look(
            self.target.channels, self.points @ onto[:, :, :3].transpose(1, 2) + onto[:, None, :, 3]
        )
        weight = weight * self.weight
        column = value.clamp(0, 1) * (BINS - 1)
        lower = column.detach().long().clamp_max(BINS - 2)
        upper_share = column - lower
        cell = self.row + lower
        counts = weight.new_zeros(len(matrices), BINS * BINS)
        counts = counts.scatter_add(1, cell, weight * (1 - upper_share)).scatter_add(1, cell + 1, weight * upper_share)
        joint = self.window.T @ counts.view(-1, BINS, BINS) @ self.window
        joint = joint / joint.sum(dim=(1, 2), keepdim=True).clamp_min(1e-6)
        both = _entropy(joint.flatten(1))
        one, other = _entropy(joint.sum(1)), _entropy(joint.sum(2))
        return (one + other - both) * counts.sum(dim=1) / self.weight.sum()


def _entropy(probability: torch.Tensor) -> torch.Tensor:
    return -(probability * (probability + 1e-9).log()).sum(dim=1)


def _climb(similarity: _Similarity, starts: torch.Tensor, kind: Linear, steps: int, rate: float) -> torch.Tensor:
    """Improve every transformation (B, 4, 4) by steps of at most about `rate` mm at the corners of the image."""
    transform = LinearTransform(kind, starts[:, :3, :3] @ similarity.center + starts[:, :3, 3], similarity.radius)
    parameters = transform.start().requires_grad_()
    optimizer = Adam(parameters, betas=(0.8, 0.95))
    best, highest = parameters.detach().clone(), starts.new_full((len(starts),), -math.inf)
    for step in range(steps + 1):
        value = similarity(transform(parameters) @ starts)
        better = value.detach() > highest
        best = torch.where(better[:, None], parameters.detach(), best)
        highest = torch.where(better, value.detach().double(), highest)
        if step < steps:
            (gradient,) = torch.autograd.grad(-value.sum(), parameters)
            annealed = (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.step(gradient, rate * (0.03 + 0.97 * annealed))
    with torch.no_grad():
        return transform(best) @ starts
