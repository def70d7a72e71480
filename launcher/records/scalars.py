"""The file of a run's figures for TensorBoard."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import time
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.scalar.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

_VERSION = "brain.Event:2"
_MOST_DOUBLINGS = 6  # of a pause of one second


class ScalarWriter:
    """A writer of one event file after another: a new one begins after each failure.

    TensorBoard's own writer has a thread, which prints a traceback and ends when it cannot write.
    A reader stops at a record that was written in part, but reads every file. After several
    failures, the disk is tried at longer and longer intervals.

    Args:
        folder: folder of the files; it is made when it is needed.
        clock: monotonic seconds.

    Attributes:
        folder: the folder, which may change.
        left_out: number of steps whose figures are in no file.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self._clock = folder, clock
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
            summary = Summary(value=[_value(name, figures[name]) for name in figures])
            _append(self._file, Event(wall_time=time.time(), step=step, summary=summary))
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
            _append(file, Event(wall_time=time.time(), file_version=_VERSION))
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


def _value(name: str, figure: float) -> Summary.Value:
    return Summary.Value(
        tag=name,
        tensor=make_tensor_proto(np.float32(figure)),
        metadata=create_summary_metadata("", ""),
    )


def _append(file: FileIO, event: Event) -> None:
    """Write a record whole, or raise an OSError."""
    record = io.BytesIO()
    RecordWriter(record).write(event.SerializeToString())
    data = record.getvalue()
    if file.write(data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
