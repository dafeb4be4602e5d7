"""Which files of an output folder are ours: only those that we wrote and nobody has changed are replaced or removed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from regzoo import __version__
from regzoo.errors import bad_file
from regzoo.files import write_json

#: Where a folder's record is: in the statistics, if there are any, under `KEY`, or else in a file of its own.
STATISTICS, RECORD, KEY = "statistics.json", ".regzoo.json", "written_by"


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _text_digest(content: dict[str, Any]) -> str:
    """The hash of a JSON file that holds its own hash, which counts as empty."""
    record = content[KEY] | {"files": content[KEY]["files"] | {STATISTICS: ""}}
    return hashlib.sha256(json.dumps(content | {KEY: record}, indent=4).encode()).hexdigest()


def sign(folder: Path, bundle: str) -> None:
    """Record all files of a folder as ours.

    Args:
        folder: with nothing else in it; its ``statistics.json`` takes the record.
        bundle: the name of the bundle that made them; may be empty.
    """
    files = {path.name: _digest(path) for path in sorted(folder.iterdir()) if path.name != STATISTICS}
    record = {"regzoo": __version__, "bundle": bundle, "files": files}
    path = folder / STATISTICS
    if not path.is_file():
        write_json(folder / RECORD, {KEY: record})
        return
    content = json.loads(path.read_text(encoding="utf-8")) | {KEY: record}
    record["files"] = files | {STATISTICS: _text_digest(content)}
    write_json(path, content)


def _records(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    found = []
    for name in (STATISTICS, RECORD):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            if isinstance(content[KEY]["files"], dict):
                found.append((folder / name, content))
        except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is somebody else's
            continue
    return found


def own_files(folder: Path) -> set[str]:
    """The names of the files of a folder that were recorded by `sign` and are unchanged, with the record itself."""
    own = set()
    for path, content in _records(folder):
        for name, digest in content[KEY]["files"].items():
            file = folder / name
            if file == path:
                same = digest == _text_digest(content)
            else:
                same = file.is_file() and not file.is_symlink() and digest == _digest(file)
            own |= {name} if same else set()
        own |= {path.name} if path.name == RECORD else set()
    return own


def check_folder(folder: Path, names: Collection[str], bundle: str = "", inputs: Iterable[Any] = ()) -> None:
    """Refuse to write files that would take the place of somebody else's, or of an input.

    Args:
        folder: where to; need not exist.
        names: of the files that are to be written.
        bundle: the name of the bundle that is to write them.
        inputs: files, or lists of files, that are going to be read.

    Raises:
        RegZooError: one line that names the file.
    """
    there = [folder / name for name in names if os.path.lexists(folder / name)]
    if not there:
        return
    flat = [str(item) for one in inputs if one for item in (one if isinstance(one, (list, tuple)) else [one])]
    for path in there:
        for name in flat:
            if Path(name).exists() and path.exists() and path.samefile(name):
                raise bad_file(name, f"is an input, and lies where {path.name} is to be written", "name another folder")
    for _, content in _records(folder):
        other = content[KEY].get("bundle")
        if bundle and other and other != bundle:
            raise bad_file(folder, f"holds a result of {other}", f"name another folder for that of {bundle}")
    for name in sorted({path.name for path in there} - own_files(folder)):
        problem = "is there already, and RegZoo did not write it or it was changed since"
        raise bad_file(folder / name, problem, "move it, or name another folder")


def discard(folder: Path, bundle: str = "") -> None:
    """Remove a bundle's own files from a folder, and the folder if nothing is left in it."""
    own = own_files(folder)
    if not own or any(content[KEY].get("bundle") != bundle for _, content in _records(folder)):
        return
    for name in own:
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
