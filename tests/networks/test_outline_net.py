"""The network that outlines both images: antisymmetry, what its channels are, sizes, exports and freezing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import smooth_noise
from regzoo.networks import OutlineNet
from torch import nn

SMALL: dict[str, Any] = {"outline_channels": [4, 6, 8], "channels": [4, 6]}


def lively(**options: Any) -> OutlineNet:
    """A network that predicts something: its last layer is zero at the start."""
    torch.manual_seed(0)
    network = OutlineNet(**{**SMALL, **options}).eval()
    nn.init.normal_(network.unet.net[1].final_conv_out.weight, std=0.1)
    return network


def pair(shape: tuple[int, int, int] = (16, 24, 20)) -> torch.Tensor:
    return torch.stack([torch.from_numpy(smooth_noise(shape, 2.0, seed)) for seed in (0, 1)])[None].float()


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_swapped_images_give_the_opposite_velocity(passes: int) -> None:
    """Without doublings, the displacement is the velocity. The outlines swap, too."""
    network, image = lively(passes=passes, steps=0), pair()
    with torch.no_grad():
        there, back = network(image), network(image.flip(1))
    assert there[:, :3].abs().max() > 0.5
    torch.testing.assert_close(there[:, :3], -back[:, :3])
    torch.testing.assert_close(there[:, 3:6], back[:, 6:])
    torch.testing.assert_close(there[:, 6:], back[:, 3:6])


def test_an_image_stays_on_itself() -> None:
    image = pair()[:, :1].expand(1, 2, 16, 24, 20)
    assert lively()(image)[:, :3].abs().max() < 1e-5


def test_an_untrained_network_moves_nothing_and_outlines_something() -> None:
    network = OutlineNet(labels=3, **SMALL)
    predicted = network(torch.rand(2, 2, 13, 10, 9))
    assert predicted.shape == (2, 3 + 2 * 4, 13, 10, 9) and predicted.dtype == torch.float32
    assert not predicted[:, :3].any() and predicted[:, 3:].std() > 0


def test_each_image_is_outlined_without_the_other() -> None:
    network, image = lively(), pair()
    other = torch.cat([image[:, :1], torch.rand_like(image[:, :1])], dim=1)
    torch.testing.assert_close(network(image)[:, 3:6], network(other)[:, 3:6])
    assert not torch.equal(network(image)[:, :3], network(other)[:, :3])


def test_the_registration_does_not_train_the_outlines() -> None:
    network, image = lively(), pair()
    network(image)[:, :3].square().sum().backward()
    assert not any(bool(value.grad.any()) for value in network.outliner.parameters())
    assert all(bool(value.grad.any()) for value in network.unet.parameters() if value.dim() > 1)
    network.zero_grad()
    network(image)[:, 3:].square().sum().backward()
    assert all(bool(value.grad.any()) for value in network.outliner.parameters() if value.dim() > 1)


def test_half_precision_leaves_displacements_in_float32() -> None:
    network, image = lively(), pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        field = network(image)[:, :3]
    assert field.dtype == torch.float32
    assert not torch.equal(field, field.bfloat16().float())


@pytest.mark.parametrize("shape", [(16, 24, 20), (11, 16, 9)])
def test_torchscript(shape: tuple[int, int, int]) -> None:
    network, image = lively(), pair(shape).repeat(2, 1, 1, 1, 1)
    expected = network(image)
    for exported in (torch.jit.script(network), torch.jit.trace(network, image)):
        torch.testing.assert_close(exported(image), expected)


def test_what_is_frozen() -> None:
    network = lively()
    frozen = {id(value) for part in network.contracting_path() for value in part.parameters()}
    assert {id(value) for value in network.outliner.parameters()} < frozen
    assert id(network.unet.net[1].final_conv_out.weight) not in frozen
