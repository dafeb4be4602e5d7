"""Every fault of a data set is found, with its file, its channel and what to do; all of them, not the first alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from broken_sets import MM, SHAPE, PairSet
from regzoo_tools.checking import Finding, Report, check_data
from regzoo_tools.checking.cases import CaseFacts
from regzoo_tools.checking.dataset import label_table

WEAK = "prostate_mr_trus_weak_ddf"


@pytest.fixture
def pairs(tmp_path: Path) -> PairSet:
    return PairSet(tmp_path)


def check(pairs: PairSet, bundle: str | None = WEAK, **settings: Any) -> Report:
    if bundle is not None:
        settings = {"folds": 2} | settings
    return check_data(pairs.write(), bundle, estimate=False, **settings)


def only(report: Report, severity: str = "error") -> Finding:
    """The one finding there is."""
    (finding,) = report.findings
    assert finding.severity == severity and finding.problem and finding.fix
    return finding


def test_nothing_is_found_in_a_sound_set(pairs: PairSet) -> None:
    for bundle in (WEAK, None):
        report = check(pairs, bundle)
        assert report.findings == [] and not report.failed(strict=True)
    assert [facts.volumes["fixed"][0] for facts in report.facts] == pytest.approx([4 / 3 * np.pi * 15**3] * 4, rel=0.06)


def test_the_median_volume_of_a_tiny_label_is_not_rounded_to_zero() -> None:
    """One voxel, 6,000 voxels and 6,001 voxels of 0.0016 mm."""
    facts = [CaseFacts("a", volumes={"fixed": [count * 0.0016**3]}) for count in (1, 6000, 6001)]
    assert label_table(facts)[0]["median_mm3"] == pytest.approx(2.4576e-5, rel=0.01)


@pytest.mark.parametrize(
    ("key", "file", "problem", "fix"),
    [
        ("fixed_image", "constant", "is constant: every voxel is 7", "right file"),
        ("moving_image", "nan", "holds NaN or infinity in 1 voxels", "replace them"),
        ("moving_label", "elsewhere", "lies elsewhere: the affines", "resample"),
        ("fixed_label", "floats", "holds intensities, not labels", "whole numbers"),
        ("fixed_label", "nothing", "holds no labelled voxel", "draw"),
        ("fixed_label", "three", "holds 3 labels", "same labels"),
        ("moving_image", "cut", "truncated", "copy"),
    ],
)
def test_bad_files(pairs: PairSet, tmp_path: Path, key: str, file: str, problem: str, fix: str) -> None:
    volumes = {"constant": np.full(SHAPE, 7.0), "nan": np.random.default_rng(0).normal(size=SHAPE)}
    volumes["nan"][3, 3, 3] = np.nan
    volumes["floats"] = np.random.default_rng(0).normal(size=SHAPE) * 100
    if file in volumes:
        affine = nib.load(tmp_path / pairs.rows[1][key]).affine
        nib.save(nib.Nifti1Image(volumes[file].astype(np.float32), affine), tmp_path / f"{file}.nii.gz")
    elif file == "cut":
        (tmp_path / "cut.nii.gz").write_bytes((tmp_path / pairs.rows[1][key]).read_bytes()[:5000])
    else:
        radii = {"nothing": (0, 0), "three": (15, 6, 4)}.get(file, (15, 6))
        pairs.label(file, *radii, center=(20, 0, 0) if file == "elsewhere" else (0, 0, 0))
    pairs.rows[1][key] = f"{file}.nii.gz"
    finding = only(check(pairs))
    assert (finding.file, finding.case) == (str(tmp_path / f"{file}.nii.gz"), "c1")
    assert problem in finding.problem and fix in finding.fix


def test_points_outside_their_image(pairs: PairSet, tmp_path: Path) -> None:
    for side, voxel in (("fixed", 0), ("moving", -9)):
        (tmp_path / f"{side}.csv").write_text(f"1,2,3\n4,5,{voxel}\n", encoding="utf-8")
        pairs.rows[1][f"{side}_points"] = f"{side}.csv"
    finding = only(check(pairs))
    assert (finding.file, finding.case) == (str(tmp_path / "moving.csv"), "c1")
    assert finding.problem == "has 1 of 2 points outside its image, first number 2"


def test_a_bad_file_does_not_hide_another(pairs: PairSet, tmp_path: Path) -> None:
    """Two bad files of one pair, one of another, a missing one, a patient in two splits: five findings."""
    for name in ("c0_fixed", "c0_moving_label", "c1_moving"):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"not an image")
    (tmp_path / "c2_fixed_label.nii.gz").unlink()
    for row, split in zip(pairs.rows, ("train", "train", "train", "val"), strict=True):
        row["split"] = split
    pairs.rows[3]["patient"] = "p0"
    findings = check(pairs).findings
    assert {Path(finding.file).name for finding in findings} == {
        "c0_fixed.nii.gz",
        "c0_moving_label.nii.gz",
        "c1_moving.nii.gz",
        "c2_fixed_label.nii.gz",
        "datalist.csv",
    }
    assert len(findings) == 5 and all(finding.severity == "error" for finding in findings)
    assert "'p0' in two splits" in next(f.problem for f in findings if f.file.endswith("csv"))


def test_a_label_that_one_side_lacks(pairs: PairSet, tmp_path: Path) -> None:
    pairs.label("c2_moving_label", 15, 0)
    finding = only(check(pairs), "warning")
    assert finding.file == str(tmp_path / "c2_moving_label.nii.gz") and finding.channel == 1
    assert f"drawn in {tmp_path / 'c2_fixed_label.nii.gz'}" in finding.problem
    report = check(pairs)
    assert report.failed(strict=True) and not report.failed()


def test_maps_of_different_values(pairs: PairSet, tmp_path: Path) -> None:
    """Labels are counted and called by their value; one warning says that the values should be named."""
    for number, row in enumerate(pairs.rows):
        for side in ("fixed", "moving"):
            image = nib.load(tmp_path / row[f"{side}_label"])
            gland, landmark = np.moveaxis(image.get_fdata(), -1, 0) > 0
            values = np.where(landmark & (number == 0), 3, 6 * gland)
            nib.save(nib.Nifti1Image(values.astype(np.uint8), image.affine), tmp_path / row[f"{side}_label"])
    report = check(pairs, None)
    assert [(row["name"], row["cases"]) for row in report.labels] == [("label 3", 1), ("label 6", 4)]
    finding = only(report, "warning")
    assert finding.file == str(tmp_path / "c1_fixed_label.nii.gz") and "values 6, but those of" in finding.problem
    assert "as label_values" in finding.fix
    (small,) = (finding for finding in check(pairs).findings if finding.channel == 0)
    assert small.problem.startswith("label 3 has ") and ", less than label 6 with " in small.problem
    assert check(pairs, label_values=[6, 3]).findings == []
    # Also of a pair that goes no further, whose labels have no volumes.
    del pairs.rows[1]["fixed_label"]
    pairs.image("c1_moving", 1, center=(500, 0, 0))
    there = nib.load(tmp_path / "c1_moving.nii.gz").affine
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), there), tmp_path / "c1_moving_label.nii.gz")
    report = check(pairs, None)
    assert "500 mm apart" in report.findings[0].problem and report.findings[0].severity == "error"
    assert any("values 1, but those of" in finding.problem for finding in report.findings)


def test_a_pair_without_labels(pairs: PairSet, tmp_path: Path) -> None:
    del pairs.rows[2]["moving_label"]
    finding = only(check(pairs))
    assert finding.file == str(tmp_path / "c2_moving.nii.gz") and "training needs" in finding.problem
    assert check(pairs, None).findings == []
    for row, split in zip(pairs.rows, ("train", "train", "test", "train"), strict=True):
        row["split"] = split
    assert check(pairs).findings == []


def test_the_gland_is_not_first(pairs: PairSet, tmp_path: Path) -> None:
    for side in ("fixed", "moving"):
        pairs.label(f"c1_{side}_label", 6, 15)
    finding = only(check(pairs), "warning")
    assert finding.file == str(tmp_path / "c1_fixed_label.nii.gz") and finding.channel == 0
    assert "less than label 1" in finding.problem and "gland first" in finding.fix


def test_images_that_are_the_same(pairs: PairSet, tmp_path: Path) -> None:
    """Of two patients; within a pair; but not of one patient's two pairs."""
    pairs.image("c3_moving", seed=0)
    finding = only(check(pairs))
    assert finding.file == str(tmp_path / "c3_moving.nii.gz")
    assert f"same image as {tmp_path / 'c0_fixed.nii.gz'} of case c0" in finding.problem
    pairs.rows[3]["patient"] = "p0"
    assert check(pairs).findings == []
    pairs.image("c3_moving", seed=6)
    assert "the other of its pair" in only(check(pairs)).problem


def test_images_that_do_not_overlap(pairs: PairSet, tmp_path: Path) -> None:
    """By their headers they are 500 mm apart, which align set to center fixes."""
    pairs.image("c0_moving", 1, center=(500, 0, 0))
    pairs.label("c0_moving_label", center=(500, 0, 0))
    finding = only(check(pairs))
    assert finding.file == str(tmp_path / "c0_moving.nii.gz") and "500 mm apart" in finding.problem
    assert "set align to center" in finding.fix
    assert check(pairs, align="center").findings == []


def test_labels_beyond_the_field_of_view(pairs: PairSet, tmp_path: Path) -> None:
    """A ball of 15 mm in a view of 24 mm: the shares are those of counting voxels, and the proposal holds them."""
    report = check(pairs, spacing=[1.0, 1.0, 1.0], size=[24, 24, 24])
    found = [finding for finding in report.findings if finding.severity == "warning"]
    assert {(Path(f.file).name, f.channel) for f in found} == {
        (f"c{n}_{side}_label.nii.gz", 0) for n in range(4) for side in ("fixed", "moving")
    }
    mask = nib.load(tmp_path / "c0_fixed_label.nii.gz").get_fdata()[..., 0]
    places = (np.argwhere(mask) - [11.5, 11.5, 9.5]) * MM
    share = np.mean((np.abs(places) <= 12).all(axis=1))
    assert report.facts[0].shares["fixed"][0] == pytest.approx(share)
    assert f"{100 * share:.0f} %" in found[0].problem
    assert report.spacing == [3.0, 3.0, 3.0] and report.size == [16, 16, 16]  # 2 · (15 + 10) mm, no finer than 3 mm
    assert check(pairs, spacing=report.spacing, size=report.size).findings == []


def test_too_few_patients(pairs: PairSet) -> None:
    finding = only(check(pairs, folds=5))
    assert "4 patient(s)" in finding.problem and "fewer folds" in finding.fix
    assert check(pairs, folds=4).folds == 4


def test_voxels_of_another_size(pairs: PairSet, tmp_path: Path) -> None:
    pairs.image("c1_moving", 3, spacing=(3, 3, 30))
    pairs.label("c1_moving_label", spacing=(3, 3, 30))
    findings = check(pairs, None).findings
    assert [(f.severity, f.file) for f in findings] == [("warning", str(tmp_path / "c1_moving.nii.gz"))]
    assert "3×3×30 mm" in findings[0].problem


def test_names_that_are_not_as_many_as_labels(pairs: PairSet, tmp_path: Path) -> None:
    for row in pairs.rows:
        row["label_names"] = "gland;cyst"
    pairs.rows[3]["label_names"] = "gland;cyst;urethra"
    findings = check(pairs).findings
    assert {(f.severity, Path(f.file).name) for f in findings} == {
        ("warning", "c3_fixed_label.nii.gz"),
        ("warning", "c3_moving_label.nii.gz"),
    }
    assert all("lists 3 names" in f.problem for f in findings)


def test_headers_that_contradict_themselves(pairs: PairSet, tmp_path: Path) -> None:
    """The warning of the reader is a finding, of this file alone, and not on the terminal."""
    path = tmp_path / "c1_moving.nii.gz"
    image = nib.load(path)
    other = image.affine.copy()
    other[:3, 3] += 20
    image.set_qform(other, code=1)
    image.set_sform(image.affine, code=1)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), None, image.header), path)
    findings = [finding for finding in check(pairs).findings if finding.file == str(path)]
    assert [finding.severity for finding in findings] == ["warning"]
    assert re.search(r"\d+.* mm", findings[0].problem)


def test_datalists_that_are_wrong(pairs: PairSet, tmp_path: Path) -> None:
    """Entries without an image, of an unknown split: each is a finding, and the others are looked at."""
    pairs.rows[0]["moving_image"] = ""
    pairs.rows[1]["fold"] = "-3"
    pairs.label("c3_moving_label", 15, 0)
    findings = check(pairs, None).findings
    assert [f.severity for f in findings] == ["error", "error", "warning"]
    assert "entry 1 has no moving_image" in findings[0].problem and "entry 2 is of fold -3" in findings[1].problem
    assert all(f.file == str(tmp_path / "datalist.csv") for f in findings[:2])


def test_a_ct_that_is_not_in_hounsfield_units(abdomen_phantoms: Path, tmp_path: Path) -> None:
    """The bundle's own steps find it, and only in the file that is windowed."""
    folder = tmp_path / "ct"
    shutil.copytree(abdomen_phantoms, folder)
    path = sorted((folder / "imagesTr").iterdir())[0]
    image = nib.load(path)
    windowed = np.clip((image.get_fdata(dtype=np.float32) + 160) / 400, 0, 1)
    nib.save(nib.Nifti1Image(windowed, image.affine), path)
    report = check_data(folder, "abdominal_ct_ddmr", estimate=False, folds=2)
    (finding,) = [finding for finding in report.findings if finding.severity == "error"]
    assert finding.file == str(path) and "is not in Hounsfield units" in finding.problem and "window" in finding.fix


@pytest.mark.parametrize("single", [False, True])
def test_names_that_occur_in_two_splits(single: bool, pairs: PairSet, tmp_path: Path) -> None:
    """Each case is of the split that lists it, however it is called where all splits are read together."""
    for number, split in enumerate(("train", "test")):
        for kind, side in (("mr", "moving"), ("us", "fixed")):
            folder = tmp_path / "set" / split / f"{kind}_images"
            folder.mkdir(parents=True)
            shutil.copy(tmp_path / pairs.rows[number][f"{side}_image"], folder / "case1.nii.gz")
    data = tmp_path / "set"
    if single:
        lists = {
            name: [str(data / split / "us_images" / "case1.nii.gz")]
            for name, split in (("training", "train"), ("testing", "test"))
        }
        data = tmp_path / "images.json"
        data.write_text(json.dumps(lists), encoding="utf-8")
    report = check_data(data, None, estimate=False)
    assert [record["split"] for record in report.records] == ["train", "test"]
