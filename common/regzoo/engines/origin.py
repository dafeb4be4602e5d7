"""The settings that weights were trained with: written with the weights, and used by evaluation and inference.

Weights are only valid for the grid, the intensities and the network of their training. So a training writes its
settings into the file of the weights. Evaluation and inference read these settings first, and refuse others.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import monai
import torch
from monai.bundle import ConfigParser
from regzoo import __version__
from regzoo.bundles import read_config
from regzoo.datasets import Record
from regzoo.engines.identity import refuse_shared
from regzoo.engines.options import command_line
from regzoo.engines.running import config_folder, running_workflow
from regzoo.engines.weights import origin_of, read_checkpoint
from regzoo.errors import bad_file

logger = logging.getLogger(__name__)

#: Settings that must equal those of the training: direction, grid, intensities, labels held out, and the network.
FIXED = (
    *("direction", "spacing", "size", "interpolation", "binarise", "percentile", "window", "inputs", "holdout"),
    *("channels", "labels", "kernel", "norm"),
    *("stride", "passes", "diffeomorphic", "integration_steps"),
)
#: Settings that depend on the images at hand: those of the training are used unless the user sets others.
USUAL = ("align", "region_label", "margin", "label_values")
#: Preprocessing steps that determine the network's input, so they must equal those of the training.
STEPS = ("units", "field_of_view", "resample", "intensity", "region_input")
#: Arguments of steps that set what a setting of `USUAL` stands for: an overlay or an option may change them directly.
ARGUMENTS = {"align": "alignment#method", "label_values": "load#label_values"}
#: Arguments of a step that may differ from those of the training: they select cases, labels and data to keep, and do
#: not change the network's input.
OF_ONE_USE = {"need", "label_values", "without", "keep_native"}
#: Parts of a configuration that overlays replace. They are compared but not adopted, because a file of weights must not
#: be able to run code.
PARTS = ("network_def", *STEPS)
#: Parts of a training that overlays and options replace, besides the steps of its preprocessing.
TRAINING_PARTS = (
    "augmentation",
    "lr_scheduler",
    "train#preprocessing",
    "validate#preprocessing",
    "train#sampler",
    "train#dataloader#batch_size",
)
#: Arguments of these that a resumed training may change: the length of its schedule, and a check of the files.
FREE = {"t_total", "strict_headers"}


def origin(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The note that a training writes with its weights, as plain values.

    Args:
        settings: the settings of the training, see `TrainingCheckpoint`.

    Returns:
        ``settings``; ``config``, the settings and parts of the running configuration that evaluation and inference also
        have (empty outside a workflow); ``parts`` that a resumption compares, see `training_parts`; ``versions`` of
        the packages.
    """
    workflow = running_workflow()
    versions = {"regzoo": __version__, "torch": str(torch.__version__), "monai": str(monai.__version__)}
    config = {} if workflow is None else described(workflow.parser)
    parts = {} if workflow is None else training_parts(workflow.parser, settings)
    return {"settings": dict(settings), "config": config, "parts": parts, "versions": versions}


def described(parser: ConfigParser) -> dict[str, Any]:
    """The settings of a configuration in `FIXED` and `USUAL`, and its `PARTS` as text."""
    found = {key: parser[key] for key in (*FIXED, *USUAL) if key in parser.config}
    for key, argument in ARGUMENTS.items():
        if key in found and argument in parser:
            found[key] = parser[key] if parser[argument] == f"@{key}" else parser[argument]
        elif argument.partition("#")[0] in parser.config:
            found.pop(key, None)  # the step was replaced by one without this argument
    return found | {key: _text(parser, step_of(parser[key])) for key in PARTS if key in parser.config}


def training_parts(parser: ConfigParser, settings: Collection[str]) -> dict[str, str]:
    """The steps of a training's preprocessing, except `STEPS`, and its `TRAINING_PARTS`, as text.

    References to other parts, and to the `settings` that the training records, stay references, because those are
    compared separately.
    """
    lists = [parser.get(f"{run}#preprocessing#transforms", None) for run in ("train", "validate")]
    steps = {str(step)[1:] for found in lists if isinstance(found, list) for step in found if str(step)[:1] == "@"}
    names = sorted(name for name in {*TRAINING_PARTS, *steps} - {*STEPS} if name in parser)
    return {name: _text(parser, step_of(parser[name], FREE), {*names, *STEPS, *settings}) for name in names}


def step_of(section: Any, left_out: Collection[str] = OF_ONE_USE) -> Any:
    """A step of a configuration without some of its arguments."""
    return {k: v for k, v in section.items() if k not in left_out} if isinstance(section, Mapping) else section


def _text(parser: ConfigParser, value: Any, kept: Collection[str] = ()) -> str:
    """A part of a configuration as text; references to settings, except those `kept`, are replaced by their values."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(parser, entry, kept)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_text(parser, entry, kept) for entry in value) + "]"
    if isinstance(value, str) and re.fullmatch(r"@\w+", value) and value[1:] in parser.config.keys() - {*kept}:
        return _text(parser, parser[value[1:]], kept)
    return str(value)


def as_trained(checkpoint: str | PathLike[str]) -> None:
    """Give the running configuration the settings its weights were trained with; called by its ``initialize``.

    Args:
        checkpoint: the file of the weights. A file that is missing or has no note changes nothing.

    Raises:
        RegZooError: the configuration contradicts the training.
    """
    workflow = running_workflow()
    if workflow is None:
        return
    parser = workflow.parser
    first = "train.json" if "train" in parser.config else "inference.json"
    adopt(parser, checkpoint, config_folder(workflow) / first, command_line())


def adopt(parser: ConfigParser, checkpoint: Any, base: str | PathLike[str], given: Collection[str]) -> None:
    """Give a configuration the settings its weights were trained with.

    A setting that the user gave, or that an overlay changed from the bundle's own file, must equal that of the training
    if it is in `FIXED`, and is kept if it is in `USUAL`. Any other setting is replaced by that of the training.

    Args:
        parser: the configuration with overlays and settings; nothing that depends on the settings is resolved yet.
        checkpoint: the file of the weights, see `as_trained`.
        base: the bundle's own configuration, without overlays.
        given: names of settings that the user gave.

    Raises:
        RegZooError: the configuration contradicts the training.
    """
    if not isinstance(checkpoint, str | PathLike) or not Path(checkpoint).is_file():
        return  # a missing file is reported where it is loaded
    trained = origin_of(read_checkpoint(checkpoint)).get("config")
    if not isinstance(trained, Mapping):
        return
    defaults = read_config(base) if Path(base).is_file() else {}
    adopted = {}
    for key in (*FIXED, *USUAL):
        if key not in trained or key not in parser.config or not _is_plain(trained[key]):
            continue
        value = parser[key]
        if _same(value, trained[key]):
            continue
        chosen = key in given or (key in defaults and not _same(value, defaults[key]))
        if not chosen:
            adopted[key] = trained[key]
        elif key in FIXED:
            fix = f"leave {key} out, or name other weights as checkpoint"
            raise bad_file(checkpoint, f"was trained with {key} {trained[key]}, not {value}", fix)
    for key, value in adopted.items():
        parser[key] = value
    if adopted:
        listed = ", ".join(f"{key} {value}" for key, value in adopted.items())
        logger.info("%s: used with the settings of its training: %s", checkpoint, listed)
    parts = described(parser)
    for key in PARTS:
        if key in trained and key in parts and trained[key] != parts[key]:
            problem = f"was trained with another {key}, {trained[key]}"
            raise bad_file(checkpoint, problem, "add the overlay it was trained with, or name other weights")


def not_trained_on(checkpoint: str | PathLike[str], records: Sequence[Record]) -> None:
    """`refuse_shared` for a file of weights, if it records the cases of its training."""
    if Path(checkpoint).is_file():
        settings = origin_of(read_checkpoint(checkpoint)).get("settings", {})
        refuse_shared(settings.get("data", {}), records, checkpoint)


def _is_plain(value: Any) -> bool:
    """Whether a value is plain data, and not text that MONAI would evaluate or read from a file."""
    if isinstance(value, list):
        return all(_is_plain(entry) for entry in value)
    if isinstance(value, str):
        return re.fullmatch(r"[\w.-]*", value) is not None
    return value is None or isinstance(value, bool | int | float)


def _same(a: Any, b: Any) -> bool:
    """Whether two values of a setting mean the same; a name equals a list of that name alone."""
    first, second = ([one] if isinstance(one, str) else list(one) if isinstance(one, tuple) else one for one in (a, b))
    return bool(first == second)
