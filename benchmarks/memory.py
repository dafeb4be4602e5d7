"""What ``regzoo register`` takes of memory and time, from 1 to 157 million voxels: ``python benchmarks/memory.py``.

A pair of CTs of a body with organs, both of the given size, and one label map of the moving one, registered with
``abdominal_ct_ddmr`` and written with everything that is written by default. The peak is the largest resident memory of
the process, libraries and network included. The goal is 60 bytes for each voxel of the fixed image and 1 GB beside,
whatever the number of labels. 512×512×600 voxels take about 3 GB of disk for the time of the run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from comparison import markdown, verdict
from measure import used_by
from regzoo.spatial import write_nifti
from trainings import RESULTS, heading, save_result

ROOT = Path(__file__).resolve().parents[1]
#: Matrix sizes (n, n, m) and numbers of labels.
ROWS = ((100, 100, 1), (100, 100, 13), (256, 153, 13), (512, 153, 13), (512, 600, 13))
#: Bytes of each voxel, and beside, that a registration may take.
GOAL, BESIDE = 60, 1e9
HEADER = ("voxels", "million", "labels", "peak, GB", "bytes a voxel beyond 1 GB", f"goal ≤ {GOAL}", "time, s", "CPU, s")


def write_pair(folder: Path, n: int, m: int, labels: int) -> None:
    """``fixed``, ``moving`` and ``label.nii.gz`` of n×n×m voxels, 380×380×600 mm."""
    shape = (n, n, m)
    affine = np.diag([380 / n, 380 / n, 600 / m, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    x, y, z = (
        (affine[axis, axis] * np.arange(k, dtype=np.float32) + np.float32(affine[axis, 3])).reshape(
            [-1 if axis == other else 1 for other in range(3)]
        )
        for axis, k in enumerate(shape)
    )
    image = np.full(shape, -1000, np.int16)
    organs = np.zeros(shape, np.uint8)
    body = (x / 150) ** 2 + (y / 110) ** 2 < 1
    for k in range(m):  # plane by plane, to take little memory itself
        tissue = 40 + 10 * np.sin(x / 9) * np.cos(y / 11) * np.sin(z[..., k] / 13)[..., None]
        image[:, :, k : k + 1] = np.where(body, tissue, -1000)
        for number in range(1, labels + 1):
            away = (x - 60 * np.cos(number)) ** 2 + (y - 50 * np.sin(number)) ** 2
            organs[:, :, k : k + 1][away + (z[..., k] - (number - 7) * 25)[..., None] ** 2 < 22**2] = number
    write_nifti(folder / "fixed.nii.gz", image, affine)
    write_nifti(folder / "moving.nii.gz", np.roll(image, max(n // 100, 1), 0), affine)
    write_nifti(folder / "label.nii.gz", organs, affine)


def measure(folder: Path, n: int, m: int, labels: int) -> list[str]:
    """One row of the table."""
    write_pair(folder, n, m, labels)
    files = [f"--{name}={folder / name}.nii.gz" for name in ("fixed", "moving", "label")]
    bundle = ROOT / "bundles" / "abdominal_ct_ddmr"
    command = [sys.executable, "-m", "regzoo", "register", str(bundle), *files, f"--out={folder / 'result'}"]
    start = time.perf_counter()
    usage = used_by(command)
    seconds = time.perf_counter() - start
    peak, voxels = 1024 * usage.ru_maxrss, n * n * m
    each = max(peak - BESIDE, 0) / voxels
    return [
        f"{n}×{n}×{m}",
        f"{voxels / 1e6:.1f}",
        str(labels),
        f"{peak / 1e9:.2f}",
        f"{each:.0f}",
        verdict(each <= GOAL),
        f"{seconds:.0f}",
        f"{usage.ru_utime + usage.ru_stime:.0f}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and with ``--save`` write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=len(ROWS), help="measure only so many, the smallest first")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/memory.md")
    options = parser.parse_args(arguments)
    rows = []
    for row in ROWS[: options.rows]:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(Path(folder), *row))
        print(", ".join(rows[-1]), flush=True)
    text = f"{heading('`abdominal_ct_ddmr`', torch.device('cpu'))}\n\n{markdown([HEADER, *rows])}"
    print(text)
    if options.save:
        note = "The script says what is measured."
        save_result(RESULTS / "memory.md", "Memory and time of a registration", text, "memory.py", arguments, note)


if __name__ == "__main__":
    main()
