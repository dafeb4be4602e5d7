"""What a training validates on, and so chooses its epoch by: one rule for all bundles and for the evaluation."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_list import BUNDLES
from monai.bundle import ConfigParser
from regzoo.datasets import Record, load_records, load_single_records, split_fold
from regzoo.engines import (
    evaluation_pairs,
    evaluation_records,
    split_images,
    split_pairs,
    training_images,
    training_records,
)
from regzoo.errors import RegZooError

Rows = list[dict[str, Any]]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A datalist of pairs, 12 to train on and 4 to validate on, in three folds, with single images if wanted."""

    def make(fold: bool = False, validation: bool = False, single: bool = False) -> Path:
        rows: Rows = []
        for number in range(16):
            row: dict[str, Any] = {"patient": f"p{number}", "case": f"c{number}"}
            for side in ("fixed", "moving")[: 1 if single else 2]:
                for kind in ("image", "label"):
                    row[f"{side}_{kind}"] = f"{side}_{kind}_{number}.nii.gz"
                    (tmp_path / row[f"{side}_{kind}"]).touch()
            rows.append(row | ({"fold": number % 3} if fold else {}))
        lists = {"training": rows[:12]} | ({"validation": rows[12:]} if validation else {})
        path = tmp_path / f"{fold}_{validation}_{single}.json"
        path.write_text(json.dumps(lists))
        return path

    return make


def cases(records: list[Record]) -> list[str]:
    return sorted((str(record["case"]) for record in records), key=lambda name: int(name[1:]))


@pytest.mark.parametrize(
    "fold, validation, chosen, expected",
    [
        # The validation part, unless a fold is asked for.
        (False, True, {}, [12, 13, 14, 15]),
        (True, True, {}, [12, 13, 14, 15]),
        (True, True, {"fold": 1}, [1, 4, 7, 10]),
        (True, True, {"folds": 3}, [0, 3, 6, 9]),
        # The folds of the datalist.
        (True, False, {}, [0, 3, 6, 9]),
        (True, False, {"fold": 2, "folds": 3}, [2, 5, 8, 11]),
    ],
)
def test_pairs(
    write: Callable[..., Path],
    fold: bool,
    validation: bool,
    chosen: dict[str, int],
    expected: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Training and evaluation agree, and a line says what it was; no case is on both sides."""
    path = write(fold, validation)
    settings = {"fold": None, "folds": None} | chosen
    with caplog.at_level(logging.INFO):
        training, held_out = split_pairs(training_records(path), **settings, seed=3, folder=path)
    said = list(caplog.messages)
    assert cases(held_out) == [f"c{number}" for number in expected]
    assert cases(training) == [f"c{number}" for number in range(12) if number not in expected]
    assert evaluation_records(path, "fold", **settings, seed=3) == held_out
    part = "the 4 records of the data set's validation part"
    own = f"fold {chosen.get('fold', 0)} of the data set's own folds: 4 of 12 records"
    assert said == [f"validating on {part if expected[0] == 12 else own}"]


def test_dealt_folds_where_the_data_set_has_none(write: Callable[..., Path], prostate_phantoms: Path) -> None:
    """20 of them by default; asking for some leaves a validation part out."""
    path = write(validation=True)
    records = training_records(path)
    for chosen in ({"fold": 2, "folds": 4}, {"folds": 4}):
        found = split_pairs(records, **chosen, seed=1, folder=path)
        assert found == split_fold(records, chosen.get("fold", 0), 4, 1)
        assert evaluation_records(path, "fold", **chosen, seed=1) == found[1]
    with pytest.raises(RegZooError, match=r"12 patient\(s\) cannot make 20 folds"):
        split_pairs(records, 0, folder=path)
    # The folder val/ is for the evaluation.
    records = training_records(prostate_phantoms)
    assert split_pairs(records, folds=3, folder=prostate_phantoms) == split_fold(records, 0, 3)
    assert split_pairs([], folder=path) == ([], [])


@pytest.mark.parametrize("single", [False, True])
def test_one_fold_holds_nothing_out(
    write: Callable[..., Path], single: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All records train; the validation uses them too, single images as pairs."""
    path = write(validation=True, single=single)
    if single:
        records = training_images(path)
        division = split_images(records, None, 1, tmp_path / "pairs.json", folder=path)
        assert len(division.validation) == 12 and all("moving_image" in record for record in division.validation)
    else:
        records = training_records(path)
        division = split_pairs(records, folds=1, folder=path)
        assert division.validation == records
    assert division.training == records and "holds nothing out" in caplog.text


def test_contradictions(write: Callable[..., Path]) -> None:
    path = write(fold=True)
    with pytest.raises(RegZooError, match="own folds are 0, 1, 2, not 5; leave folds out"):
        split_pairs(training_records(path), 1, 5, folder=path)
    with pytest.raises(RegZooError, match="fold 3 is not among the data set's own, 0, 1, 2"):
        evaluation_records(path, "fold", fold=3)


@pytest.mark.parametrize("fold, chosen", [(False, {}), (True, {}), (True, {"fold": 2})])
def test_images(write: Callable[..., Path], tmp_path: Path, fold: bool, chosen: dict[str, int]) -> None:
    """Pairs are drawn of the images of the same part, and the evaluation draws the same."""
    settings = {"fold": None, "folds": None} | chosen
    for single in (True, False):
        path = write(fold, True, single)
        records, files = training_images(path), [tmp_path / f"{single}_{i}_pairs.json" for i in range(2)]
        training, pairs = split_images(records, **settings, pairs_file=files[0], folder=path)
        assert evaluation_pairs(path, "fold", files[1], **settings) == pairs
        if not chosen and not single:
            assert pairs == load_records(path, "val") and training == records, "pairs that are listed stay as they are"
            continue
        expected = load_single_records(path, "val") if not chosen else [r for r in records if r["fold"] == 2]
        assert {record["fixed_image"] for record in pairs} == {record["fixed_image"] for record in expected}
        assert all(record["fixed_patient"] != record["moving_patient"] for record in pairs if "fixed_patient" in record)
        assert [r for r in records if r not in training] == (expected if chosen else [])
    simulated = split_images(records, **settings, pairs_file=files[0], simulated=True, folder=path)[1]
    assert simulated and all("moving_image" not in record for record in simulated)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_bundle_follows_the_rule(bundle: Path, write: Callable[..., Path], tmp_path: Path) -> None:
    """With the settings as they come, in training and evaluation."""
    path = write(fold=True, validation=True)

    def parsed(*names: str, **settings: Any) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config([str(bundle / "configs" / name) for name in names])
        changed = {
            "bundle_root": str(bundle),
            "dataset_dir": str(path),
            "output_dir": str(tmp_path / "out"),
            **settings,
        }
        for name, value in changed.items():
            parser[name] = value
        return parser

    for settings in ({}, {"fold": 1}):
        _, held_out = parsed("train.json", **settings).get_parsed_content("division")
        images = {record["fixed_image"] for record in held_out}
        names = {Path(image).name for image in images}
        number = (1, 4, 7, 10) if settings else (12, 13, 14, 15)
        assert names <= {f"{side}_image_{i}.nii.gz" for i in number for side in ("fixed", "moving")} and names
        evaluation = parsed("train.json", "evaluate.json", **settings, eval_split="fold")
        evaluated = evaluation.get_parsed_content("validate#dataset#data")
        assert {record["fixed_image"] for record in evaluated} == images
        (tmp_path / "out" / "validation_pairs.json").unlink(missing_ok=True)
        (tmp_path / "out" / "evaluation" / "pairs.json").unlink(missing_ok=True)
