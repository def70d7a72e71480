"""Distributed deep Q-learning: the core that every role shares."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from pathlib import Path

    from pdqn.driver.run import Run as Run
    from pdqn.driver.run import launch as launch
    from pdqn.driver.run import train as train
    from pdqn.policy import Policy

__version__ = "0.2.0.dev0"


def load_policy(
    run: str | Path, *, best: bool = False, trust: bool = False, device: str = "cpu"
) -> Policy:
    """Load the policy that a run has learned; see ``pdqn.policy.load_policy``."""
    # Importing torch takes seconds, and most importers of this package do not need it.
    from pdqn import policy

    return policy.load_policy(run, best=best, trust=trust, device=device)


def __getattr__(name: str) -> typing.Any:
    """Import what programs use to train, which the processes of a run do not need."""
    if name in ("Run", "launch", "train"):
        from pdqn.driver import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
