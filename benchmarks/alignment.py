"""``--align affine`` beside ITK's affine registration, on transformations that are known.

The moving image shows the phantom of the fixed one through a random affine transformation: a rotation of the given
angle about a random axis, a shift of up to 30 mm, scales and shears of up to 5 %. It has a grid of its own, and noise.
MR and ultrasound of the prostate are two images of one patient, who has moved and been deformed; there the affine
transformation that is nearest to the true one within the gland is taken for the truth. ITK maximises Mattes' mutual
information on two levels, from the centres of the images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from comparison import markdown
from peer_pairs import phantom_cases
from peer_tools import Meter, affine
from regzoo import DisplacementField
from regzoo.errors import one_line_errors
from regzoo.refinement.linear import register_linear
from regzoo.spatial import RAS_LPS, Grid, as_tensor, read_image, read_label_file
from regzoo_phantoms import embedded_phantoms
from scipy.ndimage import affine_transform, distance_transform_edt
from scipy.spatial.transform import Rotation
from trainings import DATA, RESULTS, heading, save_result

ANGLES = (0, 15, 30, 45)
SEED = 2030  # of phantoms that no parameter was chosen on
#: A registration has succeeded if the mean error is less, mm.
SUCCESS = 3.0
#: What counts around a gland, mm.
MARGIN = 6.0
NOTE = (
    "Mean error within the content of the fixed image (prostate: the gland): median over the phantoms, mm, and in how "
    f"many it is less than {SUCCESS:g} mm. CPU: mean processor time of a registration."
)


class Pair(NamedTuple):
    """Two images (X, Y, Z) with their grids, and where points of the fixed one (N, 3) lie in the moving one, RAS mm."""

    fixed: np.ndarray
    fixed_grid: Grid
    moving: np.ndarray
    moving_grid: Grid
    points: np.ndarray
    truth: np.ndarray
    mask: np.ndarray | None = None  #: of the fixed voxels that count


def through(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 3) through a 4×4 matrix."""
    return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3])


def random_affine(rng: np.random.Generator, degrees: float, center: np.ndarray, distort: float = 0.05) -> np.ndarray:
    """Rotate about a centre, scale, shear and shift: 4×4."""
    axis = rng.normal(size=3)
    turn = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis)).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ (np.eye(3) + rng.uniform(-distort, distort, (3, 3)))
    matrix[:3, 3] = center + rng.uniform(-30, 30, 3) / np.sqrt(3) - matrix[:3, :3] @ center
    return matrix


def seen(
    image: np.ndarray, grid: Grid, matrix: np.ndarray, rng: np.random.Generator, part: float
) -> tuple[np.ndarray, Grid]:
    """An image as a scanner shows it after its world went through a matrix: `part` of the field of view along S."""
    spacing = float(grid.spacing.mean()) * rng.uniform(0.9, 1.2, 3)
    extent = np.abs(grid.affine[:3, :3]) @ np.asarray(grid.shape) * (1, 1, part)
    target = grid.network_grid(spacing.tolist(), np.ceil(extent / spacing).astype(int).tolist())
    affine = target.affine.copy()
    affine[2, 3] += rng.choice([-1, 1]) * extent[2] * (1 / part - 1) / 2
    voxels = np.linalg.inv(grid.affine) @ np.linalg.inv(matrix) @ affine
    values = affine_transform(image, voxels, output_shape=target.shape, order=1, cval=image.min())
    noise = 0.02 * (np.quantile(image, 0.99) - np.quantile(image, 0.01))
    return values + rng.normal(0, noise, values.shape), Grid(target.shape, affine)


@cache
def phantoms(kind: str, count: int, **parameters: float) -> tuple[Path, list[str]]:
    """The folder of a set of phantoms, and its held-out cases."""
    folder = DATA / "alignment" / f"{kind}{SEED}"
    embedded_phantoms(folder, kind, held_out=count, seed=SEED, **parameters)
    return folder, sorted(case for case, _ in phantom_cases(folder))


def copies(kind: str, spacing: float, pattern: str, part: float = 1.0, inverted: bool = False) -> Callable[..., Pair]:
    """Pairs of a phantom and a copy of it."""

    def pair(index: int, degrees: float, rng: np.random.Generator, count: int) -> Pair:
        folder, cases = phantoms(kind, count, cases=1, spacing=spacing)
        volume = read_image(folder / pattern.format(cases[index]))
        grid, image = Grid.of(volume), as_tensor(volume)[0].numpy()
        content = np.argwhere(image > np.quantile(image, 0.01) + 0.1 * np.ptp(image))
        points = grid.to_world(rng.choice(content, 500))
        matrix = random_affine(rng, degrees, points.mean(axis=0))
        other = np.where(image > 0, image.max() - image, 0) if inverted else image
        moving, moving_grid = seen(other, grid, matrix, rng, part)
        return Pair(image, grid, moving, moving_grid, points, through(matrix, points))

    return pair


def masked_prostate(*arguments: Any) -> Pair:
    """Only what lies near the gland counts, which is outlined on the ultrasound."""
    pair = prostate(*arguments)
    gland = np.zeros(pair.fixed.shape, dtype=bool)
    gland[tuple(np.rint(pair.fixed_grid.to_voxels(pair.points)).astype(int).T)] = True
    return pair._replace(mask=distance_transform_edt(~gland, pair.fixed_grid.spacing) < MARGIN)


def prostate(index: int, degrees: float, rng: np.random.Generator, count: int) -> Pair:
    """Ultrasound and MR of one patient, the MR in a world that was moved."""
    folder, cases = phantoms("prostate", count, pairs=1)
    name = f"{cases[index]}.nii.gz"
    fixed, moving = (read_image(folder / "val" / kind / name) for kind in ("us_images", "mr_images"))
    grid = Grid.of(fixed)
    gland = read_label_file(folder / "val" / "us_labels" / name, grid).volume[0]
    inside = np.argwhere(as_tensor(gland).numpy() > 0)
    points = grid.to_world(inside)
    field = DisplacementField.load(folder / "val" / "ddf" / name).displacement.numpy()
    matrix = random_affine(rng, degrees, points.mean(axis=0), 0)
    found = through(matrix, points + field[:, inside[:, 0], inside[:, 1], inside[:, 2]].T)
    homogeneous = np.append(points, np.ones((len(points), 1)), axis=1)
    truth = homogeneous @ np.linalg.lstsq(homogeneous, found, rcond=None)[0]
    images = (as_tensor(image)[0].numpy() for image in (fixed, moving))
    moved = Grid(moving.shape[1:], matrix @ Grid.of(moving).affine)
    return Pair(next(images), grid, next(images), moved, points, truth)


SCENES: dict[str, Callable[..., Pair]] = {
    "brain MR": copies("brain", 2.0, "{}.nii.gz"),
    "brain MR, inverted contrast": copies("brain", 2.0, "{}.nii.gz", inverted=True),
    "abdominal CT": copies("abdomen", 3.0, "imagesTs/{}.nii.gz"),
    "abdominal CT, 60 % of the field of view": copies("abdomen", 3.0, "imagesTs/{}.nii.gz", part=0.6),
    "prostate MR to ultrasound": prostate,
    f"the same, within {MARGIN:g} mm of the gland": masked_prostate,
}


def ours(pair: Pair) -> np.ndarray:
    """Fixed → moving, 4×4, RAS mm."""
    fixed, moving = (torch.from_numpy(image.astype(np.float32))[None] for image in (pair.fixed, pair.moving))
    mask = None if pair.mask is None else torch.from_numpy(pair.mask)[None]
    return register_linear(fixed, pair.fixed_grid, moving, pair.moving_grid, "affine", mask)


def itk(pair: Pair) -> np.ndarray:
    """The same by SimpleITK."""

    def image(values: np.ndarray, grid: Grid) -> sitk.Image:
        result = sitk.GetImageFromArray(values.astype(np.float32).transpose(2, 1, 0))
        lps = RAS_LPS @ grid.straightened().affine
        result.SetSpacing(grid.spacing.tolist())
        result.SetDirection((lps[:3, :3] / grid.spacing).ravel().tolist())
        result.SetOrigin(lps[:3, 3].tolist())
        return result

    mask = None if pair.mask is None else sitk.Cast(image(pair.mask, pair.fixed_grid), sitk.sitkUInt8)
    matrix = affine(image(pair.fixed, pair.fixed_grid), image(pair.moving, pair.moving_grid), mask)
    return np.asarray(RAS_LPS @ matrix @ RAS_LPS)


TOOLS: dict[str, Callable[[Pair], np.ndarray]] = {"RegZoo": ours, "ITK": itk}


def measure(tool: str, pair: Pair) -> tuple[float, float]:
    """The mean error, mm, and the CPU-seconds of a tool."""
    with Meter() as meter:
        matrix = TOOLS[tool](pair)
    return float(np.linalg.norm(through(matrix, pair.points) - pair.truth, axis=1).mean()), meter.cpu


def table(count: int, scenes: Sequence[str], tools: Sequence[str]) -> str:
    """A line for each scene and tool."""
    lines = [["images", "tool", *(f"{angle}°" for angle in ANGLES), "CPU, s"]]
    for scene in scenes:
        pairs = [
            [SCENES[scene](index, angle, np.random.default_rng([index, angle]), count) for index in range(count)]
            for angle in ANGLES
        ]
        for tool in tools:
            found = np.array([[measure(tool, pair) for pair in row] for row in pairs])
            cells = [f"{np.median(row):.2f} ({(row < SUCCESS).sum()}/{count})" for row in found[..., 0]]
            lines.append([scene, tool, *cells, f"{found[..., 1].mean():.1f}"])
            print(" | ".join(lines[-1]), flush=True)
    return markdown(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Register, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3, help="phantoms of each kind")
    parser.add_argument("--scene", nargs="+", choices=SCENES, default=list(SCENES), help="only these")
    parser.add_argument("--tool", nargs="+", choices=TOOLS, default=list(TOOLS), help="only these")
    parser.add_argument("--out", type=Path, default=RESULTS / "alignment.md", help="for the table")
    options = parser.parse_args(arguments)
    text = f"{heading(f'{options.count} phantoms of each kind')}\n\n{table(options.count, options.scene, options.tool)}"
    print(text)
    save_result(options.out, "Affine registration", text, "alignment.py", arguments, f"{__doc__}\n{NOTE}")


if __name__ == "__main__":
    one_line_errors()
    main()
