"""The brain phantoms: layout, anatomy, look, determinism, bad input."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from regzoo.datasets import load_single_records
from regzoo.errors import RegZooError
from regzoo_phantoms import BrainPhantoms
from regzoo_phantoms.brain_anatomy import LABELS, VALUES
from regzoo_tools.commands import Phantom
from scipy import ndimage

SPACING = 3.0
SMALL: dict[str, Any] = {"cases": 1, "held_out": 1, "seed": 7, "spacing": 8.0}


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three and one patients."""
    folder = tmp_path_factory.mktemp("brain") / "set"
    return BrainPhantoms(cases=3, held_out=1, seed=2, spacing=SPACING).write(folder)


def load(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine."""
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def test_layout(brains: Path) -> None:
    """Names, orientation and types are those of IXI, with 17 labels beside; the manifest says who is held out."""
    assert sorted(LABELS) == list(range(1, 18))
    records = load_single_records(brains)
    assert len(records) == 4 and len(load_single_records(brains, "train")) == 3
    assert [record["patient"] for record in load_single_records(brains, "val")] == ["IXI004"]
    for record in records:
        image, label = nib.load(record["fixed_image"]), nib.load(record["fixed_label"])
        assert image.get_data_dtype() == np.int16 and label.get_data_dtype() == np.uint8
        assert image.shape == label.shape and np.allclose(image.affine, label.affine)
        assert nib.aff2axcodes(image.affine) == ("P", "S", "R")
        assert set(np.unique(np.asarray(label.dataobj))) == {0, *LABELS}
        assert record["label_values"] == list(range(1, 18)) and record["label_names"] == list(LABELS.values())
    manifest = json.loads((brains / "manifest.json").read_text())
    assert manifest["kind"] == "brain" and set(manifest["cases"]) == {record["case"] for record in records}


def test_anatomy_is_plausible(brains: Path) -> None:
    """Volumes are those of adults, the two sides mirror each other, the cortex lies outside the white matter."""
    volumes = {
        "cerebral_white_matter": (140, 420),
        "cerebral_cortex": (170, 420),
        "lateral_ventricle": (3, 35),
        "thalamus": (2, 9),
        "caudate": (1.5, 7),
        "putamen": (1.5, 7),
        "hippocampus": (1.2, 6),
        "cerebellum": (40, 120),
    }
    for record in load_single_records(brains):
        label, affine = load(record["fixed_label"])
        masks = {name: label == value for value, name in LABELS.items()}
        middle = {n: nib.affines.apply_affine(affine, ndimage.center_of_mass(mask)) for n, mask in masks.items()}
        for name, (least, most) in volumes.items():
            left, right = (masks[f"{name}_{side}"].sum() * SPACING**3 / 1000 for side in ("left", "right"))
            assert least < left < most and least < right < most, (name, left, right)
            assert middle[f"{name}_left"][0] < middle["brain_stem"][0] + 8
            assert middle[f"{name}_left"][0] < middle[f"{name}_right"][0], "the left side has the smaller x in RAS"
        assert middle["cerebellum_left"][1] < middle["brain_stem"][1] < middle["caudate_left"][1]
        assert middle["cerebellum_left"][2] < middle["hippocampus_left"][2] < middle["caudate_left"][2]
        cerebrum = sum(
            masks[f"{kind}_{side}"]
            for kind in ("cerebral_cortex", "cerebral_white_matter")
            for side in ("left", "right")
        )
        depth = ndimage.distance_transform_edt(ndimage.binary_closing(cerebrum > 0, iterations=2))
        cortex, white = (label == VALUES[f"cerebral_{kind}_left"] for kind in ("cortex", "white_matter"))
        assert depth[cortex].mean() < 0.75 * depth[white].mean()


def test_look(brains: Path, tmp_path: Path) -> None:
    """White matter is brighter than grey, grey than fluid; nothing outside the brain, or the head if asked for."""
    for record in load_single_records(brains):
        image, label = load(record["fixed_image"])[0].astype(float), load(record["fixed_label"])[0]
        bright = {name: np.median(image[label == value]) for value, name in LABELS.items()}
        for side in ("left", "right"):
            white, grey = bright[f"cerebral_white_matter_{side}"], bright[f"cerebral_cortex_{side}"]
            assert white > 1.15 * grey and grey > 1.3 * bright[f"lateral_ventricle_{side}"]
            assert grey < bright[f"thalamus_{side}"] < 1.15 * white
        assert not image[ndimage.distance_transform_edt(label == 0) > 8].any(), "skull-stripped"
    root = BrainPhantoms(cases=1, held_out=0, seed=2, spacing=SPACING, scalp=True).write(tmp_path / "head", workers=1)
    (record,) = load_single_records(root)
    image, label = load(record["fixed_image"])[0].astype(float), load(record["fixed_label"])[0]
    assert np.array_equal(label, load(load_single_records(brains)[0]["fixed_label"])[0]), "the same brain"
    far = ndimage.distance_transform_edt(label == 0) * SPACING
    head = image[(far > 10) & (far < 30)]
    assert np.percentile(head, 95) > np.median(image[label == VALUES["cerebral_white_matter_left"]])
    assert (image[:, -1] < 0.1 * image.max()).all(), "air above the head"


def test_same_seed_same_voxels(tmp_path: Path) -> None:
    """Any number of processes; more cases add files and change no voxel; another seed changes all."""

    def voxels(root: Path) -> dict[tuple[str, str], np.ndarray]:
        return {
            (r["patient"], key): load(r[key])[0]
            for r in load_single_records(root)
            for key in ("fixed_image", "fixed_label")
        }

    one, two = (voxels(BrainPhantoms(**SMALL).write(tmp_path / str(n), workers=n)) for n in (1, 2))
    more = voxels(BrainPhantoms(**SMALL | {"cases": 2}).write(tmp_path / "more", workers=1))
    other = voxels(BrainPhantoms(**SMALL | {"seed": 8}).write(tmp_path / "other", workers=1))
    assert one.keys() == two.keys() and len(one) == 4
    for (patient, key), content in one.items():
        assert np.array_equal(content, two[patient, key])
        assert np.array_equal(content, more[{"IXI001": "IXI001", "IXI002": "IXI003"}[patient], key])
        assert not np.array_equal(content, other[patient, key])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`regzoo phantom brain`."""
    Phantom().brain(str(tmp_path / "set"), **SMALL, scalp=True)
    assert "1 + 1 cases in" in capsys.readouterr().out
    assert json.loads((tmp_path / "set" / "manifest.json").read_text())["parameters"]["scalp"] is True


@pytest.mark.parametrize("wrong", [{"cases": 0}, {"held_out": -1}, {"seed": -1}, {"spacing": -1.0}, {"cases": 1000}])
def test_numbers_that_make_no_sense(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """One line, and nothing is written."""
    with pytest.raises(RegZooError, match="brain phantoms need at least one case"):
        BrainPhantoms(**wrong).write(tmp_path / "set")
    assert not list(tmp_path.iterdir())
