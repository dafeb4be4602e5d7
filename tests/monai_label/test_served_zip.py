"""Zips of bundles, unpacked in the app of a server that has no other `regzoo` than theirs: answers and a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="run by `make test-label`, in an environment of its own")

import nibabel as nib
import numpy as np
import torch
from bundle_list import kind
from label_server import ROOT, LabelServer
from label_studies import DDMR, ENVIRONMENT, WEAK_DDF, fingerprints
from label_truth import masks_of, paint, registrar
from regzoo.datasets import load_records
from regzoo_tools.packing import package
from zip_only import environment

NAMES = [DDMR, WEAK_DDF]


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, prostate_phantoms: Path, abdomen_phantoms: Path
) -> Iterator[LabelServer]:
    """With the unpacked zips for its bundles, and pairs of finished labels in its studies."""
    folder = tmp_path_factory.mktemp("zips")
    variables = environment(folder / "site", **ENVIRONMENT)
    # The server's app is in the package, and a zip is the only place that has it.
    variables["PYTHONPATH"] += os.pathsep + str(folder / "server" / "app" / "model" / WEAK_DDF)
    started = LabelServer(folder / "server", folder / "studies", [], variables)
    for name in NAMES:
        with zipfile.ZipFile(package(name, folder / f"{name}.zip")) as archive:
            archive.extractall(started.models)
    started.names = list(NAMES)
    file = started.models / WEAK_DDF / "configs" / "train.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    small = {"samples_per_epoch": 8, "batch_size": 2}  # so that an epoch takes seconds
    assert small.keys() <= config.keys()
    file.write_text(json.dumps(config | small), encoding="utf-8")
    with started:
        for phantoms, prefix, pairs in ((prostate_phantoms, "", 3), (abdomen_phantoms, "ct_", 1)):
            for number, record in enumerate(load_records(phantoms, "val")[:pairs]):
                for side in ("fixed", "moving"):
                    started.upload("image", f"{prefix}{side}{number}", Path(record[f"{side}_image"]))
                    started.upload("label", f"{prefix}{side}{number}", Path(record[f"{side}_label"]))
        yield started


def places_of_the_package(server: LabelServer) -> set[str]:
    """The files that an `import regzoo` of the server has come to so far."""
    notes = server.folder.parent / "site" / "imports.txt"
    return set(notes.read_text(encoding="utf-8").splitlines()) if notes.is_file() else set()


def packages(server: LabelServer) -> set[str]:
    """Those from the zips."""
    return {str(server.models / name / "regzoo" / "__init__.py") for name in NAMES}


def test_the_installed_package_is_hidden(tmp_path: Path) -> None:
    """As it has to be for the other tests to show anything: here it is installed, and with the server it is not."""
    importing = [sys.executable, "-c", "import regzoo; print(regzoo.__file__)"]
    usual, hidden = (
        subprocess.run(importing, cwd=tmp_path, env={**os.environ, **more}, capture_output=True, text=True, check=False)
        for more in ({}, environment(tmp_path / "site"))
    )
    assert usual.returncode == 0 and Path(usual.stdout.strip()).is_file()
    assert hidden.returncode != 0 and "No module named 'regzoo'" in hidden.stderr


@pytest.mark.parametrize("name", NAMES)
def test_answers(name: str, server: LabelServer, tmp_path: Path) -> None:
    """Those of the bundle that the zip was made of."""
    assert sorted(server.get("/info/")["models"]) == sorted(NAMES)
    fixed, moving = ("ct_fixed0", "ct_moving0") if kind(name) == "abdomen" else ("fixed0", "moving0")
    answer = server.infer(name, fixed, moving_image=moving, moving_label=moving)
    assert answer.status == 200 and answer.image is not None, answer.detail
    found = np.asarray(answer.image.dataobj)
    studies = server.studies
    label = studies / "labels" / "final" / f"{moving}.nii.gz"
    result = registrar(name).register(studies / f"{fixed}.nii.gz", studies / f"{moving}.nii.gz", label)
    result.save(tmp_path, "label")
    expected = nib.load(tmp_path / "warped_label.nii.gz")
    np.testing.assert_array_equal(found, paint(masks_of(np.asarray(expected.dataobj))))
    np.testing.assert_allclose(answer.image.affine, expected.affine, atol=1e-4)
    assert len(np.unique(found)) > 2
    used = places_of_the_package(server)
    assert used and used <= packages(server)


def test_training(server: LabelServer) -> None:
    """Beside the released weights, which stay as they are; the package stays as it was unpacked, too."""
    root = server.models / WEAK_DDF
    kept = [root / part for part in ("models", "regzoo", "docs")]
    before = fingerprints(*kept)
    answer = server.train(WEAK_DDF, max_epochs=1, val_split=0.4)
    assert answer.status_code == 200, (answer.text, server.log.read_text()[-2000:])
    new = root / "models" / "monai_label.pt"
    after = fingerprints(*kept)
    assert after.pop(str(new)) and after == before
    assert (root / "models" / "model.pt").read_bytes() == (ROOT / "bundles" / WEAK_DDF / "models/model.pt").read_bytes()
    released, trained = (torch.load(file, weights_only=True) for file in (root / "models" / "model.pt", new))
    assert released.keys() == trained.keys()
    assert any((released[key] != trained[key]).any() for key in released)
    used = places_of_the_package(server)
    assert used and used <= packages(server)
