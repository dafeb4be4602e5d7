"""The work of a cell: the training and the evaluation of a bundle, in processes of their own."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from regzoo.errors import RegZooError, one_line
from regzoo.files import write_json
from regzoo_tools.study.cells import (
    Cell,
    data_hashes,
    folder_of,
    is_locked,
    lock_of,
    locked,
    outdated,
    read_facts,
    recipe,
    start_of,
    write_facts,
)
from regzoo_tools.study.description import BASELINES, Method, Study

#: Lines of the log that the facts of a failed cell hold.
LAST_LINES = 5
#: Seconds to wait for a lock: `study status` holds it for a moment. A cell waits for the training that it starts from.
MOMENT, FOREVER = 0.2, float("inf")


def training_overlay(study: Study, cell: Cell) -> dict[str, Any]:
    """The settings of the training of a cell, the last of its configurations."""
    method, folder = study.methods[cell.method], folder_of(study, cell)
    settings = {"show_progress": False} | study.settings | study.data_settings(method) | method.settings
    settings |= _shared(study, cell) | {"seed": cell.repeat}
    if cell.training_size is not None:
        from regzoo.datasets import load_validation

        single = study.takes_images(method)
        settings["max_images" if single else "max_pairs"] = cell.training_size
        if not load_validation(data_folder(study, cell), single):
            settings["folds"] = 1  # or a part of these cases would be held out for the validation
    if start := start_of(study, cell):
        settings["init_weights"] = str(_weights(study, start))
    return settings | {"output_dir": str(folder / "training")}


def evaluation_overlay(study: Study, cell: Cell) -> dict[str, Any]:
    """The settings of the evaluation of a cell, and what a study adds to it, see `regzoo_tools.study.measuring`."""
    method, folder = study.methods[cell.method], folder_of(study, cell)
    config = study.config(method)
    settings = evaluation_settings(study, method) | _shared(study, cell)
    settings |= {"output_dir": str(folder), "evaluation_dir": str(folder / "evaluation"), "pictures": 0}
    # The cases that a data set holds out are the same for every repeat.
    settings |= {"seed": cell.repeat if cell.folds else 0}
    if cell.folds:
        settings["eval_split"] = "fold"
    if "pairs_file" in config:
        drawn = f"fold{cell.fold}of{cell.folds}_seed{cell.repeat}" if cell.folds else settings.get("eval_split", "all")
        name = f"{study.data_of(method)}_{recipe(study, cell)['data']}_{drawn}.json"  # other data make other pairs
        settings["pairs_file"] = str(study.folder / "pairs" / name)
    weights = _weights(study, cell)
    here = "regzoo_tools.study.measuring"
    clock: list[Any] = [{"_target_": f"{here}.StartClock"}, "@validate#preprocessing"]
    fields = {"output_dir": str(folder / "evaluation" / "fields"), "count": study.fields}
    table = {"_target_": f"{here}.CentroidTable", "output_dir": str(folder / "evaluation")}
    settings |= {
        "checkpoint": str(weights or ""),
        "validate#dataset#transform": {"_target_": "Compose", "transforms": clock},
        "validate#metrics#measures#runtime_s": {"_target_": f"{here}.Runtime"},
        "+validate#postprocessing#transforms": [
            {"_target_": f"{here}.StopClock"},
            {"_target_": f"{here}.SaveFields", **fields},
        ],
        "+validate#handlers": [table],
    }
    if weights is None:
        settings["network"] = {"_target_": f"{here}.Still"}
    if method.tool:
        window = {"window": "@window"} if "window" in config else {}
        kind = {"kind": "ct"} if config["refinement"]["kind"] == "ct" else {}
        tool = "regzoo_tools.study.tools.ToolPaird"
        settings["refinement"] = {"_target_": tool, "command": method.tool, **window, **kind}
    return settings


def measured_split(study: Study, name: str) -> str:
    """The part of a data set that a method is measured on, in a study without folds."""
    method = study.methods[name]
    return str((study.config(method) | evaluation_settings(study, method))["eval_split"])


def evaluation_settings(study: Study, method: Method) -> dict[str, Any]:
    """The settings that a study gives to the evaluation of a method."""
    settings = study.settings | study.data_settings(method) | BASELINES.get(method.baseline, {}) | method.settings
    return settings | study.evaluation | method.evaluation


def _shared(study: Study, cell: Cell) -> dict[str, Any]:
    """Settings that the training and the evaluation of a cell share."""
    return {"dataset_dir": str(data_folder(study, cell)), "fold": cell.fold, "folds": cell.folds}


def data_folder(study: Study, cell: Cell) -> Path:
    """The data set of a cell."""
    name = study.data_of(study.methods[cell.method])
    return Path(study.data[name].get("dataset_dir") or study.folder / "data" / name)


def _weights(study: Study, cell: Cell) -> Path | None:
    """The weights that a cell trains or measures; None if it has no network."""
    method = study.methods[cell.method]
    if method.baseline:
        return method.released_weights if method.baseline == "released" else None
    return folder_of(study, cell) / "training" / ("last.pt" if study.weights == "last" else "model.pt")


def command(study: Study, cell: Cell, part: str) -> list[str]:
    """The command of a training or an evaluation, to be run in the folder of the bundle.

    Args:
        part: ``training`` or ``evaluation``; its settings are in a file of this name in the folder of the cell.
    """
    *files, last = study.config_files(study.methods[cell.method])
    start = study.python or [sys.executable]
    if part == "evaluation":
        files.append(last)
    elif study.processes > 1:
        files.append(last.parent / "multi_gpu_train.json")
        start = [*start, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(study.processes)]
    run = ["run", "training"] if part == "training" else ["run"]
    configs = str([*map(str, files), str(folder_of(study, cell) / f"{part}.json")])
    return [*start, "-m", "monai.bundle", *run, "--config_file", configs]


def run_cell(study: Study, cell: Cell, run: str = "") -> None:
    """Do what is missing of a cell, unless another process is doing it; the cell's facts then say how it went.

    Args:
        run: names a run of the study; a cell that has failed in this run is not tried again.
    """
    if start := start_of(study, cell):
        with locked(lock_of(study, start), FOREVER):
            pass
    with locked(lock_of(study, cell), MOMENT) as lock:
        facts = read_facts(study, cell)
        status, tried = facts.get("status"), facts.get("run") == run
        if lock is None or status == "done" or (tried and status in ("failed", "skipped")):
            return
        if facts and outdated(study, cell, facts):
            return
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        now: dict[str, Any] = {"started": started, "host": socket.gethostname(), "run": run}
        now |= {"recipe": recipe(study, cell)}
        now |= {key: facts.get(key) for key in ("trained_on", "training_seconds")}
        tool = study.methods[cell.method].tool
        if tool and not shutil.which(tool[0]):
            write_facts(study, cell, now | {"status": "skipped", "error": f"{tool[0]} is not installed"})
            return
        write_facts(study, cell, now | {"status": "running"})
        begin = time.monotonic()
        try:
            now |= _train(study, cell, now, lock)
            now |= _evaluate(study, cell, lock)
        except Exception as error:
            now |= {"status": "failed", "error": one_line(error)}
        else:
            now |= {"status": "done", "error": None}
        write_facts(study, cell, now | {"seconds": time.monotonic() - begin})


def _train(study: Study, cell: Cell, facts: dict[str, Any], lock: int) -> dict[str, Any]:
    """Train, unless that is done or not needed; returns the new facts."""
    if study.methods[cell.method].baseline or facts["trained_on"] is not None:
        return {}
    if (start := start_of(study, cell)) and read_facts(study, start).get("status") != "done":
        raise RegZooError(f"{start.name}, whose weights it starts from, is not done")
    folder = folder_of(study, cell)
    write_json(folder / "training.json", training_overlay(study, cell))
    _execute(study, cell, "training", lock)
    data = json.loads((folder / "training" / "data.json").read_text(encoding="utf-8"))
    with (folder / "training" / "epochs.csv").open(newline="", encoding="utf-8") as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
    found = {"trained_on": len(data["training"]), "training_seconds": seconds}
    write_facts(study, cell, facts | found | {"status": "running"})
    return found


def _evaluate(study: Study, cell: Cell, lock: int) -> dict[str, Any]:
    """Evaluate, if the method is measured; returns the new facts."""
    if not study.methods[cell.method].measured:
        return {}
    write_json(folder_of(study, cell) / "evaluation.json", evaluation_overlay(study, cell))
    begin = time.monotonic()
    _execute(study, cell, "evaluation", lock)
    return {"evaluation_seconds": time.monotonic() - begin}


def _execute(study: Study, cell: Cell, part: str, lock: int) -> None:
    """Run the training or the evaluation; it inherits the lock, and ends when this process is interrupted."""
    log, words = folder_of(study, cell) / "log.txt", command(study, cell, part)
    with log.open("a", encoding="utf-8") as file:
        print(shlex.join(words), file=file, flush=True)
        process = subprocess.Popen(
            words,
            cwd=study.methods[cell.method].folder,
            env={"OMP_WAIT_POLICY": "passive"} | os.environ,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=[lock],
            start_new_session=True,
        )
        try:
            status = process.wait()
        except BaseException:  # an interruption, or a signal of Slurm: the children of torchrun must end, too
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if status:
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RegZooError("\n".join([f"the {part} {how}:", *lines[-LAST_LINES:]]))


class Work:
    """The job of a worker, as submitit runs it: cells one after another.

    Args:
        run: see `run_cell`.
        environment: of the processes.
        alive: a file that the starting process holds locked; once that has ended, the worker starts no further cell.
            None for a worker of a cluster.
    """

    def __init__(self) -> None:
        self.data_hashes = dict(data_hashes)  # as the starting process knows them

    def __call__(
        self, study: Study, cells: Sequence[Cell], run: str, environment: dict[str, str], alive: Path | None = None
    ) -> None:
        os.environ.update(environment)
        data_hashes.update(self.data_hashes)
        if alive is not None:  # submitit ignores SIGTERM, and a shell makes its background jobs ignore SIGINT
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        else:
            # Slurm's signal also reaches the training, which may end before this process hears of it. Its cell has
            # failed then, but not in the run of the job that Slurm starts again.
            run += os.environ.get("SLURM_RESTART_COUNT", "")
        for cell in cells:
            if alive is None or is_locked(alive):
                run_cell(study, cell, run)

    def checkpoint(self, *arguments: Any) -> Any:
        """What Slurm starts again after a time limit or a preemption: the same, which resumes the training."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)
