"""Training over HTTP from finished labels, beside the released weights, and inference with what came of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("monailabel", reason="run by `make test-label`, in an environment of its own")

import numpy as np
import torch
from bundle_list import NAMES
from label_server import BUNDLES, Answer, LabelServer
from label_studies import DDMR, ENVIRONMENT, PROSTATE, fingerprints
from regzoo.datasets import load_records, load_single_records

#: So that an epoch takes seconds.
SMALL = {"samples_per_epoch": 8, "batch_size": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelServer]:
    """A server of its own, on empty studies."""
    folder = tmp_path_factory.mktemp("training")
    started = LabelServer(folder, folder / "studies", BUNDLES, ENVIRONMENT)
    for name in NAMES:
        file = started.models / name / "configs" / "train.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        assert SMALL.keys() <= config.keys()
        file.write_text(json.dumps(config | SMALL), encoding="utf-8")
    with started:
        yield started


def upload_images(server: LabelServer, abdomen: Path, numbers: range) -> None:
    """CTs with their finished labels."""
    for number in numbers:
        record = load_single_records(abdomen, "train")[number]
        server.upload("image", f"ct{number:02d}", Path(record["fixed_image"]))
        server.upload("label", f"ct{number:02d}", Path(record["fixed_label"]))


def upload_pairs(server: LabelServer, prostate: Path, numbers: range) -> None:
    """Pairs with the finished labels of both images, named in two ways."""
    for number in numbers:
        record = load_records(prostate, "train")[number]
        for side in ("fixed", "moving"):
            name = f"{side}{number:02d}" if number % 2 else f"case{number}_{side}"
            server.upload("image", name, Path(record[f"{side}_image"]))
            server.upload("label", name, Path(record[f"{side}_label"]))


def weights(file: Path) -> dict[str, Any]:
    """The tensors of a file."""
    read: dict[str, Any] = torch.load(file, weights_only=True)
    return read


def infer(server: LabelServer, bundle: str, **more: str) -> Answer:
    """Of two images of the studies."""
    if bundle not in PROSTATE:
        return server.infer(bundle, "ct00", moving_image="ct01", moving_label="ct01", **more)
    return server.infer(bundle, "fixed01", moving_image="moving01", moving_label="moving01", **more)


def runs_of(server: LabelServer, bundle: str) -> list[Path]:
    """The folders of the trainings that came to something, so far."""
    return sorted(path.parent for path in (server.models / bundle / "output" / "monai_label").glob("*/model.pt"))


def check_training(server: LabelServer, bundle: str, runs: int) -> dict[str, Any]:
    """Train once more, the `runs`-th time; the weights that came of it."""
    root = server.models / bundle
    before = fingerprints(root / "models", root / "configs", server.studies)
    answer = server.train(bundle, max_epochs=1, val_split=0.4)
    assert answer.status_code == 200, (answer.text, server.log.read_text()[-2000:])
    folders = runs_of(server, bundle)
    assert len(folders) == runs
    after = fingerprints(root / "models", root / "configs", server.studies)
    new = str(root / "models" / "monai_label.pt")
    assert {name: after[name] for name in before if name != new} == {n: h for n, h in before.items() if n != new}
    assert set(after) - {new} == set(before) - {new} and after[new] != before.get(new)
    assert (folders[-1] / "model.pt").read_bytes() == Path(new).read_bytes()
    return weights(Path(new))


def check_new_weights(server: LabelServer, bundle: str) -> None:
    """They can be asked for, and are others than the released ones, which answer as ever."""
    released = weights(server.models / bundle / "models" / "model.pt")
    new = weights(server.models / bundle / "models" / "monai_label.pt")
    assert {key: value.shape for key, value in new.items()} == {key: value.shape for key, value in released.items()}
    assert any((new[key] != released[key]).any() for key in new)
    usual = infer(server, bundle)
    asked = infer(server, bundle, model_filename="monai_label.pt")
    again = infer(server, bundle, model_filename="model.pt")
    images = [np.asarray(answer.image.dataobj) for answer in (usual, asked, again) if answer.image is not None]
    assert len(images) == 3, asked.detail
    np.testing.assert_array_equal(images[0], images[2])
    assert usual.params["labels"] != asked.params["labels"]


@pytest.mark.parametrize("bundle", NAMES)
def test_nothing_to_train_on(bundle: str, server: LabelServer) -> None:
    before = fingerprints(server.models, server.studies)
    assert server.train(bundle, max_epochs=1, val_split=0.4).status_code >= 400
    assert fingerprints(server.models, server.studies) == before


def in_the_background(server: LabelServer, bundle: str, request: dict[str, Any]) -> dict[str, Any]:
    """Train as viewers do; what the task says at its end."""
    server.ask("POST", f"/train/{bundle}", json=request).raise_for_status()
    end = time.monotonic() + 100
    while (task := server.get("/train/"))["status"] in ("SUBMITTED", "RUNNING"):
        if time.monotonic() > end:
            server.ask("DELETE", "/train/")
            pytest.fail(f"the training takes too long: {task['details']}")
        time.sleep(0.5)
    told: dict[str, Any] = task
    return told


@pytest.mark.parametrize("bundle", [DDMR, PROSTATE[0]])
def test_the_reason_is_told(bundle: str, server: LabelServer) -> None:
    """MONAI Label does not answer with it, but its task does: to who asks, and in 3D Slicer."""
    task = in_the_background(server, bundle, {"max_epochs": 1, "val_split": 0.4})
    assert task["status"] == "ERROR"
    assert any("finished label" in line for line in task["details"]), task["details"]
    assert "finished label" in server.log.read_text()


def test_single_images(server: LabelServer, abdomen_phantoms: Path) -> None:
    upload_images(server, abdomen_phantoms, range(4))
    first = check_training(server, DDMR, 1)
    check_new_weights(server, DDMR)
    upload_images(server, abdomen_phantoms, range(4, 6))
    time.sleep(1)  # a training's folder has the second of its start
    second = check_training(server, DDMR, 2)
    assert any((first[key] != second[key]).any() for key in first)


def test_images_without_a_partner(server: LabelServer, prostate_phantoms: Path) -> None:
    """CTs that are no pair, a fixed image alone, and a pair of which one is not finished."""
    record = load_records(prostate_phantoms, "train")[0]
    server.upload("image", "fixed99", Path(record["fixed_image"]))
    server.upload("label", "fixed99", Path(record["fixed_label"]))
    server.upload("image", "moving99", Path(record["moving_image"]))
    for bundle in PROSTATE:
        assert server.train(bundle, max_epochs=1, val_split=0.4).status_code >= 400
        assert not (server.models / bundle / "models" / "monai_label.pt").exists()
    assert re.search(r"no pair among the \d+ finished labels of the studies", server.log.read_text())


def test_pairs(server: LabelServer, prostate_phantoms: Path) -> None:
    """What has no partner is left out; later trainings take what was finished since."""
    upload_pairs(server, prostate_phantoms, range(3))
    first = {}
    for bundle in PROSTATE:
        first[bundle] = check_training(server, bundle, 1)
        check_new_weights(server, bundle)
    upload_pairs(server, prostate_phantoms, range(3, 6))
    for bundle in PROSTATE:
        second = check_training(server, bundle, 2)
        assert any((first[bundle][key] != second[key]).any() for key in second)


def test_a_training_in_the_background(server: LabelServer, prostate_phantoms: Path) -> None:
    """As 3D Slicer starts it: with every option of the panel."""
    bundle = PROSTATE[-1]
    upload_pairs(server, prostate_phantoms, range(3))
    config = server.get("/info/")["trainers"][bundle]["config"]
    request = {key: value[0] if isinstance(value, list) else value for key, value in config.items()}
    assert request["run_id"] == "" and request["pretrained"] is True
    task = in_the_background(server, bundle, request | {"max_epochs": 1})
    assert task["status"] == "DONE", "\n".join(map(str, task["details"]))
    assert not (server.models / bundle / "data").exists()


@pytest.mark.parametrize(("suffix", "bundle"), [(".mha", DDMR), (".nrrd", PROSTATE[-1])])
def test_no_training_reads_another_file(suffix: str, bundle: str, server: LabelServer, tmp_path: Path) -> None:
    """A client submits an image and a label whose headers name a file outside the studies, and starts a training."""
    (server.studies.parent / "secret.raw").write_text("root:x:0:0" * 200, encoding="utf-8")
    header = {
        ".mha": "ObjectType = Image\nNDims = 3\nDimSize = 9 9 9\nElementType = MET_UCHAR\n"
        "ElementDataFile = ../secret.raw\n",
        ".nrrd": "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 9 9 9\nencoding: raw\ndata file: ../secret.raw\n",
    }
    file = tmp_path / f"hostile{suffix}"
    file.write_text(header[suffix], encoding="utf-8")
    for kind in ("image", "label"):
        server.upload(kind, f"fixed_hostile{suffix[1:]}", file)
    task = in_the_background(server, bundle, {"max_epochs": 1, "val_split": 0.0})
    assert task["status"] == "ERROR"
    assert any("names another file" in line for line in task["details"]), task["details"]
    assert "root:x:0:0" not in server.log.read_text(encoding="utf-8", errors="replace")
