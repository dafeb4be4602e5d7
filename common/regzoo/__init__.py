"""RegZoo: MONAI bundles for label-driven medical image registration, and the package they share."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regzoo.errors import RegZooError
    from regzoo.inference import Registrar, RegistrationResult, register
    from regzoo.spatial import DisplacementField

__version__ = "0.1.0"

_HOME = {
    "DisplacementField": "regzoo.spatial",
    "RegZooError": "regzoo.errors",
    "Registrar": "regzoo.inference",
    "RegistrationResult": "regzoo.inference",
    "register": "regzoo.inference",
}

_MODULES = (
    *("augmentation", "bundles", "datasets", "engines", "errors", "export", "files", "filters", "inference", "losses"),
    *("metrics", "monai_label", "networks", "report", "samplers", "spatial", "transforms"),
)

__all__ = ["DisplacementField", "RegZooError", "Registrar", "RegistrationResult", "__version__", "register"]


def __getattr__(name: str) -> Any:
    # Importing MONAI takes seconds, so names and modules are imported on first use. With `import regzoo` alone,
    # configurations can name anything in the package.
    if name in _MODULES:
        return import_module(f"regzoo.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'regzoo' has no attribute {name!r}")
