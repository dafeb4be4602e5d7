"""Read images, refuse unusable ones, and compute simple properties of volumes."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from regzoo.errors import bad_file
from regzoo.spatial.grid import Grid
from regzoo.spatial.nifti import times
from regzoo.spatial.reading import read_volume

if TYPE_CHECKING:
    from monai.data import MetaTensor

logger = logging.getLogger(__name__)

#: MONAI's metadata key for the file name of an image.
FILE = "filename_or_obj"
NAN_FIX = "replace them with the background value: in most images the minimum, in CT -1000"
_CHECK = "check that the right file was exported"
_warned: set[str] = set()


def with_affine(
    values: torch.Tensor, affine: np.ndarray | torch.Tensor, meta: dict[str, Any] | None = None
) -> MetaTensor:
    """A volume (…, X, Y, Z) as MONAI's tensor, with its affine (voxel → RAS mm)."""
    from monai.data import MetaTensor  # slow to import, and commands that use a saved transformation do without it

    return MetaTensor(values, affine=torch.as_tensor(affine), meta=meta)


def even_step(length: int, count: int) -> int:
    """The step that takes about `count` of the `length` voxels of a flattened volume, from all its slices alike.

    It shares no divisor with the length: a step that shared one with the number of slices would skip some of them.
    """
    step = max(length // count, 1)
    while math.gcd(step, length) > 1:
        step += 1
    return step


def read_values(path: str | Path, strict: bool = False) -> tuple[torch.Tensor, np.ndarray, int]:
    """A file's float32 values without trailing axes of one voxel, its affine (voxel → RAS mm), its number of axes."""
    file = read_volume(path)
    warn_or_refuse(path, file.doubt, strict)
    # In NIfTI the first axis varies fastest; slab by slab computation is faster when it varies slowest.
    values = torch.from_numpy(file.values).contiguous()
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return values, file.affine, file.values.ndim


def warn_or_refuse(path: str | Path, doubt: tuple[str, str] | None, strict: bool = False) -> None:
    """Warn once that other programs may place a file elsewhere, or raise `RegZooError` if `strict`."""
    if doubt is None:
        return
    error = bad_file(path, *doubt)
    if strict:
        raise error
    if str(error) not in _warned:
        _warned.add(str(error))
        logger.warning("%s", error)


def check_spatial(path: str | Path, volume: torch.Tensor) -> None:
    """Raise `RegZooError` unless a volume has three axes of at least two voxels."""
    if volume.ndim < 3 or min(volume.shape[:3]) < 2:
        raise bad_file(path, f"is a 2-D image ({times(volume.shape)})", "give a 3-D volume with at least two slices")


def check_finite(path: str | Path, volume: torch.Tensor, fix: str) -> None:
    """Raise `RegZooError` if a volume holds NaN or infinity; `fix` says what to do about it."""
    if count := int((~torch.isfinite(volume)).sum()):
        raise bad_file(path, f"holds NaN or infinity in {count} voxels", fix)


def read_image(path: str | Path, strict_headers: bool = False, allow_nan: bool = False) -> MetaTensor:
    """Read a scalar 3-D image; integers and scaled values become float32 physical values.

    Args:
        path: NIfTI, NRRD, MetaImage or MGH, or a DICOM series (see `regzoo.spatial.dicom.find_series`).
        strict_headers: refuse a file that other programs may place elsewhere, instead of warning.
        allow_nan: leave NaN and infinity to a later step, such as `regzoo.transforms.HounsfieldUnitsd`.

    Returns:
        (1, X, Y, Z) float32 with affine voxel → RAS mm.

    Raises:
        RegZooError: missing or damaged file, 2-D or 4-D image, NaN, constant image, singular affine.
    """
    values, grid = read_image_values(path, strict_headers, allow_nan)
    # Later steps name the file in their errors.
    return with_affine(values, grid.affine, {FILE: str(path)})


def read_image_values(
    path: str | Path, strict_headers: bool = False, allow_nan: bool = False
) -> tuple[torch.Tensor, Grid]:
    """`read_image` without MONAI: the values (1, X, Y, Z), and their grid."""
    volume, affine, _ = read_values(path, strict_headers)
    check_spatial(path, volume)
    if not allow_nan:
        check_finite(path, volume, NAN_FIX)
    if volume.ndim == 5 and volume.shape[3] == 1:
        problem = f"is a vector image ({volume.shape[4]} values in each voxel), such as a displacement field"
        raise bad_file(path, problem, "give one 3-D volume")
    if volume.ndim > 3:
        raise bad_file(path, f"is a {volume.ndim}-D image ({times(volume.shape)})", "split it and give one 3-D volume")
    inf = torch.inf
    low, high = float(volume.nan_to_num(inf, inf, inf).min()), float(volume.nan_to_num(-inf, -inf, -inf).max())
    if low > high:
        raise bad_file(path, "holds no numbers: every voxel is NaN or infinity", _CHECK)
    if low == high:
        raise bad_file(path, f"is constant: every voxel is {low:g}", _CHECK)
    return volume[None], Grid(volume.shape, affine)


def as_tensor(image: torch.Tensor) -> torch.Tensor:
    """The same values without MONAI's metadata, which slows every operation down."""
    return image.as_subclass(torch.Tensor)


def centroids(masks: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """Centres of mass of labels.

    Args:
        masks: (C, X, Y, Z), binary, or soft values as weights.
        affine: 4×4, voxel → RAS mm.

    Returns:
        (C, 3) float64, RAS mm; NaN for an empty label.
    """
    masks = as_tensor(masks)
    # Marginal sums first: this reads the data twice, not three times, and only short sums are in float32.
    plane = masks.sum(dim=3, dtype=torch.float32).double()
    other = masks.sum(dim=1, dtype=torch.float32).double()
    marginals = (plane.sum(2), plane.sum(1), other.sum(1))
    mass = marginals[0].sum(1)
    index = [m @ torch.arange(m.shape[1], dtype=torch.float64, device=m.device) for m in marginals]
    voxels = torch.stack(index, dim=1) / torch.where(mass > 0, mass, torch.nan)[:, None]
    affine = torch.as_tensor(affine, dtype=torch.float64).to(voxels.device)
    return voxels @ as_tensor(affine)[:3, :3].T + as_tensor(affine)[:3, 3]
