"""The data set a bundle falls back on when the user names none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from regzoo.errors import RegZooError, bad_file
from regzoo_phantoms import abdomen, brain, prostate


@dataclass(frozen=True)
class Kind:
    """A kind of phantom: its writer, its parameters, its version, and the parameter that counts its cases."""

    write: Callable[..., Path]
    parameters: Callable[..., Any]
    version: int
    counted: str


KINDS = {
    "prostate": Kind(prostate.write_prostate_phantoms, prostate.PhantomParameters, prostate.VERSION, "pairs"),
    "abdomen": Kind(abdomen.write_abdomen_phantoms, abdomen.AbdomenParameters, abdomen.VERSION, "cases"),
    "brain": Kind(brain.write_brain_phantoms, brain.BrainParameters, brain.VERSION, "cases"),
}


def embedded_phantoms(folder: str | os.PathLike[str], kind: str = "prostate", **kwargs: Any) -> Path:
    """Phantoms in `folder`, written if they do not exist yet; prints one line about it.

    In a distributed run the first process writes and the others wait for it.

    Args:
        folder: where the phantoms are, or will be written.
        kind: ``prostate``, ``abdomen`` or ``brain``.
        kwargs: see `write_prostate_phantoms`, `write_abdomen_phantoms`, `write_brain_phantoms`.

    Returns:
        The folder.

    Raises:
        RegZooError: no such kind, or the folder holds something else, or phantoms made with other parameters.
    """
    if kind not in KINDS:
        raise RegZooError(f"phantoms of kind {kind!r} are unknown; use one of {', '.join(KINDS)}")
    target = Path(folder)
    workers = kwargs.pop("workers", None)
    wanted = KINDS[kind].parameters(**kwargs)
    distributed = dist.is_available() and dist.is_initialized()
    if not distributed or dist.get_rank() == 0:
        try:
            _write_or_check(target, kind, wanted, workers)
        finally:
            # Also after an error, or the other processes would deadlock. They then find the same error.
            if distributed:
                dist.barrier()
        return target
    dist.barrier()
    _check(target, kind, wanted)
    return target


def _write_or_check(target: Path, kind: str, wanted: Any, workers: int | None) -> None:
    """Write the phantoms, unless they exist and match."""
    if (target / "manifest.json").is_file():
        _check(target, kind, wanted)
        print(f"No data set was named: using the phantoms in {target}", flush=True)
        return
    counted = KINDS[kind].counted
    count = f"{getattr(wanted, counted)} + {wanted.held_out} {counted}"
    print(f"No data set was named: writing {count} of {kind} phantoms to {target}", flush=True)
    KINDS[kind].write(target, **asdict(wanted), workers=workers)


def _check(target: Path, wanted_kind: str, wanted: Any) -> None:
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
    if kind != wanted_kind or version != KINDS[wanted_kind].version:
        raise bad_file(path, f"phantoms of kind {kind!r}, version {version}, are not what this version writes", fix)
    # Converted through JSON like the manifest, so that a tuple and a list do not differ.
    expected = json.loads(json.dumps(asdict(wanted)))
    different = [
        f"{key} {found.get(key)} instead of {value}" for key, value in expected.items() if found.get(key) != value
    ]
    if different:
        raise bad_file(path, f"phantoms made with other parameters ({', '.join(different)})", fix)
