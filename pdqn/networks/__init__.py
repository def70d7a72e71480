"""Q-networks: observation in, one value for every action out.

``build_network`` chooses the network by the observation. Vectors get dense layers, images get
convolutions, and observations with both get the two side by side. Circle placement gets a fully
convolutional map. Users may also name a network of their own.
"""

from __future__ import annotations

import importlib
import typing

from pdqn.networks.sizes import network_sizes

if typing.TYPE_CHECKING:
    from pdqn.networks.build import build_network
    from pdqn.networks.interface import QNetwork
    from pdqn.networks.noisy import resample_noise, set_noise

__all__ = ["QNetwork", "build_network", "network_sizes", "resample_noise", "set_noise"]

# These import torch, which takes seconds. A plan needs only the sizes.
_LATER = {
    "QNetwork": "interface",
    "build_network": "build",
    "resample_noise": "noisy",
    "set_noise": "noisy",
}


def __getattr__(name: str) -> object:
    """Import what needs torch when it is asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
