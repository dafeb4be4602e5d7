"""Records which files of an output folder RegZoo wrote.

RegZoo replaces or removes only these files, and only if they have not changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from regzoo import __version__
from regzoo.errors import bad_file
from regzoo.files import alone_in, atomic_path, file_hash, make_folder, write_json

#: The record of a folder is the entry `KEY` of its statistics or, if it has none, of the file `RECORD`.
STATISTICS, RECORD, KEY = "statistics.json", ".regzoo.json", "written_by"
#: The record of files other than registration results, such as tables, exported networks and weights. Its entry
#: `SINGLE` names those that `own_path` wrote. `own_path` replaces only these, and not, say, the weights of a
#: training.
CLAIMS, SINGLE = ".regzoo.files.json", "single"


def _text_digest(content: dict[str, Any]) -> str:
    """The hash of a JSON file that also stores this hash; that entry counts as empty."""
    record = content[KEY] | {"files": content[KEY]["files"] | {STATISTICS: ""}}
    return hashlib.sha256(json.dumps(content | {KEY: record}, indent=4).encode()).hexdigest()


def sign(folder: Path, bundle: str, origin: Mapping[str, Any] | None = None) -> None:
    """Record all files of a folder as ours, in its ``statistics.json`` if there is one.

    Args:
        folder: holds only files that RegZoo wrote.
        bundle: name of the bundle that wrote them; may be empty.
        origin: what else to record, as plain values, see `origin_of`.
    """
    files = {path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.name != STATISTICS}
    record: dict[str, Any] = {"regzoo": __version__, "bundle": bundle, "files": files}
    if origin is not None:
        record["origin"] = origin
    path = folder / STATISTICS
    if not path.is_file():
        write_json(folder / RECORD, {KEY: record})
        return
    content = json.loads(path.read_text(encoding="utf-8")) | {KEY: record}
    record["files"] = files | {STATISTICS: _text_digest(content)}
    write_json(path, content)


def _records(folder: Path, names: Iterable[str] = (STATISTICS, RECORD)) -> list[tuple[Path, dict[str, Any]]]:
    found = []
    for name in names:
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            if isinstance(content[KEY]["files"], dict):
                found.append((folder / name, content))
        except (OSError, ValueError, KeyError, TypeError):  # missing, or not a record
            continue
    return found


def origin_of(folder: Path) -> dict[str, Any] | None:
    """The `origin` that `sign` recorded, if all files that it recorded are still there and have not changed."""
    own = own_files(folder)
    for _, content in _records(folder):
        if content[KEY]["files"].keys() <= own:
            return content[KEY].get("origin")
    return None


def own_files(folder: Path) -> set[str]:
    """The names of the files that `sign` recorded and that have not changed, and of the record itself."""
    own = set()
    for path, content in _records(folder):
        for name, digest in content[KEY]["files"].items():
            file = folder / name
            if file == path:
                same = digest == _text_digest(content)
            else:
                same = file.is_file() and not file.is_symlink() and digest == file_hash(file)
            if same:
                own.add(name)
        if path.name == RECORD:
            own.add(RECORD)
    return own


def _claimed(folder: Path) -> dict[str, str | None]:
    """The files recorded by `claim` or `own_path` and their hashes; None for one that a run has yet to finish."""
    return {name: digest for _, content in _records(folder, [CLAIMS]) for name, digest in content[KEY]["files"].items()}


def _is_claimed(file: Path, claimed: Mapping[str, str | None]) -> bool:
    if file.name not in claimed or not file.is_file() or file.is_symlink():
        return False
    return claimed[file.name] is None or claimed[file.name] == file_hash(file)


def _single(folder: Path) -> set[str]:
    """The files recorded by `own_path`."""
    return {name for _, content in _records(folder, [CLAIMS]) for name in content[KEY].get(SINGLE, ())}


def _record(folder: Path, files: Mapping[str, str | None], bundle: str = "", single: bool = False) -> None:
    """Add files to the record, whose other entries must not change meanwhile, see `alone_in`."""
    earlier = {name: digest for name, digest in _claimed(folder).items() if (folder / name).exists()}
    bundle = bundle or next((content[KEY].get("bundle", "") for _, content in _records(folder, [CLAIMS])), "")
    all_files = {**earlier, **files}
    alone = _single(folder) | files.keys() if single else _single(folder) - files.keys()
    record = {"regzoo": __version__, "bundle": bundle, "files": all_files, SINGLE: sorted(alone & all_files.keys())}
    write_json(folder / CLAIMS, {KEY: record})


def claim(folder: Path, names: Collection[str], bundle: str = "") -> None:
    """`check_folder`, and record files before they are written: they count as ours even if the run is cut short."""
    check_folder(folder, names, bundle)
    with alone_in(make_folder(folder)):
        _record(folder, dict.fromkeys(names), bundle)


def settle(folder: Path) -> None:
    """Record the content of the claimed files; a file that changes afterwards is no longer ours."""
    with alone_in(folder):
        claimed = _claimed(folder).keys() - _single(folder)
        if claimed:
            _record(folder, {name: file_hash(folder / name) for name in claimed if (folder / name).is_file()})


@contextmanager
def own_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """`regzoo.files.atomic_path` that replaces only a file of ours, see `check_file`, and records the new one."""
    target = Path(path)
    check_file(target)
    # Locked until the file is in its place: the record of another file leaves out files that are not there.
    with ExitStack() as lock, atomic_path(target) as temporary:
        yield temporary
        digest = file_hash(temporary)
        lock.enter_context(alone_in(target.parent))
        _record(target.parent, {target.name: digest}, single=True)


def check_file(path: str | os.PathLike[str]) -> None:
    """Raise `RegZooError` if the file exists and `own_path` did not write it, or it has changed since."""
    target = Path(path)
    if not os.path.lexists(target):
        return
    if target.name not in _single(target.parent) or not _is_claimed(target, _claimed(target.parent)):
        problem = "already exists, and this command did not write it or it has changed since"
        raise bad_file(target, problem, "move it, or name another file")


def check_folder(folder: Path, names: Collection[str], bundle: str = "", inputs: Iterable[Any] = ()) -> None:
    """Raise `RegZooError` if writing files would replace or remove an input, or replace a file that is not ours.

    Args:
        folder: the output folder, which need not exist.
        names: names of the files to be written.
        bundle: name of the bundle that will write them.
        inputs: files, or lists of files, that will be read. A new result removes the files of an earlier one.
    """
    flat = [str(item) for one in inputs if one for item in (one if isinstance(one, (list, tuple)) else [one])]
    existing = [folder / name for name in names if os.path.lexists(folder / name)]
    for path in existing:
        for name in flat:
            if Path(name).exists() and path.exists() and path.samefile(name):
                raise bad_file(name, f"is an input, and {path.name} would overwrite it", "name another folder")
    real = {name: Path(os.path.realpath(name)) for name in flat}
    inside = [name for name, file in real.items() if file.parent == Path(os.path.realpath(folder))]
    own = own_files(folder) if inside else set()
    for name in inside:
        if real[name].name in own:
            problem = "is an input and part of an earlier result, which the new one would replace"
            raise bad_file(name, problem, "name another folder")
    if not existing:
        return
    for _, content in _records(folder, (STATISTICS, RECORD, CLAIMS)):
        other = content[KEY].get("bundle")
        if bundle and other and other != bundle:
            raise bad_file(folder, f"holds a result of {other}", f"name another folder for the result of {bundle}")
    claimed = _claimed(folder)
    foreign = {path.name for path in existing if not _is_claimed(path, claimed)}
    for name in sorted(foreign - own_files(folder)) if foreign else ():
        problem = "already exists, and RegZoo did not write it or it has changed since"
        raise bad_file(folder / name, problem, "move it, or name another folder")


def discard(folder: Path, bundle: str = "") -> None:
    """Remove a bundle's own files from a folder, and the folder if it is then empty."""
    own = own_files(folder)
    if not own or any(content[KEY].get("bundle") != bundle for _, content in _records(folder)):
        return
    for name in own:
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
