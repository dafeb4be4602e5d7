"""Checks of the configurations as workflows: their ids, and the properties that MONAI asks for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from monai.bundle import ConfigWorkflow
from regzoo.datasets import load_records, load_single_records
from regzoo.datasets.text import read_json
from regzoo.engines.origin import STEPS, step_of
from regzoo.errors import RegZooError, user_error
from regzoo_phantoms import embedded_phantoms
from regzoo_tools.bundle import Bundle, CheckError, NotCheckedError

#: Ids that may differ between training and inference. All other shared ids must agree, or the weights would be used on
#: an input that they were not trained on.
OWN = {"imports", "output_dir", "network", "initialize", "run", "finalize", "displayable_configs"}
#: Ids that the zoo's rules and MONAI Label require, by configuration.
ZOO_IDS = {
    "inference": ("bundle_root", "device", "network_def", "inferer", "output_dir"),
    "train": (
        *("bundle_root", "device", "dataset_dir", "output_dir", "train#trainer", "train#trainer#max_epochs"),
        *("train#dataset", "train#dataset#data", "train#handlers", "train#inferer", "train#preprocessing"),
        *("validate#evaluator", "validate#handlers", "validate#dataset", "validate#dataset#data", "validate#inferer"),
        *("val_interval", "initialize", "run", "training"),
    ),
}
LABEL_IDS = {
    "inference": ("bundle_root", "device", "network_def", "preprocessing", "postprocessing", "inferer"),
    "train": ("bundle_root", "device", "network", "run", "train#trainer#max_epochs", "validate#dataset#data"),
}
#: Ids that an overlay must override to have an effect.
OVERLAY_IDS = {
    "evaluate": ("validate#handlers", "initialize", "run"),
    "multi_gpu_train": ("device", "network", "validate#evaluator#val_handlers", "initialize", "run", "finalize"),
    "multi_gpu_evaluate": ("device", "initialize", "run", "finalize"),
}
#: What MONAI Label copies from a request into the configuration of a training.
PARAMETERS = ("device", "train#trainer#max_epochs")
#: Phantoms to check a workflow with: few and coarse.
FEW = {"pairs": 4, "cases": 4, "held_out": 2}
COARSE = 8.0


def check_ids(bundle: Bundle, ids: Mapping[str, tuple[str, ...]], overlays: bool = False) -> int:
    """The number of ids that configurations must have; those of an overlay must be at its top level.

    Raises:
        CheckError: a configuration lacks one of the ids.
    """
    for name, wanted in ids.items():
        found = read_json(bundle.path(f"configs/{name}.json")) if overlays else bundle.config(name)
        if missing := [id_ for id_ in wanted if id_ not in found]:
            raise CheckError(f"{name}.json {'does not override' if overlays else 'has no'} {', '.join(missing)}")
    return sum(map(len, ids.values()))


def zoo_ids(bundle: Bundle) -> str:
    """The ids that the zoo requires, the ids that overlays override, and the use of ``val_interval``."""
    count = check_ids(bundle, ZOO_IDS) + check_ids(bundle, OVERLAY_IDS, overlays=True)
    for handler in bundle.config("train")["train"]["handlers"]:
        if handler.get("_target_") == "ValidationHandler" and handler.get("interval") != "@val_interval":
            raise CheckError("interval of the ValidationHandler in train.json is not @val_interval")
    return f"{count} ids"


def label_ids(bundle: Bundle) -> str:
    """The ids that MONAI Label reads and overrides; nothing refers to metadata, and clients write no configuration."""
    count = check_ids(bundle, LABEL_IDS)
    if "_meta_" in bundle.path("configs/inference.json").read_text(encoding="utf-8"):
        raise CheckError("inference.json refers to @_meta_, which MONAI Label does not read; write the value there")
    if bundle.config("inference").get("displayable_configs"):
        problem = "MONAI Label writes what clients send into them, and MONAI runs what begins with $import there"
        raise CheckError(f"inference.json has displayable_configs: {problem}; read the request in the preprocessing")
    if not isinstance(bundle.config("train")["train"]["handlers"], list):
        raise CheckError("train#handlers in train.json is not a list; MONAI Label inserts a handler at its start")
    return f"{count} ids"


def same_settings(bundle: Bundle) -> str:
    """The settings that training and inference share are equal, and the fixed image comes first."""
    train, inference = bundle.config("train"), bundle.config("inference")
    shared = sorted((train.get().keys() & inference.get().keys()) - OWN)
    different = [key for key in shared if step_of(train[key]) != step_of(inference[key])]
    if different:
        raise CheckError(f"train.json and inference.json differ in {', '.join(different)}")
    common = {*shared, "load", "alignment", *STEPS}
    orders = [_steps(config, common) for config in (train["train"], train["validate"], inference.get())]
    if any(order != orders[-1] for order in orders[:-1]):
        listed = " | ".join(", ".join(order) for order in orders)
        raise CheckError(f"the steps of training, validation and inference differ: {listed}")
    if "network_def" not in shared:
        raise CheckError("train.json has no network_def of its own to compare with")
    inputs = train.get("inputs", ["fixed_image", "moving_image"])
    if inputs[0] != "fixed_image" or len(inputs) != bundle.shape()[0][1]:
        raise CheckError(f"inputs of train.json are {inputs}: not the fixed image first, or not as in the metadata")
    return f"{len(shared)} settings"


def _steps(section: Mapping[str, Any], common: Collection[str]) -> list[str]:
    """The steps of a section's preprocessing, by the names they have in common with others."""
    steps = (section.get("preprocessing") or {}).get("transforms", ())
    return [step[1:] for step in steps if isinstance(step, str) and step[1:] in common]


def properties(bundle: Bundle, *names: str) -> str:
    """Initialise a workflow on small phantoms, in a folder of its own, and run MONAI's check of its properties.

    Args:
        names: its configurations, later ones overriding earlier ones. Only the training needs no released weights.
    """
    phantoms = small_phantoms(bundle, bundle.scratch / "phantoms")
    data = _pair(phantoms) if "inference" in names else {"dataset_dir": str(phantoms), "folds": 2}
    released = {} if names == ("train",) else {"checkpoint": str(bundle.weights())}
    with tempfile.TemporaryDirectory() as folder:
        workflow = ConfigWorkflow(
            **bundle.for_monai(*names),
            logging_file=False,
            workflow_type=names[0],
            output_dir=folder,
            **data,
            **released,
        )
        workflow.initialize()
        missing = workflow.check_properties()
    if missing:
        raise CheckError(f"missing or of another id: {', '.join(missing)}")
    return "none missing"


def _pair(phantoms: Path) -> dict[str, Any]:
    """Two images to register: a pair, or images of two patients."""
    try:
        record = load_records(phantoms, "val")[0]
        return {name: record[name] for name in ("fixed_image", "moving_image")}
    except RegZooError:  # a data set of single images
        first, second = load_single_records(phantoms)[:2]
        return {"fixed_image": first["fixed_image"], "moving_image": second["fixed_image"]}


def small_phantoms(bundle: Bundle, folder: Path) -> Path:
    """The phantoms that the bundle trains on without a data set, but few and coarse; written once."""
    own = bundle.config("train").get("phantoms")
    if not isinstance(own, dict):
        raise NotCheckedError("train.json has no phantoms to fall back on, so there is nothing to run it with")
    small = {**own, **{key: count for key, count in FEW.items() if key in own}, "spacing": COARSE, "workers": 1}
    return embedded_phantoms(folder, **small)


def served_training(bundle: Bundle) -> str:
    """A training as MONAI Label starts it refuses each parameter that MONAI would evaluate, and evaluates none."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        expression = f"$open({str(made)!r}, 'w')"
        component = {"_target_": "builtins.open", "file": str(made), "mode": "w"}
        values: list[Any] = [expression, component, [expression], {"value": component}, "@bundle_root"]
        served = {"MONAI_LABEL_STUDIES": folder, "TORCHELASTIC_RUN_ID": "verify"}
        for parameter in PARAMETERS:
            for value in values:
                with patch.dict(os.environ, served):
                    error = _error(bundle, parameter, value)
                if made.exists() or not str(user_error(error)).startswith(parameter):
                    what = "evaluates" if made.exists() else "does not refuse"
                    problem = f"train.json {what} {value!r:.60} for {parameter}, which a client of MONAI Label can send"
                    fix = "begin imports with $from regzoo.monai_label.settings import check_request"
                    raise CheckError(f"{problem}; {fix}, and call it first in initialize")
    return f"{len(PARAMETERS) * len(values)} values refused"


def _error(bundle: Bundle, parameter: str, value: Any) -> BaseException | None:
    """What the start of a training with a parameter fails with."""
    workflow = ConfigWorkflow(**bundle.for_monai("train"), logging_file=False, **{parameter: value})
    try:
        workflow.initialize()
    except Exception as error:
        return error
    return None
