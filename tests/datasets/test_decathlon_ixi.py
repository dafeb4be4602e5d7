"""Data sets of single images: the Decathlon, IXI, and datalists of single images."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from regzoo.datasets import (
    check_records,
    is_single,
    load_records,
    load_single_records,
    read_datalist,
    read_decathlon,
    single_records,
)
from regzoo.errors import RegZooError

HIPPOCAMPUS = Path(__file__).parents[3] / "shared/data/hippocampus_mr/Task04_Hippocampus"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.fixture
def liver(tmp_path: Path) -> Path:
    """Task03_Liver with two training images and a test image, as unpacked on a Mac."""
    root = tmp_path / "Task03_Liver"
    names = ("imagesTr/liver_0", "imagesTr/liver_1", "labelsTr/liver_0", "labelsTr/liver_1", "imagesTs/liver_2")
    touch(root, *(f"{name}.nii.gz" for name in names), "imagesTr/._liver_0.nii.gz")
    content = {
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "training": [
            {"image": f"./imagesTr/liver_{i}.nii.gz", "label": f"./labelsTr/liver_{i}.nii.gz"} for i in (1, 0)
        ],
        "test": ["./imagesTs/liver_2.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_decathlon(liver: Path) -> None:
    """As the JSON file lists the images, with the names of the labels."""
    train = load_single_records(liver, "train")
    assert [record["case"] for record in train] == ["liver_1", "liver_0"]
    assert train[0] == {
        "fixed_image": str(liver / "imagesTr/liver_1.nii.gz"),
        "fixed_label": str(liver / "labelsTr/liver_1.nii.gz"),
        "patient": "liver_1",
        "case": "liver_1",
        "label_values": [1, 2],
        "label_names": ["liver", "cancer"],
    }
    assert all(map(is_single, train))
    (test,) = read_decathlon(liver, "test")
    assert test.keys() == {"fixed_image", "case", "patient"}
    assert len(load_single_records(liver)) == 3
    with pytest.raises(RegZooError, match="Task03_Liver: holds single images, not pairs; use it for a method that"):
        load_records(liver)
    with pytest.raises(RegZooError, match="the Decathlon has no split 'val'; use train, and folds of it"):
        load_single_records(liver, "val")


def test_decathlon_without_its_description(liver: Path) -> None:
    """The folders say enough; hidden files do not count, an image without a label has none."""
    (liver / "dataset.json").unlink()
    (liver / "labelsTr/liver_1.nii.gz").unlink()
    first, second = read_decathlon(liver, "train")
    assert first["case"] == "liver_0" and "label_names" not in first and first["fixed_label"].endswith("liver_0.nii.gz")
    assert "fixed_label" not in second
    (liver / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    assert read_decathlon(liver, "train")[0]["label_names"] == ["liver"]


def test_names_of_nnunet(liver: Path) -> None:
    """The channel is in the names of the images alone; a label of nobody is not passed over."""
    (liver / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}))
    for number in (0, 1):
        (liver / f"imagesTr/liver_{number}.nii.gz").rename(liver / f"imagesTr/liver_{number}_0000.nii.gz")
    assert [Path(r["fixed_label"]).name for r in read_decathlon(liver, "train")] == ["liver_0.nii.gz", "liver_1.nii.gz"]
    (liver / "labelsTr/liver_1.nii.gz").rename(liver / "labelsTr/liver_01.nii.gz")
    with pytest.raises(RegZooError, match=r"liver_01.nii.gz: is the label of no image in .*imagesTr, where some have"):
        read_decathlon(liver, "train")


def test_nobody_is_in_two_splits(liver: Path, tmp_path: Path) -> None:
    """In no layout of single images; any type of file counts."""
    (liver / "dataset.json").unlink()
    touch(liver, "imagesTs/liver_1.mha")
    with pytest.raises(RegZooError, match="Task03_Liver: has the patient 'liver_1' in two splits, train and test"):
        load_single_records(liver, "train")
    names = ("IXI002-Guys-0828-T1", "IXI002-Guys-0900-T1")
    touch(tmp_path / "ixi", f"{names[0]}.nii.gz", f"{names[1]}.nrrd")
    assert len(load_single_records(tmp_path / "ixi", "train")) == 2
    manifest = tmp_path / "ixi" / "manifest.json"
    manifest.write_text(json.dumps({"cases": {names[0]: {"split": "Validation"}}}))
    with pytest.raises(RegZooError, match="the patient 'IXI002' in two splits, train and val"):
        load_single_records(tmp_path / "ixi", "train")
    manifest.write_text(json.dumps({"cases": {names[0]: {"split": "rest"}}}))
    with pytest.raises(RegZooError, match=r"manifest.json: IXI002-Guys-0828-T1 is of the split 'rest', .*; use train"):
        load_single_records(tmp_path / "ixi", "train")


def test_decathlon_that_is_wrong(liver: Path, tmp_path: Path) -> None:
    """One line each."""
    with pytest.raises(RegZooError, match="has no folder imagesTr; name the unpacked folder"):
        read_decathlon(tmp_path)
    (liver / "labelsTr/liver_1.nii.gz").unlink()
    with pytest.raises(RegZooError, match=r"labelsTr/liver_1\.nii\.gz: no such file"):
        load_single_records(liver, "train")
    (liver / "dataset.json").write_text("[]")
    with pytest.raises(RegZooError, match=r"dataset\.json: does not describe a data set"):
        load_single_records(liver)
    touch(tmp_path / "empty", "imagesTr/notes.txt")
    with pytest.raises(RegZooError, match="empty: holds no images"):
        load_single_records(tmp_path / "empty")


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason=f"the Decathlon's hippocampi are not at {HIPPOCAMPUS}")
def test_real_decathlon() -> None:
    """Hippocampi without a dataset.json, each with its label."""
    records = load_single_records(HIPPOCAMPUS)
    count = len(list((HIPPOCAMPUS / "imagesTr").glob("hippocampus_*.nii.gz")))
    assert len(records) == count >= 126 and all("fixed_label" in record for record in records)
    assert count / 2 <= len({record["patient"] for record in records}) < count


def test_patients_of_the_hippocampi(tmp_path: Path) -> None:
    """Images 2n - 1 and 2n are of one patient, which may be in both splits; other tasks have an image a patient."""
    names = ("hippocampus_001", "hippocampus_003", "hippocampus_004_0000", "liver_3", "liver_4")
    touch(tmp_path, *(f"imagesTr/{name}.nii.gz" for name in names), "imagesTs/hippocampus_002.nii.gz")
    patients = {record["case"]: record["patient"] for record in load_single_records(tmp_path)}
    assert patients["hippocampus_001"] == patients["hippocampus_002"]
    assert patients["hippocampus_003"] == patients["hippocampus_004_0000"]
    assert len(set(patients.values())) == 4


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason=f"the Decathlon's hippocampi are not at {HIPPOCAMPUS}")
def test_two_images_of_a_patient_have_intensities_of_one_scan() -> None:
    """The scanners' scaled values are as good as a fingerprint: no other two images of a sample share them."""
    scans: dict[str, list[set[float]]] = {}
    for record in load_single_records(HIPPOCAMPUS)[:80]:
        values = np.asarray(nib.load(record["fixed_image"]).dataobj)
        if values.dtype == np.float32:
            scans.setdefault(record["patient"], []).append(set(values.ravel().tolist()))

    def shared(first: set[float], second: set[float]) -> float:
        return len(first & second) / min(len(first), len(second))

    assert all(shared(*pair) > 0.2 for pair in scans.values() if len(pair) == 2)
    apart = [pair[0] for pair in scans.values()]
    assert all(shared(first, second) < 0.1 for first, second in combinations(apart, 2))


def test_ixi(tmp_path: Path) -> None:
    """T1 images by patient, labels where there are any; other files and modalities do not matter."""
    names = ("IXI002-Guys-0828-T1", "IXI012-HH-1211-T1", "labels/IXI012-HH-1211-T1", "IXI012-HH-1211-T2", "mean")
    touch(tmp_path, *(f"{name}.nii.gz" for name in names))
    first, second = load_single_records(tmp_path)
    assert (first["patient"], first["case"]) == ("IXI002", "IXI002-Guys-0828-T1") and "fixed_label" not in first
    assert second["fixed_label"] == str(tmp_path / "labels/IXI012-HH-1211-T1.nii.gz")
    assert load_single_records(tmp_path, "train") == [first, second]
    with pytest.raises(RegZooError, match="has no images of the split 'val'; IXI has none of its own"):
        load_single_records(tmp_path, "val")
    touch(tmp_path / "T2", "IXI012-HH-1211-T2.nii.gz")
    with pytest.raises(RegZooError, match=r"has no file IXI###-<site>-####-T1\.nii\.gz"):
        load_single_records(tmp_path / "T2")
    with pytest.raises(RegZooError, match="holds single images, not pairs"):
        load_records(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RegZooError, match=r"manifest\.json: is not valid JSON"):
        load_single_records(tmp_path)


@pytest.mark.parametrize("keys", [("fixed_image", "fixed_label"), ("image", "label")])
def test_datalist_of_single_images(tmp_path: Path, keys: tuple[str, str]) -> None:
    """Our names or MONAI's; a list of pairs does for single images too, but not the other way round."""
    touch(tmp_path, "a.nii", "b.nii", "l.nii")
    entries: list[dict[str, Any]] = [
        {keys[0]: "a.nii", keys[1]: "l.nii", "label_values": [3, 5], "patient": "p"},
        {keys[0]: "b.nii"},
    ]
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"training": entries}))
    first, second = load_single_records(tmp_path, "train")
    assert first == {
        "fixed_image": str(tmp_path / "a.nii"),
        "fixed_label": str(tmp_path / "l.nii"),
        "label_values": [3, 5],
        "patient": "p",
        "case": "a",
    }
    assert second == {"fixed_image": str(tmp_path / "b.nii"), "case": "b"}
    missing = "moving_image" if keys[0] == "fixed_image" else "fixed_image"
    with pytest.raises(RegZooError, match=f"entry 1 has no {missing}"):
        load_records(tmp_path, "train")
    entries[0]["label_values"] = ["three"]
    path.write_text(json.dumps(entries))
    with pytest.raises(RegZooError, match="entry 1: label_values are not integers"):
        load_single_records(path)


def test_images_of_pairs(tmp_path: Path) -> None:
    """Every image of some pairs once, with its own label and patient; cases stay distinct."""
    touch(tmp_path, "mr/a.nii", "us/a.nii", "l.nii", "x.nii")
    table = tmp_path / "pairs.csv"
    rows = [
        "fixed_image,moving_image,moving_label,patient,label_values",
        "us/a.nii,mr/a.nii,l.nii,p,1;2",
        "us/a.nii,x.nii,,p,",
    ]
    table.write_text("\n".join(rows))
    records = single_records(read_datalist(table))
    assert [record["case"] for record in records] == ["us_a", "mr_a", "x"]
    assert "fixed_label" not in records[0] and records[1]["fixed_label"] == str(tmp_path / "l.nii")
    assert {record["patient"] for record in records} == {"p"} and records[1]["label_values"] == [1, 2]
    check_records(records)


def test_checks_of_single_images(tmp_path: Path) -> None:
    """An image listed twice, and two patients with one file, are found without a moving image."""
    touch(tmp_path, "a.nii", "b.nii", "l.nii")
    one = {"fixed_image": str(tmp_path / "a.nii"), "case": "1"}
    with pytest.raises(RegZooError, match=r"a\.nii: is listed twice; keep one"):
        check_records([one, one | {"case": "2"}])
    label = str(tmp_path / "l.nii")
    two = {"fixed_image": str(tmp_path / "b.nii"), "case": "2", "patient": "q", "fixed_label": label}
    with pytest.raises(RegZooError, match=r"l\.nii: belongs to two patients, p and q"):
        check_records([one | {"patient": "p", "fixed_label": label}, two])
