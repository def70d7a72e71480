"""Exploration by a ladder of epsilons, with an optional expert to follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdqn.config import ActorConfig
from pdqn.networks import QNetwork
from pdqn.policy import action_values
from pdqn.schedules import linear
from pdqn.specs import Observation


def epsilon_ladder(num: int, base: float = 0.4, alpha: float = 7.0) -> NDArray[np.float64]:
    """Compute the epsilons of ``num`` environments: base^(1 + alpha i / (num - 1)).

    Horgan et al. 2018 (Ape-X), section 4.1. A single environment explores with ``base``.
    """
    position = np.arange(num) / max(1, num - 1)
    return base ** (1.0 + alpha * position)


def epsilon_at(actor: ActorConfig, learner_steps: int) -> float:
    """Return the epsilon of all environments, where it decays, at a learner step."""
    steps = actor.epsilon_decay_steps
    return linear(actor.epsilon_first, actor.epsilon_final, steps, learner_steps)


@dataclass(frozen=True)
class Choice:
    """A policy's choice for a batch.

    Attributes:
        actions: int64[batch].
        chosen: float32[batch], Q of these actions.
        values: float32[batch], largest Q over valid actions.
    """

    actions: NDArray[np.int64]
    chosen: NDArray[np.float32]
    values: NDArray[np.float32]


def guidance_at(actor: ActorConfig, learner_steps: int) -> float:
    """Return the share of exploratory actions that follow suggestions, at a learner step."""
    steps = actor.guidance_decay_steps
    return linear(actor.guidance, actor.guidance_final, steps, learner_steps)


@dataclass(frozen=True)
class Guide:
    """An expert's suggestions, and how often exploration follows them.

    Attributes:
        suggested: int64[batch]; -1 where there is no suggestion.
        share: share of exploratory actions that follow the suggestion.
    """

    suggested: NDArray[np.int64]
    share: float


def epsilon_greedy(
    values: NDArray[np.float32],
    epsilons: NDArray[np.float64],
    rng: np.random.Generator,
    guide: Guide | None = None,
    temperature: float | None = None,
) -> Choice:
    """Choose greedily, or explore with probability epsilon.

    Exploration draws uniformly among the valid actions, or by the softmax of their values. If there
    is a guide, its share of explorations takes the suggested action, provided that it is valid.

    Args:
        values: float32[batch, actions], -inf for invalid actions.
        epsilons: float64[batch].
        rng: source of randomness.
        guide: an expert, if there is one.
        temperature: temperature of the softmax, in units of the values; None explores uniformly.
    """
    every = np.arange(len(values))
    best = values.argmax(axis=1)
    actions = best.copy()
    explorers = np.flatnonzero(rng.random(len(values)) < epsilons)
    if len(explorers):
        tried = values[explorers]
        explored = _explored(tried, rng, temperature)
        if guide is not None:
            suggested = guide.suggested[explorers]
            follows = (rng.random(len(explorers)) < guide.share) & _may(tried, suggested)
            explored = np.where(follows, suggested, explored)
        actions[explorers] = explored
    # A final observation without a valid action is worth nothing and is never bootstrapped from.
    largest = np.nan_to_num(values[every, best], neginf=0.0)
    return Choice(actions, values[every, actions], largest)


def _explored(
    values: NDArray[np.float32], rng: np.random.Generator, temperature: float | None
) -> NDArray[np.int64]:
    """Draw a valid action of each row, uniformly or with probability ~ exp(value / temperature)."""
    valid = values != -np.inf
    odds = valid.astype(np.float64)
    if temperature is not None:
        scaled = values.astype(np.float64) / temperature
        with np.errstate(invalid="ignore", over="ignore"):
            by_value = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        # Rows of a network that has diverged stay uniform.
        usable = np.isfinite(by_value.sum(axis=1))
        odds[usable] = by_value[usable]
    ends = odds.cumsum(axis=1)
    # The first action whose end is beyond the point; rounding must not carry it to the last end.
    points = np.minimum(rng.random(len(values)) * ends[:, -1], np.nextafter(ends[:, -1], 0.0))
    return (ends > points[:, None]).argmax(axis=1)


def _may(values: NDArray[np.float32], actions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell of one action for each row whether it exists and is valid."""
    exists = (actions >= 0) & (actions < values.shape[1])
    of_row = values[np.arange(len(values)), np.where(exists, actions, 0)]
    return exists & (of_row != -np.inf)


def masked_values(network: QNetwork, observation: Observation) -> NDArray[Any]:
    """Compute the largest Q over valid actions, float32[batch]; 0 where no action is valid."""
    return np.nan_to_num(action_values(network, observation).max(axis=1), neginf=0.0)
