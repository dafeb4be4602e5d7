"""A network that takes one label at a time, shown many."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from regzoo.inference import LabelWiseInferer
from torch import nn

SIZE = (5, 4, 6)


class Spelled(nn.Module):
    """Every input has a digit of its own in the output; remembers the batches it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor, offset: float = 0.0) -> torch.Tensor:
        assert x.shape[1:] == (3, *SIZE)
        self.batches.append(len(x))
        return 10000 * x[:, :1] + 100 * x[:, 1:2] + x[:, 2:] + offset


def inputs(batch: int, labels: int) -> torch.Tensor:
    """Constant volumes: fixed image 1, 2, …; moving image 11, 12, …; label l of case b is 10 b + l + 1."""
    images = torch.stack([torch.arange(batch) + 1, torch.arange(batch) + 11], dim=1)
    rois = 10 * torch.arange(batch)[:, None] + torch.arange(labels) + 1
    return torch.cat([images, rois], dim=1).float().view(batch, -1, 1, 1, 1).expand(-1, -1, *SIZE)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("labels", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [None, 1, 3, 100])
def test_each_label_in_its_own_channel(batch: int, labels: int, batch_size: int | None) -> None:
    network = Spelled()
    out = LabelWiseInferer(batch_size)(inputs(batch, labels), network)
    assert out.shape == (batch, labels, *SIZE)
    for b in range(batch):
        for label in range(labels):
            assert out[b, label].unique().tolist() == [10000 * (b + 1) + 100 * (b + 11) + 10 * b + label + 1]
    step, total = batch_size or batch * labels, batch * labels
    assert network.batches == [min(step, total - start) for start in range(0, total, step)]


def test_arguments_reach_the_network() -> None:
    out = LabelWiseInferer(2)(inputs(1, 3), Spelled(), offset=0.5)
    assert out[0, :, 0, 0, 0].tolist() == [11101.5, 11102.5, 11103.5]


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 1, 3, padding=1))
    network(torch.randn(4, 3, *SIZE))  # so that the running statistics are not trivial
    return network


@pytest.mark.parametrize("batch_size", [None, 2])
def test_together_as_one_by_one(batch_size: int | None) -> None:
    network, x = convolutions().eval(), torch.randn(2, 2 + 5, *SIZE)
    out = LabelWiseInferer(batch_size)(x, network)
    for b in range(2):
        for label in range(5):
            alone = network(x[b : b + 1, [0, 1, 2 + label]])[0, 0]
            torch.testing.assert_close(out[b, label], alone, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_all_labels() -> None:
    network, x = convolutions().eval(), torch.randn(2, 2 + 3, *SIZE, requires_grad=True)
    weight = torch.randn(2, 3, *SIZE)
    leaves = [x, *network.parameters()]
    ours = torch.autograd.grad((LabelWiseInferer()(x, network) * weight).sum(), leaves)
    single = [(network(x[:, [0, 1, 2 + label]])[:, 0] * weight[:, label]).sum() for label in range(3)]
    theirs = torch.autograd.grad(torch.stack(single).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert bool((a != 0).any())


def test_the_network_sees_plain_tensors() -> None:
    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert type(x) is torch.Tensor
            return x[:, 2:]

    x = inputs(1, 4).contiguous()
    out = LabelWiseInferer(3)(MetaTensor(x, affine=torch.eye(4)), Plain())
    assert type(out) is torch.Tensor
    assert torch.equal(out, x[:, 2:])
