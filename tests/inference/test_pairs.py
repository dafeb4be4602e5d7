"""`regzoo register NAME --pairs`: many pairs, bad ones among them, resumed where a run stopped."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from bundle_list import BUNDLES, NAMES, kind, pairs
from helpers import LPS
from PIL import Image
from regzoo import Registrar
from regzoo.cli import main
from regzoo.engines.weights import ORIGIN
from regzoo.errors import RegZooError
from regzoo.inference import register_pairs
from regzoo.ownership import origin_of
from regzoo.report import read_csv
from scipy.ndimage import center_of_mass
from tqdm import tqdm

WEAK, CT = "prostate_mr_trus_weak_ddf", "abdominal_ct_ddmr"
IMAGES = ("fixed_image", "moving_image")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of `regzoo register`."""
    monkeypatch.setattr(sys, "argv", ["regzoo", "register", *arguments, "--device", "cpu"])
    try:
        main()
    except SystemExit as stop:
        return int(str(stop.code))
    return 0


def table(path: Path, records: list[dict[str, Any]]) -> str:
    """A table of records without lists."""
    names = list(dict.fromkeys(name for record in records for name in record if name.startswith(("fixed", "moving"))))
    names += ["case", *{"points_frame", "align", "split"} & {name for record in records for name in record}]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
    return str(path)


@pytest.fixture
def records(prostate_phantoms: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """Three pairs of copies, which a test may change."""
    shutil.copytree(prostate_phantoms / "val", tmp_path / "val")
    return [record | {"case": f"p{number}"} for number, record in enumerate(pairs(tmp_path)[:3])]


def rows(out: Path) -> list[dict[str, str]]:
    columns = read_csv(out / "summary.csv")
    return [{name: values[row] for name, values in columns.items()} for row in range(len(columns["case"]))]


def stamps(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.glob("*/*")}


@pytest.mark.parametrize("bundle", [*NAMES, "none"])
def test_results_are_those_of_single_registrations(
    bundle: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = request.getfixturevalue("abdomen_phantoms" if bundle == CT else "prostate_phantoms")
    record = pairs(data)[0]
    label = {"label": record["moving_label"]} if bundle != CT else {}
    if bundle == CT:
        label = {"label": record["moving_label"], "fixed_label": record["fixed_label"]}
    out = tmp_path / "out"
    assert call(monkeypatch, bundle, "--pairs", table(tmp_path / "t.csv", [record]), "--out", str(out)) == 0
    single = tmp_path / "single"
    result = Registrar(bundle, device="cpu").register(record["fixed_image"], record["moving_image"], **label)
    result.save(single)
    folder = out / record["case"]
    assert {path.name for path in folder.iterdir()} == {path.name for path in single.iterdir()}
    for name in (path.name for path in single.glob("*.nii.gz")):
        ours, alone = (np.asarray(nib.load(where / name).dataobj) for where in (folder, single))
        np.testing.assert_array_equal(ours, alone)
    (row,) = rows(out)
    assert row["status"] == "registered" and float(row["seconds"]) > 0 and row["problem"] == ""
    # The DSC and the centroids of the written label, by SciPy alone.
    fixed, warped = (nib.load(file) for file in (record["fixed_label"], folder / "warped_label.nii.gz"))
    masks = [np.asarray(file.dataobj) for file in (fixed, warped)]
    if bundle == CT:
        values = np.unique(masks[0])[1:]
        masks = [np.stack([volume == value for value in values], -1) for volume in masks]
    present = [n for n in range(masks[0].shape[-1]) if all(volume[..., n].any() for volume in masks)]
    dsc, distance = {}, {}
    for index in present:
        a, b = (volume[..., index] > 0 for volume in masks)
        dsc[index] = 2 * (a & b).sum() / (a.sum() + b.sum())
        places = [fixed.affine @ [*center_of_mass(mask), 1] for mask in (a, b)]
        distance[index] = np.linalg.norm(places[0] - places[1])
    expected = np.mean(list(dsc.values())) if bundle == CT else dsc[0]
    assert float(row["dsc_after"]) == pytest.approx(expected, abs=1e-4)
    landmarks = [value for index, value in distance.items() if bundle == CT or index > 0]
    assert float(row["tre_mm_after"]) == pytest.approx(np.mean(landmarks), abs=1e-3)
    # These weights know nothing of the prostate.
    assert float(row["hd95_mm_after"]) <= float(row["hd95_mm_before"]) or kind(bundle) == "hippocampus"


def test_bad_cases_are_passed_over(
    records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    gone = str(tmp_path / "gone.nii.gz")
    bad = [
        records[0] | {"case": "gone", "moving_image": gone},
        records[1] | {"case": "bad", "fixed_label": str(tmp_path / "bad.nii.gz")},
    ]
    out = tmp_path / "out"
    path = table(tmp_path / "t.csv", [bad[0], records[2], bad[1]])
    assert call(monkeypatch, WEAK, "--pairs", path, "--out", str(out)) == 1
    first, second, last = capsys.readouterr().err.strip().splitlines()[-3:]
    assert first.startswith(f"error: gone: {gone}: no such file")
    assert second.startswith(f"error: bad: {tmp_path}/bad.nii.gz: ")
    assert last == f"error: 2 of 3 pairs failed; see {out}/summary.csv"
    assert [row["status"] for row in rows(out)] == ["failed", "registered", "failed"]
    assert rows(out)[0]["problem"] == first.removeprefix("error: gone: ")
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["p2"]
    with Image.open(out / "contact_sheet.png") as sheet, Image.open(out / "p2" / "quality.png") as picture:
        assert sheet.width == 640 and sheet.height == round(picture.height * 640 / picture.width)


def test_a_run_is_resumed(
    records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is complete and unchanged is kept; what has changed is noticed and made again."""
    out, path = tmp_path / "out", tmp_path / "t.csv"
    arguments = (WEAK, "--pairs", table(path, records), "--out", str(out))
    assert call(monkeypatch, *arguments) == 0
    before, summary = stamps(out), (out / "summary.csv").read_bytes()

    def made_again(*more: str) -> set[str]:
        earlier = stamps(out)
        assert call(monkeypatch, *arguments, *more) == 0
        return {name.split("/")[0] for name, stamp in stamps(out).items() if earlier.get(name) != stamp}

    assert made_again() == set() and stamps(out) == before and (out / "summary.csv").read_bytes() == summary
    assert "kept from an earlier run, because nothing has changed: 3 of 3" in capsys.readouterr().out
    (out / "p0" / "field.nii.gz").unlink()
    assert made_again() == {"p0"}
    image = nib.load(records[1]["moving_image"])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), records[1]["moving_image"])
    assert made_again() == {"p1"}
    assert f"p1 → {out}/p1, again, because its files or the settings have changed" in capsys.readouterr().out
    table(path, [record | {"align": "center"} if record["case"] == "p2" else record for record in records])
    assert made_again() == {"p2"}
    assert made_again("--inverse") == {"p0", "p1", "p2"} and (out / "p0" / "field_inverse.nii.gz").is_file()
    assert made_again("--outputs", "field") == {"p0", "p1", "p2"}
    assert {path.name for path in (out / "p0").iterdir()} == {"field.nii.gz", ".regzoo.json"}
    assert not (out / "contact_sheet.png").exists()
    assert made_again("--outputs", "field") == set() and rows(out)[0]["dsc_after"]
    # Another order, other paths, other patients and another name of the same folder change nothing.
    moved = [record | {"patient": "x"} for record in reversed(records)]
    (tmp_path / "val").rename(tmp_path / "elsewhere")
    for record in moved:
        record |= {key: value.replace("/val/", "/elsewhere/") for key, value in record.items() if "/val/" in str(value)}
    moved[1]["case"] = "p1."
    table(path, [record | {"align": "center"} if record["case"] == "p2" else record for record in moved])
    assert made_again("--outputs", "field") == set()
    assert [row["case"] for row in rows(out)] == ["p2", "p1.", "p0"]
    # A case that fails now does not leave its earlier result.
    Path(moved[0]["moving_image"]).unlink()
    assert call(monkeypatch, *arguments, "--outputs", "field") == 1
    assert not (out / "p2").exists() and (out / "p1").exists()


def test_other_weights_in_the_same_file(
    records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, out = tmp_path / "model.pt", tmp_path / "out"
    shutil.copy(BUNDLES[0].parent / WEAK / "models" / "model.pt", weights)
    arguments = (WEAK, "--pairs", table(tmp_path / "t.csv", records[:1]), "--out", str(out))
    arguments += ("--checkpoint", str(weights), "--outputs", "field")
    assert call(monkeypatch, *arguments) == 0
    before = (out / "p0" / "field.nii.gz").read_bytes()
    state = torch.load(weights, weights_only=True)
    changed = {key: 0.9 * value if value.is_floating_point() else value for key, value in state.items()}
    torch.save(changed, weights)
    assert call(monkeypatch, *arguments) == 0
    assert (out / "p0" / "field.nii.gz").read_bytes() != before


def test_weights_trained_from_ultrasound_to_mr(
    records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is read in the direction of the weights; a table says itself which image is fixed."""
    weights, out = tmp_path / "model.pt", tmp_path / "out"
    state = OrderedDict(torch.load(BUNDLES[0].parent / WEAK / "models" / "model.pt", weights_only=True))
    state._metadata = {ORIGIN: {"config": {"direction": "us_to_mr"}}}  # type: ignore[attr-defined]
    torch.save(state, weights)
    options = ("--checkpoint", str(weights), "--outputs", "field", "--align", "center")
    assert call(monkeypatch, WEAK, "--pairs", str(tmp_path), "--out", str(out / "folder"), *options) == 0
    path = table(tmp_path / "t.csv", records[:1])
    assert call(monkeypatch, WEAK, "--pairs", path, "--out", str(out / "table"), *options) == 0
    (listed,) = rows(out / "table")
    fields = [next((out / name).glob("*/field.nii.gz")) for name in ("folder", "table")]
    for field, fixed in zip(fields, (records[0]["moving_image"], records[0]["fixed_image"]), strict=True):
        assert nib.load(field).shape[:3] == nib.load(fixed).shape
    assert nib.load(fields[0]).shape != nib.load(fields[1]).shape and listed["status"] == "registered"


def test_a_run_that_is_killed(records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    arguments = [WEAK, "--pairs", table(tmp_path / "t.csv", records), "--out", str(out)]
    # The second pair never ends.
    code = (
        "import sys, time; from regzoo.inference.registrar import Registrar; from regzoo.cli import main\n"
        "run = Registrar.run\n"
        "def once(self, record):\n"
        "    if record['case'] == 'p1':\n"
        f"        open({str(tmp_path / 'second')!r}, 'w').close(); time.sleep(600)\n"
        "    return run(self, record)\n"
        f"Registrar.run = once; sys.argv = ['regzoo', 'register', *{arguments!r}, '--device', 'cpu']; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    while not (tmp_path / "second").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = stamps(out)
    assert {name.split("/")[0] for name in first} == {"p0"} and not (out / "summary.csv").exists()
    assert call(monkeypatch, *arguments) == 0
    assert {name: stamp for name, stamp in stamps(out).items() if name.startswith("p0")} == first
    assert [row["status"] for row in rows(out)] == ["registered"] * 3
    assert not list(out.rglob(".partial*"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--pairs", "same.csv"], "is the fixed image of another pair called 'a_b', and their results would overwrite"),
        (["--pairs", "empty.csv"], "empty.csv: lists no pairs; give it at least one entry"),
        (["--pairs", "none.csv"], "none.csv: no such data set"),
        (
            ["--pairs", "good.csv", "--label", "l.nii.gz"],
            "--label l.nii.gz: has no effect with --pairs; say it for each pair in good.csv, as moving_label",
        ),
        (["--pairs", "good.csv", "--frame", "RAS"], "--frame RAS: has no effect with --pairs; say it for each pair in"),
        (["--pairs", "good.csv", "--points", "p.csv"], "--points p.csv: has no effect with --pairs; carry points"),
        (["--pairs", "good.csv", "--outputs", "rubbish"], "outputs: 'rubbish' is not known"),
        (["--moving", "m.nii.gz"], "register: --fixed is missing; name it, or a list of pairs with --pairs"),
        (["--fixed", "f.nii.gz"], "register: --moving is missing"),
        (["--pairs", ""], "--pairs: has no value; write one after it"),
    ],
)
def test_mistakes_end_the_run_before_any_work(
    arguments: list[str],
    line: str,
    records: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "good.csv", records)
    table(tmp_path / "same.csv", [records[0] | {"case": "a b"}, records[1] | {"case": "a/b"}])
    (tmp_path / "empty.csv").write_text("fixed_image,moving_image\n", encoding="utf-8")
    assert call(monkeypatch, WEAK, *arguments, "--out", "out") == 1
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ") and line in error and not Path("out").exists()


def test_a_missing_output_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, WEAK, "--pairs", "good.csv") == 1
    assert capsys.readouterr().err.strip() == "error: register: --out is missing; name it"


def test_files_that_are_not_ours_are_left_alone(
    records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "summary.csv").write_text("mine", encoding="utf-8")
    path = table(tmp_path / "t.csv", records[:1])
    assert call(monkeypatch, WEAK, "--pairs", path, "--out", str(out)) == 1
    assert f"{out}/summary.csv: already exists, and RegZoo did not write it" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["summary.csv"]
    (out / "summary.csv").unlink()
    assert call(monkeypatch, WEAK, "--pairs", path, "--out", str(out)) == 0
    assert call(monkeypatch, "none", "--pairs", path, "--out", str(out)) == 1
    assert f"{out}: holds a result of {WEAK}" in capsys.readouterr().err and len(rows(out)) == 1
    # An edited result, and what belongs to it.
    (out / "p0" / "warped_label.nii.gz").write_bytes(b"mine")
    before = stamps(out)
    assert call(monkeypatch, WEAK, "--pairs", path, "--out", str(out)) == 1
    assert f"p0: {out}/p0/warped_label.nii.gz: already exists, and RegZoo did not" in capsys.readouterr().err
    assert stamps(out) == before


def test_nobody_reads_the_output(
    records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `| head`: the run ends, and its results are complete."""

    def write(line: str, file: Any = None) -> None:
        if file is None:
            raise BrokenPipeError

    path, out = table(tmp_path / "t.csv", records), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(BrokenPipeError):
        patch.setattr(tqdm, "write", write)
        register_pairs("none", path, out, "field", align="header", device="cpu")
    assert origin_of(out / "p0") and not (out / "p1").exists()


def test_the_pairs_of_a_split(records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for record, split in zip(records, ("train", "val", "train"), strict=True):
        record["split"] = split
    path, out = table(tmp_path / "t.csv", records), tmp_path / "out"
    options = ("--split", "val", "--align", "header", "--outputs", "field")
    assert call(monkeypatch, "none", "--pairs", path, "--out", str(out), *options) == 0
    assert [row["case"] for row in rows(out)] == ["p1"]


def test_keypoints_of_learn2reg(abdomen_phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing moves, the TRE is that of Learn2Reg's own evaluation: voxels times the spacing."""
    record, task = pairs(abdomen_phantoms)[0], tmp_path / "task"
    for folder in ("imagesTr", "keypointsTr"):
        (task / folder).mkdir(parents=True)
    names = [f"Lung_0001_000{time}" for time in (0, 1)]
    image = nib.load(record["fixed_image"])
    voxels = np.random.default_rng(0).uniform(3, np.array(image.shape) - 4, (2, 6, 3))
    for name, moment in zip(names, voxels, strict=True):
        nib.save(image, task / "imagesTr" / f"{name}.nii.gz")
        np.savetxt(task / "keypointsTr" / f"{name}.csv", moment, delimiter=",", fmt="%.5f")
    content = {"name": "Lung", "training": [{"image": f"./imagesTr/{name}.nii.gz"} for name in names]}
    content["registration_val"] = [
        dict(zip(("fixed", "moving"), (f"./imagesTr/{name}.nii.gz" for name in names), strict=True))
    ]
    (task / "Lung_dataset.json").write_text(json.dumps(content), encoding="utf-8")
    out = tmp_path / "out"
    assert call(monkeypatch, "none", "--pairs", str(task), "--out", str(out), "--align", "header") == 0
    errors = np.linalg.norm((voxels[0] - voxels[1]) * image.header.get_zooms()[:3], axis=1)
    (row,) = rows(out)
    for when in ("before", "after"):
        assert float(row[f"point_tre_mm_{when}"]) == pytest.approx(errors.mean(), abs=1e-3)
    stored = json.loads((out / row["case"] / "statistics.json").read_text(encoding="utf-8"))["accuracy"]["points"]
    np.testing.assert_allclose([point["after_mm"] for point in stored], errors, atol=1e-3)


def test_points_and_a_refinement(
    records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SimpleITK takes the points through the written field."""
    record = records[0]
    points = {}
    for side in ("fixed", "moving"):
        image = nib.load(record[f"{side}_image"])
        middle = (np.array(image.shape) - 1) / 2
        points[side] = nib.affines.apply_affine(image.affine, middle + np.array([[0, 0, 0], [1, 2, 0], [-2, 1, 1]]))
        record[f"{side}_points"] = str(tmp_path / f"{side}.csv")
        np.savetxt(record[f"{side}_points"], points[side], delimiter=",", header="x,y,z", comments="", fmt="%.9f")
    record["points_frame"] = "RAS"
    out = tmp_path / "out"
    options = ("--refine", "labels", "--refine_options", "{'steps': [2, 1]}")
    assert call(monkeypatch, WEAK, "--pairs", table(tmp_path / "t.csv", [record]), "--out", str(out), *options) == 0
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(out / "p0" / "field.nii.gz"), sitk.sitkVectorFloat64))
    there = np.array([field.TransformPoint(point.tolist()) for point in points["fixed"] * LPS])
    after = np.linalg.norm(there - points["moving"] * LPS, axis=1)
    (row,) = rows(out)
    assert float(row["point_tre_mm_after"]) == pytest.approx(after.mean(), abs=0.01)
    assert float(row["point_tre_median_mm_after"]) == pytest.approx(np.median(after), abs=0.01)
    before = np.linalg.norm(points["fixed"] - points["moving"], axis=1)
    assert float(row["point_tre_mm_before"]) == pytest.approx(before.mean(), abs=1e-3)
    assert row["refinement_steps"] == "3" and float(row["refinement_objective_after"]) > 0


def test_options_of_a_refinement_that_no_row_asks_for(tmp_path: Path) -> None:
    for row, refused in (("false", True), ("mr", False)):
        (tmp_path / "pairs.csv").write_text(f"fixed_image,moving_image,refine\nf.nii,m.nii,{row}\n")
        error = "^refine_seconds: has no effect without refine"
        with pytest.raises(RegZooError, match=error) if refused else nullcontext():
            (only,) = register_pairs("none", tmp_path / "pairs.csv", tmp_path / row, refine_seconds=5)
            assert "f.nii" in only["problem"]
        assert (tmp_path / row).exists() is not refused


def test_masks_that_a_row_does_not_use(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {
        "refined": "mask.nii,center,mr",
        "centred": "mask.nii,center,",
        "aligned": "mask.nii,rigid,",
        "bare": ",center,",
    }
    lines = ["case,fixed_image,moving_image,fixed_mask,align,refine"]
    for case, rest in rows.items():
        for name in ("fixed", "moving"):
            image = nib.Nifti1Image(rng.random((16, 16, 16), np.float32), np.diag([2, 2, 2, 1]))
            nib.save(image, tmp_path / f"{case}_{name}.nii")
        lines.append(f"{case},{case}_fixed.nii,{case}_moving.nii,{rest}")
    nib.save(nib.Nifti1Image(np.ones((16, 16, 16), np.uint8), np.diag([2, 2, 2, 1])), tmp_path / "mask.nii")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    said = {row["case"]: row["warnings"] for row in register_pairs("none", tmp_path / "pairs.csv", tmp_path / "out")}
    idle = said.pop("centred")
    assert idle == "fixed_mask: this registration does not use it; set refine, or leave the mask out"
    assert said == {"refined": "", "aligned": "", "bare": ""}
