"""Stacks of the last frames for processes that act, equal to those that the learner gets.

Actors ship and store single frames; replay gathers the learner's stacks from them when sampling. A
process that chooses actions keeps the last frames of its environments here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdqn.specs import EnvironmentSpec, Observation


class FrameStacker:
    """The stacked observations of E environments, made from frames in the environment's form.

    A field with ``FieldSpec.stack`` K above 1 becomes [E, K, *shape], oldest frame first. Before an
    episode's first frame, copies of it fill the stack. Other fields pass unchanged. Without any
    stacked field, the whole observation passes unchanged at no cost.
    """

    def __init__(self, spec: EnvironmentSpec, num_envs: int) -> None:
        self._num_envs = num_envs
        self._depth = {field.name: field.stack for field in spec.fields if field.stack > 1}
        self._stacks: Observation = {}

    def reset(self, frames: Observation) -> Observation:
        """Begin an episode in every environment; return the stacked observations.

        Args:
            frames: first frames, [num_envs, *shape] of each field.
        """
        return self.push(frames, np.ones(self._num_envs, bool))

    def push(self, frames: Observation, began: NDArray[np.bool_]) -> Observation:
        """Add the newest frames; return the stacked observations, which later calls do not change.

        Args:
            frames: [num_envs, *shape] of each field.
            began: bool[num_envs], whether the frame is the first of its episode.
        """
        if not self._depth:
            return frames
        first = np.flatnonzero(began)
        for name, depth in self._depth.items():
            newest = frames[name][:, None]
            if len(first) == self._num_envs:
                self._stacks[name] = np.repeat(newest, depth, axis=1)
                continue
            stacks = np.concatenate([self._stacks[name][:, 1:], newest], axis=1)
            stacks[first] = newest[first]
            self._stacks[name] = stacks
        return {**frames, **self._stacks}

    def get_state(self) -> Observation:
        """Return the stacks, [num_envs, K, *shape] of each stacked field."""
        return dict(self._stacks)

    def set_state(self, stacks: Observation, frames: Observation) -> Observation:
        """Continue from ``get_state``; return the stacked observations of the newest frames."""
        self._stacks = {name: stacks[name] for name in self._depth}
        return {**frames, **self._stacks} if self._depth else frames

    def final(self, frames: Observation, ended: NDArray[np.intp]) -> Observation:
        """Return the stacked final observations of episodes; call this before the next ``push``.

        Args:
            frames: final frames, [k, *shape] of each field.
            ended: int[k], indices of the environments whose episodes ended.
        """
        if not self._depth:
            return frames
        stacks = {name: self._followed(name, frames[name], ended) for name in self._depth}
        return {**frames, **stacks}

    def _followed(self, name: str, final: NDArray[Any], ended: NDArray[np.intp]) -> NDArray[Any]:
        return np.concatenate([self._stacks[name][ended, 1:], final[:, None]], axis=1)
