"""`--tracking mlflow`: what arrives in the store, and that nothing goes anywhere else."""

from __future__ import annotations

import copy
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regzoo.engines
from bundle_list import REPRESENTATIVES, logged, narrow, on_single_images
from mlflow import MlflowClient
from mlflow.entities import Run
from monai.bundle import ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from regzoo.datasets import load_records
from regzoo.report import read_csv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
WEAK, SEG, SDM = "prostate_mr_trus_weak_ddf", "prostate_mr_trus_conditional_seg", "prostate_mr_trus_sdm"
DDMR = "abdominal_ct_ddmr"
EPOCHS, STEPS = 2, 2
#: What MLflow takes for a sign that it is being tested and has to keep quiet by itself.
SIGNS = ("CI", "PYTEST_CURRENT_TEST", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "BUILDKITE", "TEAMCITY_VERSION")
#: Read by Python at its start: writes down where a process connects to, or whose address it asks for.
LISTENER = """
import os, socket
def written(real, where):
    def wrapper(*args, **kwargs):
        with open(os.environ["CONNECTIONS"], "a") as file:
            print(where(args), file=file)
        return real(*args, **kwargs)
    return wrapper
socket.socket.connect = written(socket.socket.connect, lambda args: args[1][0] if args[1:] else "?")
socket.getaddrinfo = written(socket.getaddrinfo, lambda args: args[0])
written(str, lambda args: "listening")()
"""


@pytest.fixture
def root(bundle: str, tmp_path: Path) -> Path:
    """A copy of the bundle as it comes, in a repository that ignores what ours does."""
    (tmp_path / "home").mkdir()
    shutil.copy(BUNDLES.parent / ".gitignore", tmp_path / "home")
    ignored = shutil.ignore_patterns("output", "data")
    folder = tmp_path / "home" / "bundles" / bundle
    return Path(shutil.copytree(BUNDLES / bundle, folder, ignore=ignored))


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """None but the one that the bundle names."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield


def small(bundle: str) -> dict[str, Any]:
    if on_single_images(bundle):
        return {"spacing": [16.0] * 3, "size": [20, 14, 13], "channels": narrow(bundle)}
    return {"spacing": [5.0] * 3, "size": [18, 14, 13], "channels": 2}


def training(bundle: str, dataset: Path) -> dict[str, Any]:
    """What makes a training tiny."""
    tiny = {"batch_size": 2, "samples_per_epoch": 2 * STEPS, "max_epochs": EPOCHS, "folds": 2, "num_workers": 0}
    return small(bundle) | tiny | {"dataset_dir": str(dataset)}


def run(root: Path, *configs: str, tracking: Any = "mlflow", **overrides: Any) -> ConfigWorkflow:
    """Run configurations of a bundle as the command line does."""
    workflow = ConfigWorkflow(
        config_file=[str(root / "configs" / name) for name in configs],
        logging_file=False,
        workflow_type="infer" if "inference.json" in configs else "train",
        tracking=tracking,
        bundle_root=str(root),
        device="cpu",
        **overrides,
    )
    for part in (workflow.initialize, workflow.run, workflow.finalize):
        part()
    return workflow


def runs_in(database: Path) -> tuple[MlflowClient, list[Run]]:
    """The runs in a store, the latest first."""
    client = MlflowClient(f"sqlite:///{database}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client, client.search_runs(experiments)


def history(client: MlflowClient, run: Run, metric: str) -> dict[int, float]:
    return {point.step: point.value for point in client.get_metric_history(run.info.run_id, metric)}


def artifacts(client: MlflowClient, run: Run, folder: Path) -> dict[str, Path]:
    """The files that belong to a run, by name."""
    folder.mkdir()
    names = [file.path for file in client.list_artifacts(run.info.run_id)]
    return {name: Path(client.download_artifacts(run.info.run_id, name, str(folder))) for name in names}


@pytest.mark.parametrize("bundle", REPRESENTATIVES)
def test_what_arrives(bundle: str, root: Path, dataset: Path, tmp_path: Path) -> None:
    run(root, "train.json", **training(bundle, dataset))
    output = root / "output" / "train"
    client, (trained,) = runs_in(output / "mlruns.db")
    assert trained.info.status == "FINISHED"
    assert trained.data.params == {"max_epochs": str(EPOCHS), "epoch_length": str(STEPS)}
    steps = history(client, trained, "train_loss")
    assert list(steps) == list(range(1, EPOCHS * STEPS + 1))
    total = history(client, trained, "loss/total")
    assert total == pytest.approx({1: np.mean([steps[1], steps[2]]), 2: np.mean([steps[3], steps[4]])}, rel=1e-5)
    assert list(history(client, trained, "lr_group_0")) == list(steps)
    # What TensorBoard has, epoch by epoch.
    events = EventAccumulator(str(output)).Reload()
    for name in sorted(logged(bundle)):
        shown = {event.step: event.value for event in events.Scalars(name)}
        assert list(shown) == list(range(1, EPOCHS + 1)), name
        assert history(client, trained, name) == pytest.approx(shown, rel=1e-5, nan_ok=True), name
    ((name, path),) = artifacts(client, trained, tmp_path / "trained").items()
    config = json.loads(path.read_text(encoding="utf-8"))
    assert name.startswith("config_") and config["samples_per_epoch"] == 2 * STEPS

    run(root, "train.json", "evaluate.json", **training(bundle, dataset), pictures=0)
    client, (evaluated, same) = runs_in(output / "mlruns.db")
    assert same.info.run_id == trained.info.run_id and evaluated.info.status == "FINISHED"
    table = read_csv(output / "evaluation" / "cases.csv")
    for name, values in table.items():
        if name != "case" and all(values):
            expected = np.mean([float(value) for value in values])
            assert evaluated.data.metrics[name] == pytest.approx(expected, rel=1e-4, abs=1e-5), name
    assert any(name.startswith("before_") for name in evaluated.data.metrics)

    record = load_records(dataset, "val")[0] if not on_single_images(bundle) else pair(dataset)
    named = {key: record[key] for key in ("fixed_image", "moving_image", "moving_label")}
    weights = {"checkpoint": str(output / "model.pt")}
    run(root, "inference.json", **small(bundle), **named, **weights)
    client, (inferred,) = runs_in(root / "output" / "inference" / "mlruns.db")
    assert inferred.info.status == "FINISHED"
    ((name, path),) = artifacts(client, inferred, tmp_path / "inferred").items()
    assert json.loads(path.read_text(encoding="utf-8"))["fixed_image"] == record["fixed_image"]
    assert {path.name for path in root.iterdir()} == {"LICENSE", "configs", "docs", "models", "output"}


def pair(dataset: Path) -> dict[str, str]:
    """Two CTs."""
    images, labels = (sorted((dataset / f"{kind}Tr").glob("*.nii.gz")) for kind in ("images", "labels"))
    return {"fixed_image": str(images[0]), "moving_image": str(images[1]), "moving_label": str(labels[1])}


@pytest.mark.parametrize("bundle", [WEAK])
def test_an_interrupted_training_goes_on_in_its_run(bundle: str, root: Path, dataset: Path) -> None:
    settings = training(bundle, dataset) | {"lr_scheduler#t_total": EPOCHS * STEPS}
    # As a kill after the first epoch leaves it: nobody has ended the run.
    tracking = copy.deepcopy(DEFAULT_MLFLOW_SETTINGS)
    tracking["configs"]["trainer"]["close_on_complete"] = False
    run(root, "train.json", tracking=tracking, **settings | {"max_epochs": 1})
    database = root / "output" / "train" / "mlruns.db"
    assert [one.info.status for one in runs_in(database)[1]] == ["RUNNING"]
    run(root, "train.json", **settings)
    client, (whole,) = runs_in(database)
    assert whole.info.status == "FINISHED"
    assert list(history(client, whole, "tre")) == [1, 2]


@pytest.mark.parametrize("bundle", [SDM])
def test_named_by_the_user(bundle: str, root: Path, dataset: Path, tmp_path: Path) -> None:
    """MONAI's settings one by one, as options."""
    names = {"experiment_name": "prostate", "run_name": "first", "output_dir": str(tmp_path / "mine")}
    uri = f"sqlite:///{tmp_path}/shared.db"
    run(root, "train.json", **training(bundle, dataset), **names, tracking_uri=uri)
    client, (only,) = runs_in(tmp_path / "shared.db")
    assert client.get_experiment(only.info.experiment_id).name == "prostate"
    assert only.info.run_name == "first" and "gland_dsc" in only.data.metrics
    assert (tmp_path / "mine" / "model.pt").is_file() and not (tmp_path / "mine" / "mlruns.db").exists()
    assert not (root / "output").exists()


@pytest.mark.slow
@pytest.mark.parametrize("bundle", [WEAK])
def test_two_processes_on_the_command_line(bundle: str, root: Path, dataset: Path, tmp_path: Path) -> None:
    """From the bundle's folder, as a user has it: one run, a clean working tree, and no word to anybody."""
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=root.parents[1], check=True)
    (tmp_path / "listener").mkdir()
    (tmp_path / "listener" / "sitecustomize.py").write_text(LISTENER, encoding="utf-8")
    connections = tmp_path / "connections.txt"
    environment = {key: value for key, value in os.environ.items() if key not in SIGNS}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path / "nobody"),
        "PYTHONPATH": str(tmp_path / "listener"),
        "CONNECTIONS": str(connections),
    }
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "monai.bundle", "run"]
    arguments += ["training", "--config_file", "['configs/train.json','configs/multi_gpu_train.json']"]
    arguments += ["--tracking", "mlflow"]
    for name, value in training(bundle, dataset).items():
        arguments += [f"--{name}", str(value)]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    client, (only,) = runs_in(root / "output" / "train" / "mlruns.db")
    assert only.info.status == "FINISHED" and {"tre", "loss/label"} <= only.data.metrics.keys()
    assert list(history(client, only, "train_loss")) == [1, 2]  # two processes share the steps of an epoch
    local = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::", os.uname().nodename, "None"}
    heard = set(connections.read_text(encoding="utf-8").split())
    assert "listening" in heard and heard - local == {"listening"}
    for command in (["ls-files", "--others", "--exclude-standard"], ["diff", "--name-only"]):
        listed = subprocess.run(["git", *command], cwd=root.parents[1], capture_output=True, text=True, check=True)
        assert listed.stdout == ""


def test_importing_the_engines_turns_the_telemetry_of_mlflow_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any part of them that a training may or may not use."""
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    importlib.reload(regzoo.engines)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
