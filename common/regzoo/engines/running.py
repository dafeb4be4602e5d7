"""Access to the workflow whose configuration is being evaluated."""

from __future__ import annotations

import inspect
from pathlib import Path

from monai.bundle import ConfigWorkflow


def running_workflow() -> ConfigWorkflow | None:
    """The `ConfigWorkflow` that called the code from a ``$`` expression, or None outside a workflow.

    An expression sees values of the configuration, but not the configuration itself, which a check of all options
    needs. MONAI does not pass it on, so it is looked up on the call stack. This works however the workflow was started:
    from the command line, from Python or by MONAI Label.
    """
    # Skip this frame: reading its variables would create a reference cycle that keeps the workflow alive.
    own = inspect.currentframe()
    frame = None if own is None else own.f_back
    del own
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigWorkflow):
            return caller
        frame = frame.f_back
    return None


def config_folder(workflow: ConfigWorkflow) -> Path:
    """The folder ``configs`` of the bundle that a workflow runs.

    It holds the first configuration, unless that is a whole configuration elsewhere, such as the ``config.json`` of a
    training. Such a configuration names its bundle as ``bundle_root``.
    """
    own, root = Path(workflow.config_root_path), workflow.parser.config.get("bundle_root")
    other = Path(str(root)) / "configs"
    return other if not _of_bundle(own) and _of_bundle(other) else own


def _of_bundle(folder: Path) -> bool:
    return (folder / "metadata.json").is_file()


def bundle_name(workflow: ConfigWorkflow | None) -> str:
    """The name of the bundle whose configuration a workflow runs; empty without one."""
    if workflow is None or not _of_bundle(folder := config_folder(workflow)):
        return ""
    return folder.resolve().parent.name
