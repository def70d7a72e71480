"""Heads from features to action values: dueling or not, mean or distribution, dense or noisy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pdqn.config import NetworkConfig
from pdqn.networks.noisy import NoisyLinear


def dense(inputs: int, outputs: int, config: NetworkConfig) -> nn.Module:
    """Make a dense layer, noisy if the configuration says so."""
    if config.noisy:
        return NoisyLinear(inputs, outputs, config.noisy_sigma)
    return nn.Linear(inputs, outputs)


class Head(nn.Module):
    """The last layer of a network.

    Dueling adds a value to the advantages. With a distribution, it does so for every atom (Hessel
    et al. 2018).
    """

    def __init__(self, features: int, num_actions: int, config: NetworkConfig) -> None:
        super().__init__()
        self.atoms = outputs_per_action(config)
        self.advantage = dense(features, num_actions * self.atoms, config)
        self.value = dense(features, self.atoms, config) if config.dueling else None

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits or quantiles, float[batch, num_actions, atoms]; one atom for a mean."""
        advantage = in_single_precision(self.advantage, features).unflatten(1, (-1, self.atoms))
        return dueling(advantage, self.value, features)


def in_single_precision(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Apply a last layer outside of autocast, in float32.

    Returns may be a thousand times as large as the differences between actions. In bfloat16, values
    near 100 are multiples of a half.
    """
    with torch.autocast(inputs.device.type, enabled=False):
        return layer(inputs.float())


def dueling(advantage: Tensor, value: nn.Module | None, features: Tensor) -> Tensor:
    """Add a value to the advantages less their mean (Wang et al. 2016, eq. 9), for every atom.

    Args:
        advantage: float32[batch, num_actions, atoms].
        value: layer that computes float[batch, atoms]; None leaves the advantages unchanged.
        features: input of that layer.

    Returns:
        float32[batch, num_actions, atoms].
    """
    if value is None:
        return advantage
    common = in_single_precision(value, features)[:, None]
    return common + advantage - advantage.mean(dim=1, keepdim=True)


def outputs_per_action(config: NetworkConfig) -> int:
    """Return the number of outputs per action: the number of atoms, or one for a mean."""
    return 1 if config.distribution == "none" else config.atoms


def categorical_support(config: NetworkConfig) -> Tensor | None:
    """List the returns that atoms represent, float32[atoms].

    Those of a categorical distribution include the least and the largest return (Bellemare et al.
    2017, sec. 4). Those of HL-Gauss are the centres of bins between the two (Farebrother et al.
    2024, sec. 3). Returns None where outputs are not logits.
    """
    least, largest, atoms = config.value_min, config.value_max, config.atoms
    if config.distribution == "categorical":
        return torch.linspace(least, largest, atoms)
    if config.distribution == "hl_gauss":
        half = (largest - least) / (2 * atoms)
        return torch.linspace(least + half, largest - half, atoms)
    return None


def expected(distribution: Tensor, support: Tensor | None) -> Tensor:
    """Compute the mean of a distribution, float[batch, num_actions].

    Args:
        distribution: float[batch, num_actions, atoms], logits if there is a support, else equally
            likely values.
        support: float32[atoms] or None.
    """
    if distribution.shape[2] == 1:
        return distribution[:, :, 0]
    if support is None:
        return distribution.mean(dim=2)
    # Only single precision is exact enough. Autocast leaves a sum in it, but not a product of
    # matrices.
    return (distribution.float().softmax(dim=2) * support).sum(dim=2)
