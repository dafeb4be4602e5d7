"""The `regzoo` command, called as the console script does."""

from __future__ import annotations

import inspect
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import pytest
import regzoo
from bundle_list import BUNDLES, config
from regzoo.cli import _commands, _members, main
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


def test_ctrl_c_ends_a_command_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("regzoo.cli.fire.Fire", interrupted)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "bundles")
    assert stop.value.code == 130 and capsys.readouterr().err == ""


def test_the_hook_shows_every_error_in_one_line_and_keeps_the_traceback_of_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    one_line_errors()

    def shown(error: Exception) -> list[str]:
        try:
            try:
                raise error
            except Exception as inner:
                raise RuntimeError("Failed to instantiate component 'a.B' with kwargs: {}") from inner
        except Exception as outer:
            sys.excepthook(type(outer), outer, outer.__traceback__)
        return capsys.readouterr().err.strip().splitlines()

    assert shown(RegZooError("file: wrong; mend")) == ["error: file: wrong; mend"]
    assert not list(tmp_path.iterdir())
    (line,) = shown(ValueError("a\nbug"))
    (kept,) = tmp_path.iterdir()
    assert line == f"error: a.B: ValueError: a bug; the traceback is in {kept}"
    assert "Traceback" in kept.read_text() and "a\nbug" in kept.read_text()
    assert "disk: no space left on device" in shown(OSError(28, "No space left on device", "disk"))[0]
    monkeypatch.setenv("REGZOO_TRACEBACK", "1")
    lines = shown(KeyError("a bug"))
    assert lines[0].startswith("Traceback") and lines[-1].startswith("error: a.B: KeyError: ")


@pytest.mark.parametrize(
    "arguments",
    [["register", "--help"], ["register", "none", "-h"], ["phantom", "brain", "--help"], ["bundles", "--help"]],
)
def test_help_of_a_command_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *arguments)
    assert stop.value.code == 0
    shown = capsys.readouterr()
    assert arguments[0] in shown.out + shown.err and "ERROR" not in shown.out + shown.err


def _functions() -> list[tuple[str, Callable[..., None]]]:
    """Every command with its words."""
    groups = {name: _members(one) for name, one in _commands().items() if not inspect.isfunction(one)}
    alone = [(name, one) for name, one in _commands().items() if name not in groups]
    return alone + [(f"{group} {name}", one) for group, members in groups.items() for name, one in members.items()]


@pytest.mark.parametrize(("words", "function"), _functions())
def test_help_shows_every_word_of_the_documentation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, function: Callable[..., None]
) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, *words.split(), "--help")
    shown = " ".join("".join(capsys.readouterr()).split())
    text, _, arguments = (inspect.getdoc(function) or "").partition("Args:")
    for paragraph in text.strip().split("\n\n"):
        assert " ".join(paragraph.split()) in shown
    for argument in re.split(r"\n    (?=\w+: )", arguments.rstrip())[1:]:
        assert " ".join(argument.partition(": ")[2].split()) in shown
    assert "GROUP" not in shown and "FIRE" not in shown


@pytest.mark.parametrize("group", ["phantom", "study"])
def test_help_of_a_group_lists_its_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], group: str
) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, group, "--help")
    shown = "".join(capsys.readouterr())
    assert all(f" {name}\n" in shown for name in _members(_commands()[group]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("phantoms", "regzoo phantoms: no such command; did you mean phantom?"),
        ("phantom prostat folder", "regzoo phantom prostat: no such command; did you mean prostate?"),
        ("study zzz", "regzoo study zzz: no such command; use one of report, run, status"),
        ("--fixed image register none", "--fixed: stands before the command; write regzoo COMMAND, then the options"),
        ("-x register none", "-x: stands before the command; write regzoo COMMAND, then the options"),
        ("study --jobs 2 run a", "--jobs: stands before the command; write regzoo study COMMAND, then the options"),
        ("register --fixed image", "regzoo register: BUNDLE is missing; see regzoo register --help"),
        ("apply field --image a", "regzoo apply: OUT is missing; see regzoo apply --help"),
        ("apply -i a field", "regzoo apply: OUT is missing; see regzoo apply --help"),
        ("datalist folder", "regzoo datalist: --fixed is missing; see regzoo datalist --help"),
        ("apply field --image --out b", "--image: has no value; write one after it"),
        ("apply field --image= --out b", "--image: has no value; write one after it"),
        ("apply field b --image a --from", "--from: has no value; write one after it"),
        ("convert -f.nii.gz b.h5", "-f.nii.gz: begins like an option; if it is a file, write ./-f.nii.gz"),
        ("study run --redo a.json --job 3", "--job: no such option of regzoo study run; did you mean --jobs?"),
        ("study run --redo missing.json", "missing.json: no such file; name the JSON file of a study"),
        ("export . -f onnx", "-f: no such option of regzoo export; did you mean --format?"),
        (
            "apply f.nii -o --b.tif -l --a.nii",
            "--b.tif: has a suffix that cannot be written here; let it end in .nii, .nii.gz, .nrrd, .mha, .seg.nrrd",
        ),
        ("study run a.json --job 3", "--job: no such option of regzoo study run; did you mean --jobs?"),
    ],
)
def test_mistyped_and_missing_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *line.split())
    assert stop.value.code == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_name_of_two_lines_is_told_of_in_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "verify", "two\nlines")
    error = capsys.readouterr().err
    assert error.startswith("error: two\\nlines: is not a bundle") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b'{"name":', "is not valid JSON (Expecting value: line 1 column 9 (char 8)); correct it there"),
        (
            b"\xff\xfe",
            "is not valid JSON ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte); correct",
        ),
        (b"[]", 'is not a configuration; write {"setting": value}'),
        (b'{"name": "A"}', "has no task; add it, see regzoo verify"),
        (None, "no such file; name the folder of a bundle"),
    ],
)
def test_bundles_of_broken_metadata(
    metadata: bytes | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configs = tmp_path / "bundles" / "mine" / "configs"
    configs.mkdir(parents=True)
    (configs / "inference.json").write_text("{}")
    if metadata is not None:
        (configs / "metadata.json").write_bytes(metadata)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "bundles")
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: bundles/mine/configs/metadata.json: {message}")


def test_bundles_lists_what_each_is_for_and_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, "bundles")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * (len(BUNDLES) + 1)
    for bundle in BUNDLES:
        metadata = config(bundle, "metadata")
        first = lines.index(f"{bundle.name}: {metadata['name']}")
        assert lines[first + 1 : first + 3] == [f"    {metadata['task']}", f"    {bundle}"]


def test_user_error_ends_on_a_cycle() -> None:
    first, second = RuntimeError(), RuntimeError()
    first.__cause__, second.__cause__ = second, first
    assert user_error(first) is None


def test_public_names() -> None:
    assert {name for name in regzoo.__all__ if getattr(regzoo, name) is None} == set()
    with pytest.raises(AttributeError):
        _ = regzoo.no_such_name
