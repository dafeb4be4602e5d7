"""The benchmark of the augmentation runs and prints its figures; how large they are depends on the machine."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module; it imports its neighbours, and sets the threads of PyTorch."""
    threads = torch.get_num_threads()
    sys.path.insert(0, str(FOLDER))
    import augmentation_overhead

    yield augmentation_overhead
    sys.path.remove(str(FOLDER))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("network", ["voxelmorph", "localnet"])
def test_times_are_printed(network: str, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--quick", "--network", network])
    printed = capsys.readouterr().out
    times = [float(number) for number in re.findall(r"\| ([\d.]+) ms \|", printed)]
    assert len(times) == 3
    assert min(times) > 0
    share = re.search(r"alone over the step without it \| ([\d.]+) %", printed)
    assert share
    assert float(share.group(1)) == pytest.approx(100 * times[0] / times[1], rel=0.05)


def test_requests_that_make_no_sense(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["--quick", "--save"])
    assert "not saved" in capsys.readouterr().err
