"""Refinement: the registration of one pair, optimised with the losses of the package."""

from regzoo.refinement.deformable import Refined, refine
from regzoo.refinement.levels import Volumes
from regzoo.refinement.options import KINDS, RefinementOptions, options_for

__all__ = ["KINDS", "Refined", "RefinementOptions", "Volumes", "options_for", "refine"]
