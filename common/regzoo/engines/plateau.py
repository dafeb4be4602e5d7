"""What a training does when it no longer gets better, and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from monai.handlers import LrScheduleHandler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


def key_metric(evaluator: Engine) -> Callable[[Engine], float]:
    """The key metric of the latest validation, as handlers of a trainer ask for it (with the trainer, not used).

    NaN before the first validation.

    Args:
        evaluator: a MONAI evaluator with a key metric.
    """

    def latest(engine: Engine) -> float:
        return float(evaluator.state.metrics.get(evaluator.state.key_metric_name, math.nan))

    return latest


def just_validated(engine: Engine, evaluator: Engine) -> bool:
    """Whether a validation has followed the epoch that a trainer has come to."""
    return bool(evaluator.state.epoch == engine.state.epoch)


class Schedule(LrScheduleHandler):
    """MONAI's handler of a trainer for the learning rate: whatever the schedule, it is stepped when it wants to be.

    One that follows the key metric is stepped after each validation, any other after each iteration. Attach it after
    the validation.

    Args:
        lr_scheduler: the schedule.
        evaluator: a MONAI evaluator with a key metric.
        early_stopping: attached after the schedule. In a configuration it is no handler by itself, because others, such
            as the one that saves its state, refer to it, and MONAI Label puts handlers of its own into the list.
    """

    def __init__(self, lr_scheduler: LRScheduler, evaluator: Engine, early_stopping: EarlyStop | None = None) -> None:
        self.follows = isinstance(lr_scheduler, ReduceLROnPlateau)
        step = {"step_transform": key_metric(evaluator)} if self.follows else {}
        super().__init__(lr_scheduler, print_lr=False, epoch_level=self.follows, **step)
        self.evaluator = evaluator
        self.early_stopping = early_stopping

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        super().attach(engine)
        if self.early_stopping is not None:
            self.early_stopping.attach(engine)

    def __call__(self, engine: Engine) -> None:
        """Step, unless there is nothing new."""
        if not self.follows or just_validated(engine, self.evaluator):
            super().__call__(engine)


class EarlyStop(EarlyStopping):
    """Ignite handler of a trainer: ends the training when the key metric has not risen for some validations.

    Attach it after the validation. Unlike MONAI's `EarlyStopHandler` it has a state, so that a resumed training ends
    where it would have ended.

    Args:
        patience: validations to wait; 0 for ever.
        evaluator: a MONAI evaluator with a key metric, of which more is better.
    """

    def __init__(self, patience: int, evaluator: Engine) -> None:
        # Ignite wants the trainer at once, which is made from its handlers; `attach` brings the right one.
        super().__init__(max(patience, 1), key_metric(evaluator), Engine(lambda engine, batch: None))
        self.active = patience > 0
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        self.trainer = engine
        if self.active:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)
            engine.add_event_handler(Events.EPOCH_STARTED, self._stay_stopped)

    def __call__(self, engine: Engine) -> None:
        """Count, unless there is nothing new."""
        if just_validated(engine, self.evaluator):
            super().__call__(engine)

    def _stay_stopped(self, engine: Engine) -> None:
        """A training that has ended here does not go on by being started again."""
        if self.counter >= self.patience:
            engine.terminate()
