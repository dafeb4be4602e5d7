"""The phantoms: layout, truth of the stored displacement, determinism, look and bad input."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from regzoo.errors import RegZooError
from regzoo_phantoms import ProstatePhantoms
from regzoo_phantoms.embedded import KINDS as PHANTOMS
from scipy import ndimage

KINDS = ("mr_images", "mr_labels", "us_images", "us_labels", "ddf")


def manifest(root: Path) -> dict[str, Any]:
    return json.loads((root / "manifest.json").read_text())


def cases(root: Path) -> list[tuple[str, Path, dict[str, Any]]]:
    """Name, folder of the split and manifest entry of every case."""
    return [(name, root / entry["split"], entry) for name, entry in manifest(root)["cases"].items()]


def load(folder: Path, kind: str, name: str) -> nib.Nifti1Image:
    return nib.load(folder / kind / f"{name}.nii.gz")


def sitk_channel(image: nib.Nifti1Image, channel: int) -> sitk.Image:
    """One label channel as a SimpleITK image in LPS, built from the RAS affine by hand."""
    array = np.asarray(image.dataobj)[..., channel].astype(np.float32)
    lps = np.diag([-1, -1, 1]) @ image.affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    result = sitk.GetImageFromArray(array.T)
    result.SetSpacing(spacing.tolist())
    result.SetDirection((lps[:, :3] / spacing).ravel().tolist())
    result.SetOrigin(lps[:, 3].tolist())
    return result


def true_transform(folder: Path, name: str) -> sitk.DisplacementFieldTransform:
    field = sitk.ReadImage(str(folder / "ddf" / f"{name}.nii.gz"), sitk.sitkVectorFloat64)
    return sitk.DisplacementFieldTransform(field)


def centroid(image: nib.Nifti1Image, channel: int) -> np.ndarray | None:
    """Centroid of a label in the world, RAS mm."""
    mask = np.asarray(image.dataobj)[..., channel]
    if not mask.any():
        return None
    return nib.affines.apply_affine(image.affine, ndimage.center_of_mass(mask))


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def test_layout(phantoms: Path) -> None:
    """Files, shapes, types and frames are those of µ-RegPro; the field is an ITK vector image."""
    found = {path.name for path in phantoms.iterdir()}
    assert found == {"train", "val", "manifest.json"}
    for split, count in (("train", 12), ("val", 3)):
        for kind in KINDS:
            assert len(list((phantoms / split / kind).glob("case??????.nii.gz"))) == count
    for name, folder, entry in cases(phantoms):
        mr, mr_label, us, us_label, ddf = (load(folder, kind, name) for kind in KINDS)
        assert mr.get_data_dtype() == np.int16 and us.get_data_dtype() == np.uint8
        assert mr_label.get_data_dtype() == us_label.get_data_dtype() == np.uint8
        channels = len(entry["label_names"])
        assert mr_label.shape == (*mr.shape, channels) and us_label.shape == (*us.shape, channels)
        assert ddf.shape == (*us.shape, 1, 3) and ddf.get_data_dtype() == np.float32
        assert int(ddf.header["intent_code"]) == 1007
        assert np.allclose(ddf.affine, us.affine) and np.allclose(us_label.affine, us.affine)
        assert np.allclose(mr_label.affine, mr.affine)
        for image in (mr, us, ddf):
            agree = np.abs(image.get_qform() - image.affine)[:, :3] @ image.shape[:3] < 1e-3
            assert int(image.header["sform_code"]) == 1
            assert int(image.header["qform_code"]) == 1 or not agree[:3].all()  # where a qform is not precise enough
        assert nib.aff2axcodes(mr.affine) != nib.aff2axcodes(us.affine)
        turned = mr.affine[:3, :3] / np.linalg.norm(mr.affine[:3, :3], axis=0)
        assert 0 < np.degrees(np.arccos(np.abs(np.diag(turned)).min())) < 20, "the MR is slightly oblique"
        assert np.asarray(mr_label.dataobj)[..., 0].any() and np.asarray(us_label.dataobj)[..., 0].any()


@pytest.fixture(scope="module")
def full_resolution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One pair at the resolution of the public set."""
    return ProstatePhantoms(pairs=1, held_out=0).write(tmp_path_factory.mktemp("full") / "set")


def test_full_resolution_is_that_of_the_public_set(full_resolution: Path) -> None:
    """At 0.8 mm the grids have the sizes of µ-RegPro."""
    assert load(full_resolution / "train", "mr_images", "case000000").shape == (120, 128, 128)
    assert load(full_resolution / "train", "us_images", "case000000").shape == (81, 118, 88)


def warped_and_true(folder: Path, name: str, channel: int) -> tuple[np.ndarray, np.ndarray]:
    """An MR label warped by SimpleITK with the stored field, 0–1, and the ultrasound label; axes Z, Y, X."""
    fixed = sitk_channel(load(folder, "us_labels", name), channel)
    moving = sitk_channel(load(folder, "mr_labels", name), channel)
    warped = sitk.Resample(moving, fixed, true_transform(folder, name), sitk.sitkLinear)
    return sitk.GetArrayFromImage(warped), sitk.GetArrayFromImage(fixed)


def test_stored_displacement_is_the_truth(phantoms: Path, full_resolution: Path) -> None:
    """SimpleITK, warping the MR labels by the stored field, gives the ultrasound labels: glands and all centroids."""
    for name, folder, _ in cases(phantoms):
        warped, truth = warped_and_true(folder, name, 0)
        assert dice(warped > 0.5, truth > 0.5) > 0.95
    ((name, folder, entry),) = cases(full_resolution)
    compared = 0
    for channel in range(len(entry["label_names"])):
        warped, truth = warped_and_true(folder, name, channel)
        if warped.any() and truth.any():
            assert dice(warped > 0.5, truth > 0.5) > (0.98 if channel == 0 else 0.9)
            apart = 0.8 * np.subtract(ndimage.center_of_mass(warped), ndimage.center_of_mass(truth))
            assert np.linalg.norm(apart) < 0.3
            compared += 1
    assert compared >= 3


def test_difficulty_before_registration(phantoms: Path) -> None:
    """Unregistered pairs are as far apart as clinical ones: gland DSC about 0.7, landmarks 7 to 11 mm in the median."""
    overlaps, errors = [], []
    for name, folder, entry in cases(phantoms):
        mr_label, us_label = load(folder, "mr_labels", name), load(folder, "us_labels", name)
        fixed = sitk_channel(us_label, 0)
        resampled = sitk.Resample(sitk_channel(mr_label, 0), fixed, sitk.Transform(), sitk.sitkLinear)
        overlaps.append(dice(sitk.GetArrayFromImage(resampled) > 0.5, sitk.GetArrayFromImage(fixed) > 0.5))
        pairs = [(centroid(mr_label, i), centroid(us_label, i)) for i in range(1, len(entry["label_names"]))]
        squares = [np.sum((a - b) ** 2) for a, b in pairs if a is not None and b is not None]
        errors.append(np.sqrt(np.mean(squares)))
    assert 0.5 < np.median(overlaps) < 0.8
    assert 6 < np.median(errors) < 12


def test_nothing_folds(phantoms: Path) -> None:
    """The Jacobian determinant of the stored field, by finite differences of where voxels go, is positive everywhere.

    (ITK's filter is of no use here: it does not turn the derivatives from the array's axes to the world's.)
    """
    for name, folder, entry in cases(phantoms):
        image = load(folder, "ddf", name)
        displacement = np.asarray(image.dataobj)[:, :, :, 0] * [-1, -1, 1]
        voxels = np.stack(np.meshgrid(*map(np.arange, displacement.shape[:3]), indexing="ij"), axis=-1)
        targets = nib.affines.apply_affine(image.affine, voxels) + displacement
        slopes = np.stack(np.gradient(targets, axis=(0, 1, 2)), axis=-1)
        determinant = np.linalg.det(slopes) / np.linalg.det(image.affine[:3, :3])
        assert determinant.min() > 0.25
        assert 0.3 <= entry["least_jacobian"] <= determinant.min() + 0.03


def test_anatomy_is_plausible(phantoms: Path) -> None:
    """Volumes and proportions are those of patients, zones make up the gland, vesicles are behind it on their side."""
    drawn_zones = 0
    for name, folder, entry in cases(phantoms):
        image = load(folder, "mr_labels", name)
        masks = np.asarray(image.dataobj).astype(bool)
        voxel = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        names = entry["label_names"]
        gland = masks[..., 0]
        assert 18 < gland.sum() * voxel < 62
        extent = np.ptp(nib.affines.apply_affine(image.affine, np.argwhere(gland)), axis=0)
        assert extent[0] > extent[1] and extent[0] > 0.9 * extent[2]
        by_name = {label: masks[..., i] for i, label in enumerate(names) if masks[..., i].any()}
        if {"transition_zone", "peripheral_zone"} <= by_name.keys():
            drawn_zones += 1
            assert np.array_equal(by_name["transition_zone"] | by_name["peripheral_zone"], gland)
            assert not (by_name["transition_zone"] & by_name["peripheral_zone"]).any()
        middle = centroid(image, 0)
        for label, sign in (("seminal_vesicle_left", -1), ("seminal_vesicle_right", 1)):
            if label in by_name:
                offset = centroid(image, names.index(label)) - middle
                assert np.sign(offset[0]) == sign and offset[1] < 0 < offset[2], "behind and above, on its side"
        for label, sign in (("apex", -1), ("base", 1)):
            if label in by_name:
                assert np.sign((centroid(image, names.index(label)) - middle)[2]) == sign
        landmarks = [label for label in names if label.split("_")[0] in ("cyst", "calcification")]
        assert 2 <= len(landmarks) <= 6
        for label in landmarks:
            if label in by_name:
                assert 0.05 < by_name[label].sum() * voxel < 1.1
    assert drawn_zones > 0


def test_labels_differ_and_some_channels_are_empty(phantoms: Path) -> None:
    """The gland is always there; other channels are empty in one image or both, as the manifest says."""
    empty_both = empty_one = 0
    for name, folder, entry in cases(phantoms):
        names = entry["label_names"]
        for side in ("mr", "us"):
            masks = np.asarray(load(folder, f"{side}_labels", name).dataobj)
            found = [label for i, label in enumerate(names) if masks[..., i].any()]
            assert found == entry[f"labelled_{side}"] and found[0] == "gland"
        in_mr, in_us = set(entry["labelled_mr"]), set(entry["labelled_us"])
        assert len(in_mr & in_us) >= 3, "the gland and two others"
        empty_both += len(set(names) - in_mr - in_us)
        empty_one += len(in_mr ^ in_us)
    assert empty_both > 0 and empty_one > 0


def test_pairs_of_a_patient(phantoms: Path) -> None:
    """Pairs of a patient share the MR's anatomy and grid, and nothing of the transformation or the noise."""
    by_patient: dict[str, list[tuple[str, Path, dict[str, Any]]]] = {}
    for case in cases(phantoms):
        by_patient.setdefault(case[2]["patient"], []).append(case)
    several = [group for group in by_patient.values() if len(group) > 1]
    assert several and len(by_patient) > len(several), "some patients have several pairs, others one"
    for group in several:
        (first, folder, entry), (second, other_folder, other) = group[:2]
        assert folder == other_folder and entry["label_names"] == other["label_names"]
        labels, again = load(folder, "mr_labels", first), load(folder, "mr_labels", second)
        assert np.array_equal(labels.affine, again.affine)
        assert np.array_equal(np.asarray(labels.dataobj)[..., 0], np.asarray(again.dataobj)[..., 0])
        for kind in ("mr_images", "us_images", "ddf"):
            assert (folder / kind / f"{first}.nii.gz").read_bytes() != (folder / kind / f"{second}.nii.gz").read_bytes()
        assert entry["pose"] != other["pose"]
    assert not {entry["patient"] for _, _, entry in cases(phantoms) if entry["split"] == "train"} & {
        entry["patient"] for _, _, entry in cases(phantoms) if entry["split"] == "val"
    }


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """Two runs agree byte for byte, whatever the number of processes; more pairs add cases and change none."""
    one = contents(ProstatePhantoms(pairs=3, held_out=1, seed=7, spacing=3.2).write(tmp_path / "one", workers=1))
    two = contents(ProstatePhantoms(pairs=3, held_out=1, seed=7, spacing=3.2).write(tmp_path / "two", workers=2))
    assert one == two
    assert all(content[4:8] == bytes(4) for path, content in one.items() if path.endswith(".gz")), "no time in gzip"
    more = contents(ProstatePhantoms(pairs=5, held_out=1, seed=7, spacing=3.2).write(tmp_path / "more"))
    for path, content in one.items():
        if path.startswith("train"):
            assert more[path] == content
        elif path.startswith("val"):
            assert more[path.replace("case000003", "case000005")] == content
    other = contents(ProstatePhantoms(pairs=3, held_out=1, seed=8, spacing=3.2).write(tmp_path / "other"))
    assert all(other[path] != content for path, content in one.items())
    assert not list(tmp_path.glob(".partial-*"))


def test_look_of_the_ultrasound(phantoms: Path) -> None:
    """A fan that is 0 outside above the dark half-disc of the probe at the back, and the whole gland inside the fan."""
    for name, folder, _ in cases(phantoms):
        image = load(folder, "us_images", name)
        voxels = np.asarray(image.dataobj)
        # The array's first axis points to the front, so index 0 is the posterior edge.
        assert nib.aff2axcodes(image.affine) == ("A", "L", "S")
        outside = voxels == 0
        assert 0.15 < outside.mean() < 0.6
        assert outside[2, [0, -1]].all(), "nothing at the sides of the posterior edge"
        gland = np.asarray(load(folder, "us_labels", name).dataobj)[..., 0].astype(bool)
        probe = (voxels[0] > 0).any(axis=1)
        assert 3 <= probe.sum() <= 12 and voxels[0, probe].max() < 15
        assert outside[gland].mean() < 0.08
        assert np.argwhere(gland)[:, 0].min() * image.header.get_zooms()[0] > 8, "the gland is in front of the probe"


def test_capsule_is_visible_in_both_and_inverted(phantoms: Path) -> None:
    """The gland's edge stands out in both images: bright in ultrasound, dark in MR."""
    for side, sign in (("us", 1), ("mr", -1)):
        contrasts = []
        for name, folder, _ in cases(phantoms):
            image = np.asarray(load(folder, f"{side}_images", name).dataobj).astype(float)
            gland = np.asarray(load(folder, f"{side}_labels", name).dataobj)[..., 0].astype(bool)
            seen = image > 0
            edge = gland ^ ndimage.binary_erosion(gland)
            inside = ndimage.binary_erosion(gland, iterations=2) & ~ndimage.binary_erosion(gland, iterations=4)
            contrasts.append((image[edge & seen].mean() - image[inside & seen].mean()) / image[inside & seen].std())
        assert sign * np.median(contrasts) > 0.3
        assert np.mean(sign * np.array(contrasts) > 0) > 0.8


def test_thick_slices(tmp_path: Path, phantoms: Path) -> None:
    """Thick MR slices cover the same field of view and show the same patient; the ultrasound stays isotropic."""
    root = ProstatePhantoms(pairs=2, held_out=0, seed=5, spacing=2.4, slice_thickness=6.0).write(tmp_path / "thick")
    for name in ("case000000", "case000001"):
        thick, thin = load(root / "train", "mr_labels", name), load(phantoms / "train", "mr_labels", name)
        assert np.allclose(thick.header.get_zooms()[:3], (2.4, 2.4, 6.0), atol=1e-4)
        assert abs(thick.shape[2] * 6.0 - thin.shape[2] * 2.4) <= 6.0
        volumes = [np.asarray(i.dataobj)[..., 0].sum() * abs(np.linalg.det(i.affine[:3, :3])) for i in (thick, thin)]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.06)
        assert np.linalg.norm(centroid(thick, 0) - centroid(thin, 0)) < 0.7
        us, same = load(root / "train", "ddf", name), load(phantoms / "train", "ddf", name)
        assert np.array_equal(np.asarray(us.dataobj), np.asarray(same.dataobj))
        images = [load(folder, "mr_images", name) for folder in (root / "train", phantoms / "train")]
        assert images[0].shape == thick.shape[:3]


def rigid(fixed: sitk.Image, moving: sitk.Image, centre: np.ndarray, correlation: bool) -> sitk.Transform:
    """SimpleITK's rigid registration, with the correlation or the mean squares metric."""
    method = sitk.ImageRegistrationMethod()
    if correlation:
        method.SetMetricAsCorrelation()
        method.SetMetricFixedMask(sitk.BinaryMorphologicalClosing(fixed > 15, [2, 2, 2]))
    else:
        method.SetMetricAsMeanSquares()
    method.SetInterpolator(sitk.sitkLinear)
    start = sitk.Euler3DTransform()
    start.SetCenter(centre.tolist())
    method.SetInitialTransform(start, False)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 0.1, 40)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([3, 1])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    return method.Execute(fixed, moving)


def test_intensities_do_not_register_the_pair_but_labels_do(phantoms: Path) -> None:
    """Rigid registration by the images' correlation does not bring landmarks together; by the glands it does."""
    before, by_images, by_labels = [], [], []
    for name, folder, entry in cases(phantoms)[:3]:
        images = [load(folder, kind, name) for kind in KINDS[:4]]
        mr = sitk_channel(nib.Nifti1Image(np.asarray(images[0].dataobj)[..., None], images[0].affine), 0)
        us = sitk_channel(nib.Nifti1Image(np.asarray(images[2].dataobj)[..., None], images[2].affine), 0)
        pairs = [(centroid(images[1], i), centroid(images[3], i)) for i in range(1, len(entry["label_names"]))]
        marks = [(a * [-1, -1, 1], b * [-1, -1, 1]) for a, b in pairs if a is not None and b is not None]

        def error(transform: sitk.Transform, marks: list[tuple[np.ndarray, np.ndarray]] = marks) -> float:
            moved = [np.array(transform.TransformPoint(b.tolist())) - a for a, b in marks]
            return float(np.sqrt(np.mean([d @ d for d in moved])))

        glands = [sitk.SmoothingRecursiveGaussian(sitk_channel(images[i], 0) * 100, 3.0) for i in (3, 1)]
        centre = centroid(images[3], 0) * [-1, -1, 1]
        before.append(error(sitk.Transform(3, sitk.sitkIdentity)))
        by_images.append(error(rigid(us, mr, centre, correlation=True)))
        by_labels.append(error(rigid(*glands, centre, correlation=False)))
    assert np.median(by_images) > 0.8 * np.median(before)
    assert np.median(by_labels) < 0.5 * np.median(before)


def test_refuses_a_folder_in_use(tmp_path: Path) -> None:
    """An existing file or a folder with something in it is left alone; an empty folder will do."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    with pytest.raises(RegZooError, match="used: exists and is not empty; name a new folder"):
        ProstatePhantoms().write(tmp_path / "used")
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(RegZooError, match="file: exists and is not empty"):
        ProstatePhantoms().write(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert (ProstatePhantoms(pairs=1, held_out=0, spacing=3.2).write(tmp_path / "empty") / "manifest.json").is_file()
    with pytest.raises(RegZooError, match="file: cannot write here"):
        ProstatePhantoms().write(tmp_path / "file" / "set")


@pytest.mark.parametrize(
    "wrong", [{"pairs": 0}, {"held_out": -1}, {"seed": -1}, {"spacing": 0.0}, {"slice_thickness": -3.0}]
)
def test_numbers_that_make_no_sense(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """One line, and nothing is written."""
    with pytest.raises(RegZooError, match="phantoms need at least one pair"):
        ProstatePhantoms(**wrong).write(tmp_path / "set")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", PHANTOMS)
@pytest.mark.parametrize("spacing", [1e-300, 0.001, 0.05])
def test_more_voxels_than_memory_holds(tmp_path: Path, kind: str, spacing: float) -> None:
    with pytest.raises(RegZooError, match=rf"^{kind} phantoms: voxels of {spacing:g} mm make .*; use larger ones$"):
        PHANTOMS[kind](spacing=spacing).write(tmp_path / "set")
    with pytest.raises(RegZooError, match=r"voxels of 0\.001 mm make 1\.6e\+09 in an image, more than 50,000,000"):
        ProstatePhantoms(slice_thickness=0.001).write(tmp_path / "set")
    assert not list(tmp_path.iterdir())
