"""Early stopping, and the schedule of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from monai.handlers import LrScheduleHandler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


def key_metric(evaluator: Engine) -> Callable[[Engine], float]:
    """A score function for handlers of a trainer: the key metric of the latest validation, NaN before the first."""

    def latest(engine: Engine) -> float:
        return float(evaluator.state.metrics.get(evaluator.state.key_metric_name, math.nan))

    return latest


def just_validated(engine: Engine, evaluator: Engine) -> bool:
    """Whether the trainer's current epoch has been validated."""
    return bool(evaluator.state.epoch == engine.state.epoch)


class Schedule(LrScheduleHandler):
    """MONAI's learning-rate handler, extended to any schedule.

    A schedule that follows the key metric is stepped after each validation, any other after each iteration. Attach the
    handler after the validation.

    Args:
        evaluator: a MONAI evaluator with a key metric.
        early_stopping: attached after the schedule. A configuration does not list it as a handler, because the handler
            that saves its state refers to it, and MONAI Label adds handlers of its own to the list.
    """

    def __init__(self, lr_scheduler: LRScheduler, evaluator: Engine, early_stopping: EarlyStop | None = None) -> None:
        self.follows = isinstance(lr_scheduler, ReduceLROnPlateau)
        step = {"step_transform": key_metric(evaluator)} if self.follows else {}
        super().__init__(lr_scheduler, print_lr=False, epoch_level=self.follows, **step)
        self.evaluator = evaluator
        self.early_stopping = early_stopping

    def attach(self, engine: Engine) -> None:
        super().attach(engine)
        if self.early_stopping is not None:
            self.early_stopping.attach(engine)

    def __call__(self, engine: Engine) -> None:
        """Step, unless the schedule waits for a validation."""
        if not self.follows or just_validated(engine, self.evaluator):
            super().__call__(engine)


class EarlyStop(EarlyStopping):
    """Ignite handler of a trainer: ends the training when the key metric has not risen for some validations.

    Attach it after the validation. Unlike MONAI's `EarlyStopHandler`, it has a state, so a resumed training ends at the
    same epoch as an uninterrupted one.

    Args:
        patience: validations to wait; 0 never ends the training.
        evaluator: a MONAI evaluator with a key metric that increases as the training improves.
    """

    def __init__(self, patience: int, evaluator: Engine) -> None:
        # Ignite requires a trainer here, but the trainer is made from its handlers; `attach` replaces this one.
        super().__init__(max(patience, 1), key_metric(evaluator), Engine(lambda engine, batch: None))
        self.active = patience > 0
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        self.trainer = engine
        if self.active:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)
            engine.add_event_handler(Events.EPOCH_STARTED, self._stay_stopped)

    def __call__(self, engine: Engine) -> None:
        """Compare and count, if there is a new validation."""
        if just_validated(engine, self.evaluator):
            super().__call__(engine)

    def _stay_stopped(self, engine: Engine) -> None:
        """End a training that is started again after it was stopped."""
        if self.counter >= self.patience:
            engine.terminate()
