"""The record of a run in its folder: command, configuration, data, versions, log and metrics."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import regzoo
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from regzoo.case import Key, Record
from regzoo.datasets.records import PATIENT_KEYS, record_files
from regzoo.engines.distributed import check_processes
from regzoo.engines.identity import whole_hash
from regzoo.engines.logs import learning_rate
from regzoo.engines.plateau import just_validated
from regzoo.engines.running import bundle_name, running_workflow
from regzoo.errors import bad_file
from regzoo.files import check_writable, write_json
from regzoo.ownership import CLAIMS, check_folder, claim
from regzoo.report.engine import is_writer
from regzoo.report.tables import read_csv, write_csv

logger = logging.getLogger(__name__)

RUN, CONFIG, DATA, LOG, EPOCHS = "run.json", "config.json", "data.json", "log.txt", "epochs.csv"
#: Names in a training's folder of the files of the training and of its evaluation.
OURS = ("last.pt", "model.pt", RUN, CONFIG, DATA, LOG, EPOCHS, "events.out.tfevents.*", "evaluation")
#: The files that a training itself writes under fixed names.
TRAINED = OURS[:7]
PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel", "itk")

#: The logs of the running workflows; a log is kept in memory until `describe_run` names its folder.
_logs: weakref.WeakKeyDictionary[ConfigWorkflow, MemoryHandler] = weakref.WeakKeyDictionary()
_show_warning = warnings.showwarning


def capture_log() -> None:
    """Start to record the log lines and warnings of the running workflow, if there is one."""
    global _show_warning
    workflow = running_workflow()
    if workflow is None or workflow in _logs or not is_writer():
        return
    log = _logs[workflow] = MemoryHandler(capacity=0)
    logging.getLogger().addHandler(log)
    weakref.finalize(workflow, _end_log, log)
    if warnings.showwarning is not _warn:
        _show_warning = warnings.showwarning
        warnings.showwarning = _warn


def _keep_log(log: MemoryHandler, folder: Path) -> None:
    """Append the recorded lines of a log, and its later lines, to a file in a folder."""
    if log.target is None:
        file = _LogFile(folder / LOG, encoding="utf-8", delay=True, errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.setTarget(file)
    log.flush()
    # Another configuration, read in the meantime, may have removed the root logger's handlers.
    logging.getLogger().addHandler(log)


class _LogFile(logging.FileHandler):
    """A log file whose errors are ignored: on a full disk, the run fails when it saves its weights, not here."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name in `logging`
        """Ignore an error."""


def _end_log(log: MemoryHandler) -> None:
    logging.getLogger().removeHandler(log)
    if log.target is not None:
        log.target.close()


def _warn(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Show a warning as before, and log it."""
    text = f"{category.__name__}: {message} ({filename}:{lineno})"
    for log in list(_logs.values()):
        log.handle(logging.LogRecord("warnings", logging.WARNING, filename, lineno, text, None, None))
    _show_warning(message, category, filename, lineno, file, line)


def describe_run(
    folder: str | Path, data: Mapping[str, Sequence[Record]], workflow: ConfigWorkflow | None, epoch: int | None = None
) -> None:
    """Write the record of a run into its folder.

    ``run.json``: for each start its time, command and versions, and for a training its first epoch; ``config.json``:
    the configuration with all overlays and options, references to plain values resolved, which MONAI can run again;
    ``data.json``: the cases with the SHA-256 of each file; ``log.txt``: the log lines and warnings, also later ones.

    Args:
        data: name of a part, such as ``training`` → its records.
        workflow: the running workflow; without it, configuration and log are left out.
        epoch: the epoch from which a training starts, from 1. Above 1, the start is added to the existing ``run.json``.

    Raises:
        RegZooError: the folder cannot be written to, or its ``run.json`` is not the record of a training.
    """
    folder = Path(folder)
    earlier = _starts(folder / RUN) if epoch is not None and epoch > 1 else []
    start: dict[str, Any] = {"started": datetime.now().astimezone().isoformat(timespec="seconds")}
    start |= {"command": shlex.join(sys.orig_argv), "folder": str(Path.cwd())}
    start |= {} if epoch is None else {"first_epoch": epoch}
    write_json(folder / RUN, {"runs": [*earlier, start | {"versions": versions()}]})
    write_json(folder / DATA, {part: [_described(record) for record in records] for part, records in data.items()})
    if workflow is None:
        return
    write_json(folder / CONFIG, resolved_config(workflow))
    if (log := _logs.get(workflow)) is not None:
        _keep_log(log, folder)


def _starts(path: Path) -> list[Any]:
    """The earlier starts of a training."""
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["runs"])
    except (ValueError, KeyError, TypeError) as error:
        raise bad_file(path, "is not the record of a training", "move it to another folder") from error


def _described(record: Record) -> dict[str, Any]:
    """The names of a case and the hashes of its files."""
    named = {key: value for key, value in record.items() if key in (Key.CASE, *PATIENT_KEYS)}
    files = {str(path): whole_hash(path) for path in record_files(record)}
    return named | {"files": files}


def resolved_config(workflow: ConfigWorkflow) -> dict[str, Any]:
    """A workflow's configuration as plain values; a top-level reference or expression is replaced by its value."""
    resolved = workflow.parser.ref_resolver.resolved_content
    config = {key: value for key, value in workflow.parser.get().items() if key != "_meta_"}
    for key, value in config.items():
        result = resolved.get(key)
        if isinstance(value, str) and value[:1] in ("$", "@") and isinstance(result, (str, int, float, torch.device)):
            config[key] = str(result) if isinstance(result, torch.device) else result
    return json.loads(json.dumps(config, default=str))


def versions() -> dict[str, str]:
    """The versions of the packages that a result depends on, and the machine."""
    found = {"regzoo": regzoo.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    if commit := _commit(Path(regzoo.__file__).parents[2]):
        found["commit"] = commit
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "gpu": torch.cuda.get_device_name()}
    return found | {"platform": platform.platform(), "processes": os.environ.get("WORLD_SIZE", "1")}


def _commit(checkout: Path) -> str | None:
    """The commit of a source checkout, marked as dirty if files have changed since."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    if not (checkout / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return None


def set_aside(folder: str | Path) -> None:
    """Move the files of an earlier run, if any, into a new folder inside: ``earlier_1``, ``earlier_2`` and so on."""
    files = [path for name in OURS for path in sorted(Path(folder).glob(name))]
    if not files:
        return
    number = 1
    while (target := Path(folder) / f"earlier_{number}").exists():
        number += 1
    target.mkdir()
    for path in files:
        path.rename(target / path.name)
    if (Path(folder) / CLAIMS).is_file():
        shutil.copyfile(Path(folder) / CLAIMS, target / CLAIMS)
    logger.info("the files of the earlier run are now in %s", target)


def output_folder(path: str | Path) -> str:
    """Check that an output folder is writable, before any work is done.

    What is written first creates the folder, so that a run that is refused before leaves none.

    Raises:
        RegZooError: the folder cannot be written to, a training would overwrite somebody else's file in it, or other
            processes are about to do the same work.
    """
    check_processes()
    capture_log()
    folder, workflow = Path(path), running_workflow()
    config = {} if workflow is None else workflow.parser.config
    trains = "train" in config and "evaluation_dir" not in config
    if trains:
        check_folder(folder, TRAINED, bundle_name(workflow))
    if is_writer():
        check_writable(folder)
    return str(path)


class RunRecord:
    """Ignite handler of a trainer: calls `describe_run`, and writes ``epochs.csv``, a row per epoch.

    Columns: epoch, seconds, learning_rate, the means of the loss, its terms and learned weights, and the metrics of
    the validation, which are empty in an epoch without one. Rows of epochs that a resumed training repeats are
    replaced. Attach the handler after `LossTerms` and before `TrainingCheckpoint`. Nothing is written before the first
    epoch begins; by then, the data and the checkpoint have been checked.

    Args:
        data: ``training`` and ``validation`` → records.
        resume: whether the training resumes from the folder; otherwise earlier files are moved, see `set_aside`.
    """

    def __init__(
        self,
        folder: str | Path,
        data: Mapping[str, Sequence[Record]],
        evaluator: Engine | None = None,
        resume: bool = True,
    ) -> None:
        self.folder, self.data, self.evaluator, self.resume = Path(folder), data, evaluator, resume
        workflow = running_workflow()
        # A weak reference, because the log ends with the workflow.
        self.workflow = None if workflow is None else weakref.ref(workflow)
        self.rows: list[dict[str, Any]] | None = None
        self.epoch_start = 0.0

    def attach(self, engine: Engine) -> None:
        if is_writer():
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def _start(self, engine: Engine) -> None:
        if not self.resume and engine.state.iteration == 0 and self.rows is None:
            set_aside(self.folder)

    def _begin(self, engine: Engine) -> None:
        if self.rows is None:
            self.rows = _earlier_rows(self.folder / EPOCHS, engine.state.epoch)
            workflow = None if self.workflow is None else self.workflow()
            claim(self.folder, TRAINED, bundle_name(workflow))
            describe_run(self.folder, self.data, workflow, engine.state.epoch)
        self.epoch_start = time.monotonic()

    def _end(self, engine: Engine) -> None:
        row = {"epoch": engine.state.epoch, "seconds": time.monotonic() - self.epoch_start}
        row |= {"learning_rate": learning_rate(engine)} | _numbers(engine)
        if self.evaluator is not None and just_validated(engine, self.evaluator):
            row |= _numbers(self.evaluator)
        rows = self.rows = [*(self.rows or []), row]
        names = list(dict.fromkeys(name for values in rows for name in values))
        write_csv(self.folder / EPOCHS, names, [[values.get(name, "") for name in names] for values in rows])


def _numbers(engine: Engine) -> dict[str, float]:
    return {name: float(value) for name, value in engine.state.metrics.items()}


def _earlier_rows(path: Path, epoch: int) -> list[dict[str, Any]]:
    """The rows of a table for the epochs before `epoch`."""
    if not path.is_file():
        return []
    try:
        columns = read_csv(path)
        return [
            {name: values[row] for name, values in columns.items()}
            for row, number in enumerate(columns["epoch"])
            if int(number) < epoch
        ]
    except (ValueError, KeyError, IndexError) as error:
        raise bad_file(path, "is not the table of a training", "move it to another folder") from error
