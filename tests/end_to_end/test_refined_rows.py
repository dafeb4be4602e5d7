"""The columns ``refine`` and ``refine_seconds`` of a datalist, in batch inferences and evaluations of all bundles."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from bundle_list import BUNDLES, REPRESENTATIVES, kind, on_single_images, pairs
from monai.bundle import ConfigParser, ConfigWorkflow
from regzoo.bundles import find_bundle
from regzoo.report import read_csv

OPTIONS = {"steps": [20], "spacing": 8.0}
#: With networks that predict a field of either kind, and one that predicts labels.
NETWORKS = [*REPRESENTATIVES, "prostate_mr_trus_conditional_seg"]


def run(bundle: Path, *configs: str, **settings: Any) -> None:
    workflow = ConfigWorkflow(
        config_file=[str(bundle / "configs" / f"{name}.json") for name in configs],
        logging_file=False,
        bundle_root=str(bundle),
        device="cpu",
        refine_options=OPTIONS,
        **settings,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


@pytest.mark.parametrize("bundle", [*NETWORKS, "none"])
def test_batch_inference(bundle: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    kind_of_phantoms = "prostate" if bundle == "none" else kind(bundle)
    rows = pairs(request.getfixturevalue(f"{kind_of_phantoms}_phantoms"))[:3]
    own = [{"refine": "Labels", "refine_seconds": "0.001"}, {"refine": "labels"}, {"align": "center"}]
    keys = ("fixed_image", "moving_image", "fixed_label", "moving_label")
    table = tmp_path / "pairs.csv"
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*keys, "case", "align", "refine", "refine_seconds"])
        writer.writeheader()
        for number, (row, more) in enumerate(zip(rows, own, strict=True)):
            writer.writerow({key: row[key] for key in keys} | {"case": str(number)} | {"align": "header"} | more)
    run(find_bundle(bundle), "inference", dataset_dir=str(table), output_dir=str(tmp_path / "out"))
    limited, unlimited, unrefined = (
        json.loads((tmp_path / "out" / str(number) / "statistics.json").read_text()).get("refinement")
        for number in range(3)
    )
    assert limited["steps"] < unlimited["steps"]
    assert unrefined is None


@pytest.mark.parametrize("bundle", NETWORKS)
def test_evaluation(bundle: str, dataset: Path, tmp_path: Path) -> None:
    overlaps = []
    for name, own in (("plain", {}), ("refined", {"refine": "labels", "refine_seconds": 60})):
        first, second = pairs(dataset)[:2]
        datalist, output = tmp_path / f"{name}.json", tmp_path / name
        datalist.write_text(json.dumps({"validation": [first | own, second]}), encoding="utf-8")
        run(
            BUNDLES[0].parent / bundle,
            "train",
            "evaluate",
            checkpoint=str(BUNDLES[0].parent / bundle / "models" / "model.pt"),
            dataset_dir=str(datalist),
            output_dir=str(tmp_path),
            evaluation_dir=str(output),
            eval_split="listed" if on_single_images(bundle) else "val",
            pictures=0,
        )
        cases = read_csv(output / "cases.csv")
        overlaps.append(cases.get("gland_dsc") or cases["dsc"])
    plain, refined = overlaps
    assert refined[0] != plain[0] and refined[1] == plain[1]


@pytest.mark.parametrize("configs", [["train"], ["train", "evaluate"], ["inference"]], ids=lambda names: names[-1])
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_masks_may_exclude_in_every_run(bundle: Path, configs: list[str]) -> None:
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / f"{name}.json") for name in configs])
    assert parser["exclude"] is False
    parser["exclude"] = True
    assert parser.get_parsed_content("load").exclude is True
