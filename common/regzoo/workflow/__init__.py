"""The glue between this package and MONAI's engines, and registration from Python."""

from regzoo.workflow.batch import PreparePair
from regzoo.workflow.checkpoint import TrainingCheckpoint, is_lower, load_weights, save_weights
from regzoo.workflow.data import (
    CaseStream,
    case_names,
    data_folder,
    evaluation_pairs,
    evaluation_records,
    output_folder,
    report_failures,
    requested_records,
    split_images,
    training_images,
    training_records,
)
from regzoo.workflow.distributed import distributed, rank_device, start_process_group, stop_process_group
from regzoo.workflow.inferer import LabelWiseInferer
from regzoo.workflow.logs import LossTerms, ValidationImages
from regzoo.workflow.outputs import RegistrationResult, SaveRegistration
from regzoo.workflow.plateau import EarlyStop, Schedule, key_metric
from regzoo.workflow.registrar import Registrar, find_bundle, register

__all__ = [
    "CaseStream",
    "EarlyStop",
    "LabelWiseInferer",
    "LossTerms",
    "PreparePair",
    "Registrar",
    "RegistrationResult",
    "SaveRegistration",
    "Schedule",
    "TrainingCheckpoint",
    "ValidationImages",
    "case_names",
    "data_folder",
    "distributed",
    "evaluation_pairs",
    "evaluation_records",
    "find_bundle",
    "is_lower",
    "key_metric",
    "load_weights",
    "output_folder",
    "rank_device",
    "register",
    "report_failures",
    "requested_records",
    "save_weights",
    "split_images",
    "start_process_group",
    "stop_process_group",
    "training_images",
    "training_records",
]
