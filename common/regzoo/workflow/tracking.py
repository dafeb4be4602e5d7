"""What MONAI's ``--tracking mlflow`` leaves to us."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from regzoo.report import summary_figure
from regzoo.report.engine import is_writer
from regzoo.workflow.record import describe_run
from regzoo.workflow.running import running_workflow

# MLflow tells its makers how it is used. Whoever trains on patients' images has to ask for that.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


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
    for handler in handlers:
        if hasattr(handler, "close"):
            handler.close()
