"""Loading a pair: the forms labels come in, and pre-alignment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ball, make_affine, rigid, slicer, smooth_noise, write
from regzoo.errors import RegZooError
from regzoo.spatial import Grid
from regzoo.transforms import AlignPaird, ApplyFieldd, LoadPaird, ResamplePaird
from regzoo.transforms.load import aligned
from scipy.ndimage import center_of_mass

FIXED, MOVING = (12, 11, 10), (9, 13, 8)
AFFINES = {
    "fixed": make_affine(FIXED, (1, 1.2, 0.9), (5, 10, 0)),
    "moving": make_affine(MOVING, (1.3, 0.8, 1), center=(2, 1, 0)),
}
MASKS = {"fixed": ball(FIXED, (5, 5, 5), 2), "moving": ball(MOVING, (4, 6, 3), 2)}


class Case:
    """A record whose files are written as it is put together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: dict[str, Any] = {}
        for side, shape in (("fixed", FIXED), ("moving", MOVING)):
            self.record[f"{side}_image"] = self.file(side, "image", smooth_noise(shape, 1, 0))

    def file(self, side: str, name: str, array: np.ndarray) -> str:
        return write(self.folder / f"{side}_{name}.nii.gz", array, AFFINES[side])


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@pytest.mark.parametrize("form", ["4-D", "map", "list", "mask", "path"])
def test_labels_become_channels_however_they_are_stored(form: str, case: Case) -> None:
    for side, mask in MASKS.items():
        empty, shifted = np.zeros_like(mask), np.roll(mask, 2, 0) * (1 - mask)
        stack = np.stack([mask, empty, shifted], axis=-1)
        if form == "4-D":
            case.record[f"{side}_label"] = case.file(side, "label", stack.astype(np.uint8))
        elif form == "map":
            case.record[f"{side}_label"] = case.file(side, "label", (stack * [3, 5, 8]).sum(-1).astype(np.int16))
        elif form == "list":
            files = [case.file(side, f"label{i}", stack[..., i] * np.float32(7)) for i in range(3)]
            case.record[f"{side}_label"] = files
        else:
            file = case.file(side, "label", mask)
            case.record[f"{side}_label"] = Path(file) if form == "path" else file
    item = LoadPaird(label_values=(3, 5, 8) if form == "map" else None)(case.record)
    for side, mask in MASKS.items():
        label = item[f"{side}_label"]
        assert label.shape == (1 if form in ("mask", "path") else 3, *mask.shape)
        np.testing.assert_array_equal(label[0].numpy(), mask)
        np.testing.assert_allclose(label.affine.numpy(), AFFINES[side], atol=1e-5)
        if len(label) == 3:
            assert not label[1].any()
            np.testing.assert_array_equal(label[2].numpy(), np.roll(mask, 2, 0) * (1 - mask))
    known = {"map": [3, 5, 8], "mask": [1], "path": [1]}
    assert item.get("moving_label_values") == known.get(form)
    assert item.get("moving_mask_values") == {"4-D": [1, 1, 1], "list": [7, 1, 7]}.get(form)
    assert item["moving_label_is_map"] == (form in known)
    assert item["moving_label_axes"] == (4 if form in ("4-D", "list") else 3)


def test_values_of_either_map_get_a_channel_in_both(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    case.record["fixed_label"] = case.file("fixed", "label", (MASKS["fixed"] * 4).astype(np.int16))
    case.record["moving_label"] = case.file("moving", "label", (MASKS["moving"] * 9).astype(np.int16))
    item = LoadPaird()(case.record)
    assert item["moving_label_values"] == [4, 9]
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"no value in common: 4 in {case.record['fixed_label']} and 9 in {case.record['moving_label']};" in line
    assert [bool(channel.any()) for channel in item["fixed_label"]] == [True, False]
    assert [bool(channel.any()) for channel in item["moving_label"]] == [False, True]


def test_maps_of_different_values_are_said_once(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """Unless their values are named, or the pairs are only registered."""
    gland, both = {}, {}
    for side, mask in MASKS.items():
        volume = (mask * 6).astype(np.int16)
        gland[f"{side}_label"] = case.file(side, "gland", volume)
        volume[0] = 3
        both[f"{side}_label"] = case.file(side, "both", volume)
    for values, more in (((3, 6), {}), (None, {"label_values": [3, 6]}), (None, {"requested": True})):
        load = LoadPaird(values)
        for one in (both, gland):
            load(case.record | one | more)
    assert caplog.messages == []
    load = LoadPaird()
    assert [load(case.record | one)["label_values"] for one in (both, gland, gland)] == [[3, 6], [6], [6]]
    (line,) = caplog.messages
    assert line.startswith(f"{gland['fixed_label']}: its labels are the values 6, but those of {both['fixed_label']}")
    assert "are 3, 6" in line and "list all values of the data set as label_values" in line


@pytest.mark.parametrize("nothing", [None, "", [], "absent"])
def test_labels_are_optional(nothing: Any, case: Case) -> None:
    case.record["moving_label"] = case.file("moving", "label", MASKS["moving"])
    if nothing != "absent":
        case.record["fixed_label"] = nothing
    item = LoadPaird()(case.record)
    assert "fixed_label" not in item
    assert item["moving_label"].shape == (1, *MOVING)
    with pytest.raises(RegZooError, match="as fixed_label"):
        LoadPaird(need=("fixed_label",))(case.record)


@pytest.mark.parametrize("nothing", [None, "", [], "absent"])
def test_labels_that_are_needed(nothing: Any, case: Case) -> None:
    case.record["fixed_label"] = case.file("fixed", "label", MASKS["fixed"])
    if nothing != "absent":
        case.record["moving_label"] = nothing
    with pytest.raises(RegZooError) as caught:
        LoadPaird(need=("fixed_image", "moving_image", "moving_label"))(case.record)
    line = str(caught.value)
    assert line.startswith(case.record["moving_image"]) and "\n" not in line
    assert "name it as moving_label (regzoo register: --label)" in line
    case.record["moving_label"] = case.file("moving", "label", MASKS["moving"])
    item = LoadPaird(need=("fixed_image", "moving_image", "moving_label"))(case.record)
    np.testing.assert_array_equal(item["moving_label"][0].numpy(), MASKS["moving"])


def test_images_and_names(case: Case) -> None:
    item = LoadPaird()(case.record)
    assert item["case"] == "fixed_image"
    np.testing.assert_array_equal(item["moving_image"][0].numpy(), smooth_noise(MOVING, 1, 0))
    assert LoadPaird()(case.record | {"case": "A 7"})["case"] == "A 7"
    assert isinstance(case.record["fixed_image"], str)  # the record itself is left as it was


@pytest.mark.parametrize("overlapping", [False, True])
def test_segments_of_slicer_keep_their_names(overlapping: bool, case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """A map has the values 2 and 9; overlapping segments are on two layers."""
    for side, mask in MASKS.items():
        voxels = (
            np.stack([2 * mask, 9 * mask], -1) if overlapping else 2 * mask + 7 * mask * (np.indices(mask.shape)[0] > 4)
        )
        named = [("gland", 0, 2), ("lesion" if side == "fixed" else "cyst", int(overlapping), 9)]
        entries = [
            f"Segment{number}_{key}:={value}"
            for number, segment in enumerate(named)
            for key, value in zip(("Name", "Layer", "LabelValue"), segment, strict=True)
        ]
        path = slicer(case.folder / f"{side}.seg.nrrd", voxels, AFFINES[side], *entries)
        case.record[f"{side}_label"] = str(path)
    item = LoadPaird()(case.record)
    assert item["label_names"] == ["gland", "lesion"] and item["fixed_label"].shape == (2, *FIXED)
    assert "is called 'lesion' in the fixed image, but 'cyst' in the moving image" in caplog.text
    assert item["moving_label_form"] == (".nii.gz" if overlapping else ".seg.nrrd")
    assert LoadPaird()(case.record | {"label_names": ["a", "b"], "label_values": [2, 9]})["label_names"] == ["a", "b"]


def test_names_belong_to_values(case: Case) -> None:
    """Without label_values, to all values in ascending order; nothing is guessed if some are missing."""
    for side, mask in MASKS.items():
        upper = np.indices(mask.shape)[0] > 4
        case.record[f"{side}_label"] = case.file(side, "label", (mask + 2 * mask * upper).astype(np.uint8))
    two, three = ({"label_names": names} for names in (["gland", "cyst"], ["gland", "urethra", "cyst"]))
    assert LoadPaird()(case.record | two)["label_names"] == ["gland", "cyst"]
    assert LoadPaird([1, 2, 3])(case.record | three)["label_names"] == ["gland", "urethra", "cyst"]
    named = case.record | three | {"label_values": [1, 2, 3]}
    assert LoadPaird([3, 1])(named)["label_names"] == ["cyst", "gland"]
    for values, names in ((None, three), ([1, 2, 3], two), ([3, 1], two)):
        with pytest.raises(RegZooError, match="do not say which is which; add label_values, the value of") as caught:
            LoadPaird(values)(case.record | names)
        assert str(caught.value).startswith(case.record["fixed_label"]) and "\n" not in str(caught.value)


def test_both_sides_need_the_same_number_of_labels(case: Case) -> None:
    for side, count in (("fixed", 2), ("moving", 3)):
        case.record[f"{side}_label"] = case.file(side, "label", np.stack([MASKS[side]] * count, axis=-1))
    with pytest.raises(RegZooError, match=r"holds 2 labels.*holds 3"):
        LoadPaird()(case.record)


def test_named_values_are_as_many_as_masks(case: Case) -> None:
    case.record["moving_label"] = case.file("moving", "label", np.stack([MASKS["moving"]] * 2, axis=-1))
    item = LoadPaird()(case.record | {"label_values": [4, 6]})
    assert item["label_values"] == [4, 6]
    with pytest.raises(RegZooError, match="holds 2 labels, but 3 label_values are named; name the value") as caught:
        LoadPaird()(case.record | {"label_values": [4, 6, 7]})
    assert str(caught.value).startswith(case.record["moving_label"])


def test_centre_alignment_moves_the_affine_alone(case: Case) -> None:
    away = AFFINES["moving"].copy()
    away[:3, 3] += (300, -200, 100)
    for name, array in (("image", smooth_noise(MOVING, 1, 0)), ("label", MASKS["moving"])):
        case.record[f"moving_{name}"] = write(case.folder / f"away_{name}.nii", array, away)
    loaded = LoadPaird()(case.record)
    with pytest.raises(RegZooError, match=r"overlap.*set align to center"):
        AlignPaird()(loaded)
    item = AlignPaird("center")(loaded)
    fixed_center = AFFINES["fixed"] @ [*(np.array(FIXED) - 1) / 2, 1]
    image, label = (aligned(item, item[key]) for key in ("moving_image", "moving_label"))
    np.testing.assert_allclose(Grid.of(image).center, fixed_center[:3], atol=1e-4)
    np.testing.assert_allclose(label.affine.numpy(), image.affine.numpy())
    np.testing.assert_array_equal(image.numpy(), loaded["moving_image"].numpy())
    for key in ("moving_image", "moving_label"):  # the case itself keeps the file's affine
        np.testing.assert_allclose(item[key].affine.numpy(), away, atol=1e-4)
    edit = item["prealignment"].numpy()
    np.testing.assert_allclose(edit @ away, image.affine.numpy(), atol=1e-4)
    np.testing.assert_array_equal(edit[:3, :3], np.eye(3))
    # The label's centroid goes along with its image.
    before, after = (a @ [*center_of_mass(MASKS["moving"]), 1] for a in (away, label.affine.numpy()))
    np.testing.assert_allclose(after - before, edit[:, 3] - [0, 0, 0, 1], atol=1e-4)


@pytest.mark.parametrize("labels", [1, 3])
def test_label_alignment_puts_the_first_label_on_the_fixed_centre(labels: int, case: Case) -> None:
    masks = np.stack([ball(MOVING, (3, 8, 4), 1.5), *[MASKS["moving"]] * (labels - 1)], axis=-1)
    affine = make_affine(MOVING, (1.3, 0.8, 1), (20, -35, 10), (2, 0, 1), (1, -1, -1), (70, 500, -40))
    for name, array in (("image", smooth_noise(MOVING, 1, 0)), ("label", masks)):
        case.record[f"moving_{name}"] = write(case.folder / f"far_{name}.nii", array, affine)
    loaded = LoadPaird()(case.record)
    item = AlignPaird("label")(loaded)
    middle = (AFFINES["fixed"] @ [*(np.array(FIXED) - 1) / 2, 1])[:3]
    image, label = (aligned(item, item[key]) for key in ("moving_image", "moving_label"))
    there = label.affine.numpy() @ [*center_of_mass(masks[..., 0]), 1]
    np.testing.assert_allclose(there[:3], middle, atol=1e-3)
    np.testing.assert_array_equal(image.affine.numpy(), label.affine.numpy())
    edit = item["prealignment"].numpy()
    np.testing.assert_allclose(edit @ affine, image.affine.numpy(), atol=1e-3)
    np.testing.assert_array_equal(edit[:3, :3], np.eye(3))
    for key in ("moving_image", "moving_label"):  # nothing is resampled
        np.testing.assert_array_equal(item[key].numpy(), loaded[key].numpy())
    # A field of zeros is the inverse of the edit: from the fixed image's world into the moving file's own.
    item = ResamplePaird((1.1, 1.1, 1.1), (12, 12, 12), keep_native=True)(item)
    item["pred"] = torch.zeros(3, 12, 12, 12)
    applied = ApplyFieldd()(item)
    there = affine @ [*center_of_mass(masks[..., 0]), 1]
    np.testing.assert_allclose(applied["field"].transform_points(middle[None])[0], there[:3], atol=1e-3)
    for key in ("warped_label", "unregistered_label"):
        seen = applied[key][0].numpy()
        np.testing.assert_allclose(AFFINES["fixed"] @ [*center_of_mass(seen), 1], [*middle, 1], atol=0.15)
        volumes = [
            m.sum() * abs(np.linalg.det(a[:3, :3])) for m, a in ((seen, AFFINES["fixed"]), (masks[..., 0], affine))
        ]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.1)


def test_label_alignment_without_a_label_takes_the_field_of_view(case: Case) -> None:
    loaded = LoadPaird()(case.record)
    item, center = AlignPaird("label")(loaded), AlignPaird("center")(loaded)
    np.testing.assert_array_equal(item["prealignment"].numpy(), center["prealignment"].numpy())
    middles = [a @ [*(np.array(n) - 1) / 2, 1] for a, n in ((AFFINES["fixed"], FIXED), (AFFINES["moving"], MOVING))]
    np.testing.assert_allclose(item["prealignment"].numpy()[:3, 3], (middles[0] - middles[1])[:3], atol=1e-4)


def test_label_alignment_by_an_empty_label(case: Case) -> None:
    masks = np.stack([np.zeros(MOVING, np.float32), MASKS["moving"]], axis=-1)
    case.record["moving_label"] = case.file("moving", "label", masks)
    with pytest.raises(RegZooError, match="its first label is empty; draw it, or set align to center") as caught:
        AlignPaird("label")(LoadPaird()(case.record))
    assert str(caught.value).startswith(case.record["moving_label"]) and "\n" not in str(caught.value)


def test_label_alignment_by_the_first_label_that_the_moving_map_holds(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    case.record["moving_label"] = case.file("moving", "label", (MASKS["moving"] * 9).astype(np.int16))
    alone = AlignPaird("label")(LoadPaird()(case.record))
    assert not caplog.records
    case.record["fixed_label"] = case.file("fixed", "label", (MASKS["fixed"] * 4).astype(np.int16))
    found = AlignPaird("label")(LoadPaird()({**case.record, "requested": True}))
    np.testing.assert_allclose(found["prealignment"].numpy(), alone["prealignment"].numpy(), atol=1e-6)
    words = f"{case.record['moving_label']}: holds no label 4; its label 9 is aligned instead"
    assert words in [record.getMessage() for record in caplog.records]


def test_masks_count_from_one_half(case: Case) -> None:
    soft = np.full(FIXED, 0.4, np.float32)
    case.record["fixed_mask"] = case.file("fixed", "mask", soft)
    with pytest.raises(RegZooError, match=r"no voxel that counts: no voxel is 0\.5 or more"):
        LoadPaird()(case.record)
    soft[2:4, 2:4, 2:4] = 0.9
    case.record["fixed_mask"] = case.file("fixed", "mask", soft)
    np.testing.assert_array_equal(LoadPaird()(case.record)["fixed_mask"][0].numpy(), soft > 0.5)


def test_header_alignment_trusts_the_files(case: Case) -> None:
    item = AlignPaird()(LoadPaird()(case.record))
    np.testing.assert_array_equal(item["prealignment"].numpy(), np.eye(4))
    np.testing.assert_allclose(item["moving_image"].affine.numpy(), AFFINES["moving"], atol=1e-5)


@pytest.mark.parametrize("method", ["rigid", "similarity", "affine"])
def test_registration_as_alignment(method: Any, case: Case) -> None:
    """The moving file is the fixed one in a world that is turned and far away; the record asks for the method."""
    shape, affine = (24, 22, 20), make_affine((24, 22, 20), (2, 2.2, 2))
    there = rigid((0, 30, 0), (500, -300, 80))
    volume = smooth_noise(shape, 3, 0)
    case.record |= {
        "fixed_image": write(case.folder / "turned_fixed.nii", volume, affine),
        "moving_image": write(case.folder / "turned_moving.nii", volume, there @ affine),
        "align": method,
    }
    item = AlignPaird()(LoadPaird()(case.record))
    corners = Grid.of(item["fixed_image"]).corners
    apart = Grid.of(aligned(item, item["moving_image"])).corners - corners
    assert np.linalg.norm(apart, axis=-1).max() < 0.5
    edit = item["prealignment"].numpy()
    np.testing.assert_allclose(edit @ there, np.eye(4), atol=0.5)


@pytest.mark.parametrize("exclude", [False, True])
def test_registration_within_masks(exclude: bool, case: Case) -> None:
    """Half of the image moves in another way than the rest, such as a table with coils."""
    shape, affine = (28, 26, 24), make_affine((28, 26, 24), (2, 2, 2))
    there, texture, table = rigid((0, 0, 15), (4, -2, 6)), smooth_noise(shape, 2.5, 0), smooth_noise(shape, 1.5, 1)
    for side, first in (("fixed", 0), ("moving", 5)):
        at_table = np.zeros(shape, dtype=np.uint8)
        at_table[:, first : first + 14] = 1
        world = affine if side == "fixed" else there @ affine
        image = np.where(at_table, np.roll(table, first, 1) * 3 * np.ptp(texture) / np.ptp(table), texture)
        counts = at_table if exclude else 1 - at_table
        case.record[f"{side}_image"] = write(case.folder / f"{side}_table.nii", image.astype(np.float32), world)
        case.record[f"{side}_mask"] = write(case.folder / f"{side}_mask.nii", counts, world)
    item = LoadPaird(exclude=exclude)(case.record)
    without: Any = {key: value for key, value in item.items() if not key.endswith("_mask")}
    errors = []
    for one in (item, without):
        edit = AlignPaird("rigid")(one)["prealignment"].numpy()
        corners = np.append(Grid.of(one["moving_image"]).corners.reshape(-1, 3), np.ones((8, 1)), axis=1).T
        errors.append(np.linalg.norm(((edit - np.linalg.inv(there)) @ corners)[:3], axis=0).max())
    assert errors[0] < 1 < 5 < errors[1]


def test_registration_of_too_few_slices(case: Case) -> None:
    case.record["moving_image"] = case.file("moving", "thin", smooth_noise((9, 13, 2), 1, 0))
    with pytest.raises(RegZooError, match=r"has only 2 voxels along an axis.*; set align to header or") as caught:
        AlignPaird("affine")(LoadPaird()(case.record))
    assert str(caught.value).startswith(case.record["moving_image"])


@pytest.mark.parametrize("small", ["fixed", "moving"])
def test_a_small_image_within_a_large_one_overlaps(small: str, tmp_path: Path) -> None:
    files = {}
    for side in ("fixed", "moving"):
        spacing = 0.1 if side == small else 30
        affine = make_affine((10, 10, 10), (spacing,) * 3, center=(7, 7, 7) if side == small else (0, 0, 0))
        files[f"{side}_image"] = write(tmp_path / f"{side}.nii", smooth_noise((10, 10, 10), 1, 0), affine)
    AlignPaird()(LoadPaird()(files))


def test_unknown_alignment() -> None:
    with pytest.raises(RegZooError, match="'middle'; use one of header, center, label"):
        AlignPaird("middle")  # type: ignore[arg-type]
