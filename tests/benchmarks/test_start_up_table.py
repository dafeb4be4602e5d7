"""The benchmark of start-up has a row for each command; how much time they take depends on the machine."""

from __future__ import annotations

import re
import sys
from types import ModuleType

import pytest

SCRIPT = "start_up"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="os.wait4 is missing")
def test_a_command_and_a_training_have_a_row(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = {name: words for name, words in script.COMMANDS.items() if name == "regzoo invert"}
    monkeypatch.setattr(script, "COMMANDS", commands)
    monkeypatch.setattr(script, "IMPORTS", ("import torch", "import regzoo"))
    script.main(["--rounds", "1"])
    rows = re.findall(r"^\| (.*?) +\| +([\d.]+) +\|", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in rows] == ["import torch", "import regzoo", *commands, script.TRAINING]
    assert all(float(seconds) > 0 for _, seconds in rows)
