"""Headers with which ITK would read other files, hang, crash or leak memory are refused before ITK sees them."""

from __future__ import annotations

import zlib
from pathlib import Path

import itk
import numpy as np
import pytest
from regzoo.errors import RegZooError
from regzoo.spatial.reading import read_header, read_volume

SECRET = bytes(range(1, 61))
META = b"ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 3 4 5\nElementType = MET_UCHAR\n"
NRRD = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 3 4 5\nencoding: raw\nspace: LPS\n"
#: Ways to name the file {out}, which lies in a folder beside that of the header; and files that ITK itself refuses.
META_WAYS = {
    "absolute": META + b"ElementDataFile = {out}\n",
    "relative": META + b"ElementDataFile = ../out/s\n",
    "through itself": META + b"ElementDataFile = ./../in/../out/s\n",
    "no blanks": META + b"ElementDataFile=../out/s\n",
    "colon": META + b"ElementDataFile : ../out/s\n",
    "two separators": META + b"ElementDataFile =:= ../out/s\n",
    "lower case": META + b"elementdatafile = ../out/s\n",
    "blanks before": META + b" \t ElementDataFile = ../out/s\n",
    "vertical tab before": META + b"\x0bElementDataFile = ../out/s\n",
    "carriage returns": META.replace(b"\n", b"\r\n") + b"ElementDataFile = ../out/s\r\n",
    "blanks after": META + b"ElementDataFile = ../out/s   \n",
    "no end of line": META + b"ElementDataFile = ../out/s",
    "value on the next line": META + b"ElementDataFile =\n../out/s\n",
    "separator on the next line": META + b"ElementDataFile\n= ../out/s\n",
    "null byte": META + b"ElementDataFile = ../out/s\0.raw\n",
    "list": META + b"ElementDataFile = LIST\n" + b"../out/s\n" * 5,
    "list of slices": META + b"ElementDataFile = LIST 2\n" + b"../out/s\n" * 5,
    "another word for a list": META + b"ElementDataFile = LISTED\n" + b"../out/s\n" * 5,
    "numbers": META + b"ElementDataFile = ../out/s%d 1 5 1\n",
    "numbers after a blank": META + b"ElementDataFile = ../out/s %d 1 5 1\n",
    "letters": META + b"ElementDataFile = ../out/%c 115 115 1\n",
    "then local": META + b"ElementDataFile = ../out/s\nElementDataFile = LOCAL\n" + SECRET[::-1],
    "after local": META + b"ElementDataFile = LOCAL\nElementDataFile = ../out/s\n" + SECRET[::-1],
    "in the voxels": META + b"ElementDataFile = LOCAL\n" + SECRET[:20] + b"\nElementDataFile = ../out/s\n",
    "local and more": META + b"ElementDataFile = LOCAL ../out/s\n" + SECRET[::-1],
    "in a comment": b"Comment = x\rElementDataFile = ../out/s\n" + META + b"ElementDataFile = LOCAL\n" + SECRET[::-1],
}
NRRD_WAYS = {
    "absolute": NRRD + b"data file: {out}\n",
    "relative": NRRD + b"data file: ../out/s\n",
    "one word": NRRD + b"datafile: ../out/s\n",
    "upper case": NRRD + b"DATA FILE: ../out/s\n",
    "carriage returns": NRRD.replace(b"\n", b"\r\n") + b"data file: ../out/s\r\n",
    "carriage returns alone": NRRD.replace(b"\n", b"\r") + b"data file: ../out/s\r",
    "after a comment": NRRD + b"# c\rdata file: ../out/s\n\n" + SECRET[::-1],
    "first version": NRRD.replace(b"0004", b"0001") + b"data file: ../out/s\n",
    "with voxels of its own": NRRD + b"data file: ../out/s\n\n" + SECRET[::-1],
    "list": NRRD + b"data file: LIST\n" + b"../out/s\n" * 5,
    "list of slices": NRRD + b"data file: LIST 3\n../out/s\n",
    "list after two blanks": NRRD + b"data file:  LIST\n" + b"../out/s\n" * 5,
    "list after an empty line": NRRD + b"data file: LIST\n" + b"local\n" * 4 + b"\n../out/s\n",
    "numbers": NRRD + b"data file: ../out/s%d 1 5 1\n",
    "twice": NRRD + b"data file: local\ndata file: ../out/s\n",
    "skipping": NRRD + b"byte skip: -1\ndata file: ../out/s\n",
    "standard input": NRRD + b"data file: -\n",
}


def by_itk(path: Path) -> np.ndarray | None:
    """The voxels that ITK reads, None if it refuses the file."""
    io = (itk.NrrdImageIO if path.suffix in (".nrrd", ".nhdr") else itk.MetaImageIO).New()
    try:
        reader = itk.ImageFileReader[itk.Image[itk.F, 3]].New(FileName=str(path), ImageIO=io)
        reader.Update()
    except RuntimeError:
        return None
    return np.asarray(itk.array_from_image(reader.GetOutput())).ravel()


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_no_header_leads_out_of_its_folder(suffix: str, tmp_path: Path) -> None:
    for place in ("in", "out"):
        (tmp_path / place).mkdir()
    for name in ("s", *(f"s{number}" for number in range(1, 6))):
        (tmp_path / "out" / name).write_bytes(SECRET)
    for name in ("local", "LIST", "LISTED"):  # so that the name is one of a file
        (tmp_path / "in" / name).write_bytes(SECRET[::-1])
    followed, path = 0, tmp_path / "in" / f"a{suffix}"
    for way, content in (META_WAYS if suffix in (".mha", ".mhd") else NRRD_WAYS).items():
        path.write_bytes(content.replace(b"{out}", str(tmp_path / "out" / "s").encode()))
        for read in (read_header, read_volume):
            with pytest.raises(
                RegZooError, match=r"^[^\n]*: (names another file|has a damaged|its voxels are missing|is not an image)"
            ):
                raise AssertionError(f"{way} is taken: {read(path)}")
        found = by_itk(path) if way != "standard input" else None
        followed += found is not None and list(found[:3]) == [1, 2, 3]
    assert followed > 8  # the ways are real: ITK goes most of them


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_the_name_of_the_voxels_is_utf8(suffix: str, tmp_path: Path) -> None:
    """Letters outside ASCII are read as ITK reads them; other encodings are refused."""
    header, key = (META, b"ElementDataFile = ") if suffix == ".mhd" else (NRRD, b"data file: ")
    path = tmp_path / f"a{suffix}"
    for name in ("Müller Öl.raw", "Übung.raw", "voilà.raw", "脳.raw"):
        (tmp_path / name).write_bytes(SECRET)
        path.write_bytes(header + key + name.encode() + b"\n")
        expected = by_itk(path)
        assert expected is not None and list(expected[:3]) == [1, 2, 3]
        np.testing.assert_array_equal(read_volume(path).values.ravel(order="F"), expected)
        assert read_header(path).files == [path, tmp_path / name]
    path.write_bytes(header + key + "Müller.raw".encode("latin-1") + b"\n")
    with pytest.raises(RegZooError, match=r"names another file .* not UTF-8 .*; rename the other file"):
        read_volume(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("NDims", "-1"),  # ITK hangs
        ("NDims", "8589934592"),
        ("NDims", "3\nNDims = -1"),
        ("NDims", "3\n1NDims = -1"),
        ("NDims", "3.7"),
        ("DimSize", "-3 4 5"),
        ("DimSize", "0 4 5"),
        ("DimSize", "3 4"),
        ("DimSize", "99999999999 1 1"),
        ("ElementNumberOfChannels", "0"),  # ITK returns uninitialised memory
        ("ElementNumberOfChannels", "-1"),
        ("ElementSpacing", "1 1"),
        ("ElementSpacing", "1 1 x"),
        ("Offset", "nan 0 0"),  # ITK takes 0
        ("Offset", "0 -inf 0"),
        ("HeaderSize", "-7"),
        ("CompressedDataSize", "-1"),
    ],
)
def test_values_that_itk_cannot_be_trusted_with(key: str, value: str, tmp_path: Path) -> None:
    fields = dict(line.split(" = ") for line in META.decode().splitlines()) | {key: value}
    text = "".join(f"{name} = {field}\n" for name, field in fields.items())
    (tmp_path / "a.mha").write_bytes(text.encode() + b"ElementDataFile = LOCAL\n" + SECRET)
    with pytest.raises(RegZooError, match=r"^[^\n]*a\.mha: has (a damaged or unclear header|impossible sizes)"):
        read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("line", ["foo" + "y" * 2000 + ": 1", "space: " + "y" * 2000, "kinds: " + "y" * 2000])
def test_lines_that_crash_itk(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_bytes(NRRD + line.encode() + b"\n\n" + SECRET)
    with pytest.raises(RegZooError, match="has a damaged or unclear header"):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("form", ["short", "short, with its size", "size beyond the end", "no stream", "in a file"])
def test_missing_voxels_are_not_made_of_memory(form: str, tmp_path: Path) -> None:
    """ITK returns whatever is in memory for the voxels that a compressed MetaImage does not hold."""
    data = b"junk" if form == "no stream" else zlib.compress(SECRET[:30])
    said = {
        "short, with its size": f"CompressedDataSize = {len(data)}\n",
        "size beyond the end": "CompressedDataSize = 999\n",
    }
    header = META + b"CompressedData = True\n" + said.get(form, "").encode()
    if form == "in a file":
        content = header + b"ElementDataFile = a.zraw\n"
        (tmp_path / "a.zraw").write_bytes(data)
    else:
        content = header + b"ElementDataFile = LOCAL\n" + data
    (tmp_path / "a.mhd").write_bytes(content)
    with pytest.raises(RegZooError, match=r"a\.mhd: is (truncated|damaged)"):
        read_volume(tmp_path / "a.mhd")


def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client who can write to the studies could put another header there once the first one has been checked."""
    from regzoo.spatial import itk_files

    path = tmp_path / "a.mha"
    path.write_bytes(META + b"ElementDataFile = LOCAL\n" + SECRET)
    (tmp_path / "b.mha").write_bytes(path.read_bytes())
    check = itk_files.check_complete

    def replaced(*args: object) -> None:
        check(*args)  # type: ignore[arg-type]
        (tmp_path / "b.mha").replace(path)

    assert read_volume(path).values.shape == (3, 4, 5)
    monkeypatch.setattr(itk_files, "check_complete", replaced)
    with pytest.raises(RegZooError, match="was replaced while it was being read"):
        read_volume(path)


@pytest.mark.parametrize(
    ("suffix", "header"),
    [
        (".mhd", META.replace(b"UCHAR", b"DOUBLE") + b"ElementDataFile = local\n"),
        (".mhd", META.replace(b"BinaryData = True", b"BinaryData = False") + b"ElementDataFile = local\n"),
        (".nhdr", NRRD.replace(b"raw", b"ascii") + b"data file: local\n"),
        (".nhdr", NRRD.replace(b"raw", b"RAW") + b"data file: local\n"),
    ],
)
def test_a_small_file_of_many_voxels_as_text(suffix: str, header: bytes, tmp_path: Path) -> None:
    """ITK would take memory for all of them first."""
    (tmp_path / "local").write_bytes(b"1 " * 500)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(header.replace(b"3 4 5", b"300 400 500"))
    with pytest.raises(RegZooError, match="is truncated: it ends before the last of the 300×400×500 voxels"):
        read_header(path)


@pytest.mark.parametrize(
    "place", ["origin: (nan,nan,nan)", "origin: (inf,0,0)", "directions: (nan,nan,nan) (0,1,0) (0,0,1)"]
)
def test_an_nrrd_without_a_finite_place(place: str, tmp_path: Path) -> None:
    """ITK would put it at 0, or leave out the axis."""
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD + f"space {place}\n\n".encode() + SECRET[::-1])
    with pytest.raises(RegZooError, match=r"has a damaged or unclear header \(space (origin|directions) '\("):
        read_volume(path)
