"""Register two images with a bundle and measure it on their label maps: ``python benchmarks/real_pair.py --help``.

The images are registered as they are, with the released weights or those of ``--checkpoint``, after the bundle's
pre-alignment or the one that ``--align`` asks for. The registration does not see the label maps. They
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
from pathlib import Path
from typing import get_args

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
from regzoo.refinement import KINDS
from regzoo.spatial import Grid, as_tensor, check_on_grid, label_values, read_image, read_label_file, to_channels
from regzoo.transforms.load import Alignment
from same_world import world_of_copy

STAGES = ("header", "pre-aligned", "registered")
MEASURES = ("Dice", "TRE, mm", "HD95, mm")
Row = tuple[float, float, float]


def register(options: argparse.Namespace) -> tuple[RegistrationResult, np.ndarray, float]:
    """Register the images.

    Returns:
        The result, whose field leads into the world of the moving file; the pre-alignment, old moving world → new
        moving world, 4×4, RAS mm; and the seconds of loading, registering and warping.
    """
    overrides = {
        key: getattr(options, key) for key in ("checkpoint", "align", "device", "refine") if getattr(options, key)
    }
    registrar = Registrar(options.bundle, options.overlay, **overrides)
    request = requested_records(options.fixed, options.moving)[0]
    prepared = registrar.preprocessing(request)
    edit = np.asarray(as_tensor(prepared["prealignment"]).cpu().numpy())
    start = time.perf_counter()
    result = registrar.register(options.fixed, options.moving)
    return result, edit, time.perf_counter() - start


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
    parser.add_argument("--refine", choices=sorted(KINDS), help="refine the result as this kind of pair")
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
    where = machine(device, torch.get_num_threads())
    heading = f"{Path(options.bundle).name}, pre-alignment: {options.align or 'its own'}; {seconds:.1f} s on {where}"
    counts = ", ".join(f"{stage} {folds[stage]} ({100 * folds[stage] / voxels:.2f} %)" for stage in STAGES)
    text = f"{heading}\n\n{table(rows, values)}\n\nFolded voxels of {voxels}: {counts}"
    print(f"\n{text}")
    if options.out:
        result.save(options.out)
        write_text(options.out / "table.md", text + "\n")


if __name__ == "__main__":
    one_line_errors()
    main()
