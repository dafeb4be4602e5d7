"""Training the bundles on tiny phantoms: by command line, killed and resumed, in two processes, in every variant."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_list import NAMES, logged, on_single_images, tiny, training
from monai.bundle import ConfigParser, ConfigWorkflow
from regzoo.engines import save_weights
from regzoo.errors import user_error
from regzoo.losses import GradientNorm, MultiScaleCrossEntropy
from regzoo.networks import CompositeNet, GlobalNet, LocalNet
from regzoo.report import read_csv
from regzoo_tools.curves import read_curves
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
WEAK, SEG, SDM = "prostate_mr_trus_weak_ddf", "prostate_mr_trus_conditional_seg", "prostate_mr_trus_sdm"
DDMR = "abdominal_ct_ddmr"
#: Those that need other images or the weights of another training; `test_single_image_training` tries them.
TRANSFER = {"pretrain_brain", "finetune", "finetune_decoder"}
#: Those that run an exported file, which is for inference.
EXPORTED = {"torchscript", "onnx", "tensorrt"}
VARIANTS = sorted(
    (name, path.stem)
    for name in NAMES
    for path in (BUNDLES / name / "configs" / "variants").glob("*.json")
    if path.stem not in TRANSFER | EXPORTED
)
SMALL: dict[str, Any] = tiny(WEAK) | {"max_epochs": 3}


def small(bundle: str) -> dict[str, Any]:
    """What makes a training of a bundle tiny. A learned weight is accumulated over steps as well."""
    more = {"accumulation_steps": 2, "labels_per_image": 3}
    return tiny(bundle) | {"max_epochs": 3} | {key: value for key, value in more.items() if key in training(bundle)}


def finish(bundle: str, dataset: Path, output: Path, *files: str, **overrides: Any) -> None:
    """Run a workflow in this process."""
    configs = BUNDLES / bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / name) for name in files],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(BUNDLES / bundle),
        dataset_dir=str(dataset),
        output_dir=str(output),
        **{**small(bundle), **overrides},
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def train(bundle: str, dataset: Path, output: Path, *overlays: str, **overrides: Any) -> dict[str, torch.Tensor]:
    """Train in this process; returns the weights of the last epoch."""
    finish(bundle, dataset, output, "train.json", *overlays, **overrides)
    return torch.load(output / "last.pt", weights_only=True)["network"]


def command(bundle: str, dataset: Path, output: Path, *extra: str) -> list[str]:
    arguments = ["-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json"]
    arguments += ["--dataset_dir", str(dataset), "--output_dir", str(output)]
    for name, value in small(bundle).items():
        arguments += [f"--{name}", str(value)]
    return [*arguments, *extra]


def run(bundle: str, arguments: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=BUNDLES / bundle,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **kwargs,
    )


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("bundle", [WEAK, DDMR])
def test_a_killed_training_resumes_to_the_same_weights(bundle: str, dataset: Path, tmp_path: Path) -> None:
    longer = {"max_epochs": 8, "samples_per_epoch": 16}
    whole = train(bundle, dataset, tmp_path / "whole", **longer)
    output = tmp_path / "killed"
    extra = [word for name, value in longer.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, *command(bundle, dataset, output, *extra)],
        cwd=BUNDLES / bundle,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while not (output / "last.pt").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 1 <= torch.load(output / "last.pt", weights_only=True)["epoch"] < 8
    assert_same(whole, train(bundle, dataset, output, **longer))


@pytest.mark.slow
@pytest.mark.parametrize("bundle", [WEAK, DDMR, SEG])
def test_a_compiled_network_trains_alike(
    bundle: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, original = list[str](), torch.compile

    def compile_network(network: torch.nn.Module, **kwargs: Any) -> Any:
        calls.append(kwargs["backend"])
        return original(network, **kwargs)

    monkeypatch.setattr(torch, "compile", compile_network)
    # This backend needs no compiler of C++.
    compiled = {"train#trainer#compile": True, "train#trainer#compile_kwargs": {"backend": "eager"}}
    weights = train(bundle, dataset, tmp_path / "compiled", **compiled)
    assert calls == ["eager"]
    torch.testing.assert_close(weights, train(bundle, dataset, tmp_path / "eager"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["mask", "map"])
@pytest.mark.parametrize("bundle", [WEAK, SEG])
def test_a_set_of_glands_alone_chooses_its_epoch_by_their_overlap(
    bundle: str, form: str, prostate_phantoms: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for path in (prostate_phantoms / "train").glob("*/*.nii.gz"):
        (data / path.parent.name).mkdir(parents=True, exist_ok=True)
        image = nib.load(path)
        if path.parent.name.endswith("labels"):
            gland = np.asarray(image.dataobj)[..., 0].astype(np.uint8)
            image = nib.Nifti1Image(gland[..., None] if form == "mask" else gland * 5, image.affine)
        nib.save(image, data / path.parent.name / path.name)
    train(bundle, data, tmp_path / "out", max_epochs=5, learning_rate=0.05, folds=2)
    curves = read_curves(tmp_path / "out")
    overlap = curves["gland_dsc"]
    assert len(set(overlap.values())) > 1
    kept = torch.load(tmp_path / "out" / "last.pt", weights_only=True)
    assert kept["best_metric_epoch"] == max(overlap, key=lambda epoch: overlap[epoch])
    assert kept["best_metric"] == pytest.approx(1 - max(overlap.values()), abs=1e-6)


def test_resume_after_each_epoch_gives_the_same_weights(prostate_phantoms: Path, tmp_path: Path) -> None:
    whole = train(WEAK, prostate_phantoms, tmp_path / "whole")
    for epochs in (1, 2, 3):
        weights = train(WEAK, prostate_phantoms, tmp_path / "parts", max_epochs=epochs, **{"lr_scheduler#t_total": 9})
    assert_same(whole, weights)
    best = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "parts")]
    assert_same(*best)


@pytest.mark.parametrize("bundle", NAMES)
def test_a_training_and_its_evaluation(
    bundle: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(bundle, dataset, tmp_path, max_epochs=2, **{"optimizer#lr": 0.002})
    assert {"last.pt", "model.pt"} <= {path.name for path in tmp_path.iterdir()}
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert {"loss/total", "learning_rate"} | logged(bundle) <= set(tags["scalars"])
    assert tags["images"]
    finish(bundle, dataset, tmp_path, "train.json", "evaluate.json", pictures=1)
    assert "median" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert {"cases.csv", "labels.csv", "summary.csv", "summary.png"} <= names
    assert len([name for name in names if name.endswith(".png")]) == 2
    table = read_csv(tmp_path / "evaluation" / "cases.csv")
    assert all(
        0 <= float(value) <= 1 for value in table["before_dsc" if on_single_images(bundle) else "before_gland_dsc"]
    )
    if bundle == DDMR:
        assert "weight/dice" in tags["scalars"]
        assert {"ssim", "ncc", "dsc", "hd_mm", "hd95_mm", "tre_mm"} <= table.keys()
    if bundle == SDM:
        assert {"base_dsc", "mid_dsc", "apex_dsc", "jacobian_gradient", "tre_mm"} <= table.keys()


def test_command_line_trains_and_evaluates(prostate_phantoms: Path, tmp_path: Path) -> None:
    done = run(WEAK, command(WEAK, prostate_phantoms, tmp_path, "--optimizer#lr", "0.002", "--max_epochs", "2"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "; 0:00:00 left" in done.stderr + done.stdout
    arguments = command(WEAK, prostate_phantoms, tmp_path, "--pictures", "1")
    arguments.remove("training")
    arguments[arguments.index("configs/train.json")] = "['configs/train.json','configs/evaluate.json']"
    done = run(WEAK, arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "median" in done.stdout
    assert {"cases.csv", "summary.png"} <= {path.name for path in (tmp_path / "evaluation").iterdir()}


@pytest.mark.parametrize("bundle", [WEAK, SEG])
def test_kinds_of_label_are_held_out_and_measured_apart(
    bundle: str, prostate_phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the ad hoc labels in the training, and with them in the evaluation."""
    kinds = ["cyst", "calcification"]
    overrides = SMALL | {"dataset_dir": str(prostate_phantoms), "output_dir": str(tmp_path), "holdout": kinds}

    def parsed(*names: str, **settings: Any) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config([str(BUNDLES / bundle / "configs" / name) for name in names])
        for key, value in (overrides | settings).items():
            parser[key] = value
        return parser

    seen = 0
    for item in parsed("train.json").get_parsed_content("train#dataset"):
        others = [name for name in item["label_names"] if not name.startswith(tuple(kinds))]
        assert len(item["fixed_label"]) == len(item["moving_label"]) <= len(others) < len(item["label_names"])
        seen += len(item["fixed_label"])
    assert seen > 0
    parser = parsed("train.json", "evaluate.json", pictures=0, checkpoint=str(tmp_path / "model.pt"))
    save_weights(parser.get_parsed_content("network_def"), tmp_path / "model.pt")
    parser.get_parsed_content("run")
    table, labels = (read_csv(tmp_path / "evaluation" / name) for name in ("cases.csv", "labels.csv"))
    for case, value in zip(table["case"], table["before_adhoc_tre_mm"], strict=True):
        distances = [
            float(distance)
            for owner, name, distance in zip(labels["case"], labels["name"], labels["distance_before_mm"], strict=True)
            if owner == case and name.startswith(tuple(kinds)) and distance
        ]
        expected = np.sqrt(np.mean(np.square(distances))) if distances else None
        assert value == "" if expected is None else float(value) == pytest.approx(expected, rel=1e-4)
    assert any(table["before_adhoc_tre_mm"])
    with pytest.raises(RuntimeError) as caught:
        train(bundle, prostate_phantoms, tmp_path / "typo", holdout=["cist"])
    assert "no label is called 'cist'" in str(user_error(caught.value))


def settled(bundle: str, variant: str) -> ConfigParser:
    """A variant's configuration as a user gets it."""
    parser = ConfigParser()
    configs = BUNDLES / bundle / "configs"
    parser.read_config([str(configs / "train.json"), str(configs / "variants" / f"{variant}.json")])
    return parser


def test_variants_of_weak_ddf_are_what_the_paper_calls_them() -> None:
    variants = [name for bundle, name in VARIANTS if bundle == WEAK]
    networks = {name: settled(WEAK, name).get_parsed_content("network_def") for name in variants if name != "paper"}
    losses = {name: settled(WEAK, name).get_parsed_content("loss").terms for name in variants}
    heads = {name: net.active for name, net in networks.items() if isinstance(net, LocalNet)}
    assert heads["msce"] == [True] * 5 and heads["delta0"] == [False] * 4 + [True]
    assert heads["delta1to4"] == [True] * 4
    assert [block.additive for block in networks["no_additive_upsampling"].decoder] == [False] * 4
    assert isinstance(networks["global_net"], GlobalNet) and isinstance(networks["composite_net"], CompositeNet)
    assert isinstance(losses["msce"]["label"].loss, MultiScaleCrossEntropy)
    assert isinstance(losses["l2"]["deformation"].loss, GradientNorm)
    assert [sum(sigma) for sigma in losses["prefilt"]["label"].loss.sigmas] == [0]
    paper = settled(WEAK, "paper")
    assert (paper["spacing"], paper["channels"], paper["batch_size"], paper["labels_per_pair"]) == ([0.8] * 3, 32, 4, 1)
    assert (paper["learning_rate"], paper["deformation_weight"]) == (1e-5, 0.5)
    dice, bending = losses["paper"]["label"].loss, losses["paper"]["deformation"].loss
    assert [sigma[0] * 0.8 for sigma in dice.sigmas] == pytest.approx([0, 1, 2, 4, 8, 16, 32])
    assert not dice.squared_denominator and bending.margin == 2


def test_variants_of_sdm_are_what_the_paper_calls_them() -> None:
    weights = {}
    for name in ("mdsc", "sdm", "mix", "paper"):
        parser = settled(SDM, name)
        weights[name] = parser.get_parsed_content("loss").weights
        channels = 3 if name == "paper" else 2
        assert parser.get_parsed_content("network_def").encoder[0][1].in_channels == channels
    mix = {"label": 0.05, "distance": 0.45, "deformation": 0.5}
    assert weights["paper"] == pytest.approx(mix) and weights["mix"] == pytest.approx(mix)
    assert weights["mdsc"] == pytest.approx({"label": 0.3, "distance": 0, "deformation": 0.7})
    assert weights["sdm"] == pytest.approx({"label": 0, "distance": 0.8, "deformation": 0.2})
    paper = settled(SDM, "paper")
    assert (paper["spacing"], paper["size"], paper["channels"], paper["kernel"]) == ([0.88] * 3, [96, 96, 80], 4, 4)
    assert (paper["learning_rate"], paper["batch_size"], paper["folds"]) == (2e-4, 5, 5)
    assert [s[0] * 0.88 for s in paper.get_parsed_content("label_loss").sigmas] == pytest.approx([0, 1, 2, 4, 8])


def test_conditional_segmentation_of_the_paper() -> None:
    paper = settled(SEG, "paper")
    assert (paper["spacing"], paper["channels"], paper["batch_size"]) == ([0.8] * 3, 32, 2)
    assert (paper["learning_rate"], paper["balance"], paper["labels_per_pair"]) == (1e-5, 1.0, 1)
    network = settled(SEG, "demo").get_parsed_content("network_def")
    assert network.active == [True] * 4 and network.heads[0].out_channels == 1


@pytest.mark.parametrize(("bundle", "variant"), VARIANTS)
def test_every_variant_trains(bundle: str, variant: str, dataset: Path, tmp_path: Path) -> None:
    weights = train(bundle, dataset, tmp_path, f"variants/{variant}.json", max_epochs=1, samples_per_epoch=2)
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.slow
@pytest.mark.parametrize("bundle", [DDMR])
def test_two_processes_train_and_evaluate(bundle: str, dataset: Path, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = command(bundle, dataset, tmp_path, "--max_epochs", "1")
    arguments[arguments.index("configs/train.json")] = "['configs/train.json','configs/multi_gpu_train.json']"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = run(bundle, [*torchrun, *arguments], env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_csv(tmp_path / "epochs.csv")["epoch"] == ["1"]
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["runs"][0]["versions"]["processes"] == "2"
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").count("epoch 1/1: loss total") == 1
    overlays = "['configs/train.json','configs/evaluate.json','configs/multi_gpu_evaluate.json']"
    arguments = [overlays if "multi_gpu_train" in word else word for word in arguments if word != "training"]
    # Three cases for two processes: one has nothing to do while the other measures its second.
    limit = "--eval_pairs" if on_single_images(bundle) else "--max_pairs"
    done = run(bundle, [*torchrun, *arguments, limit, "3"], env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(read_csv(tmp_path / "evaluation" / "cases.csv")["case"]) == 3


def test_without_a_data_set_phantoms_are_written_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from regzoo.engines import data_folder

    other = data_folder("", tmp_path, pairs=1, held_out=1, spacing=4.0, seed=1)
    capsys.readouterr()
    folder = data_folder("", tmp_path, pairs=2, held_out=1, spacing=4.0, seed=0)
    assert capsys.readouterr().out.startswith("No data set was named\nWriting 2 + 1 pairs of prostate phantoms to ")
    assert (Path(folder) / "manifest.json").is_file()
    assert data_folder("", tmp_path, pairs=2, held_out=1, spacing=4.0, seed=0) == folder != other
    assert data_folder("/somewhere", tmp_path) == "/somewhere"
