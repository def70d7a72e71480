"""Distributions of returns, Munchausen targets and noisy layers, in numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.losses import (
    categorical_losses,
    gaussian_histogram,
    log_policy,
    munchausen_bonus,
    projected,
    quantile_losses,
    soft_values,
)
from pdqn.config import NetworkConfig
from pdqn.errors import UsageError
from pdqn.networks import build_network, resample_noise, set_noise
from pdqn.networks.heads import Head, expected
from pdqn.networks.noisy import NoisyLinear
from pdqn.specs import EnvironmentSpec, FieldSpec

SPEC = EnvironmentSpec("test/Vector-v0", (FieldSpec("observation", (4,), "float32"),), 3)
OBSERVATION = {"observation": torch.arange(8.0).reshape(2, 4)}


def floats(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def small(**changes: object) -> NetworkConfig:
    return NetworkConfig(hidden=8, layers=1, **changes)  # type: ignore[arg-type]


class TestProjection:
    def test_a_return_between_two_atoms_is_shared_by_nearness(self):
        support = torch.tensor([0.0, 1.0, 2.0])
        shares = projected(floats([0.25]), floats([1.0]), support)
        assert shares.tolist() == [[0.75, 0.25, 0.0]]

    def test_returns_beyond_the_support_count_as_its_ends(self):
        support = torch.tensor([-1.0, 0.0, 1.0])
        shares = projected(floats([-7.0, 9.0]), floats([0.3, 0.7]), support)
        assert shares[0].tolist() == pytest.approx([0.3, 0.0, 0.7])

    def test_a_shifted_and_shrunk_support_as_computed_by_hand(self):
        # 1 + 0.5 z for z in 0, 1, 2 is 1, 1.5, 2: two atoms share the middle one equally.
        support = torch.tensor([0.0, 1.0, 2.0])
        shares = projected(1.0 + 0.5 * support[None], floats([0.2, 0.4, 0.4]), support)
        assert shares[0].tolist() == pytest.approx([0.0, 0.4, 0.6])

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.integers(2, 9))
    def test_it_equals_the_papers_loop_and_keeps_the_sum(self, seed: int, atoms: int):
        rng = np.random.default_rng(seed)
        support = np.linspace(-2.0, 3.0, atoms)
        returns = rng.normal(0, 3, (4, atoms))
        probabilities = rng.dirichlet(np.ones(atoms), 4)
        result = projected(*(torch.from_numpy(a) for a in (returns, probabilities, support)))
        np.testing.assert_allclose(
            result, naive_projection(returns, probabilities, support), atol=1e-12
        )
        np.testing.assert_allclose(result.sum(1), 1.0)


def naive_projection(returns: np.ndarray, weights: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Project by algorithm 1 of Bellemare et al. (2017), one number at a time."""
    low, high = support[0], support[-1]
    spacing = (high - low) / (len(support) - 1)
    result = np.zeros_like(weights)
    for row in range(len(returns)):
        for j in range(len(support)):
            position = (min(high, max(low, returns[row, j])) - low) / spacing
            below, above = math.floor(position), math.ceil(position)
            result[row, below] += weights[row, j] * (1.0 if above == below else above - position)
            if above != below:
                result[row, above] += weights[row, j] * (position - below)
    return result


class TestHistogram:
    """Bins from 0 to 3, sigma 0.75 of a width, by tables of the normal distribution."""

    centres = torch.tensor([0.5, 1.5, 2.5])

    def test_a_return_in_the_middle_as_computed_by_hand(self):
        # The ends lie 2 and 2/3 sigma from 1.5: Phi is 0.02275, 0.25249, 0.74751 and 0.97725.
        found = gaussian_histogram(torch.tensor([1.5]), self.centres, 0.75)
        side, middle = 0.22974 / 0.95450, 0.49502 / 0.95450
        assert found[0].tolist() == pytest.approx([side, middle, side], abs=1e-4)

    def test_a_return_beyond_the_bins_counts_as_their_end(self):
        # From 3, the ends lie 4, 8/3, 4/3 and 0 sigma below: Phi is 0.00003, 0.00383, 0.09121, 0.5.
        found = gaussian_histogram(torch.tensor([7.0, -9.0]), self.centres, 0.75)
        wanted = [0.0038 / 0.49997, 0.08738 / 0.49997, 0.40879 / 0.49997]
        assert found[0].tolist() == pytest.approx(wanted, abs=1e-4)
        assert found[1].tolist() == pytest.approx(wanted[::-1], abs=1e-4)

    def test_the_mean_of_a_histogram_is_its_return(self):
        support = torch.linspace(-9.9, 9.9, 100)  # bins of 0.2
        returns = torch.linspace(-9, 9, 61)
        found = gaussian_histogram(returns, support, 0.75)
        torch.testing.assert_close(found.sum(dim=1), torch.ones(61))
        torch.testing.assert_close(found @ support, returns, atol=2e-4, rtol=0)

    def test_its_bins_divide_the_range_of_returns(self):
        config = small(distribution="hl_gauss", atoms=4, value_min=-2.0, value_max=6.0)
        network = build_network(SPEC, config)
        assert network.support is not None
        assert network.support.tolist() == [-1.0, 1.0, 3.0, 5.0]

    def test_logits_that_learn_a_return_expect_it(self):
        logits = torch.zeros(1, 3, requires_grad=True)
        target = gaussian_histogram(torch.tensor([1.2]), self.centres, 0.75)
        optimizer = torch.optim.Adam([logits], lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            categorical_losses(logits, target).sum().backward()
            optimizer.step()
        torch.testing.assert_close(logits.softmax(dim=1), target, atol=1e-3, rtol=0)


def test_the_cross_entropy_of_equal_logits_is_the_logarithm_of_their_number():
    losses = categorical_losses(torch.zeros(2, 4), floats([1.0, 0, 0, 0], [0.25] * 4))
    assert losses.tolist() == pytest.approx([math.log(4)] * 2)


def test_the_quantile_loss_as_computed_by_hand():
    # Quantiles 0 and 2 at levels 1/4 and 3/4, one target 1, delta 1. The errors 1 and -1 cost 0.5
    # each, weighted by 1/4 below the target and by 1 - 3/4 above it.
    losses = quantile_losses(floats([0.0, 2.0]), floats([1.0]), 1.0)
    assert losses.tolist() == pytest.approx([0.25 * 0.5 + 0.25 * 0.5])
    # Far from the target the loss is linear: 9.5 for an error of 10, weighted by the level 1/2.
    assert quantile_losses(floats([0.0]), floats([10.0]), 1.0).tolist() == pytest.approx([4.75])


def test_quantiles_that_are_the_targets_own_settle_there():
    targets = torch.from_numpy(np.random.default_rng(0).normal(3.0, 2.0, 4000)).float()[None]
    quantiles = torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.Adam([quantiles], lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        quantile_losses(quantiles, targets, 0.01).sum().backward()
        optimizer.step()
    wanted = torch.quantile(targets[0], torch.tensor([0.125, 0.375, 0.625, 0.875]))
    torch.testing.assert_close(quantiles[0].detach(), wanted, atol=0.15, rtol=0)


class TestMunchausen:
    def test_the_bonus_is_the_scaled_and_clipped_log_policy(self):
        # Two equal actions: log pi = -log 2; 0.9 x 0.5 x -0.693 = -0.312.
        bonus = munchausen_bonus(
            floats([1.0, 1.0]), None, torch.tensor([0]), alpha=0.9, temperature=0.5, clip=-1.0
        )
        assert bonus.tolist() == pytest.approx([-0.9 * 0.5 * math.log(2)])
        # A hopeless action: 0.5 x log pi is about -10, clipped to -1.
        bonus = munchausen_bonus(
            floats([10.0, 0.0]), None, torch.tensor([1]), alpha=0.9, temperature=0.5, clip=-1.0
        )
        assert bonus.tolist() == pytest.approx([-0.9])

    def test_the_soft_value_of_equal_actions_is_theirs_and_the_entropy(self):
        values = floats([2.0, 2.0, 2.0])
        soft = soft_values(values[:, :, None], values, None, temperature=0.5)
        assert soft.tolist() == [pytest.approx([2.0 + 0.5 * math.log(3)])]

    def test_a_masked_action_has_no_part_in_it(self):
        values = floats([2.0, 99.0, 2.0])
        mask = torch.tensor([[True, False, True]])
        soft = soft_values(values[:, :, None], values, mask, temperature=0.5)
        assert soft.tolist() == [pytest.approx([2.0 + 0.5 * math.log(2)])]
        assert log_policy(values, mask, 0.5)[0, 1] == -math.inf

    def test_without_a_valid_action_there_is_nothing_and_all_is_finite(self):
        values = floats([2.0, 99.0])
        mask = torch.tensor([[False, False]])
        assert soft_values(values[:, :, None], values, mask, 0.5).tolist() == [[0.0]]

    def test_a_low_temperature_is_the_best_value(self):
        values = floats([1.0, 3.0, 2.0])
        quantiles = values[:, :, None] + floats([-1.0, 1.0])[:, None]
        assert soft_values(quantiles, values, None, 1e-3).tolist() == [pytest.approx([2.0, 4.0])]


class TestHeads:
    def test_the_mean_of_a_categorical_distribution_as_computed_by_hand(self):
        logits = torch.log(floats([0.1, 0.2, 0.7]))[:, None]
        assert expected(logits, torch.tensor([-1.0, 0.0, 2.0])).tolist() == [
            [pytest.approx(-0.1 + 1.4)]
        ]

    def test_the_mean_of_quantiles_is_their_mean(self):
        assert expected(floats([1.0, 2.0, 6.0])[:, None], None).tolist() == [[3.0]]

    @pytest.mark.parametrize("kind", ["categorical", "quantile", "hl_gauss"])
    @pytest.mark.parametrize("dueling", [True, False])
    def test_values_are_the_means_of_the_distribution(self, kind: str, dueling: bool):
        network = build_network(SPEC, small(distribution=kind, atoms=7, dueling=dueling))
        prepared = network.prepare(OBSERVATION)
        distribution = network.distribution(*prepared)
        assert distribution.shape == (2, 3, 7)
        torch.testing.assert_close(network(*prepared), expected(distribution, network.support))

    def test_means_are_as_exact_under_autocast(self):
        torch.manual_seed(0)
        logits, support = torch.randn(4, 3, 51), torch.linspace(-10, 10, 51)
        with torch.autocast("cpu", torch.bfloat16):
            found = expected(logits, support)
        torch.testing.assert_close(found, expected(logits, support), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("dueling", [True, False])
    def test_large_values_are_as_exact_under_autocast(self, dueling: bool):
        torch.manual_seed(0)
        head = Head(8, 3, small(dueling=dueling))
        common = head.value if dueling else head.advantage
        assert isinstance(common, torch.nn.Linear)
        features = torch.randn(16, 8)
        with torch.no_grad():
            common.bias.add_(100.0)
            exact = head(features)
            with torch.autocast("cpu", torch.bfloat16):
                found = head(features)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact, atol=1e-4, rtol=0)

    def test_a_support_that_does_not_rise_is_refused(self):
        config = small(distribution="categorical", value_min=1.0, value_max=1.0)
        with pytest.raises(UsageError, match=r"value_min = 1 and value_max = 1"):
            build_network(SPEC, config)


class TestNoise:
    def test_a_noisy_layer_computes_the_papers_formula(self):
        layer = NoisyLinear(3, 2, sigma=0.5)
        layer.resample(torch.Generator().manual_seed(0))
        inputs = torch.randn(4, 3)
        drawn = torch.Generator().manual_seed(0)
        e_in, e_out = (torch.randn(n, generator=drawn) for n in (3, 2))
        f_in, f_out = (e.sign() * e.abs().sqrt() for e in (e_in, e_out))
        weight = layer.weight + layer.weight_sigma * f_out[:, None] * f_in[None, :]
        bias = layer.bias + layer.bias_sigma * f_out
        torch.testing.assert_close(layer(inputs), inputs @ weight.T + bias)
        assert layer.weight_sigma.flatten().tolist() == pytest.approx([0.5 / math.sqrt(3)] * 6)

    def test_noise_stays_until_it_is_drawn_again(self):
        network = build_network(SPEC, small(noisy=True))
        prepared = network.prepare(OBSERVATION)
        resample_noise(network)
        first = network(*prepared)
        torch.testing.assert_close(network(*prepared), first, rtol=0, atol=0)
        resample_noise(network)
        assert not torch.equal(network(*prepared), first)

    def test_without_noise_the_means_alone_compute(self):
        network = build_network(SPEC, small(noisy=True))
        prepared = network.prepare(OBSERVATION)
        set_noise(network, False)
        quiet = network(*prepared)
        resample_noise(network)
        torch.testing.assert_close(network(*prepared), quiet, rtol=0, atol=0)

    def test_noise_is_no_parameter_and_is_not_published(self):
        network = build_network(SPEC, small(noisy=True))
        names = list(network.state_dict())
        assert not any("noise" in name for name in names)
        assert any("sigma" in name for name in names)
