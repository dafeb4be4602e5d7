"""How the terms of a registration loss are put together."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from helpers import ball
from regzoo.errors import RegZooError
from regzoo.losses import (
    BendingEnergy,
    Deformation,
    LabelSimilarity,
    MultiScaleDice,
    PredictedOutlines,
    RegistrationLoss,
)
from torch import nn


class Mean(nn.Module):
    """Mean of the prediction, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, ddf: torch.Tensor, targets: object) -> torch.Tensor:
        return self.factor * ddf.mean()


class Fails(nn.Module):
    def forward(self, ddf: torch.Tensor, targets: object) -> torch.Tensor:
        raise AssertionError("a term without weight was computed")


def test_weighted_sum_of_the_terms() -> None:
    loss = RegistrationLoss({"a": Mean(1), "b": Mean(10), "c": Fails()}, {"a": 0.5, "c": 0})
    prediction = torch.full((1, 3, 2, 2, 2), 2.0, requires_grad=True)
    heard: list[Mapping[str, torch.Tensor]] = []
    loss.listeners.append(lambda values, weights: heard.extend([values, weights]))
    value = loss(prediction, {})
    assert value.item() == pytest.approx(0.5 * 2 + 10 * 2)
    assert {name: float(v) for name, v in heard[0].items()} == {"a": 2.0, "b": 20.0} and heard[1:] == [{}]
    assert not any(v.requires_grad for v in heard[0].values())
    value.backward()
    assert prediction.grad is not None
    assert float(prediction.grad.sum()) == pytest.approx(10.5)


def test_weight_for_a_term_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="typo"):
        RegistrationLoss({"label": Mean(1)}, {"typo": 1})


def test_label_term_warps_the_moving_label_onto_the_fixed_one() -> None:
    shape = (16, 14, 12)
    targets = {
        "fixed_label": torch.from_numpy(ball(shape, (7, 7, 5), 3))[None, None],
        "moving_label": torch.from_numpy(ball(shape, (9, 6, 6), 3))[None, None],
    }
    there = torch.tensor([2.0, -1, 1]).view(1, 3, 1, 1, 1).expand(1, 3, *shape)
    loss = RegistrationLoss(
        {
            "label": LabelSimilarity(MultiScaleDice(squared_denominator=True)),
            "deformation": Deformation(BendingEnergy()),
        },
        {"deformation": 0.5},
    )
    assert float(loss(there, targets)) == pytest.approx(0, abs=1e-3)
    for wrong in (-there, 0 * there, there.flip(1)):
        assert float(loss(wrong, targets)) > 0.05


def test_float32_and_trainable_under_autocast() -> None:
    ddf = torch.randn(1, 3, 8, 8, 8, requires_grad=True)
    label = torch.rand(1, 1, 8, 8, 8)
    loss = RegistrationLoss({"label": LabelSimilarity(MultiScaleDice()), "deformation": Deformation(BendingEnergy())})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(ddf, {"fixed_label": label, "moving_label": label})
    assert value.dtype == torch.float32
    value.backward()
    assert ddf.grad is not None
    assert float(ddf.grad.abs().sum()) > 0


def test_outline_term_compares_both_images_with_their_labels() -> None:
    """Logits that are sure of the labels cost nothing, and the DDF does not count."""
    shape = (16, 14, 12)
    fixed, moving = (torch.from_numpy(ball(shape, center, 3))[None, None] for center in ((5, 7, 5), (9, 6, 6)))
    targets = {
        "fixed_label": torch.cat([fixed, torch.zeros_like(fixed)], dim=1),
        "moving_label": torch.cat([torch.zeros_like(fixed), moving], dim=1),
    }
    outlines = [torch.cat([1 - label.sum(1, keepdim=True), label], dim=1) for label in targets.values()]
    term = PredictedOutlines(nn.CrossEntropyLoss())
    ddf = torch.rand(1, 3, *shape)
    right = torch.cat([ddf, *(20 * outline for outline in outlines)], dim=1)
    swapped = torch.cat([ddf, *(20 * outline for outline in reversed(outlines))], dim=1)
    assert term(right, targets) < 1e-6
    share = float(((outlines[0] - outlines[1]).abs().sum(1) > 0).float().mean())  # of the voxels that are wrong
    assert term(swapped, targets).item() == pytest.approx(20 * share, rel=1e-4)
    fewer = {key: value[:, :1] for key, value in targets.items()}
    with pytest.raises(RegZooError, match="labels: the network outlines 2, and the data have 1; set labels to 1, or"):
        term(right, fewer)
