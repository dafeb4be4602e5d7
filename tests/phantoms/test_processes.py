"""Phantoms written in several processes, which are forked from one that may hold anything."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

from regzoo_phantoms.writing import in_processes


class InACycle:
    """An object that only the garbage collector finds, and that notes which process finalised it."""

    def __init__(self, file: Path) -> None:
        self.file, self.itself = file, self

    def __del__(self) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")


def collect(case: Any) -> dict[str, Any]:
    gc.collect()
    return {"pid": os.getpid()}


def test_a_process_does_not_finalise_what_it_inherits(tmp_path: Path) -> None:
    # A session of ONNX Runtime, for one, waits for its threads then, which exist in the parent alone.
    gc.disable()
    try:
        InACycle(tmp_path / "pids")
        workers = {result["pid"] for result in in_processes(collect, [1, 2, 3], 2)}  # type: ignore[list-item]
    finally:
        gc.enable()
    assert workers and os.getpid() not in workers and not (tmp_path / "pids").exists()
    gc.collect()
    assert (tmp_path / "pids").read_text(encoding="utf-8").split() == [str(os.getpid())]
