"""A patient on a grid of voxels, and the functions that paint tissues.

The MR and the ultrasound of a scene share only the surfaces of the anatomy: texture, noise and background are drawn
independently, some tissues are bright in both images and some in one only, and contrast, gain and gamma differ between
cases. Comparing intensities of the two images therefore does not register them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from regzoo.spatial.grid import Grid
from regzoo_phantoms.prostate_anatomy import COMMON_LABELS, ProstateAnatomy
from scipy import ndimage

Box = tuple[slice, slice, slice]

#: Labels and the inside of the gland are not evaluated farther from the gland than this, mm.
MARGIN = 16.0


@dataclass(frozen=True)
class Scene:
    """A patient on a grid.

    Attributes:
        anatomy: the patient.
        spacing: smallest voxel side, mm.
        points: voxel positions in the image's own world, RAS mm, shape (3, X, Y, Z).
        body: the tissue there, in body coordinates, mm, shape (3, X, Y, Z).
        gland: signed distance of the gland's surface, mm, shape (X, Y, Z).
        box: the voxels near the gland.
        distances: signed distance of each label inside `box`, mm, by name.
    """

    anatomy: ProstateAnatomy
    spacing: float
    points: np.ndarray
    body: np.ndarray
    gland: np.ndarray
    box: Box
    distances: dict[str, np.ndarray]

    @classmethod
    def of(cls, anatomy: ProstateAnatomy, grid: Grid, points: np.ndarray, tissue: np.ndarray) -> Scene:
        """The scene at the voxels of a grid.

        Args:
            anatomy: the patient.
            grid: of the image.
            points: `world_points` of the grid.
            tissue: where the tissue at these points lies in the MR world, RAS mm, shape (3, X, Y, Z).
        """
        body = anatomy.to_body(tissue)
        gland = anatomy.gland(body)
        box = _inner_box(gland)
        distances = anatomy.distances(body[(slice(None), *box)])
        return cls(anatomy, float(grid.spacing.min()), points, body, gland, box, distances)

    @property
    def blur(self) -> float:
        """Half the width of a tissue's edge, mm: never sharper than a voxel."""
        return max(0.6, 0.5 * self.spacing)

    @property
    def landmark_names(self) -> list[str]:
        """Names of the patient's own landmarks; the kind is the part before the ``_``."""
        return self.anatomy.label_names[len(COMMON_LABELS) :]

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


def _inner_box(gland: np.ndarray) -> Box:
    """The box of voxels within `MARGIN` of the gland, from the gland's signed distance (X, Y, Z)."""
    found = ndimage.find_objects((gland < MARGIN).astype(np.uint8))
    return found[0] if found else (slice(0, 0),) * 3
