"""A spline displacement followed by a rigid motion, and the inverse of both, on the voxels of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from regzoo.augmentation.cubic_lattice import CubicLattice
from regzoo.spatial import sample

#: Newton steps towards the inverse: at the nodes of a lattice, with the field linear between nodes, then at the voxels.
_NODE_STEPS, _VOXEL_STEPS = 5, 2


def limit_scale(field: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """The largest factors (B,) up to 1 that keep the components of fields (B, 3, X, Y, Z) within limits (3,)."""
    lowest, highest = field.flatten(2).aminmax(dim=2)
    largest = torch.maximum(-lowest, highest)
    return (limits / largest.clamp(min=torch.finfo(field.dtype).tiny)).amin(dim=1).clamp(max=1)


def unfold_scale(lattice: CubicLattice, values: torch.Tensor, min_jacobian: float, steps: int = 64) -> torch.Tensor:
    """The largest factors (B,) up to 1 that keep det J of ``x + factor · u(x)`` above a limit.

    Args:
        lattice: the lattice of the displacements.
        values: (B, 3, nodes…), voxels.
        min_jacobian: smallest allowed det J at any node in the image or one cell beyond.
        steps: number of factors tried; all factors below the result keep the limit too.
    """
    near = slice(max(lattice.margin - 1, 0), -(lattice.margin - 1) if lattice.margin > 1 else None)
    a, b, c = lattice.gradient(values)[..., near, near, near].flatten(3).unbind(1)
    # det(1 + s·G) = 1 + s·trace + s²·(sum of the principal 2×2 minors) + s³·det G.
    (a0, a1, a2), (b0, b1, b2), (c0, c1, c2) = (row.unbind(1) for row in (a, b, c))
    trace = a0 + b1 + c2
    minors = (a0 * b1 - a1 * b0) + (a0 * c2 - a2 * c0) + (b1 * c2 - b2 * c1)
    cube = (a * torch.linalg.cross(b, c, dim=1)).sum(dim=1)
    factors = torch.arange(1, steps + 1, device=values.device)[:, None, None] / steps
    parts = factors.split(8 if values.device.type == "cpu" else steps)
    lowest = torch.cat([(1 + s * (trace + s * (minors + s * cube))).amin(dim=2) for s in parts])
    return (lowest >= min_jacobian).to(values.dtype).cumprod(dim=0).sum(dim=0) / steps


class SplineTransform:
    """A batch of ``T(x) = c + M (x + u(x) - c) + t``: smooth displacements, then linear maps about the image centre c.

    T takes the voxels of the fixed image to their correspondents in the moving image. Newton's method finds
    the inverse, first at the nodes of a second lattice, over the moving image, and then with two more steps at the
    voxels.

    Args:
        lattice: the lattice of the displacements.
        values: (B, 3, nodes…) u, voxels, without folds.
        displacement: (B, 3, X, Y, Z) u at the voxels, as interpolated by the lattice.
        matrix: (B, 3, 3) M, voxels to voxels.
        translation: (B, 3) t, voxels.
    """

    def __init__(
        self,
        lattice: CubicLattice,
        values: torch.Tensor,
        displacement: torch.Tensor,
        matrix: torch.Tensor,
        translation: torch.Tensor,
    ) -> None:
        self.lattice = lattice
        self.values = values
        self.displacement = displacement
        self.center = (torch.tensor(lattice.shape, dtype=torch.float64) - 1) / 2
        self.matrix = matrix.double()
        self.inverse_matrix = torch.linalg.inv(self.matrix)
        self.moving_lattice = CubicLattice(lattice.shape, lattice.cells)
        voxels = [torch.arange(size, dtype=torch.float64) for size in lattice.shape]
        beyond = self.matrix - torch.eye(3)
        self._forward = _affine(beyond, translation - beyond @ self.center, voxels, values)
        back = (self.inverse_matrix @ (self.center + translation)[..., None])[..., 0]
        backward = self.inverse_matrix, self.center - back
        self._backward = _affine(*backward, voxels, values)
        nodes = _affine(*backward, self.moving_lattice.node_axes(), values)
        landing = _add_affine(values.new_zeros(len(values), 3, *self.moving_lattice.nodes), nodes, slice(None))
        self._inverse_values, self._inverse_jacobian = self._invert(landing)

    def ddf(self, rows: slice = slice(None)) -> torch.Tensor:  # noqa: B008
        """``T(x) - x`` on some planes along X: (B, 3, rows, Y, Z), voxels."""
        displacement = self.displacement[:, :, rows]
        mapped = (_to(displacement, self.matrix) @ displacement.flatten(2)).unflatten(2, displacement.shape[2:])
        return _add_affine(mapped, self._forward, rows)

    def inverse(self, rows: slice = slice(None)) -> torch.Tensor:  # noqa: B008
        """The points ``T⁻¹(y)`` themselves, not displacements, on some planes along X: (B, 3, rows, Y, Z), voxels.

        This inverts the displacement at the voxels, interpolated linearly between them.
        """
        # T⁻¹(y) is the x that solves x + u(x) = z, where z is y without the rigid motion. Solve for x - z first.
        difference = self.moving_lattice.on_voxels(self._inverse_values, rows)
        jacobian = self.moving_lattice.on_voxels(self._inverse_jacobian.flatten(1, 2), rows).unflatten(1, (3, 3))
        for _ in range(_VOXEL_STEPS):
            position = _add_affine(difference.clone(), self._backward, rows)
            error = sample(self.displacement, position, padding="border").add_(difference)
            _subtract_product(difference, jacobian, error)
        return _add_affine(difference, self._backward, rows)

    def _invert(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """An approximate solution v of ``v + u(points + v) = 0`` at points (B, 3, …), voxels, and (1 + ∇u)⁻¹ there."""
        u = self.values
        limit = u.abs().flatten(2).amax(dim=2)[..., None, None, None]
        both = torch.cat([u, _inverse_jacobian(self.lattice.gradient(u)).flatten(1, 2)], dim=1)
        v = torch.zeros_like(points)
        for _ in range(_NODE_STEPS):
            found = self.lattice.linear(both, points + v)
            _subtract_product(v, found[:, 3:].unflatten(1, (3, 3)), v + found[:, :3])
            # The solution is within the limit, but far outside the image a step may exceed it.
            v = torch.maximum(torch.minimum(v, limit), -limit)
        return v, self.lattice.linear(both[:, 3:], points + v).unflatten(1, (3, 3))


def _subtract_product(vectors: torch.Tensor, matrices: torch.Tensor, others: torch.Tensor) -> None:
    """``vectors -= matrices @ others`` at every point, in place, without the copies of a batched product."""
    for column in range(3):
        vectors.addcmul_(matrices[:, :, column], others[:, column, None], value=-1)


def _inverse_jacobian(gradient: torch.Tensor) -> torch.Tensor:
    """(1 + ∇u)⁻¹ at each node, (B, 3, 3, nodes…), by the adjugate, which is much faster than a solver."""
    jacobian = gradient + torch.eye(3, device=gradient.device)[..., None, None, None]
    a, b, c = jacobian.unbind(1)
    columns = [torch.linalg.cross(b, c, dim=1), torch.linalg.cross(c, a, dim=1), torch.linalg.cross(a, b, dim=1)]
    determinant = (a * columns[0]).sum(dim=1)
    # There may be folds in the margin, outside the image.
    return torch.stack(columns, dim=2).div_(determinant.clamp_(min=0.05)[:, None, None])


def _affine(
    matrix: torch.Tensor, offset: torch.Tensor, axes: Sequence[torch.Tensor], like: torch.Tensor
) -> list[torch.Tensor]:
    """The three terms (B, 3, n) of ``matrix @ x + offset`` along the axes, computed in float64.

    The caller adds the terms. A matrix product may run in TF32 on a GPU, which is too coarse for coordinates.
    """
    terms = [matrix[..., axis, None] * coordinates for axis, coordinates in enumerate(axes)]
    return [_to(like, term) for term in (terms[0] + offset[..., None], *terms[1:])]


def _add_affine(field: torch.Tensor, terms: Sequence[torch.Tensor], rows: slice) -> torch.Tensor:
    """Add the terms of an affine map to some planes of a field, (B, 3, rows, Y, Z), in place."""
    along_x, along_y, along_z = terms
    field += along_x[..., rows, None, None]
    field += along_y[..., None, :, None] + along_z[..., None, None, :]
    return field


def _to(like: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
    """Copy a constant to the device and dtype of another tensor without waiting for the device."""
    return constant.to(like.device, like.dtype, non_blocking=True)
