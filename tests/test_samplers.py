"""Two-stage sampling: unbiased, a function of (seed, epoch), shared among ranks."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import Lambda
from regzoo.errors import RegZooError, user_error
from regzoo.samplers import Draw, LabelPairDataset, TwoStageSampler, ValidationDataset

LABELS = (1, 4, 2, 7, 3)  # labels per image pair


def pairs() -> list[dict[str, Any]]:
    """Each label is a constant image: 100 × pair + label, and 0.5 more in the moving image."""
    return [
        {
            "fixed_image": torch.full((1, 2, 2, 2), float(pair)),
            "moving_image": torch.full((1, 2, 2, 2), pair + 0.5),
            "fixed_label": (100.0 * pair + torch.arange(count)).view(-1, 1, 1, 1).expand(-1, 2, 2, 2),
            "moving_label": (100.0 * pair + torch.arange(count) + 0.5).view(-1, 1, 1, 1).expand(-1, 2, 2, 2),
            "case": str(pair),
        }
        for pair, count in enumerate(LABELS)
    ]


def dataset(labels_per_pair: int = 1) -> LabelPairDataset:
    return LabelPairDataset(pairs(), transform=[], progress=False, labels_per_pair=labels_per_pair)


def draws(sampler: TwoStageSampler, epoch: int) -> list[Draw]:
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("samples", [None, 3, 13])
@pytest.mark.parametrize("labels_per_pair", [1, 3])
def test_pairs_and_labels_of_a_pair_come_equally_often(labels_per_pair: int, samples: int | None) -> None:
    data = dataset(labels_per_pair)
    sampler = TwoStageSampler(data, samples=samples, seed=4)
    seen_pairs: Counter[int] = Counter()
    seen_labels: Counter[int] = Counter()
    for epoch in range(4000 // len(sampler)):
        for draw in draws(sampler, epoch):
            seen_pairs[draw.pair] += 1
            seen_labels.update(data[draw]["fixed_label"][:, 0, 0, 0].int().tolist())
    # Draws without replacement vary less than the multinomial of the test: a bias shows, chance does not.
    assert scipy.stats.chisquare([seen_pairs[pair] for pair in range(5)]).pvalue > 1e-3
    assert sum(seen_labels.values()) == labels_per_pair * sum(seen_pairs.values())
    for pair, count in enumerate(LABELS):
        found = [seen_labels[100 * pair + label] for label in range(count)]
        assert sum(found) == labels_per_pair * seen_pairs[pair]
        assert count == 1 or scipy.stats.chisquare(found).pvalue > 1e-3


def test_every_pair_is_used_before_any_comes_again() -> None:
    sampler = TwoStageSampler(dataset(), samples=12)
    order = [draw.pair for draw in draws(sampler, 0)]
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert len(set(order[10:])) == 2


def test_labels_of_one_draw_differ_until_all_are_used() -> None:
    data = dataset(labels_per_pair=3)
    for pair, count in enumerate(LABELS):
        for seed in range(20):
            sample = data[Draw(pair, seed)]
            fixed, moving = (sample[f"{side}_label"][:, 0, 0, 0] for side in ("fixed", "moving"))
            assert len(fixed) == 3
            assert len(set(fixed.tolist())) == min(count, 3)
            assert torch.equal(moving, fixed + 0.5)  # the same labels of both images
            assert float(sample["moving_image"].mean()) == pair + 0.5
            assert sample["seed"] == seed


def test_a_function_of_seed_and_epoch() -> None:
    sampler = TwoStageSampler(dataset(), samples=20, seed=1)
    first = [draws(sampler, epoch) for epoch in range(4)]
    assert draws(TwoStageSampler(dataset(), samples=20, seed=1), 2) == first[2]  # resumed: no history is needed
    assert len({tuple(epoch) for epoch in first}) == 4
    assert draws(TwoStageSampler(dataset(), samples=20, seed=2), 0) != first[0]
    seeds = [draw.seed for epoch in first for draw in epoch]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("samples", [20, 21, None])
def test_ranks_share_an_epoch(samples: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def rank(index: int, ranks: int) -> list[Draw]:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: index)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: ranks)
        sampler = TwoStageSampler(dataset(), samples=samples, seed=3)
        assert len(sampler) == -(-(samples or 5) // ranks)
        return draws(sampler, 7)

    parts = [rank(index, 2) for index in range(2)]
    alone = rank(0, 1)
    shared = [draw for both in zip(*parts, strict=True) for draw in both]
    # Together they see what one process would; one draw more where the number is odd.
    assert [d.pair for d in shared[: len(alone)]] == [d.pair for d in alone]
    assert len(shared) == len(alone) + len(alone) % 2
    assert len({d.seed for d in shared}) == len(shared)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_batches_do_not_depend_on_its_workers(workers: int) -> None:
    sampler = TwoStageSampler(dataset(), samples=6, seed=9)
    loader = DataLoader(dataset(labels_per_pair=2), batch_size=2, sampler=sampler, num_workers=workers)
    sampler.set_epoch(3)
    batches = list(loader)
    assert [b["seed"].tolist() for b in batches] == np.reshape([d.seed for d in draws(sampler, 3)], (3, 2)).tolist()
    assert batches[0]["fixed_label"].shape == (2, 2, 2, 2, 2)
    expected = [dataset(labels_per_pair=2)[draw]["fixed_label"] for draw in draws(sampler, 3)]
    assert torch.equal(torch.cat([b["fixed_label"] for b in batches]), torch.stack(expected))


def test_an_index_gives_the_whole_pair() -> None:
    item = dataset()[3]
    assert len(item["fixed_label"]) == 7
    assert item["case"] == "3"


def test_scales_of_labels_filtered_in_advance_become_channels() -> None:
    data = pairs()
    for item in data:
        for key in ("fixed_label", "moving_label"):
            item[key] = torch.stack([item[key], -item[key]], dim=1)  # (C, scales, X, Y, Z)
    filtered = LabelPairDataset(data, transform=[], progress=False, labels_per_pair=2)
    label = filtered[Draw(1, 0)]["fixed_label"]
    assert label.shape == (4, 2, 2, 2)
    assert torch.equal(label[0::2], -label[1::2])


def test_distance_maps_come_along_whatever_the_label() -> None:
    data = pairs()
    for pair, item in enumerate(data):
        for side, sign in (("fixed", 1), ("moving", -1)):
            item[f"{side}_distance"] = MetaTensor(torch.full((1, 2, 2, 2), sign * (pair + 0.25)), affine=torch.eye(4))
    with_maps = LabelPairDataset(data, transform=[], progress=False, labels_per_pair=2)
    for pair in range(len(LABELS)):
        sample = with_maps[Draw(pair, 7)]
        assert sample["fixed_distance"].unique().tolist() == [pair + 0.25]
        assert sample["moving_distance"].unique().tolist() == [-pair - 0.25]
        assert type(sample["fixed_distance"]) is torch.Tensor
        plain = dataset(labels_per_pair=2)[Draw(pair, 7)]  # the labels drawn are the same with and without
        assert torch.equal(sample["fixed_label"], plain["fixed_label"])
        assert sample.keys() - plain.keys() == {"fixed_distance", "moving_distance"}


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no image pair"):
        TwoStageSampler(LabelPairDataset([], transform=[], progress=False))


def test_images_with_different_numbers_of_labels_share_no_batch() -> None:
    loader = DataLoader(dataset(0), batch_size=2, sampler=[Draw(0, 1), Draw(2, 1)])
    with pytest.raises(RegZooError, match=r"with 1 and with 2 labels.*batch_size"):
        next(iter(loader))
    assert (
        next(iter(DataLoader(dataset(3), batch_size=2, sampler=[Draw(0, 1), Draw(2, 1)])))["fixed_label"].shape[1] == 3
    )
    alone = DataLoader(dataset(0), batch_size=1, sampler=[Draw(2, 1)])
    assert next(iter(alone))["fixed_label"].shape[1] == LABELS[2]


def test_a_batch_has_labels_only_if_all_have() -> None:
    """Training without labels, on images of which some have them."""
    data = pairs()[:2]
    del data[1]["fixed_label"], data[1]["moving_label"]
    images = LabelPairDataset(data, transform=[], progress=False)
    for order in ((0, 1), (1, 0)):
        batch = next(iter(DataLoader(images, batch_size=2, sampler=[Draw(pair, 1) for pair in order])))
        assert set(batch) == {"fixed_image", "moving_image", "seed"}
        assert batch["fixed_image"][:, 0, 0, 0, 0].tolist() == [float(pair) for pair in order]
    assert "fixed_label" in next(iter(DataLoader(images, batch_size=2, sampler=[Draw(0, 1), Draw(0, 2)])))


def test_loading_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "regzoo"):
        dataset()
    assert caplog.messages == [f"loading {len(LABELS)} cases into memory"]


def test_no_thread_is_left_when_a_case_cannot_be_loaded() -> None:
    """The others would still be at work when Python exits, which aborts it (status 134) in some runs."""
    begun, ended = [], []
    before = set(threading.enumerate())

    def load(item: dict[str, Any]) -> dict[str, Any]:
        begun.append(item["case"])
        time.sleep(0.2 if item["case"] in "01" else 0.4)
        ended.append(item["case"])
        if item["case"] in "13":
            raise RegZooError(f"{item['case']}: cannot be read; copy it again")
        return item

    for kind in (LabelPairDataset, ValidationDataset):
        begun.clear()
        ended.clear()
        with pytest.raises(RuntimeError) as caught:
            kind([{"case": str(number)} for number in range(20)], transform=Lambda(load), progress=False, num_workers=3)
        assert str(user_error(caught.value)).startswith("1: cannot")  # the first in the order of the cases
        assert sorted(begun) == sorted(ended) and len(begun) < 20
        assert set(threading.enumerate()) <= before


def test_a_splitter_makes_the_records_of_both_data_sets() -> None:
    def by_number(training: Sequence[Any], validation: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        every = sorted([*training, *validation])
        return [{"case": number} for number in every[:2]], [{"case": number} for number in every[2:]]

    training = LabelPairDataset([3, 1], transform=[], progress=False, validation=[2], splitter=by_number)
    validation = ValidationDataset([2], transform=[], progress=False, training=[3, 1], splitter=by_number)
    assert [item["case"] for item in training] == [1, 2] and [item["case"] for item in validation] == [3]
