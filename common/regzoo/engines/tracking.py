"""What MONAI's ``--tracking mlflow`` leaves to us."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from regzoo.engines.record import CONFIG, DATA, LOG, RUN, describe_run
from regzoo.engines.running import bundle_name, running_workflow
from regzoo.engines.streams import name_of
from regzoo.files import file_name
from regzoo.ownership import claim, settle
from regzoo.report import summary_figure
from regzoo.report.engine import is_writer

# MLflow tells its makers how it is used. Whoever trains on patients' images has to ask for that.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

#: What an evaluation leaves in its folder, beside the pictures of cases.
TABLES = ("cases.csv", "labels.csv", "summary.csv", "summary.png", RUN, CONFIG, DATA, LOG)


def claim_evaluation(folder: str | Path, evaluator: Engine, pictures: int | None = None) -> None:
    """Make sure, before the work, that an evaluation writes over nothing but an earlier one of the same bundle.

    Args:
        folder: where the tables, the pictures and the record go.
        evaluator: MONAI evaluator that is about to run; its weights are in order.
        pictures: of how many cases at most; all for None.

    Raises:
        RegZooError: see `regzoo.ownership.check_folder`.
    """
    if is_writer():
        drawn = (
            [f"{file_name(name_of(record))}.png" for record in evaluator.data_loader.dataset.data]
            if pictures != 0
            else []
        )
        claim(Path(folder), [*TABLES, *drawn], bundle_name(running_workflow()))


def finish_evaluation(evaluator: Engine, handlers: Iterable[Any], folder: str | Path) -> None:
    """The end of an evaluation: draws ``summary.png`` from ``cases.csv``, writes its record, ends its run in MLflow.

    MONAI ends the run of a training and of an inference only; a training that is tracked in the same place would go on
    in the run of the evaluation.

    Args:
        evaluator: MONAI evaluator; nothing is drawn if it has not run, as at a federated client that stops early.
        handlers: its handlers; those that can be closed are.
        folder: where the evaluation's tables are.

    Raises:
        RegZooError: the table cannot be read or has no metrics to draw.
    """
    if is_writer() and evaluator.state.iteration > 0:
        summary_figure(Path(folder) / "summary.png", Path(folder) / "cases.csv")
        describe_run(folder, {"evaluated": evaluator.data_loader.dataset.data}, running_workflow())
        settle(Path(folder))
    for handler in handlers:
        if hasattr(handler, "close"):
            handler.close()
