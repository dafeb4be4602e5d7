"""Series of DICOM files against the volumes that were written and against SimpleITK, and series that are not a grid."""

from __future__ import annotations

import errno
import itertools
import locale
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import (
    JPEG_2000,
    RTSTRUCT,
    SEG,
    Elements,
    enhanced_elements,
    plane,
    slice_elements,
    write_dicom,
    write_series,
)
from helpers import from_sitk, make_affine, write
from regzoo.datasets.records import check_records
from regzoo.errors import RegZooError
from regzoo.spatial import read_image
from regzoo.spatial.reading import read_header

SHAPE = (9, 8, 7)
AFFINES = {
    "axial": make_affine(SHAPE, (1.5, 2, 3), flips=(-1, -1, 1)),
    "oblique": make_affine(SHAPE, (1.5, 2, 3), (10, 20, 30), (2, 0, 1), (1, -1, 1), (5, 6, 7)),
    "sagittal": make_affine(SHAPE, (0.7, 0.9, 4.4), (0, 5, 0), (1, 2, 0), (-1, -1, 1), (50, -60, 70)),
}
AFFINE = AFFINES["oblique"]
VOXELS = np.random.default_rng(0).integers(-500, 500, SHAPE).astype(np.int16)


def check(path: Path | str, values: np.ndarray = VOXELS, affine: np.ndarray = AFFINE) -> None:
    image = read_image(path)
    mirror = np.eye(4)  # slices are read along the normal of rows and columns, as SimpleITK does
    if np.linalg.det(affine[:3, :3]) < 0:
        values, mirror[2, 2], mirror[2, 3] = values[:, :, ::-1], -1, SHAPE[2] - 1
    np.testing.assert_allclose(image[0].numpy(), values, atol=1e-4)
    np.testing.assert_allclose(image.affine.numpy(), affine @ mirror, atol=1e-5)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_a_series_is_the_volume_that_was_written(affine: np.ndarray, tmp_path: Path) -> None:
    files = write_series(tmp_path / "series", VOXELS, affine)
    (tmp_path / "series" / "README.txt").write_text("slices")
    for path in (tmp_path / "series", tmp_path, files[2]):
        check(path, VOXELS, affine)
    header = read_header(tmp_path / "series")
    assert header.shape == SHAPE and sorted(header.files) == sorted(files)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_a_series_lies_where_simpleitk_places_it(affine: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path, VOXELS, affine)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    by_itk = sitk.ReadImage(names)
    ours = read_image(tmp_path)
    np.testing.assert_array_equal(ours[0].numpy(), from_sitk(by_itk))
    for corner in itertools.product((0, 8), (0, 7), (0, 6)):
        expected = np.array(by_itk.TransformIndexToPhysicalPoint(corner)) * (-1, -1, 1)
        np.testing.assert_allclose(ours.affine.numpy() @ [*corner, 1], [*expected, 1], atol=1e-4)


def test_each_slice_has_its_own_rescaling(tmp_path: Path) -> None:
    """As in PET."""
    for index in range(SHAPE[2]):
        rescale: Elements = {0x00281052: ("DS", [-10.5]), 0x00281053: ("DS", [0.25 * (index + 1)])}
        write_dicom(tmp_path / f"{index}", slice_elements(VOXELS, AFFINES["axial"], index) | rescale)
    check(tmp_path, VOXELS * 0.25 * np.arange(1, 8) - 10.5, AFFINES["axial"])


@pytest.fixture
def kept_locale() -> Iterator[None]:
    """SimpleITK, which writes the compressed files, sets the locale of the process to C."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.mark.usefixtures("kept_locale")
@pytest.mark.parametrize("compression", ["JPEG2000", "JPEG"])
def test_compressed_files(compression: str, tmp_path: Path) -> None:
    for file in write_series(tmp_path / "plain", VOXELS, AFFINE):
        image, writer = sitk.ReadImage(str(file)), sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetUseCompression(True)
        writer.SetCompressor(compression)
        writer.SetFileName(str(tmp_path / f"{file.name}.dcm"))
        writer.Execute(image)
        file.unlink()
    check(tmp_path)


def test_one_of_several_series(tmp_path: Path) -> None:
    other = make_affine((*SHAPE[:2], 4), (1, 1, 5))
    write_series(tmp_path / "a", VOXELS, AFFINE, "1.2.3.4")
    write_series(tmp_path / "b", VOXELS[:, :, :4], other, "1.2.3.12")
    structures = {tag: value for tag, value in slice_elements(VOXELS, AFFINE, 0, "1.2.3.5").items() if tag < 0x280000}
    write_dicom(tmp_path / "rt.dcm", structures | {0x00080016: ("UI", RTSTRUCT)})
    write_dicom(tmp_path / "seg.dcm", enhanced_elements(VOXELS, AFFINE, "1.2.3.6") | {0x00080016: ("UI", SEG)})
    with pytest.raises(RegZooError) as caught:
        read_image(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: holds 2 series: #4 't2 axial' (MR, 9×8×7), #12 't2 axial' (MR, 9×8×4); "
        f"name one, such as {tmp_path}#4"
    )
    check(f"{tmp_path}#4")
    check(f"{tmp_path}#1.2.3.4")
    check(tmp_path / "a")
    assert read_header(f"{tmp_path}#12").shape == (9, 8, 4)
    with pytest.raises(RegZooError, match=r"holds 2 series, none of them with the number 7: #4 .*name one"):
        read_image(f"{tmp_path}#7")


def test_a_subfolder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the slices would be a volume too."""
    files, scandir = write_series(tmp_path / "a", VOXELS, AFFINE), os.scandir
    (tmp_path / "b").mkdir()
    for file in files[4:]:
        file.rename(tmp_path / "b" / file.name)
    check(tmp_path)

    def denied(path: str) -> object:
        if Path(path).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(RegZooError, match=r"b: cannot be read \(permission denied\); check"):
        read_image(tmp_path)


def test_a_link_to_a_folder_is_read_if_it_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "archive" / "series", VOXELS, AFFINE)
    (tmp_path / "p01").mkdir()
    (tmp_path / "p01" / "CT").symlink_to(tmp_path / "archive")
    check(tmp_path / "p01" / "CT")
    with pytest.raises(RegZooError, match="p01: is a folder, not an image; a link to a folder in it is not"):
        read_image(tmp_path / "p01")


def test_a_file_stands_for_its_whole_series(tmp_path: Path) -> None:
    """Also where half of it lies in a subfolder, which would be a volume without it too."""
    files = write_series(tmp_path, VOXELS, AFFINE)
    write_series(tmp_path / "other", VOXELS[:, :, :4], AFFINE, "1.2.3.12")
    (tmp_path / "b").mkdir()
    for file in files[4:]:
        file.rename(tmp_path / "b" / file.name)
    check(files[0])


def test_copies_of_a_series_are_not_taken_for_phases(tmp_path: Path) -> None:
    files = write_series(tmp_path, VOXELS, AFFINE)
    hidden = tmp_path / ".git" / "annex"
    write_series(hidden, VOXELS, AFFINE)
    check(tmp_path)
    write_series(tmp_path / "copy", VOXELS, AFFINE)
    with pytest.raises(RegZooError, match=r"holds an image twice, as \S*/(IM\d+) and \S*/copy/\1; move the copies out"):
        read_image(tmp_path)
    check(files[2])


def test_what_else_lies_below_a_named_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_series(tmp_path, VOXELS, AFFINE)
    (damaged := tmp_path / "other" / "IM.dcm").parent.mkdir()
    damaged.write_bytes(files[0].read_bytes()[:300])
    check(files[2])
    assert f"{damaged}: is a DICOM file that is truncated" in caplog.text and "passed over" in caplog.text
    with pytest.raises(RegZooError, match=r"other/IM\.dcm: is a DICOM file that is truncated"):
        read_image(tmp_path)
    monkeypatch.setattr("regzoo.spatial.dicom.MOST_FILES", len(files))
    caplog.clear()
    check(files[2])
    assert f"{tmp_path}: holds more than {len(files)} files; it was passed over" in caplog.text


def test_a_folder_with_the_mark_in_its_name(tmp_path: Path) -> None:
    write_series(tmp_path / "a#1", VOXELS, AFFINE)
    check(tmp_path / "a#1")
    check(f"{tmp_path / 'a#1'}#4")


def test_series_of_one_number_are_named_by_uid(tmp_path: Path) -> None:
    write_series(tmp_path / "a", VOXELS, AFFINE, "1.2.3.4")
    write_series(tmp_path / "b", VOXELS, AFFINE, "1.2.9.4")
    with pytest.raises(RegZooError, match=r"2 of them with the number 4: #1\.2\.3\.4 .*#1\.2\.9\.4 "):
        read_image(f"{tmp_path}#4")
    check(f"{tmp_path}#1.2.9.4")


def changed(folder: Path, index: int, *without: int, **other: object) -> Path:
    """A series of which one slice has other elements, or none of some."""
    files = write_series(folder / "s", VOXELS, AFFINE)
    elements = slice_elements(VOXELS, AFFINE, index) | other.get("elements", {})  # type: ignore[operator]
    write_dicom(files[index], {tag: value for tag, value in elements.items() if tag not in without})
    return folder / "s"


def moved(folder: Path, place: Callable[[int], float], sideways: float = 0) -> Path:
    """A series whose slices lie at other heights, or are shifted in their plane."""
    affine = AFFINE.copy()
    affine[:3, 2] += sideways * affine[:3, 1]
    for index in range(SHAPE[2]):
        elements = slice_elements(VOXELS, AFFINE, index)
        write_dicom(folder / "s" / f"{index}", elements | {0x00200032: ("DS", plane(affine, place(index))[3])})
    return folder / "s"


def cut(path: Path, length: int) -> Path:
    files = sorted(path.iterdir())
    files[3].write_bytes(files[3].read_bytes()[:length])
    return path


def without(folder: Path, index: int) -> Path:
    write_series(folder / "s", VOXELS, AFFINE)[index].unlink()
    return folder / "s"


def alone(folder: Path, elements: Elements, syntax: str = "1.2.840.10008.1.2.1") -> Path:
    return write_dicom(folder / "a.dcm", elements, syntax)


def slices(**changes: object) -> Elements:
    return slice_elements(VOXELS, AFFINE, 3)


TURNED: Elements = {0x00200037: ("DS", plane(AFFINES["axial"])[2])}
LARGER = {
    tag: value
    for tag, value in slice_elements(np.pad(VOXELS, 1), AFFINE, 3).items()
    if tag in (0x00280010, 0x00280011, 0x7FE00010)
}
COLOUR: Elements = {
    0x00280002: ("US", 3),
    0x00280004: ("CS", "RGB"),
    0x00280006: ("US", 0),
    0x00280100: ("US", 8),
    0x00280101: ("US", 8),
    0x00280102: ("US", 7),
    0x00280103: ("US", 0),
    0x7FE00010: ("OW", bytes(9 * 8 * 3)),
}
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a tilted gantry": (lambda d: moved(d, float, 0.5), r"sideways by up to 6 mm, as with a gantry tilted by 18\.4°"),
    "a missing slice": (lambda d: without(d, 3), r"lacks slices: 6 mm lie between IM\d+ and IM\d+, and 3 mm"),
    "uneven spacing": (lambda d: moved(d, lambda i: i + 0.2 * (i > 3)), r"unevenly spaced, by 3 to 3\.6 mm"),
    "two phases": (
        lambda d: moved(d, lambda i: 5 - i if i == 4 else i),
        "has two images at one position, 1 and 4; it may hold several",
    ),
    "one place": (lambda d: moved(d, lambda i: 0), "has two images at one position"),
    "mixed orientations": (lambda d: changed(d, 3, elements=TURNED), r"mixes images: IM\d+ is of another orientation"),
    "mixed sizes": (lambda d: changed(d, 3, elements=LARGER), r"mixes images: IM\d+ is of another size"),
    "no position": (lambda d: changed(d, 3, 0x00200032), r"IM\d+: its header gives no position \(0020,0032\)"),
    "no orientation": (lambda d: changed(d, 3, 0x00200037), r"gives no orientation \(0020,0037\)"),
    "no voxel size": (lambda d: changed(d, 3, 0x00280030), r"gives no voxel size \(0028,0030\)"),
    "a damaged position": (
        lambda d: changed(d, 3, elements={0x00200032: ("DS", "1\\nan\\0")}),
        r"gives no position \(0020,0032\)",
    ),
    "no voxels": (lambda d: changed(d, 3, 0x7FE00010), "truncated, damaged or without an image"),
    "a truncated slice": (lambda d: cut(changed(d, 3), -20), "image; .* or move it elsewhere if it belongs"),
    "half a header": (lambda d: cut(changed(d, 3), 300), "truncated, damaged or without an image"),
    "an empty slice": (lambda d: (cut(changed(d, 3), 0) / "x.dcm").touch() or d / "s", "is truncated, damaged"),  # type: ignore[func-returns-value]
    "an unknown compression": (
        lambda d: changed_syntax(d, "1.2.840.10008.1.2.4.201"),
        r"cannot be decoded \(transfer syntax 1\.2\.840\.10008\.1\.2\.4\.201\); decompress it",
    ),
    "damaged compression": (lambda d: changed_syntax(d, JPEG_2000), "cannot be decoded"),
    "an enhanced file": (lambda d: alone(d, enhanced_elements(VOXELS, AFFINE)), "holds 7 frames.*dcm2niix"),
    "a segmentation": (
        lambda d: alone(d, enhanced_elements(VOXELS, AFFINE) | {0x00080016: ("UI", SEG)}),
        "is a DICOM segmentation, not an image; in 3D Slicer",
    ),
    "structures": (lambda d: alone(d, slices() | {0x00080016: ("UI", RTSTRUCT)}), "is an RT structure set"),
    "a list of files": (
        lambda d: alone(d, slices() | {0x00080016: ("UI", "1.2.840.10008.1.3.10")}),
        "is a DICOMDIR.*name the folder",
    ),
    "only structures": (
        lambda d: alone(d, slices() | {0x00080016: ("UI", RTSTRUCT)}).parent,
        "holds no DICOM image; name",
    ),
    "colour": (lambda d: alone(d, slices() | COLOUR), "is a colour image"),
    "one slice": (lambda d: alone(d, slices()), "is a 2-D image"),
    "a name alone": (lambda d: named(d / "a.dcm"), "is truncated, damaged"),
    "no such folder": (lambda d: d / "s#4", "no such file"),
    "no DICOM files": (lambda d: named(d / "a.txt").parent, "is a folder, not an image"),
}


def named(path: Path) -> Path:
    path.write_text("slices " * 99)
    return path


def changed_syntax(folder: Path, syntax: str) -> Path:
    files = write_series(folder / "s", VOXELS, AFFINE)
    pixels: Elements = {0x7FE00010: ("OB", [bytes(range(100))])}
    write_dicom(files[3], slice_elements(VOXELS, AFFINE, 3) | pixels, syntax)
    return folder / "s"


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD)
def test_what_is_not_a_volume(
    make: Callable[[Path], Path], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path)
    with pytest.raises(RegZooError, match=words) as caught:
        read_image(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path)) and "; " in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_records_of_series(tmp_path: Path) -> None:
    write_series(tmp_path / "p1", VOXELS, AFFINE)
    (tmp_path / "empty").mkdir()
    moving = write(tmp_path / "b.nii.gz", VOXELS)
    check_records([{"fixed_image": f"{tmp_path}/p1#4", "moving_image": moving, "case": "a"}])
    for name, words in (("empty", "is a folder"), ("p2#4", "no such file")):
        with pytest.raises(RegZooError, match=words):
            check_records([{"fixed_image": f"{tmp_path}/{name}", "moving_image": moving}])
