"""The network that outlines both images and matches the outlines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import smooth_noise
from monai.networks.nets import BasicUNet
from regzoo.errors import RegZooError
from regzoo.networks import OutlineNet
from regzoo.spatial import jacobian_determinant
from scipy.ndimage import map_coordinates
from torch import nn

SMALL: dict[str, Any] = {"channels": [4, 4, 6, 8, 8, 4], "iterations": [4, 3]}


def network(**options: Any) -> OutlineNet:
    torch.manual_seed(0)
    return OutlineNet(**{**SMALL, **options}).eval()


def pair(shape: tuple[int, int, int] = (16, 24, 20)) -> torch.Tensor:
    return torch.stack([torch.from_numpy(smooth_noise(shape, 2.0, seed)) for seed in (0, 1)])[None].float()


class Thresholds(nn.Module):
    """Stands in for a trained U-Net: the labels of an image are where it is about 1 and about 2."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return -20 * torch.cat([(image - value).abs() for value in (0, 1, 2)], dim=1)


def balls(centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """Two halves of a ball, with the values 1 and 2."""
    points = np.stack(np.meshgrid(*[np.arange(n) for n in (32, 36, 28)], indexing="ij"))
    inside = np.linalg.norm(points - np.reshape(centre, (3, 1, 1, 1)), axis=0) < radius
    return np.where(inside, np.where(points[1] < centre[1], 1.0, 2.0), 0.0).astype(np.float32)


def test_outlines_are_those_of_monais_network() -> None:
    """MONAI's own instance normalisation, with the same weights."""
    registered = network()
    for parameter in registered.parameters():
        nn.init.normal_(parameter, std=0.3)  # also those that are one or zero at the start
    theirs = BasicUNet(3, 1, 3, SMALL["channels"], norm=("instance", {"affine": True}))
    theirs.load_state_dict(registered.outliner.state_dict())
    images = pair((32, 32, 32))
    with torch.no_grad():
        logits, expected = registered(images)[0, 3:], theirs.eval()(images[0][:, None])
    torch.testing.assert_close(logits, expected.flatten(0, 1), atol=1e-3, rtol=0)
    assert float(expected.abs().max()) > 1


def test_outlines_are_matched() -> None:
    """A ball that is elsewhere and smaller is brought to the other one; warped by SciPy."""
    fixed, moving = balls((15, 18, 13), 9), balls((18, 14, 15), 7)
    registered = network(iterations=[15, 15])
    registered.outliner = Thresholds()
    predicted = registered(torch.from_numpy(np.stack([fixed, moving]))[None])
    ddf = predicted[0, :3].numpy()
    points = np.stack(np.meshgrid(*[np.arange(n) for n in fixed.shape], indexing="ij")) + ddf
    for value in (1, 2):
        warped = map_coordinates((moving == value).astype(float), points, order=1) >= 0.5
        assert 2 * (warped & (fixed == value)).sum() / (warped.sum() + (fixed == value).sum()) > 0.95
    assert jacobian_determinant(predicted[:, :3]).min() > 0
    assert torch.equal(predicted[0, 3:6].argmax(dim=0), torch.from_numpy(fixed).long())


def test_an_image_stays_on_itself() -> None:
    image = pair()[:, :1].expand(1, 2, 16, 24, 20)
    assert network()(image)[:, :3].abs().max() < 1e-3


def test_the_shape_of_a_prediction() -> None:
    predicted = network(labels=3)(torch.rand(2, 2, 13, 10, 9))
    assert predicted.shape == (2, 3 + 2 * 4, 13, 10, 9) and predicted.dtype == torch.float32


def test_each_image_is_outlined_without_the_other() -> None:
    image = pair()
    other = torch.cat([image[:, :1], torch.rand_like(image[:, :1])], dim=1)
    torch.testing.assert_close(network()(image)[:, 3:6], network()(other)[:, 3:6])
    assert not torch.equal(network()(image)[:, :3], network()(other)[:, :3])


@pytest.mark.parametrize("channels", [slice(3, 6), slice(6, 9)])
def test_both_outlines_train_the_network(channels: slice) -> None:
    trained = network().train()
    trained(pair())[:, channels].square().sum().backward()
    assert all(bool(value.grad.any()) for value in trained.parameters() if value.dim() > 1)


def test_half_precision_leaves_displacements_in_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        field = network()(pair())[:, :3]
    assert field.dtype == torch.float32
    assert not torch.equal(field, field.bfloat16().float())


@pytest.mark.parametrize("shape", [(16, 24, 20), (11, 16, 9)])
def test_torchscript(shape: tuple[int, int, int]) -> None:
    image = pair(shape).repeat(2, 1, 1, 1, 1)
    expected = network()(image)
    for exported in (torch.jit.script(network()), torch.jit.trace(network(), image)):
        torch.testing.assert_close(exported(image), expected)


def test_what_is_frozen() -> None:
    frozen = {id(value) for part in network().contracting_path() for value in part.parameters()}
    assert frozen and len(network().contracting_path()) == 4


@pytest.mark.parametrize("iterations", [[3], [3, -1]])
def test_iterations_that_make_no_sense(iterations: list[int]) -> None:
    with pytest.raises(ValueError, match="two whole numbers"):
        network(iterations=iterations)


def test_a_width_for_each_level() -> None:
    with pytest.raises(RegZooError, match="channels: has 3 widths, and this U-Net six; write six"):
        network(channels=[2, 2, 2])
