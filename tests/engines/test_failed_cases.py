"""A case that fails after the network, in an inference or an evaluation, is reported in one line and passed over."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from bundle_list import BUNDLES, NAMES, REPRESENTATIVES, on_single_images, pairs, predicts_field
from helpers import line_of_failing
from monai.bundle import ConfigWorkflow
from regzoo.bundles import find_bundle
from regzoo.datasets.records import case_name
from regzoo.errors import RegZooError
from regzoo.report import figures
from regzoo.report.tables import read_csv

ROOT = BUNDLES[0].parent


def run(bundle: str, configs: list[str], **settings: Any) -> str:
    """The line that a run ends in; by default it refines by labels."""
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / bundle / "configs" / f"{name}.json") for name in configs],
        logging_file=False,
        bundle_root=str(ROOT / bundle),
        device="cpu",
        **{"refine": "labels", "refine_options": {"steps": [1], "spacing": 8.0}} | settings,
    )
    return line_of_failing(workflow, RuntimeError)


def spoil(bundle: str, pair: dict[str, str], folder: Path) -> None:
    """Leave a pair no label to compare: each side keeps another one, or the network finds none of a corner voxel."""
    for key in ("fixed_label", "moving_label"):
        file = nib.load(pair[key])
        labels = np.asarray(file.dataobj)
        kept = np.zeros_like(labels)
        if predicts_field(bundle):
            first = key == "moving_label"
            if labels.ndim == 4:
                kept[..., 0 if first else -1] = labels[..., 0 if first else -1]
            else:
                value = labels[labels > 0].min() if first else labels.max()
                kept[labels == value] = value
        else:
            kept[0, 0, 0, 0] = 1
        pair[key] = str(folder / f"{key}_of_{Path(pair['fixed_image']).name}")
        nib.save(nib.Nifti1Image(kept, file.affine), pair[key])


@pytest.mark.parametrize(("bundle", "order"), [*((name, 1) for name in NAMES), (NAMES[-1], -1)])
def test_inference(bundle: str, order: int, dataset: Path, tmp_path: Path) -> None:
    bad, good = pairs(dataset)[:2]
    spoil(bundle, bad, tmp_path)
    if not predicts_field(bundle):
        del bad["fixed_label"]  # the predicted label is compared instead
    datalist, output = tmp_path / "pairs.json", tmp_path / "out"
    datalist.write_text(json.dumps([bad, good][::order]), encoding="utf-8")
    line = run(bundle, ["inference"], dataset_dir=str(datalist), output_dir=str(output))
    assert line.startswith("1 of 2 cases failed: ") and bad["fixed_image"] in line and "no label in common" in line
    (folder,) = output.iterdir()
    assert folder.name.startswith(case_name(good["fixed_image"]))


def test_inference_without_a_network(prostate_phantoms: Path, tmp_path: Path) -> None:
    bad, good = pairs(prostate_phantoms)[:2]
    del bad["fixed_label"]
    datalist, output = tmp_path / "pairs.json", tmp_path / "out"
    datalist.write_text(json.dumps([bad, good]), encoding="utf-8")
    root = str(find_bundle("none"))
    line = run(root, ["inference"], dataset_dir=str(datalist), output_dir=str(output), align="header")
    assert line.startswith("1 of 2 cases failed: ") and bad["fixed_image"] in line and "no fixed_label" in line
    assert [path.name for path in output.iterdir()] == [case_name(good["fixed_image"])]


@pytest.mark.parametrize(
    ("bundle", "failing"),
    [*((name, [0]) for name in NAMES if not on_single_images(name)), (NAMES[-1], [1]), (NAMES[-1], [0, 1])],
)
def test_evaluation(bundle: str, failing: list[int], dataset: Path, tmp_path: Path) -> None:
    cases = pairs(dataset)[:2]
    for index in failing:
        spoil(bundle, cases[index], tmp_path)
    datalist, output = tmp_path / "pairs.json", tmp_path / "out"
    datalist.write_text(json.dumps({"validation": cases}), encoding="utf-8")
    weights = str(ROOT / bundle / "models" / "model.pt")
    folders = {"dataset_dir": str(datalist), "output_dir": str(tmp_path), "evaluation_dir": str(output)}
    line = run(bundle, ["train", "evaluate"], checkpoint=weights, **folders)
    assert all(cases[index]["fixed_image"] in line for index in failing) and "no label in common" in line
    if len(failing) == 2:
        assert line.startswith("none of the 2 cases can be evaluated: ") and not list(output.glob("*.csv"))
        return
    assert line.startswith("1 of 2 cases failed: ")
    name = case_name(cases[1 - failing[0]]["fixed_image"])
    assert read_csv(output / "cases.csv")["case"] == [name]
    assert set(read_csv(output / "labels.csv")["case"]) == {name}
    assert {path.name for path in output.glob("*.png")} == {f"{name}.png", "summary.png"}


@pytest.mark.parametrize(("bundle", "order"), [*((name, 1) for name in REPRESENTATIVES), (NAMES[0], -1)])
@pytest.mark.parametrize("failing", ["metric", "picture"])
def test_a_measure_or_picture_of_one_case(
    bundle: str, failing: str, order: int, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the case is left in the tables, not even what was measured before the failure."""
    bad, good = pairs(dataset)[:2]
    settings: dict[str, Any] = {}
    if failing == "metric":  # of the third label, where the bad case has two
        for case, key in product((bad, good), ("fixed_label", "moving_label")):
            count = 2 if case is bad else 3
            file = nib.load(case[key])
            labels = np.asarray(file.dataobj)
            masks = labels if labels.ndim == 4 else np.stack([labels == n for n in range(1, 4)], -1).astype(np.uint8)
            case[key] = str(tmp_path / f"{case['case']}_{key}.nii.gz")
            nib.save(nib.Nifti1Image(masks[..., :count], file.affine), case[key])
        for case, key in product((bad, good), ("label_names", "label_values")):
            case.pop(key, None)
        settings["validate#metrics#measures#lost_labels"] = "$regzoo.metrics.LabelDice(label=2)"
    else:
        draw = figures.case_figure

        def case_figure(path: Path, item: dict[str, Any]) -> None:
            if item["case"] == bad["case"]:
                raise RegZooError(f"{path}: cannot be drawn")
            draw(path, item)

        monkeypatch.setattr(figures, "case_figure", case_figure)
    datalist, output = tmp_path / "pairs.json", tmp_path / "out"
    datalist.write_text(json.dumps({"validation": [bad, good][::order]}), encoding="utf-8")
    line = run(
        bundle,
        ["train", "evaluate"],
        refine=False,
        checkpoint=str(ROOT / bundle / "models" / "model.pt"),
        dataset_dir=str(datalist),
        output_dir=str(tmp_path),
        evaluation_dir=str(output),
        eval_split="listed" if on_single_images(bundle) else "val",
        **settings,
    )
    name = good["case"]
    assert line.startswith("1 of 2 cases failed: ") and bad["case"] in line
    assert ("label 2 does not exist" if failing == "metric" else "cannot be drawn") in line
    assert read_csv(output / "cases.csv")["case"] == [name]
    assert set(read_csv(output / "labels.csv")["case"]) == {name}
    assert {path.name for path in output.glob("*.png")} == {f"{name}.png", "summary.png"}
