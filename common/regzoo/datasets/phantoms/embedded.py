"""The data set a bundle falls back on when the user names none."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from regzoo.datasets.phantoms.prostate import VERSION, PhantomParameters, write_prostate_phantoms
from regzoo.errors import bad_file


def embedded_phantoms(folder: str | os.PathLike[str], **kwargs: Any) -> Path:
    """Prostate phantoms in `folder`, written if they are not there yet; says so in one line.

    In a distributed run the first process writes and the others wait for it.

    Args:
        folder: where the phantoms are or are to be.
        kwargs: see `write_prostate_phantoms`.

    Returns:
        The folder.

    Raises:
        RegZooError: the folder holds something else, or phantoms made with other parameters.
    """
    target = Path(folder)
    workers = kwargs.pop("workers", None)
    wanted = PhantomParameters(**kwargs)
    distributed = dist.is_available() and dist.is_initialized()
    if not distributed or dist.get_rank() == 0:
        try:
            _write_or_check(target, wanted, workers)
        finally:
            # Also after an error: the others must not wait for ever; they find no manifest, or the same mistake.
            if distributed:
                dist.barrier()
        return target
    dist.barrier()
    _check(target, wanted)
    return target


def _write_or_check(target: Path, wanted: PhantomParameters, workers: int | None) -> None:
    """Make sure that the phantoms are there."""
    if (target / "manifest.json").is_file():
        _check(target, wanted)
        print(f"No data set was named: using the phantoms in {target}", flush=True)
        return
    count = f"{wanted.pairs} + {wanted.held_out}"
    print(f"No data set was named: writing {count} pairs of prostate phantoms to {target}", flush=True)
    write_prostate_phantoms(target, **asdict(wanted), workers=workers)


def _check(target: Path, wanted: PhantomParameters) -> None:
    """Make sure that the manifest in a folder says what is wanted."""
    path = target / "manifest.json"
    mend = f"remove the folder {target} or name another"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kind, version, found = manifest["kind"], manifest["version"], manifest["parameters"]
    except OSError as error:
        raise bad_file(path, "no such file", mend) from error
    except (ValueError, KeyError, TypeError) as error:
        raise bad_file(path, "is not the manifest of a phantom set", mend) from error
    if kind != "prostate" or version != VERSION:
        raise bad_file(path, f"phantoms of kind {kind!r}, version {version}, are not what this version writes", mend)
    # Through JSON, as the manifest went, so that 1 and 1.0 or a tuple and a list do not differ.
    expected = json.loads(json.dumps(asdict(wanted)))
    different = [
        f"{key} {found.get(key)} instead of {value}" for key, value in expected.items() if found.get(key) != value
    ]
    if different:
        raise bad_file(path, f"phantoms made with other parameters ({', '.join(different)})", mend)
