"""The choice of actions: the ladder in numbers, masks that hold, uniform exploration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actors.exploration import epsilon_greedy, epsilon_ladder, masked_values
from pdqn.networks import QNetwork
from pdqn.policy import action_values, greedy
from pdqn.specs import Observation


class Table(QNetwork):
    """A network whose action values are the observation."""

    def prepare(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return (observation["values"],)

    def forward(self, *prepared: Tensor) -> Tensor:
        return prepared[0]


def observation(values: object, mask: object | None = None) -> Observation:
    arrays: Observation = {"values": np.array(values, np.float32)}
    return arrays if mask is None else arrays | {"action_mask": np.array(mask, np.int8)}


def floats(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


class TestLadder:
    def test_three_environments_explore_as_computed_by_hand(self):
        # 0.4^1, 0.4^(1 + 7/2), 0.4^8
        np.testing.assert_allclose(epsilon_ladder(3), [0.4, 0.4**4.5, 0.00065536])

    def test_two_environments_stand_at_the_ends(self):
        np.testing.assert_allclose(epsilon_ladder(2, base=0.5, alpha=2.0), [0.5, 0.125])

    def test_a_single_environment_explores_with_the_base(self):
        np.testing.assert_array_equal(epsilon_ladder(1), [0.4])

    def test_without_alpha_all_explore_alike(self):
        np.testing.assert_array_equal(epsilon_ladder(4, 0.3, 0.0), [0.3] * 4)

    @pytest.mark.parametrize("num", [2, 8, 360])
    def test_it_descends_from_base_to_the_eighth_power_of_base(self, num):
        ladder = epsilon_ladder(num)
        assert len(ladder) == num
        assert (np.diff(ladder) < 0).all()
        assert ladder[0] == pytest.approx(0.4)
        assert ladder[-1] == pytest.approx(0.4**8)

    def test_base_0_never_explores_and_base_1_always(self):
        assert not epsilon_ladder(3, base=0.0).any()
        assert (epsilon_ladder(3, base=1.0) == 1).all()


class TestGreedy:
    def test_it_takes_the_best_action(self):
        assert greedy(Table(), observation([[1, 3, 2], [5, 4, 6]])).tolist() == [1, 2]

    def test_it_takes_the_best_valid_action(self):
        seen = observation([[1, 3, 2], [-5, 4, 6]], [[1, 0, 1], [1, 0, 0]])
        assert greedy(Table(), seen).tolist() == [2, 0]

    def test_values_of_invalid_actions_are_minus_infinity(self):
        values = action_values(Table(), observation([[1, 3, 2]], [[1, 0, 1]]))
        assert values.dtype == np.float32
        assert values.tolist() == [[1, -np.inf, 2]]

    def test_masks_may_be_bool(self):
        seen = {"values": floats(1, 3, 2), "action_mask": np.array([[True, False, True]])}
        assert greedy(Table(), seen).tolist() == [2]

    @settings(deadline=None, max_examples=50)
    @given(seed=st.integers(0, 2**32 - 1), epsilon=st.sampled_from([0.0, 0.5, 1.0]))
    def test_no_policy_ever_takes_an_invalid_action(self, seed, epsilon):
        rng = np.random.default_rng(seed)
        mask = rng.integers(0, 2, (8, 6))
        mask[np.arange(8), rng.integers(0, 6, 8)] = 1
        # Invalid actions have the highest values.
        seen = observation(rng.normal(size=(8, 6)) + 10 * (1 - mask), mask)
        values = action_values(Table(), seen)
        choice = epsilon_greedy(values, np.full(8, epsilon), rng)
        rows = np.arange(8)
        assert (mask[rows, greedy(Table(), seen)] == 1).all()
        assert (mask[rows, choice.actions] == 1).all()
        best = np.where(mask == 1, seen["values"], -np.inf).max(axis=1)
        np.testing.assert_array_equal(choice.values, best)
        np.testing.assert_array_equal(choice.chosen, seen["values"][rows, choice.actions])
        np.testing.assert_array_equal(masked_values(Table(), seen), best)


def test_a_batch_that_is_computed_in_pieces_has_the_values_of_each_observation():
    rows, size = 7, 1 << 18  # two observations of this size are a piece
    values = np.random.default_rng(0).normal(size=(rows, size)).astype(np.float32)
    mask = values > 0
    seen: list[int] = []

    class Pieces(Table):
        def forward(self, *prepared: Tensor) -> Tensor:
            seen.append(len(prepared[0]))
            return prepared[0]

    got = action_values(Pieces(), observation(values, mask))
    np.testing.assert_array_equal(got, np.where(mask, values, -np.inf))
    assert seen == [1, 2, 2, 2]


class TestEpsilonGreedy:
    def test_epsilon_0_never_explores(self):
        rng = np.random.default_rng(0)
        values = rng.normal(size=(1000, 5)).astype(np.float32)
        choice = epsilon_greedy(values, np.zeros(1000), rng)
        np.testing.assert_array_equal(choice.actions, values.argmax(axis=1))
        np.testing.assert_array_equal(choice.chosen, choice.values)

    def test_epsilon_1_explores_uniformly_over_valid_actions_only(self):
        rng = np.random.default_rng(0)
        values = np.repeat(floats(1, -np.inf, 5, -np.inf, 2), 6000, axis=0)
        choice = epsilon_greedy(values, np.ones(6000), rng)
        counts = Counter(choice.actions.tolist())
        assert counts.keys() == {0, 2, 4}
        # Six standard deviations of a binomial count are 219.
        assert all(abs(count - 2000) < 219 for count in counts.values())

    def test_epsilon_is_the_probability_of_exploring(self):
        rng = np.random.default_rng(0)
        values = np.repeat(floats(0, 1, 0, 0), 10_000, axis=0)
        choice = epsilon_greedy(values, np.full(10_000, 0.2), rng)
        # Exploration takes the best action in one of four cases; six standard deviations are 214.
        assert abs(np.count_nonzero(choice.actions != 1) - 1500) < 214

    def test_every_environment_has_its_own_epsilon(self):
        rng = np.random.default_rng(0)
        values = np.repeat(floats(0, 0, 9), 200, axis=0)
        epsilons = np.repeat([0.0, 1.0], 100)
        actions = epsilon_greedy(values, epsilons, rng).actions
        assert (actions[:100] == 2).all()
        assert (actions[100:] != 2).any()

    def test_what_it_reports_is_of_the_action_taken_and_of_the_best_one(self):
        values = floats(-1, -2, -np.inf)
        rng = np.random.default_rng(0)
        seen = set()
        for _ in range(40):
            choice = epsilon_greedy(values, np.ones(1), rng)
            assert choice.chosen[0] == values[0, choice.actions[0]]
            assert choice.values[0] == -1
            seen.add(int(choice.actions[0]))
        assert seen == {0, 1}

    def test_the_same_generator_makes_the_same_choices(self):
        values = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
        first, second = (
            epsilon_greedy(values, np.full(50, 0.5), np.random.default_rng(1)).actions
            for _ in range(2)
        )
        np.testing.assert_array_equal(first, second)

    def test_values_are_not_changed(self):
        values = floats(1, -np.inf, 5)
        before = values.copy()
        epsilon_greedy(values, np.ones(1), np.random.default_rng(0))
        np.testing.assert_array_equal(values, before)


class TestBoltzmann:
    def test_exploring_actions_are_drawn_by_the_softmax_of_their_values(self):
        values = np.repeat(floats(1.0, -np.inf, 1.0 + np.log(2), 1.0 - 0.5 * np.log(16)), 9000, 0)
        choice = epsilon_greedy(values, np.ones(9000), np.random.default_rng(0), temperature=0.5)
        counts = Counter(choice.actions.tolist())
        # Odds of 16, 64 and 1 of 81; six standard deviations of a binomial count are at most 240.
        assert counts.keys() == {0, 2, 3}
        wanted = {0: 9000 * 16 / 81, 2: 9000 * 64 / 81, 3: 9000 / 81}
        assert all(abs(counts[action] - count) < 240 for action, count in wanted.items())

    @pytest.mark.parametrize("temperature", [1e-30, 1e30])
    def test_extreme_temperatures_are_greedy_or_uniform(self, temperature):
        values = np.repeat(floats(-3e4, 2, -np.inf, 2.5), 600, axis=0)
        rng = np.random.default_rng(0)
        actions = epsilon_greedy(values, np.ones(600), rng, temperature=temperature).actions
        assert set(actions.tolist()) == ({3} if temperature < 1 else {0, 1, 3})

    def test_it_explores_no_more_often_than_epsilon_says(self):
        values = np.repeat(floats(0, 1e-3), 1000, axis=0)
        rng = np.random.default_rng(0)
        assert (epsilon_greedy(values, np.zeros(1000), rng, temperature=1.0).actions == 1).all()


class TestFinalObservations:
    def test_an_observation_without_any_valid_action_is_worth_0(self):
        seen = observation([[3, 4], [-3, -4]], [[0, 0], [0, 1]])
        np.testing.assert_array_equal(masked_values(Table(), seen), [0, -4])
        choice = epsilon_greedy(action_values(Table(), seen), np.zeros(2), np.random.default_rng(0))
        np.testing.assert_array_equal(choice.values, [0, -4])

    def test_without_a_mask_the_largest_value_counts(self):
        np.testing.assert_array_equal(masked_values(Table(), observation([[-3, -4]])), [-3])


def test_acting_leaves_no_gradients_behind():
    class Linear(QNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def prepare(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            return (observation["values"],)

        def forward(self, *prepared: Tensor) -> Tensor:
            return self.layer(prepared[0])

    network = Linear()
    assert action_values(network, observation([[1, 2, 3]])).shape == (1, 2)
    assert network.layer.weight.grad is None


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_a_network_that_has_diverged_still_explores(temperature: float | None) -> None:
    values = np.full((4, 3), np.nan, np.float32)
    values[:, 1] = -np.inf
    choice = epsilon_greedy(values, np.ones(4), np.random.default_rng(0), temperature=temperature)
    assert set(choice.actions.tolist()) <= {0, 2}
