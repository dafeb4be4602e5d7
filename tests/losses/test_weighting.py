"""Learned weights of loss terms: optima known in closed form, gradients over two processes, checkpoints, curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine
from monai.bundle import ConfigParser
from regzoo.engines import EventWriter, LossTerms, TrainingCheckpoint
from regzoo.losses import LearnedWeights, RegistrationLoss, SoftmaxWeights, UncertaintyWeights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

VALUES = {"a": 0.2, "b": 5.0, "penalty": 3.0}


class Constant(nn.Module):
    """A term of a given value that depends on the prediction."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, prediction: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.value * prediction.mean()


def make(weights: Mapping[str, float] | LearnedWeights | None) -> RegistrationLoss:
    return RegistrationLoss({name: Constant(value) for name, value in VALUES.items()}, weights)


class Heard:
    """The values and weights of a loss's latest step."""

    def __init__(self, loss: RegistrationLoss) -> None:
        loss.listeners.append(self)

    def __call__(self, values: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
        self.values, self.weights = values, weights


def one() -> torch.Tensor:
    return torch.ones(1, 3, 2, 2, 2, requires_grad=True)


def learn(loss: RegistrationLoss, steps: int, rate: float = 0.1) -> None:
    optimizer = torch.optim.Adam(loss.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(one(), {}).backward()
        optimizer.step()


def test_uncertainty_weights_become_the_inverse_values() -> None:
    loss = make(UncertaintyWeights(["a", "b"], fixed={"penalty": 0.01}))
    heard, prediction = Heard(loss), one()
    value = loss(prediction, {})
    assert float(value.detach()) == pytest.approx(0.2 + 5.0 + 0.01 * 3)
    value.backward()
    assert prediction.grad is not None
    assert float(prediction.grad.sum()) == pytest.approx(0.2 + 5.0 + 0.03)
    learn(loss, 200)
    value = loss(one(), {}).detach()
    assert {name: float(v) for name, v in heard.weights.items()} == pytest.approx({"a": 5.0, "b": 0.2}, rel=1e-2)
    # With each exp(-s) L = 1, the least value of Σ exp(-s) L + s is Σ 1 + log L.
    assert float(value) == pytest.approx(2 + math.log(0.2) + math.log(5.0) + 0.03, abs=1e-3)
    assert {name: float(v) for name, v in heard.values.items()} == pytest.approx(VALUES)
    assert not any(v.requires_grad for v in (*heard.values.values(), *heard.weights.values()))


def test_softmax_weights_favour_the_smallest_term() -> None:
    loss = make(SoftmaxWeights(["a", "b"], fixed={"penalty": 0.01}))
    heard = Heard(loss)
    assert float(loss(one(), {}).detach()) == pytest.approx((0.2 + 5.0) / 2 + 0.03)
    for _ in range(3):
        learn(loss, 20)
        before = heard.weights
        loss(one(), {})
        weights = heard.weights
        assert float(sum(weights.values())) == pytest.approx(1)
        assert float(weights["a"]) > float(before["a"])
    assert float(weights["a"]) > 0.95


@pytest.mark.parametrize("kind", [UncertaintyWeights, SoftmaxWeights])
def test_initial_weights(kind: type[LearnedWeights]) -> None:
    weights = kind(["a", "b"], initial={"a": 3.0}).weights()
    total = 4 if kind is SoftmaxWeights else 1
    assert {name: float(w) for name, w in weights.items()} == pytest.approx({"a": 3 / total, "b": 1 / total})


def test_terms_in_neither_list_count_once_and_some_not_at_all() -> None:
    assert float(make(UncertaintyWeights(["a"]))(one(), {}).detach()) == pytest.approx(sum(VALUES.values()))
    loss = make(UncertaintyWeights(["a"], fixed={"b": 0}))
    heard = Heard(loss)
    assert float(loss(one(), {}).detach()) == pytest.approx(0.2 + 3)
    assert set(heard.values) == {"a", "penalty"}


def test_fixed_weights_have_nothing_to_learn() -> None:
    loss = make({"a": 2, "b": 0})
    heard = Heard(loss)
    assert float(loss(one(), {}).detach()) == pytest.approx(0.4 + 3)
    assert not list(loss.parameters()) and heard.weights == {} and "b" not in heard.values
    assert "weights={'a': 2.0, 'b': 0.0, 'penalty': 1.0}" in repr(loss)


@pytest.mark.parametrize("kind", [UncertaintyWeights, SoftmaxWeights])
def test_checkpoint(kind: type[LearnedWeights], tmp_path: Path) -> None:
    def training() -> tuple[RegistrationLoss, nn.Module, Engine]:
        loss, network = make(kind(["a", "b"])), nn.Conv3d(1, 3, 1)
        optimizer = torch.optim.Adam(list(network.parameters()) + list(loss.parameters()), 0.1)
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 3

        def step(engine: Engine, batch: torch.Tensor) -> None:
            optimizer.zero_grad()
            loss(network(batch).square(), {}).backward()
            optimizer.step()

        engine = Engine(step)
        objects = {"optimizer": optimizer, "loss": loss}
        TrainingCheckpoint(tmp_path, network, objects, settings={"loss": repr(loss)}).attach(engine)
        return loss, network, engine

    data = [torch.ones(1, 1, 2, 2, 2)]
    torch.manual_seed(0)
    first, _, engine = training()
    described = repr(first)
    engine.run(data, max_epochs=3)
    learned = [p.detach().clone() for p in first.parameters()]
    assert all(bool((p != 0).all()) for p in learned)
    # What is learned must not be in the description, by which a resumed training is recognised as the same.
    assert repr(first) == described and kind.__name__ in described and "'a', 'b'" in described
    second, _, engine = training()
    engine.run(data, max_epochs=3)  # all three epochs are done
    assert all(torch.equal(a, b) for a, b in zip(learned, second.parameters(), strict=True))


def test_curves_of_values_and_weights(tmp_path: Path) -> None:
    loss = make(SoftmaxWeights(["a", "b"], fixed={"penalty": 0.01}))
    heard = Heard(loss)
    optimizer = torch.optim.SGD(loss.parameters(), 0.5)
    seen: list[float] = []

    def step(engine: Engine, batch: int) -> dict[str, torch.Tensor]:
        optimizer.zero_grad()
        value = loss(one(), {})
        value.backward()
        optimizer.step()
        seen.append(float(heard.weights["a"]))
        return {"loss": value}

    engine = Engine(step)
    engine.optimizer = optimizer  # type: ignore[attr-defined]
    LossTerms(loss, EventWriter(tmp_path)).attach(engine)
    engine.run([0, 1, 2], max_epochs=2)
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = {"loss/total", "loss/a", "loss/b", "loss/penalty", "weight/a", "weight/b", "learning_rate"}
    assert set(events.Tags()["scalars"]) == tags
    curve = [event.value for event in events.Scalars("weight/a")]
    assert curve == pytest.approx([sum(seen[:3]) / 3, sum(seen[3:]) / 3], rel=1e-5)
    assert [event.value for event in events.Scalars("loss/b")] == pytest.approx([5.0, 5.0])


def test_from_a_config() -> None:
    parser = ConfigParser(
        {
            "loss": {
                "_target_": "regzoo.losses.RegistrationLoss",
                "terms": {
                    "image": {
                        "_target_": "regzoo.losses.ImageSimilarity",
                        "loss": {"_target_": "regzoo.losses.NormalizedCrossCorrelation"},
                    },
                    "deformation": {
                        "_target_": "regzoo.losses.Deformation",
                        "loss": {"_target_": "regzoo.losses.GradientNorm"},
                    },
                },
                "weights": {
                    "_target_": "regzoo.losses.UncertaintyWeights",
                    "names": ["image"],
                    "fixed": {"deformation": 0.005},
                },
            }
        }
    )
    loss = parser.get_parsed_content("loss")
    heard = Heard(loss)
    image = torch.rand(1, 1, 6, 6, 6)
    loss(torch.zeros(1, 3, 6, 6, 6), {"fixed_image": image, "moving_image": image.flip(2)}).backward()
    (parameter,) = loss.parameters()
    assert parameter.grad is not None
    assert float(parameter.grad) == pytest.approx(1 - float(heard.values["image"]), abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": []}, "at least one"),
        ({"names": ["a", "a"]}, "different"),
        ({"names": ["a"], "fixed": {"a": 1}}, "both learned and fixed"),
        ({"names": ["a"], "initial": {"b": 1}}, "not learned"),
        ({"names": ["a"], "initial": {"a": 0}}, "positive"),
        ({"names": ["typo"]}, "typo"),
        ({"names": ["a"], "fixed": {"typo": 1}}, "typo"),
    ],
)
def test_names_and_weights_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(UncertaintyWeights(**arguments))  # type: ignore[arg-type]


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    loss = make(UncertaintyWeights(["a", "b"]))
    (parameter,) = loss.parameters()
    for _ in range(2):  # two steps accumulate
        loss(one() * (1 + 2 * rank), {}).backward()
    torch.save(parameter.grad, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_learn_the_same(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    gradients = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert torch.equal(*gradients)
    # d/ds (exp(-s) L + s) = 1 - L at s = 0; the values are 1 and 3 times as large, twice on the mean.
    torch.testing.assert_close(gradients[0], 2 * (1 - 2 * torch.tensor([0.2, 5.0])))
