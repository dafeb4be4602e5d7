"""The benchmark of start-up runs every command and prints its row; how much time it takes depends on the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "start_up.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="os.wait4 is missing")
def test_every_command_has_a_row() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--rounds", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith(("| regzoo ", "| monai.bundle "))]
    assert len(rows) == 11 and all(float(row[2]) > 0 for row in rows)
