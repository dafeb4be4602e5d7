"""What the tests of benchmarks share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The benchmark that a module of tests names in `SCRIPT`; it imports its neighbours and may set the threads."""
    threads = torch.get_num_threads()
    sys.path.insert(0, str(FOLDER))
    yield import_module(request.module.SCRIPT)
    sys.path.remove(str(FOLDER))
    torch.set_num_threads(threads)
