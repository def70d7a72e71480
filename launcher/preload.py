"""What the forkserver imports once, so that every role starts warm."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import actors.actor
import actors.environments.circle_placement
import actors.evaluator
import learner.process
import replay.server
from pdqn.errors import JoinRefusedError
from pdqn.transport import Network

EXIT_REFUSED = 3
ROLES = {
    "actor": actors.actor.run_actor,
    "replay": replay.server.run_replay,
    "learner": learner.process.run_learner,
    "evaluator": actors.evaluator.run_evaluator,
}


def run_role(
    role: str,
    address: str,
    index: int | None,
    log_path: Path | None,
    network: Network | None = None,
) -> None:
    """Be one role, from joining to leaving; the target of its process."""
    try:
        ROLES[role](address, index, log_path, network)
    except JoinRefusedError as error:
        print(f"pdqn: {error}", file=sys.stderr)  # noqa: T201 - the person who joined reads it
        sys.exit(EXIT_REFUSED)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # The role has closed all that is its own. What the interpreter would still tear down takes
    # a hundred actors on few cores longer than a person waits after Ctrl-C.
    os._exit(0)
