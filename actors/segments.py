"""Segments of environment steps: frames shipped once, and transitions that point into them.

Pure: no sockets, no clocks. The n-step return of the transition at step t is ``R = sum_{j<k}
gamma^j r_{t+j}``. Here ``k = n``, or less at the end of the recording. The transition bootstraps
with ``gamma^k`` from the frame at ``t + k``, and with 0 if the episode terminated there.

A lambda return (``actors.lambda_returns``) has its bootstraps in it already: such a transition has
the discount 0, and needs no later frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.lambda_returns import lambda_returns
from actors.n_step import Targets, n_step_targets
from pdqn.config import ActorConfig, resolved
from pdqn.plain import check_alike
from pdqn.specs import EnvironmentSpec, Observation
from pdqn.wire import HISTORY, FrameBlock, compress_block
from replay.waiting import BLOCK_BYTES

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive frames of one episode, and transitions that point into them.

    Attributes:
        columns: [count] each of ``wire.TRANSITION_COLUMNS``, with indices from the segment's first
            frame. Where frames are stacked, also ``history``, uint8[frames].
        frames: stored_dtype[frames, *stored_shape] of each field.
    """

    columns: Columns
    frames: Observation

    @property
    def count(self) -> int:
        """Number of transitions."""
        return len(self.columns["action"])

    @property
    def frame_count(self) -> int:
        """Number of frames."""
        return len(next(iter(self.frames.values())))


class SegmentRecorder:
    """A recorder of E environments, step by step, that cuts segments out of each.

    Call ``record`` before a step and ``finish`` after it. A segment is cut where an episode ends,
    and after ``segment_length`` transitions. In the middle of an episode, its last ``n_step``
    frames are also the first of the next segment, so no transition bootstraps early. Where K frames
    are stacked, up to K - 1 earlier frames precede them. Every stack is then complete within its
    segment.

    Lambda returns reach to the end of their segment, whose last bootstrap is the value of the frame
    after it. They repeat no frames but those of stacks.

    All environments share one ring of steps, long enough for all steps that are not cut yet.

    Args:
        spec: spec of the environment.
        num_envs: E.
        n_step: n of n-step returns; 1 with lambda returns, for the value of the frame after them.
        discount: gamma.
        segment_length: transitions after which a segment is cut.
        trace_decay: lambda of lambda returns; None makes n-step returns.
    """

    _STATE = ("frames", "actions", "rewards", "chosen", "values", "step", "began", "first")

    def __init__(
        self,
        spec: EnvironmentSpec,
        num_envs: int,
        *,
        n_step: int,
        discount: float,
        segment_length: int,
        trace_decay: float | None = None,
    ) -> None:
        if trace_decay is not None and n_step != 1:
            raise ValueError(f"lambda returns look 1 step ahead, not {n_step}")
        self._n_step = n_step
        self._discount = discount
        self._trace_decay = trace_decay
        self._length = segment_length
        self._context = spec.frame_stack - 1
        self._rows = rows = self._context + segment_length + n_step
        self._frames = {
            field.name: np.zeros((rows, num_envs, *field.stored_shape), field.stored_dtype)
            for field in spec.fields
        }
        self._actions = np.zeros((rows, num_envs), np.int32)
        self._rewards = np.zeros((rows, num_envs), np.float64)
        self._chosen = np.zeros((rows, num_envs), np.float32)  # Q of the action taken
        self._values = np.zeros((rows, num_envs), np.float32)  # max of Q over valid actions
        self._step = 0  # the next step to be recorded
        self._began = np.zeros(num_envs, np.int64)  # step at which each episode began
        self._first = np.zeros(num_envs, np.int64)  # first step that is in no segment yet

    def record(
        self,
        packed: Observation,
        actions: NDArray[Any],
        chosen: NDArray[np.float32],
        values: NDArray[np.float32],
    ) -> None:
        """Record the data known before the environments step.

        Args:
            packed: observations in recorded form, [num_envs, *stored_shape] each.
            actions: [num_envs].
            chosen: [num_envs], Q of these actions.
            values: [num_envs], largest Q over valid actions.
        """
        row = self._step % self._rows
        for name, frames in self._frames.items():
            frames[row] = packed[name]
        self._actions[row] = actions
        self._chosen[row] = chosen
        self._values[row] = values

    def finish(
        self,
        rewards: NDArray[np.float64],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        final_packed: Observation,
        final_values: NDArray[np.float32],
        spoilt: NDArray[np.bool_] | None = None,
    ) -> list[Segment]:
        """Record the result of the step; return the segments that it completes.

        Args:
            rewards: float64[num_envs].
            terminated: bool[num_envs].
            truncated: bool[num_envs].
            final_packed: recorded final observations [k, ...] of the k environments that were
                truncated and not terminated, in order.
            final_values: [k], largest Q of these observations.
            spoilt: bool[num_envs], steps that nothing can be learned from. Their segments end with
                the frame before the step; those that follow begin after it.
        """
        self._rewards[self._step % self._rows] = rewards
        self._step += 1
        segments = [] if spoilt is None else self._break_off(np.flatnonzero(spoilt).tolist())
        finals = iter(range(len(final_values)))
        for env in np.flatnonzero(terminated | truncated).tolist():
            if terminated[env]:
                segments.append(self._cut(env, self._step, terminated=True))
            else:
                row = next(finals)
                final = {name: values[row : row + 1] for name, values in final_packed.items()}
                segments.append(self._cut_truncated(env, final, final_values[row : row + 1]))
            self._began[env] = self._first[env] = self._step
        full = self._step - self._length - self._n_step
        cut = np.flatnonzero(self._first == full).tolist()
        return segments + [self._cut(env, full + self._length, terminated=False) for env in cut]

    def _break_off(self, spoilt: list[int]) -> list[Segment]:
        """Return the segments up to the frame before the last step, and begin after that step."""
        known = self._step - 1
        segments = [
            self._cut(env, known, terminated=False) for env in spoilt if self._first[env] < known
        ]
        self._began[spoilt] = self._first[spoilt] = self._step
        return segments

    def drop(self, failed: NDArray[np.bool_]) -> None:
        """Forget the unfinished episodes of some environments; call this before ``finish``.

        Args:
            failed: bool[num_envs], environments in which the step after this one begins an episode.
        """
        self._began[failed] = self._first[failed] = self._step + 1

    def flush(self) -> list[Segment]:
        """Return the segments of all unfinished episodes, up to their last recorded frame.

        They lack that frame's own transition; recording may continue with it.
        """
        known = self._step - 1
        unfinished = np.flatnonzero(self._first < known).tolist()
        return [self._cut(env, known, terminated=False) for env in unfinished]

    def get_state(self) -> dict[str, Any]:
        """Return all that is recorded, as plain data."""
        return {name: getattr(self, f"_{name}") for name in self._STATE}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from ``get_state`` of a recorder with the same arguments.

        Raises:
            ValueError: it had others.
        """
        for name in self._STATE:
            check_alike(getattr(self, f"_{name}"), state[name], name)
        for name in self._STATE:
            setattr(self, f"_{name}", state[name])

    def _cut(self, env: int, stop: int, *, terminated: bool) -> Segment:
        """Cut the transitions up to the step ``stop``, with the frames that they need."""
        # Unless the episode ended, the last frame is only bootstrapped from: the reward that
        # followed it belongs to the next segment.
        horizon = self._step if terminated else self._step - 1
        start = self._start_of_frames(env)
        last = self._step if self._trace_decay is None else stop
        frames = {name: self._read(a, env, start, last) for name, a in self._frames.items()}
        values = self._read(self._values, env, int(self._first[env]), self._step)
        return self._segment(env, frames, values, stop, horizon, terminated=terminated)

    def _cut_truncated(
        self, env: int, final: Observation, final_value: NDArray[np.float32]
    ) -> Segment:
        """Cut all transitions, with the frame after the last one if they bootstrap from it."""
        start = self._start_of_frames(env)
        frames = {name: self._read(a, env, start, self._step) for name, a in self._frames.items()}
        if self._trace_decay is None:
            frames = {name: np.concatenate([own, final[name]]) for name, own in frames.items()}
        first = int(self._first[env])
        values = np.append(self._read(self._values, env, first, self._step), final_value)
        return self._segment(env, frames, values, self._step, self._step, terminated=False)

    def _segment(
        self,
        env: int,
        frames: Observation,
        values: NDArray[np.float32],
        stop: int,
        horizon: int,
        *,
        terminated: bool,
    ) -> Segment:
        """Make a segment of the transitions that are in no segment yet, before the step ``stop``.

        Args:
            env: index of the environment.
            frames: frames of the segment.
            values: largest Q of the frames from the first transition on.
            stop: the step after the last transition.
            horizon: the step up to which rewards count.
            terminated: whether the last of these rewards ended the episode.
        """
        first = int(self._first[env])
        context = first - self._start_of_frames(env)
        rewards = self._read(self._rewards, env, first, horizon)
        count = stop - first
        target = self._targets(rewards, values, count, terminated=terminated)
        expected = target.returns + target.discounts * values[target.bootstrap]
        columns: Columns = {
            "action": self._read(self._actions, env, first, stop),
            "n_step_return": target.returns,
            "discount": target.discounts,
            "priority": np.abs(expected - self._read(self._chosen, env, first, stop)),
            "observation_index": np.arange(context, context + count, dtype=np.int32),
            "bootstrap_index": target.bootstrap + np.int32(context),
        }
        segment = Segment(columns, frames)
        if self._context:
            positions = np.arange(segment.frame_count)
            columns[HISTORY] = np.minimum(positions, self._context).astype(np.uint8)
        self._first[env] = stop
        return segment

    def _targets(
        self,
        rewards: NDArray[np.float64],
        values: NDArray[np.float32],
        count: int,
        *,
        terminated: bool,
    ) -> Targets:
        """Compute the targets of a segment's transitions."""
        if self._trace_decay is None:
            return n_step_targets(
                rewards, count, self._n_step, self._discount, terminated=terminated
            )
        # Looking one step ahead, rewards end with the last transition.
        returns = lambda_returns(
            rewards, values, self._discount, self._trace_decay, terminated=terminated
        )
        return Targets(returns, np.zeros(count, np.float32), np.arange(count, dtype=np.int32))

    def _start_of_frames(self, env: int) -> int:
        """Return the step of a segment's first frame: up to K - 1 earlier with K stacked frames."""
        return max(int(self._began[env]), int(self._first[env]) - self._context)

    def _read(self, ring: NDArray[Any], env: int, start: int, stop: int) -> NDArray[Any]:
        """Copy an environment's rows of the steps start .. stop - 1."""
        row = start % self._rows
        end = row + stop - start
        if end <= self._rows:
            return ring[row:end, env].copy()
        return np.concatenate([ring[row:, env], ring[: end - self._rows, env]])


def recorder_for(actor: ActorConfig, spec: EnvironmentSpec, num_envs: int) -> SegmentRecorder:
    """Make the recorder that an actor's settings describe."""
    return SegmentRecorder(
        spec,
        num_envs,
        n_step=actor.lookahead,
        discount=resolved(actor.discount),
        segment_length=resolved(actor.segment_length),
        trace_decay=actor.trace_decay if actor.returns == "lambda" else None,
    )


def join_segments(
    segments: Sequence[Segment], spec: EnvironmentSpec
) -> tuple[Columns, list[FrameBlock]]:
    """Join segments one after another to the columns and blocks of one TransitionBatch.

    A block holds whole segments, as few as make 64 KiB before compression; the last one holds the
    rest.

    Args:
        segments: at least one.
        spec: spec of their environment.
    """
    columns = {
        name: np.concatenate([segment.columns[name] for segment in segments])
        for name in segments[0].columns
    }
    sizes = [segment.frame_count for segment in segments]
    offsets = np.array([0, *itertools.accumulate(sizes[:-1])], np.int32)
    shift = np.repeat(offsets, [segment.count for segment in segments])
    for name in ("observation_index", "bootstrap_index"):
        columns[name] += shift
    return columns, [_block(part, spec) for part in _block_parts(segments, spec)]


def _block_parts(segments: Sequence[Segment], spec: EnvironmentSpec) -> Iterator[list[Segment]]:
    """Yield the segments of each block."""
    part: list[Segment] = []
    frames = 0
    for segment in segments:
        part.append(segment)
        frames += segment.frame_count
        if frames * spec.observation_bytes >= BLOCK_BYTES:
            yield part
            part, frames = [], 0
    if part:
        yield part


def _block(segments: Sequence[Segment], spec: EnvironmentSpec) -> FrameBlock:
    if len(segments) == 1:
        return compress_block(segments[0].frames, spec)
    names = (field.name for field in spec.fields)
    frames = {name: np.concatenate([s.frames[name] for s in segments]) for name in names}
    return compress_block(frames, spec)
