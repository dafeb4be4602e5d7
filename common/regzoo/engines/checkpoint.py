"""Checkpoints that survive a kill at any moment and are resumed only by the training that wrote them."""

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
from regzoo.engines.divergence import flat_tensors, non_finite, stop_if_any
from regzoo.engines.identity import data_difference
from regzoo.engines.origin import STEPS, origin
from regzoo.engines.weights import load_state, read_checkpoint, save_weights, unwrap
from regzoo.errors import bad_file
from regzoo.files import atomic_path
from regzoo.report.engine import is_writer
from torch import nn

logger = logging.getLogger(__name__)

#: Settings that hold fingerprints of cases → the words for them in an error.
CASES = {"data": "train on", "validation": "validate on"}


def is_lower(current: float, best: float) -> bool:
    """MONAI ``metric_cmp_fn`` for errors: lower is better, and any number is better than NaN."""
    return current < best or (math.isnan(best) and not math.isnan(current))


class TrainingCheckpoint:
    """Ignite handler of a trainer: resumes it, and keeps the last epoch's state and the best weights.

    Attach it after the validation and learning-rate handlers. At the end of every epoch it writes ``last.pt`` (network,
    the other objects, epoch, best metric) and, after a validation with a new best key metric, ``model.pt`` (weights
    alone). Files are written under a temporary name and renamed, so a kill leaves the previous file intact; MONAI's
    `CheckpointSaver` does not do this. With `TwoStageSampler`, a resumed training on the CPU ends with the same weights
    as an uninterrupted one.

    Args:
        objects: name → another object with a state dict, such as the optimiser and the schedule.
        evaluator: MONAI evaluator whose key metric picks the best weights. Without one, and while the metric is NaN,
            the latest weights are kept.
        settings: the settings that identify this training, as plain values. A training is resumed only with the same
            settings and the same parts (`regzoo.engines.origin.training_parts`). ``data`` and ``validation`` hold the
            `fingerprints` of the cases. The optimiser's settings, the kind of schedule and the precision are added.
        resume: continue from ``last.pt`` if it exists.
        serve_as: another file for the best weights, written when the training ends without an error.
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
        self.last_file, self.best_file = Path(folder) / "last.pt", Path(folder) / "model.pt"
        self.network = network
        self.objects = dict(objects or {})
        self.evaluator = evaluator
        kinds = {name: {"class": type(value).__name__} for name, value in self.objects.items()}
        for name, value in self.objects.items():
            kinds[name] |= value.defaults if isinstance(value, torch.optim.Optimizer) else {}
            kinds[name].pop("fused", None)  # a matter of the device
        # Through JSON, so that a tuple becomes a list and equals the one in a checkpoint.
        self.settings: dict[str, Any] = json.loads(json.dumps({**kinds, **(settings or {})}, default=str))
        self.resume = resume
        self.serve_as = serve_as

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if hasattr(engine, "amp"):
            dtype = (engine.amp_kwargs or {}).get("dtype", "its default") if engine.amp else torch.float32
            self.settings["precision"] = str(dtype).removeprefix("torch.")
        self.origin = origin(self.settings)
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        if self.serve_as is not None:
            engine.add_event_handler(Events.COMPLETED, self.serve)

    def restore(self, engine: Engine) -> None:
        """Load ``last.pt`` into the network, the objects and the engine.

        An engine that has already trained is left alone: a federated client runs it again in each round, with the
        weights that the client has received.

        Raises:
            RegZooError: the file is damaged, or was written by a training with other settings.
        """
        if not self.resume or engine.state.iteration > 0 or not self.last_file.is_file():
            return
        # Read onto the CPU: each object moves its own state to its device, and Adam's step counts stay on the CPU.
        content = read_checkpoint(self.last_file)
        fix = "train with those settings, name another output_dir, or set resume to False to start again"
        # A file of weights alone has no settings and no parts, and fails below.
        before, now = content.get("settings", self.settings), self.settings
        old, new = (
            {step: text for step, text in note.get("config", {}).items() if step in STEPS} | note.get("parts", {})
            for note in (content.get("origin", {}), self.origin)
        )
        shared = old.keys() & new.keys()
        if changed := differences(before | {s: old[s] for s in shared}, now | {s: new[s] for s in shared}):
            raise bad_file(self.last_file, f"was written by a training with {changed}", fix)
        load_state(self.network, content, self.last_file)
        try:
            for name, value in self.objects.items():
                # The length of a schedule is a plan for the whole training, not a state.
                length = getattr(value, "t_total", None)
                state = content["objects"][name]
                for group, own in zip(state.get("param_groups", ()), getattr(value, "param_groups", ()), strict=False):
                    group["fused"] = own.get("fused")
                value.load_state_dict(state)
                if length is not None and length != value.t_total:
                    logger.info("%s: planned for %s steps, now for %s", name, value.t_total, length)
                    value.t_total = length
            engine.state.epoch = content["epoch"]
            engine.state.iteration = content["iteration"]
            if self.evaluator is not None:
                self.evaluator.state.best_metric = content["best_metric"]
                self.evaluator.state.best_metric_epoch = content["best_metric_epoch"]
        except (KeyError, ValueError, RuntimeError) as error:
            raise bad_file(self.last_file, "was written by another kind of training", fix) from error
        logger.info("resumed from %s at epoch %d", self.last_file, content["epoch"])
        if self.settings.get("init_weights"):
            logger.info("the training goes on with its own weights; it had started from those of init_weights")
        done, wanted = engine.state.epoch, engine.state.max_epochs
        if wanted is not None and done >= wanted:
            logger.warning("%d of %d epochs done; raise max_epochs to train on", done, wanted)

    def save(self, engine: Engine) -> None:
        """Write the weights if they are the best so far, then the state to resume from.

        Raises:
            RegZooError: the weights or the state of the optimiser became NaN or infinite; nothing is written.
        """
        content: dict[str, Any] = {
            "network": unwrap(self.network).state_dict(),
            "objects": {name: value.state_dict() for name, value in self.objects.items()},
            "settings": self.settings,
            "origin": self.origin,
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
            save_weights(self.network, self.best_file, self.origin | {"epoch": engine.state.epoch})
        with atomic_path(self.last_file) as temporary:
            torch.save(content, temporary)

    def serve(self, engine: Engine) -> None:
        """Copy the best weights to the file that a server reads."""
        if self.serve_as is not None and is_writer() and self.best_file.is_file():
            with atomic_path(self.serve_as) as temporary:
                shutil.copyfile(self.best_file, temporary)
            logger.info("the best weights are in %s", self.serve_as)

    def _is_best(self, engine: Engine) -> bool:
        if self.evaluator is None:
            return True
        state = self.evaluator.state
        if state.best_metric_epoch > 0 and math.isnan(float(state.best_metric)):
            text = "the key metric %s could not be measured on any validation pair; %s keeps the latest weights"
            logger.warning(text, getattr(state, "key_metric_name", ""), self.best_file)
            return True
        # A training that ends before its first validation also writes weights.
        never_validated = state.best_metric_epoch < 0 and engine.state.epoch == engine.state.max_epochs
        return never_validated or state.best_metric_epoch == engine.state.epoch


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The differences between the settings of two trainings, in words; empty if there are none."""
    names, parts = [], []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if key in CASES and old is not None and new is not None:
            if difference := data_difference(old, new):
                parts.append(f"other cases to {CASES[key]}: {difference}")
        elif isinstance(old, dict) and isinstance(new, dict):
            # Options that only one version of PyTorch has are ignored.
            names += [f"{key} {name}" for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]
        elif old != new:
            names.append(key)
    return " and ".join(([f"another {', '.join(names)}"] if names else []) + parts)
