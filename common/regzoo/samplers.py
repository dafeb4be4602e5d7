"""Which image pair and which of its labels a training step sees."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.distributed
from monai.data import CacheDataset
from regzoo.case import FIXED, IMAGE_KEYS, LABEL_KEYS, MOVING
from regzoo.errors import RegZooError
from regzoo.spatial import as_tensor
from torch.utils.data import Dataset, DistributedSampler

#: The entries of a sample, on the network grid: images, labels, and the distance maps of labels.
SAMPLE_KEYS = (*IMAGE_KEYS, *LABEL_KEYS, FIXED.distance, MOVING.distance)

#: Makes records of the entries that a server lists to train on and to validate on.
Splitter = Callable[[Sequence[Any], Sequence[Any]], tuple[list[Any], list[Any]]]


class Draw(NamedTuple):
    """One sample: the index of an image pair, and the seed that decides its labels and its augmentation."""

    pair: int
    seed: int


def _shuffled(count: int, wanted: int, generator: torch.Generator) -> torch.Tensor:
    """`wanted` numbers below `count` in random order, all of them used up before any is drawn again."""
    rounds = [torch.randperm(count, generator=generator) for _ in range(ceil(wanted / count))]
    return torch.cat(rounds)[:wanted]


class TwoStageSampler(DistributedSampler[Any]):
    """First image pairs uniformly, then label pairs of each uniformly: an unbiased gradient of the paper's objective.

    Each pair counts the same however many labels it has; `LabelPairDataset` does the second stage. Draws are a function
    of (seed, epoch) alone, so a training resumed at an epoch continues as if it had never stopped, with any number of
    loader workers. As a `DistributedSampler`, it shares an epoch's draws among the ranks of a process group;
    MONAI's engines set its epoch.

    Args:
        data: the data set, one item per image pair.
        samples: draws per epoch over all ranks; None: one per image pair. Every pair is drawn once before any is drawn
            again.
        seed: with the epoch it determines every draw.

    Source: Hu et al. 2018, section 2.1, equation 3.
    """

    def __init__(self, data: Dataset[Any], samples: int | None = None, seed: int = 0) -> None:
        self.pairs = len(data)  # type: ignore[arg-type]
        if self.pairs == 0:
            raise ValueError("no image pair to sample from")
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if grouped else (0, 1)
        super().__init__(data, num_replicas=ranks, rank=rank, seed=int(seed))
        self.num_samples = ceil((samples or self.pairs) / ranks)
        self.total_size = self.num_samples * ranks

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        pairs = _shuffled(self.pairs, self.total_size, generator).tolist()
        seeds = torch.randint(2**61, (self.total_size,), generator=generator).tolist()
        for index in range(self.rank, self.total_size, self.num_replicas):
            yield Draw(pairs[index], seeds[index])


class CaseCache(CacheDataset):  # type: ignore[misc]
    """MONAI's `CacheDataset`, whose threads end before an error is raised.

    MONAI does not wait for the other threads when a case cannot be loaded. They are then still at work when Python
    exits, which ends in "terminate called without an active exception" and status 134 in some runs. Here, work that has
    not begun is cancelled, and the rest is waited for. The error is that of the first bad case in the list.
    """

    def __init__(self, data: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        # The cached item is never changed, so MONAI need not copy it.
        super().__init__(data, *args, copy_cache=False, **kwargs)

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list[Any]:
        wanted = range(self.cache_num) if indices is None else indices
        with ThreadPoolExecutor(self.num_workers or os.cpu_count()) as pool:
            return list(pool.map(self._load_cache_item, wanted))


class LabelPairDataset(CaseCache):
    """A `CaseCache`, indexed by a `Draw`: the cached pair with some of its labels, drawn uniformly.

    It also takes single images, whose moving image is made later, and images without labels.

    A plain integer index gives the pair as it is cached, with all labels. The transforms must be deterministic:
    randomness comes from the draw.

    Args:
        data: records, or the entries that `splitter` turns into records.
        validation: the ``data`` of the data set to validate on, for `splitter`.
        splitter: (training, validation) → the same two as records; None if `data` holds records already.
        labels_per_pair: label pairs per sample; 1 in the paper. More of them lower the variance of the gradient, which
            stays unbiased, at the small cost of the loss. A pair with fewer labels repeats them. 0: all there are;
            pairs that share a batch must then have the same number.
        kwargs: see MONAI.
    """

    def __init__(
        self,
        data: Sequence[Any],
        *args: Any,
        validation: Sequence[Any] = (),
        splitter: Splitter | None = None,
        labels_per_pair: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(splitter(data, validation)[0] if splitter else data, *args, **kwargs)
        self.labels_per_pair = labels_per_pair

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, Draw):
            return super().__getitem__(index)
        pair = super().__getitem__(index.pair)
        sample: dict[str, Any] = {key: as_tensor(pair[key]) for key in SAMPLE_KEYS if key in pair}
        for key in (key for key in LABEL_KEYS if key in pair):
            labels = sample[key]
            if self.labels_per_pair:
                # The same seed chooses the same labels on both sides.
                generator = torch.Generator().manual_seed(index.seed)
                labels = labels[_shuffled(len(labels), self.labels_per_pair, generator)]
            # Labels filtered in advance have an axis of scales, which joins the channels.
            sample[key] = labels.flatten(0, -4)
        return sample | {"seed": index.seed}

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        """The items of one batch, for PyTorch's `DataLoader`: with labels only if all of them have labels.

        Raises:
            RegZooError: they have different numbers of labels, so that no batch can be made of them.
        """
        items = [self[index] for index in indices]
        shared = set.intersection(*(set(item) for item in items))
        items = [{key: value for key, value in item.items() if key in shared} for item in items]
        counts = {len(item[key]) for item in items for key in LABEL_KEYS if key in item}
        if self.labels_per_pair == 0 and len(counts) > 1:
            raise RegZooError(
                f"images with {min(counts)} and with {max(counts)} labels cannot share a batch; set batch_size to 1, "
                "or the number of labels that are drawn of each"
            )
        return items


class ValidationDataset(CaseCache):
    """A `CaseCache` of the pairs to validate on.

    Args:
        data: records, or the entries that `splitter` turns into records.
        training: the ``data`` of the data set to train on, for `splitter`.
        splitter: see `LabelPairDataset`.
        kwargs: see MONAI.
    """

    def __init__(
        self,
        data: Sequence[Any],
        *args: Any,
        training: Sequence[Any] = (),
        splitter: Splitter | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(splitter(training, data)[1] if splitter else data, *args, **kwargs)
