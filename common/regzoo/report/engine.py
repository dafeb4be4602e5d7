"""Access to the cases of a MONAI evaluator, for handlers that report on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.data import decollate_batch

if TYPE_CHECKING:  # a registration does without Ignite, which takes as long to import as PyTorch
    from ignite.engine import Engine


def cases_of(engine: Engine) -> list[dict[str, Any]]:
    """The cases of the current iteration: a dict for each, with the entries of the batch and of the output.

    The evaluator may decollate (lists of dicts) or not (dicts of batch-first values).
    """
    batch, output = _per_case(engine.state.batch), _per_case(engine.state.output)
    batch = batch or [{} for _ in output]
    output = output or [{} for _ in batch]
    return [{**inputs, **outputs} for inputs, outputs in zip(batch, output, strict=True)]


def is_writer() -> bool:
    """Whether this process writes the reports (rank 0)."""
    import ignite.distributed as idist

    return bool(idist.get_rank() == 0)


def _per_case(data: Any) -> list[dict[str, Any]]:
    if isinstance(data, Mapping):
        return [dict(item) for item in decollate_batch(dict(data))]
    if isinstance(data, Sequence) and all(isinstance(item, Mapping) for item in data):
        return [dict(item) for item in data]
    if data is None or isinstance(data, torch.Tensor):
        return []
    raise TypeError(f"expected dicts of cases from the evaluator, got {type(data).__name__}")
