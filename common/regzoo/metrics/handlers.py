"""MONAI's handlers for the metrics of a bundle's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import NamedTuple

from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler, from_engine
from regzoo.errors import RegZooError
from regzoo.metrics.base import CaseMetric, Compared

#: Prefix of the name of a metric that measures the unregistered pair.
BEFORE = "before_"
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
    """MONAI's handler, but an iteration without a case, as after a failure, adds no value."""

    def iteration_completed(self, engine: Engine) -> None:
        if engine.state.output:
            super().iteration_completed(engine)


def _handler(metric: CaseMetric, compared: Compared) -> IgniteMetricHandler:
    return _Handler(metric, output_transform=from_engine(list(compared)), save_details=True)
