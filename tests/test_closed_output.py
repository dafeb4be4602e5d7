"""A command whose reader closes the pipe, as ``head`` does, ends without a message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_list import BUNDLES, pairs
from regzoo.bundles import find_bundle


def read_until(text: str, arguments: list[str], unbuffered: bool, folder: Path) -> tuple[int, str]:
    """The exit status of a Python command, and its standard error, if its output is closed at a line with a text."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    with (folder / "errors.txt").open("w+") as errors:
        pipe = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
        with subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, **pipe) as process:
            assert process.stdout is not None
            while text and text not in process.stdout.readline():
                assert process.poll() is None
            process.stdout.close()
        errors.seek(0)
        return process.returncode, errors.read()


@pytest.mark.parametrize(("unbuffered", "status"), [(True, 141), (False, 0)])
@pytest.mark.parametrize("arguments", [["bundles"], ["phantom", "brain", "new", "--cases=1", "--spacing=16"]])
def test_regzoo(arguments: list[str], unbuffered: bool, status: int, tmp_path: Path) -> None:
    assert read_until("", ["-m", "regzoo", *arguments], unbuffered, tmp_path) == (status, "")


def test_a_run_of_a_bundle(prostate_phantoms: Path, tmp_path: Path) -> None:
    """Its log goes to standard output, too; lines of it that cannot be written are dropped."""
    pair, root = pairs(prostate_phantoms)[0], find_bundle("none")
    settings = {"fixed_image": pair["fixed_image"], "moving_image": pair["moving_image"], "align": "header"}
    settings |= {"config_file": str(root / "configs" / "inference.json"), "output_dir": str(tmp_path / "out")}
    settings |= {"device": "cpu", "logging_file": str(BUNDLES[0] / "configs" / "logging.conf"), "outputs": "field"}
    arguments = [f"--{key}={value}" for key, value in settings.items()]
    command = ["-m", "monai.bundle", "run", *arguments]
    status, said = read_until("Engine run", command, unbuffered=True, folder=tmp_path)
    assert status == 141 and "Logging error" not in said and "error:" not in said
