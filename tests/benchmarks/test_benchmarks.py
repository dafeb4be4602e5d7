"""The benchmarks run and print what they promise; how fast anything is depends on the machine and is not tested."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_list import BUNDLES

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
PAPERS = [path.name for path in BUNDLES if (path / "configs/variants/paper.json").is_file()]
#: Scripts and their options.
SCRIPTS = {"run.py": [], "profile_step.py": [], "training_step.py": ["--steps", "4"], "kernels.py": []}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs() -> dict[str, str]:
    """What the scripts print for small volumes; they run side by side."""
    started = {
        script: subprocess.Popen(
            [sys.executable, str(FOLDER / script), "--quick", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        )
        for script, options in SCRIPTS.items()
    }
    found = {}
    for script, process in started.items():
        found[script], errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
    return found


def cells(text: str) -> list[list[str]]:
    """The rows of the Markdown table in a text, without the heading."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def number(cell: str) -> float:
    """The first number of a cell."""
    found = re.search(r"-?\d+(\.\d+)?(e-?\d+)?", cell)
    assert found, cell
    return float(found.group())


def test_a_step_of_every_bundle_is_measured(outputs: dict[str, str]) -> None:
    rows = cells(outputs["training_step.py"])
    assert [row[0] for row in rows] == PAPERS
    assert all(number(row[4]) > 0 and 0 <= number(row[6]) < 100 for row in rows)


def test_a_step_of_every_bundle_is_counted(outputs: dict[str, str]) -> None:
    rows = cells(outputs["kernels.py"])
    assert [row[0] for row in rows] == PAPERS
    for row in rows:
        kernels, augmentation, waits = (int(cell) for cell in row[4:7])
        assert 0 < augmentation <= min(300, kernels) and waits == 0
        assert number(row[7]) > 0


def test_all_rows_are_measured(outputs: dict[str, str]) -> None:
    rows = cells(outputs["run.py"])
    assert [row[0].split(",")[0] for row in rows] == [
        "multiscale Dice",
        "bending energy",
        "label warp",
        "SSIM",
        "local NCC",
        "training step",
    ]
    for row in rows:
        ours, theirs, ratio = (number(cell) for cell in row[1:4])
        assert ours > 0
        # Both times are printed with one decimal, which is coarse for those of a small volume.
        assert ratio == pytest.approx(theirs / ours, rel=0.1 + 0.1 / ours)
        assert all(number(cell) >= 0 for cell in row[6:8])


def test_results_equal_the_direct_computation(outputs: dict[str, str]) -> None:
    rows = cells(outputs["run.py"])
    assert all(number(row[5]) <= 1e-4 for row in rows[:-1])
    assert rows[-1][5] == "—"


def test_step_takes_memory(outputs: dict[str, str]) -> None:
    step = cells(outputs["run.py"])[-1]
    # Gradients and Adam's two moments of the network's parameters, float32, are the least a step can take.
    from regzoo.networks import LocalNet

    parameters = sum(p.numel() for p in LocalNet(channels=16).parameters())
    assert number(step[6]) > 0.9 * 3 * 4 * parameters / 2**20


def test_profile_accounts_for_the_whole_step(outputs: dict[str, str]) -> None:
    rows = {row[0]: [number(cell) for cell in row[1:]] for row in cells(outputs["profile_step.py"])}
    assert sum(row[2] for row in rows.values()) == pytest.approx(100, abs=1)
    for name, (forward, backward, both, _) in rows.items():
        assert both == pytest.approx(forward + backward, abs=0.11)
        # Every part of the network computes in both passes; hardly anything may be without an owner.
        if name.startswith(("encoder", "decoder", "heads")):
            assert forward > 0 and backward > 0
    assert rows["anything else"][2] < 5
