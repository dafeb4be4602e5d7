"""Reading µ-RegPro and the phantoms in its layout."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from regzoo.datasets import check_records, load_records, read_muregpro, write_prostate_phantoms
from regzoo.errors import RegZooError

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
    folder = write_prostate_phantoms(tmp_path / "set", pairs=2, held_out=0, seed=1, spacing=5.0, workers=1)
    assert len(load_records(folder)) == len(load_records(folder, "train")) == 2
