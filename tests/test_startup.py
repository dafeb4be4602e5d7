"""What the `regzoo` command imports, and what becomes of a bundle that needs more. Never how long it takes."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_grid, smooth_noise, write
from regzoo.spatial import DisplacementField
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
    refined = ["--refine", "mr", "--refine_options", "{'steps': [2, 2], 'spacing': 2, 'lattice': 4}"]
    imported = imported_by("register", "none", *pair, "--align", "header", *refined, "--out", str(tmp_path / "out"))
    assert {"monai.transforms", "regzoo.refinement.adam"} <= imported
    # Nor PyTorch's compiler, which PyTorch's own Adam imports.
    assert not imported & {*UNUSED, "torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard"}
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


@pytest.fixture(scope="module")
def saved(pair: list[str]) -> Path:
    """A folder with a displacement field, labels and points."""
    folder = Path(pair[1]).parent
    grid = make_grid((16, 18, 14))
    DisplacementField(torch.full((3, *grid.shape), 0.5), grid).save(folder / "field.nii.gz")
    write(folder / "label.nii.gz", np.ones(grid.shape, dtype=np.uint8), grid.affine)
    (folder / "points.csv").write_text("x,y,z\n4,5,6\n")
    return folder


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("apply", "field.nii.gz --image --moving.nii.gz --out warped.nii.gz"),
        ("apply", "field.nii.gz --points points.csv --frame RAS --from moving --to fixed --out moved.csv"),
        ("invert", "field.nii.gz --out inverse.nii.gz"),
        ("compose", "field.nii.gz field.nii.gz --out composed.nii.gz"),
        ("convert", "field.nii.gz --reference --fixed.nii.gz --out disp_converted.nii.gz"),
    ],
)
def test_commands_on_saved_transformations_do_without_monai(command: str, arguments: str, saved: Path) -> None:
    words = [str(saved / word) if "." in word else word for word in arguments.split()]
    assert "monai" not in imported_by(command, *words)
    assert Path(words[-1]).is_file()


def test_labels_are_carried_with_a_part_of_monai(saved: Path) -> None:
    files = [str(saved / name) for name in ("field.nii.gz", "label.nii.gz", "carried.nii.gz")]
    imported = imported_by("apply", files[0], "--label", files[1], "--out", files[2])
    assert "monai" in imported and not imported & set(UNUSED)
    assert Path(files[2]).is_file()


@pytest.mark.parametrize("line", ["--help", "bundles", "apply --help"])
def test_what_computes_nothing_does_without_pytorch(line: str) -> None:
    assert not imported_by(*line.split()) & {"monai", "torch", "numpy"}


def test_what_was_hidden_works_afterwards(tmp_path: Path) -> None:
    """The record of a training, in the process of a registration."""
    code = (
        "import sys; from regzoo.startup import UNUSED, quick_imports\n"
        "with quick_imports():\n"
        "    import monai.bundle, regzoo.engines\n"
        "assert not set(UNUSED) & set(sys.modules)\n"
        "with quick_imports():\n"  # MONAI is there; nothing is hidden again
        "    import ignite.engine\n"
        "regzoo.engines.EventWriter(sys.argv[1]).add_scalar('loss', 1.0, 1)\n"
        "assert {'ignite', 'tensorboard'} <= set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert next(tmp_path.glob("events.*")).stat().st_size


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep their ways")
def test_freed_memory_is_kept() -> None:
    """Blocks of 64 MB after the first one find pages that are there already."""
    code = """
import resource, sys
import numpy as np
from regzoo.startup import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
np.ones(1 << 23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(1 << 23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    default, kept = (
        int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("default", "keep")
    )
    assert default > 100 and kept < default / 10
