"""Datalists as people have them: what is understood, and what is refused instead of being ignored."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from regzoo.datasets import load_records, load_single_records, read_datalist
from regzoo.datasets.datalist import likely_key
from regzoo.errors import RegZooError

Rows = list[dict[str, Any]]
NAMES = ("fixed_image", "moving_image", "fixed_label", "moving_label", "patient")


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Six pairs of three patients with empty files, by relative paths."""
    made = []
    for number in range(6):
        paths = {key: f"{key}/case{number}.nii.gz" for key in NAMES[:4]}
        for path in paths.values():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).touch()
        made.append({**paths, "patient": f"p{number // 2}"})
    return made


def table(rows: Rows, delimiter: str = ",", end: str = "\n", header: list[str] | None = None) -> str:
    lines = [header or list(rows[0]), *(row.values() for row in rows)]
    return "".join(delimiter.join(map(str, line)) + end for line in lines)


def loads(path: Path, content: str | bytes, split: str | None = "train") -> Rows:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_records(path, split)


def refused(path: Path, content: str | bytes, message: str, split: str | None = "train") -> None:
    with pytest.raises(RegZooError, match=message) as error:
        loads(path, content, split)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_tables_of_all_kinds(tmp_path: Path, rows: Rows) -> None:
    """Line ends, marks, encodings, quotes, blanks and Windows paths change nothing."""
    expected = loads(tmp_path / "plain.csv", table(rows))
    assert [record["patient"] for record in expected] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    spaced = [{key: f" {value} " for key, value in row.items()} for row in rows]
    quoted = [{key: f'"{value}"' for key, value in row.items()} for row in rows]
    windows = [{key: value.replace("/", "\\") for key, value in row.items()} for row in rows]
    tables = {
        "crlf.csv": table(rows, end="\r\n"),
        "bom.csv": table(rows).encode("utf-8-sig"),
        "bom_crlf.tsv": table(rows, "\t", "\r\n").encode("utf-8-sig"),
        "utf16.csv": table(rows).encode("utf-16"),
        "utf16.tsv": table(rows, "\t", "\r\n").encode("utf-16"),
        "header.csv": table(rows, header=[f" {name}" for name in NAMES]),
        "spaced.csv": table(spaced),
        "quoted.csv": table(quoted),
        "spaced_quotes.csv": table(quoted, ", "),
        "windows.csv": table(windows),
        "blank.csv": "\n" + table(rows) + ",,,,\n \n,,,,\n",
        "wide.csv": table([row | {"": ""} for row in rows], end=",\n"),
    }
    for name, content in tables.items():
        assert loads(tmp_path / name, content) == expected, name
    text = json.dumps({"training": rows}, indent=1)
    for name, encoding in (("bom", "utf-8-sig"), ("utf16", "utf-16")):
        assert loads(tmp_path / f"{name}.json", text.replace("\n", "\r\n").encode(encoding)) == expected


def test_names_are_strings(tmp_path: Path, rows: Rows) -> None:
    """Numbers and text of one name are one patient; leading zeros stay; an empty one is nobody's."""
    for row, patient, case in zip(rows, (7, "7", 7.0, "07", None, ""), ("001", 1, "a;b", 0, "1e5", None), strict=True):
        row |= {"patient": patient, "case": case}
    found = loads(tmp_path / "list.json", json.dumps(rows))
    assert [record.get("patient") for record in found] == ["7", "7", "7", "07", None, None]
    assert [record["case"] for record in found] == ["001", "1", "a;b", "0", "1e5", "case5"]
    found = loads(
        tmp_path / "list.csv", table([row | {"patient": "007", "case": f"00{i}"} for i, row in enumerate(rows)])
    )
    assert {record["patient"] for record in found} == {"007"} and found[0]["case"] == "000"


def test_how_a_pair_is_aligned_and_refined(tmp_path: Path, rows: Rows) -> None:
    own = [
        {"refine": "TRUE", "refine_seconds": "2.5", "align": "affine"},
        {"refine": "false", "refine_seconds": "", "align": ""},
        {"refine": "Labels", "refine_seconds": "", "align": "region"},
        {"refine": "", "refine_seconds": "3", "align": ""},
    ]
    written = [row | more for row, more in zip(rows, own, strict=False)]
    found = loads(tmp_path / "list.csv", table(written))
    assert [{key: record[key] for key in own[0] if key in record} for record in found] == [
        {"refine": True, "refine_seconds": 2.5, "align": "affine"},
        {"refine": False},
        {"refine": "labels", "align": "region"},
        {"refine_seconds": 3.0},
    ]


def test_separators_in_names_of_files(tmp_path: Path, rows: Rows) -> None:
    """A cell that names a file is one path; otherwise ``;`` separates several; JSON has lists for that."""
    (tmp_path / "x;y.nii.gz").touch()
    rows[0]["fixed_label"] = "x;y.nii.gz"
    rows[1]["fixed_label"] = "fixed_label/case1.nii.gz; fixed_label/case0.nii.gz"
    found = loads(tmp_path / "list.csv", table(rows))
    assert found[0]["fixed_label"] == str(tmp_path / "x;y.nii.gz")
    assert found[1]["fixed_label"] == [str(tmp_path / f"fixed_label/case{i}.nii.gz") for i in (1, 0)]
    del rows[1]
    assert loads(tmp_path / "list.json", json.dumps(rows))[0]["fixed_label"] == str(tmp_path / "x;y.nii.gz")


@pytest.mark.parametrize(
    "words", [("train", "val"), ("Train", "Val"), (" tr", "valid "), ("TRAINING", "dev"), ("train", "Validation")]
)
def test_words_of_splits(tmp_path: Path, rows: Rows, words: tuple[str, str]) -> None:
    """In a column and as names of lists, in any case."""
    path = tmp_path / "list.csv"
    marked = [row | {"split": words[number > 3]} for number, row in enumerate(rows)]
    train = loads(path, table(marked))
    assert len(train) == 4 and train[0]["split"] == "train"
    assert [record["case"] for record in load_records(path, "val")] == ["case4", "case5"]
    lists = {words[0].strip(): rows[:4], words[1].strip(): rows[4:], "labels": ["a"], "Testing": []}
    found = loads(tmp_path / "list.json", json.dumps(lists), "val")
    assert [record["case"] for record in found] == ["case4", "case5"]
    assert [record["case"] for record in read_datalist(tmp_path / "list.json", "dev")] == ["case4", "case5"]


def test_other_words_are_refused(tmp_path: Path, rows: Rows) -> None:
    known = "use training, train, tr; validation, val, valid, dev; testing, test, in any case"
    marked = [row | {"split": "hold-out" if number else "train"} for number, row in enumerate(rows)]
    refused(tmp_path / "a.csv", table(marked), f"entry 2 is of the split 'hold-out', which is not known; {known}")
    refused(tmp_path / "b.json", json.dumps({"training": rows[:4], "holdout": rows[4:]}), f"list 'holdout' .*; {known}")
    refused(tmp_path / "c.json", json.dumps({"train": rows[:4], "Training": rows[4:]}), "two lists of the split")
    rows[2]["split"] = ""
    refused(tmp_path / "d.csv", table([{"split": "train"} | row for row in rows]), "entry 3 has no split, but others")
    rows[2]["split"] = "test"
    refused(tmp_path / "e.json", json.dumps({"training": rows}), "entry 3: its split is 'test', but its list")


@pytest.mark.parametrize(
    "name, key",
    [
        *[
            (name, "patient")
            for name in ("patient_id", "PatientID", "subject", "Subject ID", "patients", "pateint", "sub_id")
        ],
        *[("fixed_labels", "fixed_label"), ("Fixed_Image", "fixed_image"), ("fixed image", "fixed_image")],
        *[("fixedImage", "fixed_image"), ("moving", "moving_image"), ("moving_masks", "moving_mask")],
        *[("fixed_lable", "fixed_label"), ("label_moving", "moving_label"), ("target_image", "fixed_image")],
        *[("spilt", "split"), ("Fold", "fold"), ("folds", "fold"), ("case_id", "case"), ("label_name", "label_names")],
        *[(name, None) for name in ("model", "age", "patient_age", "site", "scanner", "psa", "id", "", "device")],
    ],
)
def test_what_a_name_probably_means(name: str, key: str | None) -> None:
    assert likely_key(name) == key


def test_misspelt_columns_are_refused(tmp_path: Path, rows: Rows) -> None:
    """What they hold would be ignored: patients in two folds, labels that are not there."""
    header = ["fixed_image", "moving_image", "fixed_labels", "moving_label", "patient_id"]
    message = r"unknown columns, .*: 'fixed_labels' \(for fixed_label\?\), 'patient_id' \(for patient\?\); rename"
    refused(tmp_path / "list.csv", table(rows, header=header), message)
    title = ["Fixed_Image", "Moving_Image", "Fixed_Label", "Moving_Label", "Patient"]
    refused(tmp_path / "case.csv", table(rows, header=title), r"'Fixed_Image' \(for fixed_image\?\).*lower case")
    phase = [row | {"phase": "Train" if number else "dev"} for number, row in enumerate(rows)]
    refused(tmp_path / "phase.csv", table(phase), r"'phase' \(for split\?\)")
    rows[3]["PatientID"] = rows[3].pop("patient")
    refused(tmp_path / "list.json", json.dumps({"training": rows}), r"unknown keys, .*: 'PatientID' \(for patient\?\)")


def test_other_columns_are_named_once_and_left_out(
    tmp_path: Path, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of them reaches a transform: a column ``model`` is not a server's request."""
    more = [row | {"model": "x", "PSA": "4.1", "image_path": "y", "patient_id": "z"} for row in rows]
    with caplog.at_level(logging.WARNING):
        found = loads(tmp_path / "list.csv", table(more))
        load_records(tmp_path / "list.csv")
    assert all(record.keys() == {*NAMES, "case"} for record in found)
    (line,) = caplog.messages
    assert line == f"{tmp_path}/list.csv: ignores unknown columns: 'model', 'PSA', 'image_path', 'patient_id'"


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("l.csv", "fixed_image;moving_image\na;b\n", r"no column fixed_image and .* \(it has: 'fixed_image;mov"),
        ("l.csv", "fixed_image\tmoving_image\na\tb\n", r"columns by commas \(.csv\) or tabs \(.tsv\), not by ';'"),
        ("l.csv", "fixed_image,psa\na,b\n", r"no column moving_image \(it has: 'fixed_image', 'psa'\)"),
        ("l.csv", "fixed_image,moving_image,patient,patient\na,b,1,2\n", "has the column 'patient' twice; keep one"),
        ("l.csv", "fixed_image,moving_image\na,b,c\n", "entry 1 has 3 cells where the header has 2; put cells"),
        ("l.csv", 'fixed_image,moving_image\n"a,b\nc,d\n', "cannot be read as a table"),
        ("l.csv", "fixed_image,moving_image\na,nan\n", "entry 1: moving_image is NaN, which is not a value; leave"),
        ("l.csv", "fixed_image,moving_image\n'a',b\n", "entry 1: fixed_image is in quotes of its own"),
        ("l.csv", "fixed_image,moving_image\n", "lists no pairs"),
        ("l.csv", b"\xe4,b\n", "is not UTF-8 text"),
        ("l.csv", "fixed_image,moving_image".encode("utf-16-le"), "it holds zero bytes"),
        ("l.csv", "fixed_image,moving_image,fold\na,b,-1\n", "entry 1 is of fold -1; number the folds from 0"),
        ("l.csv", "fixed_image,moving_image,fold\na,b,one\n", "entry 1: fold is not an integer; number the folds"),
        ("l.json", "", "is not valid JSON"),
        ("l.json", '{"training": [],}', "line 1 column 17.*no comma after the last value"),
        ("l.json", '{"training": []} // mine', "line 1 column 18.*JSON has no comments"),
        ("l.json", '{"training": [], "training": []}', "has 'training' twice in one object"),
        ("l.json", '[{"fixed_image": ["a"], "moving_image": "b"}]', r"has \['a'\] as its fixed_image; give the path"),
        ("l.json", '[{"fixed_image": "a", "moving_image": "b", "patient": ["p"]}]', "has a patient that is not a name"),
        ("l.json", '[{"fixed_image": "a", "moving_image": "b", "patient": true}]', "has a patient that is not a name"),
        ("l.json", '[{"fixed_image": "a", "moving_image": "b", "patient": NaN}]', "patient is NaN"),
        (
            "l.json",
            '[{"fixed_image": "a", "moving_image": "b", "label_names": {"1": "x"}}]',
            "a name of a label that is",
        ),
        (
            "l.csv",
            "fixed_image,moving_image,label_names,label_values\na,b,x;y,1\n",
            "has 2 label_names and 1 label_val",
        ),
        (
            "l.json",
            '[{"fixed_image": "a", "moving_image": "b", "label_values": [1.5]}]',
            "label_values are not integers",
        ),
        ("l.csv", "fixed_image,moving_image,label_values\na,b,;\n", "entry 1 has the label_values of no label; write"),
        ("l.csv", "fixed_image,moving_image,label_values\na,b,1;2;1\n", "entry 1 has the label_values 1, 2, 1; write"),
        ("l.csv", "fixed_image,moving_image,label_values\na,b,0;1\n", "0, 1; write each value once; 0 is the back"),
        ("l.csv", "fixed_image,moving_image,points_frame\na,b,LPI\n", "entry 1 has the points_frame LPI; write RAS or"),
        ("l.json", '[{"fixed_image": "a", "moving_image": "b", "points_frame": ["RAS"]}]', "write RAS or LPS"),
        ("l.json", "[" * 100000, "is not valid JSON"),
        ("l.csv", "fixed_image,moving_image,align\na,b,\nc,d,centre\n", "entry 2: align: unknown method 'centre'; use"),
        ("l.csv", "fixed_image,moving_image,refine\na,b,yes\n", "entry 1: refine: 'yes' is not a valid value; use one"),
        ("l.json", '[{"fixed_image": "a", "moving_image": "b", "refine": 1}]', "refine: 1 is not a valid value"),
        ("l.csv", "fixed_image,moving_image,refine_seconds\na,b,0\n", "'0' is not a valid time; give a number above 0"),
        ("l.csv", "fixed_image,moving_image,refine_seconds\na,b,inf\n", "refine_seconds: 'inf' is not a valid"),
    ],
)
def test_mistakes_in_one_line(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    refused(tmp_path / name, text, message)


def test_nobody_is_in_two_splits(tmp_path: Path, rows: Rows) -> None:
    """By patient, whatever its type, and by image under whatever path; any split asked for says so."""
    lists = {"training": rows[:3], "validation": rows[3:]}
    for split in ("train", "val", None):
        refused(tmp_path / "a.json", json.dumps(lists), "the patient 'p1' in two splits, train and val", split)
    rows[2]["patient"], rows[3]["patient"] = 7, "7"
    refused(tmp_path / "b.json", json.dumps(lists), "the patient '7' in two splits")
    marked = [row | {"split": "train" if number < 3 else "test"} for number, row in enumerate(rows)]
    refused(tmp_path / "c.csv", table(marked), "the patient '7' in two splits, train and test")
    del rows[2]["patient"], rows[3]["patient"]
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / rows[2]["moving_image"])
    rows[3]["moving_image"] = "link.nii.gz"
    refused(tmp_path / "d.json", json.dumps(lists), "the image .*link.nii.gz in two splits, train and val")
    with pytest.raises(RegZooError, match="in two splits"):
        load_single_records(tmp_path / "d.json", "test")


def test_lists_of_paths_are_single_images(tmp_path: Path, rows: Rows) -> None:
    """As the Decathlon lists what it tests on."""
    entries = [{"image": row["fixed_image"], "label": row["fixed_label"]} for row in rows[:3]]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries, "test": [rows[4]["fixed_image"]]}))
    (record,) = load_single_records(tmp_path / "list.json", "test")
    assert record == {"fixed_image": str(tmp_path / rows[4]["fixed_image"]), "case": "case4"}


def test_a_tilde_that_names_no_user(tmp_path: Path) -> None:
    """It belongs to the name of the file."""
    for name in ("~backup~.nii.gz", "b.nii.gz"):
        (tmp_path / name).touch()
    (record,) = loads(tmp_path / "list.csv", "fixed_image,moving_image\n~backup~.nii.gz,b.nii.gz\n")
    assert record["fixed_image"] == str(tmp_path / "~backup~.nii.gz")


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    """As a list of files in one cell, with another separator, makes it."""
    with pytest.raises(RegZooError, match=r"b.nii.gz: cannot be opened \(file name too long\); check the path$"):
        loads(tmp_path / "list.csv", f"fixed_image,moving_image\n{'|'.join(['b.nii.gz'] * 40)},b.nii.gz\n")


def test_a_cell_may_name_more_files_than_one_name_may_have_letters(tmp_path: Path) -> None:
    names = [f"case0001_structure_{number:02}.nii.gz" for number in range(12)]
    for name in ("a.nii.gz", "b.nii.gz", *names):
        (tmp_path / name).touch()
    datalist = tmp_path / "list.csv"
    datalist.write_text(f"fixed_image,moving_image,fixed_label\na.nii.gz,b.nii.gz,{';'.join(names)}\n")
    assert read_datalist(datalist)[0]["fixed_label"] == [str(tmp_path / name) for name in names]


def test_points(tmp_path: Path) -> None:
    """Their files are resolved like images; one side alone, or a list of files, is a mistake."""
    for name in ("a.nii.gz", "b.nii.gz", "a.fcsv", "b.csv"):
        (tmp_path / name).touch()
    entry = {"fixed_image": "a.nii.gz", "moving_image": "b.nii.gz", "fixed_points": "a.fcsv", "points_frame": "ras"}
    datalist = tmp_path / "list.json"
    datalist.write_text(json.dumps([entry | {"moving_points": "b.csv"}]))
    (record,) = load_records(datalist)
    assert record["moving_points"] == str(tmp_path / "b.csv") and record["points_frame"] == "RAS"
    datalist.write_text(json.dumps([entry]))
    with pytest.raises(RegZooError, match=r"a.nii.gz: has fixed_points, but no points of the other image; give"):
        load_records(datalist)
    datalist.write_text(json.dumps([entry | {"moving_points": ["b.csv", "a.fcsv"]}]))
    with pytest.raises(RegZooError, match=r"has .* as its moving_points; give the path of one file"):
        load_records(datalist)
