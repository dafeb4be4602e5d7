"""Checks of the settings before any work is done: misspelt names, settings without effect, and invalid values."""

from __future__ import annotations

import difflib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow
from regzoo.bundles import NAMES, as_value, read_config
from regzoo.case import MASK_KEYS, Key
from regzoo.datasets.loading import any_pair_has, names_fixed
from regzoo.engines.option_values import check_value
from regzoo.engines.running import config_folder, running_workflow
from regzoo.errors import RegZooError, bad_file, one_line_errors

logger = logging.getLogger(__name__)

#: The configurations that a run starts from.
BASES = ("train", "evaluate", "inference")
#: Arguments of `monai.bundle run` itself.
MONAI = {"workflow_name", "config_file", "args_file", "meta_file", "logging_file", "init_id", "run_id", "final_id"}
MONAI |= {"tracking", "workflow_type", "properties_path"}
#: The ids that a workflow may run.
RUNS = ("run", "training")
#: Ids that MONAI adds to a configuration for tracking; its federated client always adds them.
TRACKING = {"tracking_uri", "experiment_name", "run_name", "is_not_rank0", "save_execute_config"}


def _no_pair_has(config: Mapping[str, Any], *keys: str) -> bool:
    """Whether no pair of the data set has one of these entries; without ``dataset_dir``, the pairs come from Python."""
    folder = config.get("dataset_dir")
    return folder is not None and not (folder and any_pair_has(folder, *keys))


def _never_refines(config: Mapping[str, Any]) -> bool:
    return config["refine"] is False and _no_pair_has(config, Key.REFINE)


def _has_no_masks(config: Mapping[str, Any]) -> bool:
    return not any(config.get(key) for key in MASK_KEYS) and _no_pair_has(config, *MASK_KEYS)


#: Settings that may have no effect → whether they have none, given the other settings that the run uses; and when, as
#: the error says it.
IDLE: dict[str, tuple[Callable[[Mapping[str, Any]], Any], str]] = {
    "phantoms": (lambda config: config.get("dataset_dir"), "with a data set of your own"),
    "split": (lambda config: "fixed_image" in config and not config["dataset_dir"], "without dataset_dir"),
    "direction": (
        lambda config: names_fixed(folder) if (folder := config.get("dataset_dir")) else "fixed_image" in config,
        "without dataset_dir, or with data that say themselves which image is fixed",
    ),
    "integration_steps": (lambda config: config["diffeomorphic"] is False, "unless diffeomorphic is True"),
    "exclude": (_has_no_masks, "without fixed_mask or moving_mask"),
    **dict.fromkeys(("refine_seconds", "refine_options"), (_never_refines, "without refine")),
    **dict.fromkeys(("max_voxels", "max_refine_seconds"), (lambda _: True, "outside MONAI Label")),
    "bundle_root": (lambda _: True, "beside the name of the bundle"),
}


def check_options() -> None:
    """Check the settings of the workflow whose ``initialize`` calls this.

    Settings from the command line are converted first: names stay as they were typed, and ``null``, ``true`` and
    ``false`` are values.

    Raises:
        RegZooError: the message names the setting, the problem, and the most similar setting.
    """
    workflow = running_workflow()
    if workflow is None:
        return
    parser, folder = workflow.parser, config_folder(workflow)
    ids = {name.replace("::", "#") for name in _ids(parser.config)}
    # The bundle's own files from which the configuration was made.
    files = [file for file in _bases(folder) if ids.issuperset(read_config(file))]
    if not files:
        return
    given = command_line()
    for name, value in given.items():
        if name in parser and (read := as_value(name, value)) is not parser[name]:
            parser[name] = read
    check_ids()
    check_config(parser, files, given)
    roots = [str(workflow.init_id), _run_id(workflow), str(workflow.final_id), "imports"]
    # Two settings that every run may be given, whether or not it uses them.
    check_effect(parser, [name for name in given if name not in ("bundle_root", "output_dir")], roots)


def check_ids() -> None:
    """Check the ids with which the running workflow starts, runs and ends; also the first step of a bundle's ``run``.

    MONAI silently skips an unknown ``--init_id``, and `check_options` with it. ``run training --run_id train`` has the
    same effect, because MONAI takes ``training`` as the id to start with.

    Raises:
        RegZooError: an id does not exist or cannot be run.
    """
    workflow = running_workflow()
    if workflow is None:
        return
    one_line_errors()
    config, start, end = workflow.parser.config, str(workflow.init_id), str(workflow.final_id)
    if start != "initialize" and (start not in workflow.parser or start in RUNS):
        raise RegZooError(f"init_id: a run cannot start with {start}; leave it out, and name one id to run")
    if end != "finalize" and end not in workflow.parser:
        raise RegZooError(f"final_id: there is no id {end}; leave it out")
    _check_runs(config, _run_id(workflow))


def _run_id(workflow: ConfigWorkflow) -> str:
    """The id that a workflow runs; ``run`` for the empty id that 3D Slicer's MONAI Label panel sends."""
    return str(workflow.run_id) or "run"


def check_config(parser: ConfigParser, files: Sequence[Path], given: Collection[str]) -> None:
    """Refuse ids of a configuration that nothing reads, and invalid values, with the errors of `check_options`.

    Args:
        parser: the whole configuration, with overlays and settings.
        files: the bundle's own files from which it was made.
        given: ids that the user has set. An overlay may also set ids of the bundle's other files, for another run of
            the bundle.
    """
    bundle = ConfigParser()
    bundle.read_config([str(file) for file in files])
    base, known = bundle.config, set(_ids(bundle.config))
    others = (read_config(path) for path in _bases(files[0].parent))
    elsewhere = {name for config in others for name in _ids(config)} | TRACKING
    for name in _unread(parser.config, known | (elsewhere - set(given))):
        raise unknown(name, known, files[-1])
    for name, section in base.items():
        now = parser.config[name]
        parts = section.values() if isinstance(section, dict) and "_target_" not in section else ()
        if not any(isinstance(part, dict) and "_target_" in part for part in parts):
            continue
        if missing := section.keys() - (now.keys() if isinstance(now, dict) else ()):
            wrong = f"replaces the whole section, without {', '.join(sorted(missing))}"
            raise bad_file(f"{name} of an overlay", wrong, f"write +{name} to add to it, or {name}#… to change one id")
    for name, value in parser.config.items():
        if name in base:
            check_value(name, value, base[name])


def check_effect(parser: ConfigParser, given: Collection[str], roots: Sequence[str]) -> None:
    """Refuse ids that the user has set (`given`) and that a run, which evaluates the ids `roots`, does not use."""
    used = _reached(parser.config, roots)
    config = {name: value for name, value in parser.config.items() if name in used}
    for name in given:
        idle, when = IDLE.get(name.partition("::")[0], (lambda _: False, ""))
        shown = name.replace("::", "#")
        if not _covered(name, used):
            if "evaluation_dir" in parser.config:  # the training's settings may be repeated for its evaluation
                logger.warning("%s has no effect in an evaluation", shown)
                continue
            when = "here: nothing in this run reads it"
        elif not idle(config):
            continue
        raise RegZooError(f"{shown}: has no effect {when}; leave it out")


def unknown(name: str, known: Collection[str], file: Path) -> RegZooError:
    """The error for a setting that a configuration file lacks; it suggests the most similar setting of the file."""
    name, known = name.replace("::", "#"), [key.replace("::", "#") for key in known]
    similar = difflib.get_close_matches(name, known, 1)
    other = next((path for path in _bases(file.parent) if name in read_config(path)), None)
    fix = f"did you mean {similar[0]}?" if similar else f"see the ids of {file}"
    if other is not None:
        fix = f"it belongs to {other.name}, leave it out"
    return bad_file(name, f"no such setting in {file}", fix)


def _bases(folder: Path) -> list[Path]:
    return [file for name in BASES if (file := folder / f"{name}.json").is_file()]


def _walk(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every id of a configuration with its value, through dictionaries and lists."""
    items = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        name = f"{prefix}{key}"
        yield name, value
        yield from _walk(value, f"{name}::")


def _ids(config: Mapping[str, Any]) -> Iterator[str]:
    return (name for name, _ in _walk(config))


def _references(value: Any) -> set[str]:
    """The ids that strings in a value refer to."""
    texts = [value] if isinstance(value, str) else [text for _, text in _walk(value) if isinstance(text, str)]
    found = (re.findall(r"[@%](\w+(?:(?:#|::)\w+)*)", text) for text in texts if text.startswith(("$", "@", "%")))
    return {name.replace("#", "::") for names in found for name in names}


def _covered(name: str, ids: Collection[str]) -> bool:
    """Whether an id, a section around it or an id inside it is among `ids`."""
    return any(name == other or name.startswith(f"{other}::") or other.startswith(f"{name}::") for other in ids)


def _unread(config: Mapping[str, Any], known: Collection[str]) -> Iterator[str]:
    """The ids of a configuration that are unknown and that nothing refers to."""
    used = {name for key, value in config.items() if key != "_meta_" for name in _references(value)}

    def descend(section: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for key, value in section.items():
            name = f"{prefix}{key}"
            if key.startswith("_"):
                continue
            if any(name == other or name.startswith(f"{other}::") for other in used):
                continue
            if name not in known and not _covered(name, used):
                yield name
            elif isinstance(value, dict) and "_target_" not in value:
                yield from descend(value, f"{name}::")

    yield from descend(config, "")
    for name, value in _walk(config):
        if isinstance(value, dict) and "_target_" in value:
            yield from _unknown_arguments(name, value, known)


def _unknown_arguments(name: str, component: Mapping[str, Any], known: Collection[str]) -> Iterator[str]:
    """The added arguments of a component that its class or function does not take."""
    added = [key for key in component if f"{name}::{key}" not in known and not key.startswith("_")]
    if not added or str(component["_target_"]).startswith("$"):
        return
    target = locate(str(ConfigComponent(dict(component)).resolve_module_name()))
    if callable(target):
        taken = inspect.signature(target).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            yield from (f"{name}::{key}" for key in added if key not in taken)


def _reached(config: Mapping[str, Any], roots: Sequence[str]) -> set[str]:
    """The ids that are used when `roots` are evaluated; being recorded in ``settings`` does not count as use."""
    values = dict(_walk(config))
    reached, waiting = set(), [name.replace("#", "::") for name in roots]
    while waiting:
        name = waiting.pop()
        if name not in reached and name != "settings":
            reached.add(name)
            waiting.extend(_references(values.get(name)))
    return reached


def _check_runs(config: Mapping[str, Any], name: str) -> None:
    """Refuse to run an id that does not exist, or that is not an expression."""
    values = dict(_walk(config))
    value = values.get(name.replace("#", "::"))
    steps = value if isinstance(value, list) else [value]
    if value is not None and all(str(step).startswith("$") for step in steps):
        return
    runs = [key for key, part in config.items() if key.startswith(("run", "train")) and not isinstance(part, dict)]
    similar = difflib.get_close_matches(name, [key for key in runs if key != name], 1)
    problem = "no such id" if value is None else "is a part of the configuration, not something to run"
    raise bad_file(f"run {name}", problem, f"write run {similar[0] if similar else 'run'}")


def command_line() -> dict[str, Any]:
    """The settings given to the running `monai.bundle.run`; file names from the command line stay as typed."""
    frame, given, by_command = inspect.currentframe(), dict[str, Any](), False
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if module == "monai.bundle.scripts" and frame.f_code.co_name == "create_workflow":
            # MONAI drops settings that are None.
            given = {**frame.f_locals.get("_args", {}), **frame.f_locals.get("kwargs", {})}
        by_command = by_command or module == "fire.core"
        frame = frame.f_back
    given = {name.replace("#", "::"): value for name, value in given.items() if name not in MONAI}
    if not by_command:
        return {name: value for name, value in given.items() if value is not None}
    return {name: _typed(name, value) for name, value in given.items()}


def _typed(name: str, value: Any) -> Any:
    """The value of a setting; for a name that fire has converted to another type, the text as typed."""
    if name not in NAMES or isinstance(value, str):
        return value
    arguments = sys.argv[1:]
    for index, argument in enumerate(arguments):
        key, equals, text = argument.partition("=")
        if key.startswith("-") and key.lstrip("-").replace("-", "_") == name:
            return text if equals else next(iter(arguments[index + 1 :]), value)
    return value
