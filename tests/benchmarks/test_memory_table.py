"""The benchmark of memory runs and prints its row; how much time it takes depends on the machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "memory.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is another one elsewhere")
def test_the_smallest_row_is_measured() -> None:
    command = [sys.executable, str(SCRIPT), "--rows", "1"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = re.findall(r"^\| 100×100×100 +\| 1\.0 +\| 1 +\| ([\d.]+) +\| (\d+) +\| met ", done.stdout, re.MULTILINE)
    assert 0.3 < float(row[0]) < 1.06 and int(row[1]) <= 60
