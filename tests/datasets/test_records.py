"""Datalists and what is checked about records."""

import json
from pathlib import Path
from typing import Any

import pytest
from regzoo.datasets import check_records, is_of_kind, read_datalist, validate_kinds
from regzoo.datasets.records import case_name, record_files
from regzoo.errors import RegZooError


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with empty files a to f."""
    for name in "abcdef":
        (tmp_path / f"{name}.nii.gz").touch()
    return tmp_path


def pair(folder: Path, fixed: str, moving: str, **more: Any) -> dict[str, Any]:
    return {"fixed_image": str(folder / f"{fixed}.nii.gz"), "moving_image": str(folder / f"{moving}.nii.gz"), **more}


def test_json_list_and_sections(tmp_path: Path) -> None:
    """A list, or an object of lists; relative paths are resolved against the file, absolute ones kept."""
    entry = {"fixed_image": "us/a.nii.gz", "moving_image": "/far/b.nii", "fixed_label": ["x.nii", "../y.nii"]}
    path = tmp_path / "lists" / "pairs.json"
    path.parent.mkdir()
    path.write_text(json.dumps([entry]))
    record = read_datalist(path)[0]
    assert record["fixed_image"] == str(tmp_path / "lists/us/a.nii.gz")
    assert record["moving_image"] == "/far/b.nii"
    assert record["fixed_label"] == [str(tmp_path / "lists/x.nii"), str(tmp_path / "y.nii")]
    assert record["case"] == "a"
    other = entry | {"fixed_image": "c.nii", "moving_image": "d.nii", "patient": 7, "case": "second"}
    path.write_text(json.dumps({"training": [entry], "validation": [other]}))
    assert [r["case"] for r in read_datalist(path)] == ["a"]
    assert [r["case"] for r in read_datalist(path, "validation")] == ["second"]
    assert [r["case"] for r in read_datalist(path, None)] == ["a", "second"]


@pytest.mark.parametrize("suffix, delimiter", [(".csv", ","), (".tsv", "\t")])
def test_table(tmp_path: Path, suffix: str, delimiter: str) -> None:
    """Columns are keys, ``;`` separates several values of a cell, empty cells are left out."""
    rows = [
        ["fixed_image", "moving_image", "fixed_label", "moving_label", "patient", "label_names"],
        ["a.nii.gz", "b.nii.gz", "m1.nii; m2.nii", "", "p1", "gland;cyst"],
        ["c.nii.gz", "d.nii.gz", "", "", "", ""],
    ]
    path = tmp_path / f"pairs{suffix}"
    path.write_text("\n".join(delimiter.join(row) for row in rows) + "\n", encoding="utf-8-sig")
    first, second = read_datalist(path)
    assert first["fixed_label"] == [str(tmp_path / "m1.nii"), str(tmp_path / "m2.nii")]
    assert first["label_names"] == ["gland", "cyst"] and first["patient"] == "p1" and "moving_label" not in first
    assert second.keys() == {"fixed_image", "moving_image", "case"} and second["case"] == "c"


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("l.json", "[{]", "l.json: is not valid JSON"),
        ("l.json", '{"testing": []}', "has no pairs of the split 'train' \\(it has: test\\)"),
        ("l.json", '{"training": 3}', "neither a list of pairs nor"),
        ("l.json", "[]", "lists no pairs"),
        ("l.json", '["a.nii"]', "entry 1 is not a set of named values"),
        ("l.json", '[{"fixed_image": "a.nii"}]', "entry 1 has no moving_image; add the path of its moving image"),
        ("l.json", '[{"fixed_image": "a", "moving_image": "b", "fixed_label": 3}]', "fixed_label is not a path"),
        (
            "l.csv",
            "fixed,moving\na,b\n",
            "unknown columns, .*: 'fixed' \\(for fixed_image\\?\\), 'moving' \\(for moving_image",
        ),
        ("l.csv", "", "lists no pairs"),
    ],
)
def test_wrong_datalists(tmp_path: Path, name: str, text: str, message: str) -> None:
    """The line names the file, what is wrong and what to do."""
    (tmp_path / name).write_text(text)
    with pytest.raises(RegZooError, match=message) as caught:
        read_datalist(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_datalist(tmp_path: Path) -> None:
    """A datalist that is not there."""
    with pytest.raises(RegZooError, match=r"gone\.json: no such file; name a datalist"):
        read_datalist(tmp_path / "gone.json")


def test_names_and_files() -> None:
    """Names without suffix, files with those of lists."""
    assert [case_name(f"x/{n}") for n in ("a.nii.gz", "b.nii", "c.d.nii.gz", "e", "f#1.nrrd")] == [
        "a",
        "b",
        "c.d",
        "e",
        "f#1",
    ]
    assert [case_name(f"x/{n}") for n in ("1.2.840.7", "a.b#12", "IM7.dcm")] == ["1.2.840.7", "a.b#12", "IM7"]
    record = {"fixed_image": "f", "moving_image": Path("m"), "moving_label": ["1", Path("2")]}
    assert record_files(record) == ["f", "m", "1", "2"]
    assert record_files(record, ["fixed_image", "fixed_label"]) == ["f"]


def test_good_records_pass(files: Path) -> None:
    """Several pairs of a patient may share files; the same two images may be a pair both ways round."""
    records = [
        pair(files, "a", "b", patient="1"),
        pair(files, "c", "b", patient="1", fixed_label=[str(files / "d.nii.gz")]),
        pair(files, "b", "a", patient="1"),
        pair(files, "e", "f"),
    ]
    check_records(records)


def test_bad_records(files: Path) -> None:
    """Each mistake is named with the file and the mend."""
    with pytest.raises(RegZooError, match="list of pairs is empty"):
        check_records([])
    with pytest.raises(RegZooError, match=r"z\.nii\.gz: no such file; correct the path"):
        check_records([pair(files, "a", "z")])
    with pytest.raises(RegZooError, match=r"z\.nii\.gz: no such file"):
        check_records([pair(files, "a", "b", moving_label=[str(files / "z.nii.gz")])])
    with pytest.raises(RegZooError, match=r"a\.nii\.gz: is listed twice with the moving image .*b\.nii\.gz; keep one"):
        check_records([pair(files, "a", "b", case="1"), pair(files, "a", "b", case="2")])
    with pytest.raises(RegZooError, match=r"a\.nii\.gz: is both the fixed and the moving image"):
        check_records([pair(files, "a", "a")])
    with pytest.raises(RegZooError, match=r"b\.nii\.gz: belongs to two patients, 1 and 2"):
        check_records([pair(files, "a", "b", patient="1"), pair(files, "c", "b", patient="2")])


def test_mistakes_behind_links_and_detours(files: Path) -> None:
    """A file is recognised under another name for the same path."""
    (files / "link.nii.gz").symlink_to(files / "a.nii.gz")
    with pytest.raises(RegZooError, match="is both the fixed and the moving image"):
        check_records([pair(files, "a", "link")])
    detour = pair(files / ".." / files.name, "a", "b")
    with pytest.raises(RegZooError, match="is listed twice"):
        check_records([pair(files, "a", "b"), detour])


@pytest.mark.parametrize(
    "name, kinds, expected",
    [
        ("cyst", ["cyst"], True),
        ("cyst_1", ["cyst"], True),
        ("cyst_12_b", ["cyst"], True),
        ("seminal_vesicle_left", ["seminal_vesicle"], True),
        ("seminal_vesicle_left", ["cyst", "seminal"], True),
        ("seminal_vesicle_left", ["seminal_vesicle_left"], True),
        ("seminal_vesicle", ["seminal_vesicle_left"], False),
        ("cystic_lesion", ["cyst"], False),
        ("cyst", ["cyst_1"], False),
        ("cyst_10", ["cyst_1"], False),
        ("big_cyst", ["cyst"], False),
        ("gland", ["cyst", "seminal_vesicle"], False),
        ("gland", [], False),
        ("gland", [""], False),
    ],
)
def test_kinds_are_beginnings_of_names_up_to_an_underscore(name: str, kinds: list[str], expected: bool) -> None:
    """Whole words only, whether one or several kinds are asked for."""
    assert is_of_kind(name, kinds) is expected
    assert is_of_kind(name, iter(kinds)) is expected


def test_kinds_of_a_data_set() -> None:
    """Kinds that some label has pass; a wrong name is answered with the right ones."""
    records = [{"label_names": ["gland", "cyst_1", "cyst_2"]}, {"label_names": ["gland", "apex"]}, {}]
    for kinds in (["cyst"], ("apex", "cyst_2"), []):
        validate_kinds(records, kinds)
    validate_kinds([{}], [])
    with pytest.raises(RegZooError, match=r"'cysts'; the names of the data set are apex, cyst_1, cyst_2, gland$"):
        validate_kinds(records, ["cyst", "cysts"])
    with pytest.raises(RegZooError, match="none, add label_names"):
        validate_kinds([{}], ["cyst"])
    with pytest.raises(RegZooError, match="holding out gland, cyst, apex leaves no label"):
        validate_kinds(records, ["gland", "cyst", "apex"])
