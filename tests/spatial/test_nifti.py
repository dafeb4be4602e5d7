"""Where a NIfTI lies, against nibabel and SimpleITK, over headers that agree with themselves and that do not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from helpers import make_affine
from regzoo.errors import RegZooError
from regzoo.spatial import Grid, read_image, read_label_file, write_nifti
from regzoo.spatial.nifti import itk_affine
from regzoo.spatial.reading import read_header, read_volume
from regzoo.spatial.writing import write_image

SHAPE = (9, 8, 7)
SIZE = (1.5, 2.0, 3.0)
SFORM = make_affine(SHAPE, SIZE, (10, 20, 30), flips=(-1, -1, 1), center=(30, -40, 50))
QFORMS = {
    "same": SFORM,
    "moved": make_affine(SHAPE, SIZE, (10, 20, 30), flips=(-1, -1, 1), center=(30, -28, 50)),
    "turned": make_affine(SHAPE, SIZE, (10, 20, 42), flips=(-1, -1, 1), center=(30, -40, 50)),
    "mirrored": make_affine(SHAPE, SIZE, (10, 20, 30), flips=(1, -1, 1), center=(30, -40, 50)),
}
VOXELS = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
CORNERS = np.array(list(itertools.product(*[(0, n - 1) for n in SHAPE])))


def save(
    path: Path,
    sform: np.ndarray = SFORM,
    qform: np.ndarray = SFORM,
    codes: tuple[int, int] = (1, 1),
    array: np.ndarray = VOXELS,
    unit: str = "mm",
    **fields: Any,
) -> Path:
    """A file whose header has fields of one's own, written over those of nibabel."""
    image = nib.Nifti1Image(array, sform)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    raw = bytearray(path.read_bytes())
    header = np.frombuffer(raw[:348], image.header.template_dtype).copy()
    for key, value in ({"sform_code": codes[0], "qform_code": codes[1]} | fields).items():
        header[key] = value
    path.write_bytes(header.tobytes() + bytes(raw[348:]))
    return path


def pixdim(*values: float) -> np.ndarray:
    return np.array([[*values, *[0] * (8 - len(values))]], np.float32)


def sitk_affine(path: Path) -> np.ndarray:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(reader.GetDirection(), (-1, int(len(reader.GetDirection()) ** 0.5)))[:3, :3]
    lps[:3, :3] *= reader.GetSpacing()[:3]
    lps[:3, 3] = reader.GetOrigin()[:3]
    return np.diag([-1, -1, 1, 1]) @ lps


def apart(one: np.ndarray, other: np.ndarray) -> float:
    places = [nib.affines.apply_affine(affine, CORNERS) for affine in (one, other)]
    return float(np.linalg.norm(places[0] - places[1], axis=-1).max())


@pytest.mark.parametrize("qform", QFORMS)
@pytest.mark.parametrize("codes", list(itertools.product((0, 1, 2, 4), (0, 1, 3))))
@pytest.mark.parametrize("sizes", [SIZE, (1, 1, 1), (1.5, -2, 3), (0, 0, 0)])
def test_one_rule_for_every_header(
    qform: str, codes: tuple[int, int], sizes: tuple[float, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Our place is nibabel's; the line says how far away ITK's is, and is there if that is anywhere else."""
    sign = 1.0 if np.linalg.det(QFORMS[qform][:3, :3]) > 0 else -1.0
    path = save(tmp_path / "image.nii", qform=QFORMS[qform], codes=codes, pixdim=pixdim(sign, *sizes))
    theirs = sitk_affine(path)
    np.testing.assert_allclose(itk_affine(nib.Nifti1Header(path.read_bytes()[:348], check=False))[0], theirs, atol=2e-5)
    if codes[0] == 0 and not all(sizes):
        with pytest.raises(RegZooError, match="no voxel size"):
            read_image(path)
        return
    ours = read_image(path).affine.numpy()
    np.testing.assert_allclose(ours, nib.load(path).affine, atol=1e-5)
    away = apart(ours, theirs)
    if away > 0.1:
        assert f"up to {away:.3g} mm away" in caplog.text
    elif codes[0] and codes[1] and qform != "same":
        assert "its sform and qform differ" in caplog.text
    if "\n" in caplog.text:
        assert f"{path}: " in caplog.messages[0]
        with pytest.raises(RegZooError) as error:
            read_image(path, strict_headers=True)
        assert str(error.value) == caplog.messages[0]
    else:
        assert apart(ours, theirs) < 1e-3
        read_image(path, strict_headers=True)


@pytest.mark.parametrize("angles", [(0, 0, 0), (0, 90, 0), (90, 0, 0), (0, 0, 15), (10, 20, 30)])
@pytest.mark.parametrize("flips", [(-1, -1, 1), (-1, 1, 1)])
@pytest.mark.parametrize("code", [1, 2, 4])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_line_names_the_reader_that_places_it_elsewhere(
    angles: tuple[float, ...], flips: tuple[int, ...], code: int, sign: float, tmp_path: Path
) -> None:
    """With a wrong sign in pixdim[0], the qform mirrors the last axis. ITK then takes the one or the other."""
    sform = make_affine(SHAPE, SIZE, angles, flips=flips, center=(30, -40, 50))
    path = save(tmp_path / "image.nii", sform, sform, (code, 1), pixdim=pixdim(sign, *SIZE))
    volume, by_itk = read_volume(path), apart(sform, sitk_affine(path))
    np.testing.assert_allclose(volume.affine, sform, atol=1e-5)
    away = apart(sform, nib.load(path).get_qform())
    assert (volume.doubt is None) == (away < 0.1)
    if volume.doubt:
        line = volume.doubt[0]
        assert f"up to {away:.3g} mm" in line
        assert by_itk < 0.1 or "the sform is used here" in line
        assert not (by_itk < 0.1 and line.startswith("ITK"))
        assert ("used as in ITK" in line) == (code == 1)


ROWS: dict[str, tuple[dict[str, Any], str | None]] = {
    # what the header says: the place is that of the sform or qform, and the line, if there is one
    "NaN in the sform": ({"srow_x": [[np.nan] * 4]}, "its sform cannot be inverted, so its qform is used"),
    "no sform, whatever its code": (
        {f"srow_{axis}": [[0] * 4] for axis in "xyz"},
        "its sform cannot be inverted, so its qform is used",
    ),
    "a pixdim of 1 mm": ({"pixdim": pixdim(1, 1, 1, 1)}, "its pixdim is not the voxel size of its sform"),
    "NaN as pixdim": ({"pixdim": pixdim(1, np.nan, np.nan, np.nan)}, "its pixdim is not the voxel size of its sform"),
    "a long quaternion": ({"codes": (0, 1), "quatern_b": 0.6, "quatern_c": 0.6, "quatern_d": 0.5292}, None),
    "a scale of NaN": ({"scl_slope": np.nan, "scl_inter": np.nan}, "the scale of its values is nan"),
    "an infinite scale": ({"scl_slope": np.inf}, "the scale of its values is inf"),
    "a scale of 0": ({"scl_slope": 0, "scl_inter": 50}, None),
    "one volume of four axes": ({"dim": [[4, *SHAPE, 1, 1, 1, 1]], "pixdim": pixdim(1, *SIZE, 2.5)}, None),
}


@pytest.mark.parametrize("row", ROWS)
def test_odd_headers(row: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields, line = ROWS[row]
    path = save(tmp_path / "image.nii", **fields)
    image = read_image(path)
    if row == "a long quaternion":  # nibabel refuses it
        np.testing.assert_allclose(image.affine.numpy(), sitk_affine(path), atol=1e-4)
    else:
        np.testing.assert_allclose(image.affine.numpy(), SFORM, atol=1e-4)
    np.testing.assert_array_equal(image[0].numpy(), VOXELS)
    assert [record.levelname for record in caplog.records] == (["WARNING"] if line else [])
    assert (line or "") in caplog.text


def test_a_sign_that_is_not_1_is_told_of(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", codes=(0, 1), pixdim=pixdim(-2, *SIZE))
    volume = read_volume(path)
    assert apart(volume.affine, sitk_affine(path)) < 0.01
    assert volume.doubt is not None and "pixdim[0] is -2" in volume.doubt[0]
    assert apart(nib.load(path).affine, volume.affine) > 10


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3), ("mm", 1), ("unknown", 1)])
@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (1, 0), (0, 0)])
def test_units(unit: str, factor: float, codes: tuple[int, int], tmp_path: Path) -> None:
    scale = np.diag([factor, factor, factor, 1])
    path = save(tmp_path / "image.nii", scale @ SFORM, scale @ SFORM, codes, unit=unit)
    affine = read_image(path).affine.numpy()
    expected = np.diag([1 / factor, 1 / factor, 1 / factor, 1]) @ nib.load(path).affine
    np.testing.assert_allclose(affine, expected, atol=1e-4)
    if any(codes):
        np.testing.assert_allclose(affine, sitk_affine(path), atol=1e-4)


def test_a_length_is_the_same_in_every_unit(tmp_path: Path) -> None:
    affine = np.diag([1.6, 1.6, 1.6, 1])
    affine[:3, 3] = -35.6, -32.2, -27.0
    found = []
    for unit, factor in (("mm", 1), ("meter", 1e-3), ("micron", 1e3)):
        scaled = np.diag([factor, factor, factor, 1]) @ affine
        found.append(read_image(save(tmp_path / "image.nii", scaled, scaled, unit=unit)).affine.numpy())
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 1)])
def test_images_and_labels_of_four_axes_lie_alike(codes: tuple[int, int], tmp_path: Path) -> None:
    """MONAI takes the translation for a voxel size, and the unused qform for the affine, if there are four axes."""
    affine = np.diag([1.6, 1.6, 1.6, 1.0])
    affine[:3, 3] = 1.6
    unused = affine if codes[1] else np.diag([1.6, 1.6, 1.6, 1.0])
    masks = np.stack([VOXELS > 0, VOXELS > 1], -1).astype(np.float64)
    image = read_image(save(tmp_path / "image.nii", affine, unused, codes))
    label = read_label_file(save(tmp_path / "label.nii", affine, unused, codes, masks), Grid.of(image))
    np.testing.assert_allclose(label.volume.affine.numpy(), affine, atol=1e-6)
    np.testing.assert_array_equal(label.volume.numpy(), masks.transpose(3, 0, 1, 2))


def sheared(amount: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 1] = amount
    return matrix @ SFORM


@pytest.mark.parametrize("amount", [0.05, 0.5])
def test_a_sheared_grid_is_refused(amount: float, tmp_path: Path) -> None:
    path = save(tmp_path / "image.nii", sheared(amount))
    for read in (read_image, read_label_file):
        with pytest.raises(RegZooError, match="its axes are not at right angles"):
            read(path)
    with pytest.raises(RegZooError, match=r"sheared grid.*; resample"):
        write_nifti(tmp_path / "out.nii", VOXELS, sheared(amount))
    for form in (".nrrd", ".mha"):
        with pytest.raises(RegZooError, match=r"sheared grid.*; resample"):
            write_image(tmp_path / f"out{form}", VOXELS, sheared(amount))
    assert [file.name for file in tmp_path.iterdir()] == ["image.nii"]


def test_rounding_is_not_a_shear(tmp_path: Path) -> None:
    """Directions of five decimals: the grid is straightened by less than anyone can see, and ITK agrees."""
    path = save(tmp_path / "image.nii", sheared(1e-4), codes=(1, 0))
    grid = Grid.of(read_image(path))
    directions = grid.affine[:3, :3] / grid.spacing
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
    assert apart(grid.affine, sitk_affine(path)) < 0.01


@pytest.mark.parametrize("angles", [(0, 0, 0), (0, 0, 0.1), (3, 5, 179.9), (0.1, 0.2, 180), (33, 44, 55)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (-1, 1, 1)])
def test_what_is_written_is_read_in_one_way(
    angles: tuple[float, ...], flips: tuple[int, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shape = (500, 400, 2)
    affine = make_affine(shape, (0.7, 0.8, 300), angles, flips=flips, center=(100, -200, 700))
    write_nifti(tmp_path / "image.nii", np.arange(400000, dtype=np.float32).reshape(shape), affine)
    image = nib.load(tmp_path / "image.nii")
    grid = Grid(shape, affine)
    places = [image.affine, image.get_sform(), sitk_affine(tmp_path / "image.nii")]
    if int(image.header["qform_code"]):
        places.append(image.get_qform())
    assert max(grid.distance(Grid(shape, place)) for place in places) < 1e-3
    assert grid.distance(Grid.of(read_image(tmp_path / "image.nii", strict_headers=True))) < 1e-3
    assert not caplog.records


def test_the_grid_of_a_network_is_never_sheared() -> None:
    network = Grid(SHAPE, sheared(0.5)).network_grid((2, 2, 2), (10, 10, 10))
    np.testing.assert_allclose(network.affine[:3, :3].T @ network.affine[:3, :3], 4 * np.eye(3), atol=1e-9)


@pytest.mark.parametrize(
    ("dim", "words"),
    [
        ((3, 9, 8, 70, 1, 1, 1, 1), "truncated"),
        ((3, 30000, 30000, 30000, 1, 1, 1, 1), "truncated"),
        ((3, -9, 8, 7, 1, 1, 1, 1), "impossible sizes"),
        ((3, 0, 8, 7, 1, 1, 1, 1), "impossible sizes"),
        ((9, 9, 8, 7, 1, 1, 1, 1), "impossible sizes"),
        ((0, 9, 8, 7, 1, 1, 1, 1), "impossible sizes"),
        ((-3, 9, 8, 7, 1, 1, 1, 1), "impossible sizes"),
    ],
)
@pytest.mark.parametrize("read", [read_volume, read_header])
def test_wrong_sizes_are_refused_from_the_header(
    dim: tuple[int, ...], words: str, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    with pytest.raises(RegZooError, match=words):
        read(save(tmp_path / "image.nii", dim=[dim]))
