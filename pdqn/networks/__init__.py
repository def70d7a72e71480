"""Q-networks: observation in, one value for every action out.

``build_network`` chooses by the observation: dense layers for vectors, convolutions for images,
both side by side for observations that hold both, a fully convolutional map for circle placement,
or a network of the user's own.
"""

from pdqn.networks.build import build_network, network_sizes
from pdqn.networks.interface import QNetwork
from pdqn.networks.noisy import resample_noise, set_noise

__all__ = ["QNetwork", "build_network", "network_sizes", "resample_noise", "set_noise"]
