"""What a training writes to TensorBoard and to the screen beside what MONAI's and Ignite's handlers do."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter

from regzoo.losses import RegistrationLoss
from regzoo.report.engine import cases_of, is_writer
from regzoo.spatial import plain

logger = logging.getLogger(__name__)


class LossTerms:
    """Ignite handler of a trainer: logs the loss and each term of a `RegistrationLoss`, mean over the epoch.

    Values stay on the device until the epoch ends, so the training loop is never held up; MONAI's handlers fetch the
    loss in every step.

    Args:
        loss: the loss of the trainer.
        log_dir: TensorBoard folder.
    """

    def __init__(self, loss: RegistrationLoss, log_dir: str | Path) -> None:
        self.loss = loss
        self.log_dir = str(log_dir)
        self.writer: SummaryWriter | None = None
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _add(self, engine: Engine) -> None:
        self.count += 1
        for name, value in {"total": engine.state.output["loss"].detach(), **self.loss.last}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()

    def _write(self, engine: Engine) -> None:
        means = {name: float(value) / self.count for name, value in self.sums.items()}
        self.sums.clear()
        self.count = 0
        if not is_writer():
            return
        if self.writer is None:
            self.writer = SummaryWriter(self.log_dir)
        for name, value in means.items():
            self.writer.add_scalar(f"loss/{name}", value, engine.state.epoch)
        rate = engine.optimizer.param_groups[0]["lr"]
        self.writer.add_scalar("learning_rate", rate, engine.state.epoch)
        self.writer.flush()
        terms = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
        logger.info("epoch %d/%d: loss %s", engine.state.epoch, engine.state.max_epochs, terms)


class ValidationImages:
    """Ignite handler of an evaluator: writes the middle slice of its first case to TensorBoard.

    Side by side: fixed, unregistered moving and warped moving image, each scaled to its own range.

    Args:
        log_dir: TensorBoard folder.
    """

    def __init__(self, log_dir: str | Path) -> None:
        self.log_dir = str(log_dir)
        self.writer: SummaryWriter | None = None

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        # MONAI's evaluator counts its iterations anew in every run.
        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda _, event: event == 1), self)

    def __call__(self, engine: Engine) -> None:
        """Write the picture of the current iteration."""
        if not is_writer():
            return
        if self.writer is None:
            self.writer = SummaryWriter(self.log_dir)
        case = cases_of(engine)[0]
        slices = []
        for key in ("reference_image", "unregistered_image", "warped_image"):
            volume = plain(case[key])[0].float().cpu().numpy()
            middle = np.flipud(volume[:, :, volume.shape[2] // 2].T)
            low, high = np.percentile(middle, (1, 99))
            slices.append(np.clip((middle - low) / max(high - low, 1e-6), 0, 1))
        self.writer.add_image("fixed | unregistered | warped", np.hstack(slices)[None], engine.state.epoch)
        self.writer.flush()
