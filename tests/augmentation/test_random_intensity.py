"""Random intensities: the range of each change, and what a sample depends on."""

from __future__ import annotations

import pytest
import torch
from regzoo.augmentation import RandomIntensityPair

SEEDS = torch.tensor([11, 2**60 + 5, 7])


def batch_of(value: float = 0.25) -> dict[str, torch.Tensor]:
    image = torch.full((3, 1, 9, 11, 13), value)
    return {"fixed_image": image, "moving_image": image.clone(), "fixed_label": image > 0, "moving_label": image > 0}


def test_the_power_stays_in_its_range() -> None:
    augment, seeds = RandomIntensityPair((0.5, 2.0), bias=0, noise=0), torch.arange(300)
    given = {key: torch.full((300, 1, 2, 2, 2), 0.25) for key in ("fixed_image", "moving_image")}
    for image in augment(given, seeds).values():
        powers = image.flatten(1).log() / torch.log(torch.tensor(0.25))
        assert torch.equal(powers.amin(1), powers.amax(1))
        assert powers.min() >= 0.4999 and powers.max() <= 2.0001
        # Log-uniform: as often below 1 as above.
        assert powers.min() < 0.52 and powers.max() > 1.95 and abs(float((powers[:, 0] < 1).float().mean()) - 0.5) < 0.1


def test_the_field_is_smooth_and_the_noise_is_not() -> None:
    coil = RandomIntensityPair((1.0, 1.0), bias=0.2, noise=0)(batch_of(), SEEDS)["fixed_image"]
    assert coil.flatten(1).std(1).min() > 0.005
    # Linear between the corners, the middles of the edges, and the centre.
    assert torch.allclose(coil[:, :, 2].log() * 2, coil[:, :, 1].log() + coil[:, :, 3].log(), atol=1e-5)
    noisy = RandomIntensityPair((1.0, 1.0), bias=0, noise=0.1)(batch_of(), torch.arange(3))["fixed_image"] - 0.25
    assert noisy.flatten(1).std(1).max() < 0.11 and noisy.flatten(1).std(1).min() > 0
    assert abs(float(noisy.mean())) < 0.01


def test_a_sample_depends_on_its_own_seed_alone() -> None:
    augment, batch = RandomIntensityPair(), batch_of()
    together = augment(batch, SEEDS)
    for i in range(3):
        alone = augment({key: value[i : i + 1] for key, value in batch.items()}, SEEDS[i : i + 1])
        for key in together:
            assert torch.equal(alone[key][0], together[key][i])
    assert not torch.allclose(together["fixed_image"][0], together["fixed_image"][1])
    assert not torch.allclose(together["fixed_image"], together["moving_image"])


def test_labels_stay() -> None:
    batch = batch_of()
    changed = RandomIntensityPair()(batch, SEEDS)
    assert changed["fixed_label"] is batch["fixed_label"] and changed["moving_label"] is batch["moving_label"]


@pytest.mark.parametrize("options", [{"gamma": (2.0, 0.5)}, {"gamma": (0.0, 1.0)}, {"bias": -1.0}, {"noise": -0.1}])
def test_arguments_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        RandomIntensityPair(**options)
