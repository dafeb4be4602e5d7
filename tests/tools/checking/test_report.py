"""What a check proposes, estimates, draws and prints, for each kind of training; the exit status of the command."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from broken_sets import PairSet
from bundle_list import BUNDLES, REPRESENTATIVES
from regzoo.cli import main
from regzoo.errors import RegZooError
from regzoo_tools.checking import as_text, check_data


@pytest.mark.slow
@pytest.mark.parametrize(
    "bundle", [path for path in BUNDLES if path.name in REPRESENTATIVES], ids=lambda path: path.name
)
def test_sound_phantoms(bundle: Path, dataset: Path, tmp_path: Path) -> None:
    """They have no errors; time and memory are those of steps that were run; the picture has every case."""
    report = check_data(dataset, bundle, tmp_path / "out", folds=2)
    assert [finding.line() for finding in report.findings if finding.severity == "error"] == []
    assert report.spacing is not None and report.size is not None and min(report.size) >= 16
    assert all(size % 8 == 0 for size in report.size)
    assert report.cost is not None and 0 < report.cost.step_seconds < report.cost.epoch_seconds
    assert 1e8 < report.cost.step_bytes < 1e10 and report.cost.case_bytes > 4 * np.prod(report.size)
    for facts in report.facts:
        for side, volumes in facts.volumes.items():
            assert len(volumes) == len(facts.shares[side]) == len(facts.names)
    written = json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8"))
    assert written["bundle"] == bundle.name and len(written["cases"]) == len(report.records)
    picture = matplotlib.image.imread(tmp_path / "out" / "contact_sheet.png")
    assert np.ptp(picture[..., 0] - picture[..., 2]) > 0.5  # outlines in colour
    text = as_text(report)
    assert f'--size "[{",".join(map(str, report.size))}]"' in text and "s a step" in text


def test_the_command(
    prostate_phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written without --out; warnings fail with --strict alone; files of others are left alone."""

    def status(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["regzoo", "check", *arguments])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    pairs = PairSet(tmp_path)
    pairs.label("c0_moving_label", 15, 0)
    path = str(pairs.write())
    before = sorted(tmp_path.iterdir())
    assert status(path) == 0 and status(path, "--strict") == 1
    assert sorted(tmp_path.iterdir()) == before
    assert capsys.readouterr().out.count("c0_moving_label.nii.gz: label 1 (from 0) is empty here") == 2
    (tmp_path / "c1_fixed.nii.gz").unlink()
    assert status(path) == 1
    assert "1 error," in capsys.readouterr().out
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "contact_sheet.png").write_bytes(b"mine")
    assert status(path, "--out", str(tmp_path / "out")) == 1
    assert "this command did not write it" in capsys.readouterr().err
    assert (tmp_path / "out" / "contact_sheet.png").read_bytes() == b"mine"
    # Also beside a report of ours; our own files are replaced.
    (tmp_path / "out" / "contact_sheet.png").unlink()
    for _ in range(2):
        assert status(path, "--out", str(tmp_path / "out")) == 1
        assert "1 error," in capsys.readouterr().out
    (tmp_path / "out" / "contact_sheet.png").write_bytes(b"mine")
    assert status(path, "--out", str(tmp_path / "out")) == 1
    assert "contact_sheet.png: already exists" in capsys.readouterr().err
    assert (tmp_path / "out" / "contact_sheet.png").read_bytes() == b"mine"
    assert status(path, "--sise", "[16,16,16]") == 1 and "name one with --bundle" in capsys.readouterr().err
    assert status(path, "--bundle", BUNDLES[-1].name, "--sise", "[16,16,16]") == 1
    assert "did you mean size" in capsys.readouterr().err


@pytest.mark.slow
def test_several_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = PairSet(tmp_path, count=17)
    pairs.label("c9_moving_label", 15, 0)
    path = pairs.write()
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    alone = check_data(path)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    together = check_data(path)
    assert as_text(alone) == as_text(together) and len(alone.findings) == 1 and alone.folds == 5
    for one, other in zip(alone.facts, together.facts, strict=True):
        assert (one.images, one.volumes, one.reach) == (other.images, other.volumes, other.reach)


def test_many_warnings_of_a_kind_are_counted(tmp_path: Path) -> None:
    """Ten of them are shown, all errors are."""
    pairs = PairSet(tmp_path, count=14)
    for number in range(12):
        pairs.label(f"c{number}_moving_label", 15, 0)
    for number in (12, 13):
        pairs.image(f"c{number}_moving", 1, center=(500, 0, 0))
    report = check_data(pairs.write())
    lines = as_text(report).splitlines()
    assert len([line for line in lines if "is empty here" in line]) == 10
    assert "warning: 2 more of this kind; --out FOLDER writes them all to check.json" in lines
    assert lines[-1].endswith("12 warnings") and len(report.findings) == len(lines) - lines.index("") - 3 + 1


def test_proposals_without_labels_cover_the_image(tmp_path: Path) -> None:
    """72 × 72 × 60 mm in voxels of 3 mm, than which no finer ones make sense."""
    pairs = PairSet(tmp_path, count=2)
    for row in pairs.rows:
        del row["fixed_label"], row["moving_label"]
    report = check_data(pairs.write())
    assert (report.spacing, report.size, report.folds) == ([3.0, 3.0, 3.0], [24, 24, 24], 2)


def test_patients_that_pairs_link(tmp_path: Path) -> None:
    """p0 → p1 and p1 → p2 are three patients, of whom no fold can hold one out; p3 and a pair without a patient."""
    pairs = PairSet(tmp_path)
    for number in range(2):
        del pairs.rows[number]["patient"]
        pairs.rows[number] |= {"fixed_patient": f"p{number}", "moving_patient": f"p{number + 1}"}
    del pairs.rows[2]["patient"]
    text = as_text(check_data(pairs.write()))
    linked = "their pairs link them into 3 groups, which folds cannot divide"
    assert f"4 pairs (train 4) of 5 patients; {linked}" in text and "--folds 3" in text
    del pairs.rows[2:]
    text = as_text(check_data(pairs.write()))
    assert "2 pairs (train 2) of 3 patients; their pairs link them into 1 group," in text and "--folds" not in text


def test_images_of_which_any_two_make_a_pair(tmp_path: Path) -> None:
    """Each is examined once; pairs that the task lists are examined as pairs."""
    pairs = PairSet(tmp_path, count=0)
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    names = [f"Task_{number:04d}_0000" for number in range(5)]
    for seed, name in enumerate(names):
        pairs.image(f"imagesTr/{name}", seed)
        pairs.label(f"labelsTr/{name}")
    images = [f"./imagesTr/{name}.nii.gz" for name in names]
    content = {"training": images, "registration_val": [{"fixed": images[3], "moving": images[4]}]}
    (tmp_path / "Task_dataset.json").write_text(json.dumps(content))
    report = check_data(tmp_path)
    assert [facts.case for facts in report.facts] == names and report.findings == [] and report.folds == 3
    assert "5 images (train 3, val 2) of 5 patients\n" in as_text(report)
    content["training_paired_images"] = [{"fixed": images[0], "moving": images[1]}]
    (tmp_path / "Task_dataset.json").write_text(json.dumps(content))
    assert "2 pairs (train 1, val 1) of 4 patients; their pairs link" in as_text(check_data(tmp_path))


def test_no_pair_that_can_be_read(tmp_path: Path) -> None:
    pairs = PairSet(tmp_path, count=1)
    pairs.rows[0]["moving_image"] = "none.nii.gz"
    report = check_data(pairs.write(), out=tmp_path / "out")
    assert [finding.severity for finding in report.findings] == ["error"] and "0 images" in as_text(report)
    assert (tmp_path / "out/check.json").is_file() and not (tmp_path / "out/contact_sheet.png").exists()


def test_data_in_no_layout(tmp_path: Path) -> None:
    with pytest.raises(RegZooError, match="is in no known layout"):
        check_data(tmp_path)


def test_a_bundle_that_is_not_trained(tmp_path: Path) -> None:
    with pytest.raises(RegZooError, match=r"none: is not a bundle with configs/train\.json; name one of abdominal_ct_"):
        check_data(tmp_path, "none")
