"""What a run leaves about itself: command, configuration, data, versions, log, metrics; resumed, started anew."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from bundle_list import REPRESENTATIVES, tiny
from dicom_files import write_series
from ignite.engine import Engine
from monai.bundle import ConfigWorkflow
from regzoo import files
from regzoo.datasets import load_records
from regzoo.engines import EventWriter, RunRecord, TrainingCheckpoint
from regzoo.engines.identity import fingerprints, whole_hash
from regzoo.engines.record import describe_run, set_aside
from regzoo.errors import RegZooError
from regzoo.report import read_csv
from regzoo_tools.curves import read_curves
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_divergence import BUNDLES

RECORD = {"run.json", "config.json", "data.json", "log.txt", "epochs.csv"}
WEAK = "prostate_mr_trus_weak_ddf"


@pytest.fixture(autouse=True)
def lines_of_all_levels() -> Iterator[None]:
    """As the bundles' logging.conf has it, which would silence pytest."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    yield
    root.setLevel(level)


def run(bundle: str, dataset: Path, output: Path, *files: str, **overrides: Any) -> None:
    configs = BUNDLES / bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / name) for name in ("train.json", *files)],
        logging_file=False,
        bundle_root=str(BUNDLES / bundle),
        dataset_dir=str(dataset),
        output_dir=str(output),
        **{**tiny(bundle), "samples_per_epoch": 2, **overrides},
    )
    for part in (workflow.initialize, workflow.run, workflow.finalize):
        part()


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record and the checkpoint need the hashes of all files; large sets are not read twice for that."""
    read = []
    (tmp_path / "a.nii").write_bytes(b"a")
    monkeypatch.setattr(files, "file_hash", lambda path: read.append(path) or "0123456789" * 4)
    records = [{"case": "a", "fixed_image": str(tmp_path / "a.nii"), "moving_image": str(tmp_path / "a.nii")}]
    fingerprints(records)
    describe_run(tmp_path, {"training": records}, None)
    assert read == [tmp_path / "a.nii"]
    assert content(tmp_path / "data.json")["training"][0]["files"] == {str(tmp_path / "a.nii"): "0123456789" * 4}


@pytest.mark.parametrize("kind", ["series", "one of a series", "header and data", "points"])
def test_an_image_in_several_files_is_identified_by_all_of_them(kind: str, tmp_path: Path) -> None:
    voxels = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    if kind == "points":
        named = last = tmp_path / "points.csv"
        named.write_text("1,2,3\n", encoding="utf-8")
        assert whole_hash(named) == hashlib.sha256(named.read_bytes()).hexdigest()
    elif kind == "header and data":
        named, last = tmp_path / "image.mhd", tmp_path / "image.raw"
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(named))
    else:
        slices = write_series(tmp_path / "series", voxels, np.diag([1.0, 2, 3, 1]))
        named, last = tmp_path / "series" if kind == "series" else slices[0], slices[-1]
    before = whole_hash(named)
    assert whole_hash(named) == before
    last.write_bytes(last.read_bytes()[:-2] + b"\1\0")
    assert whole_hash(named) != before
    with pytest.raises(RegZooError, match="no such file"):
        whole_hash(tmp_path / "gone.nii.gz")


@pytest.mark.parametrize("bundle", REPRESENTATIVES)
def test_a_training_and_its_evaluation(bundle: str, dataset: Path, tmp_path: Path) -> None:
    run(bundle, dataset, tmp_path, learning_rate=1e-3)
    assert {path.name for path in tmp_path.iterdir()} >= RECORD
    (start,) = content(tmp_path / "run.json")["runs"]
    assert shlex.split(start["command"]) == sys.orig_argv and start["first_epoch"] == 1
    # A wheel of PyTorch may name the build (+cu128) in the module only.
    assert torch.__version__.startswith(start["versions"]["torch"]) and start["versions"]["numpy"] == np.__version__
    assert len(start["versions"]["commit"].removesuffix("-dirty")) == 40
    config = content(tmp_path / "config.json")
    assert (config["learning_rate"], config["max_epochs"], config["device"], config["amp"]) == (1e-3, 2, "cpu", False)
    assert config["dataset_dir"] == config["data_folder"] == str(dataset) and config["output_dir"] == str(tmp_path)
    data = content(tmp_path / "data.json")
    cases = [case["case"] for part in data.values() for case in part]
    assert set(data) == {"training", "validation"} and len(cases) >= 8
    for part in data.values():
        for path, digest in part[0]["files"].items():
            assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest
    table, curves = read_csv(tmp_path / "epochs.csv"), read_curves(tmp_path)
    assert table["epoch"] == ["1", "2"] and all(float(seconds) > 0 for seconds in table["seconds"])
    for name, curve in curves.items():  # as TensorBoard has them
        values = [float(value) if value else np.nan for value in table[name]]
        assert values == pytest.approx(list(curve.values()), rel=1e-4, nan_ok=True), name
    assert set(table) == {"epoch", "seconds", *curves}
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert " INFO epoch 1/2: loss total " in log and " INFO epoch 2/2: loss total " in log

    run(bundle, dataset, tmp_path, "evaluate.json", pictures=0)
    folder = tmp_path / "evaluation"
    assert {path.name for path in folder.iterdir()} >= RECORD - {"epochs.csv"}
    assert content(folder / "config.json")["checkpoint"] == str(tmp_path / "model.pt")
    measured = [case["case"] for case in content(folder / "data.json")["evaluated"]]
    assert sorted(measured) == sorted(read_csv(folder / "cases.csv")["case"])
    assert content(tmp_path / "run.json")["runs"] == [start]


@pytest.mark.parametrize("bundle", [WEAK])
def test_resumed_and_started_anew(bundle: str, dataset: Path, tmp_path: Path) -> None:
    total = {"lr_scheduler#t_total": 4}
    run(bundle, dataset, tmp_path, max_epochs=2, **total)
    before = read_csv(tmp_path / "epochs.csv")
    # As a kill in the third epoch leaves it, after the validation and before the checkpoint.
    with (tmp_path / "epochs.csv").open("a", encoding="utf-8") as file:
        file.write("3," + ",".join(["77"] * (len(before) - 1)) + "\n")
    writer = EventWriter(tmp_path)
    for tag in ("loss/total", "tre"):
        writer.add_scalar(tag, 77.0, 3)
    writer.flush()
    run(bundle, dataset, tmp_path, max_epochs=4, **total)
    table = read_csv(tmp_path / "epochs.csv")
    assert table["epoch"] == ["1", "2", "3", "4"]
    assert {name: values[:2] for name, values in table.items()} == before
    assert [run["first_epoch"] for run in content(tmp_path / "run.json")["runs"]] == [1, 3]
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert log.count("epoch 1/2: loss") == log.count("epoch 3/4: loss") == 1 and "at epoch 2" in log
    events = EventAccumulator(str(tmp_path)).Reload()
    for tag in ("loss/total", "tre"):
        values = {event.step: event.value for event in events.Scalars(tag)}
        assert list(values) == [1, 2, 3, 4] and 77 not in values.values()
        assert len(events.Scalars(tag)) == 4

    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    run(bundle, dataset, tmp_path, max_epochs=1, resume=False)
    aside = tmp_path / "earlier_1"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} | {"mine.txt": b"mine"} == old
    assert (tmp_path / "mine.txt").is_file()
    assert read_csv(tmp_path / "epochs.csv")["epoch"] == ["1"] == [str(epoch) for epoch in read_curves(tmp_path)["tre"]]
    assert len(content(tmp_path / "run.json")["runs"]) == 1
    assert "earlier run are now in" in (tmp_path / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("bundle", [WEAK])
def test_a_run_that_is_refused_leaves_the_record_alone(bundle: str, dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    run(bundle, dataset, output, max_epochs=1)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(RuntimeError):  # other settings than those it was trained with
        run(bundle, dataset, output, max_epochs=2, seed=7)
    records = load_records(dataset, "train")
    del records[0]["fixed_label"], records[0]["moving_label"]
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"training": records, "validation": load_records(dataset, "val")}), encoding="utf-8")
    with pytest.raises(RuntimeError):
        run(bundle, bad, output, resume=False)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_warnings_are_shown_and_logged(tmp_path: Path) -> None:
    config = {
        "imports": ["$import regzoo", "$import warnings", "$import logging"],
        "folder": str(tmp_path),
        "initialize": ["$regzoo.engines.output_folder(@folder)", "$warnings.warn('the first', UserWarning)"],
        "run": [
            "$logging.getLogger('x').warning('the second %d', 2)",
            "$regzoo.engines.record.describe_run(@folder, {}, regzoo.engines.running.running_workflow())",
            "$warnings.warn('the third', UserWarning)",
        ],
    }
    (tmp_path / "x.json").write_text(json.dumps(config), encoding="utf-8")

    def once() -> None:
        workflow = ConfigWorkflow(str(tmp_path / "x.json"), meta_file=None, logging_file=False, workflow_type=None)
        workflow.initialize()
        workflow.run()

    gc.collect()  # workflows that ended in an exception in other tests
    with pytest.warns(UserWarning, match="the") as shown:
        handlers = list(logging.getLogger().handlers)
        once()
        assert logging.getLogger().handlers == handlers  # it has ended with its workflow
        warnings.warn("not of the run", UserWarning, stacklevel=1)
    log = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    log = [line for line in log if "Logging file" not in line]
    assert [line.split(" ", 2)[2].split(" (")[0] for line in log] == [
        "WARNING UserWarning: the first",
        "WARNING the second 2",
        "WARNING UserWarning: the third",
    ]
    assert [str(one.message) for one in shown] == ["the first", "the third", "not of the run"]


def trainer(folder: Path, resume: bool = True) -> Engine:
    engine = Engine(lambda *_: None)
    engine.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    RunRecord(folder, {}, resume=resume).attach(engine)
    TrainingCheckpoint(folder, torch.nn.Linear(1, 1), resume=resume).attach(engine)
    return engine


def test_rounds_of_a_federation_are_one_record(tmp_path: Path) -> None:
    """A client runs its trainer again in each round, and starts anew where another process has trained."""
    trainer(tmp_path).run([0], max_epochs=2)
    engine = trainer(tmp_path, resume=False)
    for epochs in (1, 2, 3):
        engine.run([0], max_epochs=epochs)
    assert read_csv(tmp_path / "epochs.csv")["epoch"] == ["1", "2", "3"]
    assert [path.name for path in tmp_path.glob("earlier_*")] == ["earlier_1"]
    assert len(content(tmp_path / "run.json")["runs"]) == 1


@pytest.mark.parametrize(("name", "text"), [("epochs.csv", "epoch,a\nfirst,2\n"), ("run.json", "{}")])
def test_a_file_of_somebody_else_is_left_alone(name: str, text: str, tmp_path: Path) -> None:
    trainer(tmp_path).run([0], max_epochs=1)
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(RegZooError, match=rf"{name}: is not the .* of a training; move it"):
        trainer(tmp_path).run([0], max_epochs=2)
    assert (tmp_path / name).read_text(encoding="utf-8") == text


def test_nothing_is_ever_set_aside_over_something(tmp_path: Path) -> None:
    set_aside(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "earlier_1").mkdir()
    for number in (2, 3):
        (tmp_path / "model.pt").write_text(str(number), encoding="utf-8")
        (tmp_path / "events.out.tfevents.7").touch()
        set_aside(tmp_path)
    assert [(tmp_path / f"earlier_{n}" / "model.pt").read_text(encoding="utf-8") for n in (2, 3)] == ["2", "3"]
