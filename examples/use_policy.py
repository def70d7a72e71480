"""A trained policy in a program of your own.

Run these in the checkout. The first command trains a policy, the second one plays with it:

    pdqn launch --env CartPole-v1 --time 30s --run-dir runs/cartpole
    python examples/use_policy.py runs/cartpole
"""

from __future__ import annotations

import sys

import gymnasium

import pdqn


def main(run: str, episodes: int = 3) -> None:
    """Play greedy episodes and print their returns.

    Args:
        run: a run directory, or a model file.
        episodes: number of episodes.
    """
    policy = pdqn.load_policy(run)
    env = gymnasium.make("CartPole-v1")
    for seed in range(episodes):
        policy.reset()  # matters where frames are stacked
        observation, _ = env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            action = policy.act(observation)
            observation, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            ended = terminated or truncated
        print(f"episode {seed}: return {total:g}")


if __name__ == "__main__":
    main(sys.argv[1])
