"""A network of your own: dense layers with another activation.

Run this in the checkout:

    pdqn launch --env CartPole-v1 --set network.kind=examples.own_network:make --time 30s

Outside the checkout, copy this file to where you work, and write ``own_network:make``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pdqn.config import NetworkConfig
from pdqn.networks import QNetwork
from pdqn.specs import EnvironmentSpec


class SmoothNetwork(QNetwork):
    """Two hidden layers for an observation that is one vector."""

    def __init__(self, inputs: int, hidden: int, num_actions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, num_actions),
        )

    def prepare(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Flatten the observation, and its stacked frames with it; there are no parameters here."""
        return (observation["observation"].to(torch.float32).flatten(1),)

    def forward(self, *prepared: Tensor) -> Tensor:
        """Return Q of every action, float32[batch, num_actions]."""
        return self.layers(prepared[0])


def make(spec: EnvironmentSpec, config: NetworkConfig) -> SmoothNetwork:
    """Build the network for an environment from the ``network`` settings."""
    (field,) = spec.fields  # a Dict or Tuple observation would have several
    inputs = 1
    for size in field.stacked_shape:
        inputs *= size
    return SmoothNetwork(inputs, config.hidden or 128, spec.num_actions)
