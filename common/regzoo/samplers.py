"""Which image pair and which of its labels a training step sees."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
import torch.distributed
from monai.data import CacheDataset
from regzoo.case import FIXED, IMAGE_KEYS, LABEL_KEYS, MOVING
from regzoo.errors import RegZooError
from regzoo.spatial import as_tensor
from torch.utils.data import Dataset, DistributedSampler

#: What a sample may hold on the network grid: images, labels, and distance maps, which go with the label they are of.
SAMPLE_KEYS = (*IMAGE_KEYS, *LABEL_KEYS, FIXED.distance, MOVING.distance)

#: Makes records of the entries that a server lists to train on and to validate on.
Splitter = Callable[[Sequence[Any], Sequence[Any]], tuple[list[Any], list[Any]]]


class Draw(NamedTuple):
    """One sample: the index of an image pair, and the seed that decides its labels and its augmentation."""

    pair: int
    seed: int


class TwoStageSampler(DistributedSampler[Any]):
    """First image pairs uniformly, then label pairs of each uniformly: an unbiased gradient of the paper's objective.

    Each pair counts the same however many labels it has; `LabelPairDataset` takes the second stage. Draws are
    a function of (seed, epoch) alone, so training resumed at an epoch continues as if it had never stopped, with any
    number of loader workers. Being a `DistributedSampler`, it shares an epoch's draws among the ranks of a process
    group and has its epoch set by MONAI's engines.

    Args:
        data: the data set, one item per image pair.
        samples: draws per epoch over all ranks; one per image pair if None. Pairs are shuffled, and used up before any
            is seen again.
        seed: with the epoch it determines every draw.

    Source: Hu et al. 2018, section 2.1, equation 3.
    """

    def __init__(self, data: Dataset[Any], samples: int | None = None, seed: int = 0) -> None:
        pairs = len(data)  # type: ignore[arg-type]
        if pairs == 0:
            raise ValueError("no image pair to sample from")
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if grouped else (0, 1)
        super().__init__(data, num_replicas=ranks, rank=rank, seed=int(seed))
        self.pairs = pairs
        self.num_samples = -(-(samples or self.pairs) // ranks)
        self.total_size = self.num_samples * ranks

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        rounds = [torch.randperm(self.pairs, generator=generator) for _ in range(-(-self.total_size // self.pairs))]
        pairs = torch.cat(rounds)[: self.total_size].tolist()
        seeds = torch.randint(2**61, (self.total_size,), generator=generator).tolist()
        for index in range(self.rank, self.total_size, self.num_replicas):
            yield Draw(pairs[index], seeds[index])


class CaseCache(CacheDataset):  # type: ignore[misc]
    """MONAI's `CacheDataset`, in which a case that cannot be loaded leaves no thread behind.

    MONAI's pool does not wait for the other threads. They are then still at work when Python exits, which ends in
    "terminate called without an active exception" and status 134 in some runs. Here what has not begun is cancelled and
    what has is waited for. The error is that of the first bad case, in their order.
    """

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list[Any]:
        wanted = range(self.cache_num) if indices is None else indices
        with ThreadPoolExecutor(self.num_workers or os.cpu_count()) as pool:
            return list(pool.map(self._load_cache_item, wanted))


class LabelPairDataset(CaseCache):
    """A `CaseCache`, indexed by a `Draw`: the cached pair with some of its labels, drawn uniformly.

    It also takes single images, to which the moving one is still to be made, and images without labels.

    A plain integer index gives the pair as it is cached, with all labels. The transforms must be deterministic, since
    randomness enters through the draw.

    Args:
        data: records, or what `splitter` makes records of.
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
        records = splitter(data, validation)[0] if splitter else data
        # The cached item is never changed, so MONAI need not copy it.
        super().__init__(records, *args, copy_cache=False, **kwargs)
        self.labels_per_pair = labels_per_pair

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, Draw):
            return super().__getitem__(index)
        pair = super().__getitem__(index.pair)
        sample: dict[str, Any] = {key: as_tensor(pair[key]) for key in SAMPLE_KEYS if key in pair}
        keys = [key for key in LABEL_KEYS if key in pair]
        chosen = self._draw_labels(len(pair[keys[0]]), index.seed) if keys else None
        for key in keys:
            labels = as_tensor(pair[key])[chosen]
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

    def _draw_labels(self, count: int, seed: int) -> torch.Tensor:
        if self.labels_per_pair == 0:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(seed)
        rounds = [torch.randperm(count, generator=generator) for _ in range(-(-self.labels_per_pair // count))]
        return torch.cat(rounds)[: self.labels_per_pair]


class ValidationDataset(CaseCache):
    """A `CaseCache` of the pairs to validate on.

    Args:
        data: records, or what `splitter` makes records of.
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
        records = splitter(training, data)[1] if splitter else data
        # The cached item is never changed, so MONAI need not copy it.
        super().__init__(records, *args, copy_cache=False, **kwargs)
