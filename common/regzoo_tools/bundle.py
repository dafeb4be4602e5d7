"""The files of a bundle, as the checks read them, and the errors that a check raises."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import regzoo
from monai.bundle import ConfigParser
from regzoo.bundles import find_bundle, read_metadata
from regzoo.datasets.text import read_json
from regzoo.errors import RegZooError, bad_file

#: Folders that a bundle is released without: results and phantoms.
WORKING_FOLDERS = {"output", "data", "eval"}
#: The weights, relative to the bundle.
WEIGHTS = "models/model.pt"
#: Suffixes of the package's files that a zip contains.
CODE = {".py", ".json", ".typed"}
#: Configurations that every bundle has.
CONFIGS = ("metadata", "train", "inference", "evaluate", "multi_gpu_train", "multi_gpu_evaluate")
#: The names that the zoo accepts for the list of large files.
LARGE_FILES = ("large_files.yml", "large_files.yaml", "large_files.json")


class CheckError(Exception):
    """A failed check; the message says what is wrong and what to do."""


class NotCheckedError(Exception):
    """A check that cannot run here; the message says why."""


class Bundle:
    """A bundle's files, read when they are first asked for.

    Args:
        bundle: a folder, or the name of a bundle that `regzoo.bundles.find_bundle` finds.

    Raises:
        RegZooError: neither a folder nor a bundle has that name.
    """

    def __init__(self, bundle: str | PathLike[str]) -> None:
        self.root = (Path(bundle) if (Path(bundle) / "configs").is_dir() else find_bundle(bundle)).resolve()
        self.name = self.root.name

    def path(self, name: str) -> Path:
        """A file of the bundle, given relative to it.

        Raises:
            CheckError: the file does not exist.
        """
        path = self.root / name
        if not path.is_file():
            raise CheckError(f"{name} is missing")
        return path

    @cached_property
    def scratch(self) -> Path:
        """A temporary folder for the checks, removed with this object."""
        self._scratch = tempfile.TemporaryDirectory(prefix="regzoo-")
        return Path(self._scratch.name)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """``configs/metadata.json``."""
        return read_json(self.path("configs/metadata.json"))

    @cached_property
    def large_files(self) -> dict[str, dict[str, Any]]:
        """The entries of ``large_files.yml`` by path; empty if the bundle has no such list.

        Raises:
            CheckError: the list is malformed, or an entry has no path.
        """
        name = next((name for name in LARGE_FILES if (self.root / name).is_file()), None)
        if name is None:
            return {}
        try:
            content = ConfigParser.load_config_file(self.root / name)
        except Exception as error:  # of the reader of JSON or of YAML
            raise CheckError(f"{name} cannot be read: {' '.join(str(error).split()):.120}; correct it") from error
        listed = (content.get("large_files") or []) if isinstance(content, dict) else None
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise CheckError(f"{name} is not a list large_files of path, url, hash_val and hash_type")
        if not all(entry.get("path") for entry in listed):
            raise CheckError(f"{name} has an entry without a path; add the file's place in the bundle")
        return {str(entry["path"]): entry for entry in listed}

    def files(self, suffix: str = "") -> Iterator[Path]:
        """The bundle's files with a suffix, in order, without results and compiled files."""
        for path in sorted(self.root.rglob("*")):
            inside = path.relative_to(self.root).parts
            own = inside[0] not in WORKING_FOLDERS and {"__pycache__", ".git"}.isdisjoint(inside)
            if own and path.is_file() and path.name.endswith(suffix):
                yield path

    def weights(self) -> Path:
        """The released weights.

        Raises:
            NotCheckedError: they must be downloaded first.
            CheckError: there are no weights.
        """
        if not (self.root / WEIGHTS).is_file() and WEIGHTS in self.large_files:
            fetch = f"python -m monai.bundle download_large_files --bundle_path {self.root}"
            raise NotCheckedError(f"{WEIGHTS} is not here: {fetch}")
        return self.path(WEIGHTS)

    def config(self, *names: str) -> ConfigParser:
        """Configurations of ``configs/``, later ones overriding earlier ones, not yet parsed."""
        parser = ConfigParser()
        parser.read_config([str(self.path(f"configs/{name}.json")) for name in names])
        parser["bundle_root"] = str(self.root)
        return parser

    def for_monai(self, *names: str) -> dict[str, Any]:
        """Arguments of MONAI's functions: the bundle's folder, its metadata and some of its configurations."""
        files = [str(self.path(f"configs/{name}.json")) for name in names]
        metadata = str(self.path("configs/metadata.json"))
        return {"bundle_root": str(self.root), "meta_file": metadata, "config_file": files}

    def tensor(self, direction: str, name: str) -> dict[str, Any]:
        """The metadata of a tensor of the network: ``inputs`` / ``image`` or ``outputs`` / ``pred``."""
        try:
            return self.metadata["network_data_format"][direction][name]
        except KeyError:
            raise CheckError(f"configs/metadata.json has no network_data_format::{direction}::{name}") from None

    def shape(self, batch: int = 1) -> tuple[list[int], list[int]]:
        """Shapes (B, C, X, Y, Z) of the network's input and output, from the metadata."""
        image, pred = self.tensor("inputs", "image"), self.tensor("outputs", "pred")
        first, second = ([batch, one["num_channels"], *one["spatial_shape"]] for one in (image, pred))
        return first, second


def code_files(folder: Path) -> dict[str, Path]:
    """The files of a Python package by their name in it, without compiled files."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path for path in paths}


def own_code() -> dict[str, Path]:
    """The files of this package that travel with a bundle, by their name in it."""
    return {name: path for name, path in code_files(Path(regzoo.__file__).parent).items() if path.suffix in CODE}


def package_inside(bundle: Bundle) -> str:
    """Check that a ``regzoo`` inside the bundle is the running package, or has the same files.

    Raises:
        CheckError: its files differ.
    """
    inside = bundle.root / "regzoo"
    if not inside.is_dir():
        return "none; regzoo must be installed"
    if inside.resolve() == Path(regzoo.__file__).resolve().parent:
        return "is the running package"
    found, ours = code_files(inside), own_code()
    different = {name for name in found.keys() & ours.keys() if found[name].read_bytes() != ours[name].read_bytes()}
    different |= found.keys() ^ ours.keys()
    if different:
        first = ", ".join(sorted(different)[:3]) + (", …" if len(different) > 3 else "")
        problem = f"regzoo/ inside the bundle is not the running package ({len(different)} files differ: {first})"
        raise CheckError(f"{problem}; run python -m regzoo in the bundle's folder, or package it again")
    return f"{len(ours)} files, as in the package that runs"


def known_bundle(bundle: str | PathLike[str]) -> Bundle:
    """A bundle whose metadata and list of large files can be read, and whose package is the running one.

    Raises:
        RegZooError: it is missing or malformed, or another package is inside.
    """
    found = Bundle(bundle)
    read_metadata(found.root)
    try:
        found.large_files  # noqa: B018 - read here so that it fails here
        package_inside(found)
    except CheckError as error:
        raise RegZooError(f"{found.root}: {error}") from None
    return found


def bundle_version(bundle: Bundle) -> str:
    """The version in a bundle's metadata.

    Raises:
        RegZooError: there is none, or it cannot be part of the name of a file or of a tag.
    """
    version = read_metadata(bundle.root, "version")["version"]
    if not isinstance(version, str) or not re.fullmatch(r"\w[\w.+-]*", version):
        file = bundle.root / "configs" / "metadata.json"
        raise bad_file(file, f"its version {version!r:.40} is not of the form 1.2.3", 'write a version such as "1.2.3"')
    return version
