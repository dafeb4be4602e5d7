"""A case in, a result out."""

from regzoo.inference.inferer import LabelWiseInferer
from regzoo.inference.outputs import RegistrationResult
from regzoo.inference.registrar import Registrar, register
from regzoo.inference.saving import SaveRegistration

__all__ = ["LabelWiseInferer", "Registrar", "RegistrationResult", "SaveRegistration", "register"]
