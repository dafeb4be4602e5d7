"""Which cases a bundle works on: what was named, folds, and bad cases among good ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from regzoo.datasets import load_records, split_fold
from regzoo.engines import CaseStream, evaluation_records, report_failures, requested_records, training_records
from regzoo.errors import RegZooError


def pair(phantoms: Path) -> dict[str, str]:
    record = load_records(phantoms, "val")[0]
    return {key: record[key] for key in ("fixed_image", "moving_image", "moving_label")}


def test_one_pair_or_a_data_set(prostate_phantoms: Path) -> None:
    named = pair(prostate_phantoms)
    assert requested_records(**named) == [named]
    assert len(requested_records(dataset_dir=str(prostate_phantoms))) == 8 + 4
    swapped = requested_records(dataset_dir=str(prostate_phantoms), split="val", direction="us_to_mr")
    assert swapped[0]["fixed_image"] == named["moving_image"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moving_image": None}, "no moving image to register; name it as moving_image"),
        ({"fixed_image": ""}, "no fixed image to register; name it as fixed_image"),
        ({"dataset_dir": "/data"}, "dataset_dir and fixed_image were both named"),
        ({"moving_label": "/no/label.nii.gz"}, "/no/label.nii.gz: no such file"),
    ],
)
def test_too_little_or_too_much_was_named(prostate_phantoms: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RegZooError) as error:
        requested_records(**(pair(prostate_phantoms) | change))
    assert str(error.value).startswith(message)


def test_the_held_out_fold_can_be_evaluated(prostate_phantoms: Path) -> None:
    training = training_records(prostate_phantoms)
    assert len(training) == 8 and len(training_records(prostate_phantoms, count=3)) == 3
    for fold in range(2):
        held_out = evaluation_records(prostate_phantoms, "fold", fold=fold, folds=2, seed=5)
        assert held_out == split_fold(training, fold, 2, 5)[1]
    assert evaluation_records(prostate_phantoms, "val", count=2) == load_records(prostate_phantoms, "val")[:2]


def test_a_stream_goes_on_after_a_bad_case() -> None:
    def transform(record: dict[str, Any]) -> dict[str, Any]:
        if record["fixed_image"] == "bad":
            try:
                raise RegZooError("bad: is damaged; copy it again")
            except RegZooError as error:
                raise RuntimeError("applying transform") from error
        if record["fixed_image"] == "bug":
            raise KeyError("a bug is not an input error")
        return record

    stream = CaseStream([{"fixed_image": name} for name in ("a", "bad", "b")], transform)
    for _ in range(2):
        assert [item["fixed_image"] for item in stream] == ["a", "b"]
        assert stream.failures == ["bad: is damaged; copy it again"]
    with pytest.raises(RegZooError, match="1 of 3 cases failed: bad: is damaged"):
        report_failures(stream)
    with pytest.raises(KeyError):
        list(CaseStream([{"fixed_image": "bug"}], transform))
    good = CaseStream([{"fixed_image": "a"}], transform)
    assert len(list(good)) == 1
    report_failures(good)
