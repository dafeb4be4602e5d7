"""The terms of a registration loss, and their weighted sum.

A term is called with the network's prediction and the batch's targets, a dict with ``fixed_image``, ``moving_image``,
``fixed_label``, ``moving_label``, all (B, C, X, Y, Z) on the network grid, and returns a scalar. The first three
channels of a prediction are the DDF, unless the network only predicts labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from regzoo.case import FIXED, MOVING, SIDES
from regzoo.errors import RegZooError
from regzoo.losses.weighting import LearnedWeights
from regzoo.spatial.warp import warp
from torch import nn


class _Term(nn.Module):
    """Base class that holds the loss of a term."""

    loss: Callable[..., torch.Tensor]

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss


class LabelSimilarity(_Term):
    """Warp the moving label with the predicted DDF and compare it with the fixed label.

    Args:
        loss: called with (warped, fixed), both (B, C, X, Y, Z).
    """

    def forward(self, prediction: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.loss(warp(targets[MOVING.label], prediction[:, :3]), targets[FIXED.label])


class ImageSimilarity(_Term):
    """Warp the moving image with the predicted DDF and compare it with the fixed image.

    The moving image is extended by its border values, because an edge against zero would look like anatomy.

    Args:
        loss: called with (warped, fixed), both (B, C, X, Y, Z).
    """

    def forward(self, prediction: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        warped = warp(targets[MOVING.image], prediction[:, :3], padding="border")
        return self.loss(warped, targets[FIXED.image])


class PredictedLabel(_Term):
    """Compare the labels that a network predicts directly, as logits, with the fixed labels.

    Args:
        loss: called with (logits, fixed), both (B, C, X, Y, Z).
    """

    def forward(self, logits: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.loss(logits, targets[FIXED.label])


class PredictedOutlines(_Term):
    """Compare the outlines of both images, which follow the DDF in the prediction, with their labels.

    Args:
        loss: called with (logits, labels), both (B, 1 + C, X, Y, Z) with the background first: in one batch, the fixed
            and the moving images. The labels exclude each other.

    Raises:
        RegZooError: in a step, the network outlines another number of labels than the data have.
    """

    def forward(self, prediction: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        labels = torch.cat([targets[side.label] for side in SIDES])
        background = (1 - labels.sum(dim=1, keepdim=True)).clamp(min=0)
        logits = torch.cat(prediction[:, 3:].chunk(2, dim=1))
        outlined, given = logits.shape[1] - 1, labels.shape[1]
        if outlined != given:
            fix = f"set labels to {given}, or label_values to the values of {outlined} labels"
            raise RegZooError(f"labels: the network outlines {outlined}, and the data have {given}; {fix}")
        return self.loss(logits, torch.cat([background, labels], dim=1))


class Deformation(_Term):
    """A penalty on the predicted DDF alone.

    Args:
        loss: called with the DDF (B, 3, X, Y, Z), voxels.
    """

    def forward(self, prediction: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.loss(prediction[:, :3])


#: Called in each step with two dicts: name → unweighted value of a term, and name → learned weight. All values are
#: detached and on the device.
Listener = Callable[[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], None]


class RegistrationLoss(nn.Module):
    """Weighted sum of named terms.

    Args:
        terms: name → term.
        weights: name → weight, 1 for terms without one; a weight of 0 leaves its term out. Or `LearnedWeights`, whose
            parameters become parameters of this module.

    Attributes:
        listeners: called in each step with the values and weights of that step, see `Listener`.
    """

    def __init__(
        self, terms: Mapping[str, nn.Module], weights: Mapping[str, float] | LearnedWeights | None = None
    ) -> None:
        super().__init__()
        self.learned = weights if isinstance(weights, LearnedWeights) else None
        fixed = weights.fixed if isinstance(weights, LearnedWeights) else dict(weights or {})
        learned = set() if self.learned is None else set(self.learned.names)
        unknown = sorted((set(fixed) | learned) - set(terms))
        if unknown:
            raise ValueError(f"weights for unknown loss terms {unknown}; the terms are {sorted(terms)}")
        for name, weight in fixed.items():
            if float(weight) < 0:
                raise RegZooError(f"the loss term {name!r} has the weight {float(weight):g}; use 0 or more")
        self.terms = nn.ModuleDict(dict(terms))
        self.weights = {name: float(fixed.get(name, 1.0)) for name in terms if name not in learned}
        self.listeners: list[Listener] = []

    def extra_repr(self) -> str:
        return f"weights={self.weights}"

    def forward(self, prediction: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        values = {name: term(prediction, targets) for name, term in self.terms.items() if self.weights.get(name) != 0}
        weights = {} if self.learned is None else self.learned.weights()
        for listener in self.listeners:
            listener({name: value.detach() for name, value in values.items()}, weights)
        total = torch.zeros((), device=prediction.device)
        for name, weight in self.weights.items():
            if name in values:
                total = total + weight * values[name]
        return total if self.learned is None else total + self.learned(values)
