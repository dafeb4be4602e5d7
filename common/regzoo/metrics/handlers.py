"""The metrics of a bundle's configuration as MONAI's handlers."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import NamedTuple

from monai.handlers import IgniteMetricHandler, from_engine
from regzoo.errors import RegZooError
from regzoo.metrics.base import CaseMetric, Compared

#: What the name of a metric of the unregistered case begins with.
BEFORE = "before_"
Handlers = dict[str, IgniteMetricHandler]


class MetricHandlers(NamedTuple):
    """Handlers by the names of their metrics, which are those of tables' columns and curves.

    Attributes:
        key: the key metric alone.
        additional: all others.
    """

    key: Handlers
    additional: Handlers


def metric_handlers(measures: Mapping[str, CaseMetric], key: str, before: bool = False) -> MetricHandlers:
    """MONAI's handlers of some metrics.

    Args:
        measures: name → metric.
        key: which of them is the key metric.
        before: measure the unregistered case as well, as ``before_<name>`` beside ``<name>``, where a metric can.

    Raises:
        RegZooError: there is no metric of the name `key`.
    """
    if key not in measures:
        raise RegZooError(f"key: no measure is called {key!r}; choose one of {', '.join(measures)}")
    handlers = Handlers()
    for name, metric in measures.items():
        handlers[name] = _handler(metric, metric.after)
        if before and metric.before is not None:
            handlers[BEFORE + name] = _handler(deepcopy(metric), metric.before)
    return MetricHandlers({key: handlers.pop(key)}, handlers)


def _handler(metric: CaseMetric, compared: Compared) -> IgniteMetricHandler:
    return IgniteMetricHandler(metric, output_transform=from_engine(list(compared)), save_details=True)
