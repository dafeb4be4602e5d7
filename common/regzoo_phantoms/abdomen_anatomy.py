"""The shape of one patient's upper abdomen, as functions of a point of the body.

Body coordinates, mm: the origin is the middle of the first lumbar vertebra, the axes are those of RAS (x to the
patient's right, y to the front, z to the head).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from regzoo_phantoms.abdomen_vessels import Vessel, random_vessels
from regzoo_phantoms.fields import SmoothField
from regzoo_phantoms.shapes import Body, Ellipsoid, Tube, smooth_union
from scipy.spatial.transform import Rotation

#: Values of the label map. Structures that Learn2Reg labels have the values of its AbdomenCTCT task.
LABELS = {
    1: "spleen",
    2: "kidney_right",
    3: "kidney_left",
    4: "gallbladder",
    6: "liver",
    7: "stomach",
    8: "aorta",
    9: "inferior_vena_cava",
    10: "portal_and_splenic_vein",
    11: "pancreas",
    14: "portal_branch_right",
    15: "portal_branch_left",
    16: "hepatic_vein_right",
    17: "hepatic_vein_middle",
    18: "hepatic_vein_left",
    19: "vertebrae",
}
VALUES = {name: value for value, name in LABELS.items()}
#: Distance between the middles of vertebrae, mm.
PITCH = 33.0


@dataclass(frozen=True)
class AbdomenAnatomy(Body):
    """One patient.

    Attributes:
        loops: random function of two components: where loops of bowel lie, and which hold oral contrast.
        fat: thickness of the fat under the skin, mm.
        organs: ellipsoids by name.
        tubes: stomach, pancreas, bowel and muscles by name.
        vessels: with the label they get.
    """

    loops: SmoothField
    fat: float
    organs: dict[str, Ellipsoid]
    tubes: dict[str, Tube]
    vessels: tuple[Vessel, ...]

    def distances(self, q: np.ndarray) -> dict[str, np.ndarray]:
        """Approximate signed distances, mm, negative inside, of everything but bone and vessels, at points (3, ...)."""
        found = self._walls(q)
        cavity, domes = found["cavity"], found["domes"]
        abdomen = np.maximum(cavity + 2, domes + 3)
        for name, tube in self.tubes.items():
            found[name] = tube.distance(q)
        for name in ("gallbladder", "heart", "sternum", "mesentery", "jejunum"):
            found[name] = self.organs[name].distance(q)
        found["stomach"] = np.maximum(found["stomach"], abdomen + 1)
        for side in ("right", "left"):
            notch = self.organs[f"sinus_{side}"].distance(q)
            outline = self.organs[f"kidney_{side}"].distance(q)
            found[f"kidney_{side}"] = np.maximum(np.maximum(outline, -notch), cavity + 2)
            found[f"pelvis_{side}"] = np.maximum(notch + 3, outline + 5)
            found[f"bed_{side}"] = np.minimum(outline - 3, self.organs[f"bed_{side}"].distance(q))
        found["liver"] = np.maximum(self._liver(q, found), abdomen)
        spleen = np.maximum(self.organs["spleen"].distance(q), abdomen)
        spleen = np.maximum(spleen, np.maximum(2 - found["stomach"], -found["bed_left"]))
        found["spleen"] = spleen
        return found

    def _walls(self, q: np.ndarray) -> dict[str, np.ndarray]:
        """Skin, muscle, peritoneum, diaphragm, lungs."""
        x, y, z = q
        wall = _barrel(x, y - 36, 142, 98)
        found = {"wall": wall, "skin": wall - self._fat_thickness(x, y)}
        back = smooth_union(oval(np.abs(x) - 30, y + 48, 30, 20), oval(x, y + 52, 30, 18), 10)
        found["cavity"] = np.maximum(_barrel(x, y - 40, 129, 86), 2 - back)
        # Open below: a dome continues downwards as a cylinder.
        domes = [self.organs[f"dome_{part}"] for part in ("right", "left", "middle")]
        right, left, middle = (dome.distance(np.stack([x, y, np.maximum(z, dome.centre[2])])) for dome in domes)
        # The lungs reach lower at the back than at the front.
        floor = np.float32(24) + np.float32(0.35) * np.maximum(y, 0)
        found["domes"] = np.minimum(smooth_union(smooth_union(right, left, 24), middle, 24), z - floor)
        inner = np.minimum(self.tubes["mediastinum"].distance(q), self.organs["heart"].distance(q))
        found["lungs"] = np.maximum(np.maximum(found["cavity"] + 1, -found["domes"]), -inner)
        return found

    def _fat_thickness(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Thickest at the flanks' back, thin over the spine, mm."""
        flank = np.exp(-((np.abs(x) - 90) ** 2) * np.float32(1 / 3200)) * np.exp(
            -((y + 30) ** 2) * np.float32(1 / 4000)
        )
        return np.float32(self.fat) * (np.float32(0.8) + np.float32(0.7) * flank) + 3

    def _liver(self, q: np.ndarray, found: dict[str, np.ndarray]) -> np.ndarray:
        """Two lobes and a tip that reaches down, hollowed by the neighbours."""
        liver = smooth_union(self.organs["liver_right"].distance(q), self.organs["liver_tip"].distance(q), 30)
        liver = smooth_union(liver, self.organs["liver_left"].distance(q), 24)
        for name, gap in (("stomach", 3.0), ("gallbladder", 1.0), ("bed_right", 0.0), ("duodenum", 3.0)):
            liver = np.maximum(liver, gap - found[name])
        return np.maximum(liver, 4 - self.tubes["mediastinum"].distance(q))


def _barrel(x: np.ndarray, y: np.ndarray, width: float, depth: float, corners: float = 0.3) -> np.ndarray:
    """Approximate signed distance, mm, to a cylinder along z whose section is between an ellipse and a rectangle."""
    u, v = x * np.float32(1 / width), y * np.float32(1 / depth)
    radius = np.sqrt(np.maximum(u * u + v * v - np.float32(corners) * (u * v) ** 2, 0))
    slope = np.sqrt((u * np.float32(1 / width)) ** 2 + (v * np.float32(1 / depth)) ** 2)
    return radius * (radius - 1) / np.maximum(slope, np.float32(1e-3))


def oval(x: np.ndarray, y: np.ndarray, width: float, depth: float) -> np.ndarray:
    """Approximate signed distance, mm, to an elliptic cylinder along z with the semi-axes `width` and `depth`."""
    return _barrel(x, y, width, depth, 0.0)


def random_anatomy(rng: np.random.Generator) -> AbdomenAnatomy:
    """Draw a patient."""
    liver = rng.normal(0, 3.5, 3)
    return AbdomenAnatomy(
        centre=rng.normal([0, -36, -14], [6, 6, 9]),
        rotation=Rotation.from_rotvec(rng.normal(0, np.radians(2.5), 3)).as_matrix(),
        scale=rng.uniform(0.94, 1.06) * rng.uniform(0.96, 1.04, 3),
        warp=SmoothField.random(rng, length=rng.uniform(45, 65)).scaled(rng.uniform(2.5, 4.5)),
        loops=SmoothField.random(rng, length=9.0, components=2, terms=20),
        fat=float(rng.uniform(4, 24)),
        organs=_organs(rng, liver),
        tubes=_tubes(rng),
        vessels=random_vessels(rng, liver),
    )


def _organs(rng: np.random.Generator, liver: np.ndarray) -> dict[str, Ellipsoid]:
    """The ellipsoids of a patient whose liver lies `liver` mm from its standard place."""

    ellipsoid = partial(Ellipsoid.random, rng)
    found = {
        "dome_right": ellipsoid([64, 42, 0], [84, 98, 114], shift=2, size=0.02, moved=liver * [0, 0, 1]),
        "dome_left": ellipsoid([-60, 40, -4], [82, 98, 104], shift=2, size=0.02),
        "dome_middle": ellipsoid([4, 62, 0], [68, 80, 102], shift=2, size=0.02),
        "heart": ellipsoid([-28, 84, 142], [66, 44, 38], (0, 12, 0)),
        "sternum": ellipsoid([0, 133, 118], [20, 5, 46], shift=1, size=0.05),
        "liver_right": ellipsoid([70, 40, 42], [64, 80, 70], (0, 0, -10), shift=2, size=0.05, moved=liver),
        "liver_tip": ellipsoid([92, 44, -8], [32, 52, 46], (0, 8, 0), shift=5, size=0.12, moved=liver),
        "liver_left": ellipsoid([4, 86, 62], [74, 38, 40], (0, 14, -6), shift=4, size=0.1, moved=liver),
        "gallbladder": ellipsoid([56, 96, 2], [13, 13, 27], (-20, 10, 0), shift=2, size=0.15, moved=liver),
        "spleen": ellipsoid([-97, 8, 50], [36, 58, 50], (0, -10, 12), shift=4, size=0.1),
        "mesentery": ellipsoid([-10, 80, -88], [96, 46, 72]),
        "jejunum": ellipsoid([-62, 66, -24], [44, 48, 42], (0, 20, 0)),
    }
    for side, sign, height in (("right", 1, -22), ("left", -1, -8)):  # RAS: the patient's right is at positive x
        middle = np.array([sign * 63, 3, height]) + rng.normal(0, 4, 3)
        bed, sinus = middle + np.array([-sign * 16, -20, 2]), middle + np.array([-sign * 15, 7, 0])
        tilt = (0.0, sign * 10.0, sign * 28.0)
        found[f"kidney_{side}"] = ellipsoid(middle, [27, 24, 53], tilt, shift=0, size=0.08)
        found[f"bed_{side}"] = ellipsoid(bed, [38, 40, 64], tilt, shift=0, size=0.02)
        found[f"sinus_{side}"] = ellipsoid(sinus, [15, 9, 20], tilt, shift=1, size=0.1)
    return found


def _tubes(rng: np.random.Generator) -> dict[str, Tube]:
    """The tubes of a patient."""

    def tube(*nodes: tuple[float, float, float, float], vary: float = 3.0) -> Tube:
        array = np.array(nodes, np.float64)
        array[:, :3] += rng.normal(0, vary, 3) + rng.normal(0, vary / 2, (len(nodes), 3))
        array[:, 3] *= rng.uniform(0.9, 1.1) * rng.uniform(0.95, 1.05, len(nodes))
        return Tube(array)

    found = {
        "mediastinum": tube((0, 4, 40, 31), (-4, 10, 80, 32), (-6, 10, 160, 34), vary=1),
        "stomach": tube(
            (-50, 46, 74, 31),
            (-58, 76, 52, 28),
            (-50, 98, 26, 23),
            (-22, 108, 8, 19),
            (14, 104, 8, 15),
            (34, 92, 12, 10),
        ),
        "oesophagus": tube((-10, 52, 150, 9), (-16, 52, 98, 9), (-36, 50, 86, 11), vary=1.5),
        "pancreas": tube(
            (36, 58, -14, 14), (20, 70, -2, 9), (-8, 72, 10, 11), (-42, 46, 24, 10), (-68, 30, 36, 9), vary=2
        ),
        "duodenum": tube((36, 88, 12, 12), (58, 72, 0, 13), (58, 56, -34, 13), (22, 52, -50, 12), (-14, 56, -46, 11)),
        "colon_right": tube(
            (104, 46, -140, 25), (102, 42, -64, 23), (98, 74, -38, 20), (52, 112, -48, 19), (-8, 118, -56, 18), vary=4
        ),
        "colon_left": tube(
            (-8, 118, -56, 18),
            (-62, 108, -34, 18),
            (-104, 56, -2, 17),
            (-110, 16, -28, 15),
            (-104, 20, -140, 15),
            vary=4,
        ),
    }
    for side, sign in (("right", 1), ("left", -1)):
        psoas = tube((sign * 28, 2, -16, 7), (sign * 37, 0, -80, 18), (sign * 46, 8, -150, 24), vary=1)
        found[f"psoas_{side}"] = psoas
        found[f"crus_{side}"] = tube((sign * 13, 44, 40, 5), (sign * 17, 26, 10, 7), (sign * 14, 22, -60, 4), vary=1)
    return found
