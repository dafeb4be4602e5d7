"""What scheduling a cell of a study costs beside its work: ``python benchmarks/study_overhead.py``.

Runs a study whose bundles are only pretended to run, as its tests do, and prints the CPU time of `regzoo study run` and
of its workers for each cell, without that of the pretended trainings and evaluations.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from measure import used_by
from regzoo.files import write_json
from trainings import HERE

PRETENDED = HERE.parent / "tests" / "tools" / "study" / "pretend_python.py"


def main() -> None:
    """Run the study that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for image in ("a.nii", "b.nii"):
            (folder / "images" / image).touch()
        (folder / "images" / "datalist.csv").write_text("fixed_image,moving_image,split\na.nii,b.nii,val\n")
        study = {"data": {"none": {"dataset_dir": "images"}}, "repeats": options.cells}
        study |= {"python": [sys.executable, "-S", "-E", str(PRETENDED)]}
        study |= {"methods": {"pretended": {"bundle": "prostate_mr_trus_weak_ddf"}}}
        write_json(folder / "study.json", study)
        command = [sys.executable, "-m", "regzoo", "study", "run", "study.json", "--jobs", str(options.jobs)]
        usage = used_by(command, folder)
        work = sum(map(float, (folder / "output" / "study" / "seconds.txt").read_text().split()))
        states = [json.loads(path.read_text())["status"] for path in folder.glob("output/study/cells/*/cell.json")]
    assert states == ["done"] * options.cells
    whole = usage.ru_utime + usage.ru_stime
    print(f"{options.cells} cells: {whole:.1f} CPU-s, of which {work:.1f} CPU-s for the work")
    print(f"scheduling: {1000 * (whole - work) / options.cells:.1f} ms of CPU time per cell")


if __name__ == "__main__":
    main()
