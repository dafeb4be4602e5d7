"""Running the cells of a study with submitit: on this machine, a few at a time, or as arrays of Slurm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regzoo.case import Key
from regzoo.datasets import load_records, load_single_records, split_fold
from regzoo.engines.data import LISTED
from regzoo.errors import RegZooError, bad_file
from regzoo.files import alone_in, make_folder, write_json
from regzoo_tools.study.cells import (
    Cell,
    cells_of,
    depth,
    folder_of,
    is_locked,
    lock_of,
    locked,
    outdated,
    read_facts,
    recipe,
)
from regzoo_tools.study.description import Method, Study, unknown
from regzoo_tools.study.work import Work, measured_split

if TYPE_CHECKING:
    from regzoo_phantoms.writing import PhantomSet

EXECUTORS = ("local", "slurm")
#: The file with the last job of Slurm of each cell.
SUBMITTED = "submitted.json"
#: The largest array of a Slurm with its own defaults.
LARGEST_ARRAY = 1000
#: How often submitit starts a job of Slurm again that has reached its time limit.
STARTS = 100
#: Minutes after which submitit ends a worker on this machine: a year.
LIMIT = 525_600
#: Seconds between two looks at the cells, and until a worker that is cancelled has ended.
POLL, END = 1.0, 10.0


def run_study(study: Study, executor: str = "local", jobs: int = 1, redo: bool = False) -> None:
    """Run the cells of a study that are not done; prints a line about each.

    Arguments are those of the command `regzoo_tools.study_commands.Study.run`.

    Raises:
        RegZooError: an unknown executor, missing or wrong parameters, data that cannot give the folds, the training
            sets or the cases to measure, or, after all others, a cell that is not done.
    """
    if executor not in EXECUTORS:
        raise RegZooError(f"--executor {executor}: is not known; use one of {', '.join(EXECUTORS)}")
    if jobs < 1:
        raise RegZooError(f"--jobs {jobs}: is below 1; write how many cells run at the same time")
    _check_submitit(executor)
    for name in dict.fromkeys(study.data_of(method) for method in study.methods.values()):
        _check_data(study, name)
    make_folder(study.folder)
    description = {key: value for key, value in asdict(study).items() if key not in ("file", "folder", "scales")}
    write_json(study.folder / "study.json", description)
    everything = cells_of(study)
    known = {cell: facts for cell in everything if (facts := read_facts(study, cell))}
    old = {cell: words for cell, facts in known.items() if (words := outdated(study, cell, facts))}
    for cell, words in old.items():
        moved = f"moved to {_set_aside(study, cell)}" if redo and not is_locked(lock_of(study, cell)) else "kept"
        print(f"{cell.name}: was made with other {', '.join(words)}; {moved}", flush=True)
    waiting = submitted_cells(study) if executor == "slurm" else set()
    kept = set() if redo else old.keys()
    todo = [cell for cell in everything if cell not in kept and read_facts(study, cell).get("status") != "done"]
    cells = [cell for cell in todo if cell.name not in waiting]
    print(f"{study.folder}: {len(cells)} of {len(everything)} cells to run", flush=True)
    if cells:
        write_phantoms(study, cells)
        for cell in {cell.method: cell for cell in cells}.values():
            recipe(study, cell)  # reads the data here once, and not in each process
        start = _submit if executor == "slurm" else _run_here
        start(study, cells, jobs)
    if executor == "slurm" and (cells or waiting):
        print(f"submitted; see: regzoo study status {study.file}")
        return
    # A cell is skipped if it cannot be run on this machine.
    over = ("done", "skipped")
    left = [cell for cell in everything if cell in kept or read_facts(study, cell).get("status") not in over]
    if left:
        fix = "--redo runs them again" if kept else "regzoo study status shows why; run again to go on"
        raise RegZooError(f"{study.folder}: {len(left)} of {len(everything)} cells are not done; {fix}")


def _set_aside(study: Study, cell: Cell) -> Path:
    """Move the folder of a cell; returns where it is now."""
    number = 1
    while (target := study.folder / "outdated" / f"{cell.name}.{number}").exists():
        number += 1
    target.parent.mkdir(exist_ok=True)
    return folder_of(study, cell).rename(target)


def _check_submitit(executor: str) -> None:
    try:
        import submitit  # noqa: F401
    except ModuleNotFoundError as error:
        raise RegZooError('a study needs submitit; run: pip install "regzoo[study]"') from error
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise RegZooError("--executor slurm: there is no sbatch here; run on a machine that submits to Slurm")


def _check_data(study: Study, name: str) -> None:
    """Raise `RegZooError` if the cells of a study could not be trained or measured on a data set."""
    place, phantoms = f"{study.file}: data.{name}", _phantoms(study, name)
    methods = {key: method for key, method in study.methods.items() if study.data_of(method) == name}
    trained = {key: method for key, method in methods.items() if not method.baseline}
    size = max(study.training_sizes or [0]) if trained else 0
    if phantoms is not None:
        _check_size(place, size, phantoms.count)
        _check_phantoms(study, place, phantoms, methods)
        return
    source = str(study.data[name]["dataset_dir"])
    for single in {study.takes_images(method) for method in (methods if study.folds else trained).values()}:
        records = load_single_records(source, "train") if single else load_records(source, "train")
        _check_size(place, size, len(records))
        own = sorted({record[Key.FOLD] for record in records if Key.FOLD in record})
        for number in study.fold_numbers:
            if own and own != list(range(number)):
                problem = f"its own folds are {', '.join(map(str, own))}, not 0 to {number - 1}"
                raise bad_file(place, problem, "write how many they are as folds, and number them from 0")
            try:
                split_fold(records, 0, number)
            except RegZooError as error:
                raise RegZooError(f"{place}, {len(records)} cases: {error}") from error
    for key, split in _held_out(study, methods).items():
        listed = LISTED.get(split) if study.takes_images(methods[key]) else split
        try:
            if listed is None:
                load_single_records(source, split)
            else:
                load_records(source, listed)
        except RegZooError as error:
            raise RegZooError(f"{place}, to measure {key}: {error}") from error


def _check_phantoms(study: Study, place: str, phantoms: PhantomSet, methods: Mapping[str, Method]) -> None:
    """`_check_data` for phantoms, which need not exist yet."""
    from regzoo_phantoms.writing import SPLITS

    for number in study.fold_numbers:
        if number > phantoms.patients:
            problem = f"{phantoms.patients} patients with {phantoms.count} {phantoms.unit}s cannot make {number} folds"
            raise bad_file(place, problem, "use fewer folds or add patients")
    for key, split in _held_out(study, methods).items():
        if (part := LISTED.get(split, split)) not in SPLITS:
            raise unknown(study.file, f"methods.{key}", f"phantoms have no part {split!r}", split, SPLITS)
        if part == "val" and phantoms.held_out == 0:
            fix = "raise held_out, or add folds to the study"
            raise bad_file(place, "its phantoms hold nothing out to measure", fix)


def _check_size(place: str, size: int, count: int) -> None:
    """Raise `RegZooError` if methods are to be trained on more cases than there are."""
    if size > count:
        problem = f"training_sizes asks for {size} cases to train on, and there are {count}"
        raise bad_file(place, problem, "write smaller numbers or add cases")


def _held_out(study: Study, methods: Mapping[str, Method]) -> dict[str, str]:
    """Method → the part of the data set that it is measured on, if the training set does not contain that part.

    Raises:
        RegZooError: a method would be measured on the cases that it is trained on.
    """
    if study.folds is not None:
        return {}
    found = {name: measured_split(study, name) for name, method in methods.items() if method.measured}
    trained_on = ("train", "fold", "rest") if study.training_sizes else ("train",)
    for name, split in found.items():
        if split in trained_on and not methods[name].baseline:
            problem = f"methods.{name}: would be measured on cases of its training (eval_split {split!r})"
            raise bad_file(study.file, problem, "measure it on another part, or add folds to the study")
    return {name: split for name, split in found.items() if split not in ("fold", "rest")}


def _phantoms(study: Study, name: str) -> PhantomSet | None:
    """The phantoms that a data set consists of; raises `RegZooError` for a parameter that they do not have."""
    from regzoo_phantoms.embedded import phantom_set

    if (parameters := study.data[name].get("phantoms")) is None:
        return None
    try:
        return phantom_set(**parameters)
    except RegZooError as error:
        raise RegZooError(f"{study.file}: data.{name}.phantoms: {error}") from error


def write_phantoms(study: Study, cells: Sequence[Cell]) -> None:
    """Write the phantoms of some cells, unless they exist."""
    from regzoo_phantoms import embedded_phantoms

    for name in dict.fromkeys(study.data_of(study.methods[cell.method]) for cell in cells):
        if (parameters := study.data[name].get("phantoms")) is not None:
            embedded_phantoms(study.folder / "data" / name, **parameters)


def _run_here(study: Study, cells: Sequence[Cell], jobs: int) -> None:
    """Run cells by a few workers, which take the next cell that nobody else has, until none is left."""
    from submitit import LocalExecutor

    run, count = f"{time.time_ns():x}", min(jobs, len(cells))
    executor = LocalExecutor(study.folder / "jobs")
    executor.update_parameters(timeout_min=LIMIT)
    with locked(alive := study.folder / "locks" / f"run_{run}"):
        workers = [
            executor.submit(Work(), study, cells, run, _environment(study, number, count), alive)
            for number in range(count)
        ]
        try:
            for line in _endings(study, cells, run, workers):
                print(line, flush=True)
        finally:
            for worker in workers:
                if not worker.done():
                    os.kill(int(worker.job_id), signal.SIGTERM)
            end = time.monotonic() + END
            while not all(worker.done() for worker in workers) and time.monotonic() < end:
                time.sleep(0.05)
    alive.unlink()
    for worker in workers:
        if error := worker.exception():
            print(f"a worker has failed ({str(error).strip().splitlines()[-1]}); see {worker.paths.stderr}", flush=True)


def _environment(study: Study, number: int, workers: int) -> dict[str, str]:
    """The share of a worker in the processors and the GPUs of this machine."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // workers))
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        import torch

        gpus = [str(index) for index in range(torch.cuda.device_count())]
    own = [gpus[(number * study.processes + index) % len(gpus)] for index in range(study.processes)] if gpus else []
    # A worker of submitit sees no GPU otherwise.
    return {"OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(own))}


def _endings(study: Study, cells: Sequence[Cell], run: str, workers: Sequence[Any]) -> Iterator[str]:
    """A line for each cell that has ended in this run, until the workers have ended."""
    pending, over = list(cells), False
    while not over:
        over = all(worker.done() for worker in workers)
        for cell in pending.copy():
            facts = read_facts(study, cell)
            if facts.get("run") == run and facts["status"] != "running":
                pending.remove(cell)
                took = f" after {facts['seconds']:.0f} s" if "seconds" in facts else ""
                yield f"{len(cells) - len(pending)}/{len(cells)} {cell.name}: {facts['status']}{took}"
        if not over:
            time.sleep(POLL)


def _submit(study: Study, cells: Sequence[Cell], jobs: int) -> None:
    """Submit cells as arrays of Slurm; those that start from the weights of others wait for them."""
    from submitit import AutoExecutor

    run = f"{time.time_ns():x}"
    given = dict(study.slurm)
    more = given.pop("slurm_additional_parameters", {})
    earlier: list[str] = []
    for _, level in groupby(cells, lambda cell: depth(study, cell)):
        same_level, waits_for, earlier = list(level), earlier, []
        for part in (same_level[i : i + LARGEST_ARRAY] for i in range(0, len(same_level), LARGEST_ARRAY)):
            after = {"dependency": f"afterany:{':'.join(waits_for)}"} if waits_for else {}
            try:
                executor = AutoExecutor(study.folder / "jobs", cluster="slurm", slurm_max_num_timeout=STARTS)
                executor.update_parameters(name=study.file.stem, slurm_array_parallelism=jobs, **given)
                executor.update_parameters(slurm_additional_parameters=more | after)
            except (AssertionError, NameError, TypeError, ValueError) as error:
                message = " ".join(str(error).split())
                raise bad_file(study.file, f"slurm: {message}", "see the parameters of submitit's executors") from error
            with executor.batch():
                submitted = [executor.submit(Work(), study, [cell], run, {}) for cell in part]
            with alone_in(study.folder):
                names = {cell.name: str(job.job_id) for cell, job in zip(part, submitted, strict=True)}
                write_json(study.folder / SUBMITTED, _submitted(study) | names)
            earlier.append(str(submitted[0].job_id).split("_")[0])
            print(f"{len(part)} cells are array {earlier[-1]}, {jobs} at a time", flush=True)


def _submitted(study: Study) -> dict[str, str]:
    path = study.folder / SUBMITTED
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def submitted_cells(study: Study) -> set[str]:
    """The names of the cells whose jobs Slurm has not ended yet."""
    names = _submitted(study)
    if not names or shutil.which("squeue") is None:
        return set()
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
    active = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    return {name for name, job in names.items() if job in active}
