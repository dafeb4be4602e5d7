"""What a study adds to the evaluation of a bundle: baselines, tools, centroids, runtimes and fields."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from bundle_list import BUNDLES
from monai.bundle import ConfigWorkflow
from regzoo import DisplacementField
from regzoo.datasets import load_records
from regzoo.errors import RegZooError, user_error
from regzoo.files import write_json
from regzoo.inference import Registrar
from regzoo_phantoms import embedded_phantoms
from regzoo_tools.study import cells
from regzoo_tools.study.cells import Cell, cells_of, folder_of, outdated, recipe
from regzoo_tools.study.description import Study, read_study
from regzoo_tools.study.work import evaluation_overlay
from scipy.ndimage import center_of_mass

BUNDLE = "prostate_mr_trus_weak_ddf"
#: A tool that finds a shift by 2 mm towards the left, LPS, and took 0.25 s of the seconds that it ran.
TOOL = """
import json, sys, time
import SimpleITK as sitk
pair, out = sys.argv[-2:]
fixed, moving = (sitk.ReadImage(f"{pair}/{side}.nii.gz") for side in ("fixed", "moving"))
assert json.load(open(f"{pair}/pair.json")) == {"aligned": True, "kind": "other"}
for image in (fixed, moving):
    assert sitk.GetArrayViewFromImage(image).min() == 0 and sitk.GetArrayViewFromImage(image).max() == 1
field = sitk.Compose([sitk.Image(fixed.GetSize(), sitk.sitkFloat32) + v for v in (2.0, 0.0, 0.0)])
field.CopyInformation(fixed)
time.sleep(2)
if "fail" in sys.argv:
    sys.exit("the metric is not finite")
sitk.WriteImage(field, f"{out}/field.nii.gz")
if "silent" not in sys.argv:
    json.dump({"seconds": 0.25}, open(f"{out}/run.json", "w"))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded_phantoms(tmp_path_factory.mktemp("phantoms") / "set", pairs=4, held_out=1, spacing=4.0, seed=3)


def study_of(tmp_path: Path, data: Path, **methods: object) -> Study:
    described = {"data": {"prostate": {"dataset_dir": str(data)}}, "folds": 2, "run_folds": 1, "fields": 1}
    path = tmp_path / "study.json"
    path.write_text(json.dumps(described | {"methods": methods}))
    return read_study(path)


def evaluate(study: Study, cell: Cell) -> Path:
    """Evaluate a cell as its command would, in this process; returns the folder of its tables."""
    own = folder_of(study, cell) / "evaluation.json"
    write_json(own, evaluation_overlay(study, cell))
    files = [str(path) for path in [*study.config_files(study.methods[cell.method]), own]]
    bundle = str(Path(files[0]).parents[1])
    workflow = ConfigWorkflow(config_file=files, workflow_type="train", logging_file=False, bundle_root=bundle)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return own.parent / "evaluation"


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_identity(tmp_path: Path, data: Path) -> None:
    study = study_of(tmp_path, data, identity={"bundle": BUNDLE, "baseline": "identity"})
    folder = evaluate(study, cells_of(study)[0])
    cases, labels = rows_of(folder / "cases.csv"), rows_of(folder / "centroids.csv")
    assert len(cases) == 2 and all(row["tre_mm"] == row["before_tre_mm"] for row in cases)
    assert all(0 < float(row["runtime_s"]) < 60 for row in cases)
    # The centroids of the files themselves, by SciPy; the warped gland is the moving one, seen on the fixed grid.
    gland = labels[0]
    record: Any = next(one for one in load_records(data, "train") if one["case"] == gland["case"])
    for side, key, tolerance in (("fixed", "fixed_label", 1e-3), ("warped", "moving_label", 0.5)):
        file = nib.nifti1.load(record[key])
        expected = nib.affines.apply_affine(file.affine, center_of_mass(np.asarray(file.dataobj)[..., 0] > 0))
        found = [float(gland[f"{side}_{axis}_mm"]) for axis in "xyz"]
        assert gland["name"] == "gland" and np.abs(found - expected).max() < tolerance
    assert [path.name for path in (folder / "fields").iterdir()] == [f"{cases[0]['case']}.nii.gz"]


def test_the_released_weights(tmp_path: Path, data: Path) -> None:
    """They give the field of a registration with the bundle as it comes; other weights make the result outdated."""
    root = tmp_path / "bundles" / BUNDLE
    shutil.copytree(BUNDLES[0].parent / BUNDLE, root, ignore=shutil.ignore_patterns("output", "data"))
    study = study_of(tmp_path, data, released={"bundle": str(root), "baseline": "released"})
    (cell,) = cells_of(study)
    (field,) = (evaluate(study, cell) / "fields").iterdir()
    record = next(one for one in load_records(data, "train") if f"{one['case']}.nii.gz" == field.name)
    expected = Registrar(root, device="cpu").register(record["fixed_image"], record["moving_image"]).field
    found = DisplacementField.load(field)
    assert expected is not None and float(expected.displacement.norm(dim=0).max()) > 1
    np.testing.assert_allclose(found.displacement, expected.displacement, atol=1e-3)
    facts = {"recipe": recipe(study, cell)}
    assert outdated(study, cell, facts) == []
    (root / "scripts").mkdir()
    (root / "scripts" / "net.py").write_text("size = 3\n")
    assert outdated(study, cell, facts) == ["code"]
    (root / "scripts" / "net.py").unlink()
    weights = root / "models" / "model.pt"
    weights.write_bytes(weights.read_bytes() + b" ")
    cells._files.cache_clear()
    assert outdated(study, cell, facts) == ["starting weights"]
    weights.unlink()
    with pytest.raises(RegZooError, match=r"methods\.released: .* has no released weights; copy them to .*model\.pt"):
        read_study(study.file)


def test_a_tool(tmp_path: Path, data: Path) -> None:
    (tmp_path / "tool.py").write_text(TOOL)
    tool = {"bundle": BUNDLE, "baseline": "tool", "tool": [sys.executable, "./tool.py", "SyN"]}
    study = study_of(tmp_path, data, identity={"bundle": BUNDLE, "baseline": "identity"}, shift=tool)
    still, moved = (evaluate(study, cell) for cell in cells_of(study))
    field = sitk.ReadImage(str(next((moved / "fields").iterdir())))
    assert np.allclose(sitk.GetArrayFromImage(field), [2.0, 0.0, 0.0], atol=1e-3)
    # A fixed point goes 2 mm to the left in the moving image, so what is warped goes 2 mm to the right: +x in RAS.
    before, after = (rows_of(folder / "centroids.csv")[0] for folder in (still, moved))
    assert float(after["warped_x_mm"]) - float(before["warped_x_mm"]) == pytest.approx(2.0, abs=0.1)
    assert all(0.25 < float(row["runtime_s"]) < 2 for row in rows_of(moved / "cases.csv"))


@pytest.mark.parametrize(
    ("word", "message"),
    [("fail", r"status 1 on case\d+: the metric is not finite"), ("silent", "wrote no run.json with its seconds")],
)
def test_a_tool_that_fails(tmp_path: Path, data: Path, word: str, message: str) -> None:
    (tmp_path / "tool.py").write_text(TOOL)
    tool = {"bundle": BUNDLE, "baseline": "tool", "tool": [sys.executable, "./tool.py", word]}
    study = study_of(tmp_path, data, bad=tool)
    with pytest.raises(RuntimeError) as caught:
        evaluate(study, cells_of(study)[0])
    assert re.search(message, str(user_error(caught.value)))
