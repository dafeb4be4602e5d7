"""One registration tool on one pair of ``peers.py``: run in a process of its own, once; kept, and measured."""

from __future__ import annotations

import inspect
import json
import math
import os
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from peer_measures import disagreement, measure, read_field
from peer_methods import METHODS, Entry
from peer_pairs import Facts
from peer_tools import THREADS
from regzoo.errors import RegZooError
from regzoo.files import make_folder, write_json
from trainings import DATA, HERE, fingerprint

TOOLS = HERE.parent / ".venv-peers" / "bin" / "python"
#: Intensity, HU; images of other modalities have no such values.
AIR = -1000.0
#: Greatest mean difference between a tool's own warped image and ours from its field, % of the range.
AGREES = 1.0
#: Share of the machine that other work may take while a time is measured.
BUSY_SHARE = 0.05


class Run:
    """One method on one pair: done once, kept in a folder."""

    def __init__(self, group: str, pair: Path, method: str) -> None:
        self.group, self.pair, self.method = group, pair, method
        self.entry = METHODS.get(method)  # None: unregistered
        name = "".join(c if c.isalnum() else "_" for c in method) or "unregistered"
        self.folder = DATA / "peers" / "runs" / group / pair.name / name

    @property
    def result(self) -> Path:
        """The file that says that it was done."""
        return self.folder / "run.json"

    def recipe(self) -> str:
        """What the result depends on, beside the versions of the tools."""
        parts = [recipe(self.entry)] if self.entry else []
        parts += [path.read_bytes() for path in sorted(self.pair.glob("*.nii.gz"))]
        own = self.entry is not None and self.entry.ours
        return fingerprint(*parts) if own else checksum(*parts)

    def is_done(self) -> bool:
        """Whether it was done with this recipe."""
        return self.result.is_file() and json.loads(self.result.read_text(encoding="utf-8"))["recipe"] == self.recipe()

    def is_busy(self) -> bool:
        """Whether other work took part of the machine while it ran."""
        return self.result.is_file() and self.row()["others"] > BUSY_SHARE

    def run(self) -> None:
        """Register in a process of its own.

        Raises:
            RegZooError: see `execute`.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        make_folder(self.folder)
        if self.entry is None:
            fixed = sitk.ReadImage(str(self.pair / "fixed.nii.gz"))
            field = sitk.Image(fixed.GetSize(), sitk.sitkVectorFloat32)
            field.CopyInformation(fixed)
            sitk.WriteImage(field, str(self.folder / "field.nii.gz"))
            write_json(self.result, {"recipe": self.recipe()})
            return
        found = execute(self.method, self.pair, self.folder)
        write_json(self.result, found | {"recipe": self.recipe()})

    def row(self) -> dict[str, float]:
        """What it took and what it is worth; measured again when the measures have changed."""
        known = json.loads(self.result.read_text(encoding="utf-8"))
        code = checksum((HERE / "peer_measures.py").read_bytes(), (self.pair / "pair.json").read_bytes())
        if known.get("measured_by") != code:
            values = measure(self.pair, Facts.of(self.pair), read_field(self.folder / "field.nii.gz"))
            known |= {"measures": values, "measured_by": code}
            write_json(self.result, known)
        times = {key: known.get(key, math.nan) for key in ("seconds", "cpu_seconds", "peak_mib", "others")}
        return {**known["measures"], **times}


def execute(method: str, pair: Path, out: Path) -> dict[str, Any]:
    """Register a pair in a process of its own.

    Args:
        method: of `peer_methods.METHODS`.
        pair: folder of the images, see ``peer_methods.py``.
        out: existing folder for the field and ``run.json``.

    Returns:
        The content of ``run.json``, seconds of the whole process, and `disagreement`.

    Raises:
        RegZooError: the tool failed, or its own warped image is not what its field says.
    """
    entry, log, result = METHODS[method], out / "log.txt", out / "run.json"
    command = [sys.executable if entry.ours else str(TOOLS), str(HERE / "peer_methods.py"), method, str(pair), str(out)]
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        ended = subprocess.run(command, env=environment(), stdout=file, stderr=file)
    if ended.returncode:
        last = log.read_text(encoding="utf-8").strip().rpartition("\n")[2]
        raise RegZooError(f"{method} on {pair} failed ({last}); see {log}")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    result.unlink()  # until it is complete
    # Padding of CTs below air counts as air.
    moving = sitk.Maximum(sitk.ReadImage(str(pair / entry.moving), sitk.sitkFloat32), AIR)
    field, own = (sitk.ReadImage(str(out / f"{name}.nii.gz")) for name in ("field", "own"))
    differs = disagreement(field, moving, own, np.asarray(found["affine"]))
    if not differs < AGREES:
        raise RegZooError(f"{method} on {pair}: its field does not give its own image (difference {differs:.2f} %)")
    return found | {"process_s": time.perf_counter() - start, "disagreement": differs}


def checksum(*parts: bytes) -> str:
    """A short name for contents."""
    return f"{zlib.crc32(b''.join(parts)):08x}"


def recipe(entry: Entry) -> bytes:
    """The code of a method and its settings."""
    return (inspect.getsource(entry.run) + repr(dict(inspect.getclosurevars(entry.run).nonlocals))).encode()


def environment() -> dict[str, str]:
    """Two threads for every library."""
    names = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
    threads = {f"{name}_NUM_THREADS": str(THREADS) for name in names}
    return os.environ | threads | {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(THREADS)}


def installed() -> dict[str, str]:
    """Package → version, as the tables name them, of the tools' environment and of our own."""
    if not TOOLS.is_file():
        raise RegZooError(f"{TOOLS} is missing: the tools have an environment of their own; run: make peers")
    code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    listed = [
        subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        for python in (str(TOOLS), sys.executable)
    ]
    theirs, ours = ({plain(name): v for name, v in json.loads(done.stdout).items()} for done in listed)
    packages = {entry.package: ours if entry.ours else theirs for entry in METHODS.values()}
    return {name: known[plain(name)] for name, known in packages.items() if plain(name) in known}


def plain(package: str) -> str:
    """A package's name as pip compares it."""
    return package.lower().replace("_", "-")
