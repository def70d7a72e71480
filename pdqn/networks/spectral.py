"""Spectral normalisation of convolutions (Miyato et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_FIRST_ITERATIONS = 15


class SpectralConv2d(nn.Conv2d):
    """A 3 x 3 convolution whose weights, as a matrix, have the spectral norm 1.

    The norm is that of the weights' product with a direction. Power iteration turns the direction
    to the first left singular vector, a little in every pass that learns (algorithm 1). It is
    published with the parameters: actors need the same norm.
    """

    direction: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        """Build the convolution; images keep their size."""
        super().__init__(inputs, outputs, 3, padding=1)
        self.register_buffer("direction", functional.normalize(torch.randn(outputs), dim=0))
        for _ in range(_FIRST_ITERATIONS):
            self.turn()

    @torch.no_grad()
    def turn(self) -> None:
        """Take one step of the power iteration."""
        matrix = self.weight.flatten(1)
        right = functional.normalize(matrix.t() @ self.direction, dim=0)
        self.direction.copy_(functional.normalize(matrix @ right, dim=0))

    def norm(self) -> Tensor:
        """Compute the length of the direction's image, float32[]; the spectral norm in the end."""
        # Another pass may turn the direction before this one's gradient is taken.
        return (self.weight.flatten(1).t() @ self.direction.clone()).norm()

    def forward(self, input: Tensor) -> Tensor:
        """Compute [batch, outputs, H, W] from [batch, inputs, H, W]."""
        # The lower precision would count as a change of the norm.
        with torch.autocast(input.device.type, enabled=False):
            if self.training and torch.is_grad_enabled():
                self.turn()
            weight = self.weight / self.norm()
        return functional.conv2d(input, weight, self.bias, padding=1)
