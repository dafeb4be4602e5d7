"""Pairs of the images of a batch."""

from __future__ import annotations

import torch
from regzoo.augmentation import PartnerInBatch, RandomAffinePair


def batch(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 1, 6, 7, 8, generator=generator)
    return {"fixed_image": image, "fixed_label": torch.cat([image > 0.5, image > 0.8], dim=1).float()}


def test_every_image_meets_another_one() -> None:
    """Each image is fixed once and moving once, never with itself, and its labels stay with it."""
    given = batch(3)
    pairs = PartnerInBatch()(given, torch.zeros(3, dtype=torch.int64))
    partners = []
    for index in range(3):
        same = [torch.equal(pairs["moving_image"][index], image) for image in given["fixed_image"]]
        partners.append(same.index(True))
        assert torch.equal(pairs["moving_label"][index], given["fixed_label"][partners[-1]])
    assert sorted(partners) == [0, 1, 2] and all(partner != index for index, partner in enumerate(partners))
    assert torch.equal(pairs["fixed_image"], given["fixed_image"])


def test_the_augmentations_follow_in_turn() -> None:
    """They see the pairs: an image is moved differently as the fixed and as the moving one."""
    seeds = torch.arange(3)
    still = PartnerInBatch()(batch(3), seeds)
    moved = PartnerInBatch([RandomAffinePair(0.1), RandomAffinePair(0.05)])(batch(3), seeds)
    expected = RandomAffinePair(0.05)(RandomAffinePair(0.1)(still, seeds), seeds)
    assert all(torch.equal(moved[key], expected[key]) for key in expected)
    assert not torch.allclose(moved["moving_image"], still["moving_image"])
