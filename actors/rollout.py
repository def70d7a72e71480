"""Environments, policy and recorder of one actor: everything but sockets and clocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from actors.environments.finite import LARGEST, Fault
from actors.environments.states import StateError
from actors.environments.vector import Transition, VectorEnvironment
from actors.exploration import (
    Guide,
    epsilon_at,
    epsilon_greedy,
    epsilon_ladder,
    guidance_at,
    masked_values,
)
from actors.segments import Segment, SegmentRecorder, recorder_for
from pdqn import plain, seeds
from pdqn.checks import MAX_NAME
from pdqn.config import ActorConfig, Config, resolved
from pdqn.messages import Episode
from pdqn.networks import QNetwork, resample_noise
from pdqn.policy import action_values
from pdqn.specs import EnvironmentSpec
from pdqn.stacking import FrameStacker
from pdqn.telemetry import Telemetry

_MOST_SEEDS_TOLD = 500  # a note is of limited length, and all seeds follow from the first


@dataclass(frozen=True)
class Identity:
    """Identity of an actor, from which all of its randomness follows."""

    index: int
    incarnation: int


class Rollout:
    """Environments, policy and recorder of one actor: everything but sockets and clocks.

    Args:
        config: configuration of the run.
        spec: spec of its environment.
        network: network on whose values the actor acts.
        identity: identity of this actor.
        pause: function that waits for a number of seconds before an environment is rebuilt; by
            default it sleeps.
    """

    def __init__(
        self,
        config: Config,
        spec: EnvironmentSpec,
        network: QNetwork,
        identity: Identity,
        pause: Callable[[float], None] | None = None,
    ) -> None:
        actor = config.actor
        self._num_envs = resolved(actor.envs_per_actor)
        self._config = actor
        self._spec = spec
        self._network = network
        key = (config.run.seed, "actor", identity.index, identity.incarnation)
        self._rng = seeds.generator(*key)
        self._temperature = actor.temperature if actor.exploration == "boltzmann" else None
        self._noisy = config.network.noisy
        self._noise = torch.Generator().manual_seed(seeds.torch_seed(*key))
        self._env = VectorEnvironment(
            spec,
            config.run.env_args,
            self._num_envs,
            failures_allowed=actor.environment_failures - 1,
            pause=pause,
            # Returns, sums of this many rewards, must fit into float32.
            largest_reward=math.inf if actor.reward_clip else LARGEST / (2 * _most_rewards(actor)),
        )
        self._recorder = self._new_recorder()
        self._stacker = FrameStacker(spec, self._num_envs)
        first = identity.index * self._num_envs
        self._seeds = seeds.environment_seeds(
            config.run.seed, first, self._num_envs, identity.incarnation
        )
        self._begin()
        self._scores = np.zeros(self._num_envs)
        self._lengths = np.zeros(self._num_envs, np.int64)
        self._failures = 0
        self.epsilons = np.zeros(self._num_envs)
        self.guidance = guidance_at(actor, 0)
        self._slot = (-1, 0)
        self.set_slot(identity.index, identity.index + 1)
        self.set_learner_steps(0)

    def set_slot(self, slot: int, slots: int) -> None:
        """Take share number ``slot`` of a ladder over the environments of ``slots`` actors."""
        # The noise of its layers explores, or all environments have the same epsilon.
        if self._noisy or self._config.epsilon == "decay":
            return
        slots = max(slots, slot + 1)
        # Actors ask ten times a second, and the ladder grows with their number.
        if (slot, slots) == self._slot:
            return
        self._slot = (slot, slots)
        ladder = epsilon_ladder(
            slots * self._num_envs, self._config.epsilon_base, self._config.epsilon_alpha
        )
        # Strided, so every actor has both greedy and exploring environments.
        self.epsilons = ladder[slot::slots]

    def set_learner_steps(self, learner_steps: int) -> None:
        """Set the guidance, and the epsilon if it decays, for these learner steps."""
        self.guidance = guidance_at(self._config, learner_steps)
        if self._config.epsilon == "decay" and not self._noisy:
            self.epsilons = np.full(self._num_envs, epsilon_at(self._config, learner_steps))

    def note_seeds(self, telemetry: Telemetry) -> None:
        """Note the first seeds of the environments."""
        listed = " ".join(map(str, self._seeds[:_MOST_SEEDS_TOLD]))
        more = " ..." if self._num_envs > _MOST_SEEDS_TOLD else ""
        telemetry.note("seeds", f"environments: {listed}{more}")

    def report(self, telemetry: Telemetry) -> None:
        """Report how this actor explores."""
        telemetry.gauge("epsilon", float(self.epsilons.mean()))
        telemetry.gauge("epsilon_min", float(self.epsilons.min()))
        telemetry.gauge("epsilon_max", float(self.epsilons.max()))
        telemetry.gauge("guidance", self.guidance)

    def step(self, telemetry: Telemetry) -> list[Segment]:
        """Step all environments once; return the segments that this completes.

        Raises:
            EnvironmentFailedError: an environment failed too often in a row.
        """
        if self._noisy:
            resample_noise(self._network, self._noise)
        values = action_values(self._network, self._observation)
        choice = epsilon_greedy(values, self.epsilons, self._rng, self._guide(), self._temperature)
        packed = self._spec.pack(self._frames)
        self._recorder.record(packed, choice.actions, choice.chosen, choice.values)
        transition = self._env.step(choice.actions)
        self._recorder.drop(transition.failed)
        self._account(transition, telemetry)
        segments = self._finish(transition)
        self._frames = transition.observation
        began = transition.began | transition.spoilt if transition.faults else transition.began
        self._observation = self._stacker.push(self._frames, began)
        return segments

    def _guide(self) -> Guide | None:
        suggested = self._env.suggested
        return Guide(suggested, self.guidance) if suggested is not None and self.guidance else None

    def get_state(self) -> dict[str, Any]:
        """Return all that later steps depend on, but for the parameters, as plain data.

        Environments that cannot be saved are left out; ``unsaved`` then has the reason.
        """
        unsaved, environments = "", None
        try:
            environments = self._env.get_state()
        except StateError as error:
            unsaved = str(error)
        return {
            "environments": environments,
            "unsaved": unsaved,
            "frames": self._frames,
            "stacks": self._stacker.get_state(),
            "recorder": self._recorder.get_state(),
            "scores": self._scores,
            "lengths": self._lengths,
            "seeds": self._seeds,
            "rng": plain.generator_state(self._rng),
            "noise": self._noise.get_state().numpy(),
        }

    def set_state(self, state: Mapping[str, Any]) -> tuple[str, list[Segment]]:
        """Continue from ``get_state`` of an actor with the same settings.

        Returns:
            The reason why new episodes begin, and what was recorded of those before them; an empty
            text and nothing if the episodes go on.

        Raises:
            ValueError: the actor had other settings.
        """
        plain.check_alike(self._frames, state["frames"], "frames")
        plain.check_alike(self._stacker.get_state(), state["stacks"], "stacks")
        recorder = self._new_recorder()
        recorder.set_state(state["recorder"])
        plain.set_generator_state(self._rng, state["rng"])
        self._noise.set_state(torch.from_numpy(state["noise"]))
        if reason := state["unsaved"] or self._continue(state["environments"]):
            return reason, recorder.flush()
        self._recorder = recorder
        self._frames = state["frames"]
        self._observation = self._stacker.set_state(state["stacks"], self._frames)
        self._scores, self._lengths = state["scores"], state["lengths"]
        self._seeds = state["seeds"]
        self._failures = self._env.failures
        return "", []

    def _continue(self, environments: Mapping[str, Any]) -> str:
        """Continue the episodes of other environments; return why that is not possible."""
        try:
            self._env.set_state(environments)
        except StateError as error:
            self._begin()
            return str(error)
        return ""

    def _begin(self) -> None:
        """Begin an episode in every environment."""
        self._frames = self._env.reset(self._seeds)
        self._observation = self._stacker.reset(self._frames)

    def _new_recorder(self) -> SegmentRecorder:
        return recorder_for(self._config, self._spec, self._num_envs)

    def flush(self) -> list[Segment]:
        """Return the recorded segments of unfinished episodes."""
        return self._recorder.flush()

    def close(self) -> None:
        """Close the environments."""
        self._env.close()

    def _finish(self, transition: Transition) -> list[Segment]:
        final = transition.final_observation
        values = np.empty(0, np.float32)
        if final:
            ended = np.flatnonzero(transition.truncated & ~transition.terminated)
            values = masked_values(self._network, self._stacker.final(final, ended))
        clip = self._config.reward_clip or 0.0
        rewards = transition.rewards
        return self._recorder.finish(
            np.clip(rewards, -clip, clip) if clip else rewards,
            transition.terminated,
            transition.truncated,
            self._spec.pack(final) if final else {},
            values,
            transition.spoilt if transition.faults else None,
        )

    def _account(self, transition: Transition, telemetry: Telemetry) -> None:
        telemetry.count("environment_steps", self._num_envs)
        failures = self._env.failures
        telemetry.count("environment_failures", failures - self._failures)
        self._failures = failures
        if transition.metrics_dropped:
            telemetry.count("figures_dropped", transition.metrics_dropped)
        self._scores += transition.rewards
        self._lengths += 1
        ended = transition.terminated | transition.truncated
        for env in np.flatnonzero(ended).tolist():
            headline = float(transition.headline[env])
            known = headline if np.isfinite(headline) else None
            score, length = float(self._scores[env]), int(self._lengths[env])
            telemetry.episode(Episode(score, length, known, transition.metrics.get(env)))
        for env, fault in transition.faults.items():
            _count(fault, telemetry)
            self._scores[env] = np.nan  # an episode that goes on after such a step has no score
        self._scores[transition.began] = 0.0
        self._lengths[transition.began] = 0


def _most_rewards(actor: ActorConfig) -> int:
    """Return the most rewards that one return sums up."""
    if actor.returns == "lambda":
        return resolved(actor.segment_length) + actor.lookahead
    return actor.n_step


def _count(fault: Fault, telemetry: Telemetry) -> None:
    """Count a step that is left out, by its kind, and note the first of each kind."""
    telemetry.count("steps_not_finite")
    counter = f"not_finite/{fault.kind}"[:MAX_NAME]
    telemetry.count(counter)
    if telemetry.counters[counter] == 1:
        telemetry.note(
            "not_finite",
            f"an environment's {fault.kind} has the value {fault.value:g}: that step is left out, "
            "and what is recorded of its episode ends before it; the first of its kind",
        )
