"""Reading µ-RegPro and the phantoms in its layout."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from regzoo.datasets import check_records, load_records, read_muregpro
from regzoo.errors import RegZooError
from regzoo_phantoms import ProstatePhantoms

KINDS = ("mr_images", "mr_labels", "us_images", "us_labels")


def write_set(root: Path, names: list[str], labels: int = 6) -> None:
    """Tiny files in the layout, as a user downloads them: without a manifest."""
    for kind in KINDS:
        (root / kind).mkdir(parents=True)
        shape = (4, 5, 6, labels) if kind.endswith("labels") else (4, 5, 6)
        for name in names:
            nib.save(nib.Nifti1Image(np.ones(shape, np.uint8), np.eye(4)), root / kind / f"{name}.nii.gz")


def test_directions(tmp_path: Path) -> None:
    """MR moves to ultrasound by default; the other way on request; labels are those of the image."""
    write_set(tmp_path / "train", ["case000001", "case000000"])
    records = read_muregpro(tmp_path)
    assert [record["case"] for record in records] == ["case000000", "case000001"]
    first = records[0]
    assert first["fixed_image"] == str(tmp_path / "train/us_images/case000000.nii.gz")
    assert first["moving_label"] == str(tmp_path / "train/mr_labels/case000000.nii.gz")
    assert first["patient"] == "case000000"
    assert first["label_names"] == ["gland", *(f"landmark_{i}" for i in range(1, 6))]
    back = read_muregpro(tmp_path, "us_to_mr")[0]
    assert (back["fixed_image"], back["moving_image"]) == (first["moving_image"], first["fixed_image"])
    assert (back["fixed_label"], back["moving_label"]) == (first["moving_label"], first["fixed_label"])
    with pytest.raises(RegZooError, match="direction 'ct_to_us' is unknown; use one of mr_to_us, us_to_mr"):
        read_muregpro(tmp_path, "ct_to_us")


def test_splits_and_missing_level(tmp_path: Path) -> None:
    """``train`` and ``val`` where they are; without the level everything is ``train``."""
    write_set(tmp_path / "both" / "train", ["case000000", "case000001"])
    write_set(tmp_path / "both" / "val", ["case000065"])
    assert [len(read_muregpro(tmp_path / "both", split=split)) for split in (None, "train", "val")] == [3, 2, 1]
    write_set(tmp_path / "flat", ["case000000"])
    assert len(read_muregpro(tmp_path / "flat")) == len(read_muregpro(tmp_path / "flat", split="train")) == 1
    with pytest.raises(RegZooError, match=r"flat: has no split 'val' \(it has: train\)"):
        read_muregpro(tmp_path / "flat", split="val")
    write_set(tmp_path / "flat" / "val", ["case000065"])
    assert read_muregpro(tmp_path / "flat", split="val")[0]["case"] == "case000065"


def test_labels_may_be_missing(tmp_path: Path) -> None:
    """Without a label folder, or without one case's label, the record has no such entry."""
    write_set(tmp_path, ["case000000", "case000001"])
    shutil.rmtree(tmp_path / "us_labels")
    (tmp_path / "mr_labels" / "case000001.nii.gz").unlink()
    first, second = read_muregpro(tmp_path)
    assert "fixed_label" not in first and "moving_label" in first and first["label_names"][0] == "gland"
    assert not {"fixed_label", "moving_label", "label_names"} & second.keys()


@pytest.mark.parametrize("removed, left", [("mr", "us"), ("us", "mr")])
def test_image_without_partner(tmp_path: Path, removed: str, left: str) -> None:
    """The line names both files."""
    write_set(tmp_path, ["case000000", "case000001"])
    (tmp_path / f"{removed}_images" / "case000001.nii.gz").unlink()
    message = f"{left}_images/case000001.nii.gz: its partner .*{removed}_images/case000001.nii.gz is missing; add"
    with pytest.raises(RegZooError, match=message):
        read_muregpro(tmp_path)


def test_other_mistakes(tmp_path: Path) -> None:
    """Another layout, no files, a label that is no NIfTI, a broken manifest."""
    with pytest.raises(RegZooError, match="is not in the layout of µ-RegPro; name the folder that has mr_images"):
        read_muregpro(tmp_path)
    (tmp_path / "mr_images").mkdir()
    with pytest.raises(RegZooError, match="us_images: holds no"):
        read_muregpro(tmp_path)
    write_set(tmp_path / "set", ["case000000"])
    (tmp_path / "set" / "us_labels" / "case000000.nii.gz").write_bytes(b"no image")
    with pytest.raises(RegZooError, match=r"us_labels/case000000\.nii\.gz: holds text, so it is not an image"):
        read_muregpro(tmp_path / "set")
    (tmp_path / "set" / "manifest.json").write_text("[1, 2]")
    with pytest.raises(RegZooError, match=r"manifest\.json: cannot be read as a manifest"):
        read_muregpro(tmp_path / "set")


def test_phantoms(phantoms: Path) -> None:
    """The manifest gives patients and label names; all files exist; train and val share no patient."""
    entries = json.loads((phantoms / "manifest.json").read_text())["cases"]
    train, val = (read_muregpro(phantoms, split=split) for split in ("train", "val"))
    check_records(train + val)
    assert (len(train), len(val)) == (12, 3)
    for record in train + val:
        assert record["patient"] == entries[record["case"]]["patient"]
        assert len(record["label_names"]) == nib.load(record["moving_label"]).shape[3]
        assert record["label_names"][:2] == ["gland", "transition_zone"]
    assert len({record["patient"] for record in train}) < 12
    assert not {record["patient"] for record in train} & {record["patient"] for record in val}


def test_a_set_without_held_out_pairs_is_read_whole(tmp_path: Path) -> None:
    folder = ProstatePhantoms(pairs=2, held_out=0, seed=1, spacing=5.0).write(tmp_path / "set", workers=1)
    assert len(load_records(folder)) == len(load_records(folder, "train")) == 2


def touch_set(part: Path, names: dict[str, list[str]], labels: dict[str, list[str]] | None = None) -> Path:
    """Empty images, and labels with one voxel, in the layout; names with their suffixes."""
    for kind, files in names.items():
        (part / f"{kind}_images").mkdir(parents=True, exist_ok=True)
        for name in files:
            (part / f"{kind}_images" / name).touch()
    for kind, files in (labels or {}).items():
        (part / f"{kind}_labels").mkdir(parents=True, exist_ok=True)
        for name in files:
            sitk.WriteImage(sitk.Image(4, 5, 6, sitk.sitkUInt8), part / f"{kind}_labels" / name)
    return part


def test_all_three_splits_under_any_of_their_words(tmp_path: Path) -> None:
    """``test`` is a split like the others; two folders of one are too many."""
    for number, name in enumerate(("Train", "validation", "test")):
        touch_set(tmp_path / name, {kind: [f"case{number}.nii.gz"] for kind in ("mr", "us")})
    for number, split in enumerate(("train", "val", "test")):
        assert [record["case"] for record in load_records(tmp_path, split)] == [f"case{number}"]
    assert len(load_records(tmp_path)) == 3
    touch_set(tmp_path / "dev", {kind: ["case4.nii.gz"] for kind in ("mr", "us")})
    with pytest.raises(RegZooError, match="and dev are both the split 'val'; keep one"):
        load_records(tmp_path, "train")


def test_nobody_is_in_two_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By name without a manifest, by patient with one; whichever split is asked for."""
    touch_set(tmp_path / "train", {kind: ["case1.nii", "case2.nii"] for kind in ("mr", "us")})
    touch_set(tmp_path / "val", {"mr": ["case1_mr.mha"], "us": ["case1_us.mha"]})
    for split in ("train", "val", None):
        with pytest.raises(RegZooError, match="the patient 'case1' in two splits, train and val"):
            load_records(tmp_path, split)
    # Often numbered anew, so that the name alone proves nothing.
    (tmp_path / "val").rename(tmp_path / "test")
    with caplog.at_level("WARNING"):
        assert [len(load_records(tmp_path, split)) for split in ("train", "test")] == [2, 1]
    assert caplog.messages == [
        f"{tmp_path}: test has cases of the same names as other splits (case1); see that they are other patients"
    ]
    together = load_records(tmp_path)
    assert [(record["case"], record["patient"]) for record in together] == [
        (name, name) for name in ("case1", "case2", "test_case1")
    ]
    assert load_records(tmp_path, "test") == together[2:], (
        "or an evaluation would take them for the training's patients"
    )
    cases = {"case1": {"patient": 1}, "case2": {"patient": 2}}
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": cases}), encoding="utf-8-sig")
    for name in ("mr", "us"):
        (tmp_path / "test" / f"{name}_images" / f"case1_{name}.mha").rename(
            tmp_path / "test" / f"{name}_images" / "case3.mha"
        )
    assert len(load_records(tmp_path)) == 3
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": cases | {"case3": {"patient": "2"}}}))
    with pytest.raises(RegZooError, match="the patient '2' in two splits"):
        load_records(tmp_path, "train")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ", ".mha", ".mhd", ".nrrd", ".nhdr", ".hdr"])
def test_any_file_type(tmp_path: Path, suffix: str) -> None:
    """Images and labels of every type that is read; what systems leave behind does not count."""
    names = [f"case{number}{suffix}" for number in (1, 2)]
    written = [name.lower() for name in names]
    touch_set(tmp_path, {"mr": names, "us": names}, {"mr": written, "us": written})
    for junk in (f"._case1{suffix}", ".DS_Store", "notes.txt", "case1.raw"):
        (tmp_path / "mr_images" / junk).touch()
    (tmp_path / "__MACOSX").mkdir()
    records = load_records(tmp_path, "train")
    assert [record["case"] for record in records] == ["case1", "case2"]
    assert all(Path(record["moving_label"]).name.lower() == f"{record['case']}{suffix.lower()}" for record in records)
    assert not any("label_names" in record for record in records), "a 3-D file may be a map"


def test_label_names_of_other_file_types(tmp_path: Path) -> None:
    """The fourth axis is counted in the header, in whichever format."""
    touch_set(tmp_path, {"mr": ["a.nrrd", "b.mha"], "us": ["a.nrrd", "b.mha"]})
    (tmp_path / "us_labels").mkdir()
    for name in ("a.nrrd", "b.mha"):
        sitk.WriteImage(sitk.JoinSeries([sitk.Image(4, 5, 6, sitk.sitkUInt8)] * 3), tmp_path / "us_labels" / name)
    for record in load_records(tmp_path):
        assert record["label_names"] == ["gland", "landmark_1", "landmark_2"]


@pytest.mark.parametrize(
    "mr, us",
    [
        ("case1_mr", "case1_us"),
        ("case1-mr", "case1-us"),
        ("mr_case1", "us_case1"),
        ("MR_Case1", "case1_US"),
        ("case1.MRI", "case1.TRUS"),
        ("case1_T2", "case1_US"),
        ("case1_mr_image", "case1_us_image"),
        ("case1", "case1_us"),
    ],
)
def test_names_that_differ_in_the_modality(tmp_path: Path, mr: str, us: str) -> None:
    """Pairs by their common part, and labels by it too."""
    names = {"mr": [f"{mr}.nii.gz", "case2.nii.gz"], "us": [f"{us}.nii.gz", "case2.nii.gz"]}
    labels = {"mr": [f"{mr}_label.nii.gz", "case2.nii.gz"], "us": ["case1.nii.gz", "case2.nii.gz"]}
    touch_set(tmp_path, names, labels)
    first, second = load_records(tmp_path)
    assert (first["case"].lower(), second["case"]) == ("case1", "case2")
    assert [Path(first[key]).name for key in ("fixed_image", "moving_image", "fixed_label", "moving_label")] == [
        *(f"{us}.nii.gz", f"{mr}.nii.gz", "case1.nii.gz", f"{mr}_label.nii.gz")
    ]
    back = load_records(tmp_path, direction="us_to_mr")[0]
    assert (back["fixed_image"], back["moving_label"]) == (first["moving_image"], first["fixed_label"])


@pytest.mark.parametrize(
    "names, labels, message",
    [
        ({"mr": ["a_mr.nii", "mr_a.nii"], "us": ["a_us.nii"]}, {}, "mr_a.nii: and a_mr.nii are both of the case 'a'"),
        (
            {"mr": ["a.nii", "a_mr.nii"], "us": ["a.nii", "a_us.nii"]},
            {},
            "a_mr.nii: and a.nii are both of the case 'a'; name the",
        ),
        ({"mr": ["a.nii", "a.mha"], "us": ["a.nii"]}, {}, "a.nii: and a.mha have one name"),
        ({"mr": ["a.nii", "a.nii.gz"], "us": ["a.nii"]}, {}, "a.nii.gz: and a.nii have one name"),
        ({"mr": ["a_mr.nii"], "us": ["b_us.nii"]}, {}, "mr_images/a_mr.nii: its partner .*us_images/a.nii is missing"),
        (
            {"mr": ["a.nii"], "us": ["a.nii"]},
            {"us": ["a_label.nii", "a_mask.nii"]},
            "a_mask.nii: and a_label.nii are both of the case 'a'; name the",
        ),
        (
            {"mr": ["a.nii", "b.nii"], "us": ["a.nii", "b.nii"]},
            {"us": ["a.nii", "b01.nii"]},
            "us_labels/b01.nii: is the label of no image in .*us_images, where some have none; name it",
        ),
    ],
)
def test_names_that_do_not_say_what_belongs_together(
    tmp_path: Path, names: dict[str, list[str]], labels: dict[str, list[str]], message: str
) -> None:
    """One line each."""
    touch_set(tmp_path, names, labels)
    with pytest.raises(RegZooError, match=message) as error:
        load_records(tmp_path)
    assert "\n" not in str(error.value)


def test_folders_nearly_of_the_layout(tmp_path: Path) -> None:
    """A label folder under another name would leave the set without labels."""
    touch_set(tmp_path, {"mr": ["a.nii"], "us": ["a.nii"]})
    for name in ("us_label", "US_labels", "mr_lables"):
        (tmp_path / name).mkdir()
        with pytest.raises(RegZooError, match=f"{name}: is not a folder of µ-RegPro and would be ignored; name it"):
            load_records(tmp_path)
        (tmp_path / name).rmdir()
    (tmp_path / "ddf").mkdir()
    assert len(load_records(tmp_path)) == 1
