"""Where a bundle's cases come from, and how a bad one is reported without stopping the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset

from regzoo.datasets import check_records, embedded_phantoms, load_records, read_datalist
from regzoo.errors import RegZooError, user_error
from regzoo.files import make_folder

logger = logging.getLogger(__name__)


def data_folder(dataset_dir: str | Path | None, bundle_root: str | Path, **phantoms: Any) -> str:
    """The data set the user named, or, without one, phantoms written into the bundle's ``data/phantoms``.

    Args:
        dataset_dir: folder or datalist of a data set; empty for phantoms.
        bundle_root: the bundle's folder.
        phantoms: how to make the phantoms, see `regzoo.datasets.embedded_phantoms`.
    """
    if dataset_dir:
        return str(dataset_dir)
    return str(embedded_phantoms(Path(bundle_root) / "data" / "phantoms", **phantoms))


def limit(records: Sequence[Any], count: int | None) -> list[Any]:
    """The first `count` records; all of them for None or 0."""
    return list(records[:count] if count else records)


def requested_records(
    fixed_image: str | None = None,
    moving_image: str | None = None,
    moving_label: str | None = None,
    datalist: str | None = None,
    dataset_dir: str | None = None,
    split: str = "val",
) -> list[dict[str, Any]]:
    """The cases an inference was asked for: one pair of files, a datalist, or the split of a data set.

    Raises:
        RegZooError: nothing or too much was named, or a file is missing.
    """
    if datalist:
        return read_datalist(datalist)
    if fixed_image and moving_image:
        record: dict[str, Any] = {"fixed_image": str(fixed_image), "moving_image": str(moving_image)}
        record |= {"moving_label": moving_label} if moving_label else {}
        check_records([record])
        return [record]
    if fixed_image or moving_image:
        missing = "--moving_image" if fixed_image else "--fixed_image"
        raise RegZooError(f"a pair needs two images; name the other one with {missing}")
    if dataset_dir:
        return load_records(dataset_dir, split)
    raise RegZooError("no images to register; name --fixed_image and --moving_image, a --datalist or a --dataset_dir")


def as_request(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as MONAI Label would send it, which is what ``inference.json`` takes: the fixed image is ``image``."""
    return {"image" if key == "fixed_image" else key: value for key, value in record.items()}


class CaseStream(IterableDataset):
    """Transforms cases one after another; a bad one is logged in one line, remembered, and the next one follows.

    Args:
        data: records.
        transform: the preprocessing.

    Attributes:
        failures: one line per case that could not be loaded.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Callable[[Any], Any]) -> None:
        self.data = [as_request(record) for record in data]
        self.transform = transform
        self.failures: list[str] = []

    def __iter__(self) -> Iterator[Any]:
        self.failures.clear()
        for record in self.data:
            try:
                item = self.transform(dict(record))
            except Exception as error:
                mine = user_error(error)
                if mine is None:
                    raise
                self.failures.append(str(mine))
                logger.error("%s", mine)
            else:
                yield item


def report_failures(dataset: CaseStream) -> None:
    """End a run that met bad cases with an error that counts them, after the good ones are done."""
    if len(dataset.failures) == 1 and len(dataset.data) == 1:
        raise RegZooError(dataset.failures[0])
    if dataset.failures:
        raise RegZooError(
            f"{len(dataset.failures)} of {len(dataset.data)} cases failed: " + " | ".join(dataset.failures)
        )


def output_folder(path: str | Path) -> str:
    """An output folder, created and checked to be writable before any work is done."""
    return str(make_folder(path))
