"""CPU-seconds and accuracy of the demos: ``python benchmarks/demo.py [--bundles NAME ...] [--save]``.

Each demo consists of the two commands of ``make demo``. They run in a copy of the bundle, so the phantoms are written
again. CPU-seconds depend less than seconds on what else the machine does. ``--without-avx512`` keeps PyTorch and oneDNN
from using the wide registers of a newer processor. A demo is good enough if the median TRE is at most half of what it
was, the median Dice of the gland is at least 0.85, and no voxel folds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from comparison import markdown
from measure import used_by
from regzoo.report import read_csv
from trainings import BUNDLES, RESULTS, RUN, heading, save_result

NAMES = sorted(path.name for path in BUNDLES.iterdir())
TRAIN = ["configs/train.json", "configs/variants/demo.json"]
COMMANDS = (
    [*RUN, "training", "--config_file", str(TRAIN)],
    [*RUN, "--config_file", str([*TRAIN, "configs/evaluate.json"])],
)
#: As in the Makefile.
SETTINGS = {"GOMP_SPINCOUNT": "2000"}
NARROW = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
HEADER = (
    *("bundle", "training, CPU-s", "evaluation, CPU-s", "both, CPU-s", "both, minutes"),
    *("median TRE, mm", "median Dice", "folded, %"),
)


def measure(bundle: str, settings: dict[str, str]) -> tuple[str, ...]:
    """The row of one demo."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / bundle
        shutil.copytree(BUNDLES / bundle, root, ignore=shutil.ignore_patterns("output", "data"))
        start = time.monotonic()
        usages = [used_by(command, root, **settings) for command in COMMANDS]
        minutes = (time.monotonic() - start) / 60
        cases = read_csv(root / "output" / "demo" / "evaluation" / "cases.csv")
    seconds = [usage.ru_utime + usage.ru_stime for usage in usages]
    values = {name: [float(value) for value in column if value] for name, column in cases.items() if name != "case"}
    dice = "gland_dsc" if "gland_dsc" in values else "dsc"
    before_after = [f"{median(values['before_' + name]):.2f} → {median(values[name]):.2f}" for name in ("tre_mm", dice)]
    folded = f"{max(values['folded_percent']):g}" if "folded_percent" in values else "no field"
    return bundle, *(f"{s:.0f}" for s in (*seconds, sum(seconds))), f"{minutes:.1f}", *before_after, folded


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demos that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--without-avx512", action="store_true", help="as on a processor that has only AVX2")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/demo[_without_avx512].md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    settings = SETTINGS | {"OMP_NUM_THREADS": str(options.threads)} | (NARROW if options.without_avx512 else {})
    rows = []
    for bundle in options.bundles:
        rows.append(measure(bundle, settings))
        print(", ".join(rows[-1]), flush=True)
    what = "Demos without AVX-512" if options.without_avx512 else "Demos"
    text = f"{heading(what, torch.device('cpu'))}\n\n{markdown([HEADER, *rows])}"
    print(f"\n{text}")
    if options.save:
        path = RESULTS / f"demo{'_without_avx512' if options.without_avx512 else ''}.md"
        note = "The script says what is measured. TRE and Dice are those of unregistered and of registered pairs."
        save_result(path, "The demos", text, "demo.py", arguments, note)


if __name__ == "__main__":
    main()
