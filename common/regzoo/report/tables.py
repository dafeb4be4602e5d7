"""Tables of an evaluation: one row per case, one row per label, and a summary."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from monai.engines import IterationEvents
from monai.utils import string_list_all_gather
from regzoo.case import REFERENCE, UNREGISTERED, WARPED, Key
from regzoo.files import write_text
from regzoo.metrics.base import affine_of
from regzoo.metrics.handlers import BEFORE
from regzoo.metrics.labels import centroid_distances, dice
from regzoo.metrics.points import point_distances
from regzoo.report.engine import cases_of, is_writer
from regzoo.spatial import as_tensor
from regzoo.transforms.load import label_number

if TYPE_CHECKING:
    from ignite.engine import Engine

#: The percentiles usually reported with the median (Hu et al. 2018, Table 1).
PERCENTILES = (10, 25, 75, 90)


def write_csv(path: str | PathLike[str], header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file atomically; NaN becomes an empty cell, and floats keep six significant digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[_cell(value) for value in row] for row in rows])
    write_text(path, text.getvalue())


def read_csv(path: str | PathLike[str]) -> dict[str, list[str]]:
    """Columns of a CSV file written by `write_csv`, as text."""
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        header, *rows = list(csv.reader(file))
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


class Table:
    """Handler of a MONAI evaluator that collects one text per case, and writes a table when the run ends."""

    def __init__(self, output_dir: str | PathLike[str]) -> None:
        self.output_dir = Path(output_dir)
        self._texts: list[str] = []

    def attach(self, engine: Engine) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: self._texts.clear())
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._describe)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _describe(self, engine: Engine) -> None:
        self._new = [self._text(item) for item in cases_of(engine)]

    def _collect(self, engine: Engine) -> None:
        if engine.state.output:  # the case has not failed elsewhere
            self._texts += self._new

    def _finish(self, engine: Engine) -> None:
        # A process without cases sends "".
        texts = [text for text in string_list_all_gather(self._texts) if text]
        if is_writer():
            self._write(engine, texts)

    def _text(self, item: Mapping[str, Any]) -> str:
        raise NotImplementedError

    def _write(self, engine: Engine, texts: list[str]) -> None:
        raise NotImplementedError


class CaseTable(Table):
    """Ignite handler that writes all metrics of an evaluator when the run ends.

    ``cases.csv`` has a row per case and a column per metric; ``summary.csv`` has a row per metric, see
    `percentile_summary`. The summary is also printed, a metric ``X`` beside its unregistered counterpart ``before_X``.
    Attach it after the metrics, which need ``IgniteMetricHandler(save_details=True)``.

    Raises:
        RegZooError: the folder cannot be written to when the run ends.
    """

    def _text(self, item: Mapping[str, Any]) -> str:
        return str(item[Key.CASE])

    def _write(self, engine: Engine, texts: list[str]) -> None:
        columns = _columns(getattr(engine.state, "metric_details", None) or {}, len(texts))
        # With several ranks, a sampler may repeat cases to fill the last batch.
        kept = np.sort(np.unique(texts, return_index=True)[1])
        columns = {name: values[kept] for name, values in columns.items()}
        rows = [[texts[i], *(values[row] for values in columns.values())] for row, i in enumerate(kept)]
        write_csv(self.output_dir / "cases.csv", ["case", *columns], rows)
        summaries = {name: percentile_summary(values) for name, values in columns.items()}
        if summaries:
            header = ["metric", *next(iter(summaries.values()))]
            write_csv(self.output_dir / "summary.csv", header, [[n, *s.values()] for n, s in summaries.items()])
        print(summary_text(summaries, len(rows)), flush=True)


class RowTable(Table):
    """A table with rows for each case, such as one for each of its labels; the first column names the case.

    Attributes:
        FILE, HEADER: name and columns of the table.
        ALWAYS: whether there is a table without rows, too.
    """

    FILE: ClassVar[str]
    HEADER: ClassVar[Sequence[str]]
    ALWAYS: ClassVar[bool] = True

    def rows(self, item: Mapping[str, Any]) -> list[list[Any]]:
        """The rows of a case, without its name."""
        raise NotImplementedError

    def _text(self, item: Mapping[str, Any]) -> str:
        return json.dumps([str(item[Key.CASE]), self.rows(item)])

    def _write(self, engine: Engine, texts: list[str]) -> None:
        rows = [[case, *row] for case, rows in dict(map(json.loads, texts)).items() for row in rows]
        if rows or self.ALWAYS:
            write_csv(self.output_dir / self.FILE, self.HEADER, rows)
        else:
            (self.output_dir / self.FILE).unlink(missing_ok=True)


class LabelTable(RowTable):
    """Ignite handler that writes ``labels.csv``: a row per case and label, before and after registration.

    A case has rows if it has ``reference_label`` and ``warped_label``; it may have ``unregistered_label``, (C, X, Y, Z)
    on the fixed grid, and ``label_names`` or ``label_values``. The column ``label`` is the position of a label, from 0;
    see `label_names` for its ``name``. A label that is empty in the fixed image, or in the moving image both before and
    after registration, has no row. An empty cell means that the label is absent: a warped label without a distance has
    left the image.
    """

    FILE = "labels.csv"
    HEADER = (
        *("case", "label", "name", "distance_before_mm", "distance_after_mm", "dsc_before", "dsc_after"),
        *("volume_fixed_ml", "volume_before_ml", "volume_after_ml"),
    )

    def rows(self, item: Mapping[str, Any]) -> list[list[Any]]:
        fixed, before, warped = (item.get(view.label) for view in (REFERENCE, UNREGISTERED, WARPED))
        if fixed is None or warped is None:
            return []
        names = label_names(item, len(fixed))
        voxel = float(affine_of(fixed)[:3, :3].det().abs()) / 1000  # ml
        missing = [math.nan] * len(fixed)
        volumes = [
            missing if labels is None else (as_tensor(labels).sum(dim=(1, 2, 3), dtype=torch.float64) * voxel).tolist()
            for labels in (fixed, before, warped)
        ]
        compared = [
            missing if moving is None else measure(moving, fixed).tolist()
            for measure in (centroid_distances, dice)
            for moving in (before, warped)
        ]
        rows = []
        for label, values in enumerate(zip(*compared, *volumes, strict=True)):
            in_fixed, in_before, in_warped = values[-3:]
            if in_fixed and (in_before > 0 or in_warped > 0):
                rows.append([label, names[label], *values])
        return rows


def label_names(item: Mapping[str, Any], count: int) -> list[str]:
    """The names of the `count` labels of a case; those without a name are called as in messages."""
    names = [str(name) for name in item.get(Key.LABEL_NAMES) or ()][:count]
    return names + [label_number(item.get(Key.LABEL_VALUES), label) for label in range(len(names), count)]


class PointTable(RowTable):
    """Ignite handler that writes ``points.csv``: a row per case and point, before and after registration.

    Each case must have what `regzoo.transforms.CarryPointsd` adds. Without any point, there is no table. An empty cell
    means that there is no transformation to measure.
    """

    FILE = "points.csv"
    HEADER = ("case", "point", "distance_before_mm", "distance_after_mm")
    ALWAYS = False

    def rows(self, item: Mapping[str, Any]) -> list[list[Any]]:
        return point_rows(item)


def point_rows(item: Mapping[str, Any]) -> list[list[Any]]:
    """The name of each point of a case, and its distance before and after registration, mm."""
    distances = (point_distances(item[v.points], item[REFERENCE.points]).tolist() for v in (UNREGISTERED, WARPED))
    return [list(row) for row in zip(item[Key.POINT_NAMES], *distances, strict=True)]


def percentile_summary(values: Iterable[float]) -> dict[str, float | int]:
    """Summarise the values of a metric, one per case; NaN marks a case that could not be measured.

    Returns:
        ``n`` (measured), ``missing`` (NaN), ``mean``, ``std`` (of the sample, n − 1), ``median``, ``p10``, ``p25``,
        ``p75``, ``p90``; NaN where there are too few values.
    """
    everything = np.asarray(list(values), dtype=np.float64)
    known = everything[~np.isnan(everything)]
    names = ("mean", "std", "median", *(f"p{percent}" for percent in PERCENTILES))
    found = [math.nan] * len(names)
    if known.size:
        deviation = known.std(ddof=1) if known.size > 1 else math.nan
        found = [known.mean(), deviation, *np.percentile(known, (50, *PERCENTILES))]
    counts: dict[str, float | int] = {"n": known.size, "missing": everything.size - known.size}
    return counts | dict(zip(names, map(float, found), strict=True))


def summary_text(summaries: Mapping[str, Mapping[str, float]], cases: int) -> str:
    """The table that `CaseTable` prints: medians and percentiles, unregistered beside registered."""
    shown = ("median", "p10", "p25", "p75", "p90")
    names = [n for n in summaries if not (n.startswith(BEFORE) and n.removeprefix(BEFORE) in summaries)]
    # A metric that no case has, such as one of held-out labels, would be a line of dashes.
    measured = {name for name, summary in summaries.items() if summary["n"]}
    names = [n for n in names if {n, BEFORE + n} & measured]
    paired = any(BEFORE + name in summaries for name in names)
    prefixes = [BEFORE, ""] if paired else [""]
    width = max([len("metric"), *map(len, names)])
    title = f"{cases} case{'s' if cases != 1 else ''}".ljust(width)
    lines = []
    if paired:
        lines.append(f"{title}  {'unregistered':^40}  {'registered':^40}".rstrip())
    heading = "".join(f"{column:>8}" for column in shown)
    lines.append(("metric" if paired else title).ljust(width) + f"  {heading}" * len(prefixes))
    lines.append("-" * len(lines[-1]))
    for name in names:
        line = name.ljust(width)
        for prefix in prefixes:
            summary = summaries.get(prefix + name)
            line += "  " + "".join(f"{_short(summary[column]) if summary else '':>8}" for column in shown)
        lines.append(line.rstrip())
    return "\n".join(lines)


def _columns(details: Mapping[str, Any], cases: int) -> dict[str, np.ndarray]:
    """Metric name → values per case; a metric with several values per case becomes several columns."""
    columns = {}
    for name, buffer in details.items():
        values = as_tensor(torch.as_tensor(buffer)).double().cpu().numpy()
        values = values.reshape(len(values), -1)
        if len(values) != cases:
            raise ValueError(f"metric {name} has {len(values)} values for {cases} cases")
        if values.shape[1] == 1:
            columns[name] = values[:, 0]
        else:
            columns |= {f"{name}_{i}": values[:, i] for i in range(values.shape[1])}
    return columns


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def _short(value: float) -> str:
    """A number in at most seven characters."""
    if math.isnan(value):
        return "-"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}"
