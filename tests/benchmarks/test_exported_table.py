"""The table of exported networks: printed by its script, and in the documentation as it was printed."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # the other tests keep theirs
    script = importlib.import_module("exported")
    monkeypatch.setattr(script, "FORMATS", ("torchscript",))  # the other one takes seconds more
    script.main(["--bundles", "abdominal_ct_ddmr", "--threads", "1", "--seconds", "0.1"])
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| `abdominal_ct_ddmr`")]
    assert [row.split(" | ")[1] for row in rows] == ["torchscript"]
    difference, ours, theirs = re.findall(r"\| (\de[+-]\d\d) \| (\d+) ms \| (\d+) ms \|$", rows[0])[0]
    assert float(difference) <= 1e-4 and int(ours) > 0 and int(theirs) > 0


def test_the_documentation_has_what_was_printed() -> None:
    saved = (ROOT / "benchmarks/results/exported.md").read_text(encoding="utf-8")
    table = [line for line in saved.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2 * len(list(ROOT.glob("bundles/*")))  # a header, and a row for each format
    assert "\n".join(table) in (ROOT / "docs/export.md").read_text(encoding="utf-8")
