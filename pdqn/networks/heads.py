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

    Dueling adds a value to the advantages; with a distribution it does so for every atom (Hessel
    et al. 2018).
    """

    def __init__(self, features: int, num_actions: int, config: NetworkConfig) -> None:
        super().__init__()
        self._atoms = outputs_per_action(config)
        self.advantage = dense(features, num_actions * self._atoms, config)
        self.value = dense(features, self._atoms, config) if config.dueling else None

    def forward(self, features: Tensor) -> Tensor:
        """Logits or quantiles, float[batch, num_actions, atoms]; one atom where it is a mean."""
        advantage = in_single_precision(self.advantage, features).unflatten(1, (-1, self._atoms))
        return dueling(advantage, self.value, features)


def in_single_precision(layer: nn.Module, inputs: Tensor) -> Tensor:
    """A last layer outside of autocast, float32.

    Returns may be a thousand times as large as what actions differ by: in bfloat16 a value near
    100 is a multiple of a half.
    """
    with torch.autocast(inputs.device.type, enabled=False):
        return layer(inputs.float())


def dueling(advantage: Tensor, value: nn.Module | None, features: Tensor) -> Tensor:
    """Value and advantages without their mean (Wang et al. 2016, eq. 9), for every atom.

    Args:
        advantage: float32[batch, num_actions, atoms].
        value: the layer that gives float[batch, atoms]; None leaves the advantages as they are.
        features: that it gets.

    Returns:
        float32[batch, num_actions, atoms].
    """
    if value is None:
        return advantage
    common = in_single_precision(value, features)[:, None]
    return common + advantage - advantage.mean(dim=1, keepdim=True)


def outputs_per_action(config: NetworkConfig) -> int:
    """Values of an action: as many as there are atoms, or one for a mean."""
    return 1 if config.distribution == "none" else config.atoms


def categorical_support(config: NetworkConfig) -> Tensor | None:
    """The returns that atoms stand for (Bellemare et al. 2017, sec. 4), float32[atoms].

    None where the distribution is not categorical.
    """
    if config.distribution != "categorical":
        return None
    return torch.linspace(config.value_min, config.value_max, config.atoms)


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
