"""A study on a real Slurm: ``make test-slurm`` starts one of one node, and sets ``REGZOO_SLURM``."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from regzoo.errors import RegZooError
from regzoo_tools.study.cells import cells_of, read_facts
from regzoo_tools.study.description import Study, read_study
from regzoo_tools.study.scheduling import run_study, submitted_cells
from regzoo_tools.study.status import states
from synthetic import finished

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("REGZOO_SLURM" not in os.environ, reason="needs Slurm; run make test-slurm"),
]
BUNDLE = "prostate_mr_trus_weak_ddf"
SLURM = {"timeout_min": 5, "cpus_per_task": 1}


def wait(study: Study, until: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, (states(study), subprocess.check_output(["squeue"], text=True))
        time.sleep(0.5)


def starts(study: Study) -> Counter[str]:
    path = study.folder / "starts.txt"
    return Counter(path.read_text().splitlines() if path.exists() else [])


def test_an_array_and_the_cells_that_start_from_it(write_study: Callable[..., Path]) -> None:
    entries = {"first": {"bundle": BUNDLE, "settings": {"warmup_steps": 2000}}}
    entries["second"] = {"bundle": BUNDLE, "start": "first"}
    study = read_study(write_study(methods=entries, slurm=SLURM))
    run_study(study, "slurm", jobs=2)
    assert len(submitted_cells(study)) == 6 and set(states(study).values()) <= {"submitted", "running"}
    run_study(study, "slurm", jobs=2)  # submits nothing twice
    most = 0
    while submitted_cells(study):
        listed = subprocess.check_output(["squeue", "--noheader", "--states=R"], text=True)
        most = max(most, len(listed.splitlines()))
        time.sleep(0.3)
    assert 1 <= most <= 2
    assert len(finished(study)) == 6 and set(starts(study).values()) == {1}


def test_a_training_that_reaches_its_time_limit_goes_on(write_study: Callable[..., Path]) -> None:
    """The first start sleeps until Slurm's signal, which may come a minute early; the second goes on with its files."""
    entries = {"long": {"bundle": BUNDLE, "settings": {"learning_rate": 2}}}
    study = read_study(write_study(methods=entries, folds=None, slurm={"timeout_min": 3, "slurm_signal_delay_s": 60}))
    run_study(study, "slurm")
    wait(study, lambda: not submitted_cells(study), 600)
    assert len(finished(study)) == 1
    assert starts(study) == {"long_repeat0 training": 2, "long_repeat0 evaluation": 1}


def test_a_cancelled_job_is_submitted_again(write_study: Callable[..., Path]) -> None:
    entries = {"a": {"bundle": BUNDLE, "settings": {"warmup_steps": 60_000}}, "b": {"bundle": BUNDLE}}
    study = read_study(write_study(methods=entries, folds=None, slurm=SLURM))
    run_study(study, "slurm", jobs=2)
    wait(study, lambda: starts(study)["a_repeat0 training"] == 1, 60)
    subprocess.check_call(["scancel", "--me"])
    wait(study, lambda: not submitted_cells(study), 60)
    facts = read_facts(study, cells_of(study)[0])
    assert facts["status"] == "failed" and facts["error"].startswith("the training was ended by SIGTERM")
    study = read_study(write_study(methods={"a": {"bundle": BUNDLE}, "b": {"bundle": BUNDLE}}, folds=None, slurm=SLURM))
    run_study(study, "slurm", redo=True)
    wait(study, lambda: not submitted_cells(study), 60)
    assert {read_facts(study, cell)["status"] for cell in cells_of(study)} == {"done"}


def test_a_mistyped_parameter(write_study: Callable[..., Path]) -> None:
    study = read_study(write_study(slurm={"timeout_mins": 5}))
    with pytest.raises(RegZooError, match=r"study\.json: slurm: .*timeout_mins"):
        run_study(study, "slurm")
