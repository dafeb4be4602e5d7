"""Small, anatomically plausible image pairs with labels and the true displacement."""

from regzoo.datasets.phantoms.embedded import embedded_phantoms
from regzoo.datasets.phantoms.prostate import write_prostate_phantoms

__all__ = ["embedded_phantoms", "write_prostate_phantoms"]
