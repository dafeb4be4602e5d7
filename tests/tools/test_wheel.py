"""The distribution, installed where nothing leads to this checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from bundle_list import BUNDLES
from regzoo.datasets import load_records

ROOT = Path(__file__).resolve().parents[2]
NAME = "prostate_mr_trus_weak_ddf"
#: What a training and an export leave in a checkout.
LEFT_OVER = ("output/train/model.pt", "data/manifest.json", "models/model.ts")

pytestmark = pytest.mark.slow


def run(*command: str | Path, folder: Path) -> str:
    """Run a command in a folder, as in a fresh shell; returns what it printed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = {**kept, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, text=True, capture_output=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with a read-only installation, made from a source distribution of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"
    left_out = shutil.ignore_patterns("output", "data", "*.egg-info", "__pycache__", "model.ts", "model.onnx")
    for name in ("common", "bundles"):
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    for name in LEFT_OVER:
        (checkout / "bundles" / NAME / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / "bundles" / NAME / name).touch()
    run(sys.executable, "-c", "from setuptools import build_meta; build_meta.build_sdist('..')", folder=checkout)
    shutil.rmtree(checkout)
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", ".")
    run(sys.executable, "-m", "pip", *build, *folder.glob("*.tar.gz"), folder=folder)
    home = folder / "venv"
    venv.create(home)
    install = ("--python", home / "bin/python", "install", "--quiet", "--no-deps", *folder.glob("*.whl"))
    run(sys.executable, "-m", "pip", *install, folder=folder)
    (site,) = home.glob("lib/*/site-packages")
    # The dependencies of the tests' own environment, but not its link to the checkout, which is in a file like this.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    for path in (site, *site.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    return home


@pytest.fixture
def site(environment: Path) -> Path:
    (site,) = environment.glob("lib/*/site-packages")
    return site


def test_contains_every_bundle_but_not_what_runs_left_there(site: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "-z", "bundles"], cwd=ROOT, text=True, capture_output=True, check=True)
    files = {str(path.relative_to(site / "regzoo_bundles")) for path in site.glob("regzoo_bundles/**/*.*")}
    files |= {str(path.relative_to(site / "regzoo_bundles")) for path in site.glob("regzoo_bundles/*/LICENSE")}
    assert files == {name.removeprefix("bundles/") for name in tracked.stdout.split("\0") if name}
    for bundle in BUNDLES:
        installed = site / "regzoo_bundles" / bundle.name / "models" / "model.pt"
        assert installed.read_bytes() == (bundle / "models" / "model.pt").read_bytes()


def test_runs_from_any_folder_and_writes_nothing_into_the_installation(
    environment: Path, site: Path, prostate_phantoms: Path, tmp_path: Path
) -> None:
    def tree() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in site.rglob("*")}

    before, bundle = tree(), site / "regzoo_bundles" / NAME
    listed = run(environment / "bin/regzoo", "bundles", folder=tmp_path)
    assert {line.split(":")[0] for line in listed.splitlines() if line[0] != " "} == {
        "none",
        *(path.name for path in BUNDLES),
    }
    assert str(bundle) in listed.split()

    pair = load_records(prostate_phantoms, "val")[0]
    files = ("--fixed", pair["fixed_image"], "--moving", pair["moving_image"])
    run(environment / "bin/regzoo", "register", NAME, *files, "--out", "result", folder=tmp_path)
    assert (tmp_path / "result" / "field.nii.gz").is_file()

    python = (environment / "bin/python", "-m", "monai.bundle", "run", "--bundle_root", bundle)
    named = ("--fixed_image", pair["fixed_image"], "--moving_image", pair["moving_image"])
    run(*python, "--config_file", bundle / "configs/inference.json", *named, folder=tmp_path)
    assert len(list((tmp_path / NAME / "output" / "inference").rglob("field.nii.gz"))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"result", NAME}
    assert tree() == before
