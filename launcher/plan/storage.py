"""The memory that the buffers of a run take. Pure."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Literal

from pdqn.config import Config, resolved
from pdqn.specs import EnvironmentSpec
from replay.sizes import compressed_bytes, dense_bytes

Store = Literal["dense", "compressed"]
STORES: tuple[Store, ...] = ("dense", "compressed")
# What a trained policy sees compresses worse than what a random one sees. The plan counts more
# bytes than were measured, and gives the buffer up to twice as many where memory has room.
COMPRESSED_SAFETY, COMPRESSED_HEADROOM = 1.25, 2
CAPACITY_LIMIT = 10**10  # no machine has memory for more
# Lambda returns grow old: the buffer has what all environments record in two segments' time.
FRESH_SEGMENTS, FRESH_CAPACITY_MIN = 2, 8192


@dataclass(frozen=True)
class Storage:
    """The sizes that decide how much memory the buffers of a run take.

    Attributes:
        spec: the environment's.
        shards: replays that share the capacity evenly.
        block_bytes_per_transition: bytes of compressed frames for each transition.
    """

    spec: EnvironmentSpec
    shards: int
    block_bytes_per_transition: float = 0.0

    def bytes_of(self, store: Store, capacity: int) -> int:
        """Return the bytes that ``capacity`` transitions take with this store, in all shards."""
        each = -(-capacity // self.shards)
        if store == "dense":
            return self.shards * dense_bytes(self.spec, each)
        block_bytes = self.block_bytes_per_transition
        return self.shards * compressed_bytes(self.spec, each, COMPRESSED_SAFETY * block_bytes)

    def largest(self, store: Store, room_bytes: int) -> int:
        """Return how many transitions ``room_bytes`` hold with this store."""

        def size_of(capacity: int) -> int:
            return self.bytes_of(store, capacity)

        return bisect.bisect_right(range(1, CAPACITY_LIMIT + 1), room_bytes, key=size_of)

    def better(self, room_bytes: int) -> Store:
        """Choose the store that holds more; on a tie dense, which costs no time to compress."""
        dense, compressed = (self.largest(store, room_bytes) for store in STORES)
        return "dense" if dense >= compressed else "compressed"


def wanted_capacity(config: Config, most: int) -> int:
    """Return the transitions that the buffers should hold, if memory has room for them.

    Args:
        config: the run's, with the sizes of its actors.
        most: transitions that are enough for returns that do not grow old.
    """
    actor, replay = config.actor, config.replay
    if replay.capacity is not None:
        return replay.capacity
    if actor.returns != "lambda" or replay.max_age:
        return most
    environments = max(1, actor.count or 0) * resolved(actor.envs_per_actor)
    together = FRESH_SEGMENTS * environments * resolved(actor.segment_length)
    return min(most, max(FRESH_CAPACITY_MIN, together))
