"""Running a study: what is run, what is not run again, failures, changes, and kills at random moments."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from regzoo.engines.data import split_images, split_pairs, training_images, training_records
from regzoo.errors import RegZooError
from regzoo_tools.study import cells
from regzoo_tools.study.cells import Cell, cells_of, folder_of, lock_of, locked, read_facts
from regzoo_tools.study.description import Study, read_study
from regzoo_tools.study.scheduling import _check_data, _environment, run_study
from regzoo_tools.study.status import states, status_text
from regzoo_tools.study.work import Work, command, evaluation_overlay, run_cell, training_overlay
from synthetic import finished

BUNDLE = "prostate_mr_trus_weak_ddf"
WriteStudy = Callable[..., Path]


def starts(study: Study) -> list[str]:
    """What the pretended Python was started for."""
    path = study.folder / "starts.txt"
    return path.read_text().splitlines() if path.exists() else []


def all_starts(study: Study) -> set[str]:
    """What has to be started for a whole study without baselines."""
    return {f"{cell.name} {part}" for cell in cells_of(study) for part in ("training", "evaluation")}


def run_all(study: Study, run: str = "") -> None:
    """Run all cells in this process."""
    for cell in cells_of(study):
        run_cell(study, cell, run)


def test_two_workers_run_every_cell_once(write_study: WriteStudy, capsys: pytest.CaptureFixture[str]) -> None:
    study = read_study(write_study())
    run_study(study, jobs=2)
    assert Counter(starts(study)) == dict.fromkeys(all_starts(study), 1)
    assert "6/6 " in capsys.readouterr().out
    facts = json.loads((study.folder / "cells/sum_fold1of3_repeat0/cell.json").read_text())
    expected = {"method": "sum", "bundle": BUNDLE, "overlays": [], "data": "prostate", "baseline": None, "folds": 3}
    expected |= {"fold": 1, "repeat": 0, "seed": 0, "training_size": None, "status": "done", "error": None}
    assert facts.items() >= expected.items()
    assert (facts["trained_on"], facts["training_seconds"]) == (2, 4.0)
    assert [known["cell"] for known in finished(study)] == [cell.name for cell in cells_of(study)]
    run_study(study, jobs=2)
    assert len(starts(study)) == 12
    assert json.loads((study.folder / "study.json").read_text())["methods"]["sum"]["bundle"] == BUNDLE


def test_a_failed_cell_says_why_and_is_tried_again(write_study: WriteStudy) -> None:
    wrong = {"bad": {"bundle": BUNDLE, "settings": {"learning_rate": -1}}, "sum": {"bundle": BUNDLE}}
    study = read_study(write_study(methods=wrong, folds=None))
    with pytest.raises(RegZooError, match="1 of 2 cells are not done; regzoo study status shows why"):
        run_study(study)
    bad, good = cells_of(study)
    assert read_facts(study, good)["status"] == "done"
    assert read_facts(study, bad)["error"].endswith("step 1\nerror: the loss is not finite")
    text = status_text(study)
    assert "bad_repeat0: failed: the training ended with status 1" in text
    assert "    error: the loss is not finite" in text
    assert starts(study).count("bad_repeat0 training") == 1
    run_cell(study, bad, "another run")
    run_cell(study, bad, "another run")  # another worker of the same run
    assert starts(study).count("bad_repeat0 training") == 2


def test_a_cell_waits_for_its_starting_weights(write_study: WriteStudy) -> None:
    entries = {"second": {"bundle": BUNDLE, "start": "first"}, "first": {"bundle": BUNDLE, "measured": False}}
    study = read_study(write_study(methods=entries, folds=None))
    first, second = cells_of(study)
    run_cell(study, second)
    assert read_facts(study, second)["error"] == "first_repeat0, whose weights it starts from, is not done"
    assert starts(study) == []
    run_cell(study, first)
    run_cell(study, second, "again")
    assert starts(study) == ["first_repeat0 training", "second_repeat0 training", "second_repeat0 evaluation"]
    overlay = training_overlay(study, second)
    assert overlay["init_weights"] == str(folder_of(study, first) / "training" / "last.pt")


def test_only_what_is_missing_of_a_cell_is_done(write_study: WriteStudy) -> None:
    study = read_study(write_study(folds=None))
    cell = cells_of(study)[0]
    with locked(lock_of(study, cell)):
        run_cell(study, cell)
        assert states(study)[cell] == "running"
    assert starts(study) == []
    run_cell(study, cell)
    facts = folder_of(study, cell) / "cell.json"
    facts.write_text(facts.read_text().replace('"done"', '"running"'))  # killed in its evaluation
    assert states(study)[cell] == "interrupted"
    run_cell(study, cell)
    assert starts(study) == [f"{cell.name} {part}" for part in ("training", "evaluation", "evaluation")]


def test_a_job_that_slurm_starts_again_tries_its_cell_again(
    write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = read_study(write_study(methods={"bad": {"bundle": BUNDLE, "settings": {"learning_rate": -1}}}, folds=None))
    for restarts, count in ((None, 1), (None, 1), ("1", 2), ("1", 2), ("2", 3)):
        if restarts:
            monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        Work()(study, cells_of(study), "run", {})
        assert len(starts(study)) == count
    # A study that runs on its own within such a job still tells how its cells end.
    with pytest.raises(RegZooError, match="1 of 1 cells are not done"):
        run_study(study)
    assert "1/1 bad_repeat0: failed" in capsys.readouterr().out


def test_a_change_touches_the_cells_that_it_concerns(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = {"a": {"bundle": BUNDLE}, "b": {"bundle": BUNDLE}, "c": {"bundle": BUNDLE, "start": "b"}}
    run_all(read_study(write_study(methods=entries, folds=None)))
    study = read_study(write_study(methods=entries, folds=None, report={"claims": []}, title="Other words"))
    assert set(states(study).values()) == {"done"}
    entries["b"]["settings"] = {"batch_size": 3}
    study = read_study(write_study(methods=entries, folds=None))
    assert {cell.method: state for cell, state in states(study).items()} == {
        "a": "done",
        "b": "outdated",
        "c": "outdated",
    }
    assert "b_repeat0: was made with other settings; regzoo study run --redo" in status_text(study)
    with pytest.raises(RegZooError, match="2 of 3 cells are not done; --redo runs them again"):
        run_study(study)
    assert "c_repeat0: was made with other starting weights; kept" in capsys.readouterr().out
    assert [facts["method"] for facts in finished(study)] == ["a"]
    assert len(starts(study)) == 6
    run_study(study, redo=True)
    assert len(starts(study)) == 10 and len(finished(study)) == 3
    assert (study.folder / "outdated" / "b_repeat0.1" / "evaluation" / "cases.csv").is_file()


def test_data_are_their_records_and_the_content_of_their_files(write_study: WriteStudy, tmp_path: Path) -> None:
    """The study lies in the folder of its data."""
    images = tmp_path / "images"
    content = json.loads(write_study(folds=None).read_text()) | {"data": {"prostate": {"dataset_dir": "."}}}
    (images / "study.json").write_text(json.dumps(content))
    study = read_study(images / "study.json")

    def read() -> set[str]:
        cells.data_hashes.clear()
        return set(states(study).values())

    run_all(study)
    (images / ".DS_Store").touch()
    (images / "c.nii.gz").touch()
    hashes = study.folder / "hashes.json"
    assert read() == {"done"} and str(images / "c.nii.gz") in json.loads(hashes.read_text())
    hashes.unlink()
    assert read() == {"done"}
    (images / "h.nii.gz").write_bytes(b"0")  # of the pair that is held out
    assert read() == {"outdated"}
    (images / "h.nii.gz").write_bytes(b"")
    assert read() == {"done"}
    table = (images / "datalist.csv").read_text()
    (images / "datalist.csv").write_text(table.replace("c.nii.gz,d.nii.gz,train", "c.nii.gz,d.nii.gz,val"))
    assert read() == {"outdated"}


def test_a_tool_that_is_not_installed_is_skipped(write_study: WriteStudy) -> None:
    tool = {"bundle": BUNDLE, "baseline": "tool", "tool": ["./no/such/program", "SyN"]}
    study = read_study(write_study(methods={"SyN": tool}, folds=None))
    run_study(study)
    assert "SyN_repeat0: skipped:" in status_text(study) and starts(study) == []


def read_command(words: list[str]) -> tuple[list[str], list[str]]:
    """The words of a command before its configurations, and the names of these."""
    assert words[-2] == "--config_file"
    return words[:-2], [Path(file).name for file in ast.literal_eval(words[-1])]


def test_the_commands(write_study: WriteStudy) -> None:
    settings = {"max_epochs": 4, "batch_size": 2}
    study = read_study(write_study(overlays=["demo"], settings=settings, evaluation={"refine": True}, python=None))
    cell = Cell("finest level", 3, 2, 1)
    start, configs = read_command(command(study, cell, "training"))
    assert start == [sys.executable, "-m", "monai.bundle", "run", "training"]
    assert configs == ["train.json", "demo.json", "delta0.json", "training.json"]
    start, configs = read_command(command(study, cell, "evaluation"))
    assert start == [sys.executable, "-m", "monai.bundle", "run"]
    assert configs == ["train.json", "demo.json", "delta0.json", "evaluate.json", "evaluation.json"]
    trains, evaluates = training_overlay(study, cell), evaluation_overlay(study, cell)
    shared = settings | {"fold": 2, "folds": 3, "seed": 1, "dataset_dir": study.data["prostate"]["dataset_dir"]}
    assert trains.items() >= shared.items() and evaluates.items() >= shared.items()
    assert "refine" not in trains and evaluates["refine"] is True
    assert evaluates["checkpoint"] == f"{trains['output_dir']}/last.pt" and evaluates["eval_split"] == "fold"
    several, _ = read_command(command(replace(study, processes=2), cell, "training"))
    assert several[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert read_command(command(replace(study, processes=2), cell, "training"))[1][-2:] == [
        "multi_gpu_train.json",
        "training.json",
    ]


def test_a_training_set_size_leaves_the_evaluation_alone(write_study: WriteStudy) -> None:
    entries = {"a": {"bundle": BUNDLE}, "b": {"bundle": "abdominal_ct_ddmr"}}
    study = read_study(write_study(methods=entries, folds=None, training_sizes=[3], evaluation={"eval_split": "val"}))
    for cell, setting in zip(cells_of(study), ("max_pairs", "max_images"), strict=True):
        assert training_overlay(study, cell)[setting] == 3
        assert training_overlay(study, cell)["folds"] is None  # validation uses the part that is held out
        assert setting not in evaluation_overlay(study, cell)
        assert evaluation_overlay(study, cell)["eval_split"] == "val"


@pytest.mark.parametrize(("bundle", "setting"), [(BUNDLE, "max_pairs"), ("abdominal_ct_ddmr", "max_images")])
def test_a_training_set_has_the_size_that_the_study_says(
    write_study: WriteStudy, bundle: str, setting: str, tmp_path: Path
) -> None:
    """Also where the training would hold cases out for its validation, or could not."""
    study = read_study(write_study(methods={"a": {"bundle": bundle}}, folds=None, training_sizes=[3]))
    table = tmp_path / "images" / "datalist.csv"
    table.write_text(table.read_text().replace("val", "test"))
    overlay = training_overlay(study, cells_of(study)[0])
    folder, fold = overlay["dataset_dir"], (overlay["fold"], overlay["folds"])
    if setting == "max_pairs":
        division = split_pairs(training_records(folder, count=overlay[setting]), *fold, folder=folder)
    else:
        images = training_images(folder, overlay[setting])
        division = split_images(images, *fold, tmp_path / "pairs.json", folder=folder)
    assert len(division.training) == 3 and division.validation


def test_other_data_make_other_pairs(write_study: WriteStudy) -> None:
    """Or the evaluation would find pairs of other images, after its training."""
    study = read_study(write_study(methods={"a": {"bundle": "abdominal_ct_ddmr"}}, folds=None))
    (cell,) = cells_of(study)
    before = evaluation_overlay(study, cell)["pairs_file"]
    assert evaluation_overlay(study, cell)["pairs_file"] == before
    (study.folder.parents[1] / "images" / "a.nii.gz").write_bytes(b"0")
    cells.data_hashes.clear()
    assert evaluation_overlay(study, cell)["pairs_file"] != before


def test_workers_share_processors_and_gpus(write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = read_study(write_study(processes=2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    assert _environment(study, 1, 4) == {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "6,4"}


def test_mistakes_in_the_command(write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = read_study(write_study())
    with pytest.raises(RegZooError, match="--executor slrum: is not known; use one of local, slurm"):
        run_study(study, "slrum")
    with pytest.raises(RegZooError, match="--jobs 0: is below 1"):
        run_study(study, jobs=0)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RegZooError, match="there is no sbatch here"):
        run_study(study, "slurm")
    path = write_study(data={"prostate": {"phantoms": {"pair": 3}}})
    with pytest.raises(RegZooError, match=r"study\.json: data\.prostate\.phantoms: .* no 'pair'; did you mean pairs"):
        run_study(read_study(path))


@pytest.mark.parametrize(
    ("data", "bundle", "said"),
    [
        ({"dataset_dir": "images"}, BUNDLE, "data.prostate, 4 cases: 4 patient(s) cannot make 9 folds"),
        ({"dataset_dir": "images"}, "abdominal_ct_ddmr", "data.prostate, 8 cases: 8 patient(s) cannot make 9 folds"),
        ({"phantoms": {"pairs": 9}}, BUNDLE, "data.prostate: 6 patients with 9 pairs cannot make 9 folds"),
        ({"phantoms": {"kind": "brain", "cases": 4}}, BUNDLE, "4 patients with 4 cases cannot make 9 folds"),
        ({"phantoms": {"pairs": 3, "pair": 3}}, BUNDLE, "phantoms: phantoms of kind 'prostate' have no 'pair'"),
    ],
)
def test_more_folds_than_cases(write_study: WriteStudy, data: dict[str, object], bundle: str, said: str) -> None:
    path = write_study(data={"prostate": data}, methods={"one": {"bundle": bundle}}, folds=[2, 9])
    study = read_study(path)
    with pytest.raises(RegZooError) as caught:
        run_study(study)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and said in line and "\n" not in line
    assert not study.folder.parent.exists()


OWN_FOLDS = "fixed_image,moving_image,fold\na.nii.gz,b.nii.gz,0\nc.nii.gz,d.nii.gz,2\n"
NO_VALIDATION = "fixed_image,moving_image\na.nii.gz,b.nii.gz\n"


@pytest.mark.parametrize(
    ("changes", "table", "said"),
    [
        ({"folds": 2}, OWN_FOLDS, "data.prostate: its own folds are 0, 2, not 0 to 1; write how many"),
        ({"folds": None}, NO_VALIDATION, "datalist.csv: has no pairs of the split 'val' (it has: train)"),
        ({"folds": None, "data": {"prostate": {"phantoms": {"pairs": 9, "held_out": 0}}}}, None, "hold nothing out"),
        (
            {"folds": None, "training_sizes": [2, 4]},
            None,
            "training_sizes asks for 4 cases to train on, and there are 3",
        ),
        (
            {"folds": None, "training_sizes": [7], "data": {"prostate": {"phantoms": {"pairs": 6}}}},
            None,
            "training_sizes asks for 7 cases to train on, and there are 6; write smaller numbers",
        ),
        ({"folds": None, "evaluation": {"eval_split": "train"}}, None, "would be measured on cases of its training"),
        (
            {"folds": None, "training_sizes": [2], "evaluation": {"eval_split": "fold"}},
            None,
            "would be measured on cases of its training (eval_split 'fold')",
        ),
        (
            {"folds": None, "evaluation": {"eval_split": "vall"}, "data": {"prostate": {"phantoms": {"pairs": 6}}}},
            None,
            "phantoms have no part 'vall'; did you mean val?",
        ),
    ],
)
def test_data_that_cannot_give_what_is_asked(
    write_study: WriteStudy, tmp_path: Path, changes: dict[str, object], table: str | None, said: str
) -> None:
    study = read_study(write_study(**changes))
    if table:
        (tmp_path / "images" / "datalist.csv").write_text(table)
    with pytest.raises(RegZooError) as caught:
        run_study(study)
    assert re.match(rf"{study.file}: (data\.prostate|methods\.)", str(caught.value)) and said in str(caught.value)
    assert not study.folder.parent.exists()


def test_data_of_baselines_need_no_part_to_train_on(write_study: WriteStudy, tmp_path: Path) -> None:
    """Beside a data set to train on, with trainings of several sizes."""
    (tmp_path / "patients").mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / "patients" / name).touch()
    (tmp_path / "patients" / "datalist.csv").write_text("fixed_image,moving_image,split\na.nii.gz,b.nii.gz,val\n")
    described = {"data": {"patients": {"dataset_dir": "patients"}}, "folds": None, "training_sizes": [9]}
    study = read_study(write_study(methods={"identity": {"bundle": BUNDLE, "baseline": "identity"}}, **described))
    _check_data(study, "patients")


def start_run(study: Path, jobs: int = 2) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "regzoo", "study", "run", str(study), "--jobs", str(jobs)]
    return subprocess.Popen(
        words,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A shell lets its background jobs ignore it, and they pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_a_run_ends_its_trainings(write_study: WriteStudy, number: signal.Signals) -> None:
    study = read_study(write_study(settings={"warmup_steps": 600_000}))
    process = start_run(study.file)
    end = time.monotonic() + 240
    while len(starts(study)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert list(states(study).values()).count("running") == 2
    process.send_signal(number)
    assert process.wait(120) != 0
    end = time.monotonic() + 60
    while "running" in states(study).values() and time.monotonic() < end:
        time.sleep(0.05)
    assert list(states(study).values()).count("interrupted") == 2


def processes_of(study: Study) -> list[int]:
    """The processes that belong to runs of a study: those that name its folder or its file."""
    own = str(study.file.parent).encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if own in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_ten_kills_at_random_moments_lose_nothing(write_study: WriteStudy) -> None:
    """One of all processes, or all of them, are killed; afterwards every cell is done, and no finished part twice."""
    study = read_study(write_study(folds=None, repeats=30, settings={"warmup_steps": 60}))
    chance = random.Random(7)
    for kill in range(10):
        process = start_run(study.file)
        begin, seen = time.monotonic(), len(starts(study))
        while len(starts(study)) < seen + 2 and time.monotonic() < begin + 60:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        done = {facts["cell"] for facts in finished(study)}
        before = Counter(starts(study))
        victims = processes_of(study)
        if kill % 2 == 0:
            kill_all(chance.sample(victims, min(1, len(victims))))
            time.sleep(0.3)
        # A process may start another one while the list is made.
        while victims := processes_of(study):
            kill_all(victims)
        process.wait(30)
        after = Counter(starts(study))
        assert not {start for start in after - before if start.split()[0] in done}
    run_study(study, jobs=2)
    assert len(finished(study)) == 60
    assert set(starts(study)) == all_starts(study)
    # Each kill costs at most the part that each of two workers was at.
    assert len(starts(study)) <= 120 + 2 * 10


@pytest.mark.slow
def test_many_cells(write_study: WriteStudy) -> None:
    """`benchmarks/study_overhead.py` runs a thousand."""
    study = read_study(write_study(folds=None, repeats=100))
    run_study(study, jobs=4)
    assert Counter(Counter(starts(study)).values()) == {1: 400}
    assert len(finished(study)) == 200
