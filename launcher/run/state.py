"""What a run knows beside the learner's parameters, kept in a file so that it can be resumed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.metrics.metrics import RunMetrics
from launcher.rundir import STATE_FILE, replace_text
from pdqn.errors import UsageError

FORMAT = 1


@dataclass
class RunState:
    """Counters and figures of a run so far, over all of its sessions.

    A session is one ``pdqn launch``; every ``--resume`` adds one.

    Attributes:
        sessions: begun so far.
        elapsed_seconds: wall time of all of them.
        restarts: of roles, by role.
        first_error: of the run.
        incarnations: how often each (role, index) was started, so that no seed is used twice.
        metrics: what ``RunMetrics.get_state`` gave.
    """

    sessions: int = 0
    elapsed_seconds: float = 0.0
    restarts: dict[str, int] = field(default_factory=dict)
    first_error: str | None = None
    incarnations: dict[tuple[str, int], int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Write the file, whole or not at all."""
        content = dataclasses.asdict(self) | {
            "format": FORMAT,
            "incarnations": [[role, index, n] for (role, index), n in self.incarnations.items()],
        }
        replace_text(directory / STATE_FILE, json.dumps(content) + "\n", durable=True)


def read_state(directory: Path) -> RunState:
    """The state in a run directory; that of a run which has not begun where there is none.

    Raises:
        UsageError: the file is not one that this version wrote.
    """
    path = directory / STATE_FILE
    try:
        if not path.exists():
            return RunState()
        return _from_map(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not a state that this version reads ({error})") from error


def _from_map(content: Mapping[str, Any]) -> RunState:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}, not {FORMAT}")
    metrics = dict(content["metrics"])
    if metrics:
        # What the figures cannot go on from is found here, not when the run has begun.
        RunMetrics(None).set_state(metrics)
    return RunState(
        sessions=int(content["sessions"]),
        elapsed_seconds=float(content["elapsed_seconds"]),
        restarts={str(role): int(n) for role, n in content["restarts"].items()},
        first_error=content["first_error"],
        incarnations={(str(role), int(i)): int(n) for role, i, n in content["incarnations"]},
        metrics=metrics,
    )
