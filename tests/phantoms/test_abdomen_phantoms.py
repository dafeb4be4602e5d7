"""The abdominal phantoms: layout, anatomy, Hounsfield units, truth of the breathing field, determinism, bad input."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from regzoo.datasets import load_records, load_single_records
from regzoo.errors import RegZooError
from regzoo_phantoms import AbdomenPhantoms, embedded_phantoms
from regzoo_phantoms.abdomen_anatomy import LABELS, VALUES
from regzoo_phantoms.embedded import phantom_set
from regzoo_tools.commands import Phantom
from scipy import ndimage

SPACING = 4.0
SMALL: dict[str, Any] = {"cases": 1, "held_out": 1, "seed": 7, "spacing": 8.0}


@pytest.fixture(scope="module")
def abdomen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three and two patients, each in two states of breathing."""
    folder = tmp_path_factory.mktemp("abdomen") / "set"
    return AbdomenPhantoms(cases=3, held_out=2, seed=3, spacing=SPACING, breathing=True).write(folder)


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine."""
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def breathed_out(root: Path) -> list[tuple[Path, Path]]:
    """Image and label of every patient's first state."""
    return [(path, Path(str(path).replace("images", "labels"))) for path in sorted(root.glob("images*/*_0000.nii.gz"))]


def centroid(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return nib.affines.apply_affine(affine, ndimage.center_of_mass(mask))


def test_layout(abdomen: Path) -> None:
    """Folders, names, types, frames and the JSON file are those of Learn2Reg."""
    task = json.loads((abdomen / "AbdomenCTCT_dataset.json").read_text())
    assert task["name"] == "AbdomenCTCT" and task["modality"] == {"0": "CT", "1": "CT"}
    assert task["labels"] == {"0": "background"} | {str(value): name for value, name in LABELS.items()}
    assert (task["numTraining"], task["numTest"]) == (6, 4) == (len(task["training"]), len(task["test"]))
    assert task["training"][0] == {
        "image": "./imagesTr/AbdomenCTCT_0001_0000.nii.gz",
        "label": "./labelsTr/AbdomenCTCT_0001_0000.nii.gz",
    }
    assert task["training_paired_images"][2] == {
        "fixed": "./imagesTr/AbdomenCTCT_0003_0000.nii.gz",
        "moving": "./imagesTr/AbdomenCTCT_0003_0001.nii.gz",
    }
    assert task["registration_val"] == [
        {"fixed": "./imagesTs/AbdomenCTCT_0004_0000.nii.gz", "moving": "./imagesTs/AbdomenCTCT_0005_0000.nii.gz"}
    ]
    for entry in task["training"] + task["test"]:
        image, label = (nib.load(abdomen / entry[key]) for key in ("image", "label"))
        assert list(image.shape) == task["tensorImageShape"]["0"] and label.shape == image.shape
        assert image.get_data_dtype() == np.int16 and label.get_data_dtype() == np.uint8
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert np.allclose(image.affine, label.affine) and np.allclose(image.header.get_zooms(), SPACING)
        assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
        assert set(np.unique(np.asarray(label.dataobj))) == {0, *LABELS}
    field = nib.load(abdomen / "ddfTr" / "AbdomenCTCT_0002_0000.nii.gz")
    assert field.shape == (*image.shape, 1, 3) and int(field.header["intent_code"]) == 1007
    manifest = json.loads((abdomen / "manifest.json").read_text())
    assert manifest["kind"] == "abdomen" and manifest["parameters"]["seed"] == 3
    assert [entry["patient"] for entry in manifest["cases"].values()] == [
        *("train0000", "train0001", "train0002"),
        *("val0000", "val0001"),
    ]


def test_anatomy_is_plausible(abdomen: Path) -> None:
    """Volumes, sides and neighbourhoods are those of patients."""
    volumes = {
        "liver": (850, 2100),
        "spleen": (110, 420),
        "kidney_right": (80, 230),
        "kidney_left": (80, 230),
        "stomach": (120, 550),
        "aorta": (50, 170),
        "inferior_vena_cava": (50, 190),
        "pancreas": (12, 90),
        "gallbladder": (4, 60),
    }
    for _, path in breathed_out(abdomen):
        label, affine = load(path)
        masks = {name: label == value for value, name in LABELS.items()}
        for name, (least, most) in volumes.items():
            assert least < masks[name].sum() * SPACING**3 / 1000 < most, name
        middle = {name: centroid(mask, affine) for name, mask in masks.items()}
        for name in ("liver", "kidney_right", "gallbladder", "inferior_vena_cava", "portal_branch_right"):
            assert middle[name][0] > middle["aorta"][0], "on the patient's right, +x in RAS"
        for name in ("spleen", "stomach", "kidney_left"):
            assert middle[name][0] < middle["aorta"][0]
        assert middle["portal_branch_left"][0] < middle["portal_branch_right"][0]
        assert middle["hepatic_vein_left"][0] < middle["hepatic_vein_middle"][0] < middle["hepatic_vein_right"][0]
        for name in set(masks) - {"vertebrae"}:
            assert middle[name][1] > middle["vertebrae"][1], "in front of the spine"
        assert middle["liver"][2] > middle["kidney_right"][2] and middle["spleen"][2] > middle["kidney_left"][2]
        pieces, count = ndimage.label(masks["liver"] | masks["portal_branch_left"] | masks["portal_branch_right"])
        assert np.bincount(pieces.ravel())[1:].max() > 0.95 * (pieces > 0).sum(), f"{count} pieces"
        liver = ndimage.binary_closing(masks["liver"], iterations=3) | masks["liver"]
        for name in ("portal_branch_right", "portal_branch_left", "hepatic_vein_right", "hepatic_vein_middle"):
            assert liver[masks[name]].mean() > 0.8, name
        spine = np.argwhere(masks["vertebrae"])[:, 2]
        assert spine.min() > 0 and spine.max() < label.shape[2] - 1, "the labelled vertebrae are all in view"


def test_hounsfield_units(abdomen: Path) -> None:
    """Inside, organs have the values of a CT in the portal venous phase; there is air, lung, fat, bone and noise."""
    expected = {"liver": (75, 135), "spleen": (85, 145), "kidney_left": (110, 230), "aorta": (120, 190)}
    for image_path, label_path in breathed_out(abdomen):
        image, label = load(image_path)[0].astype(float), load(label_path)[0]
        for name, (least, most) in expected.items():
            inside = ndimage.binary_erosion(label == VALUES[name], iterations=1 if name == "aorta" else 2)
            assert least < np.median(image[inside]) < most, name
        veins = image[np.isin(label, [VALUES["portal_branch_right"], VALUES["inferior_vena_cava"]])]
        assert np.percentile(veins, 75) > np.median(image[label == VALUES["liver"]]) + 25, "contrast in the veins"
        bone = image[label == VALUES["vertebrae"]]
        assert 180 < np.median(bone) < 600 and np.percentile(bone, 95) > 300
        corner = image[:4, :4]
        assert corner.min() >= -1024 and abs(np.median(corner) + 1000) < 20
        body = image[8:-8, 8:-8]
        assert (np.abs(body + 100) < 40).mean() > 0.08, "fat"
        assert (np.abs(body + 840) < 90).mean() > 0.03, "lung"
        inside = ndimage.binary_erosion(label == VALUES["liver"], iterations=3)
        rough = image - ndimage.median_filter(image, 3)
        assert 3 < rough[inside].std() < 25, "noise"


def test_patients_differ_as_people_do(abdomen: Path) -> None:
    """Between patients, the liver overlaps roughly and centroids are some 5 to 30 mm apart."""
    labels = [load(path) for _, path in breathed_out(abdomen)]
    overlaps, apart = [], []
    for i, (first, affine) in enumerate(labels):
        for second, _ in labels[:i]:
            a, b = first == VALUES["liver"], second == VALUES["liver"]
            overlaps.append(2 * (a & b).sum() / (a.sum() + b.sum()))
            for value in (1, 2, 3, 6, 7, 14, 15):
                apart.append(np.linalg.norm(centroid(first == value, affine) - centroid(second == value, affine)))
    assert 0.5 < np.median(overlaps) < 0.9
    assert 5 < np.median(apart) < 30


def test_stored_displacement_is_the_truth(abdomen: Path) -> None:
    """SimpleITK, warping the breathed-in labels by the stored field, gives the breathed-out ones."""
    before, after, moved = [], [], []
    for record in load_records(abdomen, "train"):
        path = record["fixed_image"].replace("imagesTr", "ddfTr")
        field = sitk.DisplacementFieldTransform(sitk.ReadImage(path, sitk.sitkVectorFloat64))
        fixed, moving = (sitk.ReadImage(record[f"{side}_label"]) for side in ("fixed", "moving"))
        for name in ("liver", "spleen", "kidney_right", "stomach"):
            a, c = (sitk.GetArrayFromImage(image) == VALUES[name] for image in (fixed, moving))
            mask = sitk.Cast(moving == VALUES[name], sitk.sitkFloat32)
            warped = sitk.GetArrayFromImage(sitk.Resample(mask, fixed, field, sitk.sitkLinear))
            b = warped > 0.5
            after.append(2 * (a & b).sum() / (a.sum() + b.sum()))
            before.append(2 * (a & c).sum() / (a.sum() + c.sum()))
            apart = np.subtract(ndimage.center_of_mass(a), ndimage.center_of_mass(warped))
            assert np.linalg.norm(apart) * SPACING < 0.4
        lps = np.asarray(nib.load(path).dataobj)[:, :, :, 0]
        masks = load(Path(record["fixed_label"]))[0]
        moved.append(lps[masks == VALUES["liver"]].mean(axis=0)[2])
        assert np.linalg.norm(lps[masks == VALUES["vertebrae"]], axis=-1).mean() < 2, "the spine stays"
    assert np.mean(after) > 0.94 > 0.9 > np.mean(before)
    assert max(moved) < -3, "breathing in moves the liver down"


def test_nothing_folds(abdomen: Path) -> None:
    """The Jacobian determinant of the stored field, by finite differences of where voxels go, is positive."""
    manifest = json.loads((abdomen / "manifest.json").read_text())["cases"]
    for path in sorted(abdomen.glob("ddf*/*.nii.gz")):
        image = nib.load(path)
        displacement = np.asarray(image.dataobj)[:, :, :, 0] * [-1, -1, 1]
        voxels = np.stack(np.meshgrid(*map(np.arange, displacement.shape[:3]), indexing="ij"), axis=-1)
        targets = nib.affines.apply_affine(image.affine, voxels) + displacement
        slopes = np.stack(np.gradient(targets, axis=(0, 1, 2)), axis=-1)
        determinant = np.linalg.det(slopes) / np.linalg.det(image.affine[:3, :3])
        assert determinant.min() > 0.25 and determinant.max() < 1 / 0.25
        assert 0.3 <= manifest[path.name.split(".")[0]]["least_jacobian"] <= 1


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.nii.gz"))}


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """Any number of processes; more cases and breathing add files and change none; another seed changes all."""
    one = contents(AbdomenPhantoms(**SMALL).write(tmp_path / "one", workers=1))
    assert one == contents(AbdomenPhantoms(**SMALL).write(tmp_path / "two", workers=2))
    more = contents(AbdomenPhantoms(**SMALL | {"cases": 2, "breathing": True}).write(tmp_path / "more", workers=1))
    for path, content in one.items():
        assert more[path.replace("0002_0000", "0003_0000")] == content
    other = contents(AbdomenPhantoms(**SMALL | {"seed": 8}).write(tmp_path / "other", workers=1))
    assert all(other[path] != content for path, content in one.items())
    assert not list(tmp_path.glob(".partial-*"))


def test_command_and_embedded_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`regzoo phantom abdomen` writes what a bundle without a data set would, which then uses it."""
    Phantom().abdomen(str(tmp_path / "set"), **SMALL)
    assert "1 + 1 cases in" in capsys.readouterr().out
    assert embedded_phantoms(tmp_path / "set", kind="abdomen", **SMALL) == tmp_path / "set"
    assert "Using the phantoms in" in capsys.readouterr().out
    assert [record["case"] for record in load_single_records(tmp_path / "set", "train")] == ["AbdomenCTCT_0001_0000"]
    with pytest.raises(RegZooError, match="made with other parameters \\(cases 1 instead of 2\\)"):
        embedded_phantoms(tmp_path / "set", kind="abdomen", **SMALL | {"cases": 2})
    with pytest.raises(RegZooError, match="phantoms of kind 'abdomen', version 1, are not what"):
        embedded_phantoms(tmp_path / "set", kind="brain")
    with pytest.raises(RegZooError, match="kind 'foot' are unknown; use one of prostate, abdomen, brain, hippocampus"):
        embedded_phantoms(tmp_path / "set", kind="foot")
    for key, value, words in (
        ("spacing", "4", "a number"),
        ("seed", 1.5, "a whole number"),
        ("held_out", True, "a whole number"),
        ("breathing", 1, "true or false"),
    ):
        with pytest.raises(RegZooError, match=f"kind 'abdomen': {key} {value!r} is not {words}; write one"):
            phantom_set("abdomen", **{key: value})
    with pytest.raises(RegZooError, match="kind \\['x'\\] are unknown"):
        phantom_set(["x"])  # type: ignore[arg-type]
    with pytest.raises(RegZooError, match="kind 'abdomen' have no 'pairs'; use some of cases, held_out, seed, spacing"):
        embedded_phantoms(tmp_path / "set", kind="abdomen", pairs=3)


@pytest.mark.parametrize("wrong", [{"cases": 0}, {"held_out": -1}, {"seed": -1}, {"spacing": 0.0}])
def test_numbers_that_make_no_sense(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """One line, and nothing is written."""
    with pytest.raises(RegZooError, match="phantoms need at least one case"):
        AbdomenPhantoms(**wrong).write(tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_refuses_a_folder_in_use(tmp_path: Path) -> None:
    """A folder with something in it is left alone."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RegZooError, match="exists and is not empty; name a new folder"):
        AbdomenPhantoms().write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
