"""Checkpoints that survive a kill at any moment, and weights that are never loaded in silence onto another network."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from regzoo.errors import bad_file
from regzoo.files import atomic_path, make_folder
from regzoo.report.engine import is_writer
from regzoo.workflow.divergence import first_few, flat_tensors, non_finite, stop_if_any
from torch import nn

logger = logging.getLogger(__name__)


def bare(network: nn.Module) -> nn.Module:
    """The network inside a `DistributedDataParallel` or compiled wrapper."""
    inner = getattr(network, "module", network)
    return getattr(inner, "_orig_mod", inner)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file written by `torch.save` onto the CPU, tensors and plain values only.

    Raises:
        RegZooError: missing or damaged file.
    """
    if not Path(path).is_file():
        raise bad_file(path, "no such checkpoint", "train first, or name a file with --checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged file leads it to
        raise bad_file(path, "cannot be read as a checkpoint", "copy it again, or name another one") from error
    if not isinstance(content, dict):
        raise bad_file(path, "holds no state dict", "name a file of weights")
    return content


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights of a network strictly, from a plain state dict or a training checkpoint, and return it.

    Raises:
        RegZooError: missing or damaged file, or weights of another network.
    """
    load_state(network, read_checkpoint(path), path)
    return network


def load_state(network: nn.Module, content: Mapping[str, Any], path: str | Path) -> None:
    """Load what `read_checkpoint` read from `path` into a network, strictly; NaN and infinite weights are refused."""
    state = content.get("network", content)
    if isinstance(state, Mapping) and (names := non_finite(state)):
        raise bad_file(path, f"holds NaN or infinity in {first_few(names)}", "use weights of a training that converged")
    try:
        bare(network).load_state_dict(state, strict=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise bad_file(
            path,
            f"holds the weights of another network than this {type(bare(network)).__name__}",
            "use the configuration it was trained with (channels, variant overlay), or another file",
        ) from error


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write the weights of a network as a plain float32 state dict on the CPU, atomically."""
    state = {name: value.detach().cpu() for name, value in bare(network).state_dict().items()}
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def is_lower(current: float, best: float) -> bool:
    """MONAI ``metric_cmp_fn`` for errors: lower is better, and any number is better than NaN."""
    return current < best or (math.isnan(best) and not math.isnan(current))


class TrainingCheckpoint:
    """Ignite handler of a trainer: resumes it, keeps the last epoch's state and the best weights.

    Attach it after the validation and learning-rate handlers. At the end of every epoch it writes ``last.pt`` (network,
    the other objects, epoch, best metric) and, after a validation with a new best key metric, ``model.pt`` (weights
    alone). Files are written under another name and renamed, which MONAI's `CheckpointSaver` does not do, so a kill
    leaves the previous file whole. With `TwoStageSampler` a resumed training ends in the same weights on the CPU.

    Args:
        folder: where the files go.
        network: the trained network.
        objects: name → anything else with a state dict, such as the optimiser and the schedule.
        evaluator: MONAI evaluator whose key metric picks the best weights. Without one, and as long as the metric is
            NaN, the latest weights are kept.
        settings: what makes this training what it is, as plain values; a training is not resumed with others.
        resume: continue from ``last.pt`` if there is one.
        serve_as: another file for the best weights, written when the training has ended well.
    """

    def __init__(
        self,
        folder: str | Path,
        network: nn.Module,
        objects: Mapping[str, Any] | None = None,
        evaluator: Engine | None = None,
        settings: Mapping[str, Any] | None = None,
        resume: bool = True,
        serve_as: str | Path | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.network = network
        self.objects = dict(objects or {})
        self.evaluator = evaluator
        # Through JSON, so that a tuple and a list, or 1 and 1.0, do not differ after they were read back.
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings or {})))
        self.resume = resume
        self.serve_as = serve_as

    @property
    def last_file(self) -> Path:
        return self.folder / "last.pt"

    @property
    def best_file(self) -> Path:
        return self.folder / "model.pt"

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, which there is once its data are in order."""
        make_folder(self.folder)
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        if self.serve_as is not None:
            engine.add_event_handler(Events.COMPLETED, self.serve)

    def restore(self, engine: Engine) -> None:
        """Load ``last.pt`` into the network, the objects and the engine.

        Only into an engine that has not trained yet: one that is run again, as by a federated client in each round,
        goes on with the weights it was given in between.

        Raises:
            RegZooError: the file is damaged, or was written by a training with other settings.
        """
        if not self.resume or engine.state.iteration > 0 or not self.last_file.is_file():
            return
        # On the CPU: each object moves its state where it belongs, and Adam's step counts belong on the CPU.
        content = read_checkpoint(self.last_file)
        mend = "train with those settings, name another --output_dir, or start anew with --resume False"
        before = content.get("settings", {})
        changed = sorted(
            key for key in before.keys() | self.settings.keys() if before.get(key) != self.settings.get(key)
        )
        if changed:
            raise bad_file(self.last_file, f"was written by a training with another {', '.join(changed)}", mend)
        load_state(self.network, content, self.last_file)
        try:
            for name, value in self.objects.items():
                value.load_state_dict(content["objects"][name])
            engine.state.epoch = content["epoch"]
            engine.state.iteration = content["iteration"]
            if self.evaluator is not None:
                self.evaluator.state.best_metric = content["best_metric"]
                self.evaluator.state.best_metric_epoch = content["best_metric_epoch"]
        except (KeyError, ValueError, RuntimeError) as error:
            raise bad_file(self.last_file, "was written by another kind of training", mend) from error
        logger.info("resumed from %s at epoch %d", self.last_file, content["epoch"])

    def save(self, engine: Engine) -> None:
        """Write the best weights if this epoch's are, then the state to resume from; nothing that is not finite.

        Raises:
            RegZooError: the weights or the state of the optimiser became NaN or infinite.
        """
        content: dict[str, Any] = {
            "network": bare(self.network).state_dict(),
            "objects": {name: value.state_dict() for name, value in self.objects.items()},
            "settings": self.settings,
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
        }
        if self.evaluator is not None:
            content["best_metric"] = float(self.evaluator.state.best_metric)
            content["best_metric_epoch"] = int(self.evaluator.state.best_metric_epoch)
        kept = {key: content[key] for key in ("network", "objects")}
        stop_if_any(non_finite(flat_tensors(kept, "last.pt")), f"epoch {engine.state.epoch}")
        if not is_writer():
            return
        if self._is_best(engine):
            save_weights(self.network, self.best_file)
        with atomic_path(self.last_file) as temporary:
            torch.save(content, temporary)

    def serve(self, engine: Engine) -> None:
        """Write the best weights where they are served from."""
        if self.serve_as is not None and is_writer() and self.best_file.is_file():
            with atomic_path(self.serve_as) as temporary:
                shutil.copyfile(self.best_file, temporary)
            logger.info("the best weights are in %s", self.serve_as)

    def _is_best(self, engine: Engine) -> bool:
        if self.evaluator is None:
            return True
        state = self.evaluator.state
        if state.best_metric_epoch > 0 and math.isnan(float(state.best_metric)):
            logger.warning(
                "no pair to validate on has what the key metric %s measures; %s keeps the latest weights",
                getattr(state, "key_metric_name", ""),
                self.best_file,
            )
            return True
        # A training too short for its first validation still leaves weights.
        short = state.best_metric_epoch < 0 and engine.state.epoch == engine.state.max_epochs
        return short or state.best_metric_epoch == engine.state.epoch
