"""The networks: structure as published, start from the identity, geometry of the affine parts, export."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ball, smooth_noise
from regzoo.networks import CompositeNet, GlobalNet, LocalNet, OutlineNet, PyramidNet, VoxelMorphNet
from regzoo.networks.blocks import InstanceNorm3d, normalisation
from regzoo.spatial import warp
from scipy.ndimage import map_coordinates
from torch import nn

NORMS = ("batch", "instance")
ODD = (33, 20, 17)
MADE = {
    "local": lambda: LocalNet(channels=2),
    "local, δ0": lambda: LocalNet(channels=2, levels=(0,)),
    "local, δ1-4": lambda: LocalNet(channels=2, levels=(1, 2, 3, 4)),
    "local, instance": lambda: LocalNet(channels=2, norm="instance", additive_upsampling=False),
    "global": lambda: GlobalNet(channels=2),
    "composite": lambda: CompositeNet(channels=2, global_channels=2),
}


def images(shape: tuple[int, ...] = ODD, batch: int = 1) -> torch.Tensor:
    volumes = [[smooth_noise(shape, 1, 2 * b + side, top=2) - 1 for side in range(2)] for b in range(batch)]
    return torch.from_numpy(np.array(volumes))


def trained(name: str, seed: int = 0) -> nn.Module:
    """A network as after training: heads that are not zero, running statistics that are not those of the start."""
    torch.manual_seed(seed)
    network = MADE[name]()
    with torch.no_grad():
        for parameter in network.parameters():
            if not bool(parameter.any()):
                parameter.normal_(std=0.02)
        for _ in range(3):
            network.train()(images(batch=2))
    return network.eval()


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("shape", [ODD, (32, 16, 24)])
def test_an_untrained_network_moves_nothing(name: str, shape: tuple[int, ...]) -> None:
    for network in (MADE[name](), MADE[name]().eval()):
        ddf = network(images(shape, batch=2))
        assert ddf.shape == (2, 3, *shape)
        assert ddf.dtype == torch.float32
        assert not bool(ddf.any())


@pytest.mark.parametrize("name", MADE)
def test_one_step_goes_the_right_way(name: str) -> None:
    torch.manual_seed(0)
    shape = (16, 17, 18)
    network = MADE[name]()
    fixed, moving = (torch.from_numpy(ball(shape, center, 4))[None, None] for center in ((8, 8, 8), (9, 7, 9)))
    both = torch.cat([fixed, moving], dim=1).expand(2, -1, -1, -1, -1)

    def loss() -> torch.Tensor:
        return F.mse_loss(warp(both[:, 1:], network(both)), both[:, :1])

    before = loss()
    before.backward()
    squares = sum(float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None)
    # A step down the slope that should take off a twentieth.
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * before * parameter.grad / squares
        assert 1 - float(loss() / before) == pytest.approx(0.05, abs=0.03)


def test_number_of_parameters_is_that_of_the_published_structure() -> None:
    n0 = 4
    widths = [n0 * 2**level for level in range(5)]

    def conv_norm(inputs: int, outputs: int, kernel: int = 3) -> int:
        return kernel**3 * inputs * outputs + 2 * outputs

    down = [conv_norm(a, b) + 2 * conv_norm(b, b) for a, b in pairwise(widths[:4])]
    first = conv_norm(2, n0, kernel=7) + 2 * conv_norm(n0, n0)
    bottom = conv_norm(widths[3], widths[4])
    up = [conv_norm(b, a) + 2 * conv_norm(a, a) for a, b in pairwise(widths)]
    heads = [27 * width * 3 + 3 for width in widths]

    def count(**options: object) -> int:
        return sum(p.numel() for p in LocalNet(channels=n0, **options).parameters())  # type: ignore[arg-type]

    assert count() == first + sum(down) + bottom + sum(up) + sum(heads)
    assert count(additive_upsampling=False) == count()  # resizing has nothing to learn
    assert count(levels=(0,)) == count() - sum(heads[1:])
    assert count(levels=(1, 2, 3, 4)) == count() - heads[0] - up[0]


def test_kernels_and_heads() -> None:
    network = LocalNet(channels=4)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert [m.kernel_size for m in convolutions].count((7, 7, 7)) == 1
    assert convolutions[0].kernel_size == (7, 7, 7)
    assert all(m.kernel_size == (3, 3, 3) for m in convolutions[1:])
    heads = [m for m in convolutions if m.out_channels == 3]
    assert [m.in_channels for m in heads] == [64, 32, 16, 8, 4]
    assert all(m.bias is not None and not m.bias.any() and not m.weight.any() for m in heads)
    assert all(m.bias is None for m in convolutions if m not in heads)
    for m in convolutions[:3]:  # Xavier: variance 2 / (fan in + fan out)
        fan = (m.in_channels + m.out_channels) * m.kernel_size[0] ** 3
        assert float(m.weight.detach().var()) == pytest.approx(2 / fan, rel=0.2)


def test_levels_are_resized_and_summed() -> None:
    network = LocalNet(channels=2).eval()
    for number, head in enumerate(network.heads):
        nn.init.constant_(head.bias, 10.0**number)
    np.testing.assert_allclose(network(images()).detach().numpy(), 11111, rtol=1e-6)


def test_skip_is_the_first_convolution_of_a_level() -> None:
    network = LocalNet(channels=2).eval()
    made: list[torch.Tensor] = []
    used: list[torch.Tensor] = []
    for level in network.encoder.levels:
        level.first.register_forward_hook(lambda _m, _i, output: made.append(output))
    for block in network.decoder:
        block.register_forward_pre_hook(lambda _m, inputs: used.append(inputs[1]))
    network(images())
    assert all(a is b for a, b in zip(made, reversed(used), strict=True))


@pytest.mark.parametrize(
    "network",
    [
        *(kind(2, channels=2, norm=norm) for kind in (LocalNet, GlobalNet, PyramidNet) for norm in NORMS),
        *(VoxelMorphNet(channels=(4, 6), head=(4, 4), norm=norm) for norm in (None, *NORMS)),
        OutlineNet(channels=(2, 2, 4, 4, 4, 2)),
    ],
    ids=lambda network: type(network).__name__,
)
def test_convolutions_are_in_the_channels_last_layout(network: nn.Module) -> None:
    """One tensor that is not would be rearranged at each convolution that follows."""
    strides: list[int] = []
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(lambda _m, inputs: strides.append(inputs[0].stride(1)))
    network(images((32, 32, 36), batch=2))
    assert len(strides) > 5 and set(strides) == {1}


@pytest.mark.parametrize("levels", [(), (-1, 0), (0, 5)])
def test_levels_are_checked(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="levels"):
        LocalNet(levels=levels)


@pytest.mark.parametrize("name", ["local", "global", "composite"])
def test_inference_uses_the_running_statistics(name: str) -> None:
    network = trained(name)
    both = images(batch=2)
    with torch.no_grad():
        together, alone = network(both), torch.cat([network(both[:1]), network(both[1:])])
        np.testing.assert_allclose(together.numpy(), alone.numpy(), atol=1e-5)
        network.train()
        assert float((network(both) - together).abs().max()) > 1e-3


@pytest.mark.parametrize("name", MADE)
def test_trace_gives_the_same(name: str) -> None:
    network, example = trained(name), images()
    with torch.no_grad():
        expected = network(example)
        np.testing.assert_array_equal(network(example).numpy(), expected.numpy())  # deterministic
        traced = torch.jit.trace(network, example)
        np.testing.assert_allclose(traced(example).numpy(), expected.numpy(), atol=1e-5)
    assert float(expected.abs().max()) > 1e-3


@pytest.mark.parametrize("name", [name for name in MADE if name.startswith("local")])
def test_script_gives_the_same_at_any_size(name: str) -> None:
    network = trained(name)
    scripted = torch.jit.script(network)
    with torch.no_grad():
        for example in (images(), images((20, 18, 16))):
            np.testing.assert_allclose(scripted(example).numpy(), network(example).numpy(), atol=1e-5)


def test_same_seed_same_network() -> None:
    first, second = (trained("composite", seed=3) for _ in range(2))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", MADE)
def test_autocast_gives_a_float32_field(name: str) -> None:
    network = trained(name)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ddf = network(images())
    assert ddf.dtype == torch.float32
    assert bool(ddf.isfinite().all())


def test_autocast_does_not_round_an_affine_field() -> None:
    network = trained("global")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        _, left = affine_fit(network(images())[0].numpy())
    assert left < 1e-4


def affine_fit(ddf: np.ndarray) -> tuple[np.ndarray, float]:
    """The (3, 4) matrix of voxel → displacement in the least-squares sense, and what it leaves."""
    index = np.indices(ddf.shape[1:]).reshape(3, -1)
    rows = np.concatenate([index, np.ones((1, index.shape[1]))]).T
    solution = np.linalg.lstsq(rows, ddf.reshape(3, -1).T.astype(float), rcond=None)[0]
    return solution.T, float(np.abs(rows @ solution - ddf.reshape(3, -1).T).max())


def test_global_net_is_affine_in_the_coordinates() -> None:
    network = trained("global")
    with torch.no_grad():
        ddf = network(images())[0].numpy()
    matrix, left = affine_fit(ddf)
    assert left < 1e-4
    assert np.abs(matrix[:, :3]).max() > 1e-3


def test_global_net_knows_the_axes() -> None:
    # A stretch by 10 % along the first axis moves its two faces by a tenth of half its length, about the centre.
    network = GlobalNet(channels=2)
    with torch.no_grad():
        network.theta.bias[0], network.theta.bias[7] = 0.1, 0.05
    ddf = network.eval()(images())[0].detach().numpy()
    x = np.arange(ODD[0]) - 16
    np.testing.assert_allclose(ddf[0], np.broadcast_to(0.1 * x[:, None, None], ODD), atol=1e-4)
    np.testing.assert_allclose(ddf[1], 0.05 * (ODD[1] - 1) / 2, atol=1e-4)  # a shift along the second
    assert not ddf[2].any()


def test_composite_is_its_parts_one_after_the_other() -> None:
    network = trained("composite")
    example = images()
    with torch.no_grad():
        whole = network(example)[0].numpy()
        first = network.global_net(example)[0].numpy()
        index = np.indices(ODD)
        moved = map_coordinates(example[0, 1].numpy(), index + first, order=1, mode="nearest")
        seen = torch.cat([example[:, :1], torch.from_numpy(moved)[None, None]], dim=1)
        local = network.local_net(seen)[0].numpy()
    # The affine part is known everywhere, also where the local part leads out of the image.
    matrix, _ = affine_fit(first)
    points = np.concatenate([index + local, np.ones((1, *ODD))])
    expected = local + np.einsum("ij,jxyz->ixyz", matrix, points)
    assert min(np.abs(local).max(), np.abs(first).max()) > 0.01
    np.testing.assert_allclose(whole, expected, atol=2e-3)


@pytest.mark.parametrize("make", [LocalNet, GlobalNet, PyramidNet])
def test_one_sample_on_a_grid_whose_coarsest_level_is_one_voxel(make: Callable[..., nn.Module]) -> None:
    """PyTorch's batch normalisation refuses it; elsewhere ours is PyTorch's."""
    network = make(2, channels=2).train()
    output = network(torch.rand(1, 2, 8, 8, 8))
    (output[-1] if isinstance(output, (list, tuple)) else output).sum().backward()
    ours, theirs = normalisation("batch", 3), nn.BatchNorm3d(3)
    for training in (True, False):
        values = torch.rand(2, 3, 4, 1, 1)
        torch.testing.assert_close(ours.train(training)(values), theirs.train(training)(values))
    assert {name: value.tolist() for name, value in ours.state_dict().items()} == {
        name: value.tolist() for name, value in theirs.state_dict().items()
    }
    values = torch.rand(1, 3, 1, 1, 1)
    torch.testing.assert_close(ours.train()(values), theirs.eval()(values))
    torch.testing.assert_close(torch.jit.script(ours)(values), theirs(values))


@pytest.mark.parametrize("training", [True, False])
def test_instance_normalisation_is_exact_on_a_bright_background(training: bool) -> None:
    values = 30.0 + torch.randn(2, 3, 12, 10, 8, generator=torch.Generator().manual_seed(1))
    wanted = F.instance_norm(values.double(), eps=1e-5)
    norm = InstanceNorm3d(3, affine=True).train(training)
    for given in (values, values.to(memory_format=torch.channels_last_3d)):
        made = norm(given)
        torch.testing.assert_close(made.double(), wanted, rtol=0, atol=5e-4)
        assert made.stride() == given.stride() or not training


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_instance_normalisation_refuses_one_voxel(batch: int, training: bool) -> None:
    with pytest.raises(ValueError, match="Expected more than 1"):
        InstanceNorm3d(3, affine=True).train(training)(torch.rand(batch, 3, 1, 1, 1))
