"""The cases of an inference or an evaluation, one after another; a bad case is reported and the others go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from monai.engines import SupervisedEvaluator
from monai.utils import string_list_all_gather
from regzoo.case import FIXED, MOVING, SIDES, Key
from regzoo.datasets import Record, check_records, load_records
from regzoo.datasets.folders import case_name
from regzoo.engines.distributed import check_share
from regzoo.errors import RegZooError, bad_file, user_error
from regzoo.report.engine import cases_of
from torch.utils.data import IterableDataset

logger = logging.getLogger(__name__)


def requested_records(
    fixed_image: str | None = None,
    moving_image: str | None = None,
    moving_label: str | Sequence[str] | None = None,
    dataset_dir: str | None = None,
    split: str | None = None,
    direction: str = "mr_to_us",
    fixed_label: str | Sequence[str] | None = None,
    fixed_mask: str | None = None,
    moving_mask: str | None = None,
) -> list[Record]:
    """The cases to register: one pair of files, or a data set or datalist.

    Args:
        fixed_image, moving_image, moving_label: one pair.
        dataset_dir: a folder in a known layout, or a datalist file.
        split: which pairs of the data set to use, see `regzoo.datasets.load_records`; all if empty.
        direction: moving to fixed, for a layout that allows both directions.
        fixed_label: the fixed label of the pair, for bundles that use it and for a refinement.
        fixed_mask, moving_mask: where the voxels of the pair count in a refinement.

    Raises:
        RegZooError: no image or both a pair and a data set were named, or a file is missing.
    """
    pair: dict[str, Any] = {FIXED.image: fixed_image, MOVING.image: moving_image}
    pair |= {MOVING.label: moving_label, FIXED.label: fixed_label}
    pair |= {FIXED.mask: fixed_mask, MOVING.mask: moving_mask}
    named: Any = {key: value for key, value in pair.items() if value}
    if dataset_dir and named:
        raise RegZooError(f"dataset_dir and {next(iter(named))} were both named; keep one of them")
    if dataset_dir:
        return load_records(dataset_dir, split or None, direction)
    for key in (FIXED.image, MOVING.image):
        if key not in named:
            problem = f"no {key.replace('_', ' ')} to register"
            raise RegZooError(f"{problem}; name it as {key}, or name a data set as dataset_dir")
    check_records([named])
    return [named]


def name_of(record: Mapping[str, Any]) -> str:
    """The name of a case; without one, the name of its fixed image."""
    return str(record.get(Key.CASE) or case_name(record[FIXED.image]))


class Failures(list[str]):
    """One line for each failed case of a run; shared by all parts that load, process and save cases.

    Attributes:
        listeners: called with the record of each case that fails.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []

    def add(self, record: Mapping[str, Any], error: RegZooError) -> None:
        """Log and record a case that has failed."""
        self.append(str(error))
        logger.error("%s", error)
        for listener in self.listeners:
            listener(record)


class CaseStream(IterableDataset):
    """Transforms records one after another; a bad case is logged in one line, added to `failures` and skipped."""

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable[[Any], Any], failures: Failures | None = None
    ) -> None:
        self.data = [dict(record) for record in data]
        self.transform = transform
        self.failures = Failures() if failures is None else failures

    def share(self) -> Sequence[dict[str, Any]]:
        """The records of this process."""
        return self.data

    def check(self, record: Mapping[str, Any]) -> None:
        """Raise `RegZooError` for a record that is of no use here."""

    def __iter__(self) -> Iterator[Any]:
        self.failures.clear()
        for record in self.share():
            try:
                self.check(record)
                item = self.transform(dict(record))
            except Exception as error:
                known = user_error(error)
                if known is None:
                    raise
                self.failures.add(record, known)
            else:
                yield item


class EvaluationStream(CaseStream):
    """A `CaseStream` for an evaluation, whose cases are shared between the processes.

    Raises:
        RegZooError: during iteration, if there are fewer cases than processes or all cases of this process fail.
    """

    def share(self) -> Sequence[dict[str, Any]]:
        """The records of this process."""
        import ignite.distributed as idist

        check_share(len(self.data))
        return self.data[idist.get_rank() :: idist.get_world_size()]

    def check(self, record: Mapping[str, Any]) -> None:
        """Raise `RegZooError` for a pair that has neither labels nor points of both images."""
        if not all(record.get(side.points) for side in SIDES):
            for side in SIDES:
                if not record.get(side.label):
                    problem = "comes without its label, and its pair without points, so nothing can be measured"
                    fix = f"name it as {side.label}, or name fixed_points and moving_points"
                    raise bad_file(record[side.image], problem, fix)

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        if len(self.failures) == len(self.share()):
            raise RegZooError(f"none of the {len(self.failures)} cases can be evaluated: " + " | ".join(self.failures))


class CaseEvaluator(SupervisedEvaluator):
    """MONAI's evaluator, for a `CaseStream`; a case that fails after it was loaded is added to the stream's failures.

    It may fail in the network, the postprocessing, a metric or a report. The handlers that run at the end of its
    iteration find no case, and the run goes on.
    """

    def _iteration(self, engine: SupervisedEvaluator, batchdata: Mapping[str, Any]) -> Any:
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:
            known = user_error(error)
            if known is None:
                raise
            for item in cases_of(engine):
                self.data_loader.dataset.failures.add(item, known)
            engine.state.batch = []
            return []


def report_failures(dataset: CaseStream) -> None:
    """Raise one `RegZooError` that counts the cases of a run that failed, in any process."""
    # A process without failures sends "".
    failures = [line for line in string_list_all_gather(dataset.failures) if line]
    if len(failures) == 1 and len(dataset.data) == 1:
        raise RegZooError(failures[0])
    if failures:
        raise RegZooError(f"{len(failures)} of {len(dataset.data)} cases failed: " + " | ".join(failures))
