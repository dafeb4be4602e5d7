"""The benchmark of the augmentation runs and prints its figures; how large they are depends on the machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "augmentation_overhead.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The script as a user starts it."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("network", ["voxelmorph", "localnet"])
def test_times_are_printed(network: str) -> None:
    finished = run("--quick", "--network", network)
    assert finished.returncode == 0, finished.stderr
    times = [float(number) for number in re.findall(r"\| ([\d.]+) ms \|", finished.stdout)]
    assert len(times) == 3
    assert min(times) > 0
    share = re.search(r"alone over the step without it \| ([\d.]+) %", finished.stdout)
    assert share
    assert float(share.group(1)) == pytest.approx(100 * times[0] / times[1], rel=0.05)


def test_requests_that_make_no_sense() -> None:
    assert "not saved" in run("--quick", "--save").stderr
