"""The heartbeat of a role that waits for a disk, or for environments that take long to make."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from types import TracebackType

from pdqn.config import Config

# What a replay says that it does meanwhile; a run that ends waits for it.
WAITS_FOR_DISK = "waits for the disk of its journal"
# What a role says that it does while its environments are made. Native code that makes them may
# hold Python's lock for minutes, and then no thread of the role is heard.
MAKES_ENVIRONMENTS = "makes its environments"
# Environments that take longer to make than this multiple of the silence that is allowed hang.
_MAKING_MULTIPLE = 10
_LATE_SECONDS = 1.0
_PERIOD_SECONDS = 0.25
# The thread ends after this time without a block.
_IDLE_SECONDS = 2.0


def longest_making_seconds(config: Config) -> float:
    """Return the longest time for which a role keeps in touch while its environments are made."""
    return _MAKING_MULTIPLE * config.system.heartbeat_timeout_seconds


class Heartbeat:
    """A thread that keeps in touch with the coordinator while the role's own thread is in a block.

    The block is for work that a disk or a person's environments delay, and that keeps in touch
    with nobody itself. A role that is silent would be ended, and with it what it has in memory.
    Its successor would wait for the same disk, or make the same environments.

    Args:
        keep_in_touch: function that reports and hears orders. It is called in another thread, but
            never while the role's own thread is outside of the block.
        longest_seconds: time of a block after which it is silent, since what it waits for hangs.

    Attributes:
        waited_seconds: time that the blocks have taken beyond the first second of each.
    """

    def __init__(
        self, keep_in_touch: Callable[[], object], longest_seconds: float = math.inf
    ) -> None:
        self._keep_in_touch, self._longest_seconds = keep_in_touch, longest_seconds
        # Whoever holds it may use the link; the role's own thread has it outside of blocks as well,
        # where the other thread does nothing.
        self._turn = threading.Lock()
        self._since = math.inf
        self._used = 0.0
        self._thread: threading.Thread | None = None
        self._fault: Exception | None = None
        self.waited_seconds = 0.0

    def __enter__(self) -> None:
        """Begin to wait."""
        with self._turn:
            self._since = self._used = time.monotonic()
            if self._thread is None:
                self._thread = self._started()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the link back.

        Raises:
            Exception: what keeping in touch has raised meanwhile, such as a RunError.
        """
        with self._turn:
            waited, self._since = time.monotonic() - self._since, math.inf
        self.waited_seconds += max(0.0, waited - _LATE_SECONDS)
        fault, self._fault = self._fault, None
        if fault is not None and error is None:
            raise fault

    def in_turn(self, contact: Callable[[float], object]) -> Callable[[float], None]:
        """Make a function for contact with the coordinator, which is safe within the block too."""

        def in_turn(seconds: float) -> None:
            with self._turn:
                contact(seconds)

        return in_turn

    def _started(self) -> threading.Thread | None:
        """Start the thread; None if the machine has none to give, which the work can do without."""
        # The process may end while a disk that hangs holds the other thread.
        thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return None
        return thread

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(_PERIOD_SECONDS):
            with self._turn:
                now = time.monotonic()
                if self._since == math.inf and now - self._used > _IDLE_SECONDS:
                    self._thread = None
                    return
                waited = now - self._since
                if _LATE_SECONDS <= waited <= self._longest_seconds and self._fault is None:
                    self._beat()

    def _beat(self) -> None:
        try:
            self._keep_in_touch()
        except Exception as fault:  # noqa: BLE001 - the role's own thread raises it
            self._fault = fault
