"""Steps of environments become segments: frames shipped once, transitions that point into them.

Pure: no sockets, no clocks. The n-step return of the transition at step t is
``R = sum_{j<k} gamma^j r_{t+j}`` with ``k = n``, or fewer at the end of what was recorded; it
bootstraps with ``gamma^k`` from the frame at ``t + k``, and with 0 if the episode terminated there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdqn.specs import EnvironmentSpec, Observation
from pdqn.wire import OBSERVATION_PREFIX, TRANSITION_COLUMNS

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class NStep:
    """n-step targets of consecutive steps.

    Attributes:
        returns: float32[count].
        discounts: float32[count], gamma^k, or 0 where the episode terminated within k steps.
        bootstrap: int32[count], index of the frame to bootstrap from; the transition's own frame
            where the discount is 0.
    """

    returns: NDArray[np.float32]
    discounts: NDArray[np.float32]
    bootstrap: NDArray[np.int32]


def n_step_targets(
    rewards: NDArray[np.float64], count: int, n: int, discount: float, *, terminated: bool
) -> NStep:
    """Targets of the first ``count`` steps of a run of consecutive steps of one episode.

    Args:
        rewards: [horizon], horizon >= count; the frame after the last reward can be bootstrapped
            from unless the episode terminated there.
        count: transitions wanted.
        n: n_step.
        discount: gamma.
        terminated: the last reward ended the episode.
    """
    horizon = len(rewards)
    start = np.arange(count)
    steps = np.minimum(n, horizon - start)
    returns = np.zeros(count)
    for j in range(n):
        # Masked by steps: np.take must not run past the end, and what it takes there is not used.
        reward = rewards[np.minimum(start + j, horizon - 1)]
        returns += np.where(j < steps, discount**j * reward, 0.0)
    ends = terminated & (start + steps == horizon)
    return NStep(
        returns=returns.astype(np.float32),
        discounts=np.where(ends, 0.0, discount**steps).astype(np.float32),
        bootstrap=np.where(ends, start, start + steps).astype(np.int32),
    )


class SegmentRecorder:
    """Records E environments step by step and cuts segments out of each.

    Call ``record`` before a step and ``finish`` after it. A segment is cut where an episode ends,
    and after ``segment_length`` transitions; in the middle of an episode its last ``n_step``
    frames are repeated at the head of the next segment, so that no transition bootstraps early.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        num_envs: int,
        *,
        n_step: int,
        discount: float,
        segment_length: int,
    ) -> None:
        self._n_step = n_step
        self._discount = discount
        self._length = segment_length
        self._num_envs = num_envs
        rows = segment_length + n_step
        self._frames = {
            field.name: np.zeros((num_envs, rows, *field.stored_shape), field.stored_dtype)
            for field in spec.fields
        }
        self._actions = np.zeros((num_envs, rows), np.int32)
        self._rewards = np.zeros((num_envs, rows), np.float64)
        self._chosen = np.zeros((num_envs, rows), np.float32)  # Q of the action taken
        self._values = np.zeros((num_envs, rows), np.float32)  # max of Q over valid actions
        self._recorded = np.zeros(num_envs, np.intp)
        self._every = np.arange(num_envs)

    def record(
        self,
        packed: Observation,
        actions: NDArray[Any],
        chosen: NDArray[np.float32],
        values: NDArray[np.float32],
    ) -> None:
        """Copy in what is known before the environments step.

        Args:
            packed: observations in recorded form, [num_envs, *stored_shape] each.
            actions: [num_envs].
            chosen: Q of these actions, [num_envs].
            values: largest Q over valid actions, [num_envs].
        """
        at = (self._every, self._recorded)
        for name, frames in self._frames.items():
            frames[at] = packed[name]
        self._actions[at] = actions
        self._chosen[at] = chosen
        self._values[at] = values

    def finish(
        self,
        rewards: NDArray[np.float64],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        final_packed: Observation,
        final_values: NDArray[np.float32],
    ) -> list[Columns]:
        """Take in the result of the step; the segments that it completed.

        Args:
            rewards: float64[num_envs].
            terminated: bool[num_envs].
            truncated: bool[num_envs].
            final_packed: recorded final observations [k, ...] of the k truncated, not terminated
                environments, in order.
            final_values: largest Q of these, [k].
        """
        self._rewards[self._every, self._recorded] = rewards
        self._recorded += 1
        segments: list[Columns] = []
        finals = iter(range(len(final_values)))
        for env in np.flatnonzero(terminated | truncated).tolist():
            if terminated[env]:
                segments.append(self._cut(env, int(self._recorded[env]), terminated=True))
            else:
                row = next(finals)
                final = {name: values[row] for name, values in final_packed.items()}
                segments.append(self._cut_truncated(env, final, float(final_values[row])))
            self._recorded[env] = 0
        for env in np.flatnonzero(self._recorded == self._length + self._n_step).tolist():
            segments.append(self._cut(env, self._length, terminated=False))
            self._keep_last(env)
        return segments

    def flush(self) -> list[Columns]:
        """The segments of all unfinished episodes, up to their last recorded frame."""
        unfinished = np.flatnonzero(self._recorded > 1).tolist()
        segments = [
            self._cut(env, int(self._recorded[env]) - 1, terminated=False) for env in unfinished
        ]
        self._recorded[:] = 0
        return segments

    def drop(self) -> int:
        """Forget all unfinished episodes; the number of steps that are lost by it."""
        steps = int(self._recorded.sum())
        self._recorded[:] = 0
        return steps

    def _cut(self, env: int, count: int, *, terminated: bool) -> Columns:
        recorded = int(self._recorded[env])
        # Without an end of the episode the last frame is only bootstrapped from: the reward that
        # followed it belongs to the next segment.
        horizon = recorded if terminated else recorded - 1
        frames = {name: values[env, :recorded] for name, values in self._frames.items()}
        return self._columns(
            env, frames, self._values[env, :recorded], horizon, count, terminated=terminated
        )

    def _cut_truncated(self, env: int, final: Observation, final_value: float) -> Columns:
        recorded = int(self._recorded[env])
        frames = {
            name: np.concatenate([values[env, :recorded], final[name][None]])
            for name, values in self._frames.items()
        }
        values = np.append(self._values[env, :recorded], np.float32(final_value))
        return self._columns(env, frames, values, recorded, recorded, terminated=False)

    def _columns(
        self,
        env: int,
        frames: Mapping[str, NDArray[Any]],
        values: NDArray[np.float32],
        horizon: int,
        count: int,
        *,
        terminated: bool,
    ) -> Columns:
        target = n_step_targets(
            self._rewards[env, :horizon],
            count,
            self._n_step,
            self._discount,
            terminated=terminated,
        )
        expected = target.returns + target.discounts * values[target.bootstrap]
        columns: Columns = {
            "action": self._actions[env, :count].copy(),
            "n_step_return": target.returns,
            "discount": target.discounts,
            "priority": np.abs(expected - self._chosen[env, :count]).astype(np.float32),
            "observation_index": np.arange(count, dtype=np.int32),
            "bootstrap_index": target.bootstrap,
        }
        for name, array in frames.items():
            columns[OBSERVATION_PREFIX + name] = array.copy()
        return columns

    def _keep_last(self, env: int) -> None:
        kept = slice(self._length, self._length + self._n_step)
        arrays = [*self._frames.values(), self._actions, self._rewards, self._chosen, self._values]
        for array in arrays:
            array[env, : self._n_step] = array[env, kept].copy()
        self._recorded[env] = self._n_step


def join_segments(segments: Sequence[Columns]) -> Columns:
    """The columns of one TransitionBatch: frames one after another, indices shifted to match."""
    frame_name = next(name for name in segments[0] if name.startswith(OBSERVATION_PREFIX))
    offsets = np.cumsum([0, *(len(segment[frame_name]) for segment in segments[:-1])])
    joined = {name: np.concatenate([s[name] for s in segments]) for name in segments[0]}
    counts = [len(segment["action"]) for segment in segments]
    shift = np.repeat(offsets, counts).astype(np.int32)
    for name in ("observation_index", "bootstrap_index"):
        joined[name] = (joined[name] + shift).astype(TRANSITION_COLUMNS[name])
    return joined
