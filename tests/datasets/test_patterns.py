"""Datalists of plain folders, by patterns of names."""

from __future__ import annotations

from pathlib import Path

import pytest
from regzoo.datasets import load_records, load_single_records
from regzoo.errors import RegZooError
from regzoo_tools.patterns import write_datalist


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_stars_pair_files_of_equal_names(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", "us/p1_a.nii.gz", "us/p1_b.nii.gz", "us/p2.nii.gz", "us/.p3.nii.gz")
    touch(root, "mr/p1_a.nii.gz", "mr/p1_b.nii.gz", "mr/p9.nii.gz", "seg/p1_b.nii.gz", "seg/p7.nii.gz")
    out = tmp_path / "lists" / "datalist.csv"
    patterns = {"fixed_image": "us/*.nii.gz", "moving_image": "mr/*.nii.gz", "fixed_label": "seg/*.nii.gz"}
    count, left = write_datalist([root], out, patterns, patient="^p[0-9]+")
    assert count == 2
    assert left == [
        f"{root}/us/p2.nii.gz: has no moving_image of its name",
        f"{root}/mr/p9.nii.gz: has no fixed_image of its name",
        f"{root}/seg/p7.nii.gz: is the fixed_label of no image",
    ]
    assert "../set/us/p1_a.nii.gz" in out.read_text()
    assert load_records(out) == [
        {
            "fixed_image": str(root / f"us/{case}.nii.gz"),
            "moving_image": str(root / f"mr/{case}.nii.gz"),
            **({"fixed_label": str(root / f"seg/{case}.nii.gz")} if case == "p1_b" else {}),
            "case": case,
            "patient": "p1",
        }
        for case in ("p1_a", "p1_b")
    ]


def test_places_pair_files_in_folders_of_cases(tmp_path: Path) -> None:
    """Over two roots; the patient is a folder, the date does not matter, and brackets are no patterns."""
    for root, patient in (("one", "A[1]"), ("two", "B")):
        touch(tmp_path / root, *(f"{patient}/v{visit}/{kind}" for visit in (1, 2) for kind in ("us_77.nii", "mr.nii")))
    patterns = {"fixed_image": "{patient}/{case}/us_*.nii", "moving_image": "{patient}/{case}/mr.nii"}
    count, left = write_datalist([tmp_path / "one", tmp_path / "two"], tmp_path / "list.tsv", patterns)
    records = load_records(tmp_path / "list.tsv")
    assert (count, left) == (4, [])
    assert [record["patient"] for record in records] == ["A[1]", "A[1]", "B", "B"]
    assert len({record["case"] for record in records}) == 4
    assert all(Path(record["fixed_image"]).parent == Path(record["moving_image"]).parent for record in records)


def test_single_images(tmp_path: Path) -> None:
    touch(tmp_path, "ct/a.nii", "ct/b.nii", "seg/a.nii")
    patterns = {"fixed_image": "ct/*.nii", "fixed_label": "seg/*.nii"}
    assert write_datalist([tmp_path], tmp_path / "d.csv", patterns) == (2, [])
    assert ["fixed_label" in record for record in load_single_records(tmp_path / "d.csv")] == [True, False]


@pytest.mark.parametrize(
    ("fixed", "moving", "patient", "words"),
    [
        ("us/a.nii", "mr/*.nii", None, r"--fixed us/a.nii: has neither \{case\} nor \*"),
        ("us/{name}.nii", "mr/*.nii", None, r"has \{name\}; use \{case\}"),
        ("**/*.nii", "mr/*.nii", None, r"has \*\*"),
        ("/us/*.nii", "mr/*.nii", None, "is an absolute path"),
        ("us/*.mha", "mr/*.nii", None, "--fixed us/.*: matches no file in .*; correct"),
        ("us/{case}.nii", "mr/{case}_*.nii", None, r"a_2.nii: and .*a_1.nii both match"),
        ("us/*.nii", "mr/b*.nii", None, "no two files belong together"),
        ("us/*.nii", "mr/*.nii", "[", r"--patient \[: is not a regular expression"),
        ("us/*.nii", "mr/*.nii", "p[0-9]", "finds nothing in 'a'"),
        ("us/*.nii", "mr/*.nii", "^[0-9]*", "finds nothing in 'a'"),
    ],
)
def test_mistakes(tmp_path: Path, fixed: str, moving: str, patient: str | None, words: str) -> None:
    touch(tmp_path, "us/a.nii", "mr/a.nii", "mr/a_1.nii", "mr/a_2.nii", "mr/b1.nii")
    with pytest.raises(RegZooError, match=words):
        write_datalist([tmp_path], tmp_path / "d.csv", {"fixed_image": fixed, "moving_image": moving}, patient)
    assert not (tmp_path / "d.csv").exists()


def test_a_star_beside_a_place(tmp_path: Path) -> None:
    touch(tmp_path, "us/a-1.nii", "us/b-1.nii", "mr/a.nii", "mr/b.nii")
    patterns = {"fixed_image": "us/{case}-*.nii", "moving_image": "mr/{case}*.nii"}
    assert write_datalist([tmp_path], tmp_path / "d.csv", patterns) == (2, [])
    assert [record["case"] for record in load_records(tmp_path / "d.csv")] == ["a", "b"]


def test_nothing_is_overwritten_and_nothing_unusable_left(tmp_path: Path) -> None:
    touch(tmp_path, "us/a.nii", "mr/a.nii", "d.csv")
    patterns = {"fixed_image": "us/*.nii", "moving_image": "mr/*.nii"}
    with pytest.raises(RegZooError, match="exists already; remove it, or name another"):
        write_datalist([tmp_path], tmp_path / "d.csv", patterns)
    for out, words in (("d.json", "let it end in .csv"), ("e.csv", "is not a folder")):
        with pytest.raises(RegZooError, match=words):
            write_datalist([tmp_path / ("gone" if out == "e.csv" else "")], tmp_path / out, patterns)
    with pytest.raises(RegZooError, match="is both the fixed and the moving image"):
        write_datalist([tmp_path], tmp_path / "f.csv", {"fixed_image": "us/*.nii", "moving_image": "us/*.nii"})
    assert not (tmp_path / "f.csv").exists() and (tmp_path / "d.csv").read_text() == ""
