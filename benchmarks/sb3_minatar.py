"""stable-baselines3's DQN on a MinAtar game, with the network that ``pdqn`` has for it.

    PEER_PYTHON -m benchmarks.sb3_minatar --env MinAtar/Breakout-v1 --seed 1 --seconds 900

The network is that of MinAtar's authors (Young and Tian 2019): one convolution of 16 channels, 3 x
3, and a dense layer of 128. Hyperparameters are RL Zoo's for Atari where both papers agree. Because
the games are smaller, some are MinAtar's: learning starts after 5000 steps, epsilon falls to 0.01
within 100,000 steps, and the step size is 2.5e-4. There is one update in ``--train-freq`` steps: 4
as in RL Zoo, or 1 as in MinAtar's paper.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import gymnasium
import minatar.gym  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.torch_layers import (  # pyright: ignore[reportMissingImports]
    BaseFeaturesExtractor,
)
from torch import nn

from benchmarks.learning_cases import MINATAR_STEPS
from benchmarks.sb3_peer import arguments, train

EVERY_STEPS = 20_000
EPISODES = 20
EXPLORING_STEPS = 100_000
# Never reached: time ends the training. Epsilon's fall is a fraction of it.
TOTAL_STEPS = 100_000_000


class ChannelsFirst(gymnasium.ObservationWrapper[Any, Any, Any]):
    """A wrapper from bool[10, 10, channels] to uint8[channels, 10, 10]."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        assert env.observation_space.shape is not None
        height, width, channels = env.observation_space.shape
        self.observation_space = spaces.Box(0, 1, (channels, height, width), np.uint8)

    def observation(self, observation: Any) -> Any:
        """Move the channels to the front."""
        return np.ascontiguousarray(np.moveaxis(observation, -1, 0), np.uint8)


class Convolution(BaseFeaturesExtractor):
    """A network from float32[batch, channels, 10, 10] to float32[batch, 128]."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 128)
        channels, height, width = observation_space.shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * (height - 2) * (width - 2), 128),
            nn.ReLU(),
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return the features, float32[batch, 128]."""
        return self.layers(observations)


def make(env_id: str) -> gymnasium.Env[Any, Any]:
    """Build the game with the step limit that ``pdqn`` sets."""
    return ChannelsFirst(gymnasium.make(env_id, max_episode_steps=MINATAR_STEPS))


def model_of(chosen: Namespace) -> DQN:
    """Build a model with the hyperparameters that the module's docstring explains."""
    return DQN(
        "MlpPolicy",
        make(chosen.env),
        learning_rate=2.5e-4,
        batch_size=32,
        buffer_size=100_000,
        learning_starts=5000,
        gamma=0.99,
        target_update_interval=1000,
        train_freq=chosen.train_freq,
        gradient_steps=1,
        exploration_fraction=EXPLORING_STEPS / TOTAL_STEPS,
        exploration_final_eps=0.01,
        policy_kwargs={"features_extractor_class": Convolution, "net_arch": []},
        seed=chosen.seed,
        device="cpu",
    )


def main() -> None:
    """Train once."""
    parser = arguments("stable-baselines3's DQN on a MinAtar game")
    parser.add_argument("--env", default="MinAtar/Breakout-v1", help="gymnasium id")
    parser.add_argument("--train-freq", type=int, default=4, help="steps between updates")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    minatar.gym.register_envs()
    held_out = make(chosen.env)
    train(
        model_of(chosen),
        held_out,
        chosen,
        total_timesteps=TOTAL_STEPS,
        every=EVERY_STEPS,
        episodes=EPISODES,
    )


if __name__ == "__main__":
    main()
