"""Training, watching and using a policy in one program.

Run this in the checkout; it takes about half a minute:

    python examples/train_from_python.py CartPole-v1
"""

from __future__ import annotations

import sys

import pdqn


def main(env: str, target: str = "evaluation=450") -> None:
    """Train until the greedy policy is good enough, and measure it on other held-out seeds.

    Args:
        env: the environment.
        target: the figure that ends the training, and its value.
    """
    run = pdqn.launch(env, time="60s", seed=1, stop_at=target)
    for snapshot in run:
        print(f"{snapshot.elapsed_seconds:.0f} s: return {snapshot['rollout/ep_rew_mean']:.3g}")
    print("ended by", run.summary["exit_reason"])
    result = run.evaluate(episodes=20)
    print(f"return {result['return_mean']:.4g} over {result['episodes']} episodes")


if __name__ == "__main__":
    main(*sys.argv[1:])
