"""Mistakes in starting several processes: each ends in one line before anything is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ignite.distributed as idist
import pytest
import torch
from bundle_list import NAMES
from monai.bundle import ConfigWorkflow
from regzoo.engines import start_process_group
from regzoo.errors import RegZooError, user_error

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
PARTS = {"train": ["train.json"], "evaluate": ["train.json", "evaluate.json"], "inference": ["inference.json"]}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def line_of_start(bundle: str, files: list[str], output: Path) -> str:
    """The line that the first step of a workflow ends in."""
    configs = BUNDLES / bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / name) for name in files],
        logging_file=False,
        workflow_type="infer" if files == PARTS["inference"] else "train",
        bundle_root=str(BUNDLES / bundle),
        dataset_dir=str(output / "nothing"),
        output_dir=str(output / "output"),
    )
    with pytest.raises(RuntimeError) as caught:
        workflow.initialize()
    line = str(user_error(caught.value))
    assert "\n" not in line and not list(output.iterdir())
    return line


@pytest.mark.parametrize("bundle", NAMES)
@pytest.mark.parametrize("part", ["train", "evaluate"])
def test_the_overlay_without_torchrun(bundle: str, part: str, tmp_path: Path) -> None:
    line = line_of_start(bundle, [*PARTS[part], f"multi_gpu_{part}.json"], tmp_path)
    assert "need several processes; start with torchrun" in line


@pytest.mark.parametrize("bundle", NAMES)
@pytest.mark.parametrize("part", PARTS)
def test_torchrun_without_the_overlay(bundle: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = line_of_start(bundle, PARTS[part], tmp_path)
    assert line.startswith("2 processes were started, but the configuration is for one; add configs/multi_gpu")


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(idist, "initialize", started.append)
    for name, value in {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    start_process_group()
    assert started == ["nccl"]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(RegZooError, match="process 2 has no GPU of its own; start at most 2"):
        start_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["prostate_mr_trus_weak_ddf"])
def test_fewer_cases_than_processes(bundle: str, dataset: Path, tmp_path: Path) -> None:
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "monai.bundle", "run"]
    arguments += ["--config_file", str([f"configs/{name}" for name in (*PARTS["evaluate"], "multi_gpu_evaluate.json")])]
    arguments += ["--dataset_dir", str(dataset), "--output_dir", str(tmp_path / "output")]
    arguments += ["--max_pairs", "1", "--checkpoint", "models/model.pt"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=BUNDLES / bundle,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "error: " in line]
    assert lines and all("2 processes cannot share 1 cases to evaluate; start at most 1" in line for line in lines)
