"""Checkpoints: strict loading, files that are never half-written, and resuming as if nothing had happened."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from regzoo.engines import TrainingCheckpoint, load_weights, save_weights
from regzoo.engines.checkpoint import is_lower
from regzoo.errors import RegZooError
from regzoo.networks import LocalNet
from torch import nn


def make_network(seed: int = 0, width: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Training:
    """A trainer whose data are a function of the epoch, with a validation whose best epoch is told in advance."""

    def __init__(
        self, folder: Path, seed: int = 0, best: tuple[int, ...] = (), metric: float | None = None, **options: Any
    ) -> None:
        self.network = make_network(seed)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.StepLR(self.optimiser, 2, 0.5)
        self.engine, evaluator = Engine(self.step), None
        if best:
            evaluator = Engine(lambda *_: None)
            evaluator.state.best_metric, evaluator.state.best_metric_epoch = -1, -1

            @self.engine.on(Events.EPOCH_COMPLETED)
            def validate(engine: Engine) -> None:
                if engine.state.epoch in best:
                    evaluator.state.best_metric_epoch = engine.state.epoch
                    evaluator.state.best_metric = engine.state.epoch / 10 if metric is None else metric

        self.evaluator = evaluator
        self.engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: schedule.step())
        self.checkpoint = TrainingCheckpoint(
            folder, self.network, {"optimiser": self.optimiser, "schedule": schedule}, evaluator, **options
        )
        self.checkpoint.attach(self.engine)
        self.epochs: list[int] = []

    def step(self, engine: Engine, batch: int) -> float:
        if batch == 0:
            self.epochs.append(engine.state.epoch)
        x = torch.randn(8, 2, generator=torch.Generator().manual_seed(100 * engine.state.epoch + batch))
        self.optimiser.zero_grad()
        loss = (self.network(x) - x.prod(1, keepdim=True)).square().mean()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def run(self, epochs: int) -> Training:
        self.engine.run(range(3), max_epochs=epochs)
        return self


def test_weights_go_there_and_back(tmp_path: Path) -> None:
    first, second = make_network(1), make_network(2)
    save_weights(first, tmp_path / "new" / "model.pt")
    assert load_weights(second, tmp_path / "new" / "model.pt") is second
    assert same(first, second)
    # As the Zoo stores them: a plain state dict that `torch.load` reads without running code.
    assert set(torch.load(tmp_path / "new" / "model.pt", weights_only=True)) == set(first.state_dict())


def test_a_training_checkpoint_serves_as_weights(tmp_path: Path) -> None:
    training = Training(tmp_path).run(2)
    assert same(load_weights(make_network(5), tmp_path / "last.pt"), training.network)


def refused(path: Path, network: nn.Module) -> str:
    with pytest.raises(RegZooError) as error:
        load_weights(network, path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert message.count(";") == 1  # what is wrong; what to do
    return message


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (lambda: make_network(width=4), make_network),
        (lambda: LocalNet(channels=4), lambda: LocalNet(channels=2)),
        (lambda: LocalNet(channels=2, levels=(0, 1)), lambda: LocalNet(channels=2)),
        (lambda: LocalNet(channels=2), lambda: LocalNet(channels=2, levels=(0,))),
        (make_network, lambda: LocalNet(channels=2)),
    ],
    ids=["width", "channels", "levels missing", "levels too many", "another class"],
)
def test_weights_of_another_network(
    made: Callable[[], nn.Module], wanted: Callable[[], nn.Module], tmp_path: Path
) -> None:
    save_weights(made(), tmp_path / "model.pt")
    assert "another network" in refused(tmp_path / "model.pt", wanted())


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    assert "no such checkpoint" in refused(path, make_network())
    save_weights(make_network(), path)
    whole = path.read_bytes()
    for content in (b"", b"{}", b"\x80\x02garbage", whole[: len(whole) // 2], bytes(1000), whole[100:]):
        path.write_bytes(content)
        assert "cannot be read" in refused(path, make_network())
    torch.save([1, 2], path)
    assert "no state dict" in refused(path, make_network())
    torch.save({"a": 1}, path)
    assert "holds no weights of a network, but a; save the weights alone" in refused(path, make_network())


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    for content in ({"network": make_network()}, make_network()):  # a pickled object, not a state dict
        torch.save(content, tmp_path / "model.pt")
        assert "Python objects, such as a whole network" in refused(tmp_path / "model.pt", make_network())


@pytest.mark.parametrize("key", ["", "network", "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_weights_of_other_programs_are_unwrapped(key: str, prefix: str, tmp_path: Path) -> None:
    network = make_network(1)
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "model.pt")
    assert same(load_weights(make_network(2), tmp_path / "model.pt"), network)
    torch.save({key or "ema": {"inner": state}}, tmp_path / "model.pt")
    assert "holds no weights of a network, but " in refused(tmp_path / "model.pt", make_network(2))


def test_resumed_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    straight = Training(tmp_path / "straight").run(5)
    Training(tmp_path / "stopped").run(2)
    resumed = Training(tmp_path / "stopped", seed=9).run(5)
    assert resumed.epochs == [3, 4, 5]
    assert same(resumed.network, straight.network)
    assert resumed.engine.state.iteration == straight.engine.state.iteration
    started_anew = Training(tmp_path / "stopped", seed=9, resume=False).run(5)
    assert started_anew.epochs == [1, 2, 3, 4, 5]
    assert not same(started_anew.network, straight.network)


def test_a_crash_while_saving_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Training(tmp_path).run(2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert {path.name for path in before} == {"last.pt", "model.pt"}

    def crash(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", crash)
        with pytest.raises(KeyboardInterrupt):
            Training(tmp_path).run(4)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert Training(tmp_path).run(4).epochs == [3, 4]


def test_a_crash_in_the_middle_of_an_epoch_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = Training(tmp_path / "straight").run(4)
    killed = Training(tmp_path / "killed")

    @killed.engine.on(Events.ITERATION_COMPLETED(once=8))
    def kill(engine: Engine) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.run(4)
    resumed = Training(tmp_path / "killed", seed=7).run(4)
    assert resumed.epochs == [3, 4]
    assert same(resumed.network, straight.network)


def test_best_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    best_file = tmp_path / "run" / "model.pt"
    expected = Training(tmp_path / "to two").run(2).network
    training = Training(tmp_path / "run", best=(1, 2)).run(4)
    assert same(load_weights(make_network(8), best_file), expected)
    assert not same(training.network, expected)
    # A resumed training knows the best metric, and leaves the file alone until it is beaten.
    resumed = Training(tmp_path / "run", best=(6,)).run(5)
    assert resumed.evaluator.state.best_metric == pytest.approx(0.2)
    assert same(load_weights(make_network(8), best_file), expected)
    resumed.run(6)
    assert same(load_weights(make_network(8), best_file), resumed.network)


def test_without_a_usable_metric_the_latest_weights_are_kept(tmp_path: Path) -> None:
    short = Training(tmp_path / "short", best=(99,)).run(2)  # ended before its first validation
    assert same(load_weights(make_network(8), tmp_path / "short" / "model.pt"), short.network)
    unmeasured = Training(tmp_path / "nan", best=(1,), metric=math.nan).run(3)
    assert same(load_weights(make_network(8), tmp_path / "nan" / "model.pt"), unmeasured.network)


def test_lower_is_better_than_anything_and_any_number_better_than_none() -> None:
    assert is_lower(1.0, 2.0)
    assert is_lower(2.0, math.nan)
    for current, best in ((2.0, 1.0), (1.0, 1.0), (math.nan, 1.0), (math.nan, math.nan)):
        assert not is_lower(current, best)


def test_other_settings_are_not_resumed(tmp_path: Path) -> None:
    settings = {"width": 3, "levels": (0, 1), "rate": 1}
    Training(tmp_path, settings=settings).run(1)
    assert Training(tmp_path, settings={"width": 3, "levels": [0, 1], "rate": 1.0}).run(2).epochs == [2]
    with pytest.raises(RegZooError, match=r"last\.pt: was written by a training with another rate; .*resume to False"):
        Training(tmp_path, settings=settings | {"rate": 2}).run(3)
    assert Training(tmp_path, settings=settings | {"rate": 2}, resume=False).run(1).epochs == [1]


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    save_weights(make_network(), tmp_path / "last.pt")  # weights alone: nothing to resume from
    with pytest.raises(RegZooError, match=r"last\.pt: was written by another kind of training; .*set resume to False"):
        Training(tmp_path).run(1)
    content = {"network": make_network(width=5).state_dict(), "objects": {}}
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(RegZooError, match="another network"):
        Training(tmp_path).run(1)
