"""The shape of one patient's head, as functions of a point of the head.

Head coordinates, mm: the origin lies between the thalami, the axes are those of RAS (x to the patient's right, y to the
front, z upwards). The two sides mirror each other; only the warp makes them differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from regzoo_phantoms.fields import SmoothField
from regzoo_phantoms.shapes import Body, Ellipsoid, Tube, smooth_union
from scipy.spatial.transform import Rotation

#: Structures with a left and a right label, in the order of the values; the last label is the brain stem.
PAIRED = (
    "cerebral_white_matter",
    "cerebral_cortex",
    "lateral_ventricle",
    "thalamus",
    "caudate",
    "putamen",
    "hippocampus",
    "cerebellum",
)
#: Values of the label map: 17, left before right.
LABELS = {
    **{2 * i + j + 1: f"{name}_{side}" for i, name in enumerate(PAIRED) for j, side in enumerate(("left", "right"))},
    2 * len(PAIRED) + 1: "brain_stem",
}
VALUES = {name: value for value, name in LABELS.items()}
#: Depth at which sulci end, mm, and thickness of the cortex, mm.
SULCUS_DEPTH = 22.0
CORTEX = 3.2


@dataclass(frozen=True)
class BrainAnatomy(Body):
    """One patient.

    Attributes:
        shapes: ellipsoids and tubes of the right half by name.
    """

    shapes: dict[str, Ellipsoid | Tube]

    def distance(self, name: str, q: np.ndarray) -> np.ndarray:
        """Approximate signed distance, mm, negative inside, to a shape and its mirror image at points (3, ...)."""
        return self.shapes[name].distance(np.stack([np.abs(q[0]), q[1], q[2]]))

    def cerebrum(self, q: np.ndarray) -> np.ndarray:
        """Signed distance to the hull of both hemispheres, mm."""
        lobes = np.maximum(self.distance("hemispheres", q), -np.float32(13) - q[2])
        hull = smooth_union(lobes, self.distance("temporal", q), 14)
        tentorium = smooth_union(self.distance("cerebellum", q) - 2, self.distance("brain_stem", q) - 1, 6)
        return np.maximum(hull, -tentorium)

    def pial_depth(self, q: np.ndarray, folds: np.ndarray, hull: np.ndarray) -> np.ndarray:
        """Depth under the folded surface of the cerebrum, mm, negative in sulci and outside.

        Args:
            q: points (3, ...).
            folds: a smooth random field of unit deviation, whose zeros are the sulci.
            hull: `cerebrum` at the points.
        """
        depth = -hull
        sulci = np.float32(3.8) * np.abs(folds) - np.float32(0.8)
        sulci += np.float32(0.8) * np.maximum(depth - np.float32(SULCUS_DEPTH - 5), 0)
        # The longitudinal fissure ends on the corpus callosum, the Sylvian fissure on the insula.
        fissure = np.maximum(np.abs(q[0]) - np.float32(1.0), np.float32(1.4) * -self.distance("deep", q))
        sulci = np.minimum(sulci, fissure)
        sulci = np.minimum(sulci, self.distance("sylvian", q))
        # No folds where the deep nuclei are.
        sulci = np.maximum(sulci, -self.distance("core", q))
        return np.minimum(depth, sulci)


def random_anatomy(rng: np.random.Generator) -> BrainAnatomy:
    """Draw a patient."""
    return BrainAnatomy(
        centre=rng.normal([0, 12, -4], 4),
        rotation=Rotation.from_rotvec(rng.normal(0, np.radians(4), 3)).as_matrix(),
        scale=rng.uniform(0.95, 1.05) * rng.uniform(0.97, 1.03, 3),
        warp=SmoothField.random(rng, length=rng.uniform(28, 40)).scaled(rng.uniform(1.3, 2.3)),
        shapes=_shapes(rng),
    )


def _shapes(rng: np.random.Generator) -> dict[str, Ellipsoid | Tube]:
    """The shapes of a patient's right half."""

    ellipsoid = partial(Ellipsoid.random, rng, shift=0.7, size=0.06)

    def tube(*nodes: tuple[float, float, float, float], width: float = 1.0) -> Tube:
        array = np.array(nodes, np.float64)
        array[:, :3] += rng.normal(0, 0.7, 3)
        array[:, 3] *= width * rng.uniform(0.93, 1.07)
        return Tube(array)

    ventricle = float(rng.uniform(0.75, 1.45))
    body = [(9, 30, 8, 4.5), (10, 8, 18, 5.5), (13, -18, 20, 5.5), (22, -38, 12, 6.5)]
    return {
        "hemispheres": Ellipsoid(np.array([0.0, -14, 17]), np.array([66.0, 85, 58]), np.eye(3)),
        "temporal": tube((44, 24, -24, 15), (50, -4, -26, 20), (50, -40, -18, 19), (40, -66, -4, 20)),
        "deep": Ellipsoid(np.array([0.0, -8, 6]), np.array([40.0, 44, 22]), np.eye(3)),
        "core": Ellipsoid(np.array([0.0, -8, 6]), np.array([31.0, 36, 22]), np.eye(3)),
        "sylvian": tube((38, 26, -9, 1.5), (42, 4, -4, 2), (52, -14, 2, 1.5), (60, -32, 14, 1)),
        "ventricle_body": tube(*body, (24, -60, 8, 3.5), width=ventricle),
        "ventricle_horn": tube((22, -38, 12, 5), (31, -26, -6, 3), (33, -6, -17, 2.5), width=0.5 + 0.5 * ventricle),
        "third_ventricle": ellipsoid([0, -10, -1], [1.8 * ventricle, 13, 9]),
        "fourth_ventricle": ellipsoid([0, -44, -32], [6, 5, 9]),
        "thalamus": ellipsoid([11.5, -17, 7], [9, 15, 9], (0, 0, -22)),
        "caudate": tube((13, 21, 3, 6.5), (14, 10, 13, 5), (17.5, -8, 20, 3.6), (22, -24, 19, 2.6)),
        "putamen": ellipsoid([25.5, 3, 2], [5.5, 16, 10], (0, -8, -10)),
        "pallidum": ellipsoid([18.5, -3, 0], [4, 9, 6], (0, 0, -20)),
        "hippocampus": tube((23, -9, -18, 6.5), (27, -20, -14, 5.2), (27, -33, -4, 4.2)),
        "brain_stem": tube((0, -24, -6, 12), (0, -24, -27, 14), (0, -30, -48, 9), (0, -36, -110, 7)),
        "cerebellum": ellipsoid([20, -60, -36], [30, 28, 24], (0, 0, -12)),
        "arbor": ellipsoid([20, -56, -35], [13, 14, 9]),
        "head": ellipsoid([0, -13, 0], [81, 101, 92]),
        "neck": tube((0, -30, -60, 52), (0, -34, -140, 56)),
        "face": tube((0, 60, -50, 42), (0, 66, -110, 40)),
        "eye": ellipsoid([32, 68, -30], [12.5, 12.5, 12.5]),
    }
