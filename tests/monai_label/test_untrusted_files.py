"""Files that a client sent or put into the studies: none leads out of them, and none takes the server's memory."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="run by `make test-label`, in an environment of its own")

import SimpleITK as sitk
from helpers import write
from label_server import Answer, LabelServer
from label_studies import WEAK_DDF, Studies
from test_mistakes import refused

SECRET = "root:x:0:0"
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 10 10 10\nElementType = MET_UCHAR\nElementDataFile = "
)
NRRD = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 10 10 10\nencoding: raw\nspace: LPS\ndata file: "
WAYS = {
    "absolute": "{outside}/passwords",
    "relative": "../outside/passwords",
    "through a folder": "./labels/../../outside/passwords",
    "list": "LIST\n" + "../outside/passwords\n" * 10,
    "numbers": "../outside/passwords%d 1 10 1",
    "system": "/etc/passwd",
    "linked": "linked/passwords",
}


@pytest.fixture(scope="module", autouse=True)
def secrets(studies: Studies) -> Iterator[None]:
    for number in ("", *range(1, 11)):
        (studies.outside / f"passwords{number}").write_text(SECRET * 200, encoding="utf-8")
    yield
    for file in studies.outside.glob("passwords*"):
        file.unlink()


@pytest.fixture
def place(studies: Studies, untouched: None) -> Iterator[Path]:
    """A folder of the studies that is removed again."""
    folder = studies.folder / "placed"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def asked(server: LabelServer, role: str, file: Path, studies: Studies) -> Answer:
    """A request in which a file plays a role; its other parts are good."""
    pair = studies.prostate[0]
    named = {"moving_image": pair.moving, "moving_label": pair.moving}
    if role == "sent":
        return server.infer(WEAK_DDF, "", file=file, **named)
    name = str(file.relative_to(studies.folder))
    if role == "fixed":
        return server.infer(WEAK_DDF, str(file), **named)
    return server.infer(WEAK_DDF, pair.fixed, **(named | {role: [name] if role == "moving_label" else name}))


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("role", ["fixed", "moving_image", "moving_label", "fixed_label", "sent"])
def test_a_header_that_names_another_file(
    role: str, way: str, suffix: str, server: LabelServer, studies: Studies, place: Path
) -> None:
    named = WAYS[way].replace("{outside}", str(studies.outside)).replace("../", "../../")
    if way == "linked":  # below the folder of the header, but a link leads out of the studies
        (place / "linked").symlink_to(studies.outside)
    file = place / f"hostile{suffix}"
    file.write_text((META if suffix in (".mha", ".mhd") else NRRD) + named + "\n", encoding="utf-8")
    answer = asked(server, role, file, studies)
    # Beside a file that was sent there is no such folder.
    refused(answer, "voxels are missing" if (role, way) == ("sent", "linked") else "names another file")
    assert SECRET not in answer.detail


def test_what_was_sent_reads_no_other_upload(server: LabelServer, studies: Studies, place: Path) -> None:
    (server.temporary / "other.raw").write_text(SECRET * 200, encoding="utf-8")
    file = place / "sent.mhd"
    file.write_text(META + "other.raw\n", encoding="utf-8")
    refused(asked(server, "sent", file, studies), "names another file")
    (server.temporary / "other.raw").unlink()


def test_voxels_beside_their_header_in_the_studies(server: LabelServer, studies: Studies, place: Path) -> None:
    pair = studies.prostate[0]
    expected = server.infer(WEAK_DDF, pair.fixed, moving_image=pair.moving, result_dtype="float32").image
    assert expected is not None
    for suffix in (".mhd", ".nhdr", ".hdr"):
        sitk.WriteImage(sitk.ReadImage(str(pair.moving_file)), str(place / f"moving{suffix}"))
        answer = server.infer(WEAK_DDF, pair.fixed, moving_image=f"placed/moving{suffix}", result_dtype="float32")
        assert answer.status == 200 and answer.image is not None, answer.detail
        np.testing.assert_allclose(answer.image.get_fdata(), expected.get_fdata(), atol=1e-3)


def nifti(dims: tuple[int, ...], code: int = 2, bits: int = 8, offset: float = 352, sform: float = 1) -> bytes:
    """The start of a NIfTI file."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, *(*dims, *[1] * 8)[:8])
    struct.pack_into("<hh", header, 70, code, bits)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<f", header, 108, offset)
    struct.pack_into("<hh", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, sform, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    header[344:348] = b"n+1\0"
    return bytes(header)


def zeros(head: bytes, gibibytes: float) -> bytes:
    """A gzip file of zeros after its first bytes."""
    block, parts = gzip.compress(bytes(1 << 24), 9), [gzip.compress(head)]
    return b"".join([*parts, *[block] * round(gibibytes * 64)])


BOMBS = {
    "negative sizes.nii.gz": gzip.compress(nifti((3, -32768, -32768, -32768))),
    "negative axes.nii.gz": gzip.compress(nifti((-3, 100, 100, 100))),
    "one negative size.nii.gz": gzip.compress(nifti((3, -1, 200, 200))),
    "huge sizes.nii.gz": gzip.compress(nifti((7, *[32767] * 7))),
    "zeros as its header says.nii.gz": zeros(nifti((3, 1710, 1710, 1710)), 4.7),
    "zeros beyond its header.nii.gz": zeros(nifti((3, 20, 20, 20)), 4.7),
    "zeros before its voxels.nii.gz": zeros(nifti((3, 20, 20, 20), offset=4.9e9), 4.7),
    "huge.mha": (META.replace("10 10 10", "90000 90000 90000") + "LOCAL\n").encode() + bytes(1000),
    "huge compressed.mha": (
        META.replace("10 10 10", "1700 1700 1700").replace("ElementData", "CompressedData = True\nElementData")
        + "LOCAL\n"
    ).encode()
    + bytes(5_000_000),
    "axes without number.mha": (META.replace("NDims = 3", "NDims = -1") + "LOCAL\n").encode() + bytes(1000),
    "huge.nrrd": NRRD.replace("data file: ", "\n").replace("10 10 10", "90000 90000 90000").encode() + bytes(1000),
    "huge compressed.nrrd": NRRD.replace("data file: ", "\n")
    .replace("10 10 10", "1700 1700 1700")
    .replace("raw", "gzip")
    .encode()
    + gzip.compress(bytes(5_000_000)) * 1000,
    "many labels.nii.gz": gzip.compress(nifti((4, 2, 2, 2, 30000)) + bytes(240000)),
}


def peak(server: LabelServer, reset: bool = False) -> float:
    """The most memory that the server has taken, MB, since it was last reset."""
    process = server._process
    assert process is not None
    if reset:
        Path(f"/proc/{process.pid}/clear_refs").write_text("5", encoding="utf-8")
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@pytest.mark.parametrize("role", ["fixed", "moving_image", "moving_label"])
@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_want_much_memory(
    name: str, role: str, server: LabelServer, studies: Studies, place: Path
) -> None:
    file = place / name
    file.write_bytes(BOMBS[name])
    before, start = peak(server, reset=True), time.monotonic()
    answer = asked(server, role, file, studies)
    took, grown = time.monotonic() - start, peak(server) - before
    refused(answer)
    assert took < 1 * float(os.environ.get("REGZOO_SLOW_MACHINE", "1")) and grown < 200, (took, grown, answer.detail)


def test_the_number_of_files_and_their_voxels_are_limited(server: LabelServer, studies: Studies, place: Path) -> None:
    pair = studies.prostate[0]
    for key in ("moving_label", "fixed_label"):
        named = {"moving_image": pair.moving, "moving_label": pair.moving} | {key: [pair.moving] * 33}
        refused(server.infer(WEAK_DDF, pair.fixed, **named), key, "at most 32")
    before, start = peak(server, reset=True), time.monotonic()
    answer = server.infer(WEAK_DDF, pair.fixed, moving_image=pair.moving, moving_label=[f"{pair.moving}_gland"] * 20)
    assert answer.status == 200 and time.monotonic() - start < 30 and peak(server) - before < 500
    write(place / "large.nii.gz", np.zeros((800, 800, 400), np.uint8))
    answer = server.infer(WEAK_DDF, pair.fixed, moving_image=pair.moving, moving_label=["placed/large.nii.gz"] * 2)
    refused(answer, "moving_label", "500000000", "max_voxels")


@pytest.mark.parametrize("role", ["fixed", "moving_image", "moving_label"])
@pytest.mark.parametrize(
    "kind", ["NaN", "infinity", "complex", "complex double", "RGB", "RGBA", "complex.nrrd", "RGB.mha"]
)
def test_places_and_values_that_are_none(
    kind: str, role: str, server: LabelServer, studies: Studies, place: Path
) -> None:
    shape, said = (3, 20, 20, 20), {"c": "complex", "R": "colour", "N": "invertible", "i": "invertible"}[kind[0]]
    voxels = np.random.default_rng(0).normal(size=(20, 20, 20))
    file = place / "wrong.nii"
    if kind == "complex.nrrd":
        file = file.with_suffix(".nrrd")
        sitk.WriteImage(sitk.GetImageFromArray((voxels + 1j).astype(np.complex64)), str(file))
    elif kind == "RGB.mha":
        file = file.with_suffix(".mha")
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((20, 20, 20, 3), np.uint8), isVector=True), str(file))
        said = "3 values in each voxel"
    else:
        code, bits, sform = {
            "NaN": (16, 32, np.nan),
            "infinity": (16, 32, np.inf),
            "complex": (32, 64, 1),
            "complex double": (1792, 128, 1),
            "RGB": (128, 24, 1),
            "RGBA": (2304, 32, 1),
        }[kind]
        file.write_bytes(nifti(shape, code, bits, sform=sform) + bytes(8000 * bits // 8))
    refused(asked(server, role, file, studies), said)


@pytest.mark.parametrize(
    "suffix", [".NII.GZ", ".Nii", ".MHD", ".nhdr", ".mgz", ".img", ".hdr", ".2024.nii.gz", ".seg.nrrd"]
)
@pytest.mark.parametrize("role", ["fixed", "sent"])
def test_suffixes_that_cannot_be_written(
    suffix: str, role: str, server: LabelServer, studies: Studies, place: Path
) -> None:
    """The answer comes in a known format, or the request is refused before the work."""
    pair = studies.prostate[0]
    file = place / f"fixed{suffix}"
    if suffix == ".mgz":
        image = nib.load(pair.fixed_file)
        nib.save(nib.MGHImage(np.asarray(image.dataobj).astype(np.float32), image.affine), file)
    elif suffix.lower() in (".mhd", ".nhdr", ".img", ".hdr", ".seg.nrrd"):
        sitk.WriteImage(sitk.ReadImage(str(pair.fixed_file)), str(file.with_suffix(file.suffix.lower())))
        file.with_suffix(file.suffix.lower()).rename(file)
    elif suffix == ".Nii":
        file.write_bytes(gzip.decompress(pair.fixed_file.read_bytes()))
    else:
        shutil.copy(pair.fixed_file, file)
    query = {"image": "" if role == "sent" else str(file), "output": "image"}
    params = {"moving_image": pair.moving, "moving_label": pair.moving}
    answer = server.post(f"/infer/{WEAK_DDF}", query, params, file if role == "sent" else None)
    if role == "sent" and suffix in (".MHD", ".nhdr", ".img", ".hdr"):
        assert answer.status_code == 400, answer.text[:300]
        return
    assert answer.status_code == 200, answer.text[:300]
    given = "nrrd" if suffix == ".seg.nrrd" else "nii" if suffix == ".Nii" else "nii.gz"
    assert f".{given}" in answer.headers["content-disposition"]
    back = place / f"answer.{given}"
    back.write_bytes(answer.content)
    assert sitk.ReadImage(str(back)).GetSize() == sitk.ReadImage(str(pair.fixed_file)).GetSize()
