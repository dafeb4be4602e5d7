"""`regzoo apply --points`: SimpleITK says where the points go; what else a file holds survives."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import LPS, make_grid, rigid, smooth_ddf, write
from regzoo.cli import main
from regzoo.errors import RegZooError
from regzoo.spatial import DisplacementField
from regzoo.spatial.point_files import OUTSIDE, read_points
from regzoo.spatial.transformation import Affine, Transformation

FIXED = make_grid((31, 27, 13), (1.1, 0.9, 2.3), (20, -15, 30), (1, 0, 2), (-1, 1, 1), center=(30, -80, 55))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a field; it is the working folder."""
    field = DisplacementField(torch.from_numpy(smooth_ddf(FIXED.shape, 2.5)), FIXED)
    Transformation(field, Affine(rigid((3, -4, 5), (7, 3, -9)))).on(FIXED).save(tmp_path / "field.nii.gz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["regzoo", *arguments])
    main()


def fixed_points(count: int = 6) -> np.ndarray:
    """Points of the fixed image, (N, 3), RAS mm."""
    share = np.random.default_rng(4).uniform(0.35, 0.65, (count, 3))
    return FIXED.to_world(share * (np.asarray(FIXED.shape) - 1))


def by_sitk(points: np.ndarray) -> np.ndarray:
    field = sitk.DisplacementFieldTransform(sitk.ReadImage("field.nii.gz", sitk.sitkVectorFloat64))
    return np.array([field.TransformPoint((point * LPS).tolist()) for point in points]) * LPS


def fcsv(points: np.ndarray, frame: str) -> str:
    head = f"# Markups fiducial file version = 5.0\n# CoordinateSystem = {frame}\n"
    head += "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    rows = [f'{n},{x},{y},{z},0,0,0,1,1,1,0,"lesion, {n}",PI-RADS {n},\n' for n, (x, y, z) in enumerate(points, 1)]
    return head + "".join(rows)


def markups(points: np.ndarray, frame: str) -> str:
    controls = [
        {"id": str(n), "label": f"L-{n}", "description": "", "position": point.tolist(), "positionStatus": "defined"}
        for n, point in enumerate(points, 1)
    ]
    controls.insert(1, {"id": "9", "label": "later", "position": [0, 0, 0], "positionStatus": "undefined"})
    one = {"type": "Fiducial", "coordinateSystem": frame, "coordinateUnits": "mm", "controlPoints": controls}
    return json.dumps({"@schema": "markups-schema-v1.0.3.json#", "markups": [one | {"display": {"opacity": 0.5}}]})


def table(points: np.ndarray, frame: str) -> str:
    return "name,X,Y,Z,grade\n" + "".join(f'"a, {n}",{x},{y},{z},{n}\n' for n, (x, y, z) in enumerate(points))


def vtk(points: np.ndarray, frame: str, binary: bool = False) -> bytes:
    head = f"# vtk DataFile Version 3.0\nsurface SPACE={frame}\n{'BINARY' if binary else 'ASCII'}\nDATASET POLYDATA\n"
    numbers = points.astype(">f4").tobytes() if binary else "\n".join(" ".join(map(str, p)) for p in points).encode()
    cells = np.array([3, 0, 1, 2, 3, 3, 4, 5], ">i4").tobytes() if binary else b"3 0 1 2\n3 3 4 5"
    return head.encode() + f"POINTS {len(points)} float\n".encode() + numbers + b"\nPOLYGONS 2 8\n" + cells + b"\n"


def ply(points: np.ndarray, frame: str, order: str = "") -> bytes:
    form = {"": "ascii", "<": "binary_little_endian", ">": "binary_big_endian"}[order]
    head = f"ply\nformat {form} 1.0\ncomment SPACE={frame}\nelement vertex {len(points)}\nproperty uchar red\n"
    head += "property double x\nproperty double y\nproperty double z\nelement face 1\n"
    head += "property list uchar int vertex_indices\nend_header\n"
    if not order:
        rows = "".join(f"{n} {x} {y} {z}\n" for n, (x, y, z) in enumerate(points))
        return head.encode() + rows.encode() + b"3 0 1 2\n"
    values = np.array([(n, *p) for n, p in enumerate(points)], [("c", "u1"), *((axis, order + "f8") for axis in "xyz")])
    return head.encode() + values.tobytes() + b"\x03" + np.array([0, 1, 2], order + "i4").tobytes()


FORMS: dict[str, tuple[str, Callable[[np.ndarray, str], Any]]] = {
    "fcsv": ("p.fcsv", fcsv),
    "markups": ("p.mrk.json", markups),
    "table": ("p.csv", table),
    "vtk": ("p.vtk", vtk),
    "binary vtk": ("p.vtk", lambda points, frame: vtk(points, frame, True)),
    "ply": ("p.ply", ply),
    "little-endian ply": ("p.ply", lambda points, frame: ply(points, frame, "<")),
    "big-endian ply": ("p.ply", lambda points, frame: ply(points, frame, ">")),
}


def written(form: str, points: np.ndarray, frame: str = "LPS") -> str:
    """Write points, RAS mm, in a frame; the name of the file."""
    name, build = FORMS[form]
    content = build(points * (LPS if frame == "LPS" else 1), frame)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


@pytest.mark.parametrize("frame", ["LPS", "RAS"])
@pytest.mark.parametrize("form", list(FORMS))
def test_points_there_and_back(form: str, frame: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = fixed_points()
    name = written(form, points, frame)
    said = ["--frame", frame] if name.endswith(".csv") else []
    there, back = f"there_{name}", f"back_{name}"
    call(
        monkeypatch,
        "apply",
        "field.nii.gz",
        "--points",
        name,
        "--from",
        "fixed",
        "--to",
        "moving",
        "--out",
        there,
        *said,
    )
    moved = read_points(there, said[1] if said else None).points
    assert np.linalg.norm(moved - points, axis=1).min() > 2
    np.testing.assert_allclose(moved, by_sitk(points), atol=0.01)
    call(
        monkeypatch,
        "apply",
        "field.nii.gz",
        "--points",
        there,
        "--from",
        "moving",
        "--to",
        "fixed",
        "--out",
        back,
        *said,
    )
    np.testing.assert_allclose(read_points(back, said[1] if said else None).points, points, atol=0.01)


def test_everything_else_survives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = fixed_points()
    way = ["--from", "fixed", "--to", "moving"]
    for form in ("fcsv", "markups", "table", "vtk", "little-endian ply"):
        name = written(form, points)
        said = ["--frame", "LPS"] if name.endswith(".csv") else []
        call(monkeypatch, "apply", "field.nii.gz", "--points", name, "--out", f"out_{name}", *way, *said)
    lines = Path("out_p.fcsv").read_text().splitlines()
    assert lines[:3] == Path("p.fcsv").read_text().splitlines()[:3]
    assert [row[4:] for row in csv.reader(lines[3:])] == [
        row[4:] for row in csv.reader(Path("p.fcsv").read_text().splitlines()[3:])
    ]
    before, after = (json.loads(Path(name).read_text()) for name in ("p.mrk.json", "out_p.mrk.json"))
    for scene in (before, after):
        for point in scene["markups"][0]["controlPoints"]:
            if point["positionStatus"] == "defined":
                del point["position"]
    assert before == after
    rows = list(csv.DictReader(Path("out_p.csv").read_text().splitlines()))
    assert [(row["name"], row["grade"]) for row in rows] == [(f"a, {n}", str(n)) for n in range(6)]
    surface = itk.meshread("out_p.vtk")
    ours = np.array([list(surface.GetPoint(index)) for index in range(6)]) * LPS
    np.testing.assert_allclose(ours, by_sitk(points), atol=0.01)
    assert surface.GetNumberOfCells() == 2 and b"SPACE=LPS" in Path("out_p.vtk").read_bytes()
    old, new = (Path(name).read_bytes() for name in ("p.ply", "out_p.ply"))
    assert old[-13:] == new[-13:] and len(old) == len(new)


@pytest.mark.parametrize("form", ["fcsv", "markups", "table", "vtk"])
def test_points_outside_are_marked(
    form: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = fixed_points()
    points[2] += 500
    name = written(form, points)
    said = ["--frame", "LPS"] if name.endswith(".csv") else []
    out = f"out_{name}"
    call(
        monkeypatch, "apply", "field.nii.gz", "--points", name, "--from", "fixed", "--to", "moving", "--out", out, *said
    )
    assert f"warning: {out}: 1 of 6 points lie outside" in capsys.readouterr().err
    text, kept = Path(out).read_text(), np.delete(points, 2, axis=0)
    if form == "table":
        row = list(csv.DictReader(text.splitlines()))[2]
        assert row["X"] == row["Z"] == "" and row["note"] == OUTSIDE and row["name"] == "a, 2"
        return
    if form == "fcsv":
        assert f"# {OUTSIDE}: 3," in text and "lesion, 3" in text
    elif form == "markups":
        lost = json.loads(text)["markups"][0]["controlPoints"][3]
        assert lost == {"id": "3", "label": "L-3", "description": OUTSIDE, "positionStatus": "undefined"}
    found = read_points(out).points
    found = np.delete(found, 2, axis=0) if form == "vtk" else found  # a surface keeps all its vertices
    np.testing.assert_allclose(found, by_sitk(kept), atol=0.01)


def test_a_table_as_spreadsheets_write_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks after commas and quotes, a cell of two lines, a character that ends no line, short and empty rows."""
    points = np.vstack([fixed_points(3), FIXED.to_world(np.array([[50.0, 5, 5]]))])
    places = [", ".join(map(str, point)) for point in points]
    rows = [
        f'{places[0]}, "a, ""b""\nc", 1',
        f'{places[1]},"d\u2028e" ,',
        f"{places[2]},,,\t",
        f"{places[3]}",
        ",,,,",
        "  ",
    ]
    Path("p.csv").write_bytes("\r\n".join(["x, y, z, name, grade", *rows, ""]).encode("utf-8-sig"))
    way = ["--frame", "RAS", "--from", "fixed", "--to", "moving", "--out", "out.csv"]
    call(monkeypatch, "apply", "field.nii.gz", "--points", "p.csv", *way)
    with Path("out.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [row["name"] for row in found] == ['a, "b"\nc', "d\u2028e", "", ""]
    assert [row["grade"] for row in found] == ["1", "", "", ""]
    assert [row["note"] for row in found] == ["", "", "", OUTSIDE]
    moved = [[float(row[axis]) for axis in "xyz"] for row in found[:3]]
    np.testing.assert_allclose(moved, by_sitk(points[:3]), atol=0.01)


def test_markups_without_a_frame(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = fixed_points(2)
    controls = [{"position": point.tolist()} for point in points]
    Path("p.mrk.json").write_text(json.dumps({"markups": [{"controlPoints": controls}]}))
    way = ["--frame", "RAS", "--from", "fixed", "--to", "moving", "--out", "out.mrk.json"]
    call(monkeypatch, "apply", "field.nii.gz", "--points", "p.mrk.json", *way)
    found = [point["position"] for point in json.loads(Path("out.mrk.json").read_text())["markups"][0]["controlPoints"]]
    np.testing.assert_allclose(found, by_sitk(points), atol=0.01)


def test_points_beyond_the_moving_image_are_marked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = make_grid((5, 5, 5), center=by_sitk(fixed_points(1))[0])
    write(Path("moving.nii.gz"), np.arange(125, dtype=np.float32).reshape(5, 5, 5), small.affine)
    name = written("fcsv", fixed_points())
    way = ["--from", "fixed", "--to", "moving", "--reference", "moving.nii.gz", "--out", "out.fcsv"]
    call(monkeypatch, "apply", "field.nii.gz", "--points", name, *way)
    assert "5 of 6 points" in capsys.readouterr().err


def marked(position: object) -> dict[str, Any]:
    return {"markups": [{"coordinateSystem": "LPS", "controlPoints": [{"position": position}]}]}


MISTAKES: dict[str, tuple[str, str | bytes, str]] = {
    "no frame of a table": ("p.csv", "x,y,z\n1,2,3\n", "set frame to RAS or LPS"),
    "no columns": ("p.csv", "a,b,c\n1,2,3\n", "columns"),
    "a short row": ("p.csv --frame RAS", "x,y,z\n1,2\n", "three numbers"),
    "a long row": ("p.csv --frame RAS", "name,x,y,z\nlesion, 2,1,2,3\n", "quotes"),
    "a quote that stays open": ("p.csv --frame RAS", 'x,y,z,name\n1,2,3,"a\n4,5,6,b\n', "a quote that is never"),
    "text after a quote": ("p.csv --frame RAS", 'name,x,y,z\n"a"b,1,2,3\n', "its line 2 is not a row of a table"),
    "a quote that stays open in a list": ("p.fcsv", '# CoordinateSystem = LPS\n1,1,2,3,"a\n2,1,2,3\n', "never closed"),
    "semicolons": ("p.csv --frame RAS", "x;y;z\n1,5;2;3\n", "'x;y;z'); separate cells by commas"),
    "voxels without a header": ("p.csv --frame RAS", "1,2,3\n", "(mm)"),
    "only commas": ("p.csv --frame RAS", ",,\n", "columns"),
    "Latin-1": ("p.csv --frame RAS", "x,y,z,name\n1,2,3,é\n".encode("latin-1"), "save it in UTF-8"),
    "a line within a number": ("p.csv --frame RAS", "x,y,z\n1,1_0,3\n", "three numbers"),
    "a column twice": ("p.csv --frame RAS", "x,y,z,X\n1,2,3,4\n", "has two columns x"),
    "a word for a number": ("p.csv --frame RAS", "x,y,z\n1,two,3\n", "three numbers"),
    "NaN": ("p.csv --frame RAS", "x,y,z\n1,nan,3\n", "NaN"),
    "no rows": ("p.csv --frame RAS", "x,y,z\n", "no points"),
    "another frame": ("p.csv --frame LPI", "x,y,z\n1,2,3\n", "not a frame"),
    "two frames": ("p.fcsv --frame RAS", "# CoordinateSystem = LPS\n1,1,2,3\n", "leave frame out"),
    "voxels": ("p.fcsv", "# CoordinateSystem = IJK\n1,1,2,3\n", "IJK"),
    "no frame of a list": ("p.fcsv", "1,1,2,3\n", "set frame to"),
    "an empty file": ("p.fcsv", "", "empty"),
    "not a text": ("p.fcsv", b"\xff\xfe\x00\xd8", "text"),  # half a character of UTF-16
    "broken JSON": ("p.mrk.json", '{"markups": [', "markups"),
    "other JSON": ("p.mrk.json", '{"a": 1}', "markups"),
    "a box": (
        "p.mrk.json",
        json.dumps(
            {"markups": [{"type": "ROI", "coordinateSystem": "LPS", "controlPoints": [{"position": [1, 2, 3]}]}]}
        ),
        "ROI",
    ),
    "no frame of markups": (
        "p.mrk.json",
        json.dumps({"markups": [{"controlPoints": [{"position": [1, 2, 3]}]}]}),
        "set frame to RAS or LPS",
    ),
    "metres": (
        "p.mrk.json",
        json.dumps(
            {
                "markups": [
                    {"coordinateSystem": "LPS", "coordinateUnits": "m", "controlPoints": [{"position": [1, 2, 3]}]}
                ]
            }
        ),
        "in m",
    ),
    "no position": (
        "p.mrk.json",
        json.dumps({"markups": [{"coordinateSystem": "LPS", "controlPoints": [{"label": "a"}]}]}),
        "markups",
    ),
    "not a VTK file": ("p.vtk", "solid\n", "VTK"),
    "a cut VTK file": ("p.vtk", vtk(np.ones((6, 3)), "RAS")[:120], "three numbers"),
    "a cut binary VTK file": ("p.vtk", vtk(np.ones((6, 3)), "RAS", True)[:120], "ends before"),
    "a VTK file without a frame": ("p.vtk", vtk(np.ones((6, 3)), "?"), "set frame to"),
    "not a PLY file": ("p.ply", "ply\n", "PLY"),
    "a cut PLY file": ("p.ply", ply(np.ones((6, 3)), "RAS", "<")[:300], "ends before"),
    "faces first": (
        "p.ply",
        ply(np.ones((6, 3)), "RAS").replace(b"element vertex", b"element edge 1\nelement vertex"),
        "vertices first",
    ),
    "a position of two numbers": ("p.mrk.json", json.dumps(marked([1, 2])), "markups"),
    "a position of six numbers": ("p.mrk.json", json.dumps(marked([1, 2, 3, 4, 5, 6])), "markups"),
    "a VTK file of too many points": ("p.vtk", vtk(np.ones((6, 3)), "RAS").replace(b"6 f", b"9999999999 f"), "ends"),
    "a PLY file of too many points": ("p.ply", ply(np.ones((6, 3)), "RAS").replace(b"x 6", b"x 1" + b"0" * 30), "ends"),
    "a PLY file cut within a line": (
        "p.ply",
        ply(np.ones((6, 3)), "RAS").partition(b"\n5 ")[0],
        "ends before its 6 vertices",
    ),
    "whole numbers": ("p.ply", ply(np.ones((6, 3)), "RAS", "<").replace(b"double", b"int"), "as float"),
    "an axis twice": ("p.ply", ply(np.ones((6, 3)), "RAS", "<").replace(b"uchar red", b"uchar x"), "PLY"),
    "a list in a vertex": (
        "p.ply",
        ply(np.ones((6, 3)), "RAS").replace(b"element face 1\n", b""),
        "lists in its vertices",
    ),
    "an image": ("p.nii.gz", "x", "list of points"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_one_line_and_leaves_nothing(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, content, message = MISTAKES[name]
    file, *more = arguments.split()
    Path(file).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(folder.iterdir())
    with pytest.raises(SystemExit) as stop:
        call(
            monkeypatch,
            "apply",
            "field.nii.gz",
            "--points",
            file,
            *more,
            "--from",
            "fixed",
            "--to",
            "moving",
            "--out",
            f"out_{file}",
        )
    assert stop.value.code == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error and message in error and "traceback" not in error
    assert sorted(folder.iterdir()) == before


def test_the_direction_of_points_must_be_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "apply", "field.nii.gz", "--points", written("fcsv", fixed_points()), "--out", "out.fcsv")
    assert "--from moving --to fixed" in capsys.readouterr().err and not Path("out.fcsv").exists()


@pytest.mark.parametrize("form", list(FORMS))
def test_a_byte_order_mark_and_numbers_beyond_float32(form: str, folder: Path) -> None:
    points = fixed_points()
    name = written(form, points)
    frame = "LPS" if name.endswith(".csv") else None
    Path(name).write_bytes(b"\xef\xbb\xbf" + Path(name).read_bytes())
    np.testing.assert_allclose(read_points(name, frame).points, points, atol=1e-4)
    if form in ("fcsv", "markups", "table"):
        Path(name).write_bytes(Path(name).read_text(encoding="utf-8-sig").encode("utf-16"))
        np.testing.assert_allclose(read_points(name, frame).points, points, atol=1e-4)
    if form == "binary vtk":  # floats
        return
    points[2, 1] = 1e300
    name = written(form, points)
    with pytest.raises(RegZooError, match=f"^{name}: holds numbers beyond the range of float32"):
        read_points(name, frame)
