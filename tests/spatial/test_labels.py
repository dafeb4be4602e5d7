"""The forms and values that labels of other programs have: taken as they are meant, or refused in one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from helpers import ball, make_affine, make_grid, slicer, smooth_noise, to_sitk, write
from regzoo.errors import RegZooError
from regzoo.spatial import Grid, label_values, read_label_file, to_channels

SHAPE = (12, 10, 8)
AFFINE = make_affine(SHAPE, (1.6, 1.2, 2.0), (5, 0, 10), center=(3, 4, 5))
IMAGE = Grid(SHAPE, AFFINE)
ORGAN, NODULE = ball(SHAPE, (6, 5, 4), 3) > 0, ball(SHAPE, (6, 5, 4), 1) > 0
MAP = (ORGAN.astype(np.uint8) + NODULE).astype(np.uint8)


def scaled(path: Path, raw: np.ndarray, slope: float) -> str:
    image = nib.Nifti1Image(raw, AFFINE)
    image.header.set_slope_inter(slope, 0)
    with path.open("wb") as stream:
        image.header.write_to(stream)
        stream.write(bytes(352 - stream.tell()) + raw.tobytes(order="F"))
    return str(path)


NEARLY: dict[str, tuple[Any, list[int]]] = {
    "resampled in float": (MAP * np.float32(1 + 1.5e-5), [1, 2]),
    "a little less": (ORGAN * np.float32(0.9999), [1]),
    "a little more": (ORGAN * np.float32(1.0001), [1]),
    "a little below zero": (MAP - np.float32(5e-4), [1, 2]),
    "float": (MAP.astype(np.float64), [1, 2]),
    "uint64": (MAP.astype(np.uint64), [1, 2]),
    "255": (ORGAN.astype(np.uint8) * 255, [255]),
    "large and sparse": (np.select([MAP == 1, MAP == 2], [7, 14175]).astype(np.int32), [7, 14175]),
}


@pytest.mark.parametrize("what", NEARLY)
def test_values_near_whole_numbers_are_those_numbers(what: str, tmp_path: Path) -> None:
    array, values = NEARLY[what]
    nib.save(nib.Nifti1Image(array, AFFINE, dtype=array.dtype), tmp_path / "label.nii.gz")
    label = read_label_file(tmp_path / "label.nii.gz", IMAGE)
    assert label.is_map and label.axes == 3 and label_values(label.volume) == values
    truth = [ORGAN] if len(values) == 1 else [MAP == 1, MAP == 2]
    np.testing.assert_array_equal(to_channels(label.volume, values).numpy(), truth)


def test_a_scale_in_the_header_that_gives_whole_numbers(tmp_path: Path) -> None:
    label = read_label_file(scaled(tmp_path / "label.nii", MAP * np.uint8(100), 0.01), IMAGE)
    np.testing.assert_array_equal(label.volume[0].numpy(), MAP)
    with pytest.raises(RegZooError, match=r"intensities, not labels: 1\.00392 is not a whole number; give a mask"):
        read_label_file(scaled(tmp_path / "label.nii", np.array([0, 128, 255], np.uint8)[MAP], 1 / 127.5), IMAGE)


@pytest.mark.parametrize("top", [1.0, 0.9999, 1.0005])
def test_soft_masks_are_cut_at_one_half(top: float, tmp_path: Path) -> None:
    soft = smooth_noise(SHAPE, 1, 0, top)
    label = read_label_file(write(tmp_path / "soft.nii.gz", soft, AFFINE), IMAGE)
    np.testing.assert_array_equal(label.volume[0].numpy(), soft >= 0.5)


REFUSED: dict[str, tuple[np.ndarray, list[str]]] = {
    "image": (smooth_noise(SHAPE, 1, 0), ["intensities", "is not a whole number; give a mask"]),
    "one value is off": (np.where(NODULE, np.float32(1.002), MAP), ["intensities", "1.002 is not a whole number"]),
    "minus one": (
        np.where(NODULE, -1, MAP.astype(np.int16)),
        ["negative values, such as -1, in 7 voxels", "from 0, which is"],
    ),
    "300 values": (
        np.arange(960, dtype=np.int16).reshape(SHAPE) % 301,
        ["holds 300 different values, more than the 256"],
    ),
    "a CT": (np.arange(960, dtype=np.int16).reshape(SHAPE) - 500, ["holds 959 different values", "not an image"]),
    "too large": (MAP * np.int64(16777216), ["label value 33554432, which is too large", "number the labels from 1"]),
    "NaN": (np.where(NODULE, np.nan, MAP).astype(np.float32), ["NaN or infinity in 7 voxels", "to 0, the background"]),
    "channels first": (np.stack([ORGAN, NODULE]).astype(np.uint8), ["first axis (2×12×10×8)", "the last axis"]),
    "one channel first": (ORGAN[None].astype(np.uint8), ["first axis (1×12×10×8)", "the last axis"]),
    "maps in volumes": (
        np.stack([ORGAN, MAP], -1).astype(np.uint8),
        ["volume 2 holds the values 1, 2", "one mask per"],
    ),
    "intensities in volumes": (np.stack([smooth_noise(SHAPE, 1, 0)] * 2, -1), ["intensities"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_values_and_forms_are_refused_by_name(what: str, tmp_path: Path) -> None:
    array, words = REFUSED[what]
    nib.save(nib.Nifti1Image(array, AFFINE, dtype=array.dtype), tmp_path / "label.nii.gz")
    with pytest.raises(RegZooError) as caught:
        read_label_file(tmp_path / "label.nii.gz", IMAGE)
    line = str(caught.value)
    assert line.startswith(str(tmp_path / "label.nii.gz")) and "\n" not in line
    assert all(word in line for word in words), line


@pytest.mark.parametrize(("last", "axes"), [((), 3), ((1,), 4), ((1, 1), 4)])
def test_a_map_may_be_the_only_volume_of_a_file(last: tuple[int, ...], axes: int, tmp_path: Path) -> None:
    label = read_label_file(write(tmp_path / "label.nii.gz", MAP.reshape(*SHAPE, *last), AFFINE), IMAGE)
    assert label.is_map and label.axes == axes and label.mask_values == []
    np.testing.assert_array_equal(label.volume[0].numpy(), MAP)


def test_masks_keep_in_mind_what_their_values_were(tmp_path: Path) -> None:
    stack = np.stack([ORGAN * 1, 0 * ORGAN, NODULE * 2, ORGAN * 0.7], -1).astype(np.float32)
    label = read_label_file(write(tmp_path / "label.nii.gz", stack, AFFINE), IMAGE)
    assert not label.is_map and label.axes == 4 and label.mask_values == [1, 1, 2, 1]
    np.testing.assert_array_equal(label.volume.numpy(), [ORGAN, 0 * ORGAN, NODULE, ORGAN])
    files = [write(tmp_path / f"{i}.nii", a, AFFINE) for i, a in enumerate((ORGAN * np.uint8(255), stack[..., 2:]))]
    label = read_label_file(files, IMAGE)
    assert not label.is_map and label.axes == 4 and label.mask_values == [255, 2, 1]
    np.testing.assert_array_equal(label.volume.numpy(), [ORGAN, NODULE, ORGAN])
    files.append(write(tmp_path / "map.nii", MAP, AFFINE))
    with pytest.raises(RegZooError, match=r"map\.nii: holds the values 1, 2, but a mask has one value; give one mask"):
        read_label_file(files, IMAGE)


def test_the_masks_of_a_list_lie_on_one_grid(tmp_path: Path) -> None:
    shifted = AFFINE.copy()
    shifted[:3, 3] += 10
    first, second = (write(tmp_path / f"{n}.nii", ORGAN * 1.0, a) for n, a in (("a", AFFINE), ("b", shifted)))
    for other in (second, write(tmp_path / "c.nii", ORGAN[1:] * 1.0, AFFINE)):
        with pytest.raises(RegZooError, match=r"lies on a different grid from .*a\.nii; resample all masks") as caught:
            read_label_file([first, first, other])
        assert str(caught.value).startswith(str(other))


@pytest.mark.parametrize(("shift", "fits"), [(0.1, True), (0.3, False)])
def test_a_label_may_lie_a_tenth_of_a_voxel_away(shift: float, fits: bool, tmp_path: Path) -> None:
    grid = make_grid(SHAPE, (1.6, 1.6, 1.6))
    affine = grid.affine.copy()
    affine[:3, 3] += shift
    path = write(tmp_path / "label.nii.gz", MAP, affine)
    if fits:
        np.testing.assert_allclose(read_label_file(path, grid).volume.affine.numpy(), affine, atol=1e-5)
    else:
        with pytest.raises(RegZooError, match=r"elsewhere: .* by up to 0\.52 mm"):
            read_label_file(path, grid)


@pytest.mark.parametrize(("inside", "slices"), [(True, 8), (True, 1), (False, 8)])
def test_segmentations_of_slicer_come_cropped(inside: bool, slices: int, tmp_path: Path) -> None:
    drawn = MAP * (np.arange(8) < 4 + slices) * (np.arange(8) >= 5 - slices)
    low, high = (np.argwhere(drawn).min(0), np.argwhere(drawn).max(0) + 1)
    crop = drawn[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.uint8)
    affine = AFFINE.copy()
    affine[:3, 3] += AFFINE[:3, :3] @ (low if inside else low - 20)
    path = tmp_path / "Segmentation.seg.nrrd"
    sitk.WriteImage(to_sitk(crop, affine), str(path))
    if inside:
        label = read_label_file(path, IMAGE)
        np.testing.assert_array_equal(label.volume[0].numpy(), drawn)
        np.testing.assert_allclose(label.volume.affine.numpy(), AFFINE, atol=1e-5)
    else:
        with pytest.raises(RegZooError, match="voxels, but its image has"):
            read_label_file(path, IMAGE)
    with pytest.raises(RegZooError, match=r"voxels, but its image has|2-D image"):
        read_label_file(path.rename(tmp_path / "Segmentation.nrrd"), IMAGE)


def test_overlapping_segments_of_slicer(tmp_path: Path) -> None:
    """Three segments on two layers, cropped; the first two share a layer."""
    masks = np.zeros((3, *IMAGE.shape), bool)
    masks[0, 2:4, 2:4, 2:4] = masks[1, 4:6, 2:4, 2:4] = masks[2, 3:5, 2:4, 2:4] = True
    layers = np.stack([masks[0] + 2 * masks[1], 5 * masks[2]], -1)[2:6, 2:4, 2:4]
    affine = AFFINE.copy()
    affine[:3, 3] += AFFINE[:3, :3] @ [2, 2, 2]
    entries = [
        f"Segment{number}_{key}:={value}"
        for number, segment in enumerate([("gland", 0, 1), ("Harnröhre", 0, 2), ("cyst", 1, 5)])
        for key, value in zip(("Name", "Layer", "LabelValue"), segment, strict=True)
    ]
    path = slicer(tmp_path / "a.seg.nrrd", layers, affine, *entries)
    label = read_label_file(path, IMAGE)
    np.testing.assert_array_equal(label.volume.numpy(), masks)
    assert (label.is_map, label.mask_values) == (False, [1, 2, 5])
    assert label.names == {1: "gland", 2: "Harnröhre", 3: "cyst"}
    np.testing.assert_allclose(label.volume.affine.numpy(), AFFINE, atol=1e-5)
    slicer(path, layers, affine, *entries[:-2], "Segment2_Layer:=2", "Segment2_LabelValue:=5")
    with pytest.raises(RegZooError, match="has no layer 2 for its segment 'cyst'; save it again"):
        read_label_file(path, IMAGE)
    slicer(path, layers, affine, *entries[:-1], "Segment2_LabelValue:=five")
    with pytest.raises(RegZooError, match=r"unclear header \(the layer or value of a segment"):
        read_label_file(path, IMAGE)


def test_segments_on_one_layer_are_a_map_with_names(tmp_path: Path) -> None:
    names = [f"Segment{number}_{key}" for number in (0, 1) for key in ("Name:=organ {}", "LabelValue:={}")]
    entries = [name.format(7 if name.startswith("Segment0") else 3) for name in names]
    path = slicer(tmp_path / "a.seg.nrrd", MAP, AFFINE, *entries)
    label = read_label_file(path, IMAGE)
    np.testing.assert_array_equal(label.volume[0].numpy(), MAP)
    assert label.is_map and label.names == {7: "organ 7", 3: "organ 3"}


def test_old_segmentations_have_a_layer_for_each_segment(tmp_path: Path) -> None:
    layers = np.stack([MAP == 1, MAP > 0], -1)
    path = slicer(tmp_path / "a.seg.nrrd", layers, AFFINE, "Segment0_Name:=a", "Segment1_Name:=b")
    label = read_label_file(path, IMAGE)
    np.testing.assert_array_equal(label.volume.numpy(), np.moveaxis(layers, -1, 0))
    assert label.names == {1: "a", 2: "b"}
