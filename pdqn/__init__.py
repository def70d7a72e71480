"""Distributed deep Q-learning: the core that every role shares."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from pathlib import Path

    from pdqn.policy import Policy

__version__ = "0.2.0.dev0"


def load_policy(run: str | Path, *, best: bool = False, trust: bool = False) -> Policy:
    """Load the policy that a run has learned; see ``pdqn.policy.load_policy``."""
    # Importing torch takes seconds, and most importers of this package do not need it.
    from pdqn import policy

    return policy.load_policy(run, best=best, trust=trust)
