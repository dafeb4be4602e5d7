"""Transrectal ultrasound of a prostate: a fan above the dark half-disc of the probe at the back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from regzoo_phantoms.fields import SmoothField
from regzoo_phantoms.scene import Scene, cover, paint, rim
from scipy import ndimage

#: Echo of tissues in ultrasound, log-compressed: 0 = black, 1 = white.
TRUS_TISSUE = {
    "surroundings": 0.5,
    "fat": 0.72,
    "gland": 0.42,
    "transition_zone": 0.4,
    "capsule": 0.85,
    "urethra": 0.22,
    "vesicle": 0.2,
    "fluid": 0.02,
    "cyst": 0.04,
    "calcification": 1.0,
    "bone": 0.95,
    "behind_bone": 0.05,
}


@dataclass(frozen=True)
class Probe:
    """The ultrasound probe: a cylinder along the S axis of the ultrasound world, behind the gland.

    Attributes:
        centre: (R, A) of the cylinder's axis, mm.
        radius: of the probe, mm.
        depth: greatest distance imaged from the axis, mm.
        half_angle: half the opening of the fan, rad.
    """

    centre: tuple[float, float]
    radius: float
    depth: float
    half_angle: float

    def polar(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance from the axis, mm, and angle from straight ahead, rad, of ultrasound points (3, ...)."""
        right = points[0] - np.float32(self.centre[0])
        ahead = points[1] - np.float32(self.centre[1])
        return np.hypot(right, ahead), np.arctan2(right, ahead)

    def sees(self, radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
        """Whether points given by `polar` are inside the imaged fan."""
        return (radius > self.radius) & (radius < self.depth) & (np.abs(angle) < self.half_angle)


def trus_image(scene: Scene, probe: Probe, marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An ultrasound with speckle, attenuation, shadows and enhancement, 0 outside the fan; uint8, shape (X, Y, Z).

    Args:
        scene: the patient; the last axis of its grid runs along the probe.
        probe: where the sound comes from.
        marks: the landmarks' positions in the ultrasound world, RAS mm, shape (landmarks, 3).
    """
    radius, angle = probe.polar(scene.points)
    image = _echo(scene, rng)
    layers = np.sin((radius - np.float32(probe.radius)) * np.float32(rng.uniform(1.6, 2.4)))
    paint(image, cover(radius - np.float32(probe.radius + 2.5), 1.0), np.float32(0.55) + np.float32(0.2) * layers)
    image += _behind_landmarks(scene, radius, angle, probe, marks)
    image -= np.float32(rng.uniform(-0.001, 0.005)) * (radius - np.float32(probe.radius + 20))
    image += np.float32(rng.uniform(0.09, 0.12)) * _speckle(scene, probe, rng)
    image = np.clip(image * np.float32(rng.uniform(0.85, 1.15)) + np.float32(rng.normal(0, 0.04)), 0.004, 1)
    image = image ** np.float32(rng.uniform(0.8, 1.3)) * 255
    image[~probe.sees(radius, angle)] = 0
    image[(radius <= probe.radius) & (np.abs(angle) < np.pi / 2)] = rng.integers(4, 14)
    return np.rint(image).astype(np.uint8)


def _echo(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """How strongly tissue scatters, log-compressed, without speckle, shadow or attenuation."""
    anatomy, q, blur, found = scene.anatomy, scene.body, scene.blur, scene.distances
    tissue = {name: value + rng.normal(0, 0.03) for name, value in TRUS_TISSUE.items()}
    texture = np.float32(0.13) * SmoothField.random(rng, length=7, components=1, terms=20)(scene.points)[0]
    image = np.float32(tissue["surroundings"]) + texture
    for name in ("bone_left", "bone_right", "symphysis"):
        distance = anatomy.shapes[name].distance(q)
        paint(image, cover(distance, 1.5), tissue["behind_bone"])
        paint(image, rim(distance, 2.0), tissue["bone"])
    bladder = np.maximum(anatomy.shapes["bladder"].distance(q), 1.5 - scene.gland)
    paint(image, cover(bladder, blur), tissue["fluid"])
    inner = image[scene.box]
    paint(inner, rim(found["gland"] - 3.5, 4.0) * np.float32(rng.uniform(0.5, 0.9)), tissue["fat"])
    paint(inner, cover(found["gland"], blur), tissue["gland"] + np.float32(0.25) * texture[scene.box])
    zone = tissue["transition_zone"] + rng.choice([-1, 1]) * rng.uniform(0.03, 0.1)
    paint(inner, cover(found["transition_zone"], blur), zone)
    paint(inner, rim(found["gland"], 1.4), tissue["capsule"])
    paint(inner, cover(found["urethra"], blur), tissue["urethra"])
    for side in ("left", "right"):
        vesicle = found[f"seminal_vesicle_{side}"]
        paint(inner, cover(vesicle, blur), tissue["vesicle"])
        paint(inner, rim(vesicle, 1.2) * np.float32(0.5), tissue["capsule"])
    for name in scene.landmark_names:
        paint(inner, cover(found[name], blur), tissue[name.split("_")[0]])
    return image


def _behind_landmarks(
    scene: Scene, radius: np.ndarray, angle: np.ndarray, probe: Probe, marks: np.ndarray
) -> np.ndarray:
    """The change of the echo behind landmarks: the shadow of a calcification, the enhancement behind a cyst."""
    change = np.zeros_like(radius)
    for landmark, position in zip(scene.anatomy.landmarks, marks.astype(np.float32), strict=True):
        far, bearing = probe.polar(position)
        size = np.float32(landmark.shape.radii.mean())
        across = (angle - bearing) * far / size
        along = (scene.points[2] - position[2]) / size
        beam = np.exp(-((across * across + along * along) ** 2))
        behind = np.clip((radius - far - size * np.float32(0.5)) / np.float32(2), 0, 1)
        change += np.float32(-0.38 if landmark.kind == "calcification" else 0.12) * beam * behind
    return change


def _speckle(scene: Scene, probe: Probe, rng: np.random.Generator) -> np.ndarray:
    """Log-compressed speckle, mean about 0, correlated along arcs: its grains widen with the distance from the probe.

    Complex Gaussian scatter is drawn on a polar grid, blurred, and its log intensity read at the voxels. The slices of
    the grid are perpendicular to the probe, so every slice is read at the same polar positions.
    """
    step, turn = min(scene.spacing, 1.0), np.radians(1.3)
    depths = int(np.ceil((probe.depth + 2) / step)) + 2
    turns = int(np.ceil(2 * probe.half_angle / turn)) + 4
    radius, angle = probe.polar(scene.points[..., 0])
    scatter = rng.standard_normal((2, depths, turns, scene.points.shape[-1]), np.float32)
    for axis, sigma in ((1, 0.45 / step), (2, 0.8), (3, 0.5 / scene.spacing)):
        scatter = ndimage.gaussian_filter1d(scatter, sigma, axis=axis, truncate=3)
    power = scatter[0] ** 2 + scatter[1] ** 2
    grains = np.log(power / power.mean() + np.float32(0.02)) + np.float32(0.5)
    row = np.clip(radius / np.float32(step), 0, depths - 1.001)
    column = np.clip((angle + np.float32(probe.half_angle)) / np.float32(turn) + 2, 0, turns - 1.001)
    i, j = row.astype(np.intp), column.astype(np.intp)
    u, v = (row - i)[..., None].astype(np.float32), (column - j)[..., None].astype(np.float32)
    near = grains[i, j] * (1 - v) + grains[i, j + 1] * v
    far = grains[i + 1, j] * (1 - v) + grains[i + 1, j + 1] * v
    return near * (1 - u) + far * u
