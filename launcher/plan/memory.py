"""Estimates of the memory that each process of a run takes, and its part of the plan. Pure.

The memory of buffers is in ``launcher.plan.storage``; it is settled last, from what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdqn.config import Config, resolved
from pdqn.specs import EnvironmentSpec
from replay.samples import SampleLayout, SlotLayout, rows_of_request, slot_count
from replay.waiting import largest_batch_bytes, window_bytes

MB, GB = 10**6, 10**9

# An actor shares torch's pages with its forkserver; the activations of a convolutional policy are
# about this many times its input.
ACTOR_BYTES, ACTIVATIONS_PER_OBSERVATION = 80 * MB, 200
LEARNER_BYTES = {"cpu": 1 * GB, "cuda": 3 * GB}
REPLAY_BYTES, EVALUATOR_BYTES, LAUNCHER_BYTES = 300 * MB, 400 * MB, 300 * MB
# Copies of the network's parameters. The learner has two networks, Adam's two moments, gradients
# and a save. It also has the last message that it published, one in the making, and four that wait
# for a slow subscriber. An actor has its network, and messages that arrive or are decoded.
LEARNER_COPIES, ACTING_COPIES = 12, 4
# An actor makes a batch out of segments, and then its message out of the batch.
BATCHES_IN_THE_MAKING = 2
EVALUATED_AT_ONCE = 16  # episodes, as in actors.evaluation
# Share of the available memory for batches that wait in replay's sockets.
WAITING_MEMORY_SHARE = 0.02


@dataclass(frozen=True)
class Estimates:
    """The bytes that processes take, by the settings that are known.

    Attributes:
        config: the run's.
        spec: of its environment.
        parameter_bytes: size of the network's parameters.
    """

    config: Config
    spec: EnvironmentSpec
    parameter_bytes: int = 0

    @property
    def actor(self) -> int:
        """An actor, with its copies of unacknowledged batches."""
        making = BATCHES_IN_THE_MAKING * largest_batch_bytes(self.spec, self.config)
        unacknowledged = window_bytes(self.spec, self.config)
        envs = resolved(self.config.actor.envs_per_actor)
        return self._acting(ACTOR_BYTES, envs) + making + unacknowledged

    @property
    def evaluator(self) -> int:
        """The evaluator, which plays several episodes at once."""
        envs = min(EVALUATED_AT_ONCE, resolved(self.config.evaluation.episodes))
        playing = self._acting(ACTOR_BYTES, envs)
        return max(EVALUATOR_BYTES, playing)

    @property
    def learner(self) -> int:
        """The learner, without the SampleBatches that it shares with replay."""
        device = self.config.learner.device
        base = max(LEARNER_BYTES.values()) if device == "auto" else LEARNER_BYTES[device]
        return base + LEARNER_COPIES * self.parameter_bytes

    @property
    def waiting(self) -> int:
        """The batches of all actors that wait unread in the sockets of all replays together."""
        return max(1, resolved(self.config.actor.count)) * window_bytes(self.spec, self.config)

    @property
    def samples(self) -> int:
        """The learner's SampleBatches, in its own memory or in what it shares with replay."""
        config = self.config
        return SlotLayout(self.spec, rows_of_request(config, self.spec), slot_count(config)).nbytes

    @property
    def samples_on_their_way(self) -> int:
        """SampleBatches in the sockets of replay and learner, where they share no memory."""
        rows = rows_of_request(self.config, self.spec)
        return 2 * self.config.learner.prefetch * SampleLayout(self.spec, rows).nbytes

    @property
    def together(self) -> int:
        """All roles in one process, with the buffer."""
        buffer = int(self.config.replay.memory or 0)
        roles = self.actor + self.learner + self.evaluator + self.samples
        return roles + REPLAY_BYTES + LAUNCHER_BYTES + buffer

    def of_roles(self) -> dict[str, int]:
        """Return the bytes of one process of each role of a planned run, buffers included.

        All actors may send to one replay, and all samples may be where one process is.
        """
        replay = self.config.replay
        buffer = int(replay.memory or 0) // replay.shards
        sampled = self.samples + self.samples_on_their_way
        return {
            "actor": self.actor,
            "replay": REPLAY_BYTES + buffer + self.waiting + sampled,
            "learner": self.learner + sampled,
            "evaluator": self.evaluator,
        }

    def _acting(self, base_bytes: int, envs: int) -> int:
        seen = sum(field.stored_bytes * field.stack for field in self.spec.fields)
        activations = ACTIVATIONS_PER_OBSERVATION * seen * envs
        return base_bytes + activations + ACTING_COPIES * self.parameter_bytes


def window_for(config: Config, spec: EnvironmentSpec, available_bytes: int) -> int:
    """Choose the bytes that an actor may have unacknowledged: less where memory is scarce.

    Args:
        config: with the number of actors, and without the window's bytes.
        spec: of the environment.
        available_bytes: memory of the machine that can be taken.
    """
    share = int(WAITING_MEMORY_SHARE * available_bytes / max(1, resolved(config.actor.count)))
    return max(1, min(window_bytes(spec, config), share))
