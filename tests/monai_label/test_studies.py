"""Pairs and single images from what MONAI Label hands to a training."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from regzoo.errors import RegZooError
from regzoo.monai_label import split_studies, split_study_images, study_pairs


def entries(*names: str) -> list[dict[str, Any]]:
    return [{"image": f"/s/{name}.nii.gz", "label": f"/s/labels/final/{name}.nii.gz"} for name in names]


def cases(records: list[dict[str, Any]]) -> list[str]:
    return [record["case"] for record in records]


def test_pairs_are_found_by_name() -> None:
    pairs = study_pairs(entries("moving01", "p7_fixed_us", "fixed01", "P7_Moving_US", "fixed.2", "moving.2"))
    assert {(Path(pair["fixed_image"]).name, Path(pair["moving_image"]).name) for pair in pairs} == {
        ("fixed01.nii.gz", "moving01.nii.gz"),
        ("p7_fixed_us.nii.gz", "P7_Moving_US.nii.gz"),
        ("fixed.2.nii.gz", "moving.2.nii.gz"),
    }
    for pair in pairs:
        for side in ("fixed", "moving"):
            assert Path(pair[f"{side}_label"]).name == Path(pair[f"{side}_image"]).name
            assert "labels/final" in pair[f"{side}_label"]


def test_images_without_a_partner_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pairs = study_pairs(entries("fixed1", "moving1", "fixed2", "ct3", "fixed_to_moving4", "unfixed5", "Fixed1"))
    assert [pair["case"].lower() for pair in pairs] == ["fixed1"]
    assert sum("fixed2.nii.gz: left out" in line for line in caplog.messages) == 1
    assert all(any(name in line for line in caplog.messages) for name in ("ct3", "fixed_to_moving4", "unfixed5"))
    assert sum("same name" in line for line in caplog.messages) == 1


def test_no_pair_at_all_is_an_error() -> None:
    with pytest.raises(RegZooError, match="no pair among the 2 finished labels"):
        study_pairs(entries("fixed1", "moving2"))
    with pytest.raises(RegZooError, match="no pair"):
        split_studies(entries("a"), entries("b"))


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("held_out", "expected"), [(0, 0), (1, 1), (2, 1), (4, 2), (5, 2), (8, 4), (9, 4)])
def test_pairs_stay_whole_however_the_images_were_divided(order: int, held_out: int, expected: int) -> None:
    names = [f"{side}{number}" for side in ("fixed", "moving") for number in range(5)][::order]
    given = entries(*names)
    training, validation = split_studies(given[: 10 - held_out], given[10 - held_out :])
    assert cases(training) + cases(validation) == [f"fixed{number}" for number in range(5)]
    assert len(validation) == expected


def test_one_pair_is_trained_on() -> None:
    training, validation = split_studies(entries("fixed1"), entries("moving1"))
    assert len(training) == 1 and validation == []


def test_the_two_data_sets_get_the_same_division() -> None:
    training = entries("fixed1", "moving2", "fixed3")
    validation = entries("moving1", "fixed2", "moving3")
    assert split_studies(training, validation) == split_studies(tuple(training), tuple(validation))


def test_single_images_stay_where_they_are_and_validation_pairs_them() -> None:
    training, validation = split_study_images(entries("a", "b"), entries("c", "d", "e"))
    assert [(record["fixed_image"], record["fixed_label"]) for record in training] == [
        ("/s/a.nii.gz", "/s/labels/final/a.nii.gz"),
        ("/s/b.nii.gz", "/s/labels/final/b.nii.gz"),
    ]
    assert all("moving_image" not in record for record in training)
    moving = {Path(pair["fixed_image"]).name[0]: Path(pair["moving_image"]).name[0] for pair in validation}
    assert moving == {"c": "d", "d": "e", "e": "c"}
    (alone,) = split_study_images(entries("a"), entries("c"))[1]
    assert alone["fixed_image"] == "/s/c.nii.gz" and "moving_image" not in alone
    assert split_study_images(entries("a"), [])[1] == []


def test_records_of_ours_stay_as_they_are() -> None:
    ours = [{"fixed_image": "f", "moving_image": "m", "case": "c", "patient": 1}]
    for split in (split_studies, split_study_images):
        assert split(ours, ours) == (ours, ours)
    training, validation = split_studies(entries("fixed1", "moving1", "fixed2", "moving2"), ours)
    assert cases(training) == ["fixed1", "fixed2"] and validation == ours
    training, validation = split_study_images(entries("a", "b"), ours)
    assert cases(training) == ["a", "b"] and validation == ours


def test_studies_without_a_finished_label_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_LABEL_STUDIES", "/s")
    monkeypatch.delitem(sys.modules, "monailabel", raising=False)  # another test may have imported it
    assert split_studies([], []) == ([], [])  # in a shell that has its variables
    monkeypatch.setitem(sys.modules, "monailabel", types.ModuleType("monailabel"))
    for split in (split_studies, split_study_images):
        with pytest.raises(RegZooError, match="no finished label in the studies"):
            split([], [])


def test_an_entry_whose_header_names_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies = tmp_path / "studies"
    (studies / "labels" / "final").mkdir(parents=True)
    for given in (listed := entries("fixed1", "moving1")):
        for key, path in given.items():
            given[key] = str(studies / Path(path).relative_to("/s")).replace(".nii.gz", ".nhdr")
            (studies / given[key]).with_suffix(".raw").write_bytes(bytes(60))
    (tmp_path / "secret.raw").write_bytes(bytes(60))
    (studies / "labels" / "final" / "link").symlink_to(tmp_path)
    monkeypatch.setenv("MONAI_LABEL_STUDIES", str(studies))
    monkeypatch.setitem(sys.modules, "monailabel", types.ModuleType("monailabel"))
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 3 4 5\nencoding: raw\ndata file: "
    for given in listed:
        for path in given.values():
            Path(path).write_text(f"{header}{Path(path).stem}.raw\n", encoding="utf-8")
    for split in (split_studies, split_study_images):
        assert split(listed, [])[0]
    for name in ("link/secret.raw", "../../../secret.raw"):
        Path(listed[1]["label"]).write_text(f"{header}{name}\n", encoding="utf-8")
        for split in (split_studies, split_study_images):
            with pytest.raises(RegZooError, match=r"final/moving1\.nhdr: names another file"):
                split(listed[:1], listed[1:])
    Path(listed[1]["label"]).unlink()
    Path(listed[1]["label"]).symlink_to(tmp_path / "secret.raw")
    for split in (split_studies, split_study_images):
        with pytest.raises(RegZooError, match=r"final/moving1\.nhdr: is a link that leads outside the studies"):
            split(listed[:1], listed[1:])


def test_outside_monai_label_no_records_are_no_records() -> None:
    assert split_studies([], []) == ([], []) == split_study_images([], [])
