"""stable-baselines3's DQN on CartPole-v1, with the settings tuned for it in RL Zoo.

    PEER_PYTHON -m benchmarks.sb3_cartpole --seed 1

Every 1000 steps it evaluates 10 greedy episodes and prints a line. The line has two clocks, without
and with the evaluations, and the seconds until the return stays at 475 or more.
"""

from __future__ import annotations

import gymnasium
import torch
from stable_baselines3 import DQN  # pyright: ignore[reportMissingImports]

from benchmarks.sb3_peer import arguments, train

TOTAL_STEPS = 50_000
EVERY_STEPS = 1000
EPISODES = 10


def main() -> None:
    """Train once."""
    chosen = arguments("stable-baselines3's DQN on CartPole-v1").parse_args()
    torch.set_num_threads(chosen.threads)
    held_out = gymnasium.make("CartPole-v1")
    train(
        tuned(chosen.seed),
        held_out,
        chosen,
        total_timesteps=TOTAL_STEPS,
        every=EVERY_STEPS,
        episodes=EPISODES,
    )


def tuned(seed: int) -> DQN:
    """Build a model with RL Zoo's hyperparameters."""
    return DQN(
        "MlpPolicy",
        gymnasium.make("CartPole-v1"),
        learning_rate=2.3e-3,
        batch_size=64,
        buffer_size=100_000,
        learning_starts=1000,
        gamma=0.99,
        target_update_interval=10,
        train_freq=256,
        gradient_steps=128,
        exploration_fraction=0.16,
        exploration_final_eps=0.04,
        policy_kwargs={"net_arch": [256, 256]},
        seed=seed,
        device="cpu",
    )


if __name__ == "__main__":
    main()
