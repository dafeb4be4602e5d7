"""A case in, a result out."""

from regzoo.inference.inferer import LabelWiseInferer
from regzoo.inference.outputs import RegistrationResult, SaveRegistration
from regzoo.inference.registrar import Registrar, register

__all__ = ["LabelWiseInferer", "Registrar", "RegistrationResult", "SaveRegistration", "register"]
