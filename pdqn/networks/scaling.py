"""Normalisation of plain numbers by their running mean and variance, which a network keeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPSILON = 1e-4
_LARGEST = 10.0  # standard deviations
# From then on the statistics follow the newest values, slowly enough for what was learned.
_MOST_COUNTED = 1e6


class RunningScale(nn.Module):
    """Values less their mean, divided by their standard deviation, within ten of them.

    The statistics are buffers. They are published, saved and loaded with the parameters, so actors,
    learner and evaluations see the same numbers. Replay keeps the values as they were.

    Args:
        size: number of values.

    Attributes:
        mean: float32[size].
        variance: float32[size].
        count: float32[], number of rows that they are of.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        """Normalise float32[batch, size]."""
        scaled = (values - self.mean) * torch.rsqrt(self.variance + _EPSILON)
        return scaled.clamp(-_LARGEST, _LARGEST)

    @torch.no_grad()
    def observe(self, values: Tensor) -> None:
        """Take more rows, float32[batch, size], into the statistics (Chan et al. 1979)."""
        rows = float(values.shape[0])
        mean, variance = values.mean(0), values.var(0, unbiased=False)
        count = self.count.clamp(max=_MOST_COUNTED)
        whole, apart = count + rows, mean - self.mean
        share = rows / whole
        self.variance.mul_(1 - share).add_(variance * share + apart**2 * share * (1 - share))
        self.mean.add_(apart * share)
        self.count.copy_(whole)
