"""The console of a run that another program drives: lines of JSON out, orders in, one a line.

``pdqn.driver`` is that program's side. The orders are pause, resume, save, stop and finish. A run
whose program has gone ends as if it were stopped.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from typing import Any, TextIO

from launcher import streams
from launcher.console.console import Clock, JsonConsole
from launcher.console.lines import brief_line, dumps, progress_map
from launcher.metrics.snapshot import Snapshot

_MOST_ORDERS = 100
_INTERVAL_SECONDS = 1.0
# The keys of ``launcher.console.controls``, and those that have no key.
_KEYS = {"save": "s", "finish": "finish"}
_STOP = "q"


class DrivenConsole(JsonConsole):
    """A console whose keys are a program's orders.

    Args:
        stream: where the lines go.
        orders: where the orders come from; without one nobody gives any.
        clock: monotonic seconds.
    """

    def __init__(self, stream: TextIO, orders: TextIO | None, clock: Clock) -> None:
        super().__init__(stream, _INTERVAL_SECONDS, clock)
        self._given: queue.Queue[str] = queue.Queue(_MOST_ORDERS)
        self._is_paused = self._begun = False
        self._stopped = threading.Event()
        if orders is not None:
            read = threading.Thread(target=self._read, args=(orders,), name="orders", daemon=True)
            read.start()

    def update(self, snapshot: Snapshot) -> None:
        """Write a line when one is due, and note whether the run is paused."""
        self._is_paused = snapshot.stage == "paused"
        self._begun = snapshot.stage in ("running", "paused")
        super().update(snapshot)

    def pressed(self) -> list[str]:
        """Return the orders as keys; all but the end wait until the run has begun."""
        keys = [_STOP] if self._stopped.is_set() else []
        while self._begun and not self._given.empty():
            order = self._given.get_nowait()
            if order in ("pause", "resume"):
                # An order is not a key that changes sides: pause twice is pause.
                if self._is_paused != (order == "pause"):
                    self._is_paused = not self._is_paused
                    keys.append("p")
            elif order in _KEYS:
                keys.append(_KEYS[order])
        return keys

    def _read(self, orders: TextIO) -> None:
        try:
            for line in orders:
                if (order := line.strip()) == "stop":
                    self._stopped.set()
                else:
                    self._given.put(order)
        except (OSError, ValueError):  # closed, or no text: as if it had ended
            pass
        self._stopped.set()

    def _progress_line(self, snapshot: Snapshot) -> str:
        values: Mapping[str, Any] = {"line": brief_line(snapshot), **progress_map(snapshot)}
        return dumps({"event": "progress", **values})


def make_driven(stream: TextIO, clock: Clock) -> DrivenConsole:
    """Make the console with the orders from this process's input."""
    return DrivenConsole(stream, streams.keys(), clock)
