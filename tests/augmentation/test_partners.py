"""Pairs of the images of a batch."""

from __future__ import annotations

import pytest
import torch
from regzoo.augmentation import PartnerInBatch, RandomAffinePair


def batch(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 1, 6, 7, 8, generator=generator)
    return {"fixed_image": image, "fixed_label": torch.cat([image > 0.5, image > 0.8], dim=1).float()}


@pytest.mark.parametrize("count, partners", [(1, [(0, 0)]), (4, [(0, 1), (2, 3)]), (3, [(0, 1), (2, 0)])])
def test_the_images_of_a_batch_make_pairs(count: int, partners: list[tuple[int, int]]) -> None:
    """An image that is the last of an odd number meets the first one; its labels stay with it."""
    given = batch(count)
    pairs = PartnerInBatch()(given, torch.zeros(count, dtype=torch.int64))
    for name in ("image", "label"):
        for side, indices in zip(("fixed", "moving"), zip(*partners, strict=True), strict=True):
            assert torch.equal(pairs[f"{side}_{name}"], given[f"fixed_{name}"][list(indices)])


def test_the_augmentations_follow_in_turn() -> None:
    """They see the pairs: an image is moved differently as the fixed and as the moving one."""
    seeds = torch.arange(3)
    still = PartnerInBatch()(batch(3), seeds)
    moved = PartnerInBatch([RandomAffinePair(0.1), RandomAffinePair(0.05)])(batch(3), seeds)
    expected = RandomAffinePair(0.05)(RandomAffinePair(0.1)(still, seeds[::2]), seeds[::2])
    assert all(torch.equal(moved[key], expected[key]) for key in expected)
    assert not torch.allclose(moved["moving_image"], still["moving_image"])
