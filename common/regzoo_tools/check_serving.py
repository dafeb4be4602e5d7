"""A check of what a bundle does when MONAI Label trains it: nothing that a client sent is evaluated."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from monai.bundle import ConfigWorkflow
from regzoo.errors import user_error
from regzoo_tools.bundle import Bundle, CheckError

#: What MONAI Label copies from a request into the configuration of a training.
PARAMETERS = ("device", "train#trainer#max_epochs")


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
                    raise CheckError(
                        f"train.json {what} {value!r:.60} for {parameter}, which a client of MONAI Label can send; "
                        "begin imports with $from regzoo.monai_label.settings import check_request, and call it first "
                        "in initialize"
                    )
    return f"{len(PARAMETERS) * len(values)} values refused"


def _error(bundle: Bundle, parameter: str, value: Any) -> BaseException | None:
    """What the start of a training with a parameter fails with."""
    workflow = ConfigWorkflow(
        config_file=str(bundle.path("configs/train.json")),
        meta_file=str(bundle.path("configs/metadata.json")),
        logging_file=False,
        **{"bundle_root": str(bundle.root), parameter: value},
    )
    try:
        workflow.initialize()
    except Exception as error:
        return error
    return None
