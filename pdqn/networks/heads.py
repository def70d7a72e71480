"""From features to action values: dueling or not, a mean or a distribution, dense or noisy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pdqn.config import NetworkConfig
from pdqn.networks.noisy import NoisyLinear


def dense(inputs: int, outputs: int, config: NetworkConfig) -> nn.Module:
    """A dense layer, noisy where the configuration says so."""
    if config.noisy:
        return NoisyLinear(inputs, outputs, config.noisy_sigma)
    return nn.Linear(inputs, outputs)


class Head(nn.Module):
    """The last layer of a network.

    Dueling (Wang et al. 2016, eq. 9) adds a value to advantages without their mean; with a
    distribution it does so for every atom (Hessel et al. 2018).

    Attributes:
        support: float32[atoms] of a categorical distribution (Bellemare et al. 2017), else None.
    """

    support: Tensor | None

    def __init__(self, features: int, num_actions: int, config: NetworkConfig) -> None:
        super().__init__()
        self._kind = config.distribution
        self._atoms = 1 if self._kind == "none" else config.atoms
        self.advantage = dense(features, num_actions * self._atoms, config)
        self.value = dense(features, self._atoms, config) if config.dueling else None
        support = None
        if self._kind == "categorical":
            support = torch.linspace(config.value_min, config.value_max, config.atoms)
        self.register_buffer("support", support, persistent=False)

    def distribution(self, features: Tensor) -> Tensor:
        """Logits or quantiles, float[batch, num_actions, atoms]; one atom where it is a mean."""
        # Of lower precision under autocast: the value would round what the actions differ by.
        advantage = self.advantage(features).float().unflatten(1, (-1, self._atoms))
        if self.value is None:
            return advantage
        value = self.value(features).float()[:, None]
        return value + advantage - advantage.mean(dim=1, keepdim=True)

    def forward(self, features: Tensor) -> Tensor:
        """Expected returns, float[batch, num_actions]."""
        return expected(self.distribution(features), self.support)


def expected(distribution: Tensor, support: Tensor | None) -> Tensor:
    """The mean of a distribution, float[batch, num_actions].

    Args:
        distribution: float[batch, num_actions, atoms], logits where there is a support, else
            equally likely values.
        support: float32[atoms] or None.
    """
    if distribution.shape[2] == 1:
        return distribution[:, :, 0]
    if support is None:
        return distribution.mean(dim=2)
    # Exact enough only in single precision, in which autocast leaves a sum, unlike a product of
    # matrices.
    return (distribution.float().softmax(dim=2) * support).sum(dim=2)
