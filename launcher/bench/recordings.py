"""Recorded steps of environments, which the benchmarks insert at any speed.

Environments, policies and networks cost nothing here. Steps are recorded once and then handed out
over and over, so that a benchmark measures only what follows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.environments.describe import describe_environment
from actors.environments.vector import VectorEnvironment
from actors.evaluation import random_act
from actors.segments import Segment, recorder_for
from launcher.terminal import echo
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.specs import EnvironmentSpec, FieldSpec, Observation

_NO_VALUES = np.empty(0, np.float32)


@dataclass(frozen=True, eq=False)
class Recording:
    """Consecutive steps of E environments.

    Attributes:
        frames: of each field, stored_dtype[steps, E, *stored_shape].
        actions: int64[steps, E].
        rewards: float64[steps, E].
        ended: bool[steps, E], True if the episode ended with the step.
        origin: the source of the steps, in words.
    """

    spec: EnvironmentSpec
    frames: Observation
    actions: NDArray[np.int64]
    rewards: NDArray[np.float64]
    ended: NDArray[np.bool_]
    origin: str

    @property
    def num_envs(self) -> int:
        """Number of environments."""
        return self.actions.shape[1]

    def segments(self, config: Config) -> Iterator[list[Segment]]:
        """Record the steps over and over, as an actor does; yield the segments cut at each step."""
        recorder = recorder_for(config.actor, self.spec, self.num_envs)
        values = np.zeros(self.num_envs, np.float32)
        truncated = np.zeros(self.num_envs, np.bool_)
        while True:
            for t in range(len(self.actions)):
                frame = {name: array[t] for name, array in self.frames.items()}
                recorder.record(frame, self.actions[t], values, values)
                yield recorder.finish(self.rewards[t], self.ended[t], truncated, {}, _NO_VALUES)


def record(name: str) -> Recording:
    """Make the recording of this name.

    Raises:
        UsageError: there is no such recording, or it needs a package that is not installed.
    """
    if name not in RECORDINGS:
        raise UsageError(f"no data is called {name!r}; there are {', '.join(RECORDINGS)}")
    return RECORDINGS[name]()


def play(
    spec: EnvironmentSpec, env_args: Mapping[str, Any], num_envs: int, steps: int
) -> Recording:
    """Record a random policy."""
    vector = VectorEnvironment(spec, env_args, num_envs)
    act = random_act(spec, np.random.default_rng(0))
    observation = vector.reset(range(num_envs))
    log: list[tuple[Observation, Any, Any, Any]] = []
    for _ in range(steps):
        actions = act(observation)
        transition = vector.step(actions)
        packed = {name: array.copy() for name, array in spec.pack(observation).items()}
        ended = transition.terminated | transition.truncated
        log.append((packed, actions, transition.rewards.copy(), ended))
        observation = transition.observation
    vector.close()
    return _recording(spec, log, f"{spec.id}, random policy")


def _played(env: str, num_envs: int, steps: int) -> Recording:
    """Record a random policy in an environment that needs no further package."""
    return play(describe_environment(env, {}), {}, num_envs, steps)


def _minatar() -> Recording:
    """Draw binary 10 x 10 x 4 pictures in which a few objects move, like MinAtar's."""
    spec = EnvironmentSpec("MinAtar-shaped", (FieldSpec("observation", (10, 10, 4), "uint8"),), 6)
    rng = np.random.default_rng(0)
    num_envs, steps, objects = 32, 512, 8
    where = rng.integers(0, 10, (num_envs, objects, 2))
    every = np.arange(num_envs)[:, None]
    kind = np.arange(objects) % 4
    log: list[tuple[Observation, Any, Any, Any]] = []
    for _ in range(steps):
        where = (where + rng.integers(-1, 2, where.shape)) % 10
        frame = np.zeros((num_envs, 10, 10, 4), np.uint8)
        frame[every, where[..., 0], where[..., 1], kind] = 1
        ended = rng.random(num_envs) < 0.01
        actions = rng.integers(6, size=num_envs)
        log.append(({"observation": frame}, actions, rng.random(num_envs), ended))
    return _recording(spec, log, "objects that move at random on a 10 x 10 x 4 grid")


def _atari() -> Recording:
    """Record Breakout as agents see it: grey, 84 x 84, every fourth frame, stacked by replay."""
    try:
        from ale_py.vector_env import AtariVectorEnv
    except ImportError as error:
        raise UsageError("Atari's frames need ale-py: pip install 'pdqn[atari]'") from error
    spec = EnvironmentSpec(
        "ALE/Breakout-v5", (FieldSpec("observation", (84, 84), "uint8"),), 4
    ).stacked(4)
    num_envs, steps = 8, 512
    env = AtariVectorEnv("breakout", num_envs=num_envs, stack_num=1)
    rng = np.random.default_rng(0)
    frames, _ = env.reset(seed=0)
    log: list[tuple[Observation, Any, Any, Any]] = []
    for _ in range(steps):
        actions = rng.integers(4, size=num_envs)
        frame = frames[:, 0].copy()
        frames, rewards, terminated, truncated, _ = env.step(actions)
        rewards = np.asarray(rewards, np.float64)
        log.append(({"observation": frame}, actions, rewards, terminated | truncated))
    env.close()
    return _recording(spec, log, "Breakout of ale-py, random policy, frames stacked by 4")


def _recording(
    spec: EnvironmentSpec, log: list[tuple[Observation, Any, Any, Any]], origin: str
) -> Recording:
    frames, actions, rewards, ended = zip(*log, strict=True)
    return Recording(
        spec,
        {f.name: np.stack([frame[f.name] for frame in frames]) for f in spec.fields},
        np.stack(actions),
        np.stack(rewards),
        np.stack(ended),
        origin,
    )


RECORDINGS: dict[str, Callable[[], Recording]] = {
    "cartpole": lambda: _played("CartPole-v1", 32, 512),
    "minatar": _minatar,
    "atari": _atari,
    "placement": lambda: _played("pdqn/CirclePlacement-v0", 8, 130),
}


def recorded(names: Sequence[str]) -> Iterator[tuple[str, Recording]]:
    """Yield these recordings by name; without names, all whose packages this machine has.

    Raises:
        UsageError: a named one needs a package that is missing.
    """
    for name in names or RECORDINGS:
        try:
            recording = record(name)
        except UsageError as error:
            if names:
                raise
            echo(f"{name}: skipped: {error}", err=True)
            continue
        yield name, recording
