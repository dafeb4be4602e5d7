"""Tasks of Learn2Reg: pairs and single images as the JSON file lists them, and what may be wrong with it."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from regzoo.datasets import load_records, load_single_records, patient_folds, read_learn2reg
from regzoo.datasets.records import check_records
from regzoo.datasets.splits import linked_groups
from regzoo.errors import RegZooError
from regzoo_phantoms import AbdomenPhantoms


def image(case: int, modality: int = 0, kind: str = "images", part: str = "Tr") -> str:
    return f"./{kind}{part}/Task_{case:04d}_{modality:04d}.nii.gz"


def pair(fixed: str, moving: str) -> dict[str, str]:
    return {"fixed": fixed, "moving": moving}


def write_task(folder: Path, name: str = "Task", **content: Any) -> Path:
    """A task of seven patients with empty files; 5 and 6 are for validation, 7 for the test and has no label."""
    for number in range(1, 8):
        part = "Ts" if number == 7 else "Tr"
        for kind in ("images", "labels")[: 1 if number == 7 else 2]:
            path = folder / image(number, 0, kind, part)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    described = {
        "name": name,
        "labels": {"0": "background", "2": "left kidney", "1": "spleen"},
        "training": [{"image": image(i), "label": image(i, kind="labels"), "mask": "./gone"} for i in range(1, 7)],
        "test": [image(7, part="Ts")],
        "registration_val": [pair(image(5), image(6)), pair(image(6), image(5))],
    }
    path = folder / f"{name}_dataset.json"
    path.write_text(json.dumps(described | content))
    return path


def ends(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The numbers of the fixed and moving patient of each pair."""
    return [tuple(Path(r[f"{side}_image"]).name[5:9] for side in ("fixed", "moving")) for r in records]


def test_patients_of_the_hippocampi(tmp_path: Path) -> None:
    """The challenge of 2020 keeps the Decathlon's names, of which two consecutive ones are one patient."""
    names = [f"./imagesTr/hippocampus_{number:03d}.nii.gz" for number in (1, 2, 3, 311, 313)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    content = {"training": [{"image": name} for name in names], "registration_val": [pair(*names[3:])]}
    (tmp_path / "Task_dataset.json").write_text(json.dumps(content))
    first, second, third = load_single_records(tmp_path, "train")
    assert first["patient"] == second["patient"] != third["patient"]
    assert len(load_records(tmp_path, "train")) == 4


def test_pairs_of_different_patients(tmp_path: Path) -> None:
    """Without a list, pairs to train on are all of different patients that are not for validation."""
    path = write_task(tmp_path)
    train = load_records(tmp_path, "train")
    assert sorted(ends(train)) == [(f"{i:04d}", f"{j:04d}") for i in range(1, 5) for j in range(1, 5) if i != j]
    first = train[0]
    assert first["fixed_label"] == str(tmp_path / "labelsTr" / "Task_0001_0000.nii.gz")
    assert (first["label_values"], first["label_names"]) == ([1, 2], ["spleen", "left_kidney"])
    assert (first["fixed_patient"], first["moving_patient"]) == ("Task_0001", "Task_0002") and "patient" not in first
    val = load_records(path, "val")
    assert ends(val) == [("0005", "0006"), ("0006", "0005")]
    assert [record["case"] for record in val] == [
        "Task_0005_0000_from_Task_0006_0000",
        "Task_0006_0000_from_Task_0005_0000",
    ]
    assert len(load_records(tmp_path)) == 14
    with pytest.raises(RegZooError, match=r"Task_dataset\.json: lists no pairs of the split 'test'"):
        load_records(tmp_path, "test")


def test_a_file_of_many_pairs_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of a task across patients is in six of twelve pairs; OASIS has 414 images and 155,000 pairs."""
    write_task(tmp_path)
    records = load_records(tmp_path, "train")
    assert len(records) == 12
    calls: Counter[str] = Counter()
    resolve = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: calls.update([path]) or resolve(path))
    for check in (check_records, linked_groups):
        check(records)
        assert len(calls) >= 4 and set(calls.values()) == {1}
        calls.clear()


def test_single_images(tmp_path: Path) -> None:
    """Images to train on are in no pair to validate on; folds of them are by patient."""
    write_task(tmp_path)
    train = load_single_records(tmp_path, "train")
    assert [record["case"] for record in train] == [f"Task_{i:04d}_0000" for i in range(1, 5)]
    assert not any("moving_image" in record for record in train)
    assert train[0]["patient"] == "Task_0001" and train[0]["label_names"] == ["spleen", "left_kidney"]
    assert sorted(record["patient"] for fold in patient_folds(train, 2) for record in fold) == [
        f"Task_{i:04d}" for i in range(1, 5)
    ]
    assert [record["case"] for record in load_single_records(tmp_path, "val")] == ["Task_0005_0000", "Task_0006_0000"]
    (test,) = load_single_records(tmp_path, "test")
    assert test["case"] == "Task_0007_0000" and "fixed_label" not in test and "label_names" not in test
    assert len(load_single_records(tmp_path)) == 7
    (tmp_path / "labelsTs").mkdir()
    (tmp_path / "labelsTs" / "Task_0007_0000.nii.gz").touch()
    assert load_single_records(tmp_path, "test")[0]["fixed_label"].endswith("labelsTs/Task_0007_0000.nii.gz")


def test_pairs_of_one_patient(tmp_path: Path) -> None:
    """As LungCT and ThoraxCBCT list them: keypoints are left alone, what is validated on is not trained on."""
    for number in range(1, 4):
        for modality in (0, 1):
            path = tmp_path / image(number, modality)
            path.parent.mkdir(exist_ok=True)
            path.touch()
    listed = [pair(image(i, 1), image(i, 0)) for i in range(1, 4)]
    content = {
        "labels": {},
        "pairings": "paired",
        "training": [{"image": image(i, m), "keypoints": "./k.csv"} for i in range(1, 4) for m in (0, 1)],
        "test": [],
        "training_paired_images": listed,
        "registration_val": listed[2:],
    }
    (tmp_path / "LungCT_dataset.json").write_text(json.dumps(content))
    train = load_records(tmp_path, "train")
    assert ends(train) == [("0001", "0001"), ("0002", "0002")]
    assert [record["patient"] for record in train] == ["Task_0001", "Task_0002"]
    assert train[0]["fixed_image"].endswith("Task_0001_0001.nii.gz") and "fixed_label" not in train[0]
    assert len(load_records(tmp_path)) == 3 and len(load_single_records(tmp_path, "train")) == 4


def test_nobody_is_trained_and_tested_on(tmp_path: Path) -> None:
    """Another image of a patient of the validation would be trained on."""
    write_task(tmp_path)
    path = tmp_path / image(5, 1)
    path.touch()
    training = [{"image": image(number)} for number in range(1, 7)] + [{"image": image(5, 1)}]
    task = write_task(tmp_path, training=training)
    for load in (load_records, load_single_records):
        for split in ("train", "val"):
            with pytest.raises(
                RegZooError, match=f"{task}: has the patient 'Task_0005' in two splits, train and val or"
            ):
                load(tmp_path, split)


def test_labels_by_modality(tmp_path: Path) -> None:
    """Some tasks name their labels for each modality."""
    write_task(tmp_path, labels={"0": {"0": "background", "1": "liver"}, "1": {"0": "background", "1": "liver"}})
    assert load_single_records(tmp_path, "train")[0]["label_names"] == ["liver"]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"training": 3}, "'training' is not a list of images; download the task again"),
        ({"training": [{"label": "x"}]}, "names no image; download"),
        (
            {"registration_val": [{"fixed": "./imagesTr/a.nii.gz"}]},
            "pair 1 of 'registration_val' does not name a fixed",
        ),
        ({"registration_val": ["a"]}, "pair 1 of 'registration_val' does not name a fixed and a moving image"),
        ({"labels": ["liver"]}, "its labels are not values with names"),
        ({"training": [], "registration_val": [], "test": []}, "lists no pairs"),
    ],
)
def test_descriptions_that_are_wrong(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    """One line that names the file."""
    write_task(tmp_path, **content)
    with pytest.raises(RegZooError, match=r"Task_dataset\.json: .*" + message) as error:
        load_records(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_parts(tmp_path: Path) -> None:
    """A missing image or label is named; broken JSON and a choice of two files as well."""
    path = write_task(tmp_path)
    label = tmp_path / "labelsTr" / "Task_0002_0000.nii.gz"
    label.unlink()
    with pytest.raises(RegZooError, match=f"{label}: no such file"):
        load_single_records(tmp_path, "train")
    (tmp_path / "imagesTr" / "Task_0005_0000.nii.gz").unlink()
    with pytest.raises(RegZooError, match=r"imagesTr/Task_0005_0000\.nii\.gz: no such file"):
        load_records(tmp_path, "val")
    path.write_text("{")
    with pytest.raises(RegZooError, match=r"Task_dataset\.json: is not valid JSON"):
        load_records(path)
    write_task(tmp_path, "Other")
    with pytest.raises(RegZooError, match=r"no single \*_dataset.json \(Other_dataset.json, Task_dataset.json\)"):
        load_records(tmp_path)
    with pytest.raises(RegZooError, match=r"no single \*_dataset.json \(none\)"):
        read_learn2reg(tmp_path / "imagesTr")


def test_datalists_come_first(tmp_path: Path) -> None:
    """A datalist in the folder, or one that is called as Learn2Reg's files are, is read as a datalist."""
    write_task(tmp_path)
    entry = {"fixed_image": image(1), "moving_image": image(2), "case": "mine"}
    for name in ("my_dataset.json", "datalist.json"):
        (tmp_path / name).write_text(json.dumps({"training": [entry]}))
        assert [record["case"] for record in load_records(tmp_path / name, "train")] == ["mine"]
    assert [record["case"] for record in load_records(tmp_path, "train")] == ["mine"]


def test_phantoms(tmp_path: Path) -> None:
    """The set that is written is read: single images, pairs of states, pairs of patients."""
    root = AbdomenPhantoms(cases=2, held_out=2, spacing=16.0, breathing=True).write(tmp_path / "set", workers=1)
    assert [record["patient"] for record in load_single_records(root, "train")] == [
        *("AbdomenCTCT_0001", "AbdomenCTCT_0001", "AbdomenCTCT_0002", "AbdomenCTCT_0002")
    ]
    train, val, test = (load_records(root, split) for split in ("train", "val", "test"))
    assert [record["patient"] for record in train + test] == [f"AbdomenCTCT_{i:04d}" for i in range(1, 5)]
    assert [(r["fixed_patient"], r["moving_patient"]) for r in val] == [("AbdomenCTCT_0003", "AbdomenCTCT_0004")]
    assert "moving_label" in val[0] and "liver" in val[0]["label_names"]


def test_keypoints_belong_to_the_pairs_of_one_patient(tmp_path: Path) -> None:
    """NLST: two images of each patient; another task pairs patients, whose points do not correspond."""
    images = [image(case, time) for case in (1, 2) for time in (0, 1)]
    for name in images:
        for kind, suffix in (("images", ".nii.gz"), ("keypoints", ".csv")):
            path = tmp_path / name.replace("images", kind).replace(".nii.gz", suffix)
            path.parent.mkdir(exist_ok=True)
            path.touch()
    content = {"name": "NLST", "training": [{"image": name} for name in images], "tensorImageShape": {}}
    content["registration_val"] = [pair(image(2), image(2, 1))]
    content["training_paired_images"] = [pair(image(1), image(1, 1)), pair(image(1), image(2, 1))]
    (tmp_path / "NLST_dataset.json").write_text(json.dumps(content))
    (held_out,) = load_records(tmp_path, "val")
    assert held_out["fixed_points"] == str(tmp_path / "keypointsTr" / "Task_0002_0000.csv")
    assert held_out["moving_points"] == str(tmp_path / "keypointsTr" / "Task_0002_0001.csv")
    del content["registration_val"]
    (tmp_path / "NLST_dataset.json").write_text(json.dumps(content))
    same, other = load_records(tmp_path, "train")
    assert "fixed_points" in same and "fixed_points" not in other
