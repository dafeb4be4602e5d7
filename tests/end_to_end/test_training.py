"""Training a bundle on tiny phantoms: from the command line, killed and resumed, in two processes, in every variant."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from regzoo.losses import GradientNorm, MultiScaleCrossEntropy
from regzoo.networks import CompositeNet, GlobalNet, LocalNet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "prostate_mr_trus_weak_ddf"
CONFIGS = BUNDLE / "configs"
VARIANTS = sorted(path.stem for path in (CONFIGS / "variants").glob("*.json"))
SMALL: dict[str, Any] = {
    "spacing": [5.0, 5.0, 5.0],
    "size": [18, 14, 13],
    "channels": 2,
    "batch_size": 2,
    "samples_per_epoch": 6,
    "max_epochs": 3,
    "folds": 2,
    "device": "cpu",
}


def train(dataset: Path, output: Path, *overlays: str, **overrides: Any) -> dict[str, torch.Tensor]:
    """Train in this process; returns the weights of the last epoch."""
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in ("train.json", *overlays)],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(BUNDLE),
        dataset_dir=str(dataset),
        output_dir=str(output),
        **{**SMALL, **overrides},
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return torch.load(output / "last.pt", weights_only=True)["network"]


def command(dataset: Path, output: Path, *extra: str) -> list[str]:
    arguments = ["-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json"]
    arguments += ["--dataset_dir", str(dataset), "--output_dir", str(output)]
    for name, value in SMALL.items():
        arguments += [f"--{name}", str(value)]
    return [*arguments, *extra]


def run(arguments: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=BUNDLE, capture_output=True, text=True, timeout=300, check=False, **kwargs
    )


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_a_killed_training_resumes_to_the_same_weights(prostate_phantoms: Path, tmp_path: Path) -> None:
    longer = {"max_epochs": 8, "samples_per_epoch": 16}
    whole = train(prostate_phantoms, tmp_path / "whole", **longer)
    output = tmp_path / "killed"
    extra = [word for name, value in longer.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, *command(prostate_phantoms, output, *extra)],
        cwd=BUNDLE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while not (output / "last.pt").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 1 <= torch.load(output / "last.pt", weights_only=True)["epoch"] < 8
    assert_same(whole, train(prostate_phantoms, output, **longer))


def test_resume_after_each_epoch_gives_the_same_weights(prostate_phantoms: Path, tmp_path: Path) -> None:
    whole = train(prostate_phantoms, tmp_path / "whole")
    for epochs in (1, 2, 3):
        weights = train(prostate_phantoms, tmp_path / "parts", max_epochs=epochs, **{"lr_scheduler#t_total": 9})
    assert_same(whole, weights)
    best = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "parts")]
    assert_same(*best)


def test_command_line_trains_and_evaluates(prostate_phantoms: Path, tmp_path: Path) -> None:
    done = run(command(prostate_phantoms, tmp_path, "--optimizer#lr", "0.002", "--max_epochs", "2"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"last.pt", "model.pt"} <= {path.name for path in tmp_path.iterdir()}
    logged = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert {"loss/total", "loss/label", "loss/deformation", "learning_rate", "tre"} <= set(logged["scalars"])
    assert logged["images"]
    arguments = command(prostate_phantoms, tmp_path, "--pictures", "1")
    arguments[arguments.index("training")] = "evaluating"
    arguments.remove("evaluating")
    arguments[arguments.index("configs/train.json")] = "['configs/train.json','configs/evaluate.json']"
    done = run(arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "median" in done.stdout
    names = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert {"cases.csv", "labels.csv", "summary.csv", "summary.png"} <= names


def settled(variant: str) -> ConfigParser:
    """A variant's configuration as a user gets it."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / "variants" / f"{variant}.json")])
    return parser


def test_variants_are_what_the_paper_calls_them() -> None:
    networks = {name: settled(name).get_parsed_content("network_def") for name in VARIANTS if name != "paper"}
    losses = {name: settled(name).get_parsed_content("loss").terms for name in VARIANTS}
    heads = {name: net.active for name, net in networks.items() if isinstance(net, LocalNet)}
    assert heads["msce"] == [True] * 5 and heads["delta0"] == [False] * 4 + [True]
    assert heads["delta1to4"] == [True] * 4
    assert [block.additive for block in networks["no_additive_upsampling"].decoder] == [False] * 4
    assert isinstance(networks["global_net"], GlobalNet) and isinstance(networks["composite_net"], CompositeNet)
    assert isinstance(losses["msce"]["label"].loss, MultiScaleCrossEntropy)
    assert isinstance(losses["l2"]["deformation"].loss, GradientNorm)
    assert [sum(sigma) for sigma in losses["prefilt"]["label"].loss.sigmas] == [0]
    paper = settled("paper")
    assert (paper["spacing"], paper["channels"], paper["batch_size"], paper["labels_per_pair"]) == ([0.8] * 3, 32, 4, 1)
    assert (paper["learning_rate"], paper["deformation_weight"]) == (1e-5, 0.5)
    dice, bending = losses["paper"]["label"].loss, losses["paper"]["deformation"].loss
    assert [sigma[0] * 0.8 for sigma in dice.sigmas] == pytest.approx([0, 1, 2, 4, 8, 16, 32])
    assert not dice.squared_denominator and bending.margin == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains(variant: str, prostate_phantoms: Path, tmp_path: Path) -> None:
    weights = train(prostate_phantoms, tmp_path, f"variants/{variant}.json", max_epochs=1, samples_per_epoch=2)
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_two_processes_train_and_evaluate(prostate_phantoms: Path, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = command(prostate_phantoms, tmp_path, "--max_epochs", "1")
    arguments[arguments.index("configs/train.json")] = "['configs/train.json','configs/multi_gpu_train.json']"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = run([*torchrun, *arguments], env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    overlays = "['configs/train.json','configs/evaluate.json','configs/multi_gpu_evaluate.json']"
    arguments = [overlays if "multi_gpu_train" in word else word for word in arguments if word != "training"]
    done = run([*torchrun, *arguments], env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = (tmp_path / "evaluation" / "cases.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + len(list((prostate_phantoms / "val" / "us_images").iterdir()))


def test_without_a_data_set_phantoms_are_written_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from regzoo.workflow import data_folder

    other = data_folder("", tmp_path, pairs=1, held_out=1, spacing=4.0, seed=1)
    capsys.readouterr()
    folder = data_folder("", tmp_path, pairs=2, held_out=1, spacing=4.0, seed=0)
    assert "phantoms" in capsys.readouterr().out
    assert (Path(folder) / "manifest.json").is_file()
    assert data_folder("", tmp_path, pairs=2, held_out=1, spacing=4.0, seed=0) == folder != other
    assert data_folder("/somewhere", tmp_path) == "/somewhere"
