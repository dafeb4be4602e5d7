"""Training on single images: what is held out, which pairs are evaluated on, and when the training ends."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_list import NAMES, on_single_images, training
from helpers import smooth_noise, write
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from regzoo.datasets import Record, load_records
from regzoo.engines import (
    EarlyStop,
    Schedule,
    evaluation_pairs,
    fingerprints,
    key_metric,
    split_images,
    training_images,
)
from regzoo.errors import RegZooError
from regzoo.samplers import Draw, LabelPairDataset
from regzoo_phantoms import AbdomenPhantoms


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A Decathlon task of twelve images."""
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    for number in range(12):
        write(tmp_path / "imagesTr" / f"case_{number:02d}.nii.gz", smooth_noise((6, 6, 6), 1, number))
        write(tmp_path / "labelsTr" / f"case_{number:02d}.nii.gz", np.ones((6, 6, 6), dtype=np.uint8))
    return tmp_path


def sides(records: list[Record]) -> set[str]:
    return {str(record[f"{side}_image"]) for record in records for side in ("fixed", "moving")}


def test_pairs_of_patients_held_out_are_drawn_once(images: Path, tmp_path: Path) -> None:
    records, stored = training_images(images), tmp_path / "out" / "pairs.json"
    training, pairs = split_images(records, fold=1, folds=4, pairs_file=stored, seed=2)
    assert len(training) == 9 and len(pairs) == 3
    assert all("moving_image" not in record for record in training)
    assert not sides(pairs) & {record["fixed_image"] for record in training}
    assert sides(pairs) | {record["fixed_image"] for record in training} == {r["fixed_image"] for r in records}
    before = stored.read_bytes()
    assert split_images(records, 1, 4, stored, seed=2) == (training, pairs)
    assert stored.read_bytes() == before
    assert len(split_images(records, 1, 4, tmp_path / "more.json", count=6)[1]) == 6
    with pytest.raises(RegZooError, match="other images"):
        split_images(records, 0, 4, stored, seed=2)


def test_pairs_of_data_that_have_moved(images: Path, tmp_path: Path) -> None:
    """A training goes on with the same pairs, although their file names the old place."""
    stored = tmp_path / "pairs.json"
    before = [fingerprints(part) for part in split_images(training_images(images), 1, 4, stored)]
    for folder in ("imagesTr", "labelsTr"):
        shutil.move(tmp_path / folder, tmp_path / "moved" / folder)
    after = split_images(training_images(tmp_path / "moved"), 1, 4, stored)
    assert [fingerprints(part) for part in after] == before
    assert all("/moved/" in path for path in sides(after.validation))


@pytest.mark.parametrize("bundle", [name for name in NAMES if on_single_images(name)])
def test_a_pair_to_validate_on_without_its_moving_label(bundle: str, images: Path) -> None:
    """An error in a training, where an evaluation may have points instead; a single image has no moving label."""
    parser = ConfigParser(training(bundle))
    load = parser.get_parsed_content("load")
    single, pair = (dict(record) for record in training_images(images, 2))
    assert "fixed_label" in load(dict(single))
    pair["moving_image"] = single["fixed_image"]
    with pytest.raises(RegZooError, match=r"case_00\.nii\.gz: comes without its label, .* as moving_label"):
        load(pair)


def test_names_of_labels_that_contradict_each_other(tmp_path: Path) -> None:
    """Before a training, whose channels would mean other things in each image; also in the validation part."""
    entry = {"label_values": [1, 2], "label_names": ["anterior", "posterior"]}
    for name in "abcd":
        write(tmp_path / f"{name}.nii.gz", smooth_noise((6, 6, 6), 1, ord(name)))
    a, b, c, d = (entry | {"image": f"{name}.nii.gz"} for name in "abcd")
    data = tmp_path / "datalist.json"
    for wrong in (b, d):
        wrong["label_names"] = ["posterior", "anterior"]
        data.write_text(json.dumps({"training": [a, b], "validation": [c, d]}), encoding="utf-8")
        with pytest.raises(
            RegZooError, match=r"value 1 is called 'posterior', but that of .*a\.nii\.gz is called 'ant"
        ):
            split_images(training_images(data), None, None, tmp_path / "pairs.json", folder=data)
        wrong["label_names"] = entry["label_names"]
    data.write_text(json.dumps({"training": [a, b], "validation": [c, d]}), encoding="utf-8")
    assert len(split_images(training_images(data), None, None, tmp_path / "pairs.json", folder=data).validation) == 2


def test_the_fold_that_was_held_out_can_be_evaluated(images: Path, tmp_path: Path) -> None:
    _, pairs = split_images(training_images(images, 8), 0, 2, tmp_path / "a.json", seed=5)
    found = evaluation_pairs(images, "fold", tmp_path / "b.json", images=8, fold=0, folds=2, seed=5)
    assert found == pairs
    rest = evaluation_pairs(images, "rest", tmp_path / "c.json", images=8)
    assert sides(rest) == {str(record["fixed_image"]) for record in training_images(images)[8:]}
    with pytest.raises(RegZooError, match="leaves none over"):
        evaluation_pairs(images, "rest", tmp_path / "d.json", images=12)


def test_the_pairs_that_a_data_set_lists(prostate_phantoms: Path, tmp_path: Path) -> None:
    listed = evaluation_pairs(prostate_phantoms, "listed", tmp_path / "not.json", count=2)
    assert listed == load_records(prostate_phantoms, "val")[:2] and not (tmp_path / "not.json").exists()


def test_the_pairs_to_test_on_that_a_task_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Both states of each patient held out, in the layout of Learn2Reg; whoever draws other pairs is told."""
    folder = AbdomenPhantoms(cases=1, held_out=2, spacing=12.0, breathing=True).write(tmp_path / "set", workers=1)
    found = evaluation_pairs(folder, "listed_test", tmp_path / "not.json")
    names = [[Path(str(record[f"{side}_image"])).name for side in ("fixed", "moving")] for record in found]
    assert names == [[f"AbdomenCTCT_000{n}_000{state}.nii.gz" for state in (0, 1)] for n in (2, 3)]
    assert not (tmp_path / "not.json").exists() and not caplog.messages
    with caplog.at_level(logging.INFO):
        drawn = evaluation_pairs(folder, "test", tmp_path / "drawn.json")
    assert all(record["fixed_patient"] != record["moving_patient"] for record in drawn)
    assert "listed_test takes the 2 pairs" in caplog.text


def test_validation_on_simulated_pairs_by_choice(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = training_images(images, 8)
    training, held_out = split_images(records, 1, 4, tmp_path / "pairs.json", simulated=True)
    pairs = split_images(records, 1, 4, tmp_path / "pairs.json")[1]
    assert {record["fixed_image"] for record in held_out} == sides(pairs)
    assert not sides(pairs) & {record["fixed_image"] for record in training}
    assert all("moving_image" not in record for record in held_out)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("count", [1, 3])
def test_few_images_are_all_trained_on(count: int, images: Path, tmp_path: Path) -> None:
    records = training_images(images, count)
    training, held_out = split_images(records, 0, 8, tmp_path / "pairs.json")
    assert training == records and not (tmp_path / "pairs.json").exists()
    assert len(held_out) >= 8 and len({record["case"] for record in held_out}) == len(held_out)
    assert {record["fixed_image"] for record in held_out} == {record["fixed_image"] for record in records}


def test_a_single_patient_held_out_is_not_trained_on(images: Path, tmp_path: Path) -> None:
    training, held_out = split_images(training_images(images, 4), 0, 4, tmp_path / "pairs.json")
    assert len(training) == 3 and len({record["fixed_image"] for record in held_out}) == 1
    assert held_out[0]["fixed_image"] not in {record["fixed_image"] for record in training}


def test_samples_of_single_images() -> None:
    image, labels = torch.rand(1, 4, 4, 4), torch.rand(5, 4, 4, 4)
    items = [{"fixed_image": image, "fixed_label": labels}, {"fixed_image": image}]
    every = LabelPairDataset(items, transform=lambda item: item, labels_per_pair=0, progress=False)
    sample = every[Draw(0, 7)]
    assert sample.keys() == {"fixed_image", "fixed_label", "seed"} and sample["seed"] == 7
    assert torch.equal(sample["fixed_label"], labels)
    assert every[Draw(1, 7)].keys() == {"fixed_image", "seed"}
    some = LabelPairDataset(items, transform=lambda item: item, labels_per_pair=2, progress=False)
    assert some[Draw(0, 7)]["fixed_label"].shape == (2, 4, 4, 4)


class Training:
    """A trainer whose validations have the results told in advance, and MONAI's names for them."""

    def __init__(self, results: list[float], patience: int, interval: int = 1) -> None:
        self.trainer, self.evaluator = Engine(lambda *_: None), Engine(lambda *_: None)
        self.evaluator.state.metrics, self.evaluator.state.key_metric_name = {}, "dsc"
        self.results = results

        def validate(engine: Engine) -> None:
            self.evaluator.state.epoch = engine.state.epoch
            self.evaluator.state.metrics = {"dsc": self.results[engine.state.epoch - 1], "other": 1.0}

        self.trainer.add_event_handler(Events.EPOCH_COMPLETED(every=interval), validate)
        self.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, mode="max", factor=0.5, patience=1)
        Schedule(schedule, self.evaluator).attach(self.trainer)
        self.stop = EarlyStop(patience, self.evaluator)
        self.stop.attach(self.trainer)

    def run(self, epochs: int) -> int:
        self.trainer.run([0], max_epochs=epochs)
        return int(self.trainer.state.epoch)


def test_the_training_ends_where_it_gets_no_better() -> None:
    results = [0.1, 0.3, 0.2, 0.25, 0.3, 0.5, 0.6]
    assert Training(results, 3).run(7) == 5
    assert Training(results, 4).run(7) == 7
    assert Training(results, 0).run(7) == 7


def test_patience_counts_validations() -> None:
    """Of every second epoch: the epochs between have nothing new to tell."""
    results = [0.0, 0.1, 0.0, 0.3, 0.0, 0.2, 0.0, 0.25, 0.0, 0.2, 0.0, 0.5]
    training = Training(results, 3, interval=2)
    assert training.run(12) == 10
    assert training.optimizer.param_groups[0]["lr"] == 0.5  # two bad ones are one too many, the third begins anew


def test_another_schedule_is_stepped_after_each_iteration() -> None:
    trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    Schedule(torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1), evaluator).attach(trainer)
    rates: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: rates.append(optimizer.param_groups[0]["lr"]))
    optimizer.step()
    trainer.run([0] * 4, max_epochs=1)
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01])


def test_a_training_that_has_ended_stays_so() -> None:
    first = Training([0.3, 0.1, 0.1, 0.1, 0.9], 2)
    assert first.run(5) == 3
    second = Training(first.results, 2)
    second.stop.load_state_dict(first.stop.state_dict())
    second.trainer.load_state_dict({"epoch_length": 1, "max_epochs": 5, "iteration": 3})
    steps: list[int] = []
    second.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: steps.append(engine.state.iteration))
    second.run(5)
    assert not steps


def test_a_resumed_training_ends_where_it_would_have() -> None:
    results = [0.1, 0.3, 0.2, 0.25, 0.3, 0.5, 0.6]
    first = Training(results, 3)
    first.run(4)
    second = Training(results, 3)
    second.stop.load_state_dict(json.loads(json.dumps(first.stop.state_dict())))
    second.trainer.state.epoch = 4
    second.results = results
    second.trainer.load_state_dict({"epoch_length": 1, "max_epochs": 7, "iteration": 4})
    assert second.run(7) == 5


def test_the_key_metric_before_the_first_validation() -> None:
    training = Training([0.4], 1)
    assert math.isnan(key_metric(training.evaluator)(training.trainer))
    training.run(1)
    assert key_metric(training.evaluator)(training.trainer) == 0.4
