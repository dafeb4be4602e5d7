"""Refinement of one pair: its deformation is optimised with the losses that train the networks.

The coarse levels optimise one stationary velocity field v. The penalty is on the roughness of the whole of v, which
keeps large deformations regular. They may compare the images in both directions, by exp(v) and exp(−v); then they take
the gradient of v itself, which needs no backward pass through the squarings. The finest level costs most, so it
optimises only a small deformation w of the moving side as v has warped it. Its first steps take w as a displacement.
The others integrate it, and take the gradient of w itself. The result is the composition of both exponentials.

A linear transformation is optimised on all levels by the same steps, without a penalty. It follows the start.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from regzoo.errors import RegZooError
from regzoo.filters import gaussian_filter
from regzoo.refinement.adam import Adam
from regzoo.refinement.lattice import Lattice, add_roughness_gradient, roughness
from regzoo.refinement.levels import Level, Volumes, make_levels, voxel_size
from regzoo.refinement.linear_transform import LinearTransform, following, voxels
from regzoo.refinement.objective import Objective, parts_of
from regzoo.refinement.options import Linear, RefinementOptions
from regzoo.spatial import DisplacementField, Grid, decimals

#: Squarings of an exponential during the optimisation, if the gradient goes back through them and if it does not.
EXACT, INEXACT = 2, 1
#: Squarings, in the result, of what the coarse levels and the finest level found.
RESULT, RESULT_FINEST = 6, 5
#: The Gaussian filter of the gradient on the coarse levels, voxels of the lattice. Adam scales every value of the
#: lattice on its own, so without the filter the noise of areas without structure moves as far as an edge.
GRADIENT_SIGMA = 0.7
#: The share of the steps of the finest level that integrate.
INTEGRATED = 0.5
#: The share of the steps of a level in which the step size falls to almost nothing. Steps of one size never settle, and
#: only a stronger penalty keeps the noise that they leave from folding.
SETTLING = 0.5
#: Steps between two looks at the objective, which make the host wait for the device.
LOOK = 5
#: A level ends when `PATIENCE` steps lower the objective by less than `GAIN`.
#: Its first steps overshoot and do not count.
GAIN, PATIENCE = 1e-4, 10
#: Updates of the logarithm of a start.
LOGARITHM = 10

Progress = Callable[[], None]
#: The displacement of a level (1, X, Y, Z, 3) as a function of parameters and of the number of squarings.
_Field = Callable[[torch.Tensor, int], torch.Tensor]


@dataclasses.dataclass
class Refined:
    """The result of a refinement.

    Attributes:
        ddf: (3, X, Y, Z), voxels of `grid`, from the fixed side to the moving side as its grid is placed.
        grid: the finest level; for a linear transformation without a start, the corners of the fixed image.
        statistics: steps, seconds, and the objective before and after.
        matrix: the linear transformation without a start, 4×4, fixed world → moving world, RAS mm; otherwise None.
    """

    ddf: torch.Tensor
    grid: Grid
    statistics: dict[str, Any]
    matrix: np.ndarray | None = None


def refine(
    fixed: Volumes,
    moving: Volumes,
    options: RefinementOptions,
    start: DisplacementField | None = None,
    progress: Progress | None = None,
) -> Refined:
    """Refine the registration of a pair.

    Args:
        fixed: the fixed side.
        moving: the moving side, on the grid where the pre-alignment puts it.
        options: see `RefinementOptions`.
        start: the field to start from, from the fixed side to the moving side as its grid is placed, such as a
            network's; None for no deformation.
        progress: called after every step.

    Returns:
        The better of the start and the refinement by the objective of the finest level.

    Raises:
        RegZooError: the images do not overlap, no voxel counts, or the pair lacks what a similarity needs.
    """
    with torch.inference_mode(False), torch.enable_grad():
        return _Refinement(fixed, moving, options, start, progress).run()


class _Refinement:
    def __init__(
        self,
        fixed: Volumes,
        moving: Volumes,
        options: RefinementOptions,
        start: DisplacementField | None,
        progress: Progress | None,
    ) -> None:
        self.options, self.progress = options, progress
        self.begin, self.steps = time.perf_counter(), 0
        self.levels = make_levels(
            fixed, moving, parts_of(options), options.spacing, len(options.steps), options.max_voxels
        )
        self.fixed, self.start = fixed.grid, start
        finest = options.smoothness * (1.0 if start is None else options.trust)
        #: The weight of the penalty at each level.
        self.smoothness = [finest * options.stiffening**n for n in reversed(range(len(self.levels)))]
        self.symmetric = options.symmetric and options.transformation == "velocity"
        self.coarse, self.fine, self.result, self.result_finest = (
            (INEXACT if self.symmetric else EXACT, INEXACT, RESULT, RESULT_FINEST)
            if options.transformation == "velocity"
            else (0, 0, 0, 0)
        )

    def run(self) -> Refined:
        finest, options = self.levels[-1], self.options
        before = self._start()
        objective = Objective(finest, options)
        objective.look(before)
        if not objective.overlaps:
            raise RegZooError("the images have almost no voxels in common that count; check the masks or align first")
        objective_before = float(objective(before))
        if options.linear:
            matrix = self._matrix(options.linear, before)
            after, penalty = following(finest, before)(matrix), before.new_zeros(())
        else:
            after, penalty = self._deformed(before)
        objective.look(after)
        objective_after = float(objective(after) + penalty / objective.share)
        improved = objective.overlaps and objective_after < objective_before - 1e-6
        statistics = {
            "improved": improved,
            "steps": self.steps,
            "seconds": round(time.perf_counter() - self.begin, 3),
            "objective_before": round(objective_before, 6),
            "objective_after": round(objective_after if improved else objective_before, 6),
            "spacing_mm": [round(float(mm), decimals(mm)) for mm in finest.grid.spacing],
        }
        if options.linear and self.start is None:
            found, corners = matrix.cpu().numpy() if improved else np.eye(4), self.fixed.corner_grid
            ddf = DisplacementField.from_affine(found, corners, before.device).ddf().as_tensor()
            return Refined(ddf, corners, statistics, found)
        ddf = (after if improved else before)[0].movedim(-1, 0).flip(0)
        return Refined(ddf.contiguous(), finest.grid, statistics)

    def _start(self) -> torch.Tensor:
        """The starting displacement at the finest level, (1, X, Y, Z, 3)."""
        finest = self.levels[-1]
        still = torch.zeros(3, *finest.size, device=finest.fixed.device)
        if self.start is None:
            return still.movedim(0, -1)[None].contiguous()
        ddf = DisplacementField(still, finest.grid).compose(self.start).ddf().as_tensor()
        return ddf.flip(0).movedim(0, -1)[None].contiguous()

    def _lattice(self, level: Level) -> Lattice:
        stride = max(round(self.options.lattice / voxel_size(self.levels[-1].grid)), 1)
        size = [max(round((n - 1) / stride) + 1, min(4, n)) for n in level.size]
        return Lattice(size, level.fixed.device)

    def _matrix(self, kind: Linear, start: torch.Tensor) -> torch.Tensor:
        """The matrix (4, 4), RAS mm, that follows a displacement of the finest level."""
        grid = self.levels[-1].grid
        middle = (voxels(self.levels[-1]) + start).mean(dim=(0, 1, 2, 3)).flip(0).cpu().numpy()
        center = torch.as_tensor(grid.to_world(middle), device=start.device)
        radius = float(np.linalg.norm(np.ptp(grid.corners.reshape(-1, 3), axis=0))) / 2
        transform = LinearTransform(kind, center, radius)
        parameters = transform.start()
        for level, steps in zip(self.levels, self.options.steps, strict=True):
            follow = following(level, self._lattice(level).resized(start, level.size))

            def field(
                values: torch.Tensor, squarings: int, follow: Callable[[torch.Tensor], torch.Tensor] = follow
            ) -> torch.Tensor:
                return follow(transform(values)[0])

            rate = self.options.rate * voxel_size(level.grid)
            parameters = self._minimise([(level, field)], parameters, [(steps, 0)], rate, smoothness=0.0)
        return transform(parameters)[0]

    def _deformed(self, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The displacement of the finest level after the optimisation of a velocity field, and its penalty."""
        finest = self.levels[-1]
        velocity, added = self._coarse_levels(start)
        lattice = self._lattice(finest)
        after = self._field(Lattice(velocity.shape[1:4], lattice.device), velocity, self.result, finest)
        penalty = self.smoothness[-2:][0] * roughness(added)
        if len(self.levels) > 1:
            residual = self._finest_level(finest.warped(after), lattice)
            added_last = self._field(lattice, residual, self.result_finest, finest)
            after = Lattice(finest.size, after.device).compose(added_last, after)
            penalty = penalty + self.smoothness[-1] * roughness(residual)
        return after, penalty

    def _coarse_levels(self, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The velocity after the coarse levels, and what they added to that of the start."""
        levels = self.levels[:-1] or self.levels
        base = self._logarithm(start, self._lattice(levels[-1])) if self.start is not None else None
        added = self._lattice(levels[0]).zeros()
        for level, steps, smoothness in zip(levels, self.options.steps, self.smoothness, strict=False):
            lattice = self._lattice(level)
            added = lattice.resized(added, lattice.size)
            here = None if base is None else lattice.resized(base, lattice.size)
            directions = [(level, self._of_velocity(level, lattice, here, 1))]
            if self.symmetric:
                directions.append((level.swapped(), self._of_velocity(level, lattice, here, -1)))
            phases = [(steps, self.coarse)]
            added = self._minimise(directions, added, phases, self.options.rate, smoothness, GRADIENT_SIGMA)
        return (added if base is None else base + added), added

    def _logarithm(self, start: torch.Tensor, lattice: Lattice) -> torch.Tensor:
        """The velocity whose exponential is nearest to a displacement; folds of the displacement are smoothed away."""
        target = lattice.resized(start, lattice.size)
        velocity = target
        if self.options.transformation == "velocity":
            for _ in range(LOGARITHM):
                velocity = velocity + smoothed(target - lattice.exponential(velocity, self.result), sigma=1.0)
        return velocity

    def _finest_level(self, level: Level, lattice: Lattice) -> torch.Tensor:
        steps = self.options.steps[-1]
        integrated = round(INTEGRATED * steps) if self.fine else 0
        phases = [(steps - integrated, 0), (integrated, self.fine)]

        def field(velocity: torch.Tensor, squarings: int) -> torch.Tensor:
            return self._field(lattice, velocity, squarings, level, exact=False)

        return self._minimise([(level, field)], lattice.zeros(), phases, self.options.rate, self.smoothness[-1])

    def _of_velocity(self, level: Level, lattice: Lattice, base: torch.Tensor | None, sign: int) -> _Field:
        """The displacement of a level as a function of a velocity, or of what is added to `base`, and squarings.

        Args:
            sign: −1 for the inverse.
        """

        def field(velocity: torch.Tensor, squarings: int) -> torch.Tensor:
            whole = sign * (velocity if base is None else base + velocity)
            return self._field(lattice, whole, squarings, level, exact=not self.symmetric)

        return field

    def _field(
        self, lattice: Lattice, velocity: torch.Tensor, squarings: int, level: Level, exact: bool = True
    ) -> torch.Tensor:
        """The displacement of a level that a velocity integrates to.

        Args:
            exact: False takes the derivative of the exponential as the identity, which it is near 0. The backward pass
                through the squarings would take longer than the rest of the step. If both directions are compared, most
                of the error cancels.
        """
        if exact or not squarings:
            displacement = lattice.exponential(velocity, squarings)
        else:
            still = velocity.detach()
            displacement = velocity + (lattice.exponential(still, squarings) - still)
        return lattice.resized(displacement, level.size)

    def _minimise(
        self,
        directions: list[tuple[Level, _Field]],
        parameters: torch.Tensor,
        phases: list[tuple[int, int]],
        rate: float,
        smoothness: float,
        gradient_sigma: float = 0.0,
    ) -> torch.Tensor:
        """Optimise the parameters of the displacement of a level in phases of so many steps with so many squarings.

        Args:
            directions: the level and its displacement; perhaps also the level with its sides exchanged and the inverse.
        """
        objectives = [Objective(level, self.options) for level, _ in directions]
        parameters = parameters.detach().clone().requires_grad_()
        optimizer = Adam(parameters)
        left = every = sum(steps for steps, _ in phases)
        for steps, squarings in phases:
            lowest, since, weight = float("inf"), 0, 0.0
            for step in range(steps):
                displacements = [field(parameters, squarings) for _, field in directions]
                looks = step % LOOK == 0
                if looks:
                    for objective, displacement in zip(objectives, displacements, strict=True):
                        objective.look(displacement.detach())
                if not all(objective.is_informed for objective in objectives):
                    break
                values = [objective(there) for objective, there in zip(objectives, displacements, strict=True)]
                value = torch.stack(values).mean()
                (gradient,) = torch.autograd.grad(value, parameters)
                if looks:
                    weight = smoothness / objectives[0].share
                    penalty = weight * roughness(parameters.detach()) if weight else 0.0
                    total = float(value.detach() + penalty)
                    since = 0 if total < lowest - GAIN else since + LOOK
                    lowest = min(lowest, total)
                    if since >= PATIENCE or self._is_over():
                        break
                    if step < PATIENCE:
                        lowest, since = total, 0
                if gradient_sigma:
                    gradient = smoothed(gradient, gradient_sigma)
                if weight:
                    add_roughness_gradient(gradient, parameters.detach(), weight)
                optimizer.step(gradient, rate * min((left - step) / (SETTLING * every), 1.0))
                self.steps += 1
                if self.progress is not None:
                    self.progress()
            left -= steps
        return parameters.detach()

    def _is_over(self) -> bool:
        limit = self.options.seconds
        return limit is not None and time.perf_counter() - self.begin >= limit


def smoothed(velocity: torch.Tensor, sigma: float) -> torch.Tensor:
    """A velocity (1, X, Y, Z, 3) after a Gaussian filter of `sigma` voxels of its lattice."""
    return gaussian_filter(velocity.movedim(-1, 1), [sigma] * 3, "renormalise").movedim(1, -1).contiguous()
