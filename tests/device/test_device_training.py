"""The trainings of all bundles on the tracked device: no mixture of devices, and no step that waits for it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_list import BUNDLES, NAMES, OTHERS_SLOW, tiny, training
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from regzoo.report import read_csv
from tracked_device import DeviceTensor, Log, tracked_device

WEAK, DDMR = "prostate_mr_trus_weak_ddf", "abdominal_ct_ddmr"
#: Overlays with other code in a step than the bundle itself, and the files whose waits are documented.
VARIANTS = [
    (WEAK, "composite_net", set()),
    (WEAK, "msce", set()),
    ("prostate_mr_trus_sdm", "sdm", set()),
    (DDMR, "diffeomorphic", set()),
    (DDMR, "softmax_weights", set()),
    (DDMR, "uw_nsdh", {"regzoo/losses/hausdorff.py"}),
]


def initialised(bundle: str, dataset: Path, output: Path, *overlays: str, **settings: Any) -> ConfigWorkflow:
    configs = BUNDLES[NAMES.index(bundle)] / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / name) for name in ("train.json", *overlays)],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(configs.parent),
        dataset_dir=str(dataset),
        output_dir=str(output),
        **{**tiny(bundle), "device": "cuda", **settings},
    )
    workflow.initialize()
    return workflow


def waits_of_a_step(bundle: str, dataset: Path, output: Path, log: Log, *overlays: str, **settings: Any) -> Log:
    """Train on the device; what happened in the second step of this run, its data and handlers included."""
    settings = {"num_workers": 0, "show_progress": False, **settings}
    workflow = initialised(bundle, dataset, output, *overlays, **settings)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    assert all(isinstance(weight, DeviceTensor) for weight in trainer.network.parameters())
    seen = Log()

    def after_a_step() -> None:
        # The first step makes what is made once for each device.
        count = trainer.state.iteration - (trainer.state.epoch - 1) * trainer.state.epoch_length
        if count == 1:
            log.clear()
        elif count == 2:
            seen.__dict__.update(copy.deepcopy(log.__dict__))

    trainer.add_event_handler(Events.ITERATION_COMPLETED, after_a_step)
    workflow.run()
    workflow.finalize()
    assert seen.kernels
    return seen


def unexpected(seen: Log, documented: set[str]) -> Mapping[tuple[str, str], int]:
    """The waits of a step, without those of files whose waits are documented."""
    return {key: count for key, count in seen.waits.items() if not any(file in key[1] for file in documented)}


@pytest.mark.parametrize("bundle", OTHERS_SLOW)
def test_a_training_its_resumption_and_its_evaluation(bundle: str, dataset: Path, tmp_path: Path) -> None:
    more = {"accumulation_steps": 2} if "accumulation_steps" in training(bundle) else {}
    with tracked_device() as log:
        for epochs in (1, 2):
            seen = waits_of_a_step(bundle, dataset, tmp_path, log, max_epochs=epochs, **more)
            assert not unexpected(seen, set())
        workflow = initialised(bundle, dataset, tmp_path, "evaluate.json", pictures=1)
        workflow.run()
        workflow.finalize()
    assert read_csv(tmp_path / "evaluation" / "cases.csv")["case"]
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["epoch"] == 2 and last["settings"]["precision"] == "bfloat16"
    assert all(value.device.type == "cpu" and value.isfinite().all() for value in last["network"].values())


@pytest.mark.parametrize(("bundle", "variant", "documented"), VARIANTS)
def test_a_variant_waits_for_nothing_undocumented(
    bundle: str, variant: str, documented: set[str], dataset: Path, tmp_path: Path
) -> None:
    with tracked_device() as log:
        seen = waits_of_a_step(bundle, dataset, tmp_path, log, f"variants/{variant}.json", max_epochs=1)
    assert not unexpected(seen, documented)
    assert len(unexpected(seen, set())) >= len(documented)


def test_an_optimiser_that_waits_is_found(prostate_phantoms: Path, tmp_path: Path) -> None:
    """One that is not fused makes the scaler of the gradients read whether one of them is infinite."""
    with tracked_device() as log:
        seen = waits_of_a_step(WEAK, prostate_phantoms, tmp_path, log, max_epochs=1, **{"optimizer#fused": False})
    assert [place.split(":")[0] for _, place in seen.waits] == ["torch/amp/grad_scaler.py"]


def test_a_training_of_the_cpu_goes_on_on_a_gpu(prostate_phantoms: Path, tmp_path: Path) -> None:
    """The optimiser is another one, of the same kind; in float32 the settings are the same."""
    with tracked_device() as log:
        waits_of_a_step(WEAK, prostate_phantoms, tmp_path, log, max_epochs=1, amp=False)
        first = torch.load(tmp_path / "last.pt", weights_only=True)
        group = first["objects"]["optimizer"]["param_groups"][0]
        assert group["fused"]
        group["fused"] = None
        torch.save(first, tmp_path / "last.pt")
        seen = waits_of_a_step(WEAK, prostate_phantoms, tmp_path, log, max_epochs=2, amp=False)
    assert not seen.waits
    assert torch.load(tmp_path / "last.pt", weights_only=True)["objects"]["optimizer"]["param_groups"][0]["fused"]


def test_an_old_gpu_trains_in_float32(prostate_phantoms: Path, tmp_path: Path) -> None:
    with tracked_device(bf16=False) as log:
        waits_of_a_step(WEAK, prostate_phantoms, tmp_path, log, max_epochs=1)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["settings"]["precision"] == "float32"
