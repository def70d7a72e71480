"""The state of a run beside the learner's parameters, kept in a file so that it can resume."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.metrics.metrics import RunMetrics
from launcher.rundir import STATE_FILE, replace_text
from pdqn.errors import UsageError

FORMAT = 1
# Starts of a place, and further places of actors, that one write of the file covers.
_STARTS, _PLACES = 8, 64


@dataclass
class RunState:
    """Counters and figures of a run so far, over all of its sessions.

    A session is one ``pdqn launch``; every ``--resume`` adds one.

    Attributes:
        sessions: number begun so far.
        elapsed_seconds: wall time of all of them.
        restarts: number of restarts, by role.
        first_error: the run's.
        incarnations: number of starts of each (role, index), so that no seed is used twice.
        reserved: numbers of starts that the file holds instead, where they are larger. A session
            that is killed may have had up to that number.
        metrics: what ``RunMetrics.get_state`` gave.
        circle_placement: whether the environment is circle placement; None where nobody wrote it.
        preset: a sentence about the preset that came by itself; empty without one.
    """

    sessions: int = 0
    elapsed_seconds: float = 0.0
    restarts: dict[str, int] = field(default_factory=dict)
    first_error: str | None = None
    incarnations: dict[tuple[str, int], int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    circle_placement: bool | None = None
    preset: str = ""
    reserved: dict[tuple[str, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with a file that reserves nothing."""
        self._written: Mapping[tuple[str, int], int] = {}

    def covers(self, role: str, index: int, incarnation: int) -> bool:
        """Return whether the file counts this start, so that no later session repeats it."""
        return incarnation < self._written.get((role, index), 0)

    def reserve(self, places: Iterable[tuple[str, int]]) -> None:
        """Reserve the next starts of places; the file must be written before they happen."""
        for place in places:
            self.reserved[place] = self.incarnations.get(place, 0) + _STARTS

    def reserve_around(self, role: str, index: int) -> None:
        """Reserve the next starts of a place, and of the actors that may join after it."""
        places = _PLACES if role == "actor" else 1
        self.reserve((role, number) for number in range(index, index + places))

    def write(self, directory: Path) -> None:
        """Replace the file; a reader never sees a part of it."""
        self.writing()(directory)

    def writing(self) -> Callable[[Path], None]:
        """Return a function that writes the state as it is now, whenever and wherever it runs."""
        starts = dict(self.incarnations)
        for place, number in self.reserved.items():
            starts[place] = max(number, starts.get(place, 0))
        content = dataclasses.asdict(dataclasses.replace(self, reserved={})) | {
            "format": FORMAT,
            "incarnations": [[role, index, n] for (role, index), n in starts.items()],
        }
        del content["reserved"]
        text, reserved = json.dumps(content) + "\n", dict(self.reserved)

        def write(directory: Path) -> None:
            try:
                replace_text(directory / STATE_FILE, text, durable=True)
            finally:
                # A disk that is full must not keep roles from coming back.
                self._written = reserved

        return write


def read_state(directory: Path) -> RunState:
    """Read the state in a run directory; without a file, that of a run which has not begun.

    Raises:
        UsageError: the file is not one that this version wrote.
    """
    path = directory / STATE_FILE
    try:
        if not path.exists():
            return RunState()
        return _from_map(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: not a state that this version reads ({error}); "
            "without this file, the counters start over"
        ) from error


def _from_map(content: Mapping[str, Any]) -> RunState:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}, not {FORMAT}")
    metrics = dict(content["metrics"])
    if metrics:
        # Figures that cannot be resumed are found here, not after the run has begun.
        RunMetrics(None).set_state(metrics)
    return RunState(
        sessions=int(content["sessions"]),
        elapsed_seconds=float(content["elapsed_seconds"]),
        restarts={str(role): int(n) for role, n in content["restarts"].items()},
        first_error=content["first_error"],
        incarnations={(str(role), int(i)): int(n) for role, i, n in content["incarnations"]},
        metrics=metrics,
        circle_placement=content.get("circle_placement"),
        preset=str(content.get("preset", "")),
    )
