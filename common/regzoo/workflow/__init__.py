"""The glue between this package and MONAI's engines, and registration from Python."""

from regzoo.workflow.batch import PreparePair
from regzoo.workflow.checkpoint import TrainingCheckpoint, is_lower, load_weights, save_weights
from regzoo.workflow.data import (
    CaseStream,
    case_names,
    data_folder,
    evaluation_records,
    output_folder,
    report_failures,
    requested_records,
    training_records,
)
from regzoo.workflow.distributed import distributed, rank_device, start_process_group
from regzoo.workflow.inferer import LabelWiseInferer
from regzoo.workflow.logs import LossTerms, ValidationImages
from regzoo.workflow.outputs import RegistrationResult, SaveRegistration
from regzoo.workflow.registrar import Registrar, find_bundle, register

__all__ = [
    "CaseStream",
    "LabelWiseInferer",
    "LossTerms",
    "PreparePair",
    "Registrar",
    "RegistrationResult",
    "SaveRegistration",
    "TrainingCheckpoint",
    "ValidationImages",
    "case_names",
    "data_folder",
    "distributed",
    "evaluation_records",
    "find_bundle",
    "is_lower",
    "load_weights",
    "output_folder",
    "rank_device",
    "register",
    "report_failures",
    "requested_records",
    "save_weights",
    "start_process_group",
    "training_records",
]
