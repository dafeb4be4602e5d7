"""CT: Hounsfield units however they are stored, and the field of view round the liver or the body."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ball, make_affine, write
from regzoo.augmentation import SingleImageAugmentation
from regzoo.errors import RegZooError
from regzoo.spatial import Grid
from regzoo.transforms import (
    AlignPaird,
    FieldOfViewd,
    HounsfieldUnitsd,
    LoadPaird,
    MatchLabelsd,
    ResamplePaird,
    SimulateMovingd,
)
from regzoo.transforms.ct import body_region

SHAPE, SPACING = (60, 44, 34), (5.0, 5.5, 6.0)
NAMES = {"label_values": [1, 6], "label_names": ["spleen", "liver"]}


def ct(liver: tuple[float, float, float] = (20, 22, 17), table: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """An elliptic body with a liver and a spleen on a table, Hounsfield units, and its label map."""
    x, y, _ = np.indices(SHAPE)
    image = np.full(SHAPE, -1000.0, dtype=np.float32)
    body = ((x - 30) / 22) ** 2 + ((y - 22) / 14) ** 2 <= 1
    image[body] = 40
    labels = (ball(SHAPE, liver, 6) * 6).astype(np.uint8)
    labels[ball(SHAPE, (44, 22, 17), 3) > 0] = 1
    image[labels == 6] = 110
    if table:
        image[2:58, 38:40] = 300  # 11 mm thick, 11 mm below the back
    return image + np.random.default_rng(0).normal(0, 8, SHAPE).astype(np.float32), labels


class Case:
    """Records of files that are written as they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.affine = make_affine(SHAPE, SPACING, flips=(-1, -1, 1), center=(12, -40, 300))

    def file(self, name: str, array: np.ndarray, affine: np.ndarray | None = None) -> str:
        return write(self.folder / f"{name}.nii.gz", array, self.affine if affine is None else affine)

    def single(self, **options: Any) -> dict[str, Any]:
        image, labels = ct(**options)
        return {"fixed_image": self.file("image", image), "fixed_label": self.file("label", labels), **NAMES}

    def pair(self, shift: tuple[float, ...] = (0, 0, 0), **options: Any) -> dict[str, Any]:
        image, labels = ct(**options)
        affine = self.affine.copy()
        affine[:3, 3] += shift
        moving = {"moving_image": self.file("there", image, affine), "moving_label": self.file("drawn", labels, affine)}
        return self.single() | moving

    def world(self, voxel: tuple[float, ...]) -> np.ndarray:
        return (self.affine @ [*voxel, 1])[:3]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def units(path: str) -> Any:
    return HounsfieldUnitsd()(LoadPaird(allow_nan=True)({"fixed_image": path}))["fixed_image"]


def test_hounsfield_units_stay_as_they_are(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    image, _ = ct()
    np.testing.assert_array_equal(units(case.file("image", image))[0].numpy(), image)
    assert not caplog.records


X, Y, _ = np.indices(SHAPE)
CORNERS = np.hypot((X - 30) * SPACING[0], (Y - 22) * SPACING[1]) > 130
RAW = ct()[0].round() + 1024


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (np.where(CORNERS, -2000, ct()[0].round()).astype(np.int16), ["down to -2000"]),
        (np.where(CORNERS, -3024, ct()[0].round()).astype(np.int16), ["down to -3024"]),
        (np.where(CORNERS, -32768, ct()[0].round()).astype(np.int16), ["down to -32768"]),
        (np.where(CORNERS, np.nan, ct()[0].round()), ["NaN or infinity"]),
        (np.where(CORNERS, -np.inf, ct()[0].round()), ["NaN or infinity"]),
        (np.where(CORNERS, -2000, RAW).astype(np.int16), ["1024 was subtracted", "down to -3024"]),
        (np.where(CORNERS, np.nan, RAW), ["1024 was subtracted", "NaN or infinity"]),
        (np.where(CORNERS, -976, RAW).astype(np.int32).astype(np.uint16), ["65536", "1024 was", "down to -2000"]),
        (np.where(CORNERS, -2000, ct()[0].round()).astype(np.int16).astype(np.uint16), ["65536", "down to -2000"]),
    ],
)
def test_padding_counts_as_air(
    stored: np.ndarray, words: list[str], case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    path = case.file("image", stored.astype(np.float32) if stored.dtype == np.float64 else stored)
    image = units(path)
    np.testing.assert_array_equal(image[0].numpy(), np.where(CORNERS, -1000, ct()[0].round()))
    np.testing.assert_allclose(image.affine.numpy(), case.affine, atol=1e-4)
    (line,) = [entry.getMessage() for entry in caplog.records]
    assert line.startswith(path) and f"{CORNERS.sum()} voxels of padding" in line
    assert all(word in line for word in words) and ("1024" in line) == ("1024 was" in " ".join(words))


@pytest.mark.parametrize("value", [0, 40])
def test_padding_with_the_value_of_a_tissue_is_mentioned(
    value: float, case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    stored = np.where(CORNERS, value, ct()[0]).astype(np.float32)
    path = case.file("image", stored)
    np.testing.assert_array_equal(units(path)[0].numpy(), stored)
    (line,) = [entry.getMessage() for entry in caplog.records]
    assert line == f"{path}: its corners all hold {value} HU; if that is padding, replace it by -1000"


def test_stray_nan_in_the_background_is_air_and_in_the_body_an_error(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    image, _ = ct()
    image[1, 1, 3] = image[58, 2, 30] = np.nan
    image[:, :, :2] = np.inf  # whole slices
    assert units(case.file("image", image))[0, 1, 1, 3] == -1000
    assert f": {2 * 60 * 44 + 2} voxels of padding" in caplog.text
    image[28:31, 20:22, 5] = np.nan
    path = case.file("image", image)
    with pytest.raises(RegZooError, match="NaN or infinity in 6 voxels inside the body; export") as caught:
        units(path)
    assert str(caught.value).startswith(path)
    image = ct()[0]
    image[28:31, 20:22, 0] = np.nan  # on the outermost slice too
    with pytest.raises(RegZooError, match="in 6 voxels inside the body"):
        units(case.file("image", image))
    with pytest.raises(RegZooError, match="replace them with the background value: in most images the minimum, in CT"):
        LoadPaird()({"fixed_image": case.file("image", image)})
    with pytest.raises(RegZooError, match="every voxel is NaN"):
        units(case.file("image", np.full(SHAPE, np.nan, np.float32)))


def test_unsigned_values_are_shifted_with_one_warning(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    image, _ = ct()
    record = {"fixed_image": case.file("image", np.clip(image + 1024, 0, None).round().astype(np.uint16))}
    item = HounsfieldUnitsd()(LoadPaird()(record))
    np.testing.assert_allclose(item["fixed_image"][0].numpy(), np.clip(image, -1024, None), atol=0.51)
    np.testing.assert_allclose(item["fixed_image"].affine.numpy(), case.affine, atol=1e-4)
    (line,) = [entry.getMessage() for entry in caplog.records]
    assert line.startswith(record["fixed_image"]) and "1024 was subtracted" in line


@pytest.mark.parametrize("kind", ["window", "unit", "mr", "resampled"])
def test_other_values_are_refused_in_one_line(kind: str, case: Case) -> None:
    image, labels = ct()
    if kind in ("mr", "resampled"):
        image = np.abs(image - image.min()) % 400 + 300 * (labels == 6)
        image[0, 0, 0] = -7 if kind == "resampled" else 0
    else:
        image = (np.clip(image, -160, 240) + 160) * (255 / 400 if kind == "window" else 1 / 400)
    record = {"fixed_image": case.file("image", image.astype(np.float32))}
    with pytest.raises(RegZooError, match="not in Hounsfield units") as caught:
        HounsfieldUnitsd()(LoadPaird()(record))
    assert str(caught.value).startswith(record["fixed_image"]) and "\n" not in str(caught.value)


def test_the_view_is_centred_on_the_liver(case: Case) -> None:
    item = FieldOfViewd(6, margin=10)(LoadPaird()(case.single()))
    np.testing.assert_allclose(item["view_center"], case.world((20, 22, 17)), atol=1e-3)
    np.testing.assert_allclose(item["view_extent"], 13 * np.array(SPACING) + 20)
    assert "fixed_anchor" not in item
    item = ResamplePaird((8, 8, 8), (16, 14, 12))(AlignPaird("region")(item))
    np.testing.assert_allclose(Grid.of(item["fixed_image"]).center, case.world((20, 22, 17)), atol=1e-3)
    assert item["fixed_image"].shape == (1, 16, 14, 12) and "moving_image" not in item
    assert item["fixed_label"].shape == (2, 16, 14, 12) and item["label_names"] == ["spleen", "liver"]
    # The grid's axes are R, A, S, so the liver's centre of mass is the middle of the grid.
    weights = item["fixed_label"][1].numpy()
    middle = [(np.indices(weights.shape)[axis] * weights).sum() / weights.sum() for axis in range(3)]
    np.testing.assert_allclose(middle, [7.5, 6.5, 5.5], atol=0.05)


def test_extent_follows_the_axes_of_the_world(tmp_path: Path) -> None:
    folder = Case(tmp_path)
    folder.affine = make_affine(SHAPE, SPACING, axes=(2, 0, 1), flips=(1, -1, -1))
    item = FieldOfViewd(6, margin=0)(LoadPaird()(folder.single()))
    np.testing.assert_allclose(item["view_extent"], 13 * np.array([5.5, 6.0, 5.0]))


@pytest.mark.parametrize("why", ["empty", "unlabelled", "unnamed"])
def test_without_a_liver_the_body_is_sought(why: str, case: Case, caplog: pytest.LogCaptureFixture) -> None:
    record = case.single()
    if why == "empty":
        labels = ct()[1]
        record["fixed_label"] = case.file("label", np.where(labels == 6, 0, labels).astype(np.uint8))
    elif why == "unlabelled":
        del record["fixed_label"]
    item = FieldOfViewd(3 if why == "unnamed" else 6)(LoadPaird()(record))
    # Centred across and along the body; the table does not count.
    np.testing.assert_allclose(item["view_center"], case.world((30, 22, 16.5)), atol=4)
    assert "view_extent" not in item
    lines = [entry.getMessage() for entry in caplog.records]
    assert len(lines) == (why != "unlabelled") and all(record["fixed_label"] in line for line in lines)


def test_the_body_is_boxed_without_its_table(case: Case) -> None:
    boxes = []
    for table in (True, False):
        image = LoadPaird()({"fixed_image": case.file("image", ct(table=table)[0])})["fixed_image"]
        boxes.append(body_region(image))
    np.testing.assert_allclose(boxes[0].center, boxes[1].center, atol=1e-6)
    np.testing.assert_allclose(boxes[0].extent, [45 * 5.0, 29 * 5.5, 34 * 6.0], atol=12)


def test_livers_or_else_bodies_are_put_together(case: Case) -> None:
    shift = (260.0, -190, 75)
    steps = LoadPaird(), FieldOfViewd(6), AlignPaird("region")
    record = case.pair(shift, liver=(24, 20, 15))
    for labels in (("fixed_label", "moving_label"), ("fixed_label",), ("moving_label",), ()):
        item: Any = {key: value for key, value in record.items() if "label" not in key or key in labels}
        for step in steps:
            item = step(item)
        expected = (
            np.negative(shift) if len(labels) < 2 else case.world((20, 22, 17)) - case.world((24, 20, 15)) - shift
        )
        np.testing.assert_allclose(item["prealignment"].numpy()[:3, 3], expected, atol=4)
        centre = (20, 22, 17) if "fixed_label" in labels else (30, 22, 16.5)
        np.testing.assert_allclose(item["view_center"], case.world(centre), atol=4)
    with pytest.raises(RegZooError, match="use center"):
        AlignPaird("region")(LoadPaird()(record))


def test_centres_of_mass_are_put_together_not_boxes(case: Case) -> None:
    """A thin lobe moves the box of a liver much, and its centre of mass little."""
    record = case.pair()
    labels = ct()[1]
    labels[27:33, 22, 17] = 6
    record["moving_label"] = case.file("lobe", labels)
    item = AlignPaird("region")(FieldOfViewd(6)(LoadPaird()(record)))
    expected = np.argwhere(ct()[1] == 6).mean(0) - np.argwhere(labels == 6).mean(0)
    assert 0.01 < np.abs(expected).max() < 0.2
    found = item["prealignment"].numpy()[:3, 3]
    np.testing.assert_allclose(found, case.affine[:3, :3] @ expected, atol=1e-3)


def test_very_different_fields_of_view_are_mentioned(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    record = case.pair()
    low = case.file("low", ct()[0][:, :, :12])
    item = LoadPaird()({"fixed_image": record["fixed_image"], "moving_image": low})
    FieldOfViewd(6)(item)
    (line,) = [entry.getMessage() for entry in caplog.records]
    assert line.startswith(record["fixed_image"]) and "204 mm of a body, its moving image 72 mm" in line


def test_a_view_too_small_for_the_organ_is_mentioned(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    item = FieldOfViewd(6, margin=20)(LoadPaird()(case.single()))
    with caplog.at_level(logging.WARNING):
        ResamplePaird((8, 8, 8), (16, 16, 16))(item)
        assert not caplog.records
        ResamplePaird((8, 8, 8), (16, 10, 16))(item)
    (line,) = [entry.getMessage() for entry in caplog.records]
    assert "105×112×118 mm are wanted, the network's field of view has 128×80×128 mm" in line


def test_values_that_nobody_knows_are_refused(case: Case) -> None:
    record = case.single()
    item = LoadPaird()(record)
    assert item["label_values"] == [1, 6] and len(item["fixed_label"]) == 2
    chosen = LoadPaird(label_values=[6])(record)  # the spleen is known, but not wanted
    assert chosen["label_names"] == ["liver"] and len(chosen["fixed_label"]) == 1
    np.testing.assert_array_equal(chosen["fixed_label"][0].numpy(), ct()[1] == 6)
    record |= {"label_values": [2, 6, 9]}
    with pytest.raises(RegZooError) as caught:
        LoadPaird()(record)
    line = str(caught.value)
    assert line.startswith(record["fixed_label"]) and "label values 1," in line and "[2, 6, 9]" in line
    del record["label_values"]
    assert LoadPaird()(record)["label_values"] == [1, 6]  # nobody says what there should be


def test_a_single_image_gets_the_same_moving_image_every_time(case: Case) -> None:
    item = LoadPaird()(case.single())
    for step in (FieldOfViewd(6), AlignPaird("region"), ResamplePaird((8, 8, 8), (24, 20, 18)), MatchLabelsd()):
        item = step(item)
    item["fixed_image"] = (item["fixed_image"].clamp(-160, 240) + 160) / 400
    simulate = SimulateMovingd(SingleImageAugmentation((8, 8, 8), label_mode="bilinear"), seed=3)
    first, again, other = simulate(item), simulate(item), simulate(item | {"case": "another"})
    np.testing.assert_array_equal(first["moving_image"].numpy(), again["moving_image"].numpy())
    assert np.abs(first["moving_image"].numpy() - other["moving_image"].numpy()).max() > 0.1
    np.testing.assert_array_equal(first["moving_label"].affine.numpy(), item["fixed_label"].affine.numpy())
    assert first["moving_label"].shape == item["fixed_label"].shape
    assert simulate(first)["moving_image"] is first["moving_image"]
