"""Small images on difficult grids, and the way to SimpleITK: written without the package's own arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from monai.bundle import ConfigWorkflow
from regzoo.errors import user_error
from regzoo.spatial import Grid
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

LPS = np.array([-1.0, -1.0, 1.0])


def make_affine(
    shape: Sequence[int],
    spacing: Sequence[float] = (1, 1, 1),
    degrees: Sequence[float] = (0, 0, 0),
    axes: Sequence[int] = (0, 1, 2),
    flips: Sequence[int] = (1, 1, 1),
    center: Sequence[float] = (0, 0, 0),
) -> np.ndarray:
    """Voxel → RAS mm: array axis k runs along world axis axes[k], backwards if flips[k] = -1, then all is turned."""
    directions = np.zeros((3, 3))
    for axis in range(3):
        directions[axes[axis], axis] = flips[axis]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ directions * np.asarray(spacing)
    affine[:3, 3] = np.asarray(center, dtype=float) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def make_grid(shape: tuple[int, int, int], *where: Any, **named: Any) -> Grid:
    """A grid, given as to `make_affine`."""
    return Grid(shape, make_affine(shape, *where, **named))


def rigid(degrees: Sequence[float], translation: Sequence[float]) -> np.ndarray:
    """4×4 rotation about the world's origin, then translation, mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = translation
    return matrix


def smooth_noise(shape: Sequence[int], sigma: float, seed: int, top: float = 100.0) -> np.ndarray:
    """A smooth random volume that spans [0, top], float32."""
    volume = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return ((volume - volume.min()) / np.ptp(volume) * top).astype(np.float32)


def smooth_ddf(shape: Sequence[int], amplitude: float, sigma: float = 4.0, seed: int = 0) -> np.ndarray:
    """A smooth random field (3, X, Y, Z) whose largest component is `amplitude`, float32."""
    parts = np.stack([gaussian_filter(np.random.default_rng([seed, i]).normal(size=shape), sigma) for i in range(3)])
    return (parts * amplitude / np.abs(parts).max()).astype(np.float32)


def ball(shape: Sequence[int], center: Sequence[float], radius: float) -> np.ndarray:
    """A mask (X, Y, Z), float32."""
    offsets = np.indices(shape) - np.reshape(center, (3, 1, 1, 1))
    return ((offsets**2).sum(0) <= radius**2).astype(np.float32)


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    """Write NIfTI with nibabel alone; returns the path as a record holds it."""
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return str(path)


def to_sitk(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """An image (X, Y, Z), or a vector image (X, Y, Z, 3), as SimpleITK has it: LPS mm."""
    image = sitk.GetImageFromArray(np.swapaxes(array, 0, 2), isVector=array.ndim == 4)
    lps = LPS[:, None] * affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:, 3].tolist())
    return image


def from_sitk(image: sitk.Image) -> np.ndarray:
    """(X, Y, Z) or (X, Y, Z, 3)."""
    return np.swapaxes(sitk.GetArrayFromImage(image), 0, 2)


def slicer(path: Path, layers: np.ndarray, affine: np.ndarray, *entries: str) -> Path:
    """A segmentation as 3D Slicer writes it: layers (X, Y, Z, L) or a map, and entries of its header."""
    kinds = "list domain domain domain" if layers.ndim == 4 else "domain domain domain"
    lps = LPS[:, None] * affine[:3]
    vectors = [f"({','.join(map(str, column))})" for column in lps.T]
    lines = [
        "NRRD0004",
        "type: unsigned char",
        f"dimension: {layers.ndim}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, np.roll(layers.shape, layers.ndim - 3)))}",
        f"space directions: {'none ' * (layers.ndim - 3)}{' '.join(vectors[:3])}",
        f"kinds: {kinds}",
        "encoding: raw",
        f"space origin: {vectors[3]}",
        *entries,
    ]
    voxels = np.moveaxis(layers, -1, 0) if layers.ndim == 4 else layers
    path.write_bytes("\n".join([*lines, "", ""]).encode() + voxels.astype(np.uint8).tobytes("F"))
    return path


def line_of_failing(workflow: ConfigWorkflow, expected: type[Exception] = Exception) -> str:
    """The one line that a run of a bundle ends in; it must fail."""
    with pytest.raises(expected) as caught:
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    line = str(user_error(caught.value))
    assert "\n" not in line
    return line
