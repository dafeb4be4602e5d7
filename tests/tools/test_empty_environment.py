"""The zips on a machine without this package: `make test-zoo`, which names a folder for the virtual environment.

What is installed there is what the metadata in the zips ask for, and nothing else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_list import BUNDLES, REPRESENTATIVES
from regzoo.datasets import Record, load_records
from regzoo.inference import Registrar
from regzoo_tools.bundle import Bundle
from regzoo_tools.check_metadata import requirements
from regzoo_tools.check_workflow import small_phantoms
from regzoo_tools.packing import package

ENVIRONMENT = os.environ.get("REGZOO_ZOO_ENVIRONMENT")
COMMON = Path(__file__).parents[2] / "common"
#: Rows of the table that need tools which a bundle does not ask for.
NEED_TOOLS = {"Python style", "metadata schema"}

pytestmark = [
    pytest.mark.skipif(ENVIRONMENT is None, reason="takes minutes and a virtual environment: make test-zoo"),
    pytest.mark.parametrize("name", [bundle.name for bundle in BUNDLES], scope="module"),
]


@pytest.fixture(scope="module")
def unpacked(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, as somebody unpacks it from its zip."""
    folder = tmp_path_factory.mktemp(name)
    with zipfile.ZipFile(package(name, folder / "bundle.zip")) as archive:
        archive.extractall(folder)
    return folder / name


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has what the zips ask for, made anew if they ask for something else."""
    wanted: set[str] = set()
    for bundle in BUNDLES:
        wanted |= {str(requirement) for requirement in requirements(Bundle(bundle)) if requirement.name != "regzoo"}
    folder = Path(str(ENVIRONMENT)).absolute()
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != "\n".join(sorted(wanted)):
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        # PyTorch first: what comes later would else choose a build of it.
        subprocess.run([*install, *(line for line in wanted if line.startswith("torch="))], check=True)
        subprocess.run([*install, *sorted(wanted)], check=True)
        stamp.write_text("\n".join(sorted(wanted)), encoding="utf-8")
    without = subprocess.run([python, "-c", "import regzoo"], cwd=folder, env=environment(), capture_output=True)
    assert b"No module named 'regzoo'" in without.stderr
    return python


def environment() -> dict[str, str]:
    """As in a fresh shell: nothing leads to this checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run(python: Path, folder: Path, *arguments: str, **variables: str) -> str:
    """Run Python in a folder; returns what it printed."""
    done = subprocess.run(
        [str(python), *arguments],
        cwd=folder,
        env=environment() | variables,
        text=True,
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def phantoms(unpacked: Path) -> Path:
    """A data set for the bundle, which its zip does not contain."""
    return small_phantoms(Bundle(unpacked), unpacked.parent / "phantoms")


def settings(phantoms: Path) -> list[str]:
    """For a training of seconds."""
    few = ["--folds", "2", "--samples_per_epoch", "4", "--max_epochs", "1"]
    return ["--dataset_dir", str(phantoms), *few]


@pytest.fixture(scope="module")
def trained(unpacked: Path, python: Path, phantoms: Path) -> Path:
    """Where a training from the zip, started in another folder, left its results."""
    elsewhere = unpacked.parent / "elsewhere"
    elsewhere.mkdir()
    arguments = ["--config_file", f"{unpacked}/configs/train.json", "--bundle_root", str(unpacked)]
    run(python, elsewhere, "-m", "monai.bundle", "run", "training", *arguments, *settings(phantoms))
    assert list(elsewhere.iterdir()) == []
    return unpacked / "output" / "train"


@pytest.fixture(scope="module")
def pair(phantoms: Path) -> Record:
    return load_records(phantoms, "val")[0]


def test_verifies(unpacked: Path, python: Path, tmp_path: Path) -> None:
    """With the tools from elsewhere, and the package from the zip."""
    for name in ("regzoo_phantoms", "regzoo_tools"):
        (tmp_path / name).symlink_to(COMMON / name)
    table = run(python, unpacked, "-m", "regzoo", "verify", ".", PYTHONPATH=str(tmp_path))
    rows = {row.split("|")[0].strip(): row.split("|")[1].strip() for row in table.splitlines() if "|" in row}
    assert {check for check, result in rows.items() if result == "skipped"} == NEED_TOOLS
    assert "FAILED" not in rows.values() and sum(result == "ok" for result in rows.values()) > 20


def test_trains_and_evaluates(unpacked: Path, python: Path, trained: Path, phantoms: Path) -> None:
    released = torch.load(unpacked / "models/model.pt", weights_only=True)
    new = torch.load(trained / "model.pt", weights_only=True)
    assert {name: value.shape for name, value in new.items()} == {n: v.shape for n, v in released.items()}
    assert any(not torch.equal(value, released[name]) for name, value in new.items())
    files = "['configs/train.json','configs/evaluate.json']"
    run(python, unpacked, "-m", "monai.bundle", "run", "--config_file", files, *settings(phantoms), "--pictures", "1")
    assert (trained / "evaluation" / "cases.csv").is_file()


def test_infers_as_the_bundle_in_the_project_does(unpacked: Path, python: Path, pair: Record, tmp_path: Path) -> None:
    files = [str(pair[key]) for key in ("fixed_image", "moving_image", "moving_label")]
    named = [part for key in ("fixed_image", "moving_image", "moving_label") for part in (f"--{key}", str(pair[key]))]
    for folder, start, config in (
        ("inside", unpacked, ["--config_file", "configs/inference.json"]),
        ("outside", tmp_path, ["--config_file", f"{unpacked}/configs/inference.json", "--bundle_root", str(unpacked)]),
    ):
        run(python, start, "-m", "monai.bundle", "run", *config, *named, "--output_dir", str(tmp_path / folder))
    warped = {path.parents[1].name: path for path in tmp_path.glob("*/*/warped_label.nii.gz")}
    inside, outside = (nib.load(warped[folder]) for folder in ("inside", "outside"))
    Registrar(unpacked.name, device="cpu").register(*files).save(tmp_path / "project", "label")
    own = nib.load(tmp_path / "project" / "warped_label.nii.gz")
    for image in (inside, outside):
        np.testing.assert_allclose(image.affine, own.affine)
        # Up to voxels whose value is rounded up by one build of PyTorch and down by another.
        assert np.mean(np.asanyarray(image.dataobj) != np.asanyarray(own.dataobj)) < 1e-3


def test_registers_by_the_command_inside(unpacked: Path, python: Path, pair: Record, tmp_path: Path) -> None:
    arguments = ["--fixed", str(pair["fixed_image"]), "--moving", str(pair["moving_image"]), "--out", str(tmp_path)]
    arguments += ["--label", str(pair["moving_label"])]
    run(python, unpacked, "-m", "regzoo", "register", ".", *arguments)
    assert (tmp_path / "warped_label.nii.gz").is_file()


def test_trains_in_two_processes(name: str, unpacked: Path, python: Path, phantoms: Path, tmp_path: Path) -> None:
    if name not in REPRESENTATIVES:
        pytest.skip("another bundle stands for it")
    files = f"['{unpacked}/configs/train.json','{unpacked}/configs/multi_gpu_train.json']"
    arguments = ["--config_file", files, "--bundle_root", str(unpacked), "--output_dir", str(tmp_path)]
    processes = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run(python, tmp_path, *processes, "-m", "monai.bundle", "run", "training", *arguments, *settings(phantoms))
    assert (tmp_path / "model.pt").is_file()
