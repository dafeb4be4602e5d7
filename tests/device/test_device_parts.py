"""Each loss, network, metric and augmentation on the tracked device: no mixture of devices, and no wait in a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from regzoo import augmentation, losses, metrics, networks, spatial
from tracked_device import DeviceTensor, on_cpu, tracked_device

SIZE = (20, 18, 16)
SPACING = [1.0, 2.0, 3.0]


def volume(channels: int = 1) -> torch.Tensor:
    return torch.rand(2, channels, *SIZE).to("cuda", non_blocking=True)


def members(module: Any, base: type) -> set[str]:
    """The names of the public classes of a package."""
    return {
        name for name in module.__all__ if isinstance(found := getattr(module, name), type) and issubclass(found, base)
    }


def named(cases: Iterable[Any]) -> list[str]:
    return [f"{index}-{type(case).__name__}" for index, case in enumerate(cases)]


#: A loss, and the channels of each tensor that it is called with.
LOSSES: list[tuple[torch.nn.Module, list[int]]] = [
    (losses.LocalNormalizedCrossCorrelation(), [1, 1]),
    (losses.StructuralSimilarity(), [1, 1]),
    (losses.NormalizedCrossCorrelation(), [1, 1]),
    (losses.MindSimilarity(), [1, 1]),
    (losses.MultiScaleDice(), [2, 2]),
    (losses.MultiScaleDice(squared_denominator=True), [2, 2]),
    (losses.MultiScaleCrossEntropy(), [2, 2]),
    (losses.WeightedCrossEntropy(), [2, 2]),
    (losses.LogDistance(), [1, 1]),
    (losses.BendingEnergy(), [3]),
    (losses.BendingEnergy("wide", SPACING), [3]),
    (losses.GradientNorm(SPACING), [3]),
]
#: Tested through the trainings; `SoftHausdorff` waits, and says so.
ELSEWHERE = {
    "Deformation", "ImageSimilarity", "LabelSimilarity", "PredictedLabel", "PredictedOutlines", "RegistrationLoss",
    "LearnedWeights", "SoftmaxWeights", "UncertaintyWeights", "SignedDistanceSimilarity", "SoftHausdorff",
}  # fmt: skip


def test_every_loss_is_here() -> None:
    assert {type(loss).__name__ for loss, _ in LOSSES} | ELSEWHERE == members(losses, torch.nn.Module)


@pytest.mark.parametrize(("loss", "channels"), LOSSES, ids=named(loss for loss, _ in LOSSES))
def test_losses_wait_for_nothing_and_are_float32(loss: torch.nn.Module, channels: list[int]) -> None:
    with tracked_device() as log, torch.autocast("cuda", dtype=torch.bfloat16):
        for turn in range(2):
            given = [volume(count) for count in channels]
            given[0].requires_grad_()
            if turn:
                log.clear()
            value = loss(*given)
            value.backward()
            assert value.dtype == torch.float32 and isinstance(given[0].grad, DeviceTensor)
        assert not log.waits


NETWORKS: list[Callable[[], torch.nn.Module]] = [
    lambda: networks.LocalNet(2, 3, 4),
    lambda: networks.LocalNet(2, 3, 4, norm="instance", levels=(1, 2, 3, 4)),
    lambda: networks.PyramidNet(2, 3, 4),
    lambda: networks.VoxelMorphNet(2, (4, 4, 4)),
    lambda: networks.VoxelMorphNet(2, (4, 4), norm="instance", stride=2, passes=2, diffeomorphic=True),
    lambda: networks.OutlineNet(2, (4, 4, 4, 4, 4, 4), (1, 1)),
    lambda: networks.GlobalNet(2, 2),
    lambda: networks.CompositeNet(4, 2),
]


def test_every_network_is_here() -> None:
    assert {type(make()).__name__ for make in NETWORKS} == members(networks, torch.nn.Module)


@pytest.mark.parametrize("make", NETWORKS)
def test_networks_wait_for_nothing_and_predict_in_float32(make: Callable[[], torch.nn.Module]) -> None:
    with tracked_device() as log:
        network = make().to("cuda")
        for turn in range(2):
            image = torch.rand(2, 2, 19, 18, 17).to("cuda", non_blocking=True)
            if turn:
                log.clear()
            with torch.autocast("cuda", dtype=torch.bfloat16):
                ddf = network(image)
            assert ddf.dtype == torch.float32
            ddf.square().mean().backward()
        assert not log.waits


def test_an_affine_field_stays_affine_under_autocast() -> None:
    """Its second differences are 0; det J is the same everywhere."""
    torch.manual_seed(0)
    for make in (lambda: networks.GlobalNet(2, 2), lambda: networks.CompositeNet(4, 2)):
        with tracked_device(), torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
            network = make().to("cuda").eval()
            part = getattr(network, "global_net", network)
            part.theta.bias.copy_(torch.linspace(-0.05, 0.1, 12))
            ddf = on_cpu(network(torch.zeros(1, 2, 40, 40, 40, device="cuda")))
        assert max(float(ddf.diff(n=2, dim=axis).abs().max()) for axis in (2, 3, 4)) < 1e-4
        determinant = spatial.jacobian_determinant(ddf)
        assert float(determinant.max() - determinant.min()) < 1e-4
        assert float(determinant.mean()) != pytest.approx(1, abs=0.01)


def label() -> MetaTensor:
    mask = torch.zeros(3, *SIZE)
    mask[:, 4:12, 5:12, 4:12] = 1
    return MetaTensor(mask, affine=torch.diag(torch.tensor([*SPACING, 1.0])))


METRICS: list[metrics.base.CaseMetric] = [
    metrics.TargetRegistrationError(lost=5.0),
    metrics.AdHocRegistrationError(),
    metrics.WeightSelection(lost=5.0),
    metrics.LabelDice(),
    metrics.LabelDice(None),
    metrics.LabelHausdorff(),
    metrics.LostLabels(),
    metrics.RegionDice("base"),
    metrics.FoldedVoxels(),
    metrics.LogJacobianStd(),
    metrics.LogJacobianStd("learn2reg"),
    metrics.JacobianGradient(),
    metrics.ImageCorrelation(),
    metrics.ImageStructuralSimilarity(),
]


def test_every_metric_is_here() -> None:
    """Points are measured on the CPU."""
    found = {type(metric).__name__ for metric in METRICS} | {"PointRegistrationError"}
    assert found == members(metrics, metrics.base.CaseMetric)


@pytest.mark.parametrize("places", [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.parametrize("metric", METRICS, ids=named(METRICS))
def test_metrics_measure_wherever_the_labels_are(metric: metrics.base.CaseMetric, places: tuple[str, str]) -> None:
    channels = 1 if "Image" in type(metric).__name__ else 3
    expected = metric.__class__.measure(metric, label()[:channels], label()[:channels])
    metric.reset()
    with tracked_device():
        y_pred, y = (label()[:channels].to(place) for place in places)
        metric(y_pred=[y_pred], y=[y])
        found = on_cpu(metric.get_buffer())
    np.testing.assert_allclose(found.flatten(), torch.as_tensor(expected).flatten(), rtol=1e-5)


@pytest.mark.parametrize(
    "made",
    [
        augmentation.RandomAffinePair(),
        augmentation.RandomIntensityPair(),
        augmentation.SingleImageAugmentation([2.0] * 3, with_ddf=False),
        augmentation.SingleImageAugmentation([2.0] * 3),
    ],
    ids=["affine", "intensity", "single", "single all"],
)
def test_augmentations_wait_for_nothing(made: Any) -> None:
    torch.manual_seed(0)
    batch = {f"{side}_{kind}": torch.rand(2, 1, *SIZE) for side in ("fixed", "moving") for kind in ("image", "label")}
    expected = made(batch, torch.arange(2))
    with tracked_device() as log:
        there = {key: value.to("cuda") for key, value in batch.items()}
        for _ in range(2):
            log.clear()
            found = made(there, torch.arange(2))
        assert not log.waits
    for key, value in expected.items():
        torch.testing.assert_close(on_cpu(found[key]), value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("made", "most"),
    [(augmentation.RandomAffinePair(), 12), (augmentation.SingleImageAugmentation([2.0] * 3), 300)],
    ids=["affine", "single"],
)
def test_augmentations_launch_as_many_kernels_for_any_batch(made: Any, most: int) -> None:
    counts = []
    with tracked_device(values=False) as log:
        for samples, size in ((1, 16), (3, 16), (2, 128)):
            shape = (samples, 1, size, size, size)
            batch = {f"fixed_{kind}": torch.rand(shape, device="cuda") for kind in ("image", "label")}
            for _ in range(2):
                log.clear()
                made(batch, torch.arange(samples))
            counts.append(len(log.launches))
    assert counts[0] == counts[1] == counts[2] <= most


def test_fields_of_two_devices_are_composed() -> None:
    grid = spatial.Grid(SIZE, np.diag([*SPACING, 1]))
    rng = np.random.default_rng(0)
    first, then = (torch.from_numpy(rng.uniform(-1, 1, (3, *SIZE))).float() for _ in range(2))
    expected = spatial.DisplacementField(first, grid).compose(spatial.DisplacementField(then, grid)).displacement
    with tracked_device():
        here, there = (spatial.DisplacementField(first.to(place), grid) for place in ("cpu", "cuda"))
        after_here, after_there = (spatial.DisplacementField(then.to(place), grid) for place in ("cpu", "cuda"))
        results = [here.compose(after_there).displacement, there.compose(after_here).displacement]
        assert [value.is_cuda for value in results] == [False, True]
        assert not here.inverse().jacobian().is_cuda and there.inverse().jacobian().is_cuda
    for value in results:
        torch.testing.assert_close(on_cpu(value), expected)
