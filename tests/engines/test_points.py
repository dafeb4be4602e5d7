"""Target registration error of points: SimpleITK says where a transformation takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from bundle_list import BUNDLES, NAMES, needs_label, on_single_images, pairs, predicts_field
from helpers import LPS, line_of_failing, make_grid, rigid
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from regzoo import Registrar
from regzoo.engines import EvaluationStream
from regzoo.errors import RegZooError
from regzoo.metrics import PointRegistrationError
from regzoo.report import read_csv
from regzoo.spatial import DisplacementField
from regzoo.transforms import CarryPointsd

ROOT = BUNDLES[0].parent


def place(image: str, count: int, seed: int) -> np.ndarray:
    """Points about the middle of an image, LPS mm."""
    file = sitk.ReadImage(image)
    share = np.random.default_rng(seed).uniform(0.4, 0.6, (count, 3))
    indices = share * (np.asarray(file.GetSize()) - 1)
    return np.array([file.TransformContinuousIndexToPhysicalPoint(index.tolist()) for index in indices])


def write_points(path: Path, points: np.ndarray) -> str:
    head = "# CoordinateSystem = LPS\n# columns = id,x,y,z,label\n"
    rows = "".join(f"{n},{x!r},{y!r},{z!r},P-{n}\n" for n, (x, y, z) in enumerate(points.tolist(), 1))
    path.write_text(head + rows, encoding="utf-8")
    return str(path)


def evaluation(bundle: str, datalist: Path, output: Path, **settings: Any) -> ConfigWorkflow:
    split = {"eval_split": "listed"} if on_single_images(bundle) else {}
    return ConfigWorkflow(
        config_file=[str(ROOT / bundle / "configs" / f"{name}.json") for name in ("train", "evaluate")],
        logging_file=False,
        bundle_root=str(ROOT / bundle),
        dataset_dir=str(datalist),
        output_dir=str(output),
        checkpoint=str(ROOT / bundle / "models" / "model.pt"),
        device="cpu",
        pictures=0,
        **split,
        **settings,
    )


@pytest.mark.parametrize("bundle", NAMES)
def test_evaluation(bundle: str, dataset: Path, tmp_path: Path) -> None:
    """The first of two cases has points and no label but one that the network needs, the other has labels alone."""
    records = pairs(dataset)[:2]
    fixed, moving = (place(records[0][f"{side}_image"], 4, seed) for seed, side in enumerate(("fixed", "moving")))
    records[0]["fixed_points"] = write_points(tmp_path / "fixed.fcsv", fixed)
    records[0]["moving_points"] = write_points(tmp_path / "moving.fcsv", moving)
    for key in ("fixed_label",) if needs_label(bundle) else ("fixed_label", "moving_label"):
        del records[0][key]
    (tmp_path / "list.json").write_text(json.dumps({"validation": records}), encoding="utf-8")
    workflow = evaluation(bundle, tmp_path / "list.json", tmp_path)
    workflow.initialize()
    workflow.run()
    workflow.finalize()

    points = read_csv(tmp_path / "evaluation" / "points.csv")
    assert points["case"] == [records[0]["case"]] * 4 and points["point"] == ["P-1", "P-2", "P-3", "P-4"]
    cases = read_csv(tmp_path / "evaluation" / "cases.csv")
    assert cases["point_tre_mm"][1] == cases["before_point_tre_mm"][1] == ""
    overlap = next(name for name in cases if name.endswith("dsc"))
    assert cases[overlap][0] == "" and float(cases[overlap][1]) > 0
    assert set(read_csv(tmp_path / "evaluation" / "labels.csv")["case"]) == {records[1]["case"]}
    before = np.array(points["distance_before_mm"], dtype=float)
    assert float(cases["before_point_tre_mm"][0]) == pytest.approx(before.mean(), rel=1e-4)
    assert float(cases["before_point_tre_median_mm"][0]) == pytest.approx(np.median(before), rel=1e-4)
    if not predicts_field(bundle):
        assert points["distance_after_mm"] == [""] * 4 and cases["point_tre_mm"][0] == ""
        return
    names = {"fixed_image": "fixed", "moving_image": "moving", "moving_label": "label"}
    files = {names[key]: records[0][key] for key in names if key in records[0]}
    registrar = Registrar(bundle, device="cpu")
    registrar.register(**files).field.save(tmp_path / "field.nii.gz")
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "field.nii.gz"), sitk.sitkVectorFloat64))
    there = np.array([field.TransformPoint(point.tolist()) for point in fixed])
    after = np.linalg.norm(there - moving, axis=1)
    np.testing.assert_allclose(np.array(points["distance_after_mm"], dtype=float), after, atol=0.01)
    assert float(cases["point_tre_mm"][0]) == pytest.approx(after.mean(), abs=0.01)
    assert np.abs(after - before).max() > 0.1


@pytest.mark.parametrize("bundle", NAMES[:1])
def test_bad_points_are_reported_and_passed_over(bundle: str, dataset: Path, tmp_path: Path) -> None:
    records = pairs(dataset)[:2]
    for side, count in (("fixed", 4), ("moving", 3)):
        records[0][f"{side}_points"] = write_points(
            tmp_path / f"{side}.fcsv", place(records[0][f"{side}_image"], count, 0)
        )
    (tmp_path / "list.json").write_text(json.dumps({"validation": records}), encoding="utf-8")
    line = line_of_failing(evaluation(bundle, tmp_path / "list.json", tmp_path), RuntimeError)
    assert line.startswith("1 of 2 cases failed: ") and "moving.fcsv: holds 3 points" in line
    assert read_csv(tmp_path / "evaluation" / "cases.csv")["case"] == [records[1]["case"]]
    assert not (tmp_path / "evaluation" / "points.csv").exists()


@pytest.mark.parametrize("given", [[], ["fixed_label"], ["fixed_points", "moving_label"], ["moving_points"]])
def test_a_pair_with_nothing_to_measure(given: list[str]) -> None:
    record = {key: f"{key}.nii.gz" for key in ("fixed_image", "moving_image", *given)}
    side = "moving" if "fixed_label" in given else "fixed"
    with pytest.raises(RegZooError, match=rf"{side}_image.nii.gz: comes without its label, and its pair without point"):
        list(EvaluationStream([record], dict))


def test_an_affine_map_and_its_pre_alignment(tmp_path: Path) -> None:
    """The truth is a matrix: the points of the moving image are where it takes those of the fixed image."""
    fixed, moving = make_grid((24, 20, 16), (2, 2, 3), (5, 9, -7)), make_grid((30, 30, 30), 3 * [2.5], center=(9, 4, 2))
    truth = rigid((4, -6, 5), (6, 3, -2))
    prealignment = np.linalg.inv(rigid((0, 0, 0), (5, 5, 0)))
    points = fixed.to_world(np.random.default_rng(1).uniform(5, 10, (7, 3)))
    there = points @ truth[:3, :3].T + truth[:3, 3]
    files = [write_points(tmp_path / f"{name}.fcsv", places * LPS) for name, places in (("a", points), ("b", there))]
    item = {"fixed_points": files[0], "moving_points": files[1], "prealignment": torch.from_numpy(prealignment)}
    item |= {"field": DisplacementField.from_affine(truth, fixed)}
    for name, grid in (("fixed", fixed), ("moving", moving)):
        item[f"{name}_native"] = MetaTensor(torch.zeros(1, *grid.shape), affine=torch.from_numpy(grid.affine))
    item = CarryPointsd()(item)
    metrics = [PointRegistrationError("mean"), PointRegistrationError("median")]
    for metric, over in zip(metrics, (np.mean, np.median), strict=True):
        assert metric([item["warped_points"]], [item["reference_points"]]).item() == pytest.approx(0, abs=1e-4)
        before = over(np.linalg.norm(points + np.array([5, 5, 0]) - there, axis=1))
        assert metric([item["unregistered_points"]], [item["reference_points"]]).item() == pytest.approx(before)
