"""Exploration of several actors: by independent noise, or by shares of one ladder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from actors import process
from actors.environments import randomness
from actors.environments.describe import describe_environment
from actors.rollout import Identity, Rollout
from pdqn.layers import build
from pdqn.messages import Pulse, Welcome
from pdqn.networks import build_network
from pdqn.telemetry import Telemetry

ACTORS, ENVIRONMENTS = 4, 3
# Worked from the paper's formula: 0.4 ^ (1 + 7 i / 11).
LADDER = [0.4 ** (1 + 7 * i / 11) for i in range(ACTORS * ENVIRONMENTS)]


@contextmanager
def rollouts_of(
    noisy: bool = False, actors: int = ACTORS, **settings: Any
) -> Iterator[list[Rollout]]:
    """Build actors that start with the same network, like those of a run."""
    actor = {"envs_per_actor": ENVIRONMENTS, "discount": 0.9, "segment_length": 8, **settings}
    network = {"noisy": noisy, "hidden": 8, "layers": 1}
    layer = {"run": {"env": "CartPole-v1"}, "actor": actor, "network": network}
    config = build(("test", layer))
    spec = describe_environment(config.run.env, {}, 1)
    with ExitStack() as stack:
        rollouts = []
        for index in range(actors):
            torch.manual_seed(0)
            net = build_network(spec, config.network)
            rollouts.append(Rollout(config, spec, net, Identity(index, 0)))
            stack.callback(rollouts[-1].close)
        yield rollouts


def test_every_step_of_every_noisy_actor_draws_noise_of_its_own_and_no_epsilon_is_added():
    drawn, telemetry = [], Telemetry()
    with rollouts_of(noisy=True, actors=2) as rollouts:
        for step in range(3):
            for slot, rollout in enumerate(rollouts):
                rollout.step(telemetry)
                rollout.set_slot(slot, 2 + step)
                assert rollout.epsilons.tolist() == [0.0] * ENVIRONMENTS
                drawn.append([noise.clone() for noise in rollout._network.buffers()])
    for layer in zip(*drawn, strict=True):
        assert len({tuple(noise.tolist()) for noise in layer}) == 6


def test_an_epsilon_that_decays_is_the_same_everywhere_and_falls_with_learner_steps():
    decay = {"epsilon": "decay", "epsilon_first": 0.9, "epsilon_final": 0.1}
    with rollouts_of(actors=2, epsilon_decay_steps=100, **decay) as rollouts:
        for slot, rollout in enumerate(rollouts):
            telemetry = Telemetry()
            told = []
            for steps in (0, 50, 100, 10_000):
                rollout.set_slot(slot, 2)
                rollout.set_learner_steps(steps)
                rollout.report(telemetry)
                told.append(telemetry.report().gauges["epsilon"])
                assert len(set(rollout.epsilons.tolist())) == 1
            assert told == pytest.approx([0.9, 0.5, 0.1, 0.1])


def test_an_epsilon_that_decays_is_in_force_before_the_first_learner_step():
    with rollouts_of(actors=1, epsilon="decay") as (rollout,):
        assert rollout.epsilons.tolist() == [1.0] * ENVIRONMENTS


def test_the_shares_of_all_actors_are_one_ladder_and_each_has_of_both_ends():
    with rollouts_of() as rollouts:
        for slot, rollout in enumerate(rollouts):
            rollout.set_slot(slot, ACTORS)
            before = rollout.epsilons
            rollout.set_slot(slot, ACTORS)
            assert rollout.epsilons is before, "computed again, which grows with the actors"
        shares = [rollout.epsilons.tolist() for rollout in rollouts]
    assert sorted(np.concatenate(shares), reverse=True) == pytest.approx(LADDER)
    for share in shares:
        assert max(share) >= LADDER[ACTORS - 1] * 0.999, "one of the four that explore most"
        assert min(share) <= LADDER[-ACTORS] * 1.001, "one of the four that explore least"


def test_an_actor_that_is_not_yet_counted_makes_room_for_itself():
    with rollouts_of() as rollouts:
        # The last of four, although it knows only itself and hears of fewer.
        wanted = pytest.approx(LADDER[3::4])
        assert rollouts[3].epsilons.tolist() == wanted
        rollouts[3].set_slot(3, 1)
        assert rollouts[3].epsilons.tolist() == wanted


class Told:
    """Everything that an actor talks to: it gets parameters, and then the run ends."""

    def __init__(self) -> None:
        self.pulse = Pulse("hold", actor_slot=2, actor_slots=ACTORS)
        self.telemetry, self.parameter_version = Telemetry(), 500
        self.stopping = self.exhausted = False

    def refresh(self) -> bool:
        return True

    def poll(self, timeout_seconds: float) -> None:
        self.stopping = True

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def test_with_new_parameters_an_actor_learns_its_place_and_how_far_the_learner_is(
    monkeypatch: pytest.MonkeyPatch,
):
    settings = {"envs_per_actor": ENVIRONMENTS, "discount": 0.9, "segment_length": 8}
    guidance = {"guidance": 0.5, "guidance_final": 0.1, "guidance_decay_steps": 1000}
    layer = {"run": {"env": "CartPole-v1"}, "actor": {**settings, **guidance}}
    config, told, made = build(("test", layer)), Told(), list[Rollout]()

    def make(*arguments: Any) -> Rollout:
        made.append(Rollout(*arguments))
        return made[0]

    for name, stand_in in (
        ("ParameterFollower", lambda *_: told), ("Shipper", lambda *_: told), ("Rollout", make)
    ):  # fmt: skip
        monkeypatch.setattr(process, name, stand_in)
    link: Any = told
    spec = describe_environment("CartPole-v1", {})
    with randomness.kept():
        process.act(link, link, Welcome("r", 0, 0, config, spec, "", ""))
    assert made[0].guidance == pytest.approx(0.3)
    assert made[0].epsilons.tolist() == pytest.approx(LADDER[2::ACTORS])
