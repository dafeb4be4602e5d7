"""Stands in for the Python that a study starts bundles with: notes each start, and writes what a bundle would write.

What that takes of the processor is noted, too.

A learning rate below 0 fails; above 1, the first start of a training is killed by Slurm's time limit, and the second
goes on.
"""

import ast
import json
import sys
import time
from pathlib import Path

(*files, own) = ast.literal_eval(sys.argv[-1])
settings = json.loads(Path(own).read_text())
part = "training" if "training" in sys.argv else "evaluation"
cell = Path(own).parent
with (cell.parents[1] / "starts.txt").open("a") as log:
    log.write(f"{cell.name} {part}\n")
rate = settings.get("learning_rate", 0)
if rate < 0:
    print("step 1")
    sys.exit("error: the loss is not finite")
time.sleep(settings.get("warmup_steps", 0) / 1000)
folder = Path(settings["output_dir"] if part == "training" else settings["evaluation_dir"])
folder.mkdir(exist_ok=True)
if part == "training":
    if rate > 1 and not (folder / "last.pt").exists():
        (folder / "last.pt").touch()
        time.sleep(600)
    (folder / "data.json").write_text(json.dumps({"training": [{"case": "a"}, {"case": "b"}]}))
    (folder / "epochs.csv").write_text("epoch,seconds\n1,2.5\n2,1.5\n")
    (folder / "last.pt").touch()
else:
    assert not settings["checkpoint"] or Path(settings["checkpoint"]).exists()
    (folder / "cases.csv").write_text("case,tre_mm\na,1.0\n")
with (cell.parents[1] / "seconds.txt").open("a") as log:
    log.write(f"{time.process_time()}\n")
