"""Test pairs: drawn once, stored, read ever after."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from regzoo.datasets import draw_pairs, load_records
from regzoo.errors import RegZooError


@pytest.fixture
def images(tmp_path: Path) -> list[dict[str, Any]]:
    """Six images of five patients, with labels."""
    records = []
    for i in range(6):
        record = {"case": f"c{i}", "patient": f"p{min(i, 4)}", "label_values": [1, 2], "label_names": ["a", "b"]}
        for key in ("fixed_image", "fixed_label"):
            path = tmp_path / "set" / key / f"c{i}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            record[key] = str(path)
        records.append(record)
    return records


def test_drawn_once(images: list[dict[str, Any]], tmp_path: Path) -> None:
    """Pairs of different patients, each image fixed once and moving about once; the same at every call."""
    path = tmp_path / "set" / "pairs.json"
    pairs = draw_pairs(images, path, seed=4)
    assert Counter(pair["fixed_image"] for pair in pairs) == {record["fixed_image"]: 1 for record in images}
    assert max(Counter(pair["moving_image"] for pair in pairs).values()) <= 2
    patient = {record["fixed_image"]: record["patient"] for record in images}
    label = {record["fixed_image"]: record["fixed_label"] for record in images}
    for pair in pairs:
        assert patient[pair["fixed_image"]] == pair["fixed_patient"]
        assert patient[pair["moving_image"]] == pair["moving_patient"] != pair["fixed_patient"]
        assert label[pair["fixed_image"]] == pair["fixed_label"]
        assert label[pair["moving_image"]] == pair["moving_label"]
        assert pair["label_names"] == ["a", "b"] and "patient" not in pair
    content = path.read_bytes()
    assert draw_pairs(images[::-1], path, seed=4) == pairs, "in whatever order the images come"
    assert path.read_bytes() == content
    assert load_records(path, "test") == pairs, "it is a datalist as any other"
    assert draw_pairs(images, tmp_path / "again.json", seed=4) == pairs
    assert draw_pairs(images, tmp_path / "other.json", seed=5) != pairs
    made = json.loads(content)["made"]
    assert made == {"seed": 4, "count": 6, "images": [f"c{i}" for i in range(6)]}


def test_counts(images: list[dict[str, Any]], tmp_path: Path) -> None:
    """Up to all ordered pairs of different patients: 6·5 − 2, as two images are of one patient."""
    pairs = draw_pairs(images, tmp_path / "all.json", count=28)
    assert len({pair["case"] for pair in pairs}) == 28
    uses = Counter(pair["fixed_image"] for pair in draw_pairs(images, tmp_path / "some.json", count=12))
    assert set(uses.values()) == {2}
    for count in (29, 0):
        with pytest.raises(RegZooError, match=f"{count} pairs cannot be drawn from 6 images; ask for 1 to 28"):
            draw_pairs(images, tmp_path / "more.json", count=count)
    with pytest.raises(RegZooError, match="need images of at least two patients"):
        draw_pairs(images[4:], tmp_path / "more.json")
    assert not (tmp_path / "more.json").exists()


def test_moves_with_its_data(images: list[dict[str, Any]], tmp_path: Path) -> None:
    """Beside the images, the file names them relative to itself; elsewhere by their whole path."""
    pairs = draw_pairs(images, tmp_path / "set" / "pairs.json")
    shutil.move(tmp_path / "set", tmp_path / "moved")
    moved = [
        record | {key: record[key].replace("/set/", "/moved/") for key in ("fixed_image", "fixed_label")}
        for record in images
    ]
    again = draw_pairs(moved, tmp_path / "moved" / "pairs.json")
    assert [pair["case"] for pair in again] == [pair["case"] for pair in pairs]
    assert all("/moved/" in pair["moving_label"] for pair in again)
    far = tmp_path / "far" / "pairs.json"
    draw_pairs(moved, far)
    content = far.read_bytes()
    assert json.loads(content)["testing"][0]["fixed_image"].startswith(str(tmp_path / "moved"))
    shutil.move(tmp_path / "moved", tmp_path / "set")
    assert draw_pairs(images, far) == pairs and far.read_bytes() == content
    unlabelled = [{key: value for key, value in record.items() if "label" not in key} for record in images]
    assert not any("label" in key for pair in draw_pairs(unlabelled, far) for key in pair)


def test_refuses_what_was_made_otherwise(images: list[dict[str, Any]], tmp_path: Path) -> None:
    """Another seed or number, other images, other patients, another file."""
    path = tmp_path / "pairs.json"
    draw_pairs(images, path)
    content = path.read_bytes()
    for arguments, reason in (({"seed": 1}, "seed 0 instead of 1"), ({"count": 3}, "count 6 instead of 3")):
        with pytest.raises(RegZooError, match=f"pairs.json: holds pairs made otherwise \\({reason}\\); remove it"):
            draw_pairs(images, path, **arguments)
    with pytest.raises(RegZooError, match="other images"):
        draw_pairs(images[:5], path, count=6)
    one_patient = [record | {"patient": "p" if record["case"] in ("c0", "c1", "c2") else "q"} for record in images]
    with pytest.raises(RegZooError, match=r"made otherwise \(no images of two patients now make c\d_from_c\d\)"):
        draw_pairs(one_patient, path)
    assert path.read_bytes() == content
    path.write_text(json.dumps({"testing": json.loads(content)["testing"]}))
    with pytest.raises(RegZooError, match="does not say how it was made"):
        draw_pairs(images, path)
    path.write_text("nonsense")
    with pytest.raises(RegZooError, match="is not valid JSON"):
        draw_pairs(images, path)


def test_labels_that_correspond_have_one_name(images: list[dict[str, Any]], tmp_path: Path) -> None:
    """By value in maps and by position in lists of masks; an image may lack values that another one has."""
    one, two = images[:2]
    path = tmp_path / "pairs.json"
    for changed, label in (
        ({"label_names": ["b", "a"]}, "value 1 is called 'b', but that of {one} is called 'a'"),
        ({"label_names": ["b", "a"], "label_values": []}, "label 0 (from 0) is called 'b', but that of {one} is"),
        ({"label_values": [2, 3]}, "value 2 is called 'a', but that of {one} is called 'b'"),
        ({"label_values": [2, 1], "label_names": ["b", "a"]}, "lists its label_values in another order than {one}"),
    ):
        with pytest.raises(RegZooError, match=re.escape(label.format(one=one["fixed_image"]))) as caught:
            draw_pairs([one, two | changed], path)
        assert str(caught.value).startswith(two["fixed_image"]) and not path.exists()
    masks = [
        image | {"fixed_label": [image["fixed_label"]] * 2, "label_values": values}
        for image, values in ((one, [1, 2]), (two | {"label_names": ["a", "c"]}, [1, 3]))
    ]
    with pytest.raises(RegZooError, match=r"label 1 \(from 0\) is called 'c'"):
        draw_pairs(masks, path)
    pairs = draw_pairs([one, two | {"label_values": [1, 4], "label_names": ["a", "d"]}], path)
    for pair in pairs:
        assert pair["label_values"] == [1, 2, 4] and pair["label_names"] == ["a", "b", "d"]
