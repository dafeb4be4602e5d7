"""Folds by patient."""

import random
from collections import Counter
from typing import Any

import pytest
from regzoo.datasets import patient_folds, split_fold
from regzoo.errors import RegZooError


def records(sizes: list[int], known: bool = True) -> list[dict[str, Any]]:
    """Pairs of patients with these numbers of pairs."""
    made: list[dict[str, Any]] = []
    for patient, size in enumerate(sizes):
        for visit in range(size):
            record = {
                "fixed_image": f"f{patient}_{visit}",
                "moving_image": f"m{patient}",
                "case": f"c{patient}_{visit}",
            }
            made.append(record | ({"patient": f"p{patient}"} if known else {}))
    return made


@pytest.mark.parametrize("folds", [2, 4, 8, 12])
def test_no_patient_in_two_folds_and_balanced(folds: int) -> None:
    """108 pairs of 76 patients, as in the paper: a partition into folds of 108 / folds pairs give or take one."""
    sizes = [3] * 8 + [2] * 16 + [1] * 52
    parts = patient_folds(records(sizes), folds, seed=3)
    assert len(parts) == folds
    assert Counter(r["case"] for part in parts for r in part) == Counter(r["case"] for r in records(sizes))
    homes = Counter(patient for part in parts for patient in {r["patient"] for r in part})
    assert len(homes) == 76 and set(homes.values()) == {1}
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_depends_on_seed_and_not_on_order() -> None:
    """Shuffled records give the same folds, another seed gives others."""
    pairs = records([1, 2, 3, 1, 1, 2, 1, 1, 3, 1])
    shuffled = pairs.copy()
    random.Random(1).shuffle(shuffled)
    assert shuffled != pairs
    assert patient_folds(shuffled, 3, seed=0) == patient_folds(pairs, 3, seed=0)
    assert patient_folds(pairs, 3, seed=1) != patient_folds(pairs, 3, seed=0)


def test_split_fold() -> None:
    """Each fold is held out once; the rest is for training."""
    pairs = records([2, 1, 1, 2, 1, 1])
    held_out = []
    for fold in range(3):
        training, validation = split_fold(pairs, fold, 3)
        assert len(training) + len(validation) == 8
        assert not {r["patient"] for r in training} & {r["patient"] for r in validation}
        held_out += [r["case"] for r in validation]
    assert sorted(held_out) == [r["case"] for r in pairs]


def test_pairs_of_unknown_patients() -> None:
    """A pair without a patient counts as one of its own, unless it shares an image with another."""
    parts = patient_folds(records([1] * 6, known=False), 6)
    assert [len(part) for part in parts] == [1] * 6
    parts = patient_folds(records([2, 2, 2], known=False), 3)
    found = sorted(tuple(record["moving_image"] for record in part) for part in parts)
    assert found == [("m0", "m0"), ("m1", "m1"), ("m2", "m2")]


def test_pairs_of_two_patients_keep_them_together() -> None:
    """No patient of a pair is in another fold, through however many pairs they are linked."""
    pairs: list[dict[str, Any]] = [
        {"fixed_image": f"i{a}", "moving_image": f"i{b}", "fixed_patient": f"{a}", "moving_patient": f"{b}"}
        for a, b in ((1, 2), (3, 2), (4, 5), (5, 4), (6, 7))
    ]
    parts = patient_folds(pairs, 3)
    patients = [{r[f"{side}_patient"] for r in part for side in ("fixed", "moving")} for part in parts]
    assert sorted(map(sorted, patients)) == [["1", "2", "3"], ["4", "5"], ["6", "7"]]
    with pytest.raises(RegZooError, match=r"3 patient\(s\) \(those that share a pair or an image count as one\)"):
        patient_folds(pairs, 4)


def test_folds_of_the_data_set(caplog: pytest.LogCaptureFixture) -> None:
    """A column ``fold`` decides; nothing contradicts it, and no patient may be in two of them."""
    pairs = [record | {"fold": number % 3} for number, record in enumerate(records([1] * 7))]
    for fold in range(3):
        training, validation = split_fold(pairs, fold, None)
        assert [r["case"] for r in validation] == [f"c{i}_0" for i in range(7) if i % 3 == fold]
        assert [r["fold"] for r in training] == sorted(i % 3 for i in range(7) if i % 3 != fold)
        assert split_fold(pairs, fold, 3, seed=9) == (training, validation)
    with pytest.raises(RegZooError, match="own folds are 0, 1, 2, not 5; leave folds out"):
        split_fold(pairs, 0, 5)
    with pytest.raises(RegZooError, match="fold 3 is not among the data set's own, 0, 1, 2; name one"):
        split_fold(pairs, 3, None)
    with pytest.raises(RegZooError, match="own folds are 0, not at least 2"):
        split_fold(pairs[::3], 0, None)
    with pytest.raises(RegZooError, match="f1_0: has no fold, but others have one"):
        split_fold([pairs[0], records([1, 1])[1]], 0, None)
    # Whoever wrote the column has decided so, but is told.
    shared = [*pairs, pairs[0] | {"fixed_image": "other", "moving_image": "m", "case": "c9", "fold": 1}]
    assert len(split_fold(shared, 1, None)[1]) == 3
    assert any("has the patient 'p0' in two splits, fold 0 and fold 1" in line for line in caplog.messages)


def test_wrong_numbers() -> None:
    """Each mistake in one line."""
    with pytest.raises(RegZooError, match=r"3 patient\(s\) cannot make 4 folds; use fewer folds"):
        patient_folds(records([2, 2, 2]), 4)
    with pytest.raises(RegZooError, match="use at least 2"):
        patient_folds(records([2, 2, 2]), 1)
    for fold in (-1, 3):
        with pytest.raises(RegZooError, match=f"fold {fold} does not exist among 3; use 0 to 2"):
            split_fold(records([2, 2, 2]), fold, 3)
