"""What the checks of a bundle look at, and the two ways in which a check does not end well."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from regzoo.errors import bad_file
from regzoo.workflow.registrar import find_bundle

#: Where a bundle keeps what it was not handed out with: results, phantoms, what Python compiled.
WORKING_FOLDERS = {"output", "data", "eval", "__pycache__"}
#: The weights, relative to the bundle.
WEIGHTS = "models/model.pt"
#: Configurations that every bundle of this collection has.
CONFIGS = ("metadata", "train", "inference", "evaluate", "multi_gpu_train", "multi_gpu_evaluate")
#: By what a file of the zoo that says where large files are may be called.
LARGE_FILES = ("large_files.yml", "large_files.yaml", "large_files.json")


class Problem(Exception):
    """What a check found wrong; the message says what and what to do."""


class Skip(Exception):
    """A check that could not be done here; the message says why."""


class Bundle:
    """A bundle's files, read when they are first asked for.

    Args:
        bundle: a folder, or the name of a bundle that `regzoo.workflow.registrar.find_bundle` finds.

    Raises:
        RegZooError: no such folder and no bundle of that name.
    """

    def __init__(self, bundle: str | PathLike[str]) -> None:
        self.root = (Path(bundle) if (Path(bundle) / "configs").is_dir() else find_bundle(bundle)).resolve()
        self.name = self.root.name

    def path(self, name: str) -> Path:
        """A file of the bundle, given relative to it.

        Raises:
            Problem: there is no such file.
        """
        path = self.root / name
        if not path.is_file():
            raise Problem(f"{name} is missing")
        return path

    @cached_property
    def scratch(self) -> Path:
        """A folder for what checks need on the way; it goes with this object."""
        self._scratch = tempfile.TemporaryDirectory(prefix="regzoo-")
        return Path(self._scratch.name)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """``configs/metadata.json``."""
        return json.loads(self.path("configs/metadata.json").read_text(encoding="utf-8"))

    @cached_property
    def large_files(self) -> dict[str, dict[str, Any]]:
        """What ``large_files.yml`` says of each file that is to be fetched, by its path; empty without one."""
        for name in LARGE_FILES:
            if (self.root / name).is_file():
                listed = ConfigParser.load_config_file(self.root / name).get("large_files") or []
                return {str(entry["path"]): dict(entry) for entry in listed}
        return {}

    def files(self, *suffixes: str) -> Iterator[Path]:
        """The bundle's files in order, without what was produced while working with it.

        Args:
            suffixes: only files that end in one of these.
        """
        for path in sorted(self.root.rglob("*")):
            inside = path.relative_to(self.root).parts
            own = inside[0] not in WORKING_FOLDERS and not any(part in {"__pycache__", ".git"} for part in inside)
            if own and path.is_file() and (not suffixes or path.suffix in suffixes):
                yield path

    def weights(self) -> Path:
        """The released weights.

        Raises:
            Skip: they are to be fetched first.
            Problem: there are none.
        """
        if not (self.root / WEIGHTS).is_file() and WEIGHTS in self.large_files:
            raise Skip(f"{WEIGHTS} is not here: python -m monai.bundle download_large_files --bundle_path {self.root}")
        return self.path(WEIGHTS)

    def config(self, *names: str) -> ConfigParser:
        """Configurations of ``configs/``, read over each other, not yet parsed."""
        parser = ConfigParser()
        parser.read_config([str(self.path(f"configs/{name}.json")) for name in names])
        parser["bundle_root"] = str(self.root)
        return parser

    def tensor(self, direction: str, name: str) -> dict[str, Any]:
        """What the metadata say of a tensor of the network: ``inputs`` / ``image`` or ``outputs`` / ``pred``."""
        try:
            return self.metadata["network_data_format"][direction][name]
        except KeyError:
            raise Problem(f"configs/metadata.json has no network_data_format::{direction}::{name}") from None

    def shape(self, batch: int = 1) -> tuple[list[int], list[int]]:
        """Shapes (B, C, X, Y, Z) of the network's input and output, as the metadata have them."""
        pair = (self.tensor("inputs", "image"), self.tensor("outputs", "pred"))
        first, second = ([batch, tensor["num_channels"], *tensor["spatial_shape"]] for tensor in pair)
        return first, second


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def known_bundle(bundle: str | PathLike[str]) -> Bundle:
    """A bundle whose metadata can be read.

    Raises:
        RegZooError: there is no such bundle, or it has no readable metadata.
    """
    found = Bundle(bundle)
    file = found.root / "configs" / "metadata.json"
    try:
        found.metadata  # noqa: B018 - read once, to fail here
    except Problem:
        raise bad_file(file, "no such file", "name the folder of a bundle") from None
    except ValueError as error:
        raise bad_file(file, f"is no JSON ({error})", "mend it, see regzoo verify") from None
    return found
