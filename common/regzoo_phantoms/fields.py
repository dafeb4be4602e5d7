"""Smooth random functions of a point in the world, and the transformation from ultrasound to MR made of them.

Everything here is a closed formula of a point, so it is evaluated exactly anywhere and nothing is ever interpolated.
Points are arrays (3, ...) of world coordinates, RAS mm, float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

#: Points evaluated at a time: small enough for the temporaries to stay in the processor's cache.
BLOCK = 16384
#: A drawn transformation is weakened until its Jacobian determinant is at least this everywhere.
LEAST_DETERMINANT = 0.3


def product(matrix: np.ndarray, points: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """3×3 times (3, ...) in float32, without BLAS: its last bit may depend on the number of threads."""
    x, y, z = points
    return np.stack([row[0] * x + row[1] * y + row[2] * z for row in matrix.astype(np.float32)])


@dataclass(frozen=True)
class SmoothField:
    """A random function u(x) = Σₖ aₖ cos(kₖ·x + φₖ): a draw from a Gaussian process with a Gaussian covariance.

    Attributes:
        waves: wave vectors, rad/mm, shape (K, 3).
        phases: rad, shape (K,).
        amplitudes: shape (K, C) for a field of C components.

    Source: random Fourier features, Rahimi and Recht 2007.
    """

    waves: np.ndarray
    phases: np.ndarray
    amplitudes: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, length: float, components: int = 3, terms: int = 12) -> SmoothField:
        """A field of unit standard deviation whose covariance is exp(−d²/2ℓ²), ℓ = `length` in mm."""
        waves = rng.normal(size=(terms, 3)) / length
        phases = rng.uniform(0, 2 * np.pi, size=terms)
        amplitudes = rng.normal(size=(terms, components)) * np.sqrt(2 / terms)
        return cls(waves.astype(np.float32), phases.astype(np.float32), amplitudes.astype(np.float32))

    def scaled(self, factor: float) -> SmoothField:
        """The same field times `factor`."""
        return replace(self, amplitudes=(self.amplitudes * factor).astype(np.float32))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values (C, ...) at points (3, ...)."""
        flat = points.reshape(3, -1)
        values = np.zeros((self.amplitudes.shape[1], flat.shape[1]), np.float32)
        for start in range(0, flat.shape[1], BLOCK):
            block = np.ascontiguousarray(flat[:, start : start + BLOCK], np.float32)
            target = values[:, start : start + BLOCK]
            for wave, phase, amplitude in zip(self.waves, self.phases, self.amplitudes, strict=True):
                angle = wave[0] * block[0]
                angle += wave[1] * block[1]
                angle += wave[2] * block[2]
                angle += phase
                np.cos(angle, out=angle)
                for component, factor in zip(target, amplitude, strict=True):
                    component += factor * angle
        return values.reshape(-1, *points.shape[1:])

    def gradient(self, points: np.ndarray) -> np.ndarray:
        """Partial derivatives (C, 3, N) at points (3, N)."""
        slope = -np.sin(np.einsum("kd,dn->kn", self.waves, points) + self.phases[:, None])
        return np.einsum("kc,kd,kn->cdn", self.amplitudes, self.waves, slope)


@dataclass(frozen=True)
class ProbePressure:
    """How the probe in the rectum displaces tissue: strongest at the probe, fading with depth and to the sides.

    Attributes:
        point: where the probe touches, RAS mm, shape (3,).
        amount: displacement there, mm. The tissue lay this much further back before the probe pressed.
        reach: depth at which the displacement has fallen to half, mm.
        fade: mm over which it falls.
        width: standard deviation of the fading to the sides (left-right and along the probe), mm.
    """

    point: np.ndarray
    amount: float
    reach: float = 15.0
    fade: float = 7.0
    width: float = 28.0

    def parts(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Displacement along +A (negative: to the back), shape (...), and how much of it depth lets through (0–1)."""
        p = self.point.astype(np.float32)
        depth = 1 / (1 + np.exp(((points[1] - p[1]) - self.reach) / np.float32(self.fade)))
        side = np.exp(((points[0] - p[0]) ** 2 + (points[2] - p[2]) ** 2) * np.float32(-0.5 / self.width**2))
        return -np.float32(self.amount) * depth * side, depth

    def gradient(self, points: np.ndarray) -> np.ndarray:
        """Partial derivatives (3, 3, N) of the displacement vector at points (3, N)."""
        value, depth = self.parts(points)
        gradient = np.zeros((3, 3, points.shape[1]))
        gradient[1, 0] = -value * (points[0] - self.point[0]) / self.width**2
        gradient[1, 1] = -value * (1 - depth) / self.fade
        gradient[1, 2] = -value * (points[2] - self.point[2]) / self.width**2
        return gradient


@dataclass(frozen=True)
class TrusToMr:
    """The true transformation T, ultrasound world → MR world: T(x) = R (x + p(x) + s(x) − c) + c + t.

    Attributes:
        rotation: rotation vector, rad, shape (3,).
        centre: c, RAS mm, shape (3,).
        translation: t, mm, shape (3,).
        pressure: p, the probe's pressure.
        smooth: s, a random smooth field, mm.
    """

    rotation: np.ndarray
    centre: np.ndarray
    translation: np.ndarray
    pressure: ProbePressure
    smooth: SmoothField

    @property
    def matrix(self) -> np.ndarray:
        """R, shape (3, 3)."""
        return Rotation.from_rotvec(self.rotation).as_matrix()

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points (3, ...) of the ultrasound world → the same tissue in the MR world (3, ...), RAS mm."""
        moved = self.smooth(points)
        moved[1] += self.pressure.parts(points)[0]
        moved += points
        moved = moved.reshape(3, -1) - self.centre[:, None].astype(np.float32)
        turned = product(self.matrix, moved) + (self.centre + self.translation)[:, None].astype(np.float32)
        return turned.reshape(points.shape)

    def jacobian_determinant(self, points: np.ndarray) -> np.ndarray:
        """det ∂T/∂x at points (3, N), shape (N,). The rotation does not change it."""
        gradient = self.smooth.gradient(points) + self.pressure.gradient(points) + np.eye(3)[:, :, None]
        return np.linalg.det(np.moveaxis(gradient, -1, 0))

    def inverse(self, points: np.ndarray) -> np.ndarray:
        """Points (3, N) of the MR world → the ultrasound world, RAS mm, by fixed-point iteration."""
        shift = (self.centre + self.translation)[:, None]
        target = self.matrix.T @ (points - shift) + self.centre[:, None]

        def displacement(found: np.ndarray) -> np.ndarray:
            moved = self.smooth(found).astype(np.float64)
            moved[1] += self.pressure.parts(found)[0]
            return moved

        return undo(displacement, target, iterations=40)


def undo(displacement: Callable[[np.ndarray], np.ndarray], target: np.ndarray, iterations: int) -> np.ndarray:
    """The points x (3, N) with x + displacement(x) = target, by fixed-point iteration."""
    found = target
    for _ in range(iterations):
        found = target - displacement(found)
    return found


def random_transformation(
    rng: np.random.Generator, centre: np.ndarray, rectum: np.ndarray, points: np.ndarray
) -> TrusToMr:
    """Draw a pose, a probe pressure and a smooth field that fold nothing.

    Args:
        centre: middle of the gland in the MR world, RAS mm, shape (3,).
        rectum: where the rectum touches the gland in the MR world, RAS mm, shape (3,).
        points: where the transformation will be used (3, N), RAS mm. The smooth field is weakened until the Jacobian
            determinant is at least `LEAST_DETERMINANT` at all of them.
    """
    rotation = _limited(rng.normal(0, np.radians(5), 3), np.radians(12))
    translation = _limited(rng.normal(0, 5.5, 3), 15)
    smooth = SmoothField.random(rng, length=rng.uniform(13, 20))
    smooth = smooth.scaled(rng.uniform(2, 4) / float(np.linalg.norm(smooth(points), axis=0).max()))
    amount = rng.uniform(1, 6)
    contact = Rotation.from_rotvec(rotation).as_matrix().T @ (rectum - centre - translation) + centre
    contact += rng.normal(0, 3, 3) * [1, 0, 1] + [0, 0.8 * amount, 0]
    transformation = TrusToMr(rotation, centre, translation, ProbePressure(contact, amount), smooth)
    while float(transformation.jacobian_determinant(points).min()) < LEAST_DETERMINANT:
        transformation = replace(transformation, smooth=transformation.smooth.scaled(0.8))
    return transformation


def _limited(vector: np.ndarray, longest: float) -> np.ndarray:
    """The vector, no longer than `longest`."""
    return vector * min(1.0, longest / float(np.linalg.norm(vector)))
