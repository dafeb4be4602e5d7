"""The pyramid network: starts from the identity, adds the levels up from coarse to fine, exports, learns."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ball, smooth_noise
from regzoo.networks import PyramidNet
from regzoo.networks.pyramid_net import ActivatedNorm
from regzoo.spatial import warp
from torch import nn

ODD = (33, 20, 17)
MADE = {
    "two images": {"in_channels": 2, "channels": 2},
    "with a label": {"channels": 2},
    "kernel 3, instance": {"channels": 2, "kernel": 3, "norm": "instance"},
    "shallow": {"channels": 2, "depth": 2, "in_channels": 2},
}


def images(channels: int = 3, shape: tuple[int, ...] = ODD, batch: int = 1) -> torch.Tensor:
    volumes = [[smooth_noise(shape, 1, channels * b + c, top=1) for c in range(channels)] for b in range(batch)]
    return torch.from_numpy(np.array(volumes))


def inputs_of(name: str) -> int:
    return int(MADE[name].get("in_channels", 3))  # type: ignore[call-overload]


def trained(name: str) -> PyramidNet:
    """A network as after training: heads that are not zero, running statistics that are not those of the start."""
    torch.manual_seed(0)
    network = PyramidNet(**MADE[name])  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            if not bool(parameter.any()):
                parameter.normal_(std=0.02)
        for _ in range(3):
            network.train()(images(inputs_of(name), batch=2))
    return network.eval()


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("shape", [ODD, (32, 16, 24)])
def test_an_untrained_network_moves_nothing(name: str, shape: tuple[int, ...]) -> None:
    network = PyramidNet(**MADE[name])  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in (True, False):
            ddf = network.train(mode)(images(inputs_of(name), shape, batch=2))
            assert ddf.shape == (2, 3, *shape)
            assert ddf.dtype == torch.float32
            assert not bool(ddf.any())


@pytest.mark.parametrize("name", MADE)
def test_script_and_trace_give_the_same(name: str) -> None:
    network, example = trained(name), images(inputs_of(name))
    scripted, traced = torch.jit.script(network), torch.jit.trace(network, example)
    with torch.no_grad():
        expected = network(example)
        assert float(expected.abs().max()) > 1e-3
        np.testing.assert_array_equal(network(example).numpy(), expected.numpy())  # deterministic
        for exported in (scripted, traced):
            np.testing.assert_allclose(exported(example).numpy(), expected.numpy(), atol=1e-5)
        other = images(inputs_of(name), (20, 18, 25), batch=2)  # a script takes any size
        np.testing.assert_allclose(scripted(other).numpy(), network(other).numpy(), atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_convolution_is_that_of_padding_same(kernel: int) -> None:
    block = ActivatedNorm(2, 3, kernel, "batch").eval()
    (convolution,) = [m for m in block if isinstance(m, nn.Conv3d)]
    example = images(2, (7, 6, 5))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message=".*even kernel.*")
        same = F.leaky_relu(F.conv3d(example, convolution.weight, padding="same"), 0.1)
        # A fresh batch normalisation divides by the root of 1 + eps at inference.
        np.testing.assert_allclose(block(example).numpy(), same.numpy() / np.sqrt(1 + 1e-5), atol=1e-6)


def test_kernels_and_widths() -> None:
    network = PyramidNet(channels=4)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
    big = [(m.in_channels, m.out_channels) for m in convolutions if m.kernel_size == (4, 4, 4)]
    down = [(3, 4), (4, 8), (8, 16), (16, 32), (32, 64)]
    assert big == [*down, (64 + 32, 32), (32 + 16, 16), (16 + 8, 8), (8 + 4, 4)]
    rest = [m for m in convolutions if m.kernel_size != (4, 4, 4)]
    assert all(m.kernel_size == (3, 3, 3) for m in rest)
    heads = [m for m in rest if m.out_channels == 3]
    assert sorted(m.in_channels for m in heads) == [4, 8, 16, 32, 64]
    assert all(m.bias is not None and not m.bias.any() and not m.weight.any() for m in heads)
    assert all(m.bias is None and m.weight.any() for m in convolutions if m not in heads)
    assert len(rest) == 5 + 2 * 4


def test_normalisation_comes_last() -> None:
    # What leaves a block has mean 0 and variance 1 over the batch; an activation behind it would spoil that.
    network = PyramidNet(channels=2, depth=2).train()
    outputs: list[torch.Tensor] = []
    for module in network.modules():
        if isinstance(module, ActivatedNorm):
            module.register_forward_hook(lambda _m, _i, output: outputs.append(output.detach().clone()))
    network(images(batch=2))
    assert len(outputs) == 3 + 2 * 3
    for output in outputs:
        np.testing.assert_allclose(output.mean((0, 2, 3, 4)), 0, atol=1e-4)
        np.testing.assert_allclose(output.var((0, 2, 3, 4), correction=0), 1, atol=0.05)


def test_residual_is_added() -> None:
    # A residual that is switched off lets the features in front of it through to the head.
    network = trained("with a label")
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    for level in network.decoder:
        last = level.residual[-1][-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        level.join.register_forward_hook(lambda _m, _i, output: before.append(output))
        level.head.register_forward_pre_hook(lambda _m, inputs: after.append(inputs[0]))
    network(images())
    assert len(before) == 4
    assert all(bool(a.any()) and torch.equal(a, b) for a, b in zip(before, after, strict=True))


def heads_of(network: PyramidNet) -> list[nn.Module]:
    """Coarse to fine."""
    return [network.head, *(level.head for level in network.decoder)]


def test_levels_are_added_without_scaling() -> None:
    network = PyramidNet(channels=2).eval()
    for number, head in enumerate(heads_of(network)):
        nn.init.constant_(head.bias, 10.0**number)
    np.testing.assert_allclose(network(images()).detach().numpy(), 11111, rtol=1e-6)


@pytest.mark.parametrize("level", [0, 1])
def test_a_coarse_field_lies_where_it_should(level: int) -> None:
    # Coarse voxels hold their own position, in voxels of the full resolution. Linear interpolation reproduces it
    # exactly, save within one coarse voxel of the border, where nothing lies beyond to interpolate with.
    shape, factor = (64, 48, 32), (8, 4)[level]
    network = PyramidNet(channels=2, depth=3).eval()

    def positions(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        axes = [(torch.arange(n) + 0.5) * factor - 0.5 for n in output.shape[2:]]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]

    heads_of(network)[level].register_forward_hook(positions)
    found = network(images(shape=shape))[0].detach().numpy()
    inner = (slice(None), *(slice(factor, n - factor) for n in shape))
    np.testing.assert_allclose(found[inner], np.indices(shape)[inner], atol=1e-4)


def test_a_coarse_field_is_smooth_and_everywhere() -> None:
    network = PyramidNet(channels=2, depth=4).eval()
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 3, 2, 2)).astype(np.float32))
    network.head.register_forward_hook(lambda _m, _i, output: noise)
    ddf = network(images()).detach().numpy()
    assert ddf.min() >= float(noise.min())
    assert ddf.max() <= float(noise.max())
    assert (ddf != 0).all()
    steps = max(np.abs(np.diff(ddf, axis=axis)).max() for axis in (2, 3, 4))
    assert steps < 0.1 * (float(noise.max()) - float(noise.min()))  # one level at a time, never by a whole block


def test_every_parameter_matters() -> None:
    network = trained("with a label").train()
    network(images(batch=2)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


def test_autocast_gives_a_float32_field() -> None:
    network = trained("with a label")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ddf = network(images())
    assert ddf.dtype == torch.float32
    assert bool(ddf.isfinite().all())


def test_learns_a_shift() -> None:
    torch.manual_seed(0)
    shape = (20, 18, 17)
    fixed, moving = (torch.from_numpy(ball(shape, c, 5))[None, None] for c in ((9, 9, 8), (12, 8, 9)))
    pair = torch.cat([fixed, moving, moving], dim=1)
    network = PyramidNet(channels=4)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        loss = F.mse_loss(warp(moving, network(pair)), fixed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
