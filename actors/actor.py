"""The actor: selects, steps, records, maybe sends, maybe refreshes its parameters."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zmq

from actors.environments import randomness
from actors.environments.factory import Transition, VectorEnvironment
from actors.follower import ParameterFollower
from actors.policy import (
    Guide,
    epsilon_greedy,
    epsilon_ladder,
    guidance_at,
    masked_values,
)
from actors.segments import Segment, SegmentRecorder, join_segments
from pdqn import seeds, wire
from pdqn.config import Config, resolved
from pdqn.link import CoordinatorLink, Welcome, role
from pdqn.networks import QNetwork, build_network, resample_noise
from pdqn.policy import action_values
from pdqn.process import keep_little_free_memory
from pdqn.specs import EnvironmentSpec
from pdqn.stacking import FrameStacker
from pdqn.telemetry import Episode, Telemetry
from pdqn.transport import Network
from replay.sender import TransitionSender, shard_of

_REFRESH_SECONDS = 0.1
_FLUSH_SECONDS = 2.0
_NICENESS = 5
_MOST_SEEDS_TOLD = 500  # a note is of limited length, and each follows from the first


@dataclass(frozen=True)
class Identity:
    """Which actor this is; all of its randomness follows from it."""

    index: int
    incarnation: int


class Rollout:
    """Environments, policy and recorder of one actor: everything but sockets and clocks.

    Args:
        config: of the run.
        spec: of its environment.
        network: whose values it acts on.
        identity: which actor this is.
        pause: waits for so many seconds before an environment is built anew; by default it sleeps.
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
        )
        self._recorder = SegmentRecorder(
            spec,
            self._num_envs,
            n_step=actor.n_step,
            discount=resolved(actor.discount),
            segment_length=resolved(actor.segment_length),
        )
        self._stacker = FrameStacker(spec, self._num_envs)
        first = identity.index * self._num_envs
        self._seeds = seeds.environment_seeds(
            config.run.seed, first, self._num_envs, identity.incarnation
        )
        self._frames = self._env.reset(self._seeds)
        self._observation = self._stacker.reset(self._frames)
        self._scores = np.zeros(self._num_envs)
        self._lengths = np.zeros(self._num_envs, np.int64)
        self._failures = 0
        self.epsilons = np.zeros(self._num_envs)
        self.guidance = guidance_at(actor, 0)
        self.set_slot(identity.index, identity.index + 1)

    def set_slot(self, slot: int, slots: int) -> None:
        """Take a share of a ladder over the environments of ``slots`` actors, the ``slot``-th."""
        if self._noisy:
            return  # its layers' noise explores
        slots = max(slots, slot + 1)
        ladder = epsilon_ladder(
            slots * self._num_envs, self._config.epsilon_base, self._config.epsilon_alpha
        )
        # Strided, so that every actor has both greedy and exploring environments.
        self.epsilons = ladder[slot::slots]

    def set_learner_steps(self, learner_steps: int) -> None:
        """Take the guidance of this moment of the learner's."""
        self.guidance = guidance_at(self._config, learner_steps)

    def note_seeds(self, telemetry: Telemetry) -> None:
        """Have the seeds that its environments began with written down."""
        listed = " ".join(map(str, self._seeds[:_MOST_SEEDS_TOLD]))
        more = " ..." if self._num_envs > _MOST_SEEDS_TOLD else ""
        telemetry.note("seeds", f"environments: {listed}{more}")

    def report(self, telemetry: Telemetry) -> None:
        """Tell how this actor explores."""
        telemetry.gauge("epsilon", float(self.epsilons.mean()))
        telemetry.gauge("epsilon_min", float(self.epsilons.min()))
        telemetry.gauge("epsilon_max", float(self.epsilons.max()))
        telemetry.gauge("guidance", self.guidance)

    def step(self, telemetry: Telemetry) -> list[Segment]:
        """Step all environments once; the segments that this completed.

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
        began = transition.terminated | transition.truncated | transition.failed
        self._observation = self._stacker.push(self._frames, began)
        return segments

    def _guide(self) -> Guide | None:
        suggested = self._env.suggested
        return Guide(suggested, self.guidance) if suggested is not None and self.guidance else None

    def flush(self) -> list[Segment]:
        """What is recorded of unfinished episodes."""
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
        )

    def _account(self, transition: Transition, telemetry: Telemetry) -> None:
        telemetry.count("environment_steps", self._num_envs)
        failures = self._env.failures
        telemetry.count("environment_failures", failures - self._failures)
        self._failures = failures
        self._scores += transition.rewards
        self._lengths += 1
        ended = transition.terminated | transition.truncated
        for env in np.flatnonzero(ended).tolist():
            headline = float(transition.headline[env])
            known = headline if np.isfinite(headline) else None
            telemetry.episode(Episode(float(self._scores[env]), int(self._lengths[env]), known))
        began = ended | transition.failed
        self._scores[began] = 0.0
        self._lengths[began] = 0


class Shipper:
    """Gathers segments and sends them as TransitionBatches to a shard of replay."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        link: CoordinatorLink,
        welcome: Welcome,
    ) -> None:
        self._enough = resolved(welcome.config.actor.batch_transitions)
        self._most_seconds = welcome.config.actor.send_seconds
        # Half, since the rest of the message needs room, too.
        self._most_frames = wire.MAX_TRANSITION_BYTES // 2 // welcome.spec.observation_bytes
        self._link = link
        self._sender = TransitionSender(
            context, welcome.index, welcome.incarnation, welcome.config.actor.window
        )
        self._shard: int | None = None
        self._welcome = welcome
        self._segments: list[Segment] = []
        self._gathered = 0
        self._frames = 0
        self._oldest = 0.0
        self._parameter_version = 0  # of the oldest segment gathered
        self._patience_ends: float | None = None
        self._waiting_since = 0.0

    def add(self, segments: list[Segment], parameter_version: int) -> None:
        """Take segments; send when there are enough, or when they have waited long enough."""
        for segment in segments:
            self._make_room(segment)
            if not self._segments:
                self._oldest, self._parameter_version = time.monotonic(), parameter_version
            self._segments.append(segment)
            self._gathered += segment.count
            self._frames += segment.frame_count
            # One by one: environments in step with each other finish all at once.
            if self._gathered >= self._enough:
                self.send()
        if self._segments and time.monotonic() - self._oldest > self._most_seconds:
            self.send()

    def send(self) -> None:
        """Send what was gathered; waits for replay, and reports meanwhile."""
        if not self._segments:
            return
        columns, blocks = join_segments(self._segments, self._welcome.spec)
        batch = wire.TransitionBatch(
            self._welcome.run,
            self._welcome.index,
            self._welcome.incarnation,
            self._sender.next_sequence,
            self._parameter_version,
            columns,
            blocks,
        )
        self._segments, self._gathered, self._frames = [], 0, 0
        data = wire.encode_transitions(batch)
        telemetry = self._link.telemetry
        self._waiting_since = time.monotonic()
        self._finish_elsewhere()
        # Also where nothing has to be waited for: one whose key was revoked gets nothing more.
        self._follow_shards()
        sent = self._sender.send(data, self._while_waiting)
        self._count_wait()
        telemetry.count("transitions_sent" if sent else "transitions_unsent", batch.count)
        telemetry.count("bytes_sent", len(data) if sent else 0)
        telemetry.activity = ""

    def finish(self) -> None:
        """Send the rest, and wait a little for the last acknowledgements."""
        self.send()
        self._waiting_since = time.monotonic()
        self._sender.flush(self._while_waiting)
        self._sender.close()

    def _make_room(self, segment: Segment) -> None:
        """Send what was gathered if the segment would make it more than a message may hold."""
        transitions, frames = self._gathered + segment.count, self._frames + segment.frame_count
        if transitions > wire.MAX_TRANSITIONS or frames > self._most_frames:
            self.send()

    def _while_waiting(self) -> bool:
        """Keep the line alive and follow replay; False when there is nobody to wait for."""
        self._link.telemetry.activity = "waits for replay"
        # Meanwhile, too: who waits for good must be seen to wait.
        self._count_wait()
        self._link.poll()
        self._follow_shards()
        return not self._out_of_patience()

    def _count_wait(self) -> None:
        now = time.monotonic()
        self._link.telemetry.count("wait_seconds", now - self._waiting_since)
        self._waiting_since = now

    def _follow_shards(self) -> None:
        """Send to the wanted shard from now on, or stay where something is still on its way.

        Sent to another shard, what is unacknowledged would be stored twice.
        """
        live = self._live_shards()
        stay = self._shard in live and self._sender.unacknowledged > 0
        shard = self._shard if stay else self._wanted_shard(live)
        if any(map(self._link.pulse.is_revoked, self._sender.addresses)):
            self._sender.close()
        if shard is not None:
            self._shard = shard
            self._sender.connect(*live[shard])

    def _finish_elsewhere(self) -> None:
        """Once this actor's own shard is back, or a first one is there: be done here before."""
        wanted = self._wanted_shard(self._live_shards())
        if wanted is not None and wanted != self._shard:
            self._sender.flush(self._while_waiting)

    def _wanted_shard(self, live: Mapping[int, tuple[str, str]]) -> int | None:
        return shard_of(self._welcome.index, self._welcome.config.replay.shards, live)

    def _live_shards(self) -> dict[int, tuple[str, str]]:
        """Where each shard that is alive takes transitions, and where it acknowledges them."""
        transitions = self._link.pulse.shards("transitions")
        acknowledgements = self._link.pulse.shards("acknowledgements")
        both = transitions.keys() & acknowledgements.keys()
        return {shard: (transitions[shard], acknowledgements[shard]) for shard in both}

    def _out_of_patience(self) -> bool:
        """Whether the run has been stopping for long enough without room at replay."""
        if not self._link.stopping:
            return False
        now = time.monotonic()
        if self._patience_ends is None:
            self._patience_ends = now + _FLUSH_SECONDS
        return now >= self._patience_ends


def run_actor(
    address: str,
    index: int | None = None,
    log_path: Path | None = None,
    network: Network | None = None,
) -> None:
    """One actor process, from joining to leaving."""
    torch.set_num_threads(1)
    # Where processes outnumber cores, those that everybody waits for go first.
    os.nice(_NICENESS)
    keep_little_free_memory()
    with role("actor", address, index, log_path, network) as (context, link, welcome):
        act(context, link, welcome)


def act(context: zmq.Context[zmq.Socket[bytes]], link: CoordinatorLink, welcome: Welcome) -> None:
    """Act until told to stop; then ship what is recorded."""
    network = build_network(welcome.spec, welcome.config.network)
    follower = ParameterFollower(context, link, welcome.run, network)
    identity = Identity(welcome.index, welcome.incarnation)
    randomness.seed(welcome.config.run.seed, "actor", welcome.index, welcome.incarnation)
    rollout = Rollout(welcome.config, welcome.spec, network, identity, link.wait)
    rollout.note_seeds(link.telemetry)
    shipper = Shipper(context, link, welcome)
    exhausted = False
    while not link.stopping:
        if follower.refresh():
            rollout.set_slot(link.pulse.actor_slot, link.pulse.actor_slots)
            rollout.set_learner_steps(follower.parameter_version or 0)
            rollout.report(link.telemetry)
        if link.exhausted and not exhausted:
            # At once: the run has come to its end, or there is more to do.
            link.report()
        exhausted = link.exhausted
        if follower.parameter_version is None or link.pulse.command == "hold" or exhausted:
            link.telemetry.activity = "held"
            # What was gathered before a pause does not wait for its end.
            shipper.add([], follower.parameter_version or 0)
            link.poll(_REFRESH_SECONDS)
            continue
        shipper.add(rollout.step(link.telemetry), follower.parameter_version)
    shipper.add(rollout.flush(), follower.parameter_version or 0)
    shipper.finish()
    follower.close()
    rollout.close()
