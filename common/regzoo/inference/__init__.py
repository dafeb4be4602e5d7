"""Inference: from a case to its result and the files of the result."""

from regzoo.inference.inferer import LabelWiseInferer
from regzoo.inference.outputs import RegistrationResult
from regzoo.inference.pairs import register_pairs
from regzoo.inference.registrar import Registrar, register
from regzoo.inference.saving import SaveRegistration

__all__ = ["LabelWiseInferer", "Registrar", "RegistrationResult", "SaveRegistration", "register", "register_pairs"]
