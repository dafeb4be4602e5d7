"""CPU-seconds that each `regzoo` command takes on small files: ``python benchmarks/start_up.py [--save]``.

The files have 4,000 voxels, so nearly all of the time is start-up. A training takes one step on phantoms that
were written before, and validates once. Plain imports of PyTorch and MONAI are measured beside it. Every round runs
each command once, in a process of its own with one thread; the table shows medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from comparison import markdown
from measure import used_by
from regzoo.spatial import DisplacementField, Grid, write_nifti
from regzoo_phantoms import ProstatePhantoms
from scipy.ndimage import gaussian_filter
from trainings import RESULTS, heading, save_result

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "prostate_mr_trus_weak_ddf"
IMPORTS = ("import torch", "import monai.bundle")
PAIR = "--fixed fixed.nii.gz --moving moving.nii.gz --out out"
COMMANDS = {
    "regzoo --help": "--help",
    "regzoo apply, an image": "apply field.nii.gz --image moving.nii.gz --out warped.nii.gz",
    "regzoo apply, labels": "apply field.nii.gz --label label.nii.gz --out carried.nii.gz",
    "regzoo apply, points": "apply field.nii.gz --points p.csv --frame RAS --from moving --to fixed --out q.csv",
    "regzoo invert": "invert field.nii.gz --out inverse.nii.gz",
    "regzoo compose": "compose field.nii.gz field.nii.gz --out composed.nii.gz",
    "regzoo convert": "convert field.nii.gz --out disp_field.nii.gz",
    "regzoo register, no network, only the field": f"register none --align header --outputs field {PAIR}",
    "regzoo register, no network, all outputs": f"register none --align header {PAIR}",
    "regzoo register, with a network, all outputs": f"register {BUNDLE} {PAIR}",
}
#: A training, whose data set `main` writes.
TRAINING = "monai.bundle run training, one step"
STEP = f"--config_file {BUNDLE}/configs/train.json --bundle_root {BUNDLE} --output_dir out --show_progress False"
STEP += " --folds 2 --samples_per_epoch 8 --max_epochs 1"
HEADER = ("command", "CPU, s", "times import torch", "times import monai.bundle")


def write_files(folder: Path) -> None:
    """The files that `COMMANDS` name."""
    grid = Grid((16, 18, 14), np.diag([4.0, 4, 4, 1]))
    for seed, name in enumerate(("fixed", "moving")):
        noise = np.random.default_rng(seed).standard_normal(grid.shape).astype(np.float32)
        write_nifti(folder / f"{name}.nii.gz", gaussian_filter(noise, 2), grid.affine)
    write_nifti(folder / "label.nii.gz", np.ones(grid.shape, np.uint8), grid.affine)
    DisplacementField(torch.full((3, *grid.shape), 0.5), grid).save(folder / "field.nii.gz")
    (folder / "p.csv").write_text("x,y,z\n4,5,6\n")


def cpu_seconds(arguments: Sequence[str], folder: Path) -> float:
    """CPU-seconds of a run of Python with the given arguments."""
    usage = used_by([sys.executable, *arguments], folder, OMP_NUM_THREADS="1")
    return usage.ru_utime + usage.ru_stime


def measure(rounds: int, phantoms: Path) -> dict[str, float]:
    """Median CPU-seconds of each command; the training uses a data set of phantoms."""
    runs = {line: ["-c", line] for line in IMPORTS}
    runs |= {name: ["-m", "regzoo", *line.split()] for name, line in COMMANDS.items()}
    runs[TRAINING] = ["-m", "monai.bundle", "run", "training", *STEP.split(), "--dataset_dir", str(phantoms)]
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, arguments in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                write_files(Path(folder))
                found[name].append(cpu_seconds(arguments, Path(folder)))
    return {name: statistics.median(values) for name, values in found.items()}


def table(seconds: dict[str, float]) -> str:
    """The table of `measure`."""
    torch_alone, monai_alone = (seconds[line] for line in IMPORTS)
    rows = [(name, f"{s:.2f}", f"{s / torch_alone:.2f}", f"{s / monai_alone:.2f}") for name, s in seconds.items()]
    return markdown([HEADER, *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and with ``--save`` write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/start_up.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        phantoms = ProstatePhantoms(pairs=8, held_out=0, seed=0, spacing=2.0).write(Path(folder) / "phantoms")
        seconds = measure(options.rounds, phantoms)
    text = f"{heading('Commands on small files', torch.device('cpu'))}\n\n{table(seconds)}"
    print(text)
    if options.save:
        note = "The script says what is measured."
        save_result(RESULTS / "start_up.md", "Start-up of the commands", text, "start_up.py", arguments, note)


if __name__ == "__main__":
    main()
