"""The bytes of TransitionBatches that may wait between an actor and replay. Pure.

An actor has at most ``actor.window`` batches unacknowledged, and at most ``actor.window_bytes`` of
them. A single batch may always go, so an actor with tiny windows still sends. It keeps a copy of
each unacknowledged batch, and the batch itself may lie unread in replay's socket.
"""

from __future__ import annotations

from pdqn.config import Config, resolved
from pdqn.specs import EnvironmentSpec
from pdqn.wire import (
    MAX_TRANSITION_BYTES,
    MAX_TRANSITIONS,
    TRANSITION_COLUMNS,
)

# Frames are compressed in blocks of at least this many bytes. Smaller ones would compress worse;
# larger ones would cost replay more to decode one frame.
BLOCK_BYTES = 64 << 10
_SYNC_WINDOWS = 4
_COLUMN_BYTES = sum(dtype.itemsize for dtype in TRANSITION_COLUMNS.values())
_HISTORY_BYTES = 1
# Names, numbers and descriptions of columns; the map of a block.
_HEADER_BYTES, _BLOCK_HEADER_BYTES = 2048, 96
# A body that compression makes larger grows by less than this.
_GROWTH_SHARE, _GROWTH_BYTES = 1 / 256, 128


def segment_transitions(config: Config) -> int:
    """Return the most transitions of a segment: a full one may end an episode later."""
    return resolved(config.actor.segment_length) + config.actor.lookahead


def segment_frames(spec: EnvironmentSpec, config: Config) -> int:
    """Return the most frames of a segment: earlier ones of a stack, and one after the last step."""
    return segment_transitions(config) + spec.frame_stack


def most_frames(spec: EnvironmentSpec, window_bytes: int | None) -> int:
    """Return the number of frames that a batch does not exceed, unless its only segment does.

    Args:
        spec: spec of the run's environment.
        window_bytes: bytes that the actor may have unacknowledged; None for any number.
    """
    # Half, because the rest of the message also needs room.
    room_bytes = min(MAX_TRANSITION_BYTES // 2, window_bytes or MAX_TRANSITION_BYTES)
    return room_bytes // spec.observation_bytes


def largest_batch_bytes(spec: EnvironmentSpec, config: Config) -> int:
    """Return the size of the largest TransitionBatch that an actor of this run can send.

    Args:
        spec: spec of the run's environment.
        config: configuration of the run, with the sizes of segments and batches settled.
    """
    gathered = resolved(config.actor.batch_transitions) - 1
    transitions = min(gathered + segment_transitions(config), MAX_TRANSITIONS)
    last = segment_frames(spec, config)
    frames = min(
        int(gathered * (1 + _most_extra_frames(spec, config))) + last,
        max(last, most_frames(spec, config.actor.window_bytes)),
    )
    frame_bytes = frames * spec.observation_bytes
    raw_bytes = frame_bytes + frames * _HISTORY_BYTES + transitions * _COLUMN_BYTES
    bodies = min(frames, frame_bytes // BLOCK_BYTES + 1) + 1  # one holds the columns
    overhead_bytes = _HEADER_BYTES + bodies * (_BLOCK_HEADER_BYTES + _GROWTH_BYTES)
    return min(MAX_TRANSITION_BYTES, int(raw_bytes * (1 + _GROWTH_SHARE)) + overhead_bytes)


def window_batches(config: Config) -> int:
    """Return the most TransitionBatches that one actor can have unacknowledged.

    An acknowledgement of a journal that is synced waits for the disk, in which time an actor goes
    on.
    """
    return config.actor.window * (_SYNC_WINDOWS if config.replay.journal == "sync" else 1)


def window_bytes(spec: EnvironmentSpec, config: Config) -> int:
    """Return the most bytes that one actor can have unacknowledged.

    Args:
        spec: spec of the run's environment.
        config: configuration of the run, with the sizes of segments and batches settled; without
            ``window_bytes``, the number of batches alone bounds them.
    """
    actor, largest = config.actor, largest_batch_bytes(spec, config)
    whole = window_batches(config) * largest
    return whole if actor.window_bytes is None else max(largest, min(actor.window_bytes, whole))


def shared_window(window_bytes: int, planned: int, present: int) -> int:
    """Return the bytes that an actor may have unacknowledged where more than planned take part.

    Args:
        window_bytes: bytes that each of the planned actors may have.
        planned: number of actors for which memory was planned.
        present: number of actors in the run.
    """
    planned = max(1, planned)
    return max(1, window_bytes * planned // max(planned, present))


def _most_extra_frames(spec: EnvironmentSpec, config: Config) -> float:
    """Return the most frames for each transition of a segment that are beyond its transitions.

    A segment that is cut in an episode has n more and those of a stack. One that ends with its
    episode has the frame after it. What is left of an episode at the end of a run may be short and
    have the frames of a stack.
    """
    n_step, earlier = config.actor.lookahead, spec.frame_stack - 1
    cut = (earlier + n_step) / resolved(config.actor.segment_length)
    return max(1.0, cut, (earlier + 1) / max(1, n_step - 1))
