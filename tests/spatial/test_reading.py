"""What a file is, by its content; each thing that cannot be read has words of its own."""

from __future__ import annotations

import gzip
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import write_series
from helpers import make_affine, to_sitk, write
from regzoo.errors import RegZooError
from regzoo.spatial import read_image, read_label_file
from regzoo.spatial.reading import read_header, read_volume

SHAPE = (9, 8, 7)
AFFINE = make_affine(SHAPE, (1.5, 2, 3), (10, 20, 30), (2, 0, 1), (1, -1, 1), (5, 6, 7))
VOXELS = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def nifti(path: Path, array: np.ndarray = VOXELS) -> Path:
    return Path(write(path, array, AFFINE))


def by_itk(path: Path, array: np.ndarray = VOXELS, compressed: bool = False) -> Path:
    sitk.WriteImage(to_sitk(array, AFFINE), str(path), compressed)
    return path


def changed(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path


def cut(path: Path, length: int) -> Path:
    path.write_bytes(path.read_bytes()[:length])
    return path


def content(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def check(path: Path) -> None:
    image = read_image(path)
    np.testing.assert_array_equal(image[0].numpy(), VOXELS)
    np.testing.assert_allclose(image.affine.numpy(), AFFINE, atol=1e-5)
    assert read_header(path).shape == SHAPE
    assert all(file.is_file() for file in read_header(path).files)


@pytest.mark.parametrize(
    "name", ["a.nii", "a.nii.gz", "A.NII.GZ", "a.Nii", "without_suffix", "a.mgz", "a.nrrd", "a.img"]
)
@pytest.mark.parametrize("zipped", [False, True])
def test_nifti_is_known_by_its_content(name: str, zipped: bool, tmp_path: Path) -> None:
    plain = nifti(tmp_path / "plain.nii").read_bytes()
    check(content(tmp_path / name, gzip.compress(plain) if zipped else plain))


@pytest.mark.parametrize("tail", [b"\0" * 700, b"junk" * 200])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_follows_the_voxels_does_not_matter(name: str, tail: bytes, tmp_path: Path) -> None:
    path = nifti(tmp_path / name)
    check(content(path, path.read_bytes() + tail))


def test_a_gzip_file_with_far_more_than_its_voxels(tmp_path: Path) -> None:
    """A few MB can stand for GB of zeros; they are not read to the end."""
    path = nifti(tmp_path / "a.nii.gz")
    check(content(path, gzip.compress(gzip.decompress(path.read_bytes()) + bytes(1 << 20))))
    content(path, path.read_bytes() + gzip.compress(bytes(1 << 24)) * 300)
    start = time.monotonic()
    with pytest.raises(RegZooError, match="holds more than the 9×8×7 voxels of its header"):
        read_volume(path)
    assert time.monotonic() - start < 1


def test_gzip_in_blocks(tmp_path: Path) -> None:
    """As bgzip and pigz write it: several members, one after the other."""
    plain = nifti(tmp_path / "plain.nii").read_bytes()
    check(
        content(tmp_path / "a.nii.gz", b"".join(gzip.compress(plain[i : i + 300]) for i in range(0, len(plain), 300)))
    )


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Image, nib.Nifti2Pair, nib.MGHImage])
@pytest.mark.parametrize("order", ["<", ">"])
def test_other_forms_of_nifti_and_mgh(kind: type, order: str, tmp_path: Path) -> None:
    header = kind.header_class(endianness=order) if kind is not nib.MGHImage else None
    image = kind(VOXELS, AFFINE, header)
    names = ["a.hdr", "a.img"] if kind in (nib.Nifti1Pair, nib.Nifti2Pair) else ["a.mgz" if header is None else "a.nii"]
    nib.save(image, tmp_path / names[0])
    for name in names:
        check(tmp_path / name)
        assert sorted(path.name for path in read_header(tmp_path / name).files) == names


@pytest.mark.parametrize("name", ["a.mgh", "a.mgz"])
@pytest.mark.parametrize("zipped", [False, True])
def test_mgh_is_unzipped_by_its_content(name: str, zipped: bool, tmp_path: Path) -> None:
    check(content(tmp_path / name, gzip.compress(mgh()) if zipped else mgh()))


def test_an_mgh_without_a_place_is_told_of(tmp_path: Path) -> None:
    path = content(tmp_path / "a.mgh", mgh()[:28] + bytes(2) + mgh()[30:])
    volume = read_volume(path)
    assert volume.doubt is not None and "does not say which side is left, so FreeSurfer's usual" in volume.doubt[0]
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)


def test_a_zipped_nrrd_in_blocks(tmp_path: Path) -> None:
    check(zipped_nrrd(tmp_path / "a.nrrd", gzip.compress(FLAT[:900]) + gzip.compress(FLAT[900:])))


@pytest.mark.parametrize("suffix", ["nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_nrrd_and_metaimage_are_read_by_itk(suffix: str, compressed: bool, tmp_path: Path) -> None:
    path = by_itk(tmp_path / f"a.{suffix}", compressed=compressed)
    check(path)
    assert sorted(read_header(path).files) == sorted(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_masks_of_four_axes(suffix: str, tmp_path: Path) -> None:
    masks = np.stack([VOXELS > 0, VOXELS > 1], -1)
    images = [to_sitk(masks[..., channel].astype(np.float32), AFFINE) for channel in (0, 1)]
    sitk.WriteImage(sitk.JoinSeries(images), str(tmp_path / f"a.{suffix}"))
    label = read_label_file(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(label.volume.numpy(), masks.transpose(3, 0, 1, 2))
    np.testing.assert_allclose(label.volume.affine.numpy(), AFFINE, atol=1e-5)


def test_negative_spacing_of_metaimage(tmp_path: Path) -> None:
    path = by_itk(tmp_path / "a.mha")
    expected = read_image(path).affine.numpy()
    lines = path.read_bytes().split(b"\n")
    for index, line in enumerate(lines[:15]):
        key, _, numbers = line.partition(b" = ")
        if key in (b"TransformMatrix", b"ElementSpacing"):
            values = [float(number) for number in numbers.split()]
            rows = range(3, 6) if key == b"TransformMatrix" else [1]
            lines[index] = key + b" = " + b" ".join(repr(-v if i in rows else v).encode() for i, v in enumerate(values))
    np.testing.assert_allclose(read_image(content(path, b"\n".join(lines))).affine.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("unit", "said"), [("um", True), ("cm", True), ("mm", False), ("?", False)])
def test_the_units_of_metaimage(unit: str, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ITK ignores them, so a file in other units is 10 or 1000 times too large or too small."""
    path = changed(by_itk(tmp_path / "a.mha"), b"ElementSpacing", f"DistanceUnits = {unit}\nElementSpacing".encode())
    spacing = np.linalg.norm(read_image(path).affine[:3, :3].numpy(), axis=0)
    np.testing.assert_allclose(spacing, sitk.ReadImage(str(path)).GetSpacing(), atol=1e-6)
    assert (f"{path}: its distance units are {unit}, which ITK reads as mm; write" in caplog.text) == said


@pytest.mark.parametrize(
    ("key", "new", "said"),
    [
        (b"ElementSpacing", b"", "its header gives no voxel size, so ITK takes 1 mm; write ElementSpacing"),
        (
            b"TransformMatrix",
            b"",
            "its header does not say which side is left, so ITK takes the axes as left, posterior",
        ),
        (b"Modality", b"ElementToIntensityFunctionSlope = 2\n", "scales its values by 2 and adds 0, which ITK ignores"),
    ],
)
def test_what_itk_takes_for_granted_in_a_metaimage(
    key: bytes, new: bytes, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = by_itk(tmp_path / "a.mha").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(key)]
    path = content(tmp_path / "a.mha", b"".join([kept[0], new, *kept[1:]]))
    read_image(path)
    assert f"{path}: {said}" in caplog.text
    with pytest.raises(RegZooError, match=said):
        read_image(path, strict_headers=True)


def test_a_nrrd_without_directions_is_told_of(tmp_path: Path) -> None:
    lines = by_itk(tmp_path / "a.nrrd").read_bytes().splitlines(keepends=True)
    path = content(tmp_path / "a.nrrd", b"".join(line for line in lines if not line.startswith(b"space directions")))
    doubt = read_volume(path).doubt
    assert doubt is not None and "gives no directions of its axes, so ITK takes those of its space" in doubt[0]


def colour(path: Path) -> Path:
    array = np.zeros(SHAPE, np.dtype([(channel, "u1") for channel in "RGB"]))
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def analyze(path: Path, kind: type = nib.AnalyzeImage) -> Path:
    nib.save(kind(VOXELS.astype(np.int16), None), path)
    return path


ROWS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (lambda d: d / "a.nii.gz", "no such file"),
    "a folder": (lambda d: d, "is a folder, not an image; check"),
    "empty": (lambda d: content(d / "a.nii", b""), "is empty"),
    "text": (lambda d: content(d / "a.nii.gz", b'{"image": "a.nii"}'), "holds text, so it is not an image"),
    "noise": (lambda d: content(d / "a.nii", b"\x07\x80" * 900), "is not an image: its content is not NIfTI, NRRD"),
    "a picture": (lambda d: content(d / "a.png", b"\x89PNG\r\n\x1a\n" + bytes(99)), "is a PNG picture"),
    "colour": (lambda d: colour(d / "a.nii.gz"), "is a colour image"),
    "complex": (lambda d: nifti(d / "a.nii", VOXELS.astype(np.complex64)), "complex numbers; export its magnitude"),
    "vectors": (lambda d: nifti(d / "a.nii", np.stack([VOXELS] * 3, -1)[:, :, :, None]), r"is a vector image \(3"),
    "vectors of ITK": (
        lambda d: by_itk(d / "a.mha", np.stack([VOXELS] * 3, -1)),
        "is a vector image .3 values in each voxel",
    ),
    "Analyze": (lambda d: analyze(d / "a.img"), "is an Analyze 7.5 file, which does not say which side is left"),
    "its header": (lambda d: analyze(d / "a.img").with_suffix(".hdr"), "is an Analyze 7.5 file"),
    "Analyze of SPM": (lambda d: analyze(d / "a.img", nib.Spm99AnalyzeImage), "is an Analyze 7.5 file"),
    "2-D of ITK": (lambda d: by_itk(d / "a.nrrd", VOXELS[:, :, :1]), "is a 2-D image"),
    "NRRD as NIfTI": (
        lambda d: by_itk(d / "a.nrrd").rename(d / "a.nii.gz"),
        "is an NRRD file with another suffix.*.nrrd",
    ),
    "MetaImage as NRRD": (lambda d: by_itk(d / "a.mha").rename(d / "a.nrrd"), "is a MetaImage file with another"),
    "half a NIfTI": (lambda d: cut(nifti(d / "a.nii"), 900), "is truncated"),
    "half a gzip": (lambda d: cut(nifti(d / "a.nii.gz"), 900), "is truncated"),
    "half a header": (lambda d: cut(nifti(d / "a.nii"), 100), "is truncated: it ends within its header"),
    "half an NRRD": (lambda d: cut(by_itk(d / "a.nrrd"), 1500), "is truncated"),
    "half a zipped NRRD": (lambda d: cut(by_itk(d / "a.nrrd", compressed=True), 1500), "is truncated"),
    "half a MetaImage": (lambda d: cut(by_itk(d / "a.mha"), 1500), "is truncated"),
    "half a zipped MetaImage": (lambda d: cut(by_itk(d / "a.mha", compressed=True), 1500), "is truncated"),
    "half an MGH": (lambda d: half_mgh(d / "a.mgz"), "is truncated"),
    "an MGH without voxels": (lambda d: empty_mgh(d / "a.mgh"), "impossible sizes"),
    "an MGH of unknown voxels": (
        lambda d: content(d / "a.mgh", mgh()[:20] + struct.pack(">i", 99) + mgh()[24:]),
        "holds voxels of an unknown type .MGH type 99.; copy",
    ),
    "half a header of an MGH": (lambda d: content(d / "a.mgh", mgh()[:200]), "is truncated: it ends within its header"),
    "an NRRD in a gzip file": (
        lambda d: content(d / "a.nrrd", gzip.compress(by_itk(d / "b.nrrd").read_bytes())),
        "is compressed as a whole with gzip, which ITK cannot read; unzip it",
    ),
    "a MetaImage in a gzip file": (
        lambda d: content(d / "a.mha.gz", gzip.compress(by_itk(d / "b.mha").read_bytes())),
        "with another suffix; unzip it",
    ),
    "NRRD zipped in an unknown way": (
        lambda d: changed(by_itk(d / "a.nrrd"), b"encoding: raw", b"encoding: bzip2"),
        "bzip2 encoding not available",
    ),
    "a huge NRRD": (lambda d: changed(by_itk(d / "a.nrrd"), b"sizes: 9 8 7", b"sizes: 90000 80000 7"), "is truncated"),
    "a negative MetaImage": (lambda d: changed(by_itk(d / "a.mha"), b"Size = 9", b"Size = -9"), "impossible sizes"),
    "no voxels of a MetaImage": (lambda d: alone(by_itk(d / "a.mhd")), "its voxels are missing: no file .*a.raw"),
    "no voxels of a pair": (lambda d: alone(by_itk(d / "a.hdr")), "its voxels are missing: no file .*a.img"),
    "no header of a pair": (lambda d: alone(by_itk(d / "a.img")), "its header .*a.hdr is missing"),
    "a damaged gzip": (lambda d: damaged(nifti(d / "a.nii.gz")), "is damaged|is truncated or damaged"),
    "a damaged MGH": (
        lambda d: content(d / "a.mgz", miscounted(mgh())),
        "is truncated or damaged: it cannot be unzipped",
    ),
    "a damaged zipped NRRD": (lambda d: zipped_nrrd(d / "a.nrrd", miscounted(FLAT + bytes(99))), "is damaged .CRC"),
    "a zipped NRRD of far more voxels": (
        lambda d: zipped_nrrd(d / "a.nrrd", gzip.compress(FLAT + bytes(3 << 20))),
        "holds more than the 9×8×7 voxels",
    ),
    "a damaged zipped MetaImage": (
        lambda d: content(cut(by_itk(d / "a.mha", compressed=True), -4), (d / "a.mha").read_bytes() + bytes(4)),
        "is damaged .*incorrect data check",
    ),
}
FLAT = VOXELS.tobytes("F")


def mgh() -> bytes:
    return bytes(nib.MGHImage(VOXELS, AFFINE).to_bytes())


def miscounted(data: bytes) -> bytes:
    """A gzip file whose checksum shows that its content was damaged."""
    return gzip.compress(data)[:-8] + bytes(8)


def zipped_nrrd(path: Path, data: bytes) -> Path:
    start = by_itk(path).read_bytes().partition(b"\n\n")[0].replace(b"encoding: raw", b"encoding: gzip")
    return content(path, start + b"\n\n" + data)


def half_mgh(path: Path) -> Path:
    nib.save(nib.MGHImage(VOXELS, AFFINE), path)
    return cut(path, 900)


def empty_mgh(path: Path) -> Path:
    nib.save(nib.MGHImage(VOXELS, AFFINE), path)
    data = path.read_bytes()
    return content(path, data[:4] + bytes(4) + data[8:])


def alone(path: Path) -> Path:
    for other in path.parent.iterdir():
        if other != path:
            other.unlink()
    return path


def damaged(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[600:640] = bytes(40)
    return content(path, bytes(data))


@pytest.mark.parametrize("row", ROWS)
def test_each_mistake_has_words_of_its_own(
    row: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    make, words = ROWS[row]
    path = make(tmp_path)
    with pytest.raises(RegZooError, match=words) as error:
        read_image(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ") and line.count("; ") == 1 and "\n" not in line
    assert ("truncated" in line or "damaged" in line) == (row.startswith("half") or "huge" in row or "damaged" in row)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_nrrd_of_sheared_axes_is_refused(tmp_path: Path) -> None:
    plain = make_affine(SHAPE, (1, 1, 1), center=(0, 0, 0))
    sitk.WriteImage(to_sitk(VOXELS, plain), str(tmp_path / "a.nrrd"))
    start = (tmp_path / "a.nrrd").read_bytes().split(b"space directions: ")[1].split(b"\n")[0]
    first, second, third = start.split(b" ")
    changed(
        tmp_path / "a.nrrd",
        start,
        b" ".join([first, second.replace(b"(0,", b"(0.3,").replace(b"(-0,", b"(0.3,"), third]),
    )
    with pytest.raises(RegZooError, match="not at right angles"):
        read_image(tmp_path / "a.nrrd")


def test_values_are_those_of_nibabel(tmp_path: Path) -> None:
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float64):
        array = np.round(VOXELS * 20).clip(0, 100).astype(dtype)
        image = nib.Nifti1Image(array, AFFINE, dtype=dtype)
        image.header.set_slope_inter(0.25, -3)
        nib.save(image, tmp_path / "a.nii.gz")
        np.testing.assert_allclose(
            read_volume(tmp_path / "a.nii.gz").values, nib.load(tmp_path / "a.nii.gz").get_fdata(), atol=1e-5
        )


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd", ".dcm"])
def test_a_name_that_is_not_utf8(suffix: str, tmp_path: Path) -> None:
    """NIfTI is read under any name; ITK takes only names in UTF-8."""
    path = tmp_path / os.fsdecode(b"caf\xe9" + suffix.encode())
    if suffix == ".nii.gz":
        assert read_image(nifti(tmp_path / "a.nii.gz").rename(path)).shape == (1, *SHAPE)
        return
    if suffix == ".dcm":
        write_series(tmp_path, (100 * VOXELS).astype(np.int16), AFFINE)[0].rename(path)
    else:
        by_itk(tmp_path / f"a{suffix}").rename(path)
    with pytest.raises(RegZooError, match="its name or folder is not UTF-8, which ITK cannot open; rename it"):
        read_image(path)


def test_files_that_a_header_names(tmp_path: Path) -> None:
    """A path into a folder below; numbered slices and a list are refused."""
    (tmp_path / "other").mkdir()
    path = by_itk(tmp_path / "a.mhd")
    raw, header = (tmp_path / "a.raw").read_bytes(), path.read_bytes()
    for value in (b"slice%d.raw 1 7 1", b"LIST\na.raw"):
        with pytest.raises(RegZooError, match="names another file for each slice"):
            read_header(content(path, header.replace(b"a.raw", value)))
    content(tmp_path / "other" / "far.raw", raw)
    for value in ("other/far.raw", tmp_path / "other" / "far.raw"):
        content(path, header.replace(b"a.raw", str(value).encode()))
        assert [file.resolve() for file in read_header(path).files] == [path, tmp_path / "other" / "far.raw"]
        check(path)


def test_a_nifti_whose_start_of_voxels_is_nowhere(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    for offset in (float("nan"), -4.0, 1e30):
        data[108:112] = struct.pack("<f", offset)
        with pytest.raises(RegZooError, match="impossible vox_offset"):
            read_image(content(path, bytes(data)))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", ["a.nii", "a.hdr", "a.mgz", "a.mha", "a.nrrd"])
def test_damaged_headers_are_read_or_refused(name: str, tmp_path: Path) -> None:
    """Random bytes in the header: never an exception of a library, nor a warning of NumPy."""
    path = tmp_path / name
    if name == "a.mgz":
        nib.save(nib.MGHImage(VOXELS, AFFINE), path)
        path.write_bytes(gzip.decompress(path.read_bytes()))
    elif name in ("a.mha", "a.nrrd"):
        by_itk(path)
    else:
        nifti(path)
    good, rng, refused = path.read_bytes(), np.random.default_rng(1), 0
    for _ in range(60):
        data = bytearray(good)
        for place in rng.integers(0, 348, rng.integers(1, 6)):
            data[place] = rng.choice([0, 255, rng.integers(256)])
        content(path, bytes(data))
        try:
            read_volume(path)
        except RegZooError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"space: left-posterior-superior\n", b"space: scanner-xyz\n", "names the space scanner-xyz"),
        (b"space: left-posterior-superior\n", b"space dimension: 3\n", "does not say which side is left"),
        (b"kinds:", b'space units: "cm" "cm" "cm"\nkinds:', "space units are cm, which ITK reads as mm"),
        (b"kinds:", b'spaceunits: "cm" "cm" "cm"\nkinds:', "space units are cm, which ITK reads as mm"),
    ],
)
def test_a_nrrd_header_that_itk_guesses_at_is_told_of(old: bytes, new: bytes, said: str, tmp_path: Path) -> None:
    path = changed(by_itk(tmp_path / "a.nrrd"), old, new)
    volume = read_volume(path)
    assert volume.doubt is not None and said in volume.doubt[0]
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    with pytest.raises(RegZooError, match=said):
        read_image(path, strict_headers=True)


@pytest.mark.parametrize(("space", "doubted"), [(b"right-anterior-superior", True), (b"LAS", True), (b"LPS", False)])
def test_the_frame_of_the_vectors_of_a_nrrd_file(space: bytes, doubted: bool, tmp_path: Path) -> None:
    path = changed(by_itk(tmp_path / "a.nrrd", np.stack([VOXELS] * 3, -1)), b"left-posterior-superior", space)
    doubt = read_volume(path).doubt
    assert (doubt is not None and "ITK takes its vectors as left, posterior" in doubt[0]) == doubted
    assert doubted or doubt is None
    assert read_volume(changed(by_itk(tmp_path / "b.nrrd"), b"left-posterior-superior", space)).doubt is None


@pytest.mark.parametrize("space", [b"left-posterior-superior", b"LPS", b"Left-Posterior-Superior"])
def test_a_nrrd_header_that_says_all_is_not_doubted(space: bytes, tmp_path: Path) -> None:
    path = changed(by_itk(tmp_path / "a.nrrd"), b"left-posterior-superior", space)
    assert read_volume(changed(path, b"kinds:", b'space units: "mm" "mm" "mm"\nkinds:')).doubt is None


def test_four_axes_as_itk_writes_them_are_not_doubted(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.JoinSeries([to_sitk(VOXELS, AFFINE)] * 2), str(tmp_path / "a.nrrd"))
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.doubt is None and volume.values.shape == (*SHAPE, 2)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
