"""Choose the image pair, and its labels, for each training step."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.distributed
from monai.data import CacheDataset
from regzoo.case import FIXED, IMAGE_KEYS, LABEL_KEYS, MOVING, Key
from regzoo.errors import RegZooError
from regzoo.spatial import as_tensor
from torch.utils.data import Dataset, DistributedSampler

logger = logging.getLogger(__name__)

#: The entries of a sample, on the network grid: images, labels, and the distance maps of labels.
SAMPLE_KEYS = (*IMAGE_KEYS, *LABEL_KEYS, FIXED.distance, MOVING.distance)

#: Turns the entries that a server lists for training and for validation into records.
Splitter = Callable[[Sequence[Any], Sequence[Any]], tuple[list[Any], list[Any]]]


class Draw(NamedTuple):
    """One sample: the index of an image pair, and the seed that decides its labels and its augmentation."""

    pair: int
    seed: int


def _shuffled(count: int, wanted: int, generator: torch.Generator) -> torch.Tensor:
    """`wanted` numbers below `count` in random order; each is drawn once before any is drawn again."""
    rounds = [torch.randperm(count, generator=generator) for _ in range(ceil(wanted / count))]
    return torch.cat(rounds)[:wanted]


class TwoStageSampler(DistributedSampler[Any]):
    """Draws image pairs uniformly, then label pairs of each uniformly: an unbiased gradient of the paper's objective.

    All pairs have equal weight, whatever their number of labels. `LabelPairDataset` does the second stage. Draws depend
    on (seed, epoch) alone, so a training resumed at an epoch continues as if it had never stopped, with any number of
    loader workers. As a `DistributedSampler`, it shares an epoch's draws among the ranks of a process group;
    MONAI's engines set its epoch.

    Args:
        data: the data set, one item per image pair.
        samples: draws per epoch over all ranks; None for one per image pair. Every pair is drawn once before any is
            drawn again.
        seed: together with the epoch, determines every draw.

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


def float_masks(labels: torch.Tensor, numbers: torch.Tensor | None) -> torch.Tensor:
    """The labels of a sample or a batch as masks (…, C, X, Y, Z) float32, see `regzoo.transforms.HoldLabelsd`.

    Args:
        labels: masks (…, C, X, Y, Z), or maps (…, 1, X, Y, Z).
        numbers: those of the labels in maps, (…, C); None for masks.
    """
    if numbers is None:
        return labels.to(torch.float32)
    masks = labels.new_empty(*numbers.shape, *labels.shape[-3:], dtype=torch.float32)
    return torch.eq(labels, numbers[..., None, None, None], out=masks)


def _with_masks(sample: Mapping[str, Any]) -> dict[str, Any]:
    numbers = sample.get(Key.LABEL_NUMBERS)
    masks = {key: float_masks(sample[key], numbers) for key in LABEL_KEYS if key in sample}
    return {key: value for key, value in sample.items() if key != Key.LABEL_NUMBERS} | masks


class CaseCache(CacheDataset):  # type: ignore[misc]
    """MONAI's `CacheDataset`, but all loading threads end before an error is raised.

    When a case cannot be loaded, MONAI does not wait for the other threads. If they still run when Python exits, the
    program may abort with "terminate called without an active exception" and status 134. This class cancels work that
    has not begun, waits for the rest, and raises the error of the first bad case in the list.
    """

    def __init__(self, data: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        # The cached item is never changed, so MONAI need not copy it.
        super().__init__(data, *args, copy_cache=False, **kwargs)

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list[Any]:
        wanted = range(self.cache_num) if indices is None else indices
        if wanted:
            logger.info("loading %d cases into memory", len(wanted))
        with ThreadPoolExecutor(self.num_workers or os.cpu_count()) as pool:
            return list(pool.map(self._load_cache_item, wanted))


class LabelPairDataset(CaseCache):
    """A `CaseCache` that a `Draw` indexes: it returns the cached pair with some of its labels, drawn uniformly.

    It also accepts single images, whose moving image is made later, and images without labels. An integer index returns
    the pair as cached, with all labels. The transforms must be deterministic: randomness comes from the draw.

    Args:
        data: records, or the entries that `splitter` turns into records.
        validation: the ``data`` of the validation data set, for `splitter`.
        splitter: turns (training, validation) entries into records; None if `data` holds records already.
        labels_per_pair: label pairs per sample; 1 in the paper. More label pairs lower the variance of the gradient,
            which stays unbiased, and only make the loss slower. A pair with fewer labels repeats them. 0 takes all
            labels; all pairs in a batch must then have the same number.
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
        if Key.LABEL_NUMBERS in pair:
            sample[Key.LABEL_NUMBERS] = self._drawn(pair[Key.LABEL_NUMBERS], index.seed)
        else:
            for key in (key for key in LABEL_KEYS if key in pair):
                # Labels filtered in advance have an axis of scales, which joins the channels.
                sample[key] = self._drawn(sample[key], index.seed).flatten(0, -4)
        return sample | {"seed": index.seed}

    def _drawn(self, labels: torch.Tensor, seed: int) -> torch.Tensor:
        """Some of the labels; one seed chooses the same labels on both sides."""
        if not self.labels_per_pair:
            return labels
        return labels[_shuffled(len(labels), self.labels_per_pair, torch.Generator().manual_seed(seed))]

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        """The items of one batch, for PyTorch's `DataLoader`; labels are left out unless every item has them.

        Raises:
            RegZooError: the items have different numbers of labels, so they cannot form a batch.
        """
        items = [self[index] for index in indices]
        if len({item[key].dtype for item in items for key in LABEL_KEYS if key in item}) > 1:
            items = [_with_masks(item) for item in items]
        shared = set.intersection(*(set(item) for item in items))
        items = [{key: value for key, value in item.items() if key in shared} for item in items]
        counts = {len(item.get(Key.LABEL_NUMBERS, item[key])) for item in items for key in LABEL_KEYS if key in item}
        if self.labels_per_pair == 0 and len(counts) > 1:
            problem = f"images with {min(counts)} and with {max(counts)} labels cannot share a batch"
            raise RegZooError(f"{problem}; set batch_size to 1, or draw the same number of labels from each")
        return items


class ValidationDataset(CaseCache):
    """A `CaseCache` of the validation pairs.

    The arguments are those of `LabelPairDataset`; `training` is the ``data`` of the training data set, for `splitter`.
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
