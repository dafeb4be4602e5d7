"""A thin layer over MONAI's engines and Ignite: data, batches, checkpoints, schedules, logs, settings, run records."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from regzoo.engines.batch import PreparePair
from regzoo.engines.data import (
    data_folder,
    evaluation_pairs,
    evaluation_records,
    split_images,
    split_pairs,
    training_images,
    training_records,
)
from regzoo.engines.devices import loading_workers, mixed_precision, use_device
from regzoo.engines.distributed import distributed, share_cases, start_process_group
from regzoo.engines.identity import fingerprints
from regzoo.engines.options import check_ids, check_options
from regzoo.engines.origin import as_trained, not_trained_on
from regzoo.engines.streams import (
    CaseEvaluator,
    CaseStream,
    EvaluationStream,
    Failures,
    report_failures,
    requested_records,
)
from regzoo.engines.weights import load_weights, save_weights, starting_hash, starting_network, trainable

if TYPE_CHECKING:
    from regzoo.engines.checkpoint import TrainingCheckpoint, is_lower
    from regzoo.engines.logs import EventWriter, LossTerms, ValidationImages
    from regzoo.engines.plateau import EarlyStop, Schedule, key_metric
    from regzoo.engines.record import RunRecord, output_folder
    from regzoo.engines.tracking import claim_evaluation, finish_evaluation

__all__ = [
    "CaseEvaluator",
    "CaseStream",
    "EarlyStop",
    "EvaluationStream",
    "EventWriter",
    "Failures",
    "LossTerms",
    "PreparePair",
    "RunRecord",
    "Schedule",
    "TrainingCheckpoint",
    "ValidationImages",
    "as_trained",
    "check_ids",
    "check_options",
    "claim_evaluation",
    "data_folder",
    "distributed",
    "evaluation_pairs",
    "evaluation_records",
    "fingerprints",
    "finish_evaluation",
    "is_lower",
    "key_metric",
    "load_weights",
    "loading_workers",
    "mixed_precision",
    "not_trained_on",
    "output_folder",
    "report_failures",
    "requested_records",
    "save_weights",
    "share_cases",
    "split_images",
    "split_pairs",
    "start_process_group",
    "starting_hash",
    "starting_network",
    "trainable",
    "training_images",
    "training_records",
    "use_device",
]

# MLflow reports its usage to its developers. With patients' images, that must be opt-in.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

#: Modules that a registration does without; they need Ignite and TensorBoard, which take longer to import than PyTorch.
_ON_FIRST_USE = ("checkpoint", "logs", "plateau", "record", "tracking")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _ON_FIRST_USE:
            if name in vars(found := import_module(f"{__name__}.{module}")):
                return vars(found)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
