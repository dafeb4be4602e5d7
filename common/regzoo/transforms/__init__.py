"""Per-case transforms, on the CPU and cached: load, align, resample."""

from regzoo.transforms.apply import ApplyFieldd, LabelAsPredictiond, WarpOnNetworkGridd, label_map, label_masks
from regzoo.transforms.load import AlignPaird, LoadPaird
from regzoo.transforms.resample import FilterLabelsd, MatchLabelsd, ResamplePaird

__all__ = [
    "AlignPaird",
    "ApplyFieldd",
    "FilterLabelsd",
    "LabelAsPredictiond",
    "LoadPaird",
    "MatchLabelsd",
    "ResamplePaird",
    "WarpOnNetworkGridd",
    "label_map",
    "label_masks",
]
