"""Signals in the middle of writing: nothing half-written stays, and what a killed process left is cleared away."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from regzoo.engines import save_weights
from regzoo.errors import RegZooError
from regzoo.files import atomic_path, check_writable, partial_folder, write_text
from regzoo.report.tables import write_csv
from regzoo.spatial import write_nifti
from torch import nn

WRITER = """
import signal, sys, time
from pathlib import Path
from regzoo.errors import end_on_signals
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests in the background may ignore these
signal.signal(signal.SIGINT, signal.default_int_handler)
from regzoo.files import atomic_path
end_on_signals()
with atomic_path(Path(sys.argv[1]) / "result.txt") as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""
#: A training, or a registration, whose files take for ever to be written.
SLOW = """
import sys, time
import nibabel, torch
def slow(*args, **kwargs):
    print("writing", flush=True)
    time.sleep(60)
torch.save = nibabel.save = slow
from {module} import {name}
sys.argv = sys.argv[:1] + {arguments!r}
{call}
"""
BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "prostate_mr_trus_weak_ddf"


def interrupted(code: str, number: int, *arguments: str, cwd: Path | None = None) -> int:
    """Start a program, send it a signal while it writes, return its exit status."""
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=cwd, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any(line == "writing\n" for line in process.stdout)
    process.send_signal(number)
    return process.wait(timeout=60)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, -signal.SIGINT)],
    ids=["terminated", "hung up", "interrupted"],
)
def test_a_signal_leaves_nothing(number: int, status: int, tmp_path: Path) -> None:
    assert interrupted(WRITER, number, str(tmp_path)) == status
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    interrupted(WRITER, signal.SIGKILL, str(tmp_path))
    (left,) = tmp_path.glob(".partial-*")
    kept = [tmp_path / ".partial-elsewhere-1-abc", tmp_path / ".partial-mine"]
    for folder in kept:
        folder.mkdir()
    with partial_folder(tmp_path) as ours:
        write_text(tmp_path / "result.txt", "whole")
        assert ours.is_dir() and not left.exists()
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "result.txt"])
    assert (tmp_path / "result.txt").read_text() == "whole"


def test_another_running_process_keeps_its_folder(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
        (theirs,) = tmp_path.glob(".partial-*")
        write_text(tmp_path / "ours.txt", "whole")
        assert theirs.is_dir()
        writer.kill()


def test_handlers_of_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import signal, os, threading; from regzoo.errors import one_line_errors\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "thread = threading.Thread(target=one_line_errors); thread.start(); thread.join()\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
        "mine = lambda *_: None; signal.signal(signal.SIGTERM, mine); one_line_errors()\n"
        "assert signal.getsignal(signal.SIGTERM) is mine and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_training_that_is_terminated_while_it_saves(prostate_phantoms: Path, tmp_path: Path) -> None:
    settings = {"spacing": "[5,5,5]", "size": "[18,14,13]", "channels": 2, "batch_size": 2, "samples_per_epoch": 2}
    settings |= {"folds": 2, "device": "cpu", "dataset_dir": prostate_phantoms, "output_dir": tmp_path}
    arguments = ["run", "--config_file", "configs/train.json"]
    arguments += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    code = SLOW.format(module="monai.bundle.scripts", name="run", arguments=arguments, call="import fire; fire.Fire()")
    assert interrupted(code, signal.SIGTERM, cwd=BUNDLE) == 143
    assert [path.name for path in tmp_path.rglob("*") if "partial" in path.name or path.suffix == ".pt"] == []


def test_a_registration_that_is_terminated_while_it_writes(prostate_phantoms: Path, tmp_path: Path) -> None:
    train = prostate_phantoms / "train"
    fixed, moving = (sorted((train / f"{kind}_images").glob("*.nii.gz"))[0] for kind in ("us", "mr"))
    out = tmp_path / "out"
    arguments = ["register", str(BUNDLE), str(fixed), str(moving), "--out", str(out), "--device", "cpu"]
    code = SLOW.format(module="regzoo.cli", name="main", arguments=arguments, call="main()")
    assert interrupted(code, signal.SIGTERM) == 143
    assert list(tmp_path.iterdir()) == []


def test_time_that_a_write_takes(tmp_path: Path) -> None:
    """Looking for what others left must not hold up the writing of many files."""
    for number in range(300):
        (tmp_path / f"{number}.txt").touch()
    start = time.process_time()
    for number in range(20):
        write_text(tmp_path / f"{number}.txt", "x")
    assert time.process_time() - start < 1
    assert not list(tmp_path.glob(".partial-*"))


def test_a_name_in_a_text_may_be_any_bytes(tmp_path: Path) -> None:
    write_text(tmp_path / "table.csv", "Müller,M\udcfcller\n")
    assert (tmp_path / "table.csv").read_bytes() == "Müller,M\\udcfcller\n".encode()


def test_a_folder_whose_name_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(RegZooError, match=r"cannot write here \(file name too long\); name a folder"):
        check_writable(tmp_path / "new" / ("x" * 300))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_made_for_a_file_goes_with_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for folder in ("new/inner", "mine/new", "mine"):
        with pytest.raises(KeyError), atomic_path(tmp_path / folder / "file.txt") as temporary:
            temporary.write_text("half")
            raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("a small disk cannot be mounted here")
    try:
        array = np.random.default_rng(0).random((40, 40, 40))
        writers: dict[str, Callable[[Path], object]] = {
            "weights.pt": lambda path: save_weights(nn.Linear(400, 400), path),
            "image.nii.gz": lambda path: write_nifti(path, array, np.eye(4)),
            "table.csv": lambda path: write_csv(path, ["a"], [["x" * 300_000]]),
        }
        for name, write in writers.items():
            (tmp_path / name).write_text("before")
            with pytest.raises(RegZooError, match=rf"{re.escape(name)}: cannot be written because the disk is full; "):
                write(tmp_path / name)
            assert (tmp_path / name).read_text() == "before" and not list(tmp_path.glob(".partial-*"))
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
