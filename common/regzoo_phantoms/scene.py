"""A patient on a grid of voxels, and the functions that paint tissues.

The MR and the ultrasound of a scene share only the surfaces of the anatomy: texture, noise and background are drawn
independently, some tissues are bright in both images and some in one only, and contrast, gain and gamma differ between
cases. Comparing intensities of the two images therefore does not register them.
"""

from __future__ import annotations

import numpy as np
from regzoo.spatial.grid import Grid
from regzoo_phantoms.prostate_anatomy import COMMON_LABELS, ProstateAnatomy
from scipy import ndimage

Box = tuple[slice, slice, slice]

#: Labels and the inside of the gland are not evaluated farther from the gland than this, mm.
MARGIN = 16.0


class Scene:
    """A patient at the voxels of a grid.

    Args:
        points: `world_points` of the grid.
        tissue: where the tissue at these points lies in the MR world, RAS mm, shape (3, X, Y, Z).

    Attributes:
        spacing: smallest voxel side, mm.
        blur: half the width of a tissue's edge, mm: never sharper than a voxel.
        body: the tissue in body coordinates, mm, shape (3, X, Y, Z).
        gland: signed distance of the gland's surface, mm, shape (X, Y, Z).
        box: the voxels near the gland.
        distances: signed distance of each label inside `box`, mm, by name.
        landmark_names: names of the patient's own landmarks; the kind is the part before the ``_``.
    """

    def __init__(self, anatomy: ProstateAnatomy, grid: Grid, points: np.ndarray, tissue: np.ndarray) -> None:
        self.anatomy, self.points = anatomy, points
        self.spacing = float(grid.spacing.min())
        self.blur = max(0.6, 0.5 * self.spacing)
        self.body = anatomy.to_body(tissue)
        self.gland = anatomy.gland(self.body)
        near = ndimage.find_objects((self.gland < MARGIN).astype(np.uint8))
        self.box: Box = near[0] if near else (slice(0, 0),) * 3
        self.distances = anatomy.distances(self.body[(slice(None), *self.box)])
        self.landmark_names = anatomy.label_names[len(COMMON_LABELS) :]

    def masks(self) -> np.ndarray:
        """The labels, uint8, shape (X, Y, Z, C)."""
        masks = np.zeros((*self.gland.shape, len(self.distances)), np.uint8)
        for channel, distance in enumerate(self.distances.values()):
            masks[(*self.box, channel)] = distance <= 0
        return masks


def world_points(grid: Grid) -> np.ndarray:
    """World positions of a grid's voxels, RAS mm, float32, shape (3, X, Y, Z)."""
    i, j, k = np.ogrid[tuple(slice(0.0, n) for n in grid.shape)]
    return np.stack([(row[0] * i + row[1] * j + row[2] * k + row[3]).astype(np.float32) for row in grid.affine[:3]])


def cover(distance: np.ndarray, blur: float) -> np.ndarray:
    """How much of a voxel lies inside a surface, 0–1, from the signed distance and half the edge's width, mm."""
    return np.clip(np.float32(0.5) - distance * np.float32(0.5 / blur), 0, 1)


def rim(distance: np.ndarray, width: float) -> np.ndarray:
    """1 on a surface, fading to 0 at `width` mm on either side."""
    return np.clip(1 - np.abs(distance) * np.float32(1 / width), 0, 1)


def paint(image: np.ndarray, mask: np.ndarray, value: np.ndarray | float) -> None:
    """Paint a tissue over an image, in place: image ← image·(1−mask) + value·mask."""
    image += (value - image) * mask
