"""Find bundles by name and parse settings from the command line. Imports little, so that a wrong name fails fast."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from regzoo.errors import bad_file

#: The bundles of an installation. In a checkout, this is a link to ``bundles/``.
INSTALLED = Path(__file__).resolve().parents[1] / "regzoo_bundles"
#: Bundles are looked up by name here. The first folder holds ``none``, a registration without a network.
BUNDLE_FOLDERS = (Path(__file__).parent / "inference", Path("bundles"), INSTALLED.resolve())
#: Settings that name files or folders, whose text is not parsed.
NAMES = {"bundle_root", "dataset_dir", "output_dir", "evaluation_dir", "checkpoint", "exported", "init_weights"}
NAMES |= {"pairs_file", "fixed_image", "moving_image", "fixed_label", "moving_label", "fixed_mask", "moving_mask"}


def find_bundle(bundle: str | PathLike[str], config: str = "inference.json") -> Path:
    """The folder of a bundle given by path or by name; `config` is a configuration that it must have.

    Raises:
        RegZooError: there is no such bundle; the message lists those found.
    """
    for folder in (Path(bundle), *(place / bundle for place in BUNDLE_FOLDERS)):
        if (folder / "configs" / config).is_file():
            return folder
    problem = f"is not a bundle with configs/{config}"
    raise bad_file(bundle, problem, f"name one of {', '.join(all_bundles(config))}, or a folder")


def all_bundles(config: str = "inference.json") -> dict[str, Path]:
    """The folders of all bundles that `find_bundle` finds by name."""
    found = {path.parents[1].name for place in BUNDLE_FOLDERS for path in place.glob(f"*/configs/{config}")}
    return {name: find_bundle(name, config) for name in sorted(found)}


def read_config(file: str | PathLike[str]) -> dict[str, Any]:
    """The content of a configuration file, in JSON or YAML.

    Raises:
        RegZooError: it is missing, cannot be read, or holds something other than settings.
    """
    path = Path(file)
    if not path.is_file():
        raise bad_file(path, "no such configuration", "check the name of the file")
    suffix = path.suffix.lower()
    if suffix not in {".json", ".yaml", ".yml"}:
        raise bad_file(path, "is not a configuration", "name a file that ends in .json or .yaml")
    try:
        if suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
        else:
            from monai.bundle import ConfigParser  # takes seconds

            content = ConfigParser.load_config_file(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise bad_file(path, f"cannot be read ({reason})", "check its permissions") from error
    except ImportError:
        raise
    except Exception as error:  # of the reader of JSON or of YAML
        kind = "JSON" if suffix == ".json" else "YAML"
        problem = f"is not valid {kind} ({' '.join(str(error).split()):.120})"
        raise bad_file(path, problem, "correct it there") from error
    if not isinstance(content, dict):
        raise bad_file(path, "is not a configuration", 'write {"setting": value}')
    return content


def read_metadata(bundle: str | PathLike[str], *needed: str) -> dict[str, Any]:
    """`read_config` of a bundle's ``configs/metadata.json``, which must have the ids `needed`, such as ``a::b``."""
    file = Path(bundle) / "configs" / "metadata.json"
    if not file.is_file():
        raise bad_file(file, "no such file", "name the folder of a bundle")
    metadata = read_config(file)
    for name in needed:
        value: Any = metadata
        for key in name.split("::"):
            if not isinstance(value, dict) or key not in value:
                raise bad_file(file, f"has no {name}", "add it, see regzoo verify")
            value = value[key]
    return metadata


def writable(bundle_root: str | PathLike[str], path: str) -> str:
    """Where a bundle writes `path`, relative to its folder, if the user names no other place.

    An installed bundle writes into a folder of its name in the working folder instead.
    """
    root = Path(bundle_root).resolve()
    installed = root.parent in {INSTALLED, Path(__file__).resolve().parent / "inference"}
    return str(Path(root.name if installed else bundle_root) / path)


def as_value(name: str, typed: Any) -> Any:
    """The value of a setting, given as text or as parsed by Fire: files stay text; ``null`` and ``true`` are values."""
    if isinstance(typed, str):
        if name in NAMES and not typed.startswith("["):  # a list of label files
            return typed
        words = {"null": None, "none": None, "true": True, "false": False}
        typed = words.get(typed.lower(), DefaultParseValue(typed))
    return list(typed) if isinstance(typed, tuple) else typed


def listed(files: str | Sequence[str]) -> list[str]:
    """File names given as one text, separated by commas, or as a list."""
    if isinstance(files, str):
        files = DefaultParseValue(files) if files.startswith("[") else files.split(",")
    return [str(file) for file in files]
