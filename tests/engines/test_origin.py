"""Weights know what they were trained with: evaluation, inference and export use it and may not contradict it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_list import config
from monai.bundle import ConfigParser, ConfigWorkflow
from regzoo.engines import load_weights
from regzoo.engines.identity import data_difference, fingerprints
from regzoo.engines.origin import adopt, described
from regzoo.engines.weights import origin_of, read_checkpoint, save_weights, starting_weights
from regzoo.errors import RegZooError, user_error
from regzoo.inference import Registrar
from regzoo.report import read_csv
from regzoo_tools.export import export_network

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
ALL = sorted(path.name for path in BUNDLES.iterdir())
WEAK = "prostate_mr_trus_weak_ddf"
GRID = {"spacing": [6.0, 6.0, 6.0], "size": [18, 14, 13]}
SHORT = {"max_epochs": 1, "batch_size": 2, "folds": 4, "device": "cpu"}


def run(bundle: str, overlays: list[str], **settings: Any) -> None:
    """Training, or with ``evaluate.json`` among the overlays the evaluation, in this process."""
    configs = BUNDLES / bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / name) for name in ("train.json", *overlays)],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(BUNDLES / bundle),
        **settings,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def train(data: Path, output: Path, **settings: Any) -> Path:
    given = SHORT | GRID | {"channels": 2, "norm": "instance", "samples_per_epoch": 4} | settings
    run(WEAK, [], dataset_dir=str(data), output_dir=str(output), **given)
    return output / "model.pt"


def evaluate(data: Path, output: Path, **settings: Any) -> dict[str, list[str]]:
    given = {"dataset_dir": str(data), "output_dir": str(output), "device": "cpu", "pictures": 0} | settings
    run(WEAK, ["evaluate.json"], **given)
    return read_csv(output / "evaluation" / "cases.csv")


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises((RegZooError, RuntimeError)) as caught:
        call()
    line = str(user_error(caught.value))
    assert "\n" not in line and line != "None"
    return line


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, prostate_phantoms: Path) -> Path:
    """A copy that may be moved and changed."""
    return Path(shutil.copytree(prostate_phantoms, tmp_path_factory.mktemp("origin") / "data"))


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    """The folder of a training on another grid, with a narrower network of another norm than the bundle's."""
    return train(data, data.parent / "trained").parent


def test_evaluation_uses_the_settings_of_the_training(data: Path, trained: Path) -> None:
    alone = evaluate(data, trained)
    repeated = evaluate(data, trained, **GRID, channels=2, norm="instance")
    assert len(alone["case"]) == 4
    assert alone == repeated


def test_registration_and_export_use_the_settings_of_the_training(data: Path, trained: Path, tmp_path: Path) -> None:
    registrar = Registrar(BUNDLES / WEAK, checkpoint=str(trained / "model.pt"), device="cpu")
    images = [sorted((data / "val" / folder).iterdir())[0] for folder in ("us_images", "mr_images")]
    item = registrar.preprocessing({"image": str(images[0]), "moving_image": str(images[1])})
    assert list(item["image"].shape) == [2, *GRID["size"]]
    assert registrar.register(*images).field is not None
    export = export_network(BUNDLES / WEAK, "torchscript", tmp_path / "n.ts", checkpoint=str(trained / "model.pt"))
    assert export.inputs == (2, *GRID["size"])


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("spacing", [5.0, 5.0, 5.0], "spacing [6.0, 6.0, 6.0], not [5.0, 5.0, 5.0]"),
        ("size", [16, 12, 12], "size [18, 14, 13], not [16, 12, 12]"),
        ("channels", 4, "channels 2, not 4"),
        ("holdout", ["cyst"], "holdout [], not ['cyst']"),
    ],
)
def test_what_contradicts_the_training_is_refused(key: str, value: Any, told: str, data: Path, trained: Path) -> None:
    weights = trained / "model.pt"
    assert refusal(lambda: evaluate(data, trained, **{key: value})).startswith(f"{weights}: was trained with {told}; ")
    if key != "holdout":  # which is of no use to a registration
        line = refusal(lambda: Registrar(BUNDLES / WEAK, checkpoint=str(weights), **{key: value}))
        assert line.startswith(f"{weights}: was trained with {told}; ")


def test_a_default_that_was_asked_for_is_refused_as_well(trained: Path) -> None:
    line = refusal(lambda: Registrar(BUNDLES / WEAK, checkpoint=str(trained / "model.pt"), spacing=[3.0, 3.0, 3.0]))
    assert "was trained with spacing [6.0, 6.0, 6.0], not [3.0, 3.0, 3.0]" in line


def test_the_alignment_may_be_another(trained: Path) -> None:
    Registrar(BUNDLES / WEAK, checkpoint=str(trained / "model.pt"), align="center")


def test_another_network_of_the_same_weights_is_refused(data: Path, trained: Path) -> None:
    """The additive up-sampling has no weights, so that nothing but the note can tell."""
    overlays = ["variants/no_additive_upsampling.json", "evaluate.json"]
    given = {"dataset_dir": str(data), "output_dir": str(trained), "device": "cpu", "pictures": 0}
    assert "was trained with another network_def" in refusal(lambda: run(WEAK, overlays, **given))


def test_another_step_to_what_the_network_sees_is_refused(data: Path, trained: Path, tmp_path: Path) -> None:
    """By an evaluation, a registration and a training that is resumed; what belongs to one use of a step is free."""
    weights, keys = trained / "model.pt", ["fixed_image", "moving_image"]
    percentiles = {"_target_": "ScaleIntensityRangePercentilesd", "keys": keys, "lower": 1, "upper": 99}
    for changed, told in (
        ({"intensity": percentiles | {"b_min": 0, "b_max": 1}}, "another intensity"),
        ({"intensity#nonzero": True}, "another intensity"),
        ({"resample#interpolation": "bspline"}, "another resample"),
    ):
        assert told in refusal(lambda changed=changed: evaluate(data, trained, **changed))
        assert told in refusal(lambda changed=changed: Registrar(BUNDLES / WEAK, checkpoint=str(weights), **changed))
        output = Path(shutil.copytree(trained, tmp_path / str(len(list(tmp_path.iterdir())))))
        line = refusal(lambda changed=changed, output=output: train(data, output, max_epochs=2, **changed))
        assert line.startswith(f"{output / 'last.pt'}: was written by a training with {told}; ")
    Registrar(BUNDLES / WEAK, checkpoint=str(weights), **{"load#need": ["moving_label"], "resample#keep_native": False})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"augmentation#max_corner_shift": 0.2}, "augmentation"),
        ({"alignment#method": "center"}, "alignment"),
        ({"lr_scheduler#cycles": 0.9}, "lr_scheduler"),
        ({"train#preprocessing#transforms": ["@load", "@alignment", "@resample"]}, "train#preprocessing"),
        ({"match_labels": {"_target_": "Identity"}}, "match_labels"),
        ({"train#dataloader#batch_size": 1}, "train#dataloader#batch_size"),
    ],
)
def test_a_training_with_another_part_is_not_resumed(
    changed: dict[str, Any], told: str, data: Path, trained: Path
) -> None:
    line = refusal(lambda: train(data, trained, max_epochs=2, **changed))
    assert line.startswith(f"{trained / 'last.pt'}: was written by a training with another {told}; ")


def test_a_case_aligned_otherwise_is_another_case() -> None:
    record = {"case": "a", "patient": "p"}
    before, now = fingerprints([record]), fingerprints([record | {"align": "center"}])  # type: ignore[list-item]
    assert data_difference(before, now) == "a changed (align)"


def test_weights_note_the_alignment_and_the_labels_that_were_used() -> None:
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / WEAK / "configs" / "train.json"))
    assert described(parser)["align"] == "header" and described(parser)["label_values"] is None
    parser["alignment#method"], parser["load#label_values"] = "center", [1]
    assert described(parser)["align"] == "center" and described(parser)["label_values"] == [1]
    parser["alignment"] = {"_target_": "Identity"}
    assert "align" not in described(parser)


def test_what_was_trained_on_is_not_measured(data: Path, trained: Path, tmp_path: Path) -> None:
    folds = {"eval_split": "fold", "folds": 4}
    assert len(evaluate(data, trained, **folds)["case"]) == 2
    line = refusal(lambda: evaluate(data, trained, **folds, fold=1))
    assert "was trained on this image, as case" in line and "eval_split fold" in line
    # The same image under another name, of another patient; then the same patient, with another image.
    case, known = next(iter(origin_of(read_checkpoint(trained / "model.pt"))["settings"]["data"].items()))
    copy = shutil.copy(data / "train" / "us_images" / f"{case}.nii.gz", tmp_path / "new.nii.gz")
    pair = {
        "fixed_image": str(copy),
        "fixed_label": str(data / "train" / "us_labels" / f"{case}.nii.gz"),
        **{f"moving_{key}": str(sorted((data / "val" / f"mr_{key}s").iterdir())[0]) for key in ("image", "label")},
    }
    other = {f"fixed_{key}": str(sorted((data / "val" / f"us_{key}s").iterdir())[0]) for key in ("image", "label")}
    for entry, told in ((pair, "trained on this image"), (pair | other | {"patient": known["patient"]}, "of patient")):
        (tmp_path / "list.json").write_text(json.dumps({"validation": [entry]}), encoding="utf-8")
        line = refusal(lambda: evaluate(tmp_path / "list.json", trained))
        assert told in line and ("give them different names" in line) == (told == "of patient")


def test_the_same_files_elsewhere_resume_and_changed_ones_do_not(
    data: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = Path(shutil.copytree(data, tmp_path / "moved"))
    output = Path(shutil.copytree(trained, tmp_path / "run"))
    before = (output / "last.pt").read_bytes()
    with caplog.at_level(logging.INFO, "regzoo"):
        train(moved, output)
    assert "1 of 1 epochs done; raise max_epochs" in caplog.text
    assert (output / "last.pt").read_bytes() == before
    train(moved, output, max_epochs=2)
    assert torch.load(output / "last.pt", weights_only=True)["epoch"] == 2
    case = sorted(origin_of(read_checkpoint(output / "model.pt"))["settings"]["data"])[0]
    label = moved / "train" / "us_labels" / f"{case}.nii.gz"
    volume = nib.load(label)
    nib.save(nib.Nifti1Image(np.asarray(volume.dataobj)[::-1], volume.affine), label)
    line = refusal(lambda: train(moved, output, max_epochs=3))
    assert f"other cases to train on: {case} changed (fixed_label)" in line
    assert "optimizer lr" in refusal(lambda: train(data, output, max_epochs=3, learning_rate=0.5))
    other = {"optimizer": {"_target_": "torch.optim.SGD", "params": "$regzoo.engines.trainable(@network)", "lr": 0.003}}
    assert "another" in (line := refusal(lambda: train(data, output, max_epochs=3, **other)))
    assert "optimizer class" in line


def test_the_configuration_that_a_training_wrote_resumes_it(data: Path, trained: Path, tmp_path: Path) -> None:
    """In its own folder and in another one, where its options are checked too."""
    output = Path(shutil.copytree(trained, tmp_path / "run"))

    def again(**settings: Any) -> None:
        settings = {"output_dir": str(output), "bundle_root": str(BUNDLES / WEAK)} | settings
        workflow = ConfigWorkflow(str(trained / "config.json"), logging_file=False, **settings)
        workflow.initialize()
        workflow.run()
        workflow.finalize()

    again(max_epochs=2)
    assert torch.load(output / "last.pt", weights_only=True)["epoch"] == 2
    for other in (output, tmp_path / "new"):
        assert "did you mean max_epochs?" in refusal(lambda other=other: again(output_dir=str(other), maxepochs=3))


def test_a_longer_training_has_a_longer_schedule(data: Path, trained: Path, tmp_path: Path) -> None:
    """Not one whose rate, having come to its end, rises again."""
    output = Path(shutil.copytree(trained, tmp_path / "run"))
    train(data, output, max_epochs=3, warmup_steps=100)
    state = torch.load(output / "last.pt", weights_only=True)["objects"]["lr_scheduler"]
    assert state["t_total"] == 3 * 2 and state["last_epoch"] == 6


@pytest.mark.parametrize("kind", ["plain", "strict", "copy"])
def test_weights_with_a_note_are_plain_weights(kind: str, trained: Path, tmp_path: Path) -> None:
    state = torch.load(trained / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / WEAK / "configs" / "inference.json"))
    parser.config |= {"channels": 2, "norm": "instance"}
    network = parser.get_parsed_content("network_def")
    if kind == "plain":
        assert set(state) == set(network.state_dict())
    elif kind == "strict":
        assert not any(network.load_state_dict(state, strict=True))
    else:  # whoever averages or rewrites weights keeps the tensors; the note may go
        torch.save(dict(state), tmp_path / "model.pt")
        load_weights(network, tmp_path / "model.pt")
        assert origin_of(read_checkpoint(tmp_path / "model.pt")) == {}


def test_a_file_of_weights_brings_no_code(tmp_path: Path) -> None:
    config = {"spacing": "$__import__('os').system('touch harm')", "size": ["@harm"], "channels": "%harm.json"}
    save_weights(torch.nn.Linear(1, 1), tmp_path / "model.pt", {"config": config})
    base = BUNDLES / WEAK / "configs" / "inference.json"
    parser = ConfigParser()
    parser.read_config(str(base))
    before = json.dumps(parser.get())
    adopt(parser, tmp_path / "model.pt", base, ())
    assert json.dumps(parser.get()) == before


@pytest.mark.parametrize("bundle", ALL)
def test_released_weights_start_a_training_whose_encoder_may_be_frozen(bundle: str) -> None:
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / bundle / "configs" / "train.json"))
    for key, value in {"bundle_root": str(BUNDLES / bundle), "init_weights": "released", "device": "cpu"}.items():
        parser[key] = value
    parser["freeze_encoder"] = True
    network, optimiser = parser.get_parsed_content("network"), parser.get_parsed_content("optimizer")
    released = torch.load(BUNDLES / bundle / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(value, released[name]) for name, value in network.state_dict().items())
    assert len(str(parser.get_parsed_content("settings#init_weights"))) == 20
    taken = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
    frozen = {name for name, parameter in network.named_parameters() if id(parameter) not in taken}
    assert frozen and len(frozen) < len(list(network.parameters()))
    # As a training does, in the mode in which normalisation gathers statistics; one more step moves the rest.
    before = {name: value.clone() for name, value in network.state_dict().items()}
    channels = config(bundle, "metadata")["network_data_format"]["inputs"]["image"]["num_channels"]
    network.train()
    network(torch.rand(2, channels, 32, 32, 32)).square().mean().backward()
    optimiser.step()
    after = network.state_dict()
    held = {name.rpartition(".")[0] for name in frozen}
    encoder = [name for name in after if name.rpartition(".")[0] in held]
    assert all(torch.equal(before[name], after[name]) for name in encoder)
    assert any(not torch.equal(before[name], after[name]) for name in after if name not in encoder)
    if any("running_mean" in name for name in after):
        assert any("running_mean" in name for name in encoder)


def test_weights_to_start_from_that_do_not_fit_are_named(data: Path, trained: Path, tmp_path: Path) -> None:
    given = {"channels": 4, "init_weights": str(trained / "model.pt")}
    line = refusal(lambda: train(data, tmp_path / "out", **given))
    assert "encoder.levels.0.first.0.weight is 4×2×7×7×7 here, 2×2×7×7×7 in the file" in line
    copy = tmp_path / "mine" / WEAK  # a bundle outside the folder of the others, which may still be named
    assert starting_weights("abdominal_ct_ddmr", copy).samefile(BUNDLES / "abdominal_ct_ddmr" / "models" / "model.pt")
    assert "no such weights to start from" in refusal(lambda: train(data, tmp_path / "out", init_weights="nowhere"))


def test_a_resumed_training_does_not_start_from_weights_again(
    data: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = {"init_weights": str(trained / "model.pt"), "samples_per_epoch": 4}
    train(data, tmp_path / "run", **start)
    with caplog.at_level(logging.INFO, "regzoo"):
        train(data, tmp_path / "run", max_epochs=2, **start)
    assert "it had started from those of init_weights" in caplog.text
    assert "init_weights" in refusal(lambda: train(data, tmp_path / "run", max_epochs=3))
    # Masks would mean the opposite in a pre-alignment.
    assert "another exclude;" in refusal(lambda: train(data, tmp_path / "run", max_epochs=3, exclude=True, **start))
