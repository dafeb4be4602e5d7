"""A federation of two sites, with MONAI's own client; the server's part is played here."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_list import REPRESENTATIVES, config, narrow, on_single_images
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.fl.client import MonaiAlgo, MonaiAlgoStats
from monai.fl.utils.constants import ExtraItems, FlStatistics, ModelType, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.transforms import Lambdad, LoadImaged
from monai.utils.enums import DataStatsKeys
from regzoo.datasets import load_records, load_single_records

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
SEG = "prostate_mr_trus_conditional_seg"
KEY_METRICS = {name: config(name, "evaluate")["validate#metrics"]["key"] for name in [*REPRESENTATIVES, SEG]}
#: Steps of a local epoch.
STEPS = 3
State = dict[str, torch.Tensor]

# MONAI warns whoever runs a configuration; more workers than cores are MONAI's.
pytestmark = pytest.mark.filterwarnings("ignore:executing the bundle", "ignore:This DataLoader", "ignore:'pin_memory'")


@pytest.fixture
def root(bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundle as it comes; the process is in another folder, which is empty."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    ignored = shutil.ignore_patterns("output", "data")
    return Path(shutil.copytree(BUNDLES / bundle, tmp_path / bundle, ignore=ignored))


def datalist(bundle: str, dataset: Path, tmp_path: Path, site: int) -> Path:
    """One of two sites' patients, half of the training and half of the held-out ones."""
    load = load_single_records if on_single_images(bundle) else load_records
    content = {
        section: load(dataset, split)[site::2] for section, split in (("training", "train"), ("validation", "val"))
    }
    path = tmp_path / f"site{site}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def small(bundle: str) -> dict[str, Any]:
    """What makes a local epoch tiny."""
    tiny = {"batch_size": 2, "samples_per_epoch": 2 * STEPS, "folds": 2, "device": "cpu"}
    if on_single_images(bundle):
        return tiny | {"spacing": [16.0] * 3, "size": [20, 14, 13], "channels": narrow(bundle), "learning_rate": 0.01}
    if bundle == SEG:  # nothing is found, and no distance measured, by a network that knows nothing
        return tiny | {"learning_rate": 1e-4}
    return tiny | {"spacing": [5.0] * 3, "size": [18, 14, 13], "channels": 2}


def client(root: Path, data: Path, output: Path, **kwargs: Any) -> MonaiAlgo:
    """A site's client."""
    common = small(root.name) | {"dataset_dir": str(data), "output_dir": str(output)}
    algo = MonaiAlgo(
        bundle_root=str(root),
        local_epochs=1,
        train_kwargs={**common},
        eval_kwargs={**common, "network": "$@network_def.to(@device)", "pictures": 0},
        best_model_filepath=str(output / "model.pt"),
        final_model_filepath=str(output / "last.pt"),
        save_dict_key="network",
        **kwargs,
    )
    algo.initialize({ExtraItems.CLIENT_NAME: output.name})
    return algo


def state(network: torch.nn.Module) -> State:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def weights_of(algo: MonaiAlgo) -> State:
    """What a client sends; on a CPU its tensors are those of the network itself."""
    return {name: value.clone() for name, value in algo.get_weights().weights.items()}


def changed(a: State, b: State) -> float:
    """The share of tensors that differ."""
    assert a.keys() == b.keys()
    return float(np.mean([not torch.equal(a[name], b[name]) for name in a]))


def files(folder: Path) -> dict[str, str]:
    """Path → digest of all files below a folder."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def mean_of(states: list[State], cases: list[int]) -> State:
    """FedAvg: the mean of the sites' weights, weighed by their numbers of cases."""
    shares = torch.tensor(cases) / sum(cases)
    return {
        name: sum(share * one[name].double() for share, one in zip(shares, states, strict=True)).to(value.dtype)  # type: ignore[union-attr]
        for name, value in states[0].items()
    }


def evaluated_apart(root: Path, data: Path, weights: State, folder: Path) -> dict[str, float]:
    """The metrics of weights by the bundle's evaluation, without the client."""
    folder.mkdir()
    torch.save(weights, folder / "weights.pt")
    workflow = ConfigWorkflow(
        config_file=[str(root / "configs" / name) for name in ("train.json", "evaluate.json")],
        logging_file=False,
        **small(root.name),
        bundle_root=str(root),
        dataset_dir=str(data),
        output_dir=str(folder),
        checkpoint=str(folder / "weights.pt"),
        pictures=0,
    )
    for part in (workflow.initialize, workflow.run, workflow.finalize):
        part()
    return dict(workflow.evaluator.state.metrics)


@pytest.mark.parametrize("bundle", KEY_METRICS)
def test_two_rounds_of_two_sites(bundle: str, root: Path, dataset: Path, tmp_path: Path) -> None:
    before = files(root)
    lists = [datalist(bundle, dataset, tmp_path, site) for site in (0, 1)]
    outputs = [tmp_path / f"site{site}" for site in (0, 1)]
    # One site sends its weights, the other what it changed them by.
    whole, difference = (
        client(root, data, output, send_weight_diff=bool(site))
        for site, (data, output) in enumerate(zip(lists, outputs, strict=True))
    )
    assert changed(weights_of(whole), state(difference.trainer.network)) == 0  # of one seed
    start = torch.load(root / "models" / "model.pt", weights_only=True) if bundle == SEG else weights_of(whole)
    for algo in (whole, difference):
        algo.train(ExchangeObject(weights=start))
        assert algo.trainer.state.epoch == 1
    sent = [algo.get_weights() for algo in (whole, difference)]
    assert [exchange.weight_type for exchange in sent] == [WeightType.WEIGHTS, WeightType.WEIGHT_DIFF]
    assert all(exchange.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS] == STEPS for exchange in sent)
    trained = [weights_of(whole), {name: start[name] + value for name, value in sent[1].weights.items()}]
    for local, algo in zip(trained, (whole, difference), strict=True):
        torch.testing.assert_close(local, state(algo.trainer.network), rtol=1e-6, atol=1e-7)
        assert all(torch.isfinite(value).all() for value in local.values())
        # A bias before a normalisation has no gradient.
        assert changed(start, local) > 0.9
    assert changed(*trained) > 0.8

    average = mean_of(trained, [3, 1])
    for name, value in average.items():
        a, b = (np.asarray(local[name], dtype=np.float64) for local in trained)
        np.testing.assert_allclose(value, a + (b - a) / 4, rtol=1e-5, atol=1 if "int" in str(value.dtype) else 1e-7)

    metrics = [algo.evaluate(ExchangeObject(weights=average)).metrics for algo in (whole, difference)]
    for algo, found, data in zip((whole, difference), metrics, lists, strict=True):
        torch.testing.assert_close(state(algo.evaluator.network), average)
        assert algo.evaluator.state.key_metric_name == KEY_METRICS[bundle]
        assert np.isfinite(found[KEY_METRICS[bundle]])
        apart = evaluated_apart(root, data, average, tmp_path / f"apart_{data.stem}")
        assert found == pytest.approx(apart, rel=1e-4, nan_ok=True)
    assert metrics[0][KEY_METRICS[bundle]] != metrics[1][KEY_METRICS[bundle]]

    # The second round begins with the mean, not with what the site itself had come to, of which there is a checkpoint.
    assert (outputs[0] / "last.pt").is_file()
    began: list[State] = []
    whole.trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: began.append(state(engine.network)))
    whole.train(ExchangeObject(weights=average))
    torch.testing.assert_close(began, [average], rtol=0, atol=0)
    assert whole.trainer.state.epoch == 2 and changed(average, weights_of(whole)) > 0.9
    best, last = (
        whole.get_weights({ExtraItems.MODEL_TYPE: kind}).weights
        for kind in (ModelType.BEST_MODEL, ModelType.FINAL_MODEL)
    )
    torch.testing.assert_close(last, weights_of(whole), rtol=0, atol=0)
    assert any(changed(best, one) == 0 for one in (trained[0], last))

    for algo in (whole, difference):
        algo.abort()
        algo.finalize()
    assert (outputs[0] / "evaluation" / "summary.png").is_file()
    assert files(root) == before
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("bundle", ["prostate_mr_trus_weak_ddf", "abdominal_ct_ddmr"])
def test_a_site_that_is_aborted(bundle: str, root: Path, dataset: Path, tmp_path: Path) -> None:
    """In the middle of an epoch, before it has evaluated anything: it stops and can be ended."""
    output = tmp_path / "site"
    algo = client(root, dataset, output, send_weight_diff=False)

    @algo.trainer.on(Events.ITERATION_COMPLETED(once=1))
    def _(engine: Engine) -> None:
        algo.abort()

    algo.train(ExchangeObject(weights=weights_of(algo)))
    assert algo.trainer.state.iteration == 1 < STEPS
    assert not (output / "last.pt").exists()
    algo.finalize()
    assert not (output / "evaluation" / "summary.png").exists()


@pytest.mark.parametrize("bundle", ["prostate_mr_trus_sdm", "abdominal_ct_ddmr"])
def test_statistics_of_a_site(bundle: str, root: Path, dataset: Path, tmp_path: Path) -> None:
    """What a site tells about its fixed images, against nibabel."""
    as_images = "$[{{'image': case['fixed_image'], 'label': case['fixed_label']}} for case in @division.{}]"
    workflow = ConfigWorkflow(
        config_file=str(root / "configs" / "train.json"),
        logging_file=False,
        **small(bundle),
        dataset_dir=str(dataset),
        output_dir=str(tmp_path / "output"),
        **{"train#dataset#data": as_images.format("training"), "validate#dataset#data": as_images.format("validation")},
    )
    keys = ["image", "label"]
    transforms = [LoadImaged(keys, ensure_channel_first=True, image_only=True), Lambdad("label", lambda x: x[:1] == 1)]
    (tmp_path / "site").mkdir()
    algo = MonaiAlgoStats(str(root), workflow=workflow, data_stats_transform_list=transforms)
    algo.initialize({ExtraItems.CLIENT_NAME: "site", ExtraItems.APP_ROOT: str(tmp_path / "site")})
    asked = {FlStatistics.HIST_BINS: 4, FlStatistics.HIST_RANGE: [-500, 500]}
    found = algo.get_data_stats(asked).statistics["train"]
    images = [nib.load(case["image"]) for case in workflow.train_dataset_data]
    assert len(images) == found[FlStatistics.DATA_COUNT] == 4 and found[FlStatistics.FAIL_COUNT] == 0
    described = found[FlStatistics.DATA_STATS][DataStatsKeys.IMAGE_STATS]
    assert described["intensity"]["max"] == pytest.approx(np.max([image.get_fdata().max() for image in images]))
    spacings = [image.header.get_zooms()[:3] for image in images]
    assert described["spacing"]["mean"] == pytest.approx(np.mean(spacings, axis=0).tolist())
