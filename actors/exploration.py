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
    for i in np.flatnonzero(rng.random(len(values)) < epsilons):
        valid = values[i] != -np.inf
        if guide is not None and rng.random() < guide.share and _may(valid, guide.suggested[i]):
            actions[i] = guide.suggested[i]
        else:
            actions[i] = _explored(values[i], np.flatnonzero(valid), rng, temperature)
    # A final observation without a valid action is worth nothing and is never bootstrapped from.
    largest = np.nan_to_num(values[every, best], neginf=0.0)
    return Choice(actions, values[every, actions], largest)


def _explored(
    values: NDArray[np.float32],
    valid: NDArray[np.intp],
    rng: np.random.Generator,
    temperature: float | None,
) -> int:
    """Draw a valid action, uniformly or with probability ~ exp(value / temperature)."""
    if temperature is None:
        return int(rng.choice(valid))
    scaled = values[valid].astype(np.float64) / temperature
    odds = np.exp(scaled - scaled.max()).cumsum()
    if not np.isfinite(odds[-1]):  # the network has diverged
        return int(rng.choice(valid))
    drawn = np.searchsorted(odds, rng.random() * odds[-1], side="right")
    return int(valid[min(drawn, len(valid) - 1)])  # rounding may carry it beyond the last


def _may(valid: NDArray[np.bool_], action: int) -> bool:
    return 0 <= action < len(valid) and bool(valid[action])


def masked_values(network: QNetwork, observation: Observation) -> NDArray[Any]:
    """Compute the largest Q over valid actions, float32[batch]; 0 where no action is valid."""
    return np.nan_to_num(action_values(network, observation).max(axis=1), neginf=0.0)
