"""Q-networks: observation in, one value for every action out.

``build_network`` chooses the network by the observation. Vectors get dense layers, images get
convolutions, and observations with both get the two side by side. Circle placement gets a fully
convolutional map. Users may also name a network of their own.
"""

from pdqn.networks.build import build_network, network_sizes
from pdqn.networks.interface import QNetwork
from pdqn.networks.noisy import resample_noise, set_noise

__all__ = ["QNetwork", "build_network", "network_sizes", "resample_noise", "set_noise"]
