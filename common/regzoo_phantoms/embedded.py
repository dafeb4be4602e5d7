"""The data set that a bundle uses when the user names none."""

from __future__ import annotations

import difflib
import inspect
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

from regzoo.errors import RegZooError, bad_file
from regzoo_phantoms.abdomen import AbdomenPhantoms
from regzoo_phantoms.brain import BrainPhantoms
from regzoo_phantoms.hippocampus import HippocampusPhantoms
from regzoo_phantoms.prostate import ProstatePhantoms
from regzoo_phantoms.writing import PhantomSet

KINDS: dict[str, type[PhantomSet]] = {
    one.kind: one for one in (ProstatePhantoms, AbdomenPhantoms, BrainPhantoms, HippocampusPhantoms)
}


def phantom_set(kind: str = "prostate", **parameters: Any) -> PhantomSet:
    """The set of phantoms of a kind.

    Raises:
        RegZooError: no such kind or parameter, or a value that makes no sense.
    """
    if not isinstance(kind, str) or kind not in KINDS:
        raise RegZooError(f"phantoms of kind {kind!r} are unknown; use one of {', '.join(KINDS)}")
    known = inspect.signature(KINDS[kind]).parameters
    if unknown := next((name for name in parameters if name not in known), None):
        near = difflib.get_close_matches(unknown, known, 1)
        fix = f"did you mean {near[0]}?" if near else f"use some of {', '.join(known)}"
        raise RegZooError(f"phantoms of kind {kind!r} have no {unknown!r:.60}; {fix}")
    hints = get_type_hints(KINDS[kind])
    for name, value in parameters.items():
        hint = hints[name]
        types = hint if hint in (int, bool) else hint | int
        if not isinstance(value, types) or (isinstance(value, bool) and hint is not bool):
            words = {int: "a whole number", bool: "true or false"}.get(hint, "a number")
            raise RegZooError(f"phantoms of kind {kind!r}: {name} {value!r:.60} is not {words}; write one")
    wanted = KINDS[kind](**parameters)
    wanted.check()
    return wanted


def embedded_phantoms(folder: str | os.PathLike[str], kind: str = "prostate", **parameters: Any) -> Path:
    """Phantoms in `folder`, written if they do not exist yet; prints one line about it.

    In a distributed run the first process writes and the others wait for it.

    Args:
        folder: where the phantoms are, or will be written.
        kind: ``prostate``, ``abdomen``, ``brain`` or ``hippocampus``.
        parameters: see the set of phantoms of that kind; and ``workers``.

    Returns:
        The folder.

    Raises:
        RegZooError: see `phantom_set`; or the folder holds something else, or other phantoms.
    """
    import ignite.distributed as idist  # takes a second

    target, workers = Path(folder), parameters.pop("workers", None)
    wanted = phantom_set(kind, **parameters)
    if idist.get_rank() == 0:
        try:
            _write_or_check(target, wanted, workers)
        finally:
            # Also after an error, or the other processes would deadlock. They then find the same error.
            idist.barrier()
    else:
        idist.barrier()
        _check(target, wanted)
    return target


def _write_or_check(target: Path, wanted: PhantomSet, workers: int | None) -> None:
    """Write the phantoms, unless they exist and match."""
    if (target / "manifest.json").is_file():
        _check(target, wanted)
        print(f"Using the phantoms in {target}", flush=True)
        return
    count = f"{wanted.count} + {wanted.held_out} {wanted.unit}s"
    print(f"Writing {count} of {wanted.kind} phantoms to {target}", flush=True)
    try:
        wanted.write(target, workers)
    except RegZooError:
        if not (target / "manifest.json").is_file():
            raise
        _check(target, wanted)  # another process, which started at the same moment, was faster


def _check(target: Path, wanted: PhantomSet) -> None:
    """Raise `RegZooError` unless the manifest in a folder matches."""
    path = target / "manifest.json"
    fix = f"remove the folder {target} or name another"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kind, version, found = manifest["kind"], manifest["version"], manifest["parameters"]
    except OSError as error:
        raise bad_file(path, "no such file", fix) from error
    except (ValueError, KeyError, TypeError) as error:
        raise bad_file(path, "is not the manifest of a phantom set", fix) from error
    if (kind, version) != (wanted.kind, wanted.version):
        raise bad_file(path, f"phantoms of kind {kind!r}, version {version}, are not what this version writes", fix)
    different = [
        f"{key} {found.get(key)} instead of {value}"
        for key, value in asdict(wanted).items()  # type: ignore[call-overload]
        if found.get(key) != value
    ]
    if different:
        raise bad_file(path, f"phantoms made with other parameters ({', '.join(different)})", fix)
