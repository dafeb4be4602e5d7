"""The start and the end of an evaluation: its files, and its run in MLflow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from regzoo.engines.record import CONFIG, DATA, LOG, RUN, describe_run
from regzoo.engines.running import bundle_name, running_workflow
from regzoo.engines.streams import name_of
from regzoo.files import file_name
from regzoo.ownership import claim, settle
from regzoo.report import field_files, summary_figure
from regzoo.report.engine import is_writer

#: The files of an evaluation, besides the pictures and fields of cases.
TABLES = ("cases.csv", "labels.csv", "points.csv", "summary.csv", "summary.png", RUN, CONFIG, DATA, LOG)


def claim_evaluation(
    folder: str | Path, evaluator: Engine, pictures: int | None = None, learn2reg: bool = False
) -> None:
    """Claim the files of an evaluation before it runs, see `regzoo.ownership.claim`.

    Args:
        folder: the folder of the tables, the pictures and the record.
        evaluator: MONAI evaluator that is about to run.
        pictures: the largest number of pictures; None for a picture of each case.
        learn2reg: whether there will be fields, see `regzoo.report.Learn2RegFields`.
    """
    if is_writer():
        cases = evaluator.data_loader.dataset.data
        drawn = [f"{file_name(name_of(record))}.png" for record in cases] if pictures != 0 else []
        fields = field_files(cases).values() if learn2reg else ()
        claim(Path(folder), [*TABLES, *drawn, *fields], bundle_name(running_workflow()))


def finish_evaluation(evaluator: Engine, handlers: Iterable[Any], folder: str | Path) -> None:
    """Draw ``summary.png`` from ``cases.csv``, write the record of an evaluation, and end its run in MLflow.

    MONAI ends only the runs of trainings and inferences. If the evaluation's run stayed open, a later training that is
    tracked in the same place would continue it.

    Args:
        evaluator: MONAI evaluator; if it has not run, as on a federated client that stops early, nothing is drawn.
        handlers: its handlers; those with a ``close`` method are closed.
        folder: the folder of the evaluation's tables.

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
