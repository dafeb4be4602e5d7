"""The shape of one patient's prostate and its surroundings, as functions of a point in the MR world."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from regzoo_phantoms.fields import SmoothField, undo
from regzoo_phantoms.shapes import Body, Ellipsoid, ellipsoid_distance
from scipy.spatial.transform import Rotation

#: Labels of every patient, in the order of the channels; the patient's own landmarks follow.
COMMON_LABELS = (
    "gland",
    "transition_zone",
    "peripheral_zone",
    "urethra",
    "seminal_vesicle_left",
    "seminal_vesicle_right",
    "apex",
    "base",
)


@dataclass(frozen=True)
class Landmark:
    """A cyst or a calcification inside the gland."""

    kind: str
    shape: Ellipsoid


@dataclass(frozen=True)
class ProstateAnatomy(Body):
    """One patient. Body coordinates have the gland's middle at the origin and the axes of RAS; the world is the MR's.

    Attributes:
        radii: half the gland's width, depth and height, mm.
        taper: how much narrower the apex is than the middle.
        sulcus: depth of the groove at the back, mm.
        bend: how far the urethra curves forward, mm, and sideways, mm.
        urethra_radius: mm.
        shapes: zones, seminal vesicles, apex, base, bladder and so on.
        landmarks: cysts and calcifications.
    """

    radii: np.ndarray
    taper: float
    sulcus: float
    bend: tuple[float, float]
    urethra_radius: float
    shapes: dict[str, Ellipsoid]
    landmarks: tuple[Landmark, ...]

    @property
    def label_names(self) -> list[str]:
        """Names of the label channels."""
        return [*COMMON_LABELS, *(f"{mark.kind}_{i + 1}" for i, mark in enumerate(self.landmarks))]

    def to_world(self, body: np.ndarray) -> np.ndarray:
        """Unwarped body coordinates (3,) → MR world, RAS mm."""
        return self.rotation @ body + self.centre

    def landmark_positions(self) -> np.ndarray:
        """Middles of the landmarks in the MR world, RAS mm, shape (landmarks, 3)."""
        target = np.array([mark.shape.centre for mark in self.landmarks]).T
        return np.array([self.to_world(point) for point in undo(self.warp, target, iterations=30).T])

    def gland(self, q: np.ndarray) -> np.ndarray:
        """Approximate signed distance to the gland's surface at body points, mm, negative inside."""
        x, y, z = q
        narrow = np.clip(1 + np.float32(self.taper / self.radii[2]) * z, np.float32(0.45), np.float32(1.25))
        groove = np.float32(self.sulcus) * np.exp(x * x * np.float32(-1 / 72.0))
        back = y - groove * np.clip(-y * np.float32(1 / self.radii[1]), 0, 1)
        return ellipsoid_distance([x / narrow, back / narrow, z], self.radii)

    def urethra(self, q: np.ndarray) -> np.ndarray:
        """Signed distance to the urethra's wall at body points, mm, negative inside; it ends at apex and base."""
        x, y, z = q
        t = z * np.float32(1 / self.radii[2])
        forward, sideways = self.bend
        dy = y - (np.float32(forward) * (t * t) - np.float32(0.15 * self.radii[1]))
        dx = x - np.float32(sideways) * t * (1 - t * t)
        radial = np.sqrt(dx * dx + dy * dy) - np.float32(self.urethra_radius)
        return np.maximum(radial, np.abs(z) - np.float32(0.97 * self.radii[2]))

    def distances(self, q: np.ndarray) -> dict[str, np.ndarray]:
        """Signed distances, mm, negative inside, of every label at body points (3, ...)."""
        gland = self.gland(q)
        zone = np.maximum(self.shapes["transition_zone"].distance(q), gland)
        found = {"gland": gland, "transition_zone": zone, "peripheral_zone": np.maximum(gland, -zone)}
        found["urethra"] = self.urethra(q)
        for name in COMMON_LABELS[4:]:
            found[name] = self.shapes[name].distance(q)
        # The vesicles meet the base from outside; apex and base are parts of the gland.
        for name in ("seminal_vesicle_left", "seminal_vesicle_right"):
            found[name] = np.maximum(found[name], -gland)
        for name in ("apex", "base"):
            found[name] = np.maximum(found[name], gland)
        for name, mark in zip(self.label_names[len(COMMON_LABELS) :], self.landmarks, strict=True):
            found[name] = mark.shape.distance(q)
        return found


def random_anatomy(rng: np.random.Generator) -> ProstateAnatomy:
    """Draw a patient: a gland of 20 to 60 cc and its surroundings."""
    ratios = np.array([1.25, 0.88, 1.0]) * rng.uniform(0.93, 1.07, 3)
    volume = rng.uniform(22_000, 56_000)
    radii = ratios * (volume / (4 / 3 * np.pi * ratios.prod())) ** (1 / 3)
    warp = SmoothField.random(rng, length=rng.uniform(16, 24)).scaled(rng.uniform(1.0, 1.8))
    shapes = _shapes(rng, radii)
    urethra_radius = float(rng.uniform(2.6, 3.4))
    return ProstateAnatomy(
        centre=rng.normal(0, 2.5, 3),
        rotation=Rotation.from_rotvec(rng.normal(0, np.radians(3), 3)).as_matrix(),
        scale=np.ones(3),
        warp=warp,
        radii=radii,
        taper=float(rng.uniform(0.12, 0.3)),
        sulcus=float(rng.uniform(0.5, 3.0)),
        bend=(float(rng.uniform(0.15, 0.45) * radii[1]), float(rng.normal(0, 1.5))),
        urethra_radius=urethra_radius,
        shapes=shapes,
        landmarks=_landmarks(rng, radii),
    )


def _shapes(rng: np.random.Generator, radii: np.ndarray) -> dict[str, Ellipsoid]:
    """The ellipsoids of a patient whose gland has these radii, body coordinates, mm."""
    rx, ry, rz = radii

    ellipsoid = partial(Ellipsoid.random, rng, shift=1.0, size=0.1, turn=4.0)
    shapes = {
        "transition_zone": ellipsoid([0, 0.2 * ry, 0.1 * rz], [0.66 * rx, 0.62 * ry, 0.68 * rz]),
        "apex": ellipsoid([0, -0.1 * ry, -0.82 * rz], [5.5, 5, 4.5]),
        "base": ellipsoid([0, 0.1 * ry, 0.82 * rz], [7, 5.5, 4.5]),
        "bladder": ellipsoid([0, 0.4 * ry, rz + 14], [25, 18, 15]),
        "symphysis": ellipsoid([0, ry + 23, -12], [17, 10, 17]),
    }
    for name, side in (("left", -1), ("right", 1)):  # RAS: the patient's left is at negative x
        vesicle = [side * 13, -0.62 * ry - 2, 0.85 * rz + 4]
        shapes[f"seminal_vesicle_{name}"] = ellipsoid(vesicle, [13, 4.8, 5.5], [0, -side * 22, side * 10], size=0.18)
        shapes[f"obturator_{name}"] = ellipsoid([side * (rx + 21), 5, 0], [9, 26, 60], [0, 0, side * 8])
        shapes[f"bone_{name}"] = ellipsoid([side * (rx + 38), 12, 4], [13, 24, 45], [0, 0, side * 10])
    return shapes


def _landmarks(rng: np.random.Generator, radii: np.ndarray) -> tuple[Landmark, ...]:
    """Two to six cysts and calcifications of 0.1 to 1 cc inside the gland, apart from one another and the urethra."""
    wanted = int(rng.integers(2, 7))
    found: list[Landmark] = []
    for _ in range(400):
        if len(found) == wanted:
            break
        size = (3 / (4 * np.pi) * rng.uniform(110, 800 if len(found) < 2 else 400)) ** (1 / 3)
        direction = rng.normal(size=3)
        centre = direction / np.linalg.norm(direction) * rng.uniform(0.25, 0.8) * radii
        clear = all(np.linalg.norm(centre - mark.shape.centre) > size + mark.shape.radii.max() + 2 for mark in found)
        if clear and np.hypot(centre[0], centre[1] + 0.05 * radii[1]) > size + 3:
            stretch = rng.uniform(0.8, 1.25, 3)
            shape = Ellipsoid(
                centre, size * stretch / stretch.prod() ** (1 / 3), Rotation.from_quat(rng.normal(size=4)).as_matrix()
            )
            found.append(Landmark(str(rng.choice(["cyst", "calcification"])), shape))
    return tuple(found)
