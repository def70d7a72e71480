"""Losses as pure functions of tensors: from predictions and targets to one loss per row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_COMMON_WEIGHT = 0.1  # of the mean error of a state's rollouts


def best_actions(values: Tensor, mask: Tensor | None) -> Tensor:
    """Choose the best valid action of each row, int64[batch]; an arbitrary one if none is valid.

    Args:
        values: float[batch, actions].
        mask: bool[batch, actions], valid actions; None if all are valid.
    """
    return (values if mask is None else values.masked_fill(~mask, -torch.inf)).argmax(dim=1)


def select(values: Tensor, actions: Tensor) -> Tensor:
    """Select the values of the actions, float[batch, ...] from float[batch, actions, ...]."""
    return values[torch.arange(len(values), device=values.device), actions]


def hard_values(distribution: Tensor, by: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the value of the best valid action, float[batch, k]; 0 where no action is valid.

    If the online network chooses and the target network evaluates, this is double Q-learning (van
    Hasselt et al. 2016).

    Args:
        distribution: float[batch, actions, k], values or their quantiles.
        by: float[batch, actions], values by which the action is chosen.
        mask: bool[batch, actions], or None.
    """
    chosen = select(distribution, best_actions(by, mask))
    return chosen if mask is None else torch.where(mask.any(dim=1)[:, None], chosen, 0.0)


def huber_losses(chosen: Tensor, targets: Tensor, huber_delta: float) -> Tensor:
    """Compute the Huber loss of each transition, float[batch].

    Args:
        chosen: float[batch], Q of the actions taken; differentiable.
        targets: float[batch]; not differentiable.
        huber_delta: error from which the loss is linear.
    """
    return functional.huber_loss(chosen, targets, reduction="none", delta=huber_delta)


def rollout_losses(values: Tensor, returns: Tensor, told: Tensor) -> Tensor:
    """Compare the values of k actions in each state with their returns, float[batch].

    The returns of one state differ much less than those of different states, and only their
    differences say which action is best. Errors are therefore taken from their mean within the
    state, which itself counts a tenth. Actions weigh by a softmax of their returns, in units of
    their spread: the order near the best matters.

    Args:
        values: float[batch, k], expected returns; differentiable.
        returns: float[batch, k].
        told: bool[batch, k], where there is a return; a state may have none.
    """
    count = told.sum(dim=1, keepdim=True).clamp_min(1)
    mean = (returns * told).sum(dim=1, keepdim=True) / count
    centred = torch.where(told, returns - mean, 0.0)
    spread = (centred.square().sum(dim=1, keepdim=True) / count).sqrt().clamp_min(1e-12)
    weights = (centred / spread).exp() * told
    weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-12)
    errors = torch.where(told, values - returns, 0.0)
    common = (weights * errors).sum(dim=1, keepdim=True)
    within = (weights * (errors - common).square()).sum(dim=1)
    return 0.5 * (within + _COMMON_WEIGHT * common[:, 0].square())


# ---- distributions ----


def projected(returns: Tensor, probabilities: Tensor, support: Tensor) -> Tensor:
    """Project a distribution over arbitrary returns onto the atoms of a support.

    The probability of every return is split between the two atoms next to it (Bellemare et al.
    2017, algorithm 1). This is written as a sum over triangles around the atoms.

    Args:
        returns: float[batch, k]; those beyond the support count as its ends.
        probabilities: float[batch, k]; the sum of each row is 1.
        support: float[atoms], evenly spaced and increasing.

    Returns:
        float[batch, atoms]; the sum of each row is 1.
    """
    first, last = support[0], support[-1]
    spacing = (last - first) / (len(support) - 1)
    clipped = returns.clamp(first, last)[:, None, :]
    shares = (1.0 - (clipped - support[None, :, None]).abs() / spacing).clamp(0.0, 1.0)
    return (shares * probabilities[:, None, :]).sum(dim=2)


def categorical_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the cross-entropy of each row, float[batch].

    It is the loss of C51 (Bellemare et al. 2017, eq. 7) and of HL-Gauss (Farebrother et al. 2024).

    Args:
        logits: float[batch, atoms] of the actions taken; differentiable.
        target: float[batch, atoms], probabilities; not differentiable.
    """
    return -(target * logits.log_softmax(dim=1)).sum(dim=1)


def gaussian_histogram(returns: Tensor, support: Tensor, sigma: float) -> Tensor:
    """Spread each return over bins as a Gaussian around it (Farebrother et al. 2024, sec. 3.1).

    A bin's probability is the Gaussian's mass between its ends, over the mass within all bins.

    Args:
        returns: float[batch]; those outside the bins count as their ends.
        support: float[atoms], centres of the bins, evenly spaced and increasing.
        sigma: standard deviation of the Gaussian, in widths of a bin.

    Returns:
        float[batch, atoms]; the sum of each row is 1.
    """
    width = (support[-1] - support[0]) / (len(support) - 1)
    ends = torch.cat([support - width / 2, support[-1:] + width / 2])
    inside = returns.clamp(ends[0], ends[-1])[:, None]
    below = torch.special.ndtr((ends - inside) / (sigma * width))
    return below.diff(dim=1) / (below[:, -1:] - below[:, :1])


def quantile_losses(quantiles: Tensor, targets: Tensor, huber_delta: float) -> Tensor:
    """Compute the quantile Huber loss of each row, float[batch] (Dabney et al. 2018, eq. 9, 10).

    It is the mean over the target's values, summed over the quantiles.

    Args:
        quantiles: float[batch, atoms] of the actions taken, at (i + 1/2) / atoms; differentiable.
        targets: float[batch, k], equally likely values; not differentiable.
        huber_delta: error from which the loss is linear.
    """
    atoms = quantiles.shape[1]
    levels = (torch.arange(atoms, device=quantiles.device) + 0.5) / atoms
    ours, theirs = quantiles[:, :, None], targets[:, None, :]
    ours, theirs = torch.broadcast_tensors(ours, theirs)
    huber = functional.huber_loss(ours, theirs, reduction="none", delta=huber_delta)
    weight = (levels[None, :, None] - (theirs < ours).to(levels.dtype)).abs()
    return (weight * huber / huber_delta).mean(dim=2).sum(dim=1)


# ---- Munchausen ----


def log_policy(values: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    """Compute the logarithm of the softmax policy, float[batch, actions]; -inf where masked.

    Args:
        values: float[batch, actions].
        mask: bool[batch, actions], or None.
        temperature: weight of the entropy.
    """
    scaled = values / temperature
    if mask is not None:
        # Rows without a valid action stay finite; they are never bootstrapped from.
        scaled = scaled.masked_fill(~mask & mask.any(dim=1, keepdim=True), -torch.inf)
    return scaled.log_softmax(dim=1)


def munchausen_bonus(
    values: Tensor,
    mask: Tensor | None,
    actions: Tensor,
    *,
    alpha: float,
    temperature: float,
    clip: float,
) -> Tensor:
    """Compute the addition to the first reward, float[batch] (Vieillard et al. 2020, eq. 1).

    It is ``alpha x clip(temperature x log pi(a|s), clip, 0)`` with the target network's policy.

    Args:
        values: float[batch, actions] of the target network for the observation acted on.
        mask: bool[batch, actions] of that observation, or None.
        actions: int64[batch].
        alpha: scale of the bonus.
        temperature: temperature of the policy.
        clip: smallest value before scaling.
    """
    taken = select(log_policy(values, mask, temperature), actions)
    return alpha * (temperature * taken).clamp(clip, 0.0)


def soft_values(
    distribution: Tensor, values: Tensor, mask: Tensor | None, temperature: float
) -> Tensor:
    """Compute ``sum_a pi(a) (z(a) - temperature x log pi(a))``, float[batch, k].

    This is the soft value of the bootstrap observation (Vieillard et al. 2020, eq. 2), for each
    quantile. It is 0 where no action is valid.

    Args:
        distribution: float[batch, actions, k], values of the target network or their quantiles.
        values: float[batch, actions], expected values; pi is their softmax.
        mask: bool[batch, actions], or None.
        temperature: temperature of the policy.
    """
    log_pi = log_policy(values, mask, temperature)
    pi = log_pi.exp()
    # 0 x log 0 counts as 0.
    entropy = torch.where(pi > 0, -temperature * log_pi, 0.0)
    soft = (pi[:, :, None] * (distribution + entropy[:, :, None])).sum(dim=1)
    return soft if mask is None else torch.where(mask.any(dim=1)[:, None], soft, 0.0)
