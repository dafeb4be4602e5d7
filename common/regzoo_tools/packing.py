"""A bundle as a zip that contains the package `regzoo`, beside ``configs/``."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from os import PathLike
from pathlib import Path
from typing import Any

from regzoo.datasets.text import read_json
from regzoo.errors import RegZooError, bad_file
from regzoo.files import file_hash
from regzoo.ownership import check_file, own_path
from regzoo_tools.bundle import LARGE_FILES, WEIGHTS, Bundle, bundle_version, known_bundle, own_code
from regzoo_tools.linked_pages import Pages

#: The release of PyYAML that a bundle with a list of large files requires: MONAI reads the list with it.
PYYAML = "6.0.3"
#: The folders of a bundle whose files are packed; ``scripts`` is where MONAI's bundles have code of their own.
COPIED = ("configs", "docs", "scripts")
#: The time of every file in the zip, the earliest that the format knows.
TIME = (1980, 1, 1, 0, 0, 0)
#: Lines that let a configuration find the package beside it from any working folder: MONAI runs ``imports`` first and
#: puts the bundle's folder on the path only before ``run``. So ``initialize`` adds the folder and imports again.
MODULES = ["$import os", "$import sys"]
STEPS = ["$sys.path.insert(0, os.path.abspath(@bundle_root))", "$import regzoo"]
#: A function that a training imports by name, and its import, which is repeated for the same reason.
CHECK, IMPORT_CHECK = "$check_request()", "$from regzoo.monai_label.settings import check_request"


def package(
    bundle: str | PathLike[str], out: str | PathLike[str] | None = None, large_files: str | None = None
) -> Path:
    """Write a bundle and this package as one zip; the same files give the same bytes anywhere.

    Arguments are those of the command `regzoo_tools.commands.package`.

    Raises:
        RegZooError: no such bundle, a file or the goal of a link is missing, or another regzoo is inside.
    """
    found = known_bundle(bundle)
    target = Path(out) if out is not None else Path(f"{found.name}_v{bundle_version(found)}.zip")
    if target.suffix != ".zip":
        raise bad_file(target, "is not the name of a zip", "let it end in .zip")
    if any(target.resolve().is_relative_to(found.root / name) for name in COPIED):
        raise bad_file(target, "is among the files to be packed", "name a file outside the bundle")
    check_file(target)
    with tempfile.TemporaryDirectory(prefix="regzoo-") as folder, own_path(target) as temporary:
        write_zip(stage(found, Path(folder), large_files), temporary)
    return target


def stage(bundle: Bundle, folder: Path, large_files: str | None = None) -> Path:
    """Copy a bundle's own files and this package into ``folder/<name>``; errors as in `package`."""
    target = folder / bundle.name
    for source in [bundle.root / "LICENSE", *(bundle.root / name for name in LARGE_FILES)]:
        if source.is_file():
            copy(source, target / source.name)
    for source in bundle.files():
        inside = source.relative_to(bundle.root)
        if inside.parts[0] in COPIED and not any(part.startswith(".") for part in inside.parts):
            copy(source, target / inside)
    for path in sorted((target / "configs").rglob("*.json")):
        source = bundle.root / path.relative_to(target)
        config = read_json(source)
        if not isinstance(config, dict):
            raise bad_file(source, "is not a configuration", 'write {"setting": value}')
        if path.name == "metadata.json":
            required = config.setdefault("required_packages_version", {})
            if not isinstance(required, dict):
                raise bad_file(source, "required_packages_version is not an object", 'write {"package": "version"}')
            required.pop("regzoo", None)
            if large_files is not None:
                required["pyyaml"] = PYYAML
        else:
            add_bundle_path(config)
        path.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8", newline="\n")
    Pages(bundle.root, target).copy()
    for name, source in own_code().items():
        copy(source, target / "regzoo" / name)
    stage_weights(bundle, target, large_files)
    return target


def copy(source: Path, target: Path) -> None:
    """Copy a file's content, not its times and permissions."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def add_bundle_path(config: dict[str, Any]) -> None:
    """Let a configuration put its own bundle's folder on the path before it needs the package; see `STEPS`."""
    if "$import regzoo" in config.get("imports", []):
        config["imports"] = [*(line for line in MODULES if line not in config["imports"]), *config["imports"]]
    if "initialize" in config:
        steps = config["initialize"] if isinstance(config["initialize"], list) else [config["initialize"]]
        first = [*STEPS, IMPORT_CHECK] if CHECK in steps else STEPS
        config["initialize"] = [*first, *(step for step in steps if step not in first)]


def stage_weights(bundle: Bundle, target: Path, url: str | None) -> None:
    """Copy the weights, or write ``large_files.yml`` with their address."""
    weights = bundle.root / WEIGHTS
    if url is None:
        if weights.is_file():
            copy(weights, target / WEIGHTS)
        elif WEIGHTS not in bundle.large_files:
            raise bad_file(weights, "no such file", "train the bundle first: make weights")
        return
    if not re.fullmatch(r"https?://[^\s\"'\\]+", str(url)):
        raise RegZooError(f"--large_files {url}: is not an address; give the address of {WEIGHTS}, https://…")
    if not weights.is_file():
        raise bad_file(weights, "no such file to take the hash of", "fetch it first: monai.bundle download_large_files")
    others = [name for name in LARGE_FILES if (target / name).is_file()]
    if others:
        raise bad_file(bundle.root / others[0], "exists already", "edit it, or leave --large_files out")
    text = f'large_files:\n  - path: "{WEIGHTS}"\n    url: "{url}"\n    hash_val: "{file_hash(weights)}"\n'
    (target / LARGE_FILES[0]).write_text(text + '    hash_type: "sha256"\n', encoding="utf-8", newline="\n")


def write_zip(folder: Path, target: Path) -> None:
    """Write a folder as a zip in which nothing depends on the machine.

    Files are not compressed: compressors differ by version, and weights hardly get smaller.
    """
    with zipfile.ZipFile(target, "w", compression=zipfile.ZIP_STORED) as archive:
        for path in sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.as_posix()):
            entry = zipfile.ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}", TIME)
            entry.create_system = 3  # Unix, on any system
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, path.read_bytes())
