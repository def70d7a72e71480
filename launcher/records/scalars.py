"""The file of a run's figures for TensorBoard."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from types import ModuleType

_MOST_DOUBLINGS = 6  # of a pause of one second


class ScalarWriter:
    """A writer of one event file after another: a new one begins after each failure.

    TensorBoard's own writer has a thread, which prints a traceback and ends when it cannot write.
    A reader stops at a record that was written in part, but reads every file. After several
    failures, the disk is tried at longer and longer intervals.

    Args:
        folder: folder of the files; it is made when it is needed.
        clock: monotonic seconds.
        settings: the run's settings by name; None leaves them out.
        score: name of the figure that says how good the run is.

    Attributes:
        folder: the folder, which may change.
        left_out: number of steps whose figures are in no file.
    """

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
        settings: Mapping[str, object] | None = None,
        score: str = "eval/return_mean",
    ) -> None:
        self.folder, self._clock = folder, clock
        self._settings, self._score = settings, score
        self.left_out = self._failures = 0
        self._failure, self._next_try = OSError(), 0.0
        self._file: FileIO | None = None
        self._files = 0

    def write(self, figures: Mapping[str, float], step: int) -> None:
        """Append the figures of one step.

        Raises:
            OSError: they cannot be written; later ones may be.
        """
        if self._clock() < self._next_try:
            self.left_out += 1
            raise self._failure
        try:
            if self._file is not None and not self._is_in_place(self._file):
                self.close()
            self._file = self._file or self._open()
            _append(self._file, _tensorboard().figures_record(figures, step))
        except OSError as error:
            self.close()
            self.left_out += 1
            # The first one may be the fault of the file alone.
            pause_seconds = 2 ** min(_MOST_DOUBLINGS, self._failures) if self._failures else 0
            self._failures += 1
            self._failure, self._next_try = error, self._clock() + pause_seconds
            raise
        self._failures, self._next_try = 0, 0.0

    def close(self) -> None:
        """Close the file; everything is written already."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> FileIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files += 1
        name = f"{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{self._files}"
        self._path = self.folder / f"events.out.tfevents.{name}"
        file = self._path.open("wb", buffering=0)
        try:
            _append(file, _tensorboard().first_record())
            if self._settings is not None:
                name = self.folder.parent.name
                _append(file, _tensorboard().settings_record(self._settings, name, self._score))
        except OSError:
            file.close()
            with contextlib.suppress(OSError):
                self._path.unlink()  # otherwise a disk that is full gets a file a line
            raise
        return file

    def _is_in_place(self, file: FileIO) -> bool:
        """Return whether the open file is still the one in the folder."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False


def _tensorboard() -> ModuleType:
    """Import TensorBoard's parts with the first figures: the first frame need not wait for them."""
    from launcher.records import event_records

    return event_records


def _append(file: FileIO, data: bytes) -> None:
    """Write a record whole, or raise an OSError."""
    if file.write(data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
