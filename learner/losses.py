"""Losses as pure functions of tensors: (values, batch) -> (loss, priorities)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def masked_max(values: Tensor, mask: Tensor | None, by: Tensor | None = None) -> Tensor:
    """The value of the best valid action.

    Args:
        values: float[batch, actions].
        mask: bool[batch, actions], valid actions; None if all are.
        by: float[batch, actions] that chooses the action, if not ``values`` itself.

    Returns:
        float[batch]; 0 where no action is valid (such an observation ends an episode).
    """
    chooser = values if by is None else by
    if mask is not None:
        chooser = chooser.masked_fill(~mask, -torch.inf)
    best = chooser.argmax(dim=1, keepdim=True)
    chosen = values.gather(1, best)[:, 0]
    return chosen if mask is None else torch.where(mask.any(dim=1), chosen, 0.0)


def q_targets(
    n_step_return: Tensor,
    discount: Tensor,
    target_values: Tensor,
    online_values: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """Bootstrapped n-step targets, float[batch].

    With ``online_values`` the online network chooses the action and the target network values it
    (van Hasselt et al. 2016, double Q-learning); without, the target network does both.

    Args:
        n_step_return: float[batch].
        discount: float[batch], gamma^n x (not terminated).
        target_values: float[batch, actions] of the bootstrap observation.
        online_values: likewise, or None.
        mask: bool[batch, actions] of the bootstrap observation, or None.
    """
    return n_step_return + discount * masked_max(target_values, mask, by=online_values)


def td_loss(
    chosen: Tensor, targets: Tensor, importance_weight: Tensor, huber_delta: float
) -> tuple[Tensor, Tensor]:
    """Importance-weighted Huber loss (mean over the batch) and the new priorities.

    Args:
        chosen: float[batch], Q of the actions taken; differentiable.
        targets: float[batch]; not.
        importance_weight: float[batch].
        huber_delta: error from which the loss is linear.

    Returns:
        The loss, a scalar, and the absolute TD errors, float[batch].
    """
    losses = functional.huber_loss(chosen, targets, reduction="none", delta=huber_delta)
    return (importance_weight * losses).mean(), (targets - chosen).detach().abs()
