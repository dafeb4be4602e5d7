"""Settings of the bundles that are misspelt, have no effect or cannot be: one line before any work, in every bundle."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import fire
import numpy as np
import pytest
from bundle_list import training
from helpers import line_of_failing
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.scripts import run
from regzoo.engines.options import check_config, check_effect
from regzoo.errors import RegZooError, user_error
from regzoo.inference import Registrar

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")
BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
ALL = sorted(path.name for path in BUNDLES.iterdir() if (path / "configs").is_dir())
WEAK, DDMR = "prostate_mr_trus_weak_ddf", "abdominal_ct_ddmr"
HIPPOCAMPUS = "hippocampus_mr_weak_ddf"
FILES = {
    "train": "configs/train.json",
    "evaluate": "['configs/train.json','configs/evaluate.json']",
    "inference": "configs/inference.json",
}
READ = "/nowhere: no such data set"


def answer(
    monkeypatch: pytest.MonkeyPatch, folder: Path, bundle: str, kind: str, *options: str, first: str = "run"
) -> str:
    """What `python -m monai.bundle run` answers, started in a bundle's folder; it must not write anything there."""
    monkeypatch.chdir(BUNDLES / bundle)
    arguments = ["run", first, "--config_file", FILES[kind], "--logging_file", "False"]
    arguments += ["--output_dir", str(folder / "out"), *options]
    if kind != "inference":  # were a setting let pass, nothing would be trained
        arguments += ["--dataset_dir", "/nowhere"]
    if kind == "evaluate":
        arguments += ["--evaluation_dir", str(folder / "out")]
    monkeypatch.setattr(sys, "argv", ["monai.bundle", *arguments])
    with pytest.raises(Exception) as stop:
        fire.Fire({"run": run})
    line = user_error(stop.value)
    assert line is not None, stop.value
    assert "\n" not in str(line)
    return str(line)


@pytest.mark.parametrize("bundle", ALL)
@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("train", ["--max_epoch", "1"], "max_epoch: no such setting in configs/train.json; did you mean max_epochs?"),
        ("train", ["--datasetdir", "X"], "did you mean dataset_dir?"),
        ("inference", ["--chekpoint", "X"], "did you mean checkpoint?"),
        ("train", ["--train#trainer#max_epoch", "1"], "did you mean train#trainer#max_epochs?"),
        ("train", ["--train#handlers#0#x", "1"], "no such setting"),
        ("train", ["--validate#evalutor", "1"], "did you mean validate#evaluator?"),
        ("train", ["--init_id", "initialise"], "init_id: a run cannot start with initialise; leave it out"),
        ("inference", ["--init_id", "x"], "init_id: a run cannot start with x"),
        ("evaluate", ["--init_id", "x"], "init_id: a run cannot start with x"),
        ("evaluate", ["--final_id", "finalise"], "final_id: there is no id finalise; leave it out"),
        ("train", ["--run_id", "training"], "init_id: a run cannot start with run"),  # beside `run run`
        ("train", ["--experiment_name", "mine"], "experiment_name: no such setting"),
        ("train", ["--checkpoint", "X"], "it belongs to evaluate.json, leave it out"),
        ("evaluate", ["--learning_rate", "0.1"], READ),  # repeated from the training
        ("evaluate", ["--phantoms#seed", "3"], "phantoms#seed: has no effect with a data set of your own"),
        ("inference", ["--split", "val"], "split: has no effect without dataset_dir"),
        ("inference", ["--refine_seconds", "3"], "refine_seconds: has no effect without refine; leave it out"),
        ("evaluate", ["--refine_options", "{'steps': [1]}"], "refine_options: has no effect without refine"),
        ("evaluate", ["--refine_options", "{'steps': [1]}", "--refine", "mr"], READ),
        ("inference", ["--max_refine_seconds", "3"], "max_refine_seconds: has no effect outside MONAI Label"),
        ("train", ["--batch_size", "0"], "batch_size: 0 is less than 1"),
        ("train", ["--max_epochs", "0"], "max_epochs: 0 is less than 1"),
        ("train", ["--val_interval", "0"], "val_interval: 0 is less than 1"),
        ("train", ["--max_epochs", "1.5"], "max_epochs: 1.5 is not a whole number"),
        ("train", ["--max_epochs", "2.0"], "max_epochs: 2.0 is not a whole number; write one such as"),
        ("train", ["--batch_size", "1e1"], "batch_size: 10.0 is not a whole number"),
        ("train", ["--size", "[32.0,24,24]"], "size: [32.0, 24, 24] is not a whole number"),
        ("train", ["--seed", str(10**30)], "is more than 4294967295; use a smaller value"),
        ("train", ["--max_epochs", str(10**30)], "is more than 4294967295; use a smaller value"),
        ("train", ["--spacing", "[1,1,1e30]"], "is more than 1000; use a smaller value"),
        ("train", ["--device", str(10**30)], "is not a device"),
        ("train", ["--output_dir", ""], "output_dir: '' is no folder; name one, or leave the setting out"),
        ("train", ["--phantoms", "{'seed': 'x'}"], "phantoms#seed: 'x' is not a number"),
        ("train", ["--size", "32"], "size: 32 is not a list"),
        ("train", ["--size", "[2000,2000,2000]"], "size: [2000, 2000, 2000] makes 8e+09 voxels, more than 134,217,728"),
        ("train", ["--size", "[32,24]"], "has 2 values, not 3"),
        ("train", ["--spacing", "[1,-1,2]"], "is not above 0"),
        ("train", ["--align", "centre"], "use one of header, center, label, region, rigid, similarity, affine"),
        ("train", ["--device", "gpu"], "is not a device"),
        ("train", ["--device", "None"], "is not a device"),
        ("train", ["--device", "cuda:77"], "write cpu"),
        ("train", ["--amp", "maybe"], "is neither True nor False"),
        ("train", ["--folds", "0"], "is less than 1"),
        ("train", ["--learning_rate", "abc"], "is not a number"),
        ("train", ["--channels", "0"], "channels: 0 is "),
        ("train", ["--cache_rate", "2"], "is more than 1"),
        ("train", ["--label_values", "tumour"], "is not a list"),
        ("train", ["--label_values", "[1,2,1]"], "label_values: [1, 2, 1] has a value twice"),
        ("train", ["--phantoms", "3"], "is not a dictionary"),
        # Read as what they are: the next thing that is wrong is the data set.
        ("train", ["--label_values", "null"], READ),
        ("train", ["--label_values", "None"], READ),
        ("train", ["--resume", "false"], READ),
        ("train", ["--spacing", "3,3,3"], READ),
        ("train", ["--train#trainer#max_epochs", "2"], READ),
        ("train", ["--learning_rate", "1"], READ),
        ("evaluate", ["--eval_split", "fold", "--fold", "1", "--checkpoint", "007"], READ),
    ],
)
def test_settings(
    bundle: str, kind: str, options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert said in answer(monkeypatch, tmp_path, bundle, kind, *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bundle", ALL)
@pytest.mark.parametrize(("name", "said"), [("train", "not something to run"), ("trainig", "write run training")])
def test_what_is_run(bundle: str, name: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert said in answer(monkeypatch, tmp_path, bundle, "train", first=name)


def test_settings_that_need_another_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Knobs of single bundles, or that depend on each other."""
    for bundle, kind, options, said in (
        (DDMR, "train", ["--integration_steps", "3"], "unless diffeomorphic is True"),
        (DDMR, "train", ["--diffeomorphic", "true", "--integration_steps", "3"], READ),
        (DDMR, "train", ["--norm", "null"], READ),
        (DDMR, "train", ["--window", "[3,1]"], "does not increase"),
        *(
            (bundle, "train", ["--sigmas", "2"], "sigmas: 2 is not a list")
            for bundle in ALL
            if "sigmas" in training(bundle)
        ),
        (DDMR, "train", ["--diffeomorphic", "true", "--integration_steps", "99"], "99 is more than 30; use a smaller"),
        (DDMR, "train", ["--plateau_factor", "1"], "plateau_factor: 1 is more than 0.99"),
        (DDMR, "train", ["--control_points", "200"], "control_points: 200 is more than 20"),
        (DDMR, "train", ["--region_label", "-1"], "region_label: -1 is less than 0"),
        (DDMR, "train", ["--region_label", "0"], READ),
        (DDMR, "train", ["--need", "['a']"], "need: ['a'] has 'a'; use some of fixed_label, moving_label"),
        (HIPPOCAMPUS, "train", ["--labels", "0"], "labels: 0 is less than 1"),
        (HIPPOCAMPUS, "train", ["--bias", "-1"], "bias: -1 is less than 0"),
        (HIPPOCAMPUS, "train", ["--noise", "-1"], "noise: -1 is less than 0"),
        (HIPPOCAMPUS, "train", ["--iterations", "[1,2,3]"], "iterations: [1, 2, 3] has 3 values, not 2"),
        *(
            (bundle, "train", [f"--{name}", value], said)
            for name, value, said in (
                ("inputs", "['fixed_image',1]", "has 1; use some of fixed_image, moving_image, moving_label"),
                ("sigmas", "[1,1e30]", "is more than 1000; use a smaller value"),
                ("labels_per_pair", "1000000", "is more than 1000; use a smaller value"),
                ("labels_per_image", "1000000", "is more than 1000; use a smaller value"),
            )
            for bundle in ALL
            if name in training(bundle)
        ),
        (DDMR, "train", ["--eval_split", "val"], "eval_split: has no effect"),
        (DDMR, "train", ["--norm", "bacth"], "norm: 'bacth' is not known; use one of batch, instance"),
        (WEAK, "inference", ["--refine", "0"], "refine: 0 is not known; use one of True, mr, "),
        (WEAK, "evaluate", ["--pictures", "-1"], "pictures: -1 is less than 0"),
        (DDMR, "evaluate", ["--pairs_file", "3"], READ),  # a name
        (DDMR, "evaluate", ["--eval_pairs", "-1"], "eval_pairs: -1 is less than 0"),
        (DDMR, "train", ["--background", "1e30"], "background: 1e+30 is more than 1000000000.0"),
        (WEAK, "inference", ["--direction", "us_to_mr", "--fixed_image", "a"], "without dataset_dir"),
    ):
        assert said in answer(monkeypatch, tmp_path, bundle, kind, *options), options


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("bundle", ALL)
@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("train", {"phantoms": {"kind": "liver"}}, "phantoms of kind 'liver' are unknown"),
        ("train", {"phantoms#spacing": 0.001}, "use larger ones"),
        ("evaluate", {"phantoms": {"kind": "liver"}}, "phantoms of kind 'liver' are unknown"),
        ("inference", {"fixed_image": "/nowhere.nii"}, "no moving image to register"),
    ],
)
def test_a_refused_run_leaves_no_folder(
    bundle: str, kind: str, settings: dict[str, object], said: str, existing: bool, tmp_path: Path
) -> None:
    folder = BUNDLES / bundle / "configs"
    names = ["train", "evaluate"] if kind == "evaluate" else [kind]
    own = {"output_dir": str(tmp_path / "new" / "out"), "bundle_root": str(tmp_path / "bundle"), "device": "cpu"}
    if existing:
        (tmp_path / "new" / "out").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    workflow = ConfigWorkflow(
        config_file=[str(folder / f"{name}.json") for name in names],
        meta_file=str(folder / "metadata.json"),
        logging_file=False,
        workflow_type="train" if kind == "train" else "infer",
        **own,
        **settings,
    )
    assert said in line_of_failing(workflow)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_array_is_not_a_list() -> None:
    file = BUNDLES / WEAK / "configs" / "inference.json"
    parser = ConfigParser()
    parser.read_config(str(file))
    parser["size"] = np.array([32, 24, 24])
    with pytest.raises(RegZooError, match=r"size: \[32 24 24\] is not a list; write"):
        check_config(parser, [file], ["size"])


def test_a_direction_beside_a_datalist(tmp_path: Path) -> None:
    (tmp_path / "datalist.csv").write_text("fixed_image,moving_image\na,b\n")
    parser = ConfigParser({"direction": "us_to_mr", "dataset_dir": str(tmp_path), "run": "$(@direction, @dataset_dir)"})
    with pytest.raises(RegZooError, match="or with data that say themselves which image is fixed; leave it out"):
        check_effect(parser, ["direction"], ["run"])
    check_effect(parser, [], ["run"])  # as when the weights say it
    parser["dataset_dir"] = str(tmp_path.parent)
    check_effect(parser, ["direction"], ["run"])


@pytest.mark.parametrize("kind", ["inference", "evaluate"])
def test_a_refinement_that_a_row_asks_for(kind: str, tmp_path: Path) -> None:
    files = [BUNDLES / WEAK / "configs" / name for name in ("train.json", "evaluate.json")]
    parser = ConfigParser()
    parser.read_config([str(BUNDLES / WEAK / "configs" / "inference.json")] if kind == "inference" else files)
    parser["dataset_dir"] = str(tmp_path)
    for row, effect in (("true", True), ("labels", True), ("false", False), ("", False)):
        (tmp_path / "datalist.csv").write_text(f"fixed_image,moving_image,refine\na,b,\nc,d,{row}\n")
        for name in ("refine_seconds", "refine_options"):
            if effect:
                check_effect(parser, [name], ["run"])
                continue
            with pytest.raises(RegZooError, match=f"^{name}: has no effect without refine; leave it out$"):
                check_effect(parser, [name], ["run"])


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_exclude_needs_a_mask(kind: str, tmp_path: Path) -> None:
    parser = ConfigParser()
    parser.read_config([str(BUNDLES / WEAK / "configs" / f"{kind}.json")])
    root, error = "training" if kind == "train" else "run", "^exclude: has no effect without fixed_mask or moving_mask"
    with pytest.raises(RegZooError, match=error):
        check_effect(parser, ["exclude"], [root])
    parser["dataset_dir"] = str(tmp_path)
    for row, effect in (("m.nii", True), ("", False)):
        (tmp_path / "datalist.csv").write_text(f"fixed_image,moving_image,moving_mask\na,b,\nc,d,{row}\n")
        with nullcontext() if effect else pytest.raises(RegZooError, match=error):
            check_effect(parser, ["exclude"], [root])
    if kind == "inference":
        parser["dataset_dir"], parser["fixed_mask"] = "", "m.nii"
        check_effect(parser, ["exclude"], [root])


@pytest.mark.parametrize("bundle", [*ALL, "none"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("output_dir", "out"), ("bundle_root", "x"), ("max_voxels", 5), ("dataset_dir", "x"), ("outputs", "field")],
)
def test_what_a_registrar_cannot_use(bundle: str, name: str, value: object) -> None:
    with pytest.raises(RegZooError, match=rf"^{name}: (has no effect|no such setting)") as caught:
        Registrar(BUNDLES / bundle if bundle != "none" else bundle, **{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("typed", ["2024", "007", "1e5", "1_2", "True", "None", "a,b", "[1].nii.gz", "x;y z"])
def test_names_stay_what_was_typed(typed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    line = answer(monkeypatch, tmp_path, WEAK, "inference", "--fixed_image", typed, "--moving_image", "m")
    assert line.startswith(f"{typed}: no such file")


@pytest.mark.parametrize(
    ("overlay", "said"),
    [
        ({"validate#evalutor": 1}, "did you mean validate#evaluator?"),
        ({"max_epoch": 1}, "did you mean max_epochs?"),
        ({"rate": 0.1, "learning_rate": "@rate"}, None),
        ({"train": {"handlers": []}}, "train of an overlay: replaces the whole section, without dataloader, dataset, "),
        ({"+train": {"trainer": {"epoch_length": 2}}}, None),
        ({"network_def#levels": [0]}, None),
        ({"network_def#level": [0]}, "network_def#level: no such setting"),
        ({"checkpoint": "elsewhere.pt"}, None),  # of another run of the bundle
    ],
)
@pytest.mark.parametrize("run_id", ["run", ""])  # 3D Slicer's panel for MONAI Label sends an empty one
def test_an_overlay(overlay: dict[str, object], said: str | None, run_id: str, tmp_path: Path) -> None:
    """An id of the user's own is fine if something refers to it."""
    (tmp_path / "mine.json").write_text(json.dumps(overlay))
    configs = BUNDLES / WEAK / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / "train.json"), str(tmp_path / "mine.json")],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        run_id=run_id,
        output_dir=str(tmp_path / "out"),
        device="cpu",
    )
    if said is None:
        workflow.initialize()
        return
    with pytest.raises(RuntimeError) as stop:
        workflow.initialize()
    assert said in str(user_error(stop.value))
