"""What the `regzoo` command imports, and what becomes of a bundle that needs more. Never how long it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import smooth_noise, write
from regzoo.startup import UNUSED

#: Runs the command and ends with a line of what it has imported.
COMMAND = (
    "import atexit, sys; from regzoo.cli import main\n"
    "atexit.register(lambda: print('imported', *sorted(name for name, module in sys.modules.items() if module)))\n"
    "main()"
)


def imported_by(*arguments: str) -> set[str]:
    """The modules that a command has imported when it ends."""
    ended = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.splitlines()[-1].split()[1:])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two images as arguments of `regzoo register`."""
    folder = tmp_path_factory.mktemp("pair")
    images = (smooth_noise((16, 18, 14), 2, seed) for seed in (0, 1))
    named = zip(("--fixed", "--moving"), images, strict=True)
    return [word for name, image in named for word in (name, write(folder / f"{name}.nii.gz", image))]


def test_a_registration_imports_monai_without_what_it_does_not_use(pair: list[str], tmp_path: Path) -> None:
    imported = imported_by("register", "none", *pair, "--align", "header", "--out", str(tmp_path / "out"))
    assert "monai.transforms" in imported
    assert not imported & {*UNUSED, "torch.distributed.fsdp", "torch.utils.tensorboard"}
    # matplotlib.pyplot is hidden from MONAI; pictures need matplotlib and get it.
    assert (tmp_path / "out" / "quality.png").stat().st_size > 10_000


def test_a_bundle_that_needs_a_hidden_package_is_run_with_everything(pair: list[str], tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.json"
    needs_scipy_signal = {"_target_": "UltrasoundConfidenceMapTransform"}
    step = {"_target_": "Lambdad", "keys": "fixed_image", "func": needs_scipy_signal, "overwrite": False}
    transforms = ["@load", "@alignment", "@still", step]
    overlay.write_text(json.dumps({"preprocessing": {"_target_": "Compose", "transforms": transforms}}))
    out = tmp_path / "out"
    imported = imported_by(
        "register", "none", *pair, "--align", "header", "--overlays", str(overlay), "--out", str(out)
    )
    assert not imported & set(UNUSED)  # in the first process, which did not write the result
    assert (out / "field.nii.gz").is_file()
