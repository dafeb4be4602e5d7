"""What a training does when it no longer gets better."""

from __future__ import annotations

import math
from collections.abc import Callable

from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping


def key_metric(evaluator: Engine) -> Callable[[Engine], float]:
    """The key metric of the latest validation, as handlers of a trainer ask for it (with the trainer, not used).

    NaN before the first validation.

    Args:
        evaluator: a MONAI evaluator with a key metric.
    """

    def latest(engine: Engine) -> float:
        return float(evaluator.state.metrics.get(evaluator.state.key_metric_name, math.nan))

    return latest


class EarlyStop(EarlyStopping):
    """Ignite handler of a trainer: ends the training when the key metric has not risen for some epochs.

    Attach it after the validation. Unlike MONAI's `EarlyStopHandler` it has a state, so that a resumed training ends
    where it would have ended.

    Args:
        patience: epochs to wait; 0 for ever.
        evaluator: a MONAI evaluator with a key metric, of which more is better.
    """

    def __init__(self, patience: int, evaluator: Engine) -> None:
        # Ignite wants the trainer at once, which is made from its handlers; `attach` brings the right one.
        super().__init__(max(patience, 1), key_metric(evaluator), Engine(lambda engine, batch: None))
        self.active = patience > 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        self.trainer = engine
        if self.active:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)
