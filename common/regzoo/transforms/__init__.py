"""Per-case transforms, on the CPU and cached: load, align, resample."""

from regzoo.transforms.apply import ApplyFieldd, PropagatedLabelsd, WarpOnNetworkGridd, warped_masks
from regzoo.transforms.ct import FieldOfViewd, HounsfieldUnitsd
from regzoo.transforms.distance import SignedDistanced
from regzoo.transforms.hold import HoldLabelsd
from regzoo.transforms.load import AlignPaird, LoadPaird
from regzoo.transforms.outlines import SplitOutlinesd
from regzoo.transforms.points import CarryPointsd
from regzoo.transforms.refine import RefinePaird, StillPaird
from regzoo.transforms.resample import (
    AdHocLabelsd,
    FilterLabelsd,
    MatchLabelsd,
    RegionInputd,
    ResamplePaird,
    SelectLabelsd,
)
from regzoo.transforms.simulate import SimulateMovingd

__all__ = [
    "AdHocLabelsd",
    "AlignPaird",
    "ApplyFieldd",
    "CarryPointsd",
    "FieldOfViewd",
    "FilterLabelsd",
    "HoldLabelsd",
    "HounsfieldUnitsd",
    "LoadPaird",
    "MatchLabelsd",
    "PropagatedLabelsd",
    "RefinePaird",
    "RegionInputd",
    "ResamplePaird",
    "SelectLabelsd",
    "SignedDistanced",
    "SimulateMovingd",
    "SplitOutlinesd",
    "StillPaird",
    "WarpOnNetworkGridd",
    "warped_masks",
]
