"""Trainings that a benchmark runs one after another in processes of their own, and goes on with when started again."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import monai
import regzoo
import torch
from measure import machine
from regzoo.errors import bad_file
from regzoo.files import write_text

HERE = Path(__file__).resolve().parent
BUNDLES, DATA, RESULTS = HERE.parent / "bundles", HERE / "data", HERE / "results"
RUN = [sys.executable, "-m", "monai.bundle", "run"]


def phantom_kind(bundle: str) -> str:
    """The kind of phantoms that a bundle trains on."""
    config = json.loads((BUNDLES / bundle / "configs" / "train.json").read_text(encoding="utf-8"))
    return str(config["phantoms"].get("kind", "prostate"))


def execute(command: Sequence[str], bundle: str, log: Path) -> None:
    """Run a command in a bundle's folder; what it prints goes to the end of a file."""
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    with log.open("a", encoding="utf-8") as file:
        ended = subprocess.run(command, cwd=BUNDLES / bundle, env=environment, stdout=file, stderr=file)
    if ended.returncode:
        last = log.read_text(encoding="utf-8").strip().rpartition("\n")[2]
        raise bad_file(log, f"the run ended with status {ended.returncode} ({last})", "mend that and start again")


def words(options: Mapping[str, object]) -> list[str]:
    """Settings as a bundle's command line takes them."""
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def fingerprint(*parts: bytes) -> str:
    """A short name for a recipe, by its content and that of the package: another recipe is another run."""
    package = sorted(Path(regzoo.__file__).parent.rglob("*.py"))
    return f"{zlib.crc32(b''.join([*parts, *(path.read_bytes() for path in package)])):08x}"


def heading(work: str, device: torch.device | None = None) -> str:
    """What was done, on which machine (by default its GPU, if there is one) and with what."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    software = f"PyTorch {torch.__version__}, MONAI {monai.__version__}, Python {platform.python_version()}"
    return f"{work}; {machine(device, torch.get_num_threads())}; {software}"


def save_result(path: Path, title: str, text: str, script: str, arguments: Sequence[str] | None, note: str) -> None:
    """Write a result with the command that made it.

    Args:
        path: of the file.
        title: its heading.
        text: what was found.
        script: what was run, in ``benchmarks/``.
        arguments: with what; None for the arguments of this process.
        note: how to read the values.
    """
    command = shlex.join(["python", f"benchmarks/{script}", *(sys.argv[1:] if arguments is None else arguments)])
    write_text(path, f"# {title}\n\n{text}\n\nWritten by `{command}`. {note}\n")
    print(f"written: {path}")
