"""A table with columns of its own trains, is evaluated and is registered as if it did not have them."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow
from regzoo.datasets import load_records
from regzoo.report import read_csv

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "prostate_mr_trus_weak_ddf"
#: The first two are a request of MONAI Label's, the others are entries of a case.
OTHERS = {
    **{"model": "scanner X", "image_path": "elsewhere.nii.gz", "device": "cuda:9", "image": "other.nii.gz"},
    **{"served": "1", "requested": "1", "labels_predicted": "1", "moving_label_is_map": "1", "full_resolution": "1"},
    **{"probability": "0.5", "prealignment": "none", "view_center": "1", "pred": "3", "moving_native": "x"},
}
SMALL: dict[str, Any] = {"spacing": [5.0, 5.0, 5.0], "size": [18, 14, 13], "channels": 2, "device": "cpu"}


def run(*configs: str, **settings: Any) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / name) for name in configs],
        logging_file=False,
        bundle_root=str(BUNDLE),
        **SMALL,
        **settings,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


@pytest.fixture(scope="module")
def tables(prostate_phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same pairs, with and without other columns."""
    folder = tmp_path_factory.mktemp("tables")
    rows = [
        {key: record[key] for key in ("fixed_image", "moving_image", "fixed_label", "moving_label", "patient")}
        | {"split": split}
        for split, count in (("train", 2), ("val", 2))
        for record in load_records(prostate_phantoms, split)[:count]
    ]
    found = {}
    for name, more in (("plain", {}), ("other", OTHERS)):
        found[name] = folder / f"{name}.csv"
        with found[name].open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, [*more, *rows[0]])
            table.writeheader()
            table.writerows(more | row for row in rows)
    return found


def test_every_workflow_leaves_other_columns_alone(
    tables: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = {}
    with caplog.at_level(logging.WARNING):
        for name, table in tables.items():
            out = tmp_path / name
            common = {"dataset_dir": str(table)}
            training = {"batch_size": 2, "samples_per_epoch": 2, "max_epochs": 1, "output_dir": str(out)}
            run("train.json", **common, **training)
            run("train.json", "evaluate.json", **common, output_dir=str(out), eval_split="val", pictures=0)
            checkpoint = str(out / "model.pt")
            run("inference.json", **common, split="val", checkpoint=checkpoint, output_dir=str(out / "registered"))
            results[name] = {
                "weights": torch.load(out / "model.pt", weights_only=True),
                "cases": read_csv(out / "evaluation" / "cases.csv"),
                "files": {
                    path.name for path in out.rglob("*") if path.suffix in (".csv", ".json", ".gz", ".pt", ".tsv")
                },
                "registered": [
                    json.loads(path.read_text())["labels"] for path in sorted(out.rglob("*/statistics.json"))
                ],
            }
    plain, other = results["plain"], results["other"]
    assert all(torch.equal(plain["weights"][key], value) for key, value in other["weights"].items())
    assert plain["cases"] == other["cases"] and len(other["registered"]) == 2
    assert plain["registered"] == other["registered"] and plain["files"] == other["files"]
    before = other["cases"]["before_tre_mm"] + other["cases"]["before_gland_dsc"]
    assert len(before) == 4 and all(before)  # an evaluation keeps its comparisons
    named = [line for line in caplog.messages if "ignores unknown columns" in line]
    assert len(named) == 1 and all(repr(name) in named[0] for name in OTHERS) and str(tables["other"]) in named[0]
