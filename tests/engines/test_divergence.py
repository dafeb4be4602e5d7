"""A training that diverges ends in one line within the epoch, and nothing that is not finite is saved or loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_list import NAMES, tiny
from ignite.engine import Engine
from monai.bundle import ConfigWorkflow
from regzoo.engines import EventWriter, LossTerms, TrainingCheckpoint, load_weights
from regzoo.engines import divergence as module
from regzoo.engines.divergence import DivergenceCheck, flat_tensors, non_finite
from regzoo.errors import RegZooError, user_error
from regzoo.losses import RegistrationLoss
from regzoo.transforms import WarpOnNetworkGridd
from torch import nn

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


def train(bundle: str, dataset: Path, output: Path, **overrides: Any) -> None:
    configs = BUNDLES / bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=str(configs / "train.json"),
        logging_file=False,
        bundle_root=str(BUNDLES / bundle),
        dataset_dir=str(dataset),
        output_dir=str(output),
        **{**tiny(bundle), **overrides},
    )
    workflow.initialize()
    workflow.run()


def test_what_is_not_finite() -> None:
    good, nan, inf = torch.ones(2, 3), torch.tensor([1.0, torch.nan]), torch.tensor([[-torch.inf]])
    counts = torch.tensor([7])
    assert non_finite({"a": good, "b": nan, "c": inf, "d": counts, "e": 2.0}) == ["b", "c"]
    assert non_finite({}) == non_finite({"count": counts}) == []
    state = {"network": {"w": good}, "optimiser": {"state": [{"step": nan}], "groups": [{"lr": torch.nan}]}}
    assert list(flat_tensors(state, "x")) == ["x.network.w", "x.optimiser.state.0.step"]


@pytest.mark.parametrize("bundle", NAMES)
def test_a_learning_rate_that_is_far_too_high(bundle: str, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        train(bundle, dataset, tmp_path, learning_rate=1e30)
    line = str(user_error(caught.value))
    assert line.startswith("epoch 1, step ") and "became NaN or infinite; lower learning_rate" in line
    assert "\n" not in line
    assert not (tmp_path / "last.pt").exists() and not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("bundle", ["prostate_mr_trus_weak_ddf"])
def test_on_the_command_line_the_last_good_epoch_stays(bundle: str, dataset: Path, tmp_path: Path) -> None:
    """Only the second epoch diverges: its steps multiply the learning rate."""
    output = tmp_path / "output"
    settings = tiny(bundle) | {
        "dataset_dir": dataset,
        "output_dir": output,
        "lr_scheduler": "$torch.optim.lr_scheduler.LambdaLR(@optimizer, lambda step: 1.0 if step < 4 else 1e30)",
    }
    arguments = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/train.json", *arguments],
        cwd=BUNDLES / bundle,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: epoch 2, step ") and "lower learning_rate" in line
    assert "Traceback" not in done.stderr
    last = torch.load(output / "last.pt", weights_only=True)
    assert last["epoch"] == 1 and non_finite(flat_tensors(last, "last")) == []
    assert non_finite(torch.load(output / "model.pt", weights_only=True)) == []


class Trainer:
    """Steps whose losses are told in advance, of a network of one weight."""

    def __init__(self, folder: Path, losses: list[dict[str, float]], weights: list[float] | None = None) -> None:
        self.loss = RegistrationLoss({name: nn.Identity() for name in losses[0]})
        self.engine, self.seen = Engine(self.step), 0
        self.engine.network = nn.Linear(1, 1, bias=False)
        self.engine.optimizer = torch.optim.SGD(self.engine.network.parameters(), lr=0.25)
        self.losses, self.weights = losses, weights
        LossTerms(self.loss, EventWriter(folder)).attach(self.engine)
        TrainingCheckpoint(folder, self.engine.network).attach(self.engine)

    def step(self, engine: Engine, index: int) -> dict[str, torch.Tensor]:
        self.seen += 1
        for listener in self.loss.listeners:
            listener({name: torch.tensor(value) for name, value in self.losses[index].items()}, {})
        if self.weights is not None:
            engine.network.weight.data.fill_(self.weights[index])
        return {"loss": torch.tensor(sum(self.losses[index].values()))}

    def line(self) -> str:
        with pytest.raises(RegZooError) as caught:
            self.engine.run(range(len(self.losses)), max_epochs=1)
        return str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_term_and_the_step_are_named(value: float, tmp_path: Path) -> None:
    good = {"label": 1.0, "deformation": 2.0}
    trainer = Trainer(tmp_path, [good, good, good | {"deformation": value}, good])
    line = trainer.line()
    assert line.startswith("epoch 1, step 3: loss/total, loss/deformation became NaN or infinite; ")
    assert "lower learning_rate (now 0.25)" in line
    assert trainer.seen == 3
    assert not (tmp_path / "last.pt").exists()


def test_values_on_a_gpu_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Played by another device than the CPU for the check alone; the step that is named is the first bad one."""

    class Elsewhere(dict):
        def values(self) -> Any:
            return [torch.empty((), device="meta")]

    looked: list[int] = []
    monkeypatch.setattr(module, "non_finite", lambda values: looked.append(len(values)) or non_finite(values))
    check = DivergenceCheck()
    for step in range(1, 20):
        check.add(Elsewhere(total=torch.tensor(torch.nan if step > 4 else 1.0)), 2, step, 0.1, False)
    assert looked == []
    with pytest.raises(RegZooError, match="epoch 2, step 5: total became NaN"):
        check.add(Elsewhere(total=torch.tensor(1.0)), 2, 20, 0.1, False)
    assert looked == [20]
    with pytest.raises(RegZooError, match="epoch 3, step 1: total became"):  # the last step of an epoch
        check.add(Elsewhere(total=torch.tensor(torch.inf)), 3, 1, 0.1, True)


def test_weights_at_the_end_of_an_epoch_and_before_the_first(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, [{"label": 1.0}] * 2, [1.0, torch.inf])
    assert trainer.line().startswith("epoch 1, step 2: the weights weight became NaN or infinite; lower")
    trainer = Trainer(tmp_path, [{"label": 1.0}])
    trainer.engine.network.weight.data.fill_(torch.nan)
    assert "the weights weight hold NaN or infinity before the first step; start from" in trainer.line()
    assert trainer.seen == 0 and not list(tmp_path.glob("*.pt"))


def test_the_state_of_the_optimiser_is_not_saved_either(tmp_path: Path) -> None:
    network = nn.Linear(1, 1, bias=False)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.0)

    def step(engine: Engine, batch: int) -> None:
        network.weight.grad = torch.full((1, 1), 1e30 if engine.state.epoch > 1 else 1.0)  # its square is too large
        optimiser.step()

    engine = Engine(step)
    TrainingCheckpoint(tmp_path, network, {"optimiser": optimiser}).attach(engine)
    with pytest.raises(RegZooError, match=r"epoch 2: last.pt.objects.optimiser.state.0.exp_avg_sq became NaN or inf"):
        engine.run([0], max_epochs=3)
    assert network.weight.isfinite().all()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"network": state, "epoch": 3}])
def test_bad_weights_are_refused(value: float, wrap: Any, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["0.weight"][0, 1] = value
    state["1.running_var"][0] = value
    torch.save(wrap(state), tmp_path / "model.pt")
    with pytest.raises(RegZooError, match=r"model\.pt: holds NaN or infinity in 0\.weight, 1\.running_var; use"):
        load_weights(network, tmp_path / "model.pt")
    assert network[0].weight.isfinite().all()


def test_a_prediction_that_is_not_finite_is_not_blamed_on_the_data() -> None:
    from monai.data import MetaTensor

    image = MetaTensor(torch.rand(1, 4, 4, 4), affine=torch.eye(4))
    item = {"case": "case7", "fixed_image": image, "moving_image": image, "pred": torch.zeros(3, 4, 4, 4)}
    assert np.allclose(WarpOnNetworkGridd()(dict(item))["warped_image"], image)
    item["pred"][1, 2, 2, 2] = torch.nan
    with pytest.raises(RegZooError, match="case7: the network predicts NaN or infinity; use other weights"):
        WarpOnNetworkGridd()(item)
