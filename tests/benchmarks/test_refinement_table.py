"""The benchmark of refinements measures a cube and a pair of files, and prints a row of each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "refinement.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak comes from Linux's account of the process")
def test_small_rows_are_measured() -> None:
    command = [sys.executable, str(SCRIPT), "--cubes", "32", "--files", "32", "20"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (\S+(?: files)?) +\| ([\d.]+) +\|" + r" +([\d.]+) +\|" * 5, done.stdout, re.MULTILINE)
    assert [row[:2] for row in rows] == [("32×32×32", "0.03"), ("32×32×20 files", "0.02")]
    assert all(int(row[2]) > 0 and float(row[4]) > 0 and 100 < float(row[6]) < 3000 for row in rows)
