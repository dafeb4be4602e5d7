"""Training as MONAI Label starts it: with its lists of finished labels, its overrides and a handler of its own."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_list import NAMES, on_single_images
from regzoo.datasets import load_records, load_single_records
from regzoo.errors import user_error
from test_training import BUNDLES, DDMR, small


@pytest.fixture
def copy(bundle: str, tmp_path: Path) -> Path:
    """A copy of a bundle with small settings and weights that fit them."""
    root = tmp_path / bundle
    shutil.copytree(BUNDLES / bundle, root, ignore=shutil.ignore_patterns("output", "data"))
    file = root / "configs" / "train.json"
    config = json.loads(file.read_text(encoding="utf-8")) | small(bundle)
    file.write_text(json.dumps(config, indent=4), encoding="utf-8")
    parser = monai.bundle.ConfigParser(config)
    torch.save(parser.get_parsed_content("network_def").state_dict(), root / "models" / "model.pt")
    return root


@pytest.fixture
def studies(bundle: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The finished labels of a studies folder, as MONAI Label lists them."""
    folder = tmp_path / "studies"
    (folder / "labels" / "final").mkdir(parents=True)
    single = on_single_images(bundle)
    listed = []
    records = load_single_records(dataset, "train") if single else load_records(dataset, "train")
    for number, record in enumerate(records[:4]):
        for side in ("fixed",) if single else ("fixed", "moving"):
            name = f"ct{number}" if single else f"{side}{number:02d}"
            image, label = folder / f"{name}.nii.gz", folder / "labels" / "final" / f"{name}.nii.gz"
            shutil.copy(record[f"{side}_image"], image)
            volume = nib.load(record[f"{side}_label"])
            values = np.asarray(volume.dataobj)
            if values.ndim == 4:  # an annotator draws one map: the landmarks in the gland
                values = np.where(values[..., 1] > 0, 2, values[..., 0]).astype(np.uint8)
            nib.save(nib.Nifti1Image(values, volume.affine), label)
            listed.append({"image": str(image), "label": str(label)})
    monkeypatch.setenv("MONAI_LABEL_STUDIES", str(folder))
    monkeypatch.setitem(sys.modules, "monailabel", types.ModuleType("monailabel"))
    return listed


def start(root: Path, training: list[Any], validation: list[Any] | None, **overrides: Any) -> None:
    """Train as MONAI Label's `BundleTrainTask` does."""
    file = root / "configs" / "train.json"
    handlers = monai.bundle.ConfigParser.load_config_file(file)["train"]["handlers"]
    assert all(handler.get("_target_") for handler in handlers)
    loader = {"_target_": "CheckpointLoader", "load_path": str(root / "models" / "model.pt"), "strict": False}
    handlers.insert(0, loader | {"load_dict": {"model": "$@network"}})
    data: dict[str, Any] = {"train#dataset#data": training}
    if validation is not None:
        data["validate#dataset#data"] = validation
    monai.bundle.run(
        run_id="run",
        init_id=None,
        final_id=None,
        meta_file=str(root / "configs" / "metadata.json"),
        config_file=str(file),
        **{"bundle_root": str(root), "train#trainer#max_epochs": 2, "device": "cpu", "train#handlers": handlers},
        **data,
        **overrides,
    )


def digests(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("bundle", NAMES)
def test_finished_labels_train_and_leave_the_released_weights_alone(
    bundle: str, copy: Path, studies: list[dict[str, str]], tmp_path: Path
) -> None:
    before, seen = digests(copy), digests(tmp_path / "studies")
    start(copy, studies[:-2], studies[-2:])
    (run,) = (copy / "output" / "monai_label").iterdir()
    settings = torch.load(run / "last.pt", weights_only=True)["settings"]
    assert list(settings["data"]) == [
        f"ct{number}" if on_single_images(bundle) else f"fixed{number:02d}" for number in settings_range(bundle)
    ]
    after = digests(copy)
    new = set(after) - set(before)
    assert {name: after[name] for name in before} == before  # models/model.pt among them
    assert {name for name in new if not name.startswith("output/monai_label/")} == {"models/monai_label.pt"}
    assert after["models/monai_label.pt"] == after[str((run / "model.pt").relative_to(copy))]
    assert digests(tmp_path / "studies") == seen  # no phantoms, nothing in the studies
    assert torch.load(run / "last.pt", weights_only=True)["epoch"] == 2
    assert {"run.json", "config.json", "data.json", "log.txt", "epochs.csv"} <= {path.name for path in run.iterdir()}
    released = torch.load(copy / "models" / "model.pt", weights_only=True)
    trained = torch.load(copy / "models" / "monai_label.pt", weights_only=True)
    assert released.keys() == trained.keys()
    moved = [
        torch.dist(released[k].float(), trained[k].float()) / released[k].float().norm()
        for k in released
        if "weight" in k
    ]
    assert max(moved) > 0 and float(np.median(moved)) < 0.5  # it went on from the released weights


def settings_range(bundle: str) -> range:
    """The images, or pairs, of four that are trained on if the last two of all images are to be validated on."""
    return range(2) if on_single_images(bundle) else range(3)


@pytest.mark.parametrize("bundle", ["prostate_mr_trus_weak_ddf", DDMR])
def test_a_second_training_has_a_folder_of_its_own(bundle: str, copy: Path, studies: list[dict[str, str]]) -> None:
    start(copy, studies[:-2], [])
    first = digests(copy)
    (copy / "output" / "monai_label" / next((copy / "output" / "monai_label").iterdir())).rename(
        copy / "output" / "monai_label" / "earlier"
    )
    start(copy, studies, [], samples_per_epoch=4)
    assert len(list((copy / "output" / "monai_label").iterdir())) == 2
    assert digests(copy)["models/monai_label.pt"] != first["models/monai_label.pt"]


@pytest.mark.parametrize("bundle", ["prostate_mr_trus_weak_ddf"])
def test_labels_without_a_pair_end_in_a_line(bundle: str, copy: Path, studies: list[dict[str, str]]) -> None:
    alone = [entry for entry in studies if "fixed" in Path(entry["image"]).name]
    with pytest.raises(RuntimeError) as caught:
        start(copy, alone, [])
    line = str(user_error(caught.value))
    assert "no pair among the 4 finished labels" in line and "\n" not in line
    assert not (copy / "models" / "monai_label.pt").exists()


@pytest.mark.parametrize("bundle", ["prostate_mr_trus_weak_ddf"])
def test_other_trainings_serve_nothing(bundle: str, copy: Path, dataset: Path) -> None:
    start(copy, *(load_records(dataset, split)[:3] for split in ("train", "val")))
    assert (copy / "output" / "train" / "model.pt").is_file()
    assert not (copy / "models" / "monai_label.pt").exists() and not (copy / "output" / "monai_label").exists()
