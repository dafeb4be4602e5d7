"""The table of the networks' arithmetic has a row for each network; how fast a step is depends on the machine."""

from __future__ import annotations

from types import ModuleType

import pytest
from bundle_list import NAMES

SCRIPT = "flops"


def test_every_network_has_a_row(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--quick", "--overlays", "demo"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {row[0]: row[1:] for row in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:])}
    assert list(rows) == NAMES
    for settings, batch, operations, milliseconds, rate, share in rows.values():
        assert settings.startswith("demo, ") and batch == "1" and share.endswith(" %")
        # All are rounded.
        assert float(rate) == pytest.approx(1000 * float(operations) / float(milliseconds), rel=0.1, abs=1)
