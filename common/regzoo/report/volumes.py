"""Planes and measures of large volumes, computed without copying a volume."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from regzoo.metrics.labels import dice
from regzoo.report.planes import Orientation, Plane
from regzoo.spatial import DisplacementField, as_tensor, jacobian_determinant
from regzoo.spatial.held import is_map
from regzoo.spatial.warp import slabs
from scipy.ndimage import find_objects

#: A sample of this many voxels is enough for the percentiles of a volume.
ENOUGH = 1 << 22


def some_of(volume: np.ndarray) -> np.ndarray:
    """A volume (X, Y, Z), or evenly spaced voxels of a volume larger than `ENOUGH`."""
    step = math.ceil((volume.size / ENOUGH) ** (1 / 3))
    return volume[::step, ::step, ::step]


@dataclass(frozen=True)
class Labels:
    """The labels of one volume.

    Attributes:
        volume: masks (C, X, Y, Z), soft or not, or an integer map (X, Y, Z) of label numbers from 1.
        count: the number of labels.
    """

    volume: np.ndarray
    count: int

    @classmethod
    def of(cls, labels: torch.Tensor, count: int) -> Labels:
        """From masks (C, X, Y, Z) or a held map of `count` labels, see `regzoo.spatial.held`."""
        volume = as_tensor(labels).detach().cpu().numpy()
        return cls(volume[0], count) if is_map(labels) else cls(volume, len(volume))

    @property
    def is_map(self) -> bool:
        """Whether the volume is a map of label numbers."""
        return self.volume.ndim == 3

    def turned(self, turn: Orientation) -> Labels:
        """Reordered for display."""
        return Labels(turn.volume(self.volume), self.count)

    def values(self, index: int) -> np.ndarray:
        """One label, (X, Y, Z)."""
        return self.volume == index + 1 if self.is_map else self.volume[index]

    def mask(self, index: int) -> np.ndarray:
        """Where one label is at least one half, (X, Y, Z) bool."""
        return np.asarray(self.values(index) >= 0.5)

    def boxes(self) -> list[tuple[slice, slice, slice] | None]:
        """The smallest box around each label, None for an empty label."""
        if self.is_map:
            return list(find_objects(self.volume, max_label=self.count))
        return [find_objects(self.mask(index).view(np.uint8), max_label=1)[0] for index in range(self.count)]

    def planes(self, plane: Plane, position: np.ndarray) -> list[np.ndarray]:
        """The plane of each label through a voxel, (width, height) each."""
        cut = plane.of(self.volume, position)
        return [(cut == index + 1).astype(np.float32) if self.is_map else cut[index] for index in range(self.count)]


def overlap(first: Labels, second: Labels, count: int) -> np.ndarray:
    """Dice of the first `count` labels of two volumes, (count,); NaN where the label is empty in the second volume."""
    scores = []
    for index, boxes in enumerate(zip(first.boxes()[:count], second.boxes()[:count], strict=True)):
        present = [box for box in boxes if box is not None]
        ends = [[(b[axis].start, b[axis].stop) for b in present] for axis in range(3) if present]
        box = tuple(slice(min(low for low, _ in pair), max(high for _, high in pair)) for pair in ends)
        masks = [torch.from_numpy(labels.values(index)[box] >= 0.5)[None] for labels in (first, second)]
        scores.append(float(dice(masks[0], masks[1])[0]))
    return np.array(scores)


class Deformation:
    """A transformation turned for display: its planes, and its volume change det J (X, Y, Z).

    Args:
        ddf: (3, X, Y, Z), voxels, or a field.
        turn: how the grid is reordered for display.
    """

    def __init__(self, ddf: torch.Tensor | DisplacementField, turn: Orientation) -> None:
        if isinstance(ddf, DisplacementField):
            vectors, part = ddf.displacement.cpu().numpy(), ddf.voxel_displacement
            self._to_voxels = np.linalg.inv(ddf.grid.affine[:3, :3])
        else:
            vectors, self._to_voxels = as_tensor(ddf).detach().float().cpu().numpy(), np.eye(3)
            part = lambda rows: torch.from_numpy(np.ascontiguousarray(vectors[:, rows]))  # noqa: E731
        determinant = np.empty(vectors.shape[1:], dtype=np.float32)
        for rows in slabs(determinant.shape):
            low, high = max(rows.start - 1, 0), min(rows.stop + 1, len(determinant))
            block = jacobian_determinant(part(slice(low, high))[None])[0, 0].cpu().numpy()
            determinant[rows] = block[rows.start - low : rows.stop - low]
        self.determinant, self._vectors = turn.volume(determinant), turn.volume(vectors)
        self._to_voxels = turn.change[turn.source, 1:] * self._to_voxels[turn.source]

    def plane(self, plane: Plane, position: np.ndarray) -> np.ndarray:
        """The displacements in the plane through a voxel, (3, width, height), voxels of the reordered grid."""
        return np.tensordot(self._to_voxels, plane.of(self._vectors, position), axes=1)
