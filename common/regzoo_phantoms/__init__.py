"""Small, anatomically plausible images with labels and, for pairs, the true displacement."""

from regzoo_phantoms.abdomen import AbdomenPhantoms, write_abdomen_phantoms
from regzoo_phantoms.brain import BrainPhantoms, write_brain_phantoms
from regzoo_phantoms.embedded import embedded_phantoms
from regzoo_phantoms.hippocampus import HippocampusPhantoms, write_hippocampus_phantoms
from regzoo_phantoms.prostate import ProstatePhantoms, write_prostate_phantoms

__all__ = [
    "AbdomenPhantoms",
    "BrainPhantoms",
    "HippocampusPhantoms",
    "ProstatePhantoms",
    "embedded_phantoms",
    "write_abdomen_phantoms",
    "write_brain_phantoms",
    "write_hippocampus_phantoms",
    "write_prostate_phantoms",
]
