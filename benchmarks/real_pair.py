"""Register two images with a bundle and measure it on their label maps: ``python benchmarks/real_pair.py --help``.

The images are registered as they are, with the released weights or those of ``--checkpoint``, after the bundle's
pre-alignment or the one that ``--align`` and ``--affine`` ask for. The registration does not see the label maps. They
may lie on other grids than the images, in the same world, or on copies of the images with headers of their own, which
``--fixed-drawn-on`` and ``--moving-drawn-on`` name. The moving label map is carried through the whole transformation
onto the grid of the fixed one, nearest neighbour, and measured there: as the headers have it, after the pre-alignment
and after the registration. A dash: the label is not there, or has left the fixed map.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from comparison import markdown, short
from measure import machine
from monai.data import MetaTensor
from regzoo import DisplacementField, Registrar
from regzoo.engines.streams import requested_records
from regzoo.errors import RegZooError, bad_file, one_line_errors
from regzoo.files import write_text
from regzoo.inference import RegistrationResult
from regzoo.metrics import LabelHausdorff, centroid_distances, dice
from regzoo.spatial import Grid, as_tensor, check_on_grid, label_values, read_image, read_label_file, to_channels
from regzoo.transforms import AlignPaird
from regzoo.transforms.load import Alignment, aligned
from same_world import world_of_copy

STAGES = ("header", "pre-aligned", "registered")
MEASURES = ("Dice", "TRE, mm", "HD95, mm")
Row = tuple[float, float, float]


def register(options: argparse.Namespace) -> tuple[RegistrationResult, np.ndarray, float]:
    """Register the images.

    Returns:
        The result, whose field leads into the world of the moving file; the pre-alignment, old moving world → new
        moving world, 4×4, RAS mm; and the seconds of loading, registering and warping, without those of ``--affine``.
    """
    overrides = {key: getattr(options, key) for key in ("checkpoint", "align", "device") if getattr(options, key)}
    registrar = Registrar(options.bundle, options.overlay, **overrides)
    request = requested_records(options.fixed, options.moving)[0]
    prepared = registrar.preprocessing(request)
    edit = np.asarray(as_tensor(prepared["prealignment"]).cpu().numpy())
    if not options.affine:
        start = time.perf_counter()
        result = registrar.register(options.fixed, options.moving)
        return result, edit, time.perf_counter() - start
    affine = affine_edit(prepared)
    inner = registrar.preprocessing.transforms[0].steps
    after = 1 + next(index for index, step in enumerate(inner.transforms) if isinstance(step, AlignPaird))
    inner.transforms = (*inner.transforms[:after], partial(moved, matrix=affine), *inner.transforms[after:])
    start = time.perf_counter()
    result = registrar.register(options.fixed, options.moving)
    return result, affine @ edit, time.perf_counter() - start


def moved(item: dict[str, Any], matrix: np.ndarray) -> dict[str, Any]:
    """A pair whose moving world a matrix (4×4, RAS mm) takes further than its pre-alignment has.

    Not by a file with that affine: a file's axes are at right angles.
    """
    return item | {"prealignment": torch.as_tensor(matrix @ as_tensor(item["prealignment"]).numpy())}


def affine_edit(prepared: Any) -> np.ndarray:
    """An affine registration of a pair on the network grid by SimpleITK (mutual information).

    Args:
        prepared: the pair after a bundle's preprocessing.

    Returns:
        4×4, RAS mm: where the moving world goes, on top of the pre-alignment that was made.

    Raises:
        RegZooError: SimpleITK is not installed, or the images have nothing in common.
    """
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise RegZooError("--affine: SimpleITK is not installed; pip install SimpleITK, or leave it out") from error
    grid = Grid.of(prepared["fixed_image"])

    def as_sitk(volume: torch.Tensor) -> Any:
        image = sitk.GetImageFromArray(as_tensor(volume)[0].cpu().numpy().transpose(2, 1, 0))
        # RAS taken for LPS: ITK does not know the difference, and the transformation comes out in RAS.
        image.SetSpacing(grid.spacing.tolist())
        image.SetDirection((grid.affine[:3, :3] / grid.spacing).ravel().tolist())
        image.SetOrigin(grid.affine[:3, 3].tolist())
        return image

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    for side, set_mask in (("fixed", method.SetMetricFixedMask), ("moving", method.SetMetricMovingMask)):
        native = prepared[f"{side}_native"]
        set_mask(as_sitk(inside(Grid.of(aligned(prepared, native) if side == "moving" else native), grid)))
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescentLineSearch(1.0, 60, convergenceWindowSize=8)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 1.0, 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    transform = sitk.AffineTransform(3)
    transform.SetCenter(grid.center.tolist())
    method.SetInitialTransform(transform, True)
    try:
        method.Execute(as_sitk(prepared["fixed_image"]), as_sitk(prepared["moving_image"]))
    except RuntimeError as error:
        raise RegZooError(
            "--affine: the images have too little in common to align them; try another --align"
        ) from error
    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(transform.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = np.asarray(transform.TransformPoint((0.0, 0.0, 0.0)))
    return np.linalg.inv(matrix)


def inside(image: Grid, grid: Grid) -> torch.Tensor:
    """Which voxels of a grid lie in those of an image, not only on their outer faces: (1, X, Y, Z) uint8."""
    points = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    half = np.asarray(image.shape) / 2
    apart = np.abs(image.to_voxels(grid.to_world(points)) - (half - 0.5))
    return torch.from_numpy((apart < half).min(axis=-1)[None].astype(np.uint8))


def read_labels(options: argparse.Namespace) -> tuple[MetaTensor, MetaTensor, list[int]]:
    """Fixed and moving label maps as channels (C, X, Y, Z) in the worlds of their images, and the channels' values."""
    paths = [options.fixed_label, options.moving_label]
    files = [read_label_file(path) for path in paths]
    for path, file in zip(paths, files, strict=True):
        if not file.is_map:
            raise bad_file(path, "is a 4-D file, not a label map", "give one map of whole numbers")
    values = sorted({value for file in files for value in label_values(file.volume)})
    labels = []
    for side, path, file in zip(("fixed", "moving"), paths, files, strict=True):
        channels = to_channels(file.volume, values)
        if copy := getattr(options, f"{side}_drawn_on"):
            check_on_grid(path, channels, Grid.of(read_image(copy)))
            matrix, correlation = world_of_copy(copy, getattr(options, side))
            words = "; ".join(" ".join(f"{number:.4g}" for number in row) for row in matrix[:3])
            print(f"{copy}: its world goes to that of the {side} image by [{words}], correlation {correlation:.4f}")
            affine = torch.as_tensor(matrix @ Grid.of(channels).affine)
            channels = MetaTensor(channels.as_tensor(), affine=affine)
        labels.append(channels)
    return labels[0], labels[1], values


def measure(warped: MetaTensor, fixed: MetaTensor) -> list[Row]:
    """Dice, centroid distance and HD95 (mm) of every label (C, X, Y, Z), NaN where it cannot be measured."""
    hausdorff = [float(LabelHausdorff(label).measure(warped, fixed)) for label in range(len(fixed))]
    return list(zip(dice(warped, fixed).tolist(), centroid_distances(warped, fixed).tolist(), hausdorff, strict=True))


def compare(
    field: DisplacementField, edit: np.ndarray, fixed: MetaTensor, moving: MetaTensor
) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """What is measured, and the number of folded voxels, at every stage, on the grid of the fixed labels."""
    grid = Grid.of(fixed)
    there = fixed.as_tensor().flatten(1).any(1) & moving.as_tensor().flatten(1).any(1)
    if not bool(there.any()):
        raise RegZooError("the two label maps have no label in common; name maps with the same values")
    nothing = DisplacementField.from_affine(np.eye(4), grid)
    onto_grid = nothing.compose(DisplacementField(field.displacement.cpu(), field.grid))
    fields = (nothing, DisplacementField.from_affine(np.linalg.inv(edit), grid), onto_grid)
    rows, folds = {}, {}
    for stage, transformation in zip(STAGES, fields, strict=True):
        found = measure(transformation.warp(moving, mode="nearest"), fixed)
        rows[stage] = [row if both else (math.nan,) * 3 for row, both in zip(found, there.tolist(), strict=True)]
        folds[stage] = int((transformation.jacobian() <= 0).sum())
    return rows, folds


def table(rows: Mapping[str, Sequence[Row]], values: Sequence[int]) -> str:
    """A Markdown table: a line per label and their mean, what is measured at every stage side by side."""
    lines = [
        ["label", *(f"{name}: {stage}" if i == 0 else stage for name in MEASURES for i, stage in enumerate(STAGES))]
    ]
    columns = [[row[i] for row in rows[stage]] for i in range(len(MEASURES)) for stage in STAGES]
    for index, value in enumerate(values):
        lines.append([str(value), *(short(column[index]) for column in columns)])
    known = [[value for value in column if not math.isnan(value)] for column in columns]
    lines.append(["mean", *(short(float(np.mean(column)) if column else math.nan) for column in known)])
    return markdown(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for side in ("fixed", "moving"):
        parser.add_argument(f"--{side}", required=True, metavar="IMAGE", help=f"{side} image")
        parser.add_argument(f"--{side}-label", required=True, metavar="MAP", help="its label map, on any grid")
        text = "the copy of the image that the map was drawn on, if its header is another"
        parser.add_argument(f"--{side}-drawn-on", metavar="IMAGE", help=text)
    parser.add_argument("--bundle", default="abdominal_ct_ddmr", help="name or folder")
    parser.add_argument("--overlay", action="append", default=[], help="configuration file, relative to the bundle")
    parser.add_argument("--checkpoint", help="instead of the released weights")
    parser.add_argument("--device", help="cpu, cuda, …")
    parser.add_argument("--align", choices=get_args(Alignment), help="instead of the bundle's own")
    parser.add_argument("--affine", action="store_true", help="and an affine registration (SimpleITK) after that")
    parser.add_argument("--out", type=Path, help="write the registration and the table there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Register, measure and print."""
    options = parse(arguments)
    fixed, moving, values = read_labels(options)
    result, edit, seconds = register(options)
    rows, folds = compare(result.field, edit, fixed, moving)
    voxels = math.prod(Grid.of(fixed).shape)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    words = " ".join([options.align or "the bundle's", *(["and affine"] if options.affine else [])])
    where = machine(device, torch.get_num_threads())
    heading = f"{Path(options.bundle).name}, pre-alignment: {words}; {seconds:.1f} s on {where}"
    counts = ", ".join(f"{stage} {folds[stage]} ({100 * folds[stage] / voxels:.2f} %)" for stage in STAGES)
    text = f"{heading}\n\n{table(rows, values)}\n\nFolded voxels of {voxels}: {counts}"
    print(f"\n{text}")
    if options.out:
        result.save(options.out)
        write_text(options.out / "table.md", text + "\n")


if __name__ == "__main__":
    one_line_errors()
    main()
