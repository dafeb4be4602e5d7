"""Networks that take an image pair, stacked with the fixed image first, to a DDF."""

from regzoo.networks.global_net import CompositeNet, GlobalNet
from regzoo.networks.local_net import LocalNet

__all__ = ["CompositeNet", "GlobalNet", "LocalNet"]
