"""Training and evaluation on real images, where there are any: ``../shared/data`` beside the repository."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from regzoo.datasets import load_single_records
from regzoo.report import read_csv

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "hippocampus_mr_weak_ddf"
HIPPOCAMPUS = ROOT.parent / "shared" / "data" / "hippocampus_mr" / "Task04_Hippocampus"


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="no ../shared/data/hippocampus_mr")
def test_hippocampus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader, two steps of training, and the evaluation on pairs of images that the training did not see."""
    records = load_single_records(HIPPOCAMPUS, "train")
    assert (len(records), len({record["patient"] for record in records})) == (200, 131)
    first = nib.load(records[0]["fixed_image"])
    label = nib.load(records[0]["fixed_label"])
    assert first.shape == label.shape
    assert np.unique(label.dataobj).tolist() == [0, 1, 2]

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the configuration sets its own
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "dataset_dir": str(HIPPOCAMPUS),
        "output_dir": str(tmp_path),
        "max_images": 8,
        "folds": 2,
        "batch_size": 2,
        "samples_per_epoch": 4,
        "max_epochs": 1,
        "channels": [4] * 6,
        "device": "cpu",
    }
    run(["train.json"], values)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["iteration"] == 2
    cases, held_out = state["settings"]["data"], held(tmp_path)
    assert sorted([*cases, *held_out]) == [record["case"] for record in records[:8]] and len(held_out) == 4
    values |= {"eval_split": "rest", "eval_pairs": 2, "pictures": 1, "checkpoint": str(tmp_path / "last.pt")}
    run(["train.json", "evaluate.json"], values)
    table = read_csv(tmp_path / "evaluation" / "cases.csv")
    patients = {record["patient"] for record in records[:8]}
    seen = {record["case"] for record in records if record["patient"] in patients}
    assert len(table["case"]) == 2
    assert not any(name in case for case in table["case"] for name in seen)
    assert all(0.2 < float(value) < 0.95 for value in table["before_dsc"])
    assert all(float(value) < 8 for value in table["before_tre_mm"])
    # Outlines after two steps match little, and may not fold anything.
    assert all(0.1 < float(value) < 0.95 for value in table["dsc"])
    assert all(float(value) < 0.1 for value in table["folded_percent"])


def run(configs: list[str], values: dict[str, Any]) -> None:
    """What ``python -m monai.bundle run`` does with these files and values."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / name) for name in configs])
    parser["bundle_root"] = str(BUNDLE)
    for key, value in values.items():
        assert key in parser.config
        parser[key] = value
    for part in ("initialize", "run", "finalize"):
        parser.get_parsed_content(part)


def held(folder: Path) -> set[str]:
    """The images that the training validated on."""
    pairs = json.loads((folder / "validation_pairs.json").read_text(encoding="utf-8"))["testing"]
    return {Path(pair[f"{side}_image"]).name.removesuffix(".nii.gz") for pair in pairs for side in ("fixed", "moving")}
