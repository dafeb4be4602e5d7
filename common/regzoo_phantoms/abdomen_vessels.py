"""The vessels of an abdomen: the great ones, and the trees of the portal and hepatic veins inside the liver."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from regzoo_phantoms.shapes import Tube

Node = tuple[float, float, float, float]


@dataclass(frozen=True)
class Vessel:
    """A vessel and its label.

    Attributes:
        kind: ``artery``, ``portal`` or ``vein``, which sets the brightness.
        label: name in the label map; None if it is not labelled.
        inside: whether it is drawn inside the liver only.
        tube: in body coordinates, mm.
    """

    kind: str
    label: str | None
    inside: bool
    tube: Tube


#: x, y, z and radius of the nodes of vessels outside the liver, mm.
GREAT_VESSELS: tuple[tuple[str, str | None, tuple[Node, ...]], ...] = (
    ("vein", "inferior_vena_cava", ((22, 34, -160, 11), (24, 36, -40, 11), (26, 42, 10, 11.5), (24, 48, 50, 12))),
    ("vein", "inferior_vena_cava", ((24, 48, 50, 12), (18, 52, 88, 13), (12, 58, 112, 14), (8, 64, 128, 15))),
    ("vein", None, ((40, 14, -20, 5), (24, 38, -20, 6))),
    ("vein", None, ((-40, 16, -8, 5), (-12, 50, -10, 5), (22, 42, -14, 5))),
    ("artery", None, ((-6, 40, 0, 5), (-4, 60, -12, 4.5), (0, 64, -110, 3.5))),
    ("artery", None, ((-6, 40, 14, 5), (-4, 58, 20, 4), (-30, 56, 30, 3), (-66, 32, 44, 2.5))),
    ("artery", None, ((-6, 34, -12, 4), (-44, 12, -10, 2.5))),
    ("artery", None, ((-6, 34, -14, 4), (44, 10, -22, 2.5))),
    ("portal", None, ((14, 66, -110, 5), (12, 66, -4, 6))),
    ("portal", "portal_and_splenic_vein", ((-70, 28, 42, 4.5), (-30, 52, 20, 5), (12, 64, 0, 6.5), (36, 64, 36, 7.5))),
    (
        "artery",
        "aorta",
        ((-6, 30, -160, 9.5), (-6, 33, 0, 11), (-10, 30, 60, 11.5), (-15, 18, 120, 12), (-17, 8, 170, 12)),
    ),
)
#: Trees inside the liver: the stem, then the branches of each.
PORTAL_RIGHT: tuple[tuple[Node, ...], ...] = (
    ((36, 64, 36, 7.5), (60, 58, 42, 6)),
    ((60, 58, 42, 5.5), (86, 72, 52, 4), (98, 66, 82, 2.5)),
    ((86, 72, 52, 4), (96, 92, 28, 2.5)),
    ((60, 58, 42, 5.5), (86, 34, 40, 4), (92, 14, 66, 2.5)),
    ((86, 34, 40, 4), (102, 28, 2, 2.5)),
)
PORTAL_LEFT: tuple[tuple[Node, ...], ...] = (
    ((36, 64, 36, 7), (18, 80, 52, 5.5), (2, 92, 60, 5), (0, 106, 58, 4.5)),
    ((2, 92, 60, 4.5), (-22, 84, 72, 3), (-42, 78, 76, 2)),
    ((0, 106, 58, 4), (-26, 104, 56, 2.5)),
    ((0, 106, 58, 4), (26, 108, 56, 2.5)),
)
HEPATIC_RIGHT: tuple[tuple[Node, ...], ...] = (
    ((20, 52, 90, 7), (52, 36, 82, 6), (84, 38, 60, 5), (104, 46, 24, 3)),
    ((52, 36, 82, 4), (76, 16, 78, 2.5)),
)
HEPATIC_MIDDLE: tuple[tuple[Node, ...], ...] = (
    ((18, 56, 90, 6.5), (40, 74, 78, 5.5), (58, 92, 52, 4.5), (62, 100, 28, 3)),
    ((40, 74, 78, 4), (76, 92, 72, 2.5)),
)
HEPATIC_LEFT: tuple[tuple[Node, ...], ...] = (
    ((16, 56, 90, 6.5), (4, 76, 82, 5), (-20, 94, 70, 3.5)),
    ((4, 76, 82, 4), (-26, 74, 86, 2.5)),
)
LIVER_TREES = {
    "portal_branch_right": ("portal", PORTAL_RIGHT),
    "portal_branch_left": ("portal", PORTAL_LEFT),
    "hepatic_vein_right": ("vein", HEPATIC_RIGHT),
    "hepatic_vein_middle": ("vein", HEPATIC_MIDDLE),
    "hepatic_vein_left": ("vein", HEPATIC_LEFT),
}


def random_vessels(rng: np.random.Generator, liver: np.ndarray) -> tuple[Vessel, ...]:
    """The vessels of a patient whose liver lies `liver` mm from its standard place, in the order of painting."""
    width = rng.uniform(0.88, 1.06)
    found = []
    for name, (kind, branches) in LIVER_TREES.items():
        found += [Vessel(kind, name, True, tube) for tube in _tree(rng, branches, liver, width)]
    for great, label, nodes in GREAT_VESSELS:
        array = np.array(nodes, np.float64)
        array[1:-1, :3] += rng.normal(0, 0.8, (len(nodes) - 2, 3))  # the ends stay where they meet other vessels
        array[:, 3] *= width
        found.append(Vessel(great, label, False, Tube(array)))
    return tuple(found)


def _tree(
    rng: np.random.Generator, branches: tuple[tuple[Node, ...], ...], liver: np.ndarray, width: float
) -> list[Tube]:
    """The branches of a tree, with nodes shifted at random, and twigs at the ends."""
    moved: dict[tuple[float, ...], np.ndarray] = {}
    tubes = []
    for nodes in branches:
        array = np.array(nodes, np.float64)
        for row in array:
            # Branches that share a node keep sharing it.
            row[:3] = moved.setdefault(tuple(row[:3]), row[:3] + liver + rng.normal(0, 2.5, 3))
        array[:, 3] *= width
        tubes.append(Tube(array))
        tubes += _twigs(rng, array[-2], array[-1])
    return tubes


def _twigs(rng: np.random.Generator, before: np.ndarray, end: np.ndarray) -> list[Tube]:
    """Two thinner branches from the end of a branch, each turned by about 30 degrees."""
    if end[3] > 4:
        return []
    forward = (end[:3] - before[:3]) / np.linalg.norm(end[:3] - before[:3])
    side = np.cross(forward, rng.normal(size=3))
    side *= 0.6 / np.linalg.norm(side)
    tubes = []
    for direction in (forward + side, forward - side):
        tip = end[:3] + direction * rng.uniform(16, 26)
        tubes.append(Tube(np.array([[*end[:3], 0.8 * end[3]], [*tip, 1.1]])))
    return tubes
