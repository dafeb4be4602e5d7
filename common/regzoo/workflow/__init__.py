"""The glue between this package and MONAI's engines, and registration from Python."""

from regzoo.bundles import find_bundle
from regzoo.workflow.batch import PreparePair
from regzoo.workflow.checkpoint import TrainingCheckpoint, is_lower
from regzoo.workflow.data import (
    CaseStream,
    EvaluationStream,
    data_folder,
    evaluation_pairs,
    evaluation_records,
    output_folder,
    report_failures,
    requested_records,
    split_images,
    split_pairs,
    training_images,
    training_records,
)
from regzoo.workflow.distributed import distributed, rank_device, share_cases, start_process_group, stop_process_group
from regzoo.workflow.export import Export, export_network
from regzoo.workflow.exported import ExportedNetwork, OnnxNetwork, TorchScriptNetwork
from regzoo.workflow.identity import fingerprints
from regzoo.workflow.inferer import LabelWiseInferer
from regzoo.workflow.logs import EventWriter, LossTerms, ValidationImages
from regzoo.workflow.options import check_ids, check_options
from regzoo.workflow.origin import as_trained, not_trained_on
from regzoo.workflow.outputs import RegistrationResult, SaveRegistration
from regzoo.workflow.plateau import EarlyStop, Schedule, key_metric
from regzoo.workflow.record import RunRecord
from regzoo.workflow.registrar import Registrar, register
from regzoo.workflow.serving import Answerd, served_weights, training_folder
from regzoo.workflow.tracking import claim_evaluation, finish_evaluation
from regzoo.workflow.weights import load_weights, save_weights, starting_hash, starting_network, trainable

__all__ = [
    "Answerd",
    "CaseStream",
    "EarlyStop",
    "EvaluationStream",
    "EventWriter",
    "Export",
    "ExportedNetwork",
    "LabelWiseInferer",
    "LossTerms",
    "OnnxNetwork",
    "PreparePair",
    "Registrar",
    "RegistrationResult",
    "RunRecord",
    "SaveRegistration",
    "Schedule",
    "TorchScriptNetwork",
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
    "export_network",
    "find_bundle",
    "fingerprints",
    "finish_evaluation",
    "is_lower",
    "key_metric",
    "load_weights",
    "not_trained_on",
    "output_folder",
    "rank_device",
    "register",
    "report_failures",
    "requested_records",
    "save_weights",
    "served_weights",
    "share_cases",
    "split_images",
    "split_pairs",
    "start_process_group",
    "starting_hash",
    "starting_network",
    "stop_process_group",
    "trainable",
    "training_folder",
    "training_images",
    "training_records",
]
