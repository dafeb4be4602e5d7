"""The snippets of the documentation, run as they are printed."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import regzoo
import SimpleITK as sitk
from mlflow import MlflowClient
from regzoo.cli import main
from regzoo.datasets import load_records
from regzoo.refinement import KINDS, RefinementOptions

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def run_python(page: str, **other: str) -> dict[str, Any]:
    """Run a page's Python from top to bottom, with other values of some names; what it leaves behind."""
    names: dict[str, Any] = {}
    text = "\n".join(blocks(page, "python"))
    for name, value in other.items():
        text, found = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
        assert found == 1, name
    exec(compile(text, page, "exec"), names)
    return names


@pytest.fixture
def registered_pair(prostate_phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the page on conventions speaks of; the true displacement stands in for a network's."""
    record = load_records(prostate_phantoms, "train")[0]
    for name in ("fixed_image", "moving_image", "moving_label"):
        shutil.copy(record[name], tmp_path / f"{name.replace('_image', '')}.nii.gz")
    (tmp_path / "result").mkdir()
    shutil.copy(prostate_phantoms / "train" / "ddf" / f"{record['case']}.nii.gz", tmp_path / "result" / "field.nii.gz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_conventions(registered_pair: Path) -> None:
    names = run_python("conventions.md")
    ras, lps = names["ras"], np.asarray(names["lps"])
    np.testing.assert_allclose(lps, ras * [-1, -1, 1], atol=1e-3)
    np.testing.assert_allclose(names["voxel"], [10, 4, 6], atol=1e-6)
    assert names["place"] == [[0, 0, 3, 4, 4]]
    np.testing.assert_allclose(names["network"].center, names["grid"].center, atol=1e-6)

    # A point goes to one place, whether SimpleITK (LPS) or we (RAS) send it there, and comes back.
    np.testing.assert_allclose(np.asarray(names["there"]) * [-1, -1, 1], names["point"], atol=0.01)
    assert np.linalg.norm(names["point"] - ras) > 1
    np.testing.assert_allclose(names["back"], ras, atol=0.3)
    assert names["folds"] == 0
    assert float(names["unmoved"].displacement.norm(dim=0).median()) < 0.1
    copied = regzoo.DisplacementField.load(registered_pair / "copy.nii.gz")
    np.testing.assert_array_equal(copied.displacement, names["field"].displacement)


def test_simpleitk_warps_as_we_do(registered_pair: Path) -> None:
    names = run_python("conventions.md")
    theirs = names["sitk"].GetArrayFromImage(names["again"]).transpose(2, 1, 0)
    ours = names["moved"][0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=0.05)


def test_transformations(registered_pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the page, and the one of README, on the files that they name."""
    copies = {
        "moving.nii.gz": ("mr.nii.gz", "mr_t2.nii.gz", "other_mr_sequence.nii.gz"),
        "moving_label.nii.gz": ("lesions.nii.gz",),
        "fixed.nii.gz": ("large.nii.gz", "us.nii.gz"),
        "result/field.nii.gz": ("second.nii.gz", "1Warp.nii.gz"),
    }
    for source, names in copies.items():
        for name in names:
            shutil.copy(registered_pair / source, registered_pair / name)
    label = nib.load("fixed.nii.gz")
    drawn = (label.get_fdata() > np.median(label.get_fdata())).astype(np.uint8)
    nib.save(nib.Nifti1Image(drawn, label.affine), "us_label.nii.gz")
    for name in ("0GenericAffine.mat", "prealignment.tfm"):
        sitk.WriteTransform(sitk.TranslationTransform(3, (1.0, 2.0, 3.0)), name)
    grid = regzoo.spatial.Grid.of(regzoo.spatial.read_image("fixed.nii.gz"))
    x, y, z = grid.center
    Path("targets.fcsv").write_text(f"# CoordinateSystem = RAS\n1,{x},{y},{z}\n", encoding="utf-8")
    Path("needle.csv").write_text(f"name,x,y,z\ntip,{x},{y},{z}\n", encoding="utf-8")
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    commands = [line for block in blocks("transformations.md", "bash") for line in block.splitlines()]
    for line in [*commands, *re.findall(r"^regzoo apply .*$", readme, re.M)]:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        main()
        written = [word for word in shlex.split(line) if Path(word).is_file()]
        assert len(written) >= 2 + any(f"--{what}" in line for what in ("image", "label", "points")), line
    fixed, moving = (nib.load(name) for name in ("fixed.nii.gz", "moving.nii.gz"))
    assert {"warped_points.fcsv", "field_inverse.nii.gz"} <= {path.name for path in Path("registered").iterdir()}
    assert nib.load("t2_on_us.nii.gz").shape == fixed.shape and nib.load("label_on_mr.nii.gz").shape == moving.shape


def test_refinement(
    prostate_phantoms: Path, abdomen_phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands and the Python of the page, on few voxels."""
    monkeypatch.chdir(tmp_path)
    record, scans = (load_records(folder, "val")[0] for folder in (prostate_phantoms, abdomen_phantoms))
    for side in ("fixed", "moving"):
        shutil.copy(scans[f"{side}_image"], f"{side}_ct.nii.gz")
        shutil.copy(record[f"{side}_image"], f"{side}.nii.gz")
        shutil.copy(record[f"{side}_label"], f"{side}_label.nii.gz")
        image = nib.load(f"{side}.nii.gz")
        mask = np.zeros(image.shape, np.uint8)
        mask[: image.shape[0] // 2] = 1
        nib.save(nib.Nifti1Image(mask, image.affine), f"{side}_mask.nii.gz")
    few, reported = "{'spacing': 6, 'lattice': 12, 'steps': [4, 2]}", set[str]()
    for line in "".join(blocks("refinement.md", "bash")).splitlines():
        command = shlex.split(line)
        if "--refine_options" not in command:
            command += ["--refine_options", few]
        monkeypatch.setattr(sys, "argv", command)
        main()
        out = Path(command[command.index("--out") + 1])
        done = json.loads((out / "statistics.json").read_text(encoding="utf-8"))["refinement"]
        assert done["objective_after"] <= done["objective_before"]
        reported |= done.keys()
    names = run_python("refinement.md")
    page = (DOCS / "refinement.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+)`", page.split("## What it reports")[1].split("## ")[0])) - {"refinement"} == reported
    assert reported >= names["result"].statistics["refinement"].keys()


def test_many_pairs(prostate_phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of README and of the page, its table, and the Python, which keeps what the command wrote."""
    monkeypatch.chdir(tmp_path)
    (rows,), (command,) = blocks("many_pairs.md", "csv"), blocks("many_pairs.md", "bash")
    assert command in (DOCS.parent / "README.md").read_text(encoding="utf-8")
    Path("pairs.csv").write_text(rows, encoding="utf-8")
    for record, name in zip(load_records(prostate_phantoms, "val"), ("p01", "p02"), strict=False):
        for side, folder in (("fixed", "us"), ("moving", "mr")):
            Path(folder).mkdir(exist_ok=True)
            shutil.copy(record[f"{side}_image"], f"{folder}/{name}.nii.gz")
            shutil.copy(record[f"{side}_label"], f"{folder}/{name}_label.nii.gz")
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    main()
    assert {path.name for path in Path("results").glob("[!.]*")} == {"p01", "p02", "summary.csv", "contact_sheet.png"}
    written = {path: path.stat().st_mtime_ns for path in Path("results").glob("p*/*")}
    names = run_python("many_pairs.md")
    assert {path: path.stat().st_mtime_ns for path in Path("results").glob("p*/*")} == written
    page = (DOCS / "many_pairs.md").read_text(encoding="utf-8").split("## The table")[1]
    assert set(names["rows"][0]) <= set(re.findall(r"`(\w+)`", page))


def test_the_table_of_options_shows_the_defaults() -> None:
    page = (DOCS / "refinement.md").read_text(encoding="utf-8")
    rows = {
        row[0]: row[2:] for row in re.findall(r"^\| `(\w+)`" + r" \| (.+)" * (1 + len(KINDS)) + r" \|$", page, re.M)
    }
    assert set(rows) == {field.name for field in dataclasses.fields(RefinementOptions)} - {"seconds"}
    for name, cells in rows.items():
        for cell, options in zip(cells, KINDS.values(), strict=True):
            value = getattr(options, name)
            values = value if isinstance(value, tuple) else value.keys() if name == "similarity" else [value]
            shown = [f"{one:g}" if isinstance(one, float) else str(one) for one in values]
            assert cell.replace("`", "").replace("−", "-").split(", ") == shown, name


def test_phantoms(prostate_phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").symlink_to(prostate_phantoms)
    names = run_python("phantoms.md")
    fixed = nib.load(names["record"]["fixed_image"])
    assert names["aligned"].shape[1:] == fixed.shape
    assert 1 < names["error_of_nothing"] < 40


def test_datalists(tmp_path: Path) -> None:
    (listing,), (rows,) = blocks("data.md", "json"), blocks("data.md", "csv")
    (tmp_path / "list.json").write_text(listing, encoding="utf-8")
    (tmp_path / "list.csv").write_text(rows, encoding="utf-8")
    for path in re.findall(r"[\w/]+\.nii\.gz", listing):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    for split, count in (("train", 2), ("test", 1)):
        from_json = load_records(tmp_path / "list.json", split)
        from_csv = load_records(tmp_path / "list.csv", split)
        assert len(from_json) == count
        assert [{k: v for k, v in record.items() if k != "split"} for record in from_csv] == from_json
    first = json.loads(listing)["training"][0]
    assert load_records(tmp_path / "list.csv", "train")[0]["label_names"] == first["label_names"]


def test_first_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The tutorial without its demo: the released weights carry a gland onto the one drawn in the ultrasound."""
    monkeypatch.chdir(tmp_path)
    for block in blocks("first_steps.md", "bash")[1:]:
        monkeypatch.setattr(sys, "argv", shlex.split(block))
        main()
    names = run_python("first_steps.md")
    assert f"It prints {names['dice']:.2f};" in (DOCS / "first_steps.md").read_text(encoding="utf-8")
    assert "folded voxels: 0 %" in capsys.readouterr().out


def test_plain_folders_are_listed_and_checked(
    prostate_phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of the page on data, on folders of its names."""
    monkeypatch.chdir(tmp_path)
    for folder in ("us", "mr"):
        shutil.copytree(prostate_phantoms / "train" / f"{folder}_images", f"mydata/{folder}")
        shutil.copytree(prostate_phantoms / "train" / f"{folder}_labels", f"mydata/{folder}_labels")
    commands = [
        line for block in blocks("data.md", "bash") for line in block.splitlines() if line.startswith("regzoo ")
    ]
    assert [command.split()[1] for command in commands] == ["datalist", "check"]
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        main()
    assert "8 pairs (train 8)" in capsys.readouterr().out
    assert {path.name for path in Path("mycheck").glob("[!.]*")} == {"check.json", "contact_sheet.png"}


@pytest.mark.filterwarnings("ignore:executing the bundle", "ignore:This DataLoader", "ignore:'pin_memory'")
def test_federated_and_tracking(prostate_phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    bundle = Path("bundles/prostate_mr_trus_weak_ddf")
    shutil.copytree(DOCS.parent / bundle, bundle, ignore=shutil.ignore_patterns("output", "data"))
    for number, site in enumerate("ab"):
        splits = (("training", "train"), ("validation", "val"))
        content = {section: load_records(prostate_phantoms, split)[number::2] for section, split in splits}
        Path(f"hospital_{site}.json").write_text(json.dumps(content), encoding="utf-8")
    tiny = {"samples_per_epoch": 4, "batch_size": 2, "folds": 2, "pictures": 0, "warmup_steps": 1}
    tiny |= {"spacing": [5.0, 5.0, 5.0], "size": [18, 14, 13]}
    names = run_python("federated_and_tracking.md", SETTINGS=repr(tiny))
    for algo in names["clients"]:
        assert algo.trainer.state.epoch == 3
        # The rate has fallen to nothing after the last of all rounds, not before.
        assert algo.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-6)
    assert names["statistics"]["train"]["data_count"] == 2
    start = regzoo.engines.checkpoint.read_checkpoint(bundle / "models/model.pt")
    average = regzoo.engines.checkpoint.read_checkpoint("federated/model.pt")
    assert average.keys() == start.keys() and any((average[key] != start[key]).any() for key in start)

    settings = tiny | {"dataset_dir": str(prostate_phantoms), "output_dir": "mine", "max_epochs": 1}
    workflow = names["ConfigWorkflow"](
        str(bundle / "configs/train.json"), logging_file=False, tracking="tracking.json", **settings
    )
    workflow.initialize()
    workflow.run()
    client = MlflowClient(f"sqlite:///{tmp_path}/mine/mlruns.db")
    experiment = client.get_experiment_by_name("prostate")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["batch_size"] == "2" and run.data.params["spacing"] == "[5.0, 5.0, 5.0]"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"config.json", "model.pt"}


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    local = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert local and all((DOCS / link).is_file() for link in local), local
