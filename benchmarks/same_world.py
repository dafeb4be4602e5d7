"""Where one copy of an image lies on another one: for label maps that were drawn on a copy with a header of its own.

Tools that resample, crop or flip an image may write any header. What such a copy shows says where it belongs.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from regzoo.errors import bad_file
from regzoo.spatial import Grid, as_tensor, read_image, resample
from scipy import ndimage, optimize
from scipy.fft import irfftn, next_fast_len, rfftn

#: Least correlation of a copy with its image.
SAME = 0.95
#: Voxel size of the search, mm, and how many voxels are compared after it.
COARSE, COMPARED = 6.0, 30_000
#: Least part of the copy that lies on the image.
INSIDE = 0.3


def world_of_copy(copy: str | Path, image: str | Path) -> tuple[np.ndarray, float]:
    """The matrix from the world of a copy's header to the world of its image.

    The copy may be flipped, shifted, cropped, padded, clipped and resampled; it is not turned, and its voxels have the
    size that the header says, to about one percent.

    Args:
        copy: an image of the same thing, with a header of its own.
        image: the image.

    Returns:
        4×4, RAS mm, and the correlation of the copy in that place with the image.

    Raises:
        RegZooError: the copy does not show what the image shows.
    """
    there, here = read_image(copy), read_image(image)
    low, high = (
        fun(float(a), float(b)) for fun, a, b in ((max, there.min(), here.min()), (min, there.max(), here.max()))
    )
    grids = [Grid.of(volume) for volume in (there, here)]
    coarse = []
    for volume, grid in zip((there, here), grids, strict=True):
        extent = np.abs(grid.affine[:3, :3]) @ np.asarray(grid.shape)
        target = grid.network_grid([COARSE] * 3, np.ceil(extent / COARSE).astype(int).tolist())
        array = resample(as_tensor(volume).clip(low, high), grid, target, padding="border", anti_alias=True)[0]
        coarse.append((array.numpy().astype(np.float64), target))
    flips, shift = _search(coarse[0][0], coarse[1][0])
    # A voxel of the flipped copy's coarse grid, and the same place on the image's.
    flip = np.eye(4)
    for axis in flips:
        flip[axis, axis], flip[axis, 3] = -1, coarse[0][0].shape[axis] - 1
    move = np.eye(4)
    move[:3, 3] = shift
    start = coarse[1][1].affine @ move @ flip @ np.linalg.inv(coarse[0][1].affine)
    volumes = [as_tensor(volume)[0].numpy().clip(low, high).astype(np.float32) for volume in (there, here)]
    matrix, correlation = _refine(volumes, grids, start)
    if correlation < SAME:
        problem = f"does not show what {image} shows (correlation {correlation:.2f})"
        raise bad_file(copy, problem, "name the copy that the label map was drawn on")
    return matrix, correlation


def _search(copy: np.ndarray, image: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """The flipped axes, and the shift from an index of the flipped copy to one of the image, of largest correlation."""
    size = [next_fast_len(a + b) for a, b in zip(copy.shape, image.shape, strict=True)]
    image = image - image.mean()
    spectra = [rfftn(part, size) for part in (np.ones_like(image), image, image**2)]
    best = -np.inf
    found: tuple[tuple[int, ...], np.ndarray] = ((), np.zeros(3))
    for count in range(4):
        for flips in itertools.combinations(range(3), count):
            correlation = _correlations(np.flip(copy - copy.mean(), flips), spectra, size)
            place = np.unravel_index(correlation.argmax(), correlation.shape)
            if correlation[place] > best:
                shift = [p - n if p > n // 2 else p for p, n in zip(place, size, strict=True)]
                best, found = correlation[place], (flips, np.asarray(shift, dtype=float))
    return found


def _correlations(copy: np.ndarray, image: list[np.ndarray], size: list[int]) -> np.ndarray:
    """Correlation of the voxels that a copy has in common with an image, for every shift; −1 where they are too few."""
    one, first, second = (np.conj(rfftn(part, size)) for part in (np.ones_like(copy), copy, copy**2))
    count = irfftn(one * image[0], size).round()
    a, b, aa, bb, ab = (
        irfftn(left * right, size) / count.clip(1)
        for left, right in ((first, image[0]), (one, image[1]), (second, image[0]), (one, image[2]), (first, image[1]))
    )
    variances = ((aa - a**2) * (bb - b**2)).clip(1e-9)
    return np.where(count >= INSIDE * copy.size, (ab - a * b) / np.sqrt(variances), -1.0)


def _refine(volumes: list[np.ndarray], grids: list[Grid], start: np.ndarray) -> tuple[np.ndarray, float]:
    """The shift and the scale along the axes that make the correlation largest, from a good start."""
    copy, image = volumes
    step = max(1, round((copy.size / COMPARED) ** (1 / 3)))
    voxels = np.stack(np.meshgrid(*[np.arange(step // 2, n, step) for n in copy.shape], indexing="ij"), -1).reshape(
        -1, 3
    )
    values = copy[tuple(voxels.T)]
    points = grids[0].to_world(voxels)
    middle = points.mean(0)

    def matrix(numbers: np.ndarray) -> np.ndarray:
        fine = np.eye(4)
        fine[:3, :3] = np.diag(1 + numbers[3:] / 100)
        fine[:3, 3] = middle - fine[:3, :3] @ middle + numbers[:3]
        return start @ fine

    def mismatch(numbers: np.ndarray) -> float:
        edit = matrix(numbers)
        places = grids[1].to_voxels(points @ edit[:3, :3].T + edit[:3, 3])
        seen = ((places >= 0) & (places <= np.asarray(image.shape) - 1)).all(1)
        if seen.mean() < INSIDE / 2 or np.ptp(values[seen]) == 0:
            return 1.0
        sampled = ndimage.map_coordinates(image, places[seen].T, order=1)
        return 1.0 if np.ptp(sampled) == 0 else -float(np.corrcoef(sampled, values[seen])[0, 1])

    # Millimetres, and percent of size: steps of the same order of magnitude. The second start gets out of what the
    # first one took for the top.
    number = np.zeros(6)
    for scale in (1.0, 0.3):
        begin = number + scale * np.vstack([np.zeros(6), np.diag([COARSE / 2] * 3 + [0.5] * 3)])
        options = {"initial_simplex": begin, "xatol": 0.005, "fatol": 1e-6, "maxiter": 500}
        found = optimize.minimize(mismatch, number, method="Nelder-Mead", options=options)
        number = found.x
    return matrix(found.x), -float(found.fun)
