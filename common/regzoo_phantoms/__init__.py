"""Small, anatomically plausible images with labels and, for pairs, the true displacement."""

from regzoo_phantoms.abdomen import AbdomenPhantoms
from regzoo_phantoms.brain import BrainPhantoms
from regzoo_phantoms.embedded import embedded_phantoms
from regzoo_phantoms.hippocampus import HippocampusPhantoms
from regzoo_phantoms.prostate import ProstatePhantoms

__all__ = ["AbdomenPhantoms", "BrainPhantoms", "HippocampusPhantoms", "ProstatePhantoms", "embedded_phantoms"]
