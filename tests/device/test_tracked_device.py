"""The tracked device itself: it finds the mistakes and waits that a GPU would."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch.nn.functional import grid_sample
from tracked_device import DeviceTensor, on_cpu, tracked_device

Operation = Callable[[torch.Tensor], object]


def step_along_a_transposed_gradient(x: torch.Tensor) -> None:
    x.grad = torch.ones(3, 2, device="cuda").T
    torch.optim.Adam([x], fused=True).step()


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(1, 3)]),
        lambda x: x @ torch.ones(3),
        lambda x: torch.ones(4)[x.long()[0]],
        lambda x: grid_sample(torch.ones(1, 1, 2, 2, 2), x.new_zeros(1, 2, 2, 2, 3)),
        lambda x: torch.nn.Linear(3, 1)(x),
        lambda x: MetaTensor(x) * torch.ones(3),
        lambda x: x.numpy(),
        np.asarray,
        step_along_a_transposed_gradient,
    ],
)
def test_mistakes_are_found(mistake: Operation) -> None:
    with tracked_device(), pytest.raises((RuntimeError, TypeError), match=r"cuda|device"):
        mistake(torch.ones(2, 3, device="cuda"))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.linalg.inv(torch.eye(2, device=x.device)),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.ones(3).to(x.device),
        lambda x: torch.zeros(2, 3).copy_(x),
    ],
)
def test_waits_are_noted_with_their_place(wait: Operation) -> None:
    with tracked_device() as log:
        x = torch.ones(2, 3, device="cuda:0")
        assert not log.waits
        wait(x)
        assert any("test_tracked_device.py:" in place for _, place in log.waits)


def test_what_does_not_wait() -> None:
    with tracked_device() as log:
        x = torch.ones(3, device="cuda")
        x.add_(torch.ones(3).to("cuda", non_blocking=True)).mul(torch.tensor(2.0)).relu_()
        assert not log.waits and log.uploads == [12]
        assert sum(log.kernels.values()) == 5  # fill, copy, add, mul, relu


def test_bytes_operations_and_memory_are_counted() -> None:
    """A convolution of 4×10³ voxels to 8×8³ with 27 taps, and its gradients; float32 and bfloat16."""
    operations = 2 * 8 * 8**3 * 4 * 27
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        with tracked_device(values=False) as log:
            before = log.in_use
            image = torch.rand(1, 4, 10, 10, 10, device="cuda", dtype=dtype)
            weight = torch.rand(8, 4, 3, 3, 3, device="cuda", dtype=dtype, requires_grad=True)
            numbers = 4 * 10**3 + 8 * 4 * 27
            assert log.in_use - before == size * numbers
            log.clear()
            made = torch.nn.functional.conv3d(image, weight)
            (launch,) = log.launches
            assert launch == ("aten::convolution", size * (numbers + 8 * 8**3), operations, size == 2)
            made.backward(torch.ones_like(made))
            assert [one.flops for one in log.launches if one.flops] == [operations, operations]
            assert log.peak > log.in_use == before + size * (numbers + 8 * 4 * 27 + 8 * 8**3)
            del image, weight, made
            assert log.in_use == before


def test_every_value_that_is_read_is_1_where_nothing_is_computed() -> None:
    with tracked_device(values=False) as log:
        x = torch.zeros(2, 3, device="cuda")
        assert float(x.sum()) == 1 and x.tolist() == [[1.0] * 3] * 2 and torch.equal(x.cpu(), torch.ones(2, 3))
        assert sum(log.waits.values()) == 3


def test_values_and_gradients_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    network, image = torch.nn.Conv3d(1, 2, 3), torch.rand(1, 1, 5, 6, 7)
    expected = network(image).square().mean()
    expected.backward()
    gradient = network.weight.grad.clone()
    network.zero_grad()
    with tracked_device():
        network = network.to("cuda")
        loss = network(image.to("cuda")).square().mean()
        loss.backward()
        assert isinstance(network.weight.grad, DeviceTensor) and network.weight.device == torch.device("cuda", 0)
    torch.testing.assert_close(on_cpu(loss), expected, rtol=0, atol=0)
    torch.testing.assert_close(on_cpu(network.weight.grad), gradient, rtol=0, atol=0)


def test_autocast_casts_as_cuda_does() -> None:
    with tracked_device(), torch.autocast("cuda", dtype=torch.bfloat16):
        x = torch.ones(2, 2, device="cuda")
        assert (x @ x).dtype == torch.bfloat16
        assert (x @ x).exp().dtype == torch.float32
        assert ((x @ x) + x).dtype == torch.float32
        with torch.autocast("cuda", enabled=False):
            assert (x @ x).dtype == torch.float32
