"""Find bundles by name and parse settings from the command line. Imports little, so that a wrong name fails fast."""

from __future__ import annotations

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
NAMES |= {"fixed_image", "moving_image", "fixed_label", "moving_label", "fixed_mask", "moving_mask"}


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
