"""Networks that predict a DDF from an image pair, stacked with the fixed image first."""

from regzoo.networks.global_net import CompositeNet, GlobalNet
from regzoo.networks.local_net import LocalNet
from regzoo.networks.outline_net import OutlineNet
from regzoo.networks.pyramid_net import PyramidNet
from regzoo.networks.voxelmorph import VoxelMorphNet

__all__ = ["CompositeNet", "GlobalNet", "LocalNet", "OutlineNet", "PyramidNet", "VoxelMorphNet"]
