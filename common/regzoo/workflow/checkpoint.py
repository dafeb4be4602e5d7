"""Checkpoints that survive a kill at any moment, and weights that are never loaded in silence onto another network."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from regzoo.errors import bad_file
from regzoo.files import atomic_path, make_folder
from regzoo.report.engine import is_writer

logger = logging.getLogger(__name__)


def bare(network: nn.Module) -> nn.Module:
    """The network inside a `DistributedDataParallel` or compiled wrapper."""
    inner = getattr(network, "module", network)
    return getattr(inner, "_orig_mod", inner)


def read_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a file written by `torch.save`, tensors and plain values only.

    Raises:
        RegZooError: missing or damaged file.
    """
    if not Path(path).is_file():
        raise bad_file(path, "no such checkpoint", "train first, or name a file with --checkpoint")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise bad_file(path, "cannot be read as a checkpoint", "copy it again, or name another one") from error
    if not isinstance(content, dict):
        raise bad_file(path, "holds no state dict", "name a file of weights")
    return content


def load_weights(network: nn.Module, path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Load the weights of a network strictly, from a plain state dict or a training checkpoint, and return it.

    Raises:
        RegZooError: missing or damaged file, or weights of another network.
    """
    content = read_checkpoint(path, device)
    state = content.get("network", content)
    try:
        bare(network).load_state_dict(state, strict=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise bad_file(
            path,
            f"holds the weights of another network than this {type(bare(network)).__name__}",
            "use the configuration it was trained with (channels, variant overlay), or another file",
        ) from error
    return network


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write the weights of a network as a plain float32 state dict on the CPU, atomically."""
    state = {name: value.detach().cpu() for name, value in bare(network).state_dict().items()}
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


class TrainingCheckpoint:
    """Ignite handler of a trainer: resumes it, keeps the last epoch's state and the best weights.

    Attach it after the validation and learning-rate handlers. At the end of every epoch it writes ``last.pt`` (network,
    the other objects, epoch, best metric) and, after a validation with a new best key metric, ``best_file`` (weights
    alone). Files are written under another name and renamed, which MONAI's `CheckpointSaver` does not do, so a kill
    leaves the previous file whole. With `TwoStageSampler` a resumed training ends in the same weights on the CPU.

    Args:
        folder: where ``last.pt`` goes.
        network: the trained network.
        objects: name → anything else with a state dict, such as the optimiser and the schedule.
        evaluator: MONAI evaluator whose key metric picks the best weights; without one the latest weights are kept.
        best_file: where the best weights go; ``<folder>/model.pt`` if None.
        resume: continue from ``last.pt`` if there is one.
        interval: write ``last.pt`` every so many epochs, and after the last one.
    """

    def __init__(
        self,
        folder: str | Path,
        network: nn.Module,
        objects: Mapping[str, Any] | None = None,
        evaluator: Engine | None = None,
        best_file: str | Path | None = None,
        resume: bool = True,
        interval: int = 1,
    ) -> None:
        self.folder = Path(folder)
        self.network = network
        self.objects = dict(objects or {})
        self.evaluator = evaluator
        self.best_file = Path(best_file) if best_file else self.folder / "model.pt"
        self.resume = resume
        self.interval = interval
        make_folder(self.folder)

    @property
    def last_file(self) -> Path:
        return self.folder / "last.pt"

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def restore(self, engine: Engine) -> None:
        """Load ``last.pt`` into the network, the objects and the engine."""
        if not self.resume or not self.last_file.is_file():
            return
        device = next(self.network.parameters()).device
        load_weights(self.network, self.last_file, device)
        content = read_checkpoint(self.last_file, device)
        try:
            for name, value in self.objects.items():
                value.load_state_dict(content["objects"][name])
            engine.state.epoch = content["epoch"]
            engine.state.iteration = content["iteration"]
            if self.evaluator is not None:
                self.evaluator.state.best_metric = content["best_metric"]
                self.evaluator.state.best_metric_epoch = content["best_metric_epoch"]
        except (KeyError, ValueError, RuntimeError) as error:
            raise bad_file(
                self.last_file,
                "was written by another training configuration",
                "train with that configuration, name another --output_dir, or start anew with --resume False",
            ) from error
        logger.info("resumed from %s at epoch %d", self.last_file, content["epoch"])

    def save(self, engine: Engine) -> None:
        """Write the best weights if this epoch's are, then the state to resume from."""
        if not is_writer():
            return
        epoch = engine.state.epoch
        if self._is_best(engine):
            save_weights(self.network, self.best_file)
        if epoch % self.interval and epoch != engine.state.max_epochs:
            return
        content: dict[str, Any] = {
            "network": bare(self.network).state_dict(),
            "objects": {name: value.state_dict() for name, value in self.objects.items()},
            "epoch": epoch,
            "iteration": engine.state.iteration,
        }
        if self.evaluator is not None:
            content["best_metric"] = float(self.evaluator.state.best_metric)
            content["best_metric_epoch"] = int(self.evaluator.state.best_metric_epoch)
        with atomic_path(self.last_file) as temporary:
            torch.save(content, temporary)

    def _is_best(self, engine: Engine) -> bool:
        if self.evaluator is None:
            return True
        best = self.evaluator.state.best_metric_epoch
        # A training too short for its first validation still leaves weights.
        return best == engine.state.epoch or (best < 0 and engine.state.epoch == engine.state.max_epochs)
