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
from regzoo.files import atomic_path, make_folder
from regzoo.report.engine import is_writer
from torch import nn

logger = logging.getLogger(__name__)

#: Settings that are fingerprints of cases, and what those are for.
CASES = {"data": "train on", "validation": "validate on"}


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
        settings: what makes this training what it is, as plain values; a training is not resumed with others, nor with
            other steps to what the network sees (`regzoo.engines.origin.STEPS`). The cases of ``data`` and
            ``validation`` are `fingerprints`. The optimiser with its own settings, the kind of the schedule and the
            precision of the trainer are added.
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
        self.settings = _through_json(
            {**{name: _described(value) for name, value in self.objects.items()}, **(settings or {})}
        )
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
        # Weights alone have no settings; what else they lack is told below.
        before, now = content.get("settings", self.settings), self.settings
        was, is_ = (origin_.get("config", {}) for origin_ in (content.get("origin", {}), self.origin))
        shared = [step for step in STEPS if step in was and step in is_]
        if changed := differences(before | {s: was[s] for s in shared}, now | {s: is_[s] for s in shared}):
            raise bad_file(self.last_file, f"was written by a training with {changed}", mend)
        load_state(self.network, content, self.last_file)
        try:
            for name, value in self.objects.items():
                # The length of a schedule is how long the training is to be, not what it has come to.
                length = getattr(value, "t_total", None)
                value.load_state_dict(content["objects"][name])
                if length is not None and length != value.t_total:
                    logger.info("%s: planned for %s steps, now for %s", name, value.t_total, length)
                    value.t_total = length
            engine.state.epoch = content["epoch"]
            engine.state.iteration = content["iteration"]
            if self.evaluator is not None:
                self.evaluator.state.best_metric = content["best_metric"]
                self.evaluator.state.best_metric_epoch = content["best_metric_epoch"]
        except (KeyError, ValueError, RuntimeError) as error:
            raise bad_file(self.last_file, "was written by another kind of training", mend) from error
        logger.info("resumed from %s at epoch %d", self.last_file, content["epoch"])
        if self.settings.get("init_weights"):
            logger.info("it goes on with its own weights; those of --init_weights were its start")
        self._say_if_done(engine)

    def save(self, engine: Engine) -> None:
        """Write the best weights if this epoch's are, then the state to resume from; nothing that is not finite.

        Raises:
            RegZooError: the weights or the state of the optimiser became NaN or infinite.
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
        """Write the best weights where they are served from."""
        if self.serve_as is not None and is_writer() and self.best_file.is_file():
            with atomic_path(self.serve_as) as temporary:
                shutil.copyfile(self.best_file, temporary)
            logger.info("the best weights are in %s", self.serve_as)

    def _say_if_done(self, engine: Engine) -> None:
        done, wanted = engine.state.epoch, engine.state.max_epochs
        if wanted is not None and done >= wanted:
            logger.warning("%d of %d epochs done; raise --max_epochs to train on", done, wanted)

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


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How the settings of two trainings differ, in words; empty if they do not."""
    plain, parts = [], []
    for key in sorted(before.keys() | now.keys()):
        was, is_ = before.get(key), now.get(key)
        if key in CASES and was is not None and is_ is not None:
            if difference := data_difference(was, is_):
                parts.append(f"other cases to {CASES[key]}: {difference}")
        elif isinstance(was, dict) and isinstance(is_, dict):
            # An option that only one version of PyTorch knows does not count.
            plain += [f"{key} {name}" for name in sorted(was.keys() & is_.keys()) if was[name] != is_[name]]
        elif was != is_:
            plain.append(key)
    return " and ".join(([f"another {', '.join(plain)}"] if plain else []) + parts)


def _described(value: Any) -> Any:
    """What kind of optimiser, schedule or other object it is, and an optimiser's own settings."""
    defaults = value.defaults if isinstance(value, torch.optim.Optimizer) else {}
    return {"class": type(value).__name__, **defaults}


def _through_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """So that a tuple and a list, or 1 and 1.0, do not differ after they were read back."""
    return dict(json.loads(json.dumps(settings, default=str)))
