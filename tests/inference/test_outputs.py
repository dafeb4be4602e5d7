"""What a registration leaves on disk: forms of labels, statistics, all files or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import LPS, ball, make_affine, make_grid, smooth_ddf, smooth_noise, to_sitk, write
from ignite.engine import Engine
from monai.data import MetaTensor
from regzoo.case import Key
from regzoo.errors import RegZooError
from regzoo.inference import RegistrationResult, SaveRegistration
from regzoo.spatial import DisplacementField, Grid, read_label_file
from regzoo.spatial.point_files import read_points
from regzoo.transforms import AlignPaird, ApplyFieldd, LoadPaird, PropagatedLabelsd, ResamplePaird, SelectLabelsd
from scipy.ndimage import center_of_mass

FIXED, MOVING = (18, 16, 15), (17, 19, 14)
AFFINES = {
    "fixed": make_affine(FIXED, (1.5, 1.2, 2), (10, -5, 15), (1, 0, 2), (-1, 1, 1), (30, -20, 10)),
    "moving": make_affine(MOVING, (1.3, 1.1, 1.8), (-5, 0, 8), center=(31, -19, 11)),
}
OUTPUTS = {"warped_image.nii.gz", "warped_label.nii.gz", "field.nii.gz", "statistics.json", "quality.png"}


def applied(label: str = "masks") -> dict[Any, Any]:
    """A pair after the bundle's postprocessing; the third label is nowhere."""
    item: dict[Any, Any] = {"case": "A 1/2", "label_names": ["gland", "cyst"]}
    for seed, (side, shape) in enumerate((("fixed", FIXED), ("moving", MOVING))):
        image = torch.from_numpy(smooth_noise(shape, 1, seed))[None]
        item[f"{side}_image"] = MetaTensor(image, affine=torch.from_numpy(AFFINES[side]))
    if label != "none":
        masks = np.stack([ball(MOVING, (8, 9, 7), 5), ball(MOVING, (8, 12, 7), 2), np.zeros(MOVING)])
        masks[0] *= 1 - masks[1]
        item["moving_label"] = MetaTensor(torch.from_numpy(masks).float(), affine=torch.from_numpy(AFFINES["moving"]))
    if label == "map":
        item |= {"moving_label_is_map": True, "moving_label_values": [2, 300, 301]}
    size = (12, 12, 12)
    item = ResamplePaird((2, 2, 2), size, keep_native=True)(AlignPaird()(item))
    item["pred"] = torch.from_numpy(smooth_ddf(size, 1.5))
    return ApplyFieldd()(item)


NAMES = ["gland", "side", "end", "lost", "never", "gone"]
#: Offset from the fixed image's centre along its own axes and radius, mm; the network's field of view is 24 mm wide.
BALLS = [
    ((1, 1, -1), 5.0),
    ((0, 8.5, 0), 2.6),
    ((0, 0, 10), 3.0),
    ((0, 0, 0), -9.0),
    ((0, 0, 0), 4.0),
    ((0, 0, 0), 4.0),
]


def propagated(labels: int = 1, values: list[int] | None = None, scale: float = 1.0) -> dict[Any, Any]:
    """A pair with balls predicted as labels; number 4 is empty, 5 out of the network's sight in the moving image."""
    item: dict[Any, Any] = {"case": "B", "label_names": NAMES}
    long = make_affine(MOVING, (1.3, 1.1, 3), (-5, 0, 8), center=(31, -19, 11))
    affines = {
        side: np.diag([scale, scale, scale, 1]) @ affine for side, affine in (AFFINES | {"moving": long}).items()
    }
    for seed, (side, shape) in enumerate((("fixed", FIXED), ("moving", MOVING))):
        image = torch.from_numpy(smooth_noise(shape, 1, seed))[None]
        item[f"{side}_image"] = MetaTensor(image, affine=torch.from_numpy(affines[side]))
    masks = np.stack([ball(MOVING, (8, 9, 7), 2 + label / 2) for label in range(6)])
    masks[4:] = 0
    masks[5, :, :, -1] = 1
    item["moving_label"] = MetaTensor(torch.from_numpy(masks[:labels]), affine=torch.from_numpy(affines["moving"]))
    if values:
        item |= {"moving_label_is_map": True, "moving_label_values": values}
    item = ResamplePaird((2 * scale,) * 3, (12, 12, 12), keep_native=True)(AlignPaird()(item))
    network = item["fixed_image"].affine.numpy()
    world = np.einsum("ij,jxyz->ixyz", network[:3, :3], np.indices((12,) * 3)) + network[:3, 3].reshape(3, 1, 1, 1)
    directions = affines["fixed"][:3, :3] / np.linalg.norm(affines["fixed"][:3, :3], axis=0)
    middle = affines["fixed"] @ [*(np.array(FIXED) - 1) / 2, 1]
    logits = []
    for offset, radius in BALLS[:labels]:
        center = middle[:3] + directions @ np.multiply(offset, scale)
        logits.append(radius - np.linalg.norm(world - center.reshape(3, 1, 1, 1), axis=0) / scale)
    item["pred"] = torch.from_numpy(np.stack(logits)).float()
    return PropagatedLabelsd()(item)


FILES = {
    "image": "warped_image.nii.gz",
    "label": "warped_label.nii.gz",
    "probability": "probability.nii.gz",
    "field": "field.nii.gz",
    "statistics": "statistics.json",
    "picture": "quality.png",
    "viewer": "viewer.html",
}


def shown(folder: Path) -> set[str]:
    """The files of a folder, without the record that lies beside a result without statistics."""
    return {path.name for path in folder.iterdir()} - {".regzoo.json"}


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ("label", ["label"]),
        ("image,field", ["image", "field"]),
        ("statistics label", ["label", "statistics"]),
        (["field", "image", "label"], ["image", "label", "field"]),
        (("picture",), ["picture"]),
        ("viewer", ["viewer"]),
        (None, ["image", "label", "field", "statistics", "picture"]),
        ("", ["image", "label", "field", "statistics", "picture"]),
    ],
)
def test_outputs_that_are_asked_for(outputs: Any, expected: list[str], tmp_path: Path) -> None:
    RegistrationResult.of(propagated()).save(tmp_path, "probability")  # an earlier result
    RegistrationResult.of(applied()).save(tmp_path, outputs)
    assert shown(tmp_path) == {FILES[name] for name in expected}


def test_outputs_of_propagated_labels(tmp_path: Path) -> None:
    RegistrationResult.of(applied()).save(tmp_path, ["image", "field"])
    result = RegistrationResult.of(propagated(2))
    result.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {FILES[name] for name in ("label", "statistics", "picture")}
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert "deformation" not in json.loads((tmp_path / "statistics.json").read_text())
    result.save(tmp_path, "label, probability")
    assert shown(tmp_path) == {FILES[name] for name in ("label", "probability")}


def test_labels_are_written_in_the_form_they_came_in(tmp_path: Path) -> None:
    item = applied("masks")
    item |= {"moving_mask_values": [1, 255, 300], "moving_label_axes": 4}
    masks = RegistrationResult.of(item)
    masks.save(tmp_path, "label")
    written = np.asarray(nib.load(tmp_path / "warped_label.nii.gz").dataobj)
    assert written.shape == (*FIXED, 3) and [written[..., i].max() for i in range(3)] == [1, 255, 0]
    assert masks.warped_label is not None
    np.testing.assert_array_equal(written > 0, masks.warped_label.numpy().transpose(1, 2, 3, 0) > 0)
    item = applied("map")
    flat = RegistrationResult.of(item).label_map()
    item["moving_label_axes"] = 4  # a 4-D file with one volume
    RegistrationResult.of(item).save(tmp_path, "label")
    written = np.asarray(nib.load(tmp_path / "warped_label.nii.gz").dataobj)
    assert written.shape == (*FIXED, 1) and flat is not None
    np.testing.assert_array_equal(written[..., 0], flat)
    assert set(np.unique(written)) == {0, 2, 300}


@pytest.mark.parametrize("selected", [None, [0]])  # a network may be shown the first label alone
@pytest.mark.parametrize("requested", [True, False])
@pytest.mark.parametrize("form", ["map", "masks"])
def test_small_structures_survive_thick_slices(
    form: str, requested: bool, selected: list[int] | None, tmp_path: Path
) -> None:
    thick, thin = make_grid((60, 56, 10), (0.7, 0.7, 6.0)), make_grid((48, 40, 36), (1.6, 1.6, 1.6), center=(2, -1, 1))
    world = np.moveaxis(np.indices(thin.shape), 0, -1) @ thin.affine[:3, :3].T + thin.affine[:3, 3]
    centres = [(x, y, z) for x in (-10, 0, 10) for y in (-8, 8) for z in (-7.0, 6.0)]
    balls = np.stack([np.linalg.norm(world - centre, axis=-1) <= 2.4 for centre in centres], -1).astype(np.uint8)
    record = {
        "fixed_image": write(tmp_path / "fixed.nii.gz", smooth_noise(thick.shape, 2, 0), thick.affine),
        "moving_image": write(tmp_path / "moving.nii.gz", smooth_noise(thin.shape, 2, 1), thin.affine),
        "moving_label": write(
            tmp_path / "balls.nii.gz",
            balls if form == "masks" else (balls @ np.arange(1, 13)).astype(np.uint8),
            thin.affine,
        ),
    }
    loaded = LoadPaird()(record | ({Key.REQUESTED: True} if requested else {}))
    item = ResamplePaird((3, 3, 3), (16, 16, 16), keep_native=True)(AlignPaird()(loaded))
    item = SelectLabelsd(selected)(item)
    item["pred"] = torch.zeros(3, 16, 16, 16)
    result = RegistrationResult.of(ApplyFieldd()(item))
    result.save(tmp_path / "out", "label")
    written = np.asarray(nib.load(tmp_path / "out" / "warped_label.nii.gz").dataobj)
    found = [written[..., i] > 0 if form == "masks" else written == i + 1 for i in range(12)]
    volumes = [mask.sum() * np.prod(thick.spacing) for mask in found]
    np.testing.assert_allclose(volumes, balls.sum((0, 1, 2)) * np.prod(thin.spacing), rtol=0.2)
    np.testing.assert_allclose([entry["volume_mm3"] for entry in result.statistics["labels"]], volumes, atol=1e-2)
    assert result.statistics["warnings"] == []


@pytest.mark.parametrize("labels", [1, 3])
def test_probabilities_are_written_as_they_are(labels: int, tmp_path: Path) -> None:
    item = propagated(labels)
    RegistrationResult.of(item).save(tmp_path, ["probability", "label"])
    image = nib.load(tmp_path / "probability.nii.gz")
    assert image.shape == (*FIXED, labels)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_allclose(image.affine, AFFINES["fixed"], atol=1e-5)
    np.testing.assert_array_equal(image.get_fdata(), item["probability"].numpy().transpose(1, 2, 3, 0))
    assert 0.9 < image.get_fdata().max() <= 1
    masks = np.asarray(nib.load(tmp_path / "warped_label.nii.gz").dataobj)
    np.testing.assert_array_equal(masks, image.get_fdata() >= 0.5)


def test_propagated_values_of_a_map_are_one_map_again(tmp_path: Path) -> None:
    item = propagated(5, [3, 4, 300, 60, 70])
    RegistrationResult.of(item).save(tmp_path, "label")
    written = np.asarray(nib.load(tmp_path / "warped_label.nii.gz").dataobj)
    probability = item["probability"].numpy()
    expected = np.array([3, 4, 300, 60, 70])[probability.argmax(0)] * (probability.max(0) >= 0.5)
    np.testing.assert_array_equal(written, expected)
    assert set(np.unique(written)) == {0, 3, 4, 300}


@pytest.mark.parametrize(
    ("make", "outputs", "line"),
    [
        (propagated, "field", "B: the labels were predicted without a transformation, so there is no field; use a"),
        (
            propagated,
            ["label", "image"],
            "B: the labels were predicted without a transformation, so there is no warped",
        ),
        (applied, "probability", "A 1/2: labels that were warped with a field have no probabilities; use "),
        (lambda: applied("none"), ["label"], "A 1/2: without a moving label there is no warped label; name one"),
        (
            applied,
            "image,fields",
            "outputs: 'fields' is not known; use some of image, label, probability, field, inverse, points, stat",
        ),
        (applied, [7], "outputs: 7 is not known; use"),
        (applied, 5, "outputs: 5 names no file to write; use some of image, label"),
        (applied, [], "outputs: [] names no file to write; use some of image, label"),
    ],
)
def test_outputs_that_there_are_not(make: Any, outputs: Any, line: str, tmp_path: Path) -> None:
    result = RegistrationResult.of(make())
    with pytest.raises(RegZooError) as caught:
        result.save(tmp_path / "out", outputs)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "warped_label.nii.gz").write_text("of an earlier result")
    with pytest.raises(RegZooError):
        result.save(tmp_path, outputs)
    assert (tmp_path / "warped_label.nii.gz").read_text() == "of an earlier result"


def test_what_propagated_labels_do_not_have() -> None:
    result = RegistrationResult.of(propagated())
    for name, missing in (("field", "no field"), ("warped_image", "no warped image")):
        with pytest.raises(RegZooError, match=f"B: .*{missing}; use a bundle that registers"):
            getattr(result, name)
    with_field = RegistrationResult.of(item := applied())
    assert with_field.field is item["field"] and with_field.warped_image is item["warped_image"]
    assert with_field.probability is None and result.probability is not None


@pytest.mark.parametrize("values", [None, [3, 4, 50, 60, 70, 80]])
def test_warnings_say_what_is_lost_or_cut_off(values: list[int] | None, tmp_path: Path) -> None:
    result = RegistrationResult.of(propagated(6, values))
    numbers = values or range(6)
    assert result.statistics["warnings"] == [
        f"label {numbers[1]} (side): touches the border of the fixed image; part of it may lie beyond",
        f"label {numbers[2]} (end): touches the border of the network's field of view; part of it may lie beyond",
        f"label {numbers[3]} (lost): no part of it was found in the fixed image",
        f"label {numbers[5]} (gone): lies outside the network's field of view, so the network cannot find it",
    ]
    result.save(tmp_path, "statistics")
    assert json.loads((tmp_path / "statistics.json").read_text())["warnings"] == result.statistics["warnings"]


def test_no_warning_without_reason() -> None:
    assert RegistrationResult.of(propagated()).statistics["warnings"] == []
    assert RegistrationResult.of(applied("none")).statistics["warnings"] == []
    assert RegistrationResult.of(applied("none")).statistics.get("labels") is None


def test_labels_that_a_field_takes_out_of_the_image() -> None:
    item = applied()
    item["warped_label"][1] = 0
    item["warped_label"][0, :, 0, :] = 1
    assert RegistrationResult.of(item).statistics["warnings"] == [
        "label 0 (gland): touches the border of the fixed image; part of it may lie beyond",
        "label 1 (cyst): no part of it was found in the fixed image",
    ]


def test_statistics_of_propagated_labels(tmp_path: Path) -> None:
    RegistrationResult.of(propagated(5)).save(tmp_path, ["label", "statistics"])
    masks = nib.load(tmp_path / "warped_label.nii.gz")
    found = json.loads((tmp_path / "statistics.json").read_text())["labels"]
    assert [entry["name"] for entry in found] == NAMES[:5]
    for entry, mask in zip(found[:3], masks.get_fdata().transpose(3, 0, 1, 2), strict=False):
        assert entry["volume_mm3"] == pytest.approx(mask.sum() * 1.5 * 1.2 * 2, abs=0.1)
        expected = masks.affine @ [*center_of_mass(mask), 1]
        np.testing.assert_allclose(entry["centroid_ras_mm"], expected[:3], atol=2e-3)
    directions = AFFINES["fixed"][:3, :3] / (1.5, 1.2, 2)
    np.testing.assert_allclose(found[0]["centroid_ras_mm"], (30, -20, 10) + directions @ BALLS[0][0], atol=0.3)
    for entry in found[3:]:
        assert entry["volume_mm3"] == 0 and entry["centroid_ras_mm"] is None


@pytest.mark.parametrize("scale", [0.1, 1e-3])
def test_labels_of_a_few_cubic_micrometres_are_found(scale: float) -> None:
    item = propagated(scale=scale)
    (entry,) = RegistrationResult.of(item).statistics["labels"]
    count = int(item["warped_label"].sum())
    assert entry["volume_mm3"] == pytest.approx(count * 3.6 * scale**3, rel=0.01)
    item["warped_label"][:] = 0
    item["warped_label"][0, 5, 6, 7] = 1
    statistics = RegistrationResult.of(item).statistics
    assert statistics["warnings"] == []
    assert statistics["labels"][0]["volume_mm3"] == pytest.approx(3.6 * scale**3, rel=0.01)
    expected = Grid.of(item["warped_label"]).to_world((5, 6, 7))
    np.testing.assert_allclose(statistics["labels"][0]["centroid_ras_mm"], expected, atol=0.01 * scale)


def test_files_of_a_result(tmp_path: Path) -> None:
    item = applied()
    result = RegistrationResult.of(item)
    assert result.save(tmp_path / "out") == tmp_path / "out"
    assert {path.name for path in (tmp_path / "out").iterdir()} == OUTPUTS
    image = nib.load(tmp_path / "out/warped_image.nii.gz")
    assert image.get_data_dtype() == np.float32
    np.testing.assert_allclose(image.affine, AFFINES["fixed"], atol=1e-5)
    np.testing.assert_array_equal(image.get_fdata(), item["warped_image"][0].numpy())
    masks = nib.load(tmp_path / "out/warped_label.nii.gz")
    assert masks.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(masks.get_fdata(), (item["warped_label"].numpy() >= 0.5).transpose(1, 2, 3, 0))
    field = DisplacementField.load(tmp_path / "out/field.nii.gz")
    np.testing.assert_allclose(field.displacement.numpy(), item["field"].displacement.numpy(), atol=1e-5)


def test_the_inverse_and_points_of_the_moving_image(tmp_path: Path) -> None:
    """SimpleITK takes the points forwards; the files take them back."""
    item = applied("none")
    result = RegistrationResult.of(item)
    middle = Grid(FIXED, AFFINES["fixed"]).center
    points = np.stack([middle, middle + np.array([2, -1, 1]), middle + 400])
    vectors = to_sitk(np.moveaxis(item["field"].displacement.double().numpy(), 0, -1) * LPS, AFFINES["fixed"])
    forward = sitk.DisplacementFieldTransform(vectors)
    there = np.array([forward.TransformPoint((point * LPS).tolist()) for point in points]) * LPS
    rows = "".join(f"{name},{x},{y},{z}\n" for name, (x, y, z) in zip("abc", there, strict=True))
    (tmp_path / "targets.csv").write_text("name,x,y,z\n" + rows)
    result.carry_points(read_points(tmp_path / "targets.csv", "RAS"))
    result.save(tmp_path / "out", inverse=True)
    expected = OUTPUTS - {"warped_label.nii.gz"} | {"field_inverse.nii.gz", "warped_points.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    lines = (tmp_path / "out/warped_points.csv").read_text().splitlines()
    back = np.array([[float(word) for word in line.split(",")[1:4]] for line in lines[1:3]])
    np.testing.assert_allclose(back, points[:2], atol=0.01)
    assert lines[3] == "c,,,,outside the field of view"
    assert result.statistics["warnings"] == ["1 of 3 points lie outside the field of view"]
    inverse = sitk.ReadImage(str(tmp_path / "out/field_inverse.nii.gz"), sitk.sitkVectorFloat64)
    assert inverse.GetSize() == tuple(item["moving_native"].shape[1:])
    inverse = sitk.DisplacementFieldTransform(inverse)
    back = np.array([inverse.TransformPoint((point * LPS).tolist()) for point in there[:2]]) * LPS
    np.testing.assert_allclose(back, points[:2], atol=0.1)
    written = json.loads((tmp_path / "out/statistics.json").read_text(encoding="utf-8"))
    assert 0 < written["inverse"]["round_trip_mm"] < 1


def test_a_label_map_stays_one(tmp_path: Path) -> None:
    item = applied("map")
    RegistrationResult.of(item).save(tmp_path)
    written = np.asarray(nib.load(tmp_path / "warped_label.nii.gz").dataobj)
    assert written.shape == FIXED
    # Every voxel goes to the largest share, the background's included.
    soft = item["warped_label"].numpy()
    shares = np.concatenate([1 - soft.sum(0, keepdims=True), soft])
    np.testing.assert_array_equal(written, np.array([0, 2, 300, 301])[shares.argmax(0)])
    assert set(np.unique(written)) == {0, 2, 300}


def test_a_second_result_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    RegistrationResult.of(applied()).save(tmp_path)
    RegistrationResult.of(applied("none")).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == OUTPUTS - {"warped_label.nii.gz"}


def test_without_label_there_is_no_label_file(tmp_path: Path) -> None:
    result = RegistrationResult.of(applied("none"))
    assert result.warped_label is None
    assert result.label_map() is None
    RegistrationResult.of(applied()).save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    result.save(tmp_path)  # nothing of the earlier result remains
    assert {path.name for path in tmp_path.iterdir()} == OUTPUTS - {"warped_label.nii.gz"} | {"notes.txt"}
    assert "labels" not in json.loads((tmp_path / "statistics.json").read_text())


def test_statistics_are_those_of_the_written_masks(tmp_path: Path) -> None:
    RegistrationResult.of(applied()).save(tmp_path)
    masks = nib.load(tmp_path / "warped_label.nii.gz")
    found = json.loads((tmp_path / "statistics.json").read_text())
    voxel = np.prod(masks.header.get_zooms()[:3])
    assert [entry.get("name") for entry in found["labels"]] == ["gland", "cyst", None]
    for entry, mask in zip(found["labels"], masks.get_fdata().transpose(3, 0, 1, 2), strict=True):
        assert entry["volume_mm3"] == pytest.approx(mask.sum() * voxel, abs=0.1)
        if mask.any():
            expected = masks.affine @ [*center_of_mass(mask), 1]
            np.testing.assert_allclose(entry["centroid_ras_mm"], expected[:3], atol=2e-3)
        else:
            assert entry["centroid_ras_mm"] is None
    assert found["deformation"]["folded_voxels_percent"] == 0


def test_all_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    result = RegistrationResult.of(applied())
    monkeypatch.setattr(RegistrationResult, "draw", crash)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    result.save(tmp_path / "out", ["image", "field"])
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("moves", range(3))
def test_a_process_killed_between_two_files_leaves_nothing_in_the_way(
    moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that it has already moved count as ours, so that the next result can replace them."""
    result, replace, left = RegistrationResult.of(applied()), Path.replace, [0]

    def until_killed(path: Path, target: Path) -> Path:
        if Path(target).parent.name == "out":
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", until_killed)
    wanted = ["image", "field", "statistics"]
    for earlier in (False, True):
        if earlier:
            left[0] = 9
            result.save(tmp_path / "out", wanted)
        left[0] = moves
        with pytest.raises(KeyboardInterrupt):
            result.save(tmp_path / "out", wanted)
        left[0] = 9
        result.save(tmp_path / "out", wanted)
        assert len(list((tmp_path / "out").iterdir())) == 3


def test_handler_writes_each_case_into_its_folder(tmp_path: Path) -> None:
    engine = Engine(lambda *_: [applied()])
    SaveRegistration(tmp_path / "run").attach(engine)
    engine.run([[{"index": 0}]])
    (folder,) = (tmp_path / "run").iterdir()
    assert folder.is_dir()
    assert folder.name.startswith("A")
    assert {path.name for path in folder.iterdir()} == OUTPUTS
    assert (folder / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_handler_writes_what_is_asked_for_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(lambda *_: [propagated(2)])
    SaveRegistration(tmp_path / "run", "label").attach(engine)
    engine.run([[{"index": 0}]])
    assert shown(tmp_path / "run/B") == {"warped_label.nii.gz"}
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "B: label 1 (side): touches the border of the fixed image; part of it may lie beyond"
    ]
    with pytest.raises(RegZooError, match="'labels' is not known"):
        SaveRegistration(tmp_path / "other", "labels")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("form", [".nrrd", ".seg.nrrd", ".mha"])
def test_the_result_has_the_form_of_the_moving_files(form: str, tmp_path: Path) -> None:
    image_form = ".mha" if form == ".mha" else ".nrrd"
    RegistrationResult.of(applied("map")).save(tmp_path / "nifti", ["image", "label"])
    item = applied("map") | {"moving_image_form": image_form, "moving_label_form": form}
    item["label_names"] = ["gland", "cyst", "Harnröhre"]
    RegistrationResult.of(item).save(tmp_path / "other", ["image", "label"])
    written = {file.name for file in (tmp_path / "other").iterdir() if not file.name.startswith(".")}
    assert {f"warped_image{image_form}", f"warped_label{form}"} <= written and not any("nii" in n for n in written)
    for name, suffix in (("image", image_form), ("label", form)):
        nifti = sitk.ReadImage(str(tmp_path / "nifti" / f"warped_{name}.nii.gz"))
        other = sitk.ReadImage(str(tmp_path / "other" / f"warped_{name}{suffix}"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(other), sitk.GetArrayFromImage(nifti))
        assert other.GetPixelID() == nifti.GetPixelID()
        np.testing.assert_allclose(
            other.TransformIndexToPhysicalPoint((9, 8, 7)), nifti.TransformIndexToPhysicalPoint((9, 8, 7)), atol=1e-4
        )
    if form == ".seg.nrrd":
        label = read_label_file(tmp_path / "other" / "warped_label.seg.nrrd", Grid.of(item["reference_image"]))
        assert label.names == {2: "gland", 300: "cyst", 301: "Harnröhre"}
        assert other.GetMetaData("Segment1_LabelValue") == "300"
