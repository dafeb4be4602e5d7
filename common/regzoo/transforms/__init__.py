"""Per-case transforms, on the CPU and cached: load, align, resample."""

from regzoo.transforms.apply import ApplyFieldd, WarpOnNetworkGridd
from regzoo.transforms.load import AlignPaird, LoadPaird
from regzoo.transforms.resample import FilterLabelsd, MatchLabelsd, ResamplePaird

__all__ = [
    "AlignPaird",
    "ApplyFieldd",
    "FilterLabelsd",
    "LoadPaird",
    "MatchLabelsd",
    "ResamplePaird",
    "WarpOnNetworkGridd",
]
