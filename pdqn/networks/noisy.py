"""Dense layers with learned noise, which explore instead of epsilon (Fortunato et al. 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class NoisyLinear(nn.Module):
    """A dense layer with parameters ``mu + sigma * noise`` (eq. 9), factorised Gaussian noise.

    The noise of a weight is ``f(e_out) f(e_in)`` with ``f(x) = sign(x) sqrt(|x|)`` (eq. 10, 11). It
    changes only in ``resample``. It is not a parameter: it is neither saved nor published.

    Attributes:
        noisy: whether the layer uses the noise; otherwise it computes with ``mu`` alone.
    """

    in_noise: Tensor
    out_noise: Tensor

    def __init__(self, inputs: int, outputs: int, sigma: float) -> None:
        super().__init__()
        self.noisy = True
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((outputs, inputs), sigma * bound))
        self.bias_sigma = nn.Parameter(torch.full((outputs,), sigma * bound))
        self.register_buffer("in_noise", torch.zeros(inputs), persistent=False)
        self.register_buffer("out_noise", torch.zeros(outputs), persistent=False)

    def resample(self, generator: torch.Generator | None = None) -> None:
        """Draw new noise, from torch's own generator if none is given."""
        for noise in (self.in_noise, self.out_noise):
            drawn = torch.randn(noise.shape, generator=generator)
            noise.copy_(drawn.sign() * drawn.abs().sqrt())

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute [batch, outputs] from [batch, inputs]."""
        if not self.noisy:
            return functional.linear(inputs, self.weight, self.bias)
        weight = self.weight + self.weight_sigma * torch.outer(self.out_noise, self.in_noise)
        return functional.linear(inputs, weight, self.bias + self.bias_sigma * self.out_noise)


def noisy_layers(network: nn.Module) -> list[NoisyLinear]:
    """List all noisy layers of a network."""
    return [module for module in network.modules() if isinstance(module, NoisyLinear)]


def resample_noise(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw new noise in every noisy layer, if there are any."""
    for layer in noisy_layers(network):
        layer.resample(generator)


def set_noise(network: nn.Module, enabled: bool) -> None:
    """Switch the noise on or off; a greedy evaluation switches it off."""
    for layer in noisy_layers(network):
        layer.noisy = enabled
