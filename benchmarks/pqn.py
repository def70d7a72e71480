"""PQN on a MinAtar game as its paper describes it: one process, one thread, no replay.

    python -m benchmarks.pqn --env MinAtar/Breakout-v1 --seed 1 --seconds 900

This is algorithm 1 of Gallici et al. 2025, "Simplifying Deep Temporal Difference Learning", with
their settings for MinAtar. There are 128 environments, segments of 32 steps, Q(lambda) returns with
lambda 0.65, and two epochs over each segment. The network is that of MinAtar's authors with layer
norm, trained by RAdam without a target network. Epsilon falls from 1 to 0.05 in the first tenth of
the training, and the step size to 0 over all of it. Batches have 128 transitions.

It needs a Python with ``torch`` and ``minatar``, but nothing of this project except this folder. It
prints lines of JSON, as the scripts of stable-baselines3 do.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import minatar.gym  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.learning_cases import MINATAR_STEPS

HELD_OUT_SEED = 1_000_000
ENVIRONMENTS, SEGMENT_STEPS, EPOCHS, BATCH = 128, 32, 2, 128
GAMMA, LAMBDA = 0.99, 0.65
STEP_SIZE, CLIP_NORM = 5e-4, 10.0
EPSILON_FIRST, EPSILON_FINAL, EXPLORING_SHARE = 1.0, 0.05, 0.1
EVERY_SECONDS, EPISODES = 30.0, 20

Env = gymnasium.Env[Any, Any]


class Network(nn.Module):
    """MinAtar's network with layer norm: float32[n, 10, 10, channels] to float32[n, actions]."""

    def __init__(self, channels: int, actions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 3), nn.LayerNorm([16, 8, 8]), nn.ReLU(), nn.Flatten(),
            nn.Linear(16 * 8 * 8, 128), nn.LayerNorm(128), nn.ReLU(), nn.Linear(128, actions),
        )  # fmt: skip

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Compute Q of every action."""
        return self.layers(observation.movedim(-1, 1))

    def values(self, observation: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Compute Q of every action without a gradient, float32[n, actions]."""
        with torch.inference_mode():
            return self(torch.from_numpy(observation).float()).numpy()


@dataclass
class Segments:
    """A segment of every environment; each array has [steps, environments] first.

    Attributes:
        observation: bool[..., 10, 10, channels].
        action: int64.
        reward: float32.
        following: float32, the largest Q of the observation after each step; 0 if it terminated.
        ended: bool, whether the episode ended there, so that nothing is traced beyond it.
    """

    observation: NDArray[np.bool_]
    action: NDArray[np.int64]
    reward: NDArray[np.float32]
    following: NDArray[np.float32]
    ended: NDArray[np.bool_]

    def returns(self) -> NDArray[np.float32]:
        """Compute Q(lambda) returns backwards, float32[steps, environments]."""
        returns = np.empty_like(self.reward)
        after = self.following[-1]
        for t in reversed(range(len(returns))):
            traced = (1 - LAMBDA) * self.following[t] + LAMBDA * after
            after = self.reward[t] + GAMMA * np.where(self.ended[t], self.following[t], traced)
            returns[t] = after
        return returns


class Player:
    """Environments that are stepped one after another."""

    def __init__(self, envs: Sequence[Env], seed: int) -> None:
        self._envs, self._rng = envs, np.random.default_rng(seed)
        seeds = range(seed * len(envs), (seed + 1) * len(envs))
        first = [env.reset(seed=s)[0] for env, s in zip(envs, seeds, strict=True)]
        self._seen = np.stack(first)

    def play(self, network: Network, epsilon: float) -> Segments:
        """Play a segment in every environment."""
        shape = (SEGMENT_STEPS, len(self._envs))
        found = Segments(
            np.empty((*shape, *self._seen.shape[1:]), np.bool_), np.empty(shape, np.int64),
            np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.bool_),
        )  # fmt: skip
        values = network.values(self._seen)
        for t in range(SEGMENT_STEPS):
            explores = self._rng.random(len(values)) < epsilon
            random = self._rng.integers(0, values.shape[1], len(values))
            actions = np.where(explores, random, values.argmax(axis=1))
            found.observation[t], found.action[t] = self._seen, actions
            finals, terminated = self._step(found, t, actions)
            values = network.values(self._seen)
            found.following[t] = values.max(axis=1)
            if finals:
                of_finals = network.values(np.stack(list(finals.values())))
                found.following[t, list(finals)] = of_finals.max(axis=1)
            found.following[t, terminated] = 0.0
        return found

    def _step(
        self, found: Segments, t: int, actions: NDArray[np.int64]
    ) -> tuple[dict[int, NDArray[np.bool_]], list[int]]:
        """Step once; return the last observations of truncated episodes, and who terminated."""
        finals: dict[int, NDArray[np.bool_]] = {}
        terminated: list[int] = []
        seen = np.empty_like(self._seen)
        for index, env in enumerate(self._envs):
            observation, reward, ends, is_cut, _ = env.step(actions[index])
            found.reward[t, index], found.ended[t, index] = float(reward), ends or is_cut
            if ends:
                terminated.append(index)
            elif is_cut:
                finals[index] = observation
            seen[index] = env.reset()[0] if ends or is_cut else observation
        self._seen = seen
        return finals, terminated


class Training:
    """Network, optimizer, and a clock that stops for evaluations."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self._chosen = chosen
        torch.manual_seed(chosen.seed)
        self._rng = np.random.default_rng(chosen.seed)
        self._held_out = make(chosen.env)
        shape = self._held_out.observation_space.shape
        assert shape is not None
        self._shape = shape
        actions: Any = self._held_out.action_space
        self.network = Network(self._shape[-1], int(actions.n))
        self._optimizer = torch.optim.RAdam(self.network.parameters(), lr=STEP_SIZE)
        self.environment_steps = self.learner_steps = 0
        self.evaluating_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the process was started, without evaluations."""
        return time.time() - self._chosen.launched - self.evaluating_seconds

    @property
    def progress(self) -> float:
        """Share of the training that is over."""
        return min(1.0, self.seconds / self._chosen.seconds)

    def epsilon(self) -> float:
        """Return the probability of a random action."""
        share = min(1.0, self.progress / EXPLORING_SHARE)
        return EPSILON_FIRST + share * (EPSILON_FINAL - EPSILON_FIRST)

    def learn(self, segments: Segments) -> None:
        """Take all epochs over segments."""
        observation = torch.from_numpy(segments.observation.reshape(-1, *self._shape))
        action = torch.from_numpy(segments.action.ravel())
        returns = torch.from_numpy(segments.returns().ravel())
        self._optimizer.param_groups[0]["lr"] = STEP_SIZE * (1.0 - self.progress)
        for _ in range(EPOCHS):
            for rows in torch.from_numpy(self._rng.permutation(len(action))).split(BATCH):
                values = self.network(observation[rows].float())
                chosen = values.gather(1, action[rows, None])[:, 0]
                loss = 0.5 * (chosen - returns[rows]).square().mean()
                self._optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
                self._optimizer.step()
                self.learner_steps += 1
        self.environment_steps += segments.action.size

    def evaluate(self, episodes: int) -> dict[str, Any]:
        """Play greedy episodes on held-out seeds; the clock stops meanwhile."""
        at = self.seconds
        returns = [self._episode(HELD_OUT_SEED + index) for index in range(episodes)]
        self.evaluating_seconds += self.seconds - at
        error = float(np.std(returns, ddof=1)) / math.sqrt(episodes) if episodes > 1 else math.nan
        return {"return_mean": float(np.mean(returns)), "return_error": error, "episodes": episodes}

    def report(self) -> None:
        """Evaluate and print one line."""
        line = {
            "environment_steps": self.environment_steps,
            "learner_steps": self.learner_steps,
            "wall_seconds": self.seconds,
            **self.evaluate(EPISODES),
        }
        line["wall_seconds_with_evaluations"] = time.time() - self._chosen.launched
        print(json.dumps(line), flush=True)

    def _episode(self, seed: int) -> float:
        observation, _ = self._held_out.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            action = int(self.network.values(np.asarray(observation)[None]).argmax())
            observation, reward, terminated, truncated, _ = self._held_out.step(action)
            total += float(reward)
            ended = terminated or truncated
        return total


def make(env_id: str) -> Env:
    """Make the game with the step limit that ``pdqn`` sets."""
    return gymnasium.make(env_id, max_episode_steps=MINATAR_STEPS)


def train(chosen: argparse.Namespace) -> None:
    """Train once, then print a last line with the rates and the final policy's evaluation."""
    training = Training(chosen)
    player = Player([make(chosen.env) for _ in range(ENVIRONMENTS)], chosen.seed)
    next_report = EVERY_SECONDS
    while training.progress < 1.0:
        training.learn(player.play(training.network, training.epsilon()))
        if training.seconds >= next_report:
            next_report += EVERY_SECONDS
            training.report()
    trained = training.seconds
    last: dict[str, Any] = {
        "done": True,
        "trained_seconds": trained,
        "evaluating_seconds": training.evaluating_seconds,
        "cpu_seconds": time.process_time(),
        "environment_steps_per_second": training.environment_steps / trained,
        "samples_per_second": EPOCHS * training.environment_steps / trained,
        "torch_threads": torch.get_num_threads(),
    }
    if chosen.final_episodes:
        last["evaluation"] = training.evaluate(chosen.final_episodes)
    print(json.dumps(last), flush=True)


def main() -> None:
    """Read the options, and train."""
    parser = argparse.ArgumentParser(description="PQN on a MinAtar game, in one process")
    parser.add_argument("--env", default="MinAtar/Breakout-v1", help="gymnasium id")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=900.0, help="of training")
    parser.add_argument(
        "--launched", type=float, default=time.time(), help="when the clock starts, as Unix time"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--final-episodes", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    minatar.gym.register_envs()
    train(chosen)


if __name__ == "__main__":
    main()
