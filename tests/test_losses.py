"""Targets and losses against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learner.losses import hard_values, huber_losses


def masked_max(values: Tensor, mask: Tensor | None, by: Tensor | None = None) -> Tensor:
    return hard_values(values[:, :, None], values if by is None else by, mask)[:, 0]


def q_targets(
    n_step_return: Tensor,
    discount: Tensor,
    target_values: Tensor,
    online_values: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    return n_step_return + discount * masked_max(target_values, mask, by=online_values)


def td_loss(
    chosen: Tensor, targets: Tensor, importance_weight: Tensor, huber_delta: float
) -> Tensor:
    return (importance_weight * huber_losses(chosen, targets, huber_delta)).mean()


def floats(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def test_the_best_value_is_the_largest_one_that_the_mask_permits():
    values = floats([1.0, 5.0, 3.0], [-4.0, -2.0, -9.0])
    mask = torch.tensor([[True, False, True], [True, False, True]])
    assert masked_max(values, None).tolist() == [5.0, -2.0]
    assert masked_max(values, mask).tolist() == [3.0, -4.0]


def test_where_every_action_is_masked_there_is_nothing_to_bootstrap_from():
    values = floats([1.0, 5.0], [1.0, 5.0])
    mask = torch.tensor([[False, False], [True, True]])
    assert masked_max(values, mask).tolist() == [0.0, 5.0]


def test_the_online_network_chooses_and_the_target_network_values():
    # The online network prefers action 2; the target network gives it 7, although its best is 30.
    targets = q_targets(
        n_step_return=torch.tensor([1.0]),
        discount=torch.tensor([0.5]),
        target_values=floats([10.0, 30.0, 7.0]),
        online_values=floats([0.0, 1.0, 2.0]),
        mask=None,
    )
    assert targets.tolist() == [1.0 + 0.5 * 7.0]


def test_without_double_learning_the_target_network_does_both():
    targets = q_targets(
        torch.tensor([1.0]), torch.tensor([0.5]), floats([10.0, 30.0, 7.0]), None, None
    )
    assert targets.tolist() == [1.0 + 0.5 * 30.0]


def test_the_online_network_chooses_among_valid_actions_only():
    # The online network's favourite, 2, is masked. It chooses action 0, with target value 10.
    targets = q_targets(
        torch.tensor([1.0]),
        torch.tensor([0.5]),
        floats([10.0, 30.0, 7.0]),
        floats([1.0, 0.0, 2.0]),
        torch.tensor([[True, True, False]]),
    )
    assert targets.tolist() == [1.0 + 0.5 * 10.0]


def test_a_masked_action_is_not_chosen_however_low_the_valid_ones_are():
    targets = q_targets(
        torch.tensor([0.0]),
        torch.tensor([1.0]),
        floats([-1e30, 5.0]),
        floats([-1e30, 5.0]),
        torch.tensor([[True, False]]),
    )
    assert targets.tolist() == pytest.approx([-1e30])


def test_a_terminated_episode_is_worth_its_return_and_nothing_more():
    targets = q_targets(
        torch.tensor([1.0, 1.0]),
        torch.tensor([0.0, 0.25]),
        floats([100.0, 200.0], [100.0, 200.0]),
        floats([1.0, 0.0], [1.0, 0.0]),
        None,
    )
    assert targets.tolist() == [1.0, 1.0 + 0.25 * 100.0]


def test_a_bootstrap_observation_without_valid_actions_adds_nothing():
    targets = q_targets(
        torch.tensor([3.0]),
        torch.tensor([0.9]),
        floats([100.0, 200.0]),
        floats([1.0, 0.0]),
        torch.tensor([[False, False]]),
    )
    assert targets.tolist() == [3.0]


def test_the_loss_is_quadratic_up_to_delta_and_linear_beyond():
    # Errors 0.5 and -3 with delta 1: 0.5 * 0.5^2 = 0.125 and 1 * (3 - 0.5) = 2.5.
    chosen = torch.tensor([1.5, 2.0])
    targets = torch.tensor([2.0, -1.0])
    loss = td_loss(chosen, targets, torch.ones(2), huber_delta=1.0)
    assert loss.item() == pytest.approx((0.125 + 2.5) / 2)


def test_delta_moves_the_border_between_the_two():
    # Error 3 with delta 2: 2 * (3 - 1) = 4; with delta 10: 0.5 * 9 = 4.5.
    chosen, targets = torch.tensor([0.0]), torch.tensor([3.0])
    for delta, expected in ((2.0, 4.0), (10.0, 4.5)):
        loss = td_loss(chosen, targets, torch.ones(1), huber_delta=delta)
        assert loss.item() == pytest.approx(expected)


def test_importance_weights_scale_each_transition_before_the_mean():
    # 1 * 2.5 and 0.2 * 0.125, over a batch of two.
    chosen, targets = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 0.5])
    loss = td_loss(chosen, targets, torch.tensor([1.0, 0.2]), huber_delta=1.0)
    assert loss.item() == pytest.approx((2.5 + 0.025) / 2)


def test_the_gradient_of_a_transition_is_its_clipped_error_times_its_weight():
    # d/dq of the mean over two: errors q - t are -3 (clipped to -1) and -0.5.
    chosen = torch.tensor([0.0, 0.0], requires_grad=True)
    loss = td_loss(chosen, torch.tensor([3.0, 0.5]), torch.tensor([1.0, 0.2]), huber_delta=1.0)
    loss.backward()
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-1.0 / 2, -0.5 * 0.2 / 2])
