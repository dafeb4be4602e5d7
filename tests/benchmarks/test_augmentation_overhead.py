"""The benchmark of the augmentation runs and prints its figures; how large they are depends on the machine."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

SCRIPT = "augmentation_overhead"


def test_times_are_printed(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--quick"])
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
