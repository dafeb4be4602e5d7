"""The VoxelMorph network: what the paper says of its layers, exports, freezing, and integration of velocities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import smooth_ddf
from regzoo.engines import load_weights, save_weights, starting_network
from regzoo.errors import RegZooError
from regzoo.networks import VoxelMorphNet
from regzoo.networks.voxelmorph import integrate, space_to_channels
from regzoo.spatial import compose, jacobian_determinant, warp
from scipy.linalg import expm
from torch import nn

WIDTHS = [3, 4, 6]


def lively(**options: object) -> VoxelMorphNet:
    """A network that predicts something: its last layer is zero at the start."""
    torch.manual_seed(0)
    network = VoxelMorphNet(channels=WIDTHS, head=(4, 4), **options).eval()
    nn.init.normal_(network.unet.net[1].final_conv_out.weight, std=0.1)
    return network


def test_the_papers_layers() -> None:
    with torch.device("meta"):
        network = VoxelMorphNet()
    assert [module.out_channels for module in network.modules() if isinstance(module, nn.Conv3d)] == [
        *(32, 64, 128, 256, 512, 1024),  # encoder
        *(1024, 512, 256, 128, 64, 32),  # decoder, up to half the resolution
        *(16, 16, 3),  # head
    ]
    assert sum(isinstance(module, nn.MaxPool3d) for module in network.modules()) == 6
    upsampling = [module for module in network.modules() if isinstance(module, nn.Upsample)]
    assert len(upsampling) == 6 and {module.mode for module in upsampling} == {"nearest"}


@pytest.mark.parametrize("shape", [(16, 8, 24), (13, 10, 9), (5, 31, 8)])
def test_any_size_works_and_an_untrained_network_moves_nothing(shape: tuple[int, int, int]) -> None:
    image = torch.rand(2, 2, *shape)
    network = VoxelMorphNet(channels=WIDTHS)
    field = network(image)
    assert field.shape == (2, 3, *shape) and field.dtype == torch.float32 and not field.any()
    field.square().sum().backward()
    (1 + network(image)).square().sum().backward()
    assert network.unet.net[1].final_conv_out.weight.grad.any()


def test_half_precision_leaves_displacements_in_float32() -> None:
    network, image = lively(), torch.rand(1, 2, 16, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        field = network(image)
    assert field.dtype == torch.float32
    # Not merely stored so: bfloat16 has 8 significant bits.
    assert not torch.equal(field, field.bfloat16().float())


@pytest.mark.parametrize(
    "options",
    [{}, {"norm": "batch"}, {"norm": "instance"}, {"stride": 2, "passes": 3}, {"diffeomorphic": True, "steps": 3}],
    ids=str,
)
def test_torchscript(options: dict[str, Any]) -> None:
    network, image = lively(**options), torch.rand(1, 2, 11, 16, 9)
    expected = network(image)
    assert expected.abs().max() > 1e-3
    for exported in (torch.jit.script(network), torch.jit.trace(network, image)):
        torch.testing.assert_close(exported(image), expected)


def test_a_diffeomorphic_network_integrates_what_it_predicts() -> None:
    network, image = lively(diffeomorphic=True), torch.rand(1, 2, 16, 16, 16)
    plain = lively()
    torch.testing.assert_close(network(image), integrate(plain(image)))


def test_a_stride_predicts_between_the_voxels_what_lies_between() -> None:
    """A displacement that grows linearly is the same in voxels twice as small, read off at their own places."""
    network = VoxelMorphNet(channels=WIDTHS, stride=2).eval()
    coarse = torch.stack(torch.meshgrid(*[torch.arange(8.0)] * 3, indexing="ij"))[None]

    class Linear(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return coarse

    network.unet = Linear()
    found = network(torch.zeros(1, 2, 16, 16, 16))
    # Voxel i lies at (i - 1/2) / 2 of the coarse grid, where the displacement is that many coarse voxels.
    torch.testing.assert_close(found[0, 0, 1:15, 5, 5], torch.arange(1.0, 15) - 0.5)
    torch.testing.assert_close(found[0, 2, 5, 5, 1:15], torch.arange(1.0, 15) - 0.5)


def test_space_goes_to_channels_and_comes_back() -> None:
    image = torch.rand(2, 3, 4, 6, 8)
    blocks = space_to_channels(image, 2)
    assert blocks.shape == (2, 24, 2, 3, 4)
    for c, i, j, k in ((0, 0, 0, 0), (1, 1, 0, 1), (2, 0, 1, 1)):
        torch.testing.assert_close(blocks[:, 8 * c + 4 * i + 2 * j + k], image[:, c, i::2, j::2, k::2])
    flat = image[:, :, :, :, 0]  # as PyTorch does in two dimensions
    deep = flat[..., None].expand(-1, -1, -1, -1, 2)
    torch.testing.assert_close(space_to_channels(deep, 2)[:, ::2, :, :, 0], torch.pixel_unshuffle(flat, 2))


def test_each_pass_adds_to_the_ones_before() -> None:
    """What two passes warp to is what warping twice gives, for a field without interpolation errors."""
    image = torch.rand(1, 2, 16, 16, 16)
    once, twice = lively(), lively(passes=2)
    first = once(image)
    moved = torch.cat([image[:, :1], warp(image[:, 1:], first, padding="border")], dim=1)
    expected = compose(once(moved), first)
    assert (expected - first).abs().max() > 1e-3
    torch.testing.assert_close(twice(image), expected)
    with pytest.raises(ValueError, match="more than one pass"):
        VoxelMorphNet(4, WIDTHS, passes=2)


@pytest.mark.parametrize(
    "other", [{"passes": 3}, {"diffeomorphic": True}, {"diffeomorphic": True, "steps": 3}], ids=str
)
def test_weights_are_not_taken_for_what_they_are_not(other: dict[str, Any], tmp_path: Path) -> None:
    """They have the same names and shapes, but a velocity is no displacement."""
    save_weights(lively(**other), tmp_path / "weights.pt")
    load_weights(lively(**other), tmp_path / "weights.pt")
    with pytest.raises(RegZooError, match=r"weights\.pt: holds the weights of another network"):
        load_weights(lively(), tmp_path / "weights.pt")
    assert repr(lively(**other)) != repr(lively())


@pytest.mark.parametrize("norm", [None, "batch", "instance"])
def test_freezing_the_encoder_leaves_the_decoder_and_the_head(norm: str | None) -> None:
    network = starting_network(lively(norm=norm), None, ".", freeze_encoder=True)
    norms = [m for m in network.modules() if isinstance(m, (nn.BatchNorm3d, nn.InstanceNorm3d))]
    assert [m.weight.requires_grad for m in norms] == ([] if norm is None else [False] * 3 + [True] * (len(norms) - 3))
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    frozen = [not module.weight.requires_grad for module in convolutions]
    assert frozen == [True] * 3 + [False] * (len(convolutions) - 3)
    assert [module.out_channels for module in convolutions[:3]] == WIDTHS
    network(torch.rand(1, 2, 16, 16, 16)).square().sum().backward()
    assert all((module.weight.grad is None) == still for module, still in zip(convolutions, frozen, strict=True))


def test_integration_of_a_linear_velocity_is_the_matrix_exponential() -> None:
    size = 33
    matrix = np.array([[0.05, -0.2, 0.1], [0.15, -0.1, 0.0], [-0.05, 0.1, 0.08]])
    places = np.stack(np.meshgrid(*[np.arange(size) - size // 2] * 3, indexing="ij"))
    velocity = np.einsum("ij,jxyz->ixyz", matrix, places)
    expected = np.einsum("ij,jxyz->ixyz", expm(matrix) - np.eye(3), places)
    ddf = integrate(torch.from_numpy(velocity)[None].float())[0].numpy()
    inner = (slice(None), *[slice(10, -10)] * 3)  # paths from there stay within the grid
    np.testing.assert_allclose(ddf[inner], expected[inner], atol=0.01)


def test_integration_gives_an_inverse_and_no_folds() -> None:
    velocity = torch.from_numpy(smooth_ddf((32, 32, 32), amplitude=8, sigma=4, seed=1))[None]
    assert jacobian_determinant(velocity).min() < 0  # taken for displacements it folds
    ddf = integrate(velocity)
    assert jacobian_determinant(ddf).min() > 0.05
    there_and_back = compose(ddf, integrate(-velocity))
    assert there_and_back[..., 8:-8, 8:-8, 8:-8].abs().mean() < 0.05 < 1 < ddf.abs().mean()
