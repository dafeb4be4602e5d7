"""Handlers that log a training to TensorBoard and to the screen, in addition to those of MONAI and Ignite."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from regzoo.case import REFERENCE, UNREGISTERED, WARPED, Key
from regzoo.engines.divergence import DivergenceCheck, first_few, non_finite, stop_if_any
from regzoo.engines.weights import unwrap
from regzoo.errors import RegZooError
from regzoo.losses import RegistrationLoss
from regzoo.report.engine import cases_of, is_writer
from regzoo.spatial import as_tensor
from scipy.ndimage import binary_erosion
from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

_FIXED, _PROPAGATED = (0.21, 0.82, 1.0), (1.0, 0.37, 0.69)  # as in the quality-control picture


class EventWriter:
    """The TensorBoard file of a run, shared by its handlers and opened with the first value.

    Opening it discards the values that earlier files of the folder have for this and later steps: a resumed training
    repeats the epoch in which it was killed, and a training that starts again starts its curves again.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(folder)
        self.writer: SummaryWriter | None = None

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write a value of a curve."""
        self._opened(step).add_scalar(tag, value, step)

    def add_image(self, tag: str, picture: np.ndarray, step: int) -> None:
        """Write a picture (C, Y, X)."""
        self._opened(step).add_image(tag, picture, step)

    def flush(self) -> None:
        """Write buffered values to the disk."""
        if self.writer is not None:
            self.writer.flush()

    def _opened(self, step: int) -> SummaryWriter:
        if self.writer is None:
            self.writer = SummaryWriter(self.folder, purge_step=step)
        return self.writer


class LossTerms:
    """Ignite handler of a trainer: logs the loss and each term of a `RegistrationLoss`, as means over the epoch.

    TensorBoard gets ``loss/<name>``, and ``weight/<name>`` for a term whose weight is learned. Values stay on the
    device until the epoch ends, so the training loop never waits; MONAI's handlers fetch the loss in every step.

    It also stops a training whose loss, terms or weights become NaN or infinite, in the same epoch and before its
    validation, see `DivergenceCheck`.

    Later handlers, such as MONAI's `MLFlowHandler`, find the means among the engine's metrics. They expect a decollated
    list as the output of a step, so the output is wrapped in a list; decollating it would cost time in every step.

    Raises:
        RegZooError: the training diverges, or starts from weights that are not finite.
    """

    def __init__(self, loss: RegistrationLoss, writer: EventWriter) -> None:
        loss.listeners.append(self._keep_terms)
        self.writer = writer
        self.step: dict[str, torch.Tensor] = {}
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0
        self.check = DivergenceCheck()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _clear(self, engine: Engine) -> None:
        """Discard the values of an interrupted epoch, and check the weights."""
        self.sums.clear()
        self.count = 0
        self.check.waiting.clear()
        if names := non_finite(_weights(engine)):
            problem = f"{first_few(names)} hold NaN or infinity before the first step"
            raise RegZooError(f"{problem}; start from other weights")

    def _keep_terms(self, values: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
        self.step = {f"loss/{name}": value for name, value in values.items()}
        self.step |= {f"weight/{name}": value for name, value in weights.items()}

    def _add(self, engine: Engine) -> None:
        self.count += 1
        output = engine.state.output
        values = {"loss/total": output["loss"].detach(), **self.step}
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        engine.state.output = [output]
        epoch, last = engine.state.epoch, self.count == engine.state.epoch_length
        self.check.add(values, epoch, self.count, learning_rate(engine), last)
        if last:
            stop_if_any(non_finite(_weights(engine)), f"epoch {epoch}, step {self.count}", learning_rate(engine))

    def _write(self, engine: Engine) -> None:
        means = {name: float(value) / self.count for name, value in self.sums.items()}
        engine.state.metrics.update(means)
        if not is_writer():
            return
        for name, value in means.items():
            self.writer.add_scalar(name, value, engine.state.epoch)
        self.writer.add_scalar("learning_rate", learning_rate(engine), engine.state.epoch)
        self.writer.flush()
        losses, weights = (
            ", ".join(f"{name.removeprefix(kind)} {means[name]:.4f}" for name in means if name.startswith(kind))
            for kind in ("loss/", "weight/")
        )
        text = losses + ("; weights: " + weights if weights else "")
        done, wanted = engine.state.epoch, engine.state.max_epochs
        left = timedelta(seconds=round((wanted - done) * engine.state.times[Events.EPOCH_COMPLETED.name]))
        logger.info("epoch %d/%d: loss %s; %s left", done, wanted, text, left)


def learning_rate(engine: Engine) -> float:
    return float(engine.optimizer.param_groups[0]["lr"])


def _weights(engine: Engine) -> dict[str, torch.Tensor]:
    """All weights and running statistics of the trained network, by name."""
    network = getattr(engine, "network", None)
    return {} if network is None else {f"the weights {k}": v for k, v in unwrap(network).state_dict().items()}


class ValidationImages:
    """Ignite handler of an evaluator: writes the middle slice of its first case to TensorBoard.

    Side by side: fixed, unregistered moving and warped moving image, each scaled to its own range. Without a warped
    image, the third is the fixed image with the outlines of the fixed (cyan) and the propagated labels (pink).
    """

    def __init__(self, writer: EventWriter) -> None:
        self.writer = writer

    def attach(self, engine: Engine) -> None:
        # MONAI's evaluator restarts its count of iterations in every run.
        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda _, event: event == 1), self)

    def __call__(self, engine: Engine) -> None:
        """Write the picture of the current iteration."""
        if not is_writer():
            return
        case = cases_of(engine)[0]
        views = {"fixed": REFERENCE, "unregistered": UNREGISTERED, "warped": WARPED}
        present = {name: case[view.image] for name, view in views.items() if view.image in case}
        panels = {name: _scaled(_middle(image[:1])) for name, image in present.items()}
        if case.get(Key.LABELS_PREDICTED):
            panels = {name: panel.repeat(3, axis=0) for name, panel in panels.items()}
            panels["propagated"] = panels["fixed"].copy()
            for view, color in ((REFERENCE, _FIXED), (WARPED, _PROPAGATED)):
                if view.label in case:
                    masks = _middle(case[view.label]) >= 0.5
                    inner_border = np.any([mask & ~binary_erosion(mask) for mask in masks], axis=0)
                    panels["propagated"][:, inner_border] = np.reshape(color, (3, 1))
        if panels:
            picture = np.concatenate(list(panels.values()), axis=2)
            self.writer.add_image(" | ".join(panels), picture, engine.state.epoch)
            self.writer.flush()


def _middle(volume: torch.Tensor) -> np.ndarray:
    """The middle slice across the last axis as a picture: (C, X, Y, Z) → (C, Y, X), the second axis upwards."""
    array = as_tensor(volume).float().cpu().numpy()
    return np.ascontiguousarray(array[..., array.shape[-1] // 2].swapaxes(1, 2)[:, ::-1])


def _scaled(picture: np.ndarray) -> np.ndarray:
    """A picture scaled to [0, 1], with black and white at the 1st and 99th percentile."""
    low, high = np.percentile(picture, (1, 99))
    return np.clip((picture - low) / max(high - low, 1e-6), 0, 1)
