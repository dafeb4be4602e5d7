"""Reading images and labels as they come."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from helpers import make_affine, smooth_noise, to_sitk, write
from regzoo.errors import RegZooError
from regzoo.spatial import label_values, read_image, read_label_file, to_channels
from regzoo.spatial.volumes import even_step

SHAPE = (7, 6, 5)
AFFINE = make_affine(SHAPE, (1, 2, 3), (10, 20, 30), (1, 0, 2), (1, -1, 1), (5, 6, 7))
WHOLE = np.arange(-100, 110).reshape(SHAPE)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_values_do_not_depend_on_the_type_of_the_file(dtype: type, tmp_path: Path) -> None:
    image = read_image(write(tmp_path / "image.nii.gz", WHOLE.astype(dtype), AFFINE))
    assert image.shape == (1, *SHAPE)
    np.testing.assert_array_equal(image[0].numpy(), WHOLE)
    np.testing.assert_allclose(image.affine.numpy(), AFFINE, atol=1e-5)


def test_scaled_integers_come_in_physical_values(tmp_path: Path) -> None:
    file = nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE)
    file.header.set_slope_inter(0.5, -10)
    raw = WHOLE.astype(np.int16)
    with (tmp_path / "scaled.nii").open("wb") as stream:
        file.header.write_to(stream)
        stream.write(b"\0" * (352 - stream.tell()))
        stream.write(raw.tobytes(order="F"))
    image = read_image(tmp_path / "scaled.nii")
    np.testing.assert_allclose(image[0].numpy(), raw * 0.5 - 10)


def test_trailing_axes_of_one_voxel_are_dropped(tmp_path: Path) -> None:
    image = read_image(write(tmp_path / "image.nii", WHOLE.astype(np.int16)[..., None, None]))
    np.testing.assert_array_equal(image[0].numpy(), WHOLE)


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_other_formats_land_in_the_same_world(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    sitk.WriteImage(to_sitk(smooth_noise(SHAPE, 1, 0), AFFINE), str(path))
    image = read_image(path)
    np.testing.assert_allclose(image.affine.numpy(), AFFINE, atol=1e-5)
    np.testing.assert_allclose(image[0].numpy(), smooth_noise(SHAPE, 1, 0), atol=1e-4)


def test_label_forms(tmp_path: Path) -> None:
    masks = np.zeros((*SHAPE, 3), np.uint8)
    masks[1:4, 1:3, 1:3, 0], masks[5, 4, 3, 2] = 1, 1
    four = read_label_file(write(tmp_path / "four.nii.gz", masks))
    assert not four.is_map
    np.testing.assert_array_equal(four.volume.numpy(), masks.transpose(3, 0, 1, 2))
    single = read_label_file(write(tmp_path / "mask.nii.gz", masks[..., 0] * np.uint8(1)))
    assert label_values(single.volume) == [1]
    full = read_label_file(write(tmp_path / "map.nii.gz", (masks * [4, 0, 9]).sum(-1).astype(np.int16)))
    assert full.is_map
    assert label_values(full.volume) == [4, 9]
    np.testing.assert_array_equal(to_channels(full.volume, (4, 7, 9)).numpy(), masks.transpose(3, 0, 1, 2))
    files = [write(tmp_path / f"{i}.nii.gz", masks[..., i] * np.uint8(255)) for i in (0, 2)]
    several = read_label_file(files)
    np.testing.assert_array_equal(several.volume.numpy(), masks.transpose(3, 0, 1, 2)[[0, 2]])


def test_half_a_voxel_belongs_to_a_soft_mask(tmp_path: Path) -> None:
    soft = np.zeros(SHAPE, np.float32)
    soft[1, 1, 1:4] = 0.4, 0.5, 1.0
    label = read_label_file(write(tmp_path / "soft.nii.gz", soft))
    assert label.volume[0, 1, 1].tolist() == [0, 0, 1, 1, 0]


def test_negative_labels_and_masks_of_traces(tmp_path: Path) -> None:
    with pytest.raises(RegZooError, match="negative"):
        read_label_file(write(tmp_path / "negative.nii.gz", WHOLE.clip(-3, 3).astype(np.int16)))
    with pytest.raises(RegZooError, match="no labelled voxel"):
        read_label_file(write(tmp_path / "traces.nii.gz", smooth_noise(SHAPE, 1, 0, top=0.3)))


def test_a_header_without_orientation_is_remarked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_image(write(tmp_path / "good.nii", smooth_noise(SHAPE, 1, 0), AFFINE))
    assert not caplog.records
    image = nib.Nifti1Image(smooth_noise(SHAPE, 1, 0), None)
    nib.save(image, tmp_path / "lost.nii")
    read_image(tmp_path / "lost.nii")
    assert "no orientation" in caplog.text
    assert str(tmp_path / "lost.nii") in caplog.text


def test_an_image_is_no_label(tmp_path: Path) -> None:
    path = write(tmp_path / "image.nii.gz", smooth_noise(SHAPE, 1, 0))
    with pytest.raises(RegZooError, match="intensities"):
        read_label_file(path)


def test_masks_of_a_list_lie_on_one_grid(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.nii", np.ones((n, 6, 5), np.uint8)) for n in (7, 8)]
    with pytest.raises(RegZooError, match="a different grid"):
        read_label_file(files)


@pytest.mark.parametrize("name", ["image.nii.gz", "image.nrrd", "image.mha", "scaled.nii"])
def test_numbers_beyond_float32_are_not_called_infinite(name: str, tmp_path: Path) -> None:
    values = np.where(WHOLE < -98, -1e300, WHOLE).astype(np.float64)
    path = tmp_path / name
    if name == "scaled.nii":
        file = nib.Nifti2Image(np.where(values < -98, 1000, 0).astype(np.int16), AFFINE)
        nib.save(file, path)
        content = bytearray(path.read_bytes())
        content[176:192] = np.array([1e300, 0.0]).tobytes()  # scl_slope and scl_inter
        path.write_bytes(content)
    elif name == "image.nii.gz":
        write(path, values, AFFINE)
    else:
        sitk.WriteImage(to_sitk(values, AFFINE), str(path))
    line = f"{path}: holds numbers beyond the range of float32, 3.4e38 (2 of them); check the scale"
    for read in (read_image, read_label_file, lambda path: read_image(path, allow_nan=True)):
        with pytest.raises(RegZooError) as caught:
            read(path)
        assert str(caught.value).startswith(line)
    infinite = np.where(WHOLE < -98, np.inf, WHOLE).astype(np.float64)
    sitk.WriteImage(to_sitk(infinite, AFFINE), str(tmp_path / "infinite.nrrd"))
    with pytest.raises(RegZooError, match="holds NaN or infinity in 2 voxels"):
        read_image(tmp_path / "infinite.nrrd")


@pytest.mark.parametrize("shape", [(64, 64, 8), (32, 64, 30), (64, 60, 97), (128, 32, 24), (5, 4, 3)])
def test_a_sample_of_voxels_comes_from_all_slices_alike(shape: tuple[int, int, int]) -> None:
    length = int(np.prod(shape))
    sample = np.arange(0, length, even_step(length, 3000))
    assert min(length, 1500) <= len(sample) <= 6000
    for size, place in zip(shape, np.unravel_index(sample, shape), strict=True):
        counts = np.bincount(place, minlength=size)
        assert counts.min() > 0.9 * counts.max() - 2
