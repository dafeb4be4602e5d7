"""MONAI's handlers for the metrics of a bundle's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, NamedTuple

import torch
from monai.engines import IterationEvents
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import IterationMetric
from regzoo.case import VIEWS, Key
from regzoo.errors import RegZooError
from regzoo.metrics.base import CaseMetric, Compared

if TYPE_CHECKING:
    from ignite.engine import Engine

#: Prefix of the name of a metric that measures the unregistered pair.
BEFORE = "before_"
#: What a case may lack.
LABELS = {key for view in VIEWS for key in (view.label, view.adhoc_label)}
Handlers = dict[str, IgniteMetricHandler]


class MetricHandlers(NamedTuple):
    """Handlers by metric name; table columns and curves have the same names.

    Attributes:
        key: the key metric.
        additional: all other metrics.
    """

    key: Handlers
    additional: Handlers


def metric_handlers(measures: Mapping[str, CaseMetric], key: str, before: bool = False) -> MetricHandlers:
    """Make MONAI's handler of each metric.

    Args:
        measures: name → metric.
        key: the name of the key metric.
        before: also measure the unregistered pair, as ``before_<name>``, with each metric that can.

    Raises:
        RegZooError: no metric is called `key`.
    """
    if key not in measures:
        raise RegZooError(f"key: no metric is called {key!r}; choose one of {', '.join(measures)}")
    handlers = Handlers()
    for name, metric in measures.items():
        handlers[name] = _handler(metric, metric.after)
        if before and metric.before is not None:
            handlers[BEFORE + name] = _handler(deepcopy(metric), metric.before)
    return MetricHandlers({key: handlers.pop(key)}, handlers)


class _Handler(IgniteMetricHandler):
    """MONAI's handler, but it measures a case before the iteration completes, while the case may still fail.

    An iteration without a case, as after a failure in this metric or elsewhere, adds no value. A case without a label
    that is compared, such as one that is evaluated by its points alone, has the value NaN.

    Attributes:
        labels: the labels that the metric compares.
    """

    labels: Sequence[str] = ()

    def attach(self, engine: Engine, name: str) -> None:
        super().attach(engine, name)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._measure)

    def _measure(self, engine: Engine) -> None:
        output = engine.state.output
        if isinstance(output, list) and any(key not in item for item in output for key in self.labels):
            self._values = torch.full((len(output), 1), torch.nan, device=engine.state.device)
            return
        try:
            self._values = IterationMetric.__call__(self.metric_fn, *self._output_transform(output))
        except RegZooError as error:
            cases = ", ".join(str(item.get(Key.CASE)) for item in engine.state.batch)
            raise RegZooError(f"{cases}: {self._name}: {error}") from None

    def iteration_completed(self, engine: Engine) -> None:
        if engine.state.output:
            self.metric_fn.extend(self._values)


def _handler(metric: CaseMetric, compared: Compared) -> IgniteMetricHandler:
    handler = _Handler(metric, output_transform=from_engine(list(compared)), save_details=True)
    handler.labels = [key for key in compared if key in LABELS]
    return handler
