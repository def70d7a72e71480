"""The shared part of the stable-baselines3 scripts: evaluations, and a clock without them.

They need a Python with ``torch``, ``stable-baselines3`` and ``minatar``, but nothing of this
project except this folder. They print lines of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DQN  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.callbacks import (  # pyright: ignore[reportMissingImports]
    BaseCallback,
)

HELD_OUT_SEED = 1_000_000


def arguments(description: str) -> argparse.ArgumentParser:
    """Build the parser with the options of every script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="of training, at most")
    parser.add_argument(
        "--launched", type=float, default=time.time(), help="when the clock starts, as Unix time"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--final-episodes", type=int, default=0)
    return parser


def evaluate(model: DQN, env: gymnasium.Env[Any, Any], episodes: int) -> dict[str, Any]:
    """Play greedy episodes on held-out seeds; return their mean return and standard error."""
    returns = [play(model, env, HELD_OUT_SEED + index) for index in range(episodes)]
    error = float(np.std(returns, ddof=1)) / math.sqrt(episodes) if episodes > 1 else math.nan
    return {"return_mean": float(np.mean(returns)), "return_error": error, "episodes": episodes}


def play(model: DQN, env: gymnasium.Env[Any, Any], seed: int) -> float:
    """Return the return of one greedy episode."""
    observation, _ = env.reset(seed=seed)
    total, ended = 0.0, False
    while not ended:
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, _ = env.step(int(action))
        total += float(reward)
        ended = terminated or truncated
    return total


class Evaluations(BaseCallback):
    """A callback that evaluates regularly, and ends the training when its time is over.

    Args:
        env: for the evaluations.
        every: environment steps between evaluations.
        episodes: of an evaluation.
        launched: Unix time at which the process was started.
        seconds: of training and start-up, without the evaluations.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        every: int,
        episodes: int,
        launched: float,
        seconds: float,
    ) -> None:
        super().__init__()
        self._env, self._every, self._episodes = env, every, episodes
        self._launched, self._seconds = launched, seconds
        self._next = every
        self.evaluating_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the process was started, without the evaluations."""
        return time.time() - self._launched - self.evaluating_seconds

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._next:
            self._next += self._every
            self.report()
        return self.seconds < self._seconds

    def report(self) -> None:
        """Evaluate and print one line."""
        at, started = self.seconds, time.time()
        result = evaluate(self.model, self._env, self._episodes)
        self.evaluating_seconds += time.time() - started
        line = {
            "environment_steps": self.num_timesteps,
            "learner_steps": self.model._n_updates,
            "wall_seconds": at,
            "wall_seconds_with_evaluations": time.time() - self._launched,
            **result,
        }
        print(json.dumps(line), flush=True)


def train(
    model: DQN,
    env: gymnasium.Env[Any, Any],
    chosen: argparse.Namespace,
    *,
    total_timesteps: int,
    every: int,
    episodes: int,
) -> None:
    """Train, then print a last line with the rates and the final policy's evaluation.

    Args:
        model: to train.
        env: for the evaluations.
        chosen: the options of every script.
        total_timesteps: environment steps, at most.
        every: environment steps between evaluations.
        episodes: of an evaluation.
    """
    evaluations = Evaluations(
        env, every=every, episodes=episodes, launched=chosen.launched, seconds=chosen.seconds
    )
    model.learn(total_timesteps, callback=evaluations)
    trained = evaluations.seconds
    last: dict[str, Any] = {
        "done": True,
        "trained_seconds": trained,
        "evaluating_seconds": evaluations.evaluating_seconds,
        "environment_steps_per_second": model.num_timesteps / trained,
        "samples_per_second": model._n_updates * model.batch_size / trained,
        "torch_threads": torch.get_num_threads(),
    }
    if chosen.final_episodes:
        last["evaluation"] = evaluate(model, env, chosen.final_episodes)
    print(json.dumps(last), flush=True)
