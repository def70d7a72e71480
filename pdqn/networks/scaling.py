"""Normalisation by running statistics that a network keeps: of plain numbers, and of returns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPSILON = 1e-4
_LARGEST = 10.0  # standard deviations
# From then on the statistics follow the newest values, slowly enough for what was learned.
_MOST_COUNTED = 1e6
# Without a discount, returns of an environment that never terminates would have no bound.
_LEAST_ENDING = 1e-4


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


class ReturnScale(nn.Module):
    """The unit in which a network's outputs are values: the standard deviation of returns.

    It is taken about zero, since a mean that is subtracted would change which actions are best. A
    return is R_n + d x (what follows), with the discount d of what follows, 0 at an episode's end.
    If successive rewards are uncorrelated, its mean square V is ``E[R_n^2] + E[d^2] V``, so

        V = E[R_n^2] / (1 - E[d^2])

    Nothing here depends on the values that are learned. The statistics are buffers, as those of
    ``RunningScale``.

    Attributes:
        roots: float32[2], root mean squares: of the n-step returns, and of the discounts of what
            follows them.
        count: float32[], number of transitions that they are of.
    """

    roots: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("roots", torch.zeros(2))
        self.register_buffer("count", torch.zeros(()))

    def forward(self) -> Tensor:
        """Return the unit, float32[]; 1 before the first reward."""
        root, following = self.roots
        unit = root * torch.rsqrt((1.0 - following**2).clamp(min=_LEAST_ENDING))
        return torch.where(root > 0, unit, 1.0)

    @torch.no_grad()
    def observe(self, returns: Tensor, discounts: Tensor, weights: Tensor) -> None:
        """Take a batch into the statistics; one with numbers that are not finite is left out.

        Args:
            returns: float32[batch], n-step returns in the environment's units.
            discounts: float32[batch], of what follows.
            weights: float32[batch], importance weights, which undo the choice by priority.
        """
        shares = (weights / weights.sum()).double()
        squares = torch.stack([returns, discounts]).double().square() @ shares
        whole = self.count.clamp(max=_MOST_COUNTED) + float(len(returns))
        share = len(returns) / whole.double()
        roots = torch.lerp(self.roots.double().square(), squares, share).sqrt().float()
        usable = torch.isfinite(roots).all()
        self.roots.copy_(torch.where(usable, roots, self.roots))
        self.count.copy_(torch.where(usable, whole, self.count))
