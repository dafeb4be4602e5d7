"""The table of the networks' arithmetic has a row for each network; how fast a step is depends on the machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from bundle_list import NAMES

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module; it imports its neighbours, and sets the threads of PyTorch."""
    threads = torch.get_num_threads()
    sys.path.insert(0, str(FOLDER))
    import flops

    yield flops
    sys.path.remove(str(FOLDER))
    torch.set_num_threads(threads)


def test_every_network_has_a_row(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--quick", "--overlays", "demo"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {row[0]: row[1:] for row in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:])}
    assert list(rows) == NAMES
    for settings, batch, operations, milliseconds, rate, share in rows.values():
        assert settings.startswith("demo, ") and batch == "1" and share.endswith(" %")
        # All are rounded.
        assert float(rate) == pytest.approx(1000 * float(operations) / float(milliseconds), rel=0.1, abs=1)
