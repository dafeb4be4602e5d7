"""The `regzoo` command, called as the console script does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import pytest
import regzoo
from regzoo.cli import main
from regzoo.errors import RegZooError, one_line_errors, user_error


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["regzoo", *arguments])
    main()


def test_phantom_writes_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    arguments = ["--pairs", "2", "--held_out", "1", "--seed", "7", "--spacing", "4", "--slice_thickness", "8"]
    call(monkeypatch, "phantom", "prostate", str(folder), *arguments)
    assert str(folder) in capsys.readouterr().out
    assert len(list((folder / "train/mr_images").iterdir())) == 2
    assert len(list((folder / "val/us_labels").iterdir())) == 1
    assert json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["parameters"]["seed"] == 7
    spacing = nib.load(next((folder / "train/mr_images").iterdir())).header.get_zooms()
    assert max(spacing) == pytest.approx(8, rel=0.1) and min(spacing) == pytest.approx(4, rel=0.1)


def test_a_mistake_is_one_line_and_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--fixed", str(tmp_path / "none.nii.gz"), "--moving", "m.nii.gz", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "register", "no_such_bundle", *arguments)
    assert stop.value.code == 1
    assert capsys.readouterr().err.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_the_hook_shows_user_errors_in_one_line_and_others_in_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    one_line_errors()
    for error, lines in ((RegZooError("file: wrong; mend"), 1), (KeyError("a bug"), 5)):
        try:
            try:
                raise error
            except Exception as inner:
                raise RuntimeError("applying transform") from inner
        except Exception as outer:
            sys.excepthook(type(outer), outer, outer.__traceback__)
        shown = capsys.readouterr().err.strip().splitlines()
        assert len(shown) == 1 if lines == 1 else len(shown) >= lines
        assert (shown[0] == "error: file: wrong; mend") == (lines == 1)


def test_user_error_ends_on_a_cycle() -> None:
    first, second = RuntimeError(), RuntimeError()
    first.__cause__, second.__cause__ = second, first
    assert user_error(first) is None


def test_public_names() -> None:
    assert {name for name in regzoo.__all__ if getattr(regzoo, name) is None} == set()
    with pytest.raises(AttributeError):
        _ = regzoo.no_such_name
