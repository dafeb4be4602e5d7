"""How time and memory of a refinement grow with the number of voxels: ``python benchmarks/refinement.py --save``.

The cubes are smooth noise and its deformation by a known displacement, refined as tensors with the defaults for MRs and
voxels of 1 mm. The last row is a pair of CT files, from reading them to the warped image. There, `max_voxels` limits
the finest level, so only reading, pre-alignment and warping grow. Each row has a process of its own. The memory is the
peak of that process, libraries (about 0.5 GiB) and images included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from comparison import markdown
from memory import write_pair
from peer_tools import THREADS, Meter
from regzoo import Registrar
from regzoo.refinement import Volumes, options_for, refine
from regzoo.spatial import Grid, warp
from trainings import RESULTS, heading, save_result

CUBES = (64, 96, 128, 192)
FILES = (512, 300)
HEADER = ("voxels", "million", "steps", "wall, s", "CPU, s", "CPU, s per million", "peak, MiB", "peak, MiB per million")


def cube(n: int) -> tuple[Volumes, Volumes]:
    """Noise that varies over 6 voxels, and the same noise displaced by up to 3 voxels; n³ voxels of 1 mm."""
    noise = torch.rand(1, 1, *[max(n // 6, 2)] * 3, generator=torch.Generator().manual_seed(0))
    moving = F.interpolate(noise, size=(n, n, n), mode="trilinear", align_corners=True)
    bump = torch.linspace(0, np.pi, n).sin()
    ddf = 3 * torch.einsum("i,j,k->ijk", bump, bump, bump).expand(1, 3, n, n, n)
    grid = Grid((n, n, n), np.eye(4))
    return Volumes(grid, warp(moving, ddf, padding="border")[0]), Volumes(grid, moving[0])


def row(size: tuple[int, ...], folder: Path | None) -> list[str]:
    """A row: of a cube, or of the files in a folder."""
    torch.set_num_threads(THREADS)
    meter = Meter()
    if folder is None:
        pair = cube(size[0])
        with meter:
            statistics = refine(*pair, options_for("mr", spacing=1.0)).statistics
    else:
        with meter:
            registrar = Registrar("none", refine="ct")
            result = registrar.register(folder / "fixed.nii.gz", folder / "moving.nii.gz")
        statistics = result.statistics["refinement"]
    million = float(np.prod(size)) / 1e6
    return [
        "×".join(str(n) for n in size) + (" files" if folder else ""),
        f"{million:.2f}",
        str(statistics["steps"]),
        f"{meter.wall:.1f}",
        f"{meter.cpu:.1f}",
        f"{meter.cpu / million:.2f}",
        f"{meter.peak:.0f}",
        f"{meter.peak / million:.0f}",
    ]


def in_own_process(size: tuple[int, ...], folder: Path | None = None) -> list[str]:
    """`row` in a new process, whose memory no other row has used."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(row, size, folder).result()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and with ``--save`` write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cubes", type=int, nargs="*", default=CUBES, help="widths of the cubes, voxels")
    parser.add_argument(
        "--files", type=int, nargs=2, default=FILES, metavar=("N", "M"), help="N×N×M voxels of the files"
    )
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/refinement.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    rows = []
    for n in options.cubes:
        rows.append(in_own_process((n, n, n)))
        print(", ".join(rows[-1]), flush=True)
    n, m = options.files
    with tempfile.TemporaryDirectory() as folder:
        write_pair(Path(folder), n, m, 1)
        rows.append(in_own_process((n, n, m), Path(folder)))
    table = markdown([HEADER, *rows])
    text = f"{heading('Refinement of one pair')}\n\n{table}"
    print(text)
    if options.save:
        note = "The script says what is measured."
        save_result(RESULTS / "refinement.md", "Growth of a refinement", text, "refinement.py", arguments, note)


if __name__ == "__main__":
    main()
