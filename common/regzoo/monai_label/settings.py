"""The settings of a training that MONAI Label starts: what a client sent must be plain values.

MONAI Label writes parameters of a request into the configuration of a training without looking at them. MONAI evaluates
every string there that begins with ``$``, ``@`` or ``%`` and every dictionary with a ``_target_``, so a client could
run code. Two steps of a training's configuration prevent this:

- ``"imports": ["$from regzoo.monai_label.settings import check_request", …]``. MONAI evaluates imports first, in their
  order, also those that a client sent. So this import itself disarms what a client sent.
- ``"initialize": […, "$check_request()", …]`` then refuses the training.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigItem, ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from regzoo.engines.running import running_workflow
from regzoo.errors import RegZooError
from regzoo.monai_label.parameters import is_known_device
from regzoo.monai_label.studies import is_served

#: The configurations that MONAI Label trains with, on one device and on several.
FILES = ("train.json", "multi_gpu_train.json")


def __getattr__(name: str) -> Any:
    """Disarm the request whenever ``check_request`` is imported; a plain function would only be looked up."""
    if name != "check_request":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if (workflow := running_workflow()) is not None:
        items = workflow.parser.ref_resolver.items
        for refused, _ in _refused(workflow):
            items |= {key: ConfigItem(None, key) for key in items if f"{key}::".startswith(f"{refused}::")}
    return _check_request


def _check_request() -> None:
    """Refuse a served training whose settings are not plain values.

    Raises:
        RegZooError: one line that names the parameter. It does not show the value, which MONAI may have read from a
            file of the server.
    """
    workflow = running_workflow()
    for name, problem in _refused(workflow) if workflow is not None else ():
        raise RegZooError(f"{name.replace('::', '#')}: {problem}")


def _refused(workflow: ConfigWorkflow) -> Iterator[tuple[str, str]]:
    """The id of each value that a client sent and that is not allowed, and what is wrong with it."""
    if not is_served():
        return
    folder = Path(workflow.config_root_path)
    own = [_as_parsed([str(folder / file) for file in FILES[:count]]) for count in (1, 2)]
    tracking = _as_parsed(DEFAULT_MLFLOW_SETTINGS["configs"])
    for name, value in _changed(workflow.parser.config, own):
        if problem := _problem(name, value, own[0]["output_dir"], folder.parent / "models", tracking):
            yield name, problem


def _as_parsed(files: Any) -> Any:
    """A configuration as MONAI has it once it has parsed it: it writes ``::`` for each ``#``."""
    parser = ConfigParser()
    parser.read_config(files)
    parser.parse()
    return parser.config


def _changed(now: Any, own: list[Any], name: str = "") -> Iterator[tuple[str, Any]]:
    """The ids and values of a configuration that are in none of the bundle's own files."""
    if now in own:
        return
    prefix = f"{name}::" if name else ""
    if isinstance(now, dict) and any(isinstance(one, dict) for one in own):
        for key, value in now.items():
            if f"{prefix}{key}" != ConfigParser.meta_key:
                values = [one[key] for one in own if isinstance(one, dict) and key in one]
                yield from _changed(value, values, f"{prefix}{key}")
    elif isinstance(now, list) and any(isinstance(one, list) for one in own):
        known = [item for one in own if isinstance(one, list) for item in one]
        yield from ((f"{prefix}{index}", item) for index, item in enumerate(now) if item not in known)
    else:
        yield name, now


def _problem(name: str, value: Any, output_dir: str, models: Path, tracking: Mapping[str, Any]) -> str:
    """What is wrong with a value that is not the bundle's own; empty for an allowed one."""
    if name == "device":
        return "" if is_known_device(value) else "not a device of this server; use cpu, or cuda where there is one"
    if name == "train::trainer::max_epochs":
        return "" if type(value) is int and value > 0 else "not a number of epochs; send an integer above 0"
    if name == "tracking_uri" and value != tracking["tracking_uri"]:
        known = value == os.environ.get("MONAI_LABEL_TRACKING_URI")
        return "" if known and _is_plain(value) else "only the server says where runs are tracked; leave it out"
    if name == "save_execute_config" and value is not None:
        path = rf"{re.escape(output_dir)} \+ '/config_\d+_\d+\.json'"
        return "" if isinstance(value, str) and re.fullmatch(path, value) else "only the server chooses this file"
    if _is_plain(value) or value in tracking.values() or _is_loader(value, models):
        return ""
    return "not a plain value; a server evaluates nothing that a client sends"


def _is_plain(value: Any) -> bool:
    """Whether MONAI takes a value as it is."""
    if isinstance(value, dict):
        return all(not str(key).startswith("_") and _is_plain(one) for key, one in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return not value.startswith(("$", "@", "%"))
    return value is None or isinstance(value, int | float)


def _is_loader(value: Any, models: Path) -> bool:
    """Whether this is MONAI Label's own handler, which starts a training from weights of the bundle."""
    if not isinstance(value, dict) or not isinstance(path := value.get("load_path"), str):
        return False
    rest = {"_target_": "CheckpointLoader", "load_dict": {"model": "$@network"}, "strict": False}
    return value == rest | {"load_path": path} and Path(os.path.realpath(path)).parent == Path(os.path.realpath(models))
