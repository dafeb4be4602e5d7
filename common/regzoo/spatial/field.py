"""A displacement field in physical space, as ITK, ANTs and 3D Slicer read it.

In memory a field is in RAS mm, as NIfTI affines are. In a file it follows ITK's convention: LPS mm, shape
(X, Y, Z, 1, 3), NIfTI intent 1007, on the grid of the fixed image. ``antsApplyTransforms``, SimpleITK's
``DisplacementFieldTransform`` and 3D Slicer apply such a file as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from regzoo.spatial.field_file import OURS, VECTOR_INTENT, read_field
from regzoo.spatial.grid import LPS_SIGNS, Grid
from regzoo.spatial.volumes import read_image, with_affine
from regzoo.spatial.warp import (
    Mode,
    Padding,
    apply_matrix,
    jacobian_determinant,
    sample,
    sample_file,
    slab_points,
    slabs,
)
from regzoo.spatial.writing import write_nifti

if TYPE_CHECKING:
    from monai.data import MetaTensor

logger = logging.getLogger(__name__)

#: Largest number of updates of an inverse. It stops when no point moves by more than `CLOSE` mm.
UPDATES = 50
CLOSE = 1e-3


class DisplacementField:
    """The transformation x → x + u(x) from fixed to moving, sampled on a grid, usually the fixed image's.

    Attributes:
        displacement: (3, X, Y, Z) float32, RAS mm.
        grid: where the displacements are known; beyond it, the displacement at its border applies.
    """

    def __init__(self, displacement: torch.Tensor, grid: Grid) -> None:
        self.displacement = torch.as_tensor(displacement).float()
        self.grid = grid
        if tuple(self.displacement.shape) != (3, *grid.shape):
            raise ValueError(f"displacement has shape {tuple(displacement.shape)}, expected (3, *{grid.shape})")

    @classmethod
    def from_points(cls, points: torch.Tensor, grid: Grid) -> DisplacementField:
        """The field that takes each voxel of `grid` to a given point (3, X, Y, Z), RAS mm, preferably float64."""
        return cls(points - slab_points(grid.affine, grid.shape, device=points.device)[0], grid)

    @classmethod
    def from_affine(cls, matrix: np.ndarray, grid: Grid, device: torch.device | None = None) -> DisplacementField:
        """The field of an affine map (4×4, RAS mm, fixed to moving), sampled on a grid."""
        return cls.from_points(slab_points(matrix @ grid.affine, grid.shape, device=device)[0], grid)

    @classmethod
    def from_ddf(
        cls, ddf: torch.Tensor, network: Grid, fixed: Grid, prealignment: np.ndarray | None = None
    ) -> DisplacementField:
        """The whole fixed-to-moving transformation on the fixed image's own grid.

        Args:
            ddf: (3, X, Y, Z), voxels of `network`, as a network predicts it.
            network: grid of the network's input; beyond it, the displacement at its border applies.
            fixed: grid of the fixed image, on which the result is sampled.
            prealignment: 4×4, RAS mm, moving world → aligned moving world.
        """
        device, edit = ddf.device, np.eye(4) if prealignment is None else np.asarray(prealignment, dtype=np.float64)
        to_network = np.linalg.solve(network.affine, fixed.affine)
        to_world = torch.as_tensor(np.linalg.inv(edit) @ network.affine, device=device)
        displacement = torch.empty(3, *fixed.shape, device=device)
        for rows in slabs(fixed.shape):
            points = slab_points(to_network, fixed.shape, rows, device)
            points = points + sample(ddf[None].float(), points, padding="border")
            world = slab_points(fixed.affine, fixed.shape, rows, device)
            displacement[:, rows] = (apply_matrix(to_world, points) - world)[0].float()
        return cls(displacement, fixed)

    @classmethod
    def load(cls, path: str | PathLike[str], strict_headers: bool = False) -> DisplacementField:
        """Read a vector NIfTI of shape (X, Y, Z, 1, 3), as ITK, ANTs, NiftyReg or SPM write it.

        Args:
            path: LPS mm with intent 1007, as `save` writes it; for the others see `regzoo.spatial.field_file`.
            strict_headers: refuse a file that other programs may place elsewhere, instead of warning.

        Raises:
            RegZooError: not a readable displacement field; the message says what the file is.
        """
        displacement, grid = read_field(path, strict_headers)
        return cls(torch.from_numpy(displacement), grid)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the field as an ITK-convention vector NIfTI (LPS mm, float32), atomically."""
        lps = self.displacement.cpu().numpy() * LPS_SIGNS.astype(np.float32).reshape(3, 1, 1, 1)
        write_nifti(path, lps.transpose(1, 2, 3, 0)[:, :, :, None], self.grid.affine, VECTOR_INTENT, OURS)

    def points(self) -> torch.Tensor:
        """Where each voxel of the grid goes in the moving image's world, (3, X, Y, Z) float64, RAS mm."""
        return self._voxel_centres(self.grid)[0] + self.displacement

    def _voxel_centres(self, grid: Grid) -> torch.Tensor:
        return slab_points(grid.affine, grid.shape, device=self.displacement.device)

    def transform_points(self, points: np.ndarray) -> np.ndarray:
        """Take points of the fixed image (N, 3) to the moving image, RAS mm."""
        voxels = torch.as_tensor(self.grid.to_voxels(points), device=self.displacement.device)
        shift = sample(self.displacement[None], voxels.T.reshape(1, 3, -1, 1, 1).float(), padding="border")
        return np.asarray(points + shift.reshape(3, -1).T.double().cpu().numpy())

    def warp(
        self,
        moving: MetaTensor | str | PathLike[str],
        mode: Mode = "bilinear",
        padding: Padding = "zeros",
        background: float = 0.0,
    ) -> MetaTensor:
        """Warp a moving image onto the field's grid with one interpolation from the moving image's own voxels.

        Inside the moving image, the values equal ITK's linear or nearest-neighbour resampling with this field.

        Args:
            moving: (C, X', Y', Z') with affine voxel → RAS mm on any grid, or the path of an image.
            mode: ``bilinear`` (trilinear) or ``nearest``, the latter for label maps.
            padding: more than half a voxel beyond the moving image's outermost voxel centres, ``zeros`` gives
                `background` and ``border`` the border value.
            background: value for ``zeros``.

        Returns:
            (C, X, Y, Z) float32 with the affine of the field's grid.
        """
        image = read_image(Path(moving)) if isinstance(moving, str | PathLike) else moving
        warped = self.warp_values(image.as_tensor(), Grid.of(image), mode, padding, background)
        return with_affine(warped, self.grid.affine)

    def warp_values(
        self,
        values: torch.Tensor,
        moving: Grid,
        mode: Mode = "bilinear",
        padding: Padding = "zeros",
        background: float = 0,
    ) -> torch.Tensor:
        """`warp` without MONAI: the values (C, X', Y', Z') lie on the grid `moving`, the result on the field's grid."""
        volume = values.float().to(self.displacement.device)
        warped = volume.new_empty(len(volume), *self.grid.shape)
        for rows, coordinates in self.coordinates(moving):
            warped[:, rows] = sample_file(volume, coordinates, mode, padding, background)
        return warped

    def coordinates(self, moving: Grid) -> Iterator[tuple[slice, torch.Tensor]]:
        """For each slab of the grid, the points its voxels go to: (1, 3, rows, Y, Z) float64, voxels of `moving`."""
        to_voxels = np.linalg.inv(moving.affine)
        linear = torch.as_tensor(to_voxels[:3, :3], device=self.displacement.device)
        for rows in slabs(self.grid.shape):
            centres = slab_points(to_voxels @ self.grid.affine, self.grid.shape, rows, self.displacement.device)
            yield rows, centres + torch.einsum("ij,jxyz->ixyz", linear, self.displacement[:, rows].double())

    def compose(self, then: DisplacementField) -> DisplacementField:
        """The field x → then(self(x)), on this field's grid and device."""
        points = self.points()
        return self.from_points(points + _displacements_at(points[None], then.displacement, then.grid)[0], self.grid)

    def inverse(self, grid: Grid | None = None) -> DisplacementField:
        """The transformation from moving to fixed.

        Args:
            grid: where to sample the inverse, usually the moving image's grid; None for the field's own grid.
        """
        target = self.grid if grid is None else grid
        return self.from_points(self._inverse_at(self._voxel_centres(target))[0], target)

    def inverse_points(self, points: np.ndarray) -> np.ndarray:
        """Take points of the moving image (N, 3) to the fixed image, RAS mm."""
        wanted = torch.as_tensor(np.asarray(points).T, dtype=torch.float64, device=self.displacement.device)
        return np.asarray(self._inverse_at(wanted.reshape(1, 3, -1, 1, 1)).reshape(3, -1).T.cpu().numpy())

    def _inverse_at(self, wanted: torch.Tensor) -> torch.Tensor:
        """The points that the field takes to `wanted`, (1, 3, X, Y, Z) float64, RAS mm."""
        affine, residual = self._affine_and_residual
        return invert(lambda points: _displacements_at(points, residual, self.grid), affine, wanted)

    @cached_property
    def _affine_and_residual(self) -> tuple[torch.Tensor, torch.Tensor]:
        """An affine map (4×4, RAS mm), and what the field adds to it, (3, X, Y, Z), mm.

        Without the affine map, a large pre-alignment would keep an inverse from converging.
        """
        points, centres = self.points(), self._voxel_centres(self.grid)
        # A least-squares fit to a coarse subset of the voxels.
        some = (slice(None), *(slice(None, None, max(n // 16, 1)) for n in self.grid.shape))
        source = centres[0][some].flatten(1)
        homogeneous = torch.cat([source, torch.ones_like(source[:1])])
        affine = torch.eye(4, dtype=torch.float64, device=points.device)
        affine[:3] = torch.linalg.lstsq(homogeneous.T, points[some].flatten(1).T).solution.T
        return affine, (points - apply_matrix(affine, centres)[0]).float()

    def ddf(self) -> MetaTensor:
        """The displacement in voxels of the field's own grid, along its axes, (3, X, Y, Z)."""
        return with_affine(self.voxel_displacement(slice(None)), self.grid.affine)

    def voxel_displacement(self, rows: slice) -> torch.Tensor:
        """The part of `ddf` in a slab along the first axis, (3, rows, Y, Z)."""
        to_voxels = torch.as_tensor(np.linalg.inv(self.grid.affine[:3, :3])).to(self.displacement)
        return torch.einsum("ij,jxyz->ixyz", to_voxels, self.displacement[:, rows])

    def jacobian(self) -> MetaTensor:
        """Determinant of the Jacobian of x → x + u(x) in the world, (1, X, Y, Z); ≤ 0 is a fold."""
        det = jacobian_determinant(self.ddf().as_tensor()[None])[0]
        return with_affine(det, self.grid.affine)


def _displacements_at(points: torch.Tensor, displacement: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The displacements (3, X', Y', Z') of a grid at points (1, 3, X, Y, Z), RAS mm; outside, those at its border."""
    voxels = apply_matrix(torch.as_tensor(np.linalg.inv(grid.affine)), points)
    return sample(displacement[None].to(points.device), voxels.float(), padding="border")


def invert(
    residual: Callable[[torch.Tensor], torch.Tensor], affine: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """The points x for which A x + r(x) is a given point, by the fixed-point iteration x ← A⁻¹(y − r(x)).

    Args:
        residual: r, from points to displacements, both (1, 3, X, Y, Z), RAS mm.
        affine: A, 4×4, RAS mm.
        wanted: y, (1, 3, X, Y, Z) float64, RAS mm.

    Source: Chen et al. 2008, A simple fixed-point approach to invert a deformation field.
    """
    back = torch.linalg.inv(affine)
    points = apply_matrix(back, wanted)
    change = 0.0
    for update in range(UPDATES):
        step = apply_matrix(back, wanted - residual(points)) - points
        # Full steps alone oscillate where the field stretches space to more than twice its size.
        points = points + step * (0.5 if update % 2 else 1.0)
        change = float(step.abs().max()) if step.numel() else 0.0
        if change < CLOSE:
            break
    else:
        text = "the inverse did not converge (last change %.3g mm): the field may fold; use a smoother one"
        logger.warning(text, change)
    return points
