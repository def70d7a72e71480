"""The network that values what follows: a copy, a copy of the last layer alone, or no copy."""

from __future__ import annotations

from collections.abc import Callable

from pdqn.config import Config
from pdqn.networks import QNetwork


def target_network(config: Config, online: QNetwork, build: Callable[[], QNetwork]) -> QNetwork:
    """Make the network that values bootstrap observations (``learner.target``).

    Without a target it is the online network itself (Gallici et al. 2024, "Simplifying deep
    temporal difference learning"). With the last layer as the target it has all other parameters in
    common with it (Vincent et al. 2025, arXiv 2506.04398).

    Args:
        config: the run's.
        online: network that learns.
        build: builds another network of its kind.
    """
    kind = config.learner.target
    if kind == "none":
        return online
    target = build().to(next(online.parameters()).device).requires_grad_(False)
    target.load_state_dict(online.state_dict())
    if kind == "last_layer":
        _share_features(online, target)
    return target


def _share_features(online: QNetwork, target: QNetwork) -> None:
    """Replace all parameters of a network but the last layer's by those of another."""
    own = tuple(f"{name}." for name in online.last_layer)
    for name, tensor in online.state_dict(keep_vars=True).items():
        if not name.startswith(own):
            path, _, key = name.rpartition(".")
            setattr(target.get_submodule(path), key, tensor)
