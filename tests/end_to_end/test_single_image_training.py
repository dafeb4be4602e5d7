"""Training on single images: transfer in one and two steps, one image alone, other data sets, learned weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from regzoo.errors import user_error
from regzoo.losses import SoftmaxWeights, UncertaintyWeights
from regzoo.report import read_csv
from regzoo_phantoms import BrainPhantoms
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import BUNDLES, DDMR, settled, small, train

#: Without a norm, which would leave the biases before it without a gradient.
SHORT: dict[str, Any] = {"max_epochs": 1, "samples_per_epoch": 4, "norm": None}
ENCODER = 4  # tensors of the encoder of two levels: a weight and a bias each


def changed(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[bool]:
    assert a.keys() == b.keys()
    return [not torch.equal(a[name], b[name]) for name in a if a[name].is_floating_point()]


def test_transfer_in_one_and_in_two_steps(abdomen_phantoms: Path, tmp_path: Path) -> None:
    """From the brain to the abdomen, the encoder frozen first; each step begins with what the one before has left."""
    brains = BrainPhantoms(cases=4, held_out=0, seed=1, spacing=8.0).write(tmp_path / "brain", workers=1)
    train(DDMR, brains, tmp_path / "pretrained", "variants/pretrain_brain.json", **SHORT)
    start = torch.load(tmp_path / "pretrained/model.pt", weights_only=True)
    start_from = {"init_weights": str(tmp_path / "pretrained/model.pt")}
    train(DDMR, abdomen_phantoms, tmp_path / "decoder", "variants/finetune_decoder.json", **SHORT, **start_from)
    decoder = torch.load(tmp_path / "decoder/model.pt", weights_only=True)
    train(DDMR, abdomen_phantoms, tmp_path / "whole", "variants/finetune.json", **SHORT, **start_from)
    whole = torch.load(tmp_path / "whole/model.pt", weights_only=True)
    start_from["init_weights"] = str(tmp_path / "decoder/model.pt")
    train(DDMR, abdomen_phantoms, tmp_path / "both", "variants/finetune.json", **SHORT, **start_from)
    both = torch.load(tmp_path / "both/model.pt", weights_only=True)
    assert sum(changed(start, decoder)) == len(changed(start, decoder)) - ENCODER
    assert all(changed(start, whole)) and all(changed(decoder, both)) and all(changed(whole, both))


def test_finetuning_needs_weights_that_fit(abdomen_phantoms: Path, tmp_path: Path) -> None:
    for missing in ("nowhere.pt", "other.pt"):
        torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
        with pytest.raises(RuntimeError) as caught:
            given = {"init_weights": str(tmp_path / missing)}
            train(DDMR, abdomen_phantoms, tmp_path / "out", "variants/finetune.json", **SHORT, **given)
        line = str(user_error(caught.value))
        assert missing in line and "\n" not in line


def test_one_labelled_image_is_enough(abdomen_phantoms: Path, tmp_path: Path) -> None:
    image = next((abdomen_phantoms / "imagesTr").glob("*.nii.gz"))
    label = abdomen_phantoms / "labelsTr" / image.name
    (tmp_path / "one.json").write_text(json.dumps([{"image": str(image), "label": str(label)}]), encoding="utf-8")
    weights = train(DDMR, tmp_path / "one.json", tmp_path / "out", **SHORT)
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert not (tmp_path / "out/validation_pairs.json").exists()  # no two patients: simulated pairs
    values = EventAccumulator(str(tmp_path / "out")).Reload().Scalars("dsc")
    assert len(values) == 1 and 0 < values[0].value < 1


def test_the_first_images_train_and_the_others_measure(hippocampus_phantoms: Path, tmp_path: Path) -> None:
    bundle = BUNDLES / "hippocampus_mr_weak_ddf"
    given = {"max_images": 5, "folds": 5, "max_epochs": 1, "samples_per_epoch": 4}
    train(bundle.name, hippocampus_phantoms, tmp_path, **given)
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in ("train.json", "evaluate.json")])
    given |= {"dataset_dir": str(hippocampus_phantoms), "output_dir": str(tmp_path), "eval_split": "rest"}
    for key, value in (small(bundle.name) | given | {"pictures": 0}).items():
        parser[key] = value
    parser.get_parsed_content("initialize")
    parser.get_parsed_content("run")
    cases = read_csv(tmp_path / "evaluation/cases.csv")["case"]
    assert len(cases) == 3 and all(name.split("_")[1] in ("0006", "0007", "0008") for name in cases)


@pytest.mark.parametrize(("variant", "kind"), [("uw_nsd", UncertaintyWeights), ("softmax_weights", SoftmaxWeights)])
def test_weights_are_learnt_saved_and_logged(variant: str, kind: type, abdomen_phantoms: Path, tmp_path: Path) -> None:
    train(DDMR, abdomen_phantoms, tmp_path, f"variants/{variant}.json", **SHORT)
    curves = EventAccumulator(str(tmp_path)).Reload()
    logged = {name: curves.Scalars(f"weight/{name}")[-1].value for name in ("ncc", "ssim", "dice")}
    parser = settled(DDMR, variant)
    loss = parser.get_parsed_content("loss")
    assert isinstance(loss.learned, kind)
    loss.load_state_dict(torch.load(tmp_path / "last.pt", weights_only=True)["objects"]["loss"])
    saved = {name: float(value) for name, value in loss.learned.weights().items()}
    first = dict.fromkeys(logged, 1.0 if kind is UncertaintyWeights else 1 / 3)
    for name in logged:
        assert saved[name] != pytest.approx(first[name], abs=1e-5)
        # What is logged is the mean over the epoch, so it lies between the first weight and the last.
        low, high = sorted((first[name], saved[name]))
        assert low - 1e-6 <= logged[name] <= high + 1e-6
    if kind is SoftmaxWeights:
        assert math.fsum(saved.values()) == pytest.approx(1)


def terms(variant: str) -> dict[str, float]:
    """The terms of a design that have a say, with their fixed weights, NaN for learned ones."""
    parser = ConfigParser()
    configs = BUNDLES / DDMR / "configs"
    parser.read_config([str(configs / "train.json"), str(configs / "variants" / f"{variant}.json")])
    loss = parser.get_parsed_content("loss")
    if loss.learned is not None:
        return dict.fromkeys(loss.learned.names, math.nan) | loss.learned.fixed
    return {name: weight for name, weight in loss.weights.items() if weight}


def test_designs_are_what_the_paper_calls_them() -> None:
    """Table 1: which terms a design has, and whether their weights are learned."""
    letters = {"n": "ncc", "s": "ssim", "d": "dice", "h": "hausdorff"}
    for design in ("bl_n", "bl_ns", "sg_nd", "sg_nsd", "uw_nsd", "uw_nsdh"):
        found = terms(design)
        assert set(found) == {letters[letter] for letter in design[3:]} | {"deformation"}, design
        learned = {name for name, weight in found.items() if math.isnan(weight)}
        assert learned == (set(found) - {"deformation"} if design.startswith("uw") else set()), design
    paper = settled(DDMR, "paper")
    assert (paper["size"], paper["channels"][-1], paper["accumulation_steps"]) == ([128] * 3, 1024, 8)
    assert (paper["learning_rate"], paper["plateau_patience"], paper["deformation_weight"]) == (1e-3, 10, 5e-3)


def test_a_run_that_gets_no_better_stops_early(abdomen_phantoms: Path, tmp_path: Path) -> None:
    given = {"max_epochs": 9, "samples_per_epoch": 1, "early_stop": 2, "learning_rate": 1e-12}
    train(DDMR, abdomen_phantoms, tmp_path, **given)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] < 9
