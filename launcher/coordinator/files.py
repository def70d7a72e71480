"""The files that roles on other hosts save into the run's directory, and resume from."""

from __future__ import annotations

import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from learner.checkpoint_folders import checkpoints, prune, set_aside
from pdqn.files import CHECKPOINT_NAME
from pdqn.messages import PIECE_BYTES, Fetch, Filed, FilePiece, Piece
from pdqn.model_head import BEST_MODEL, FINAL_MODEL, INITIAL_MODEL
from pdqn.wire import WireError

# The files that each role may write; other roles may write none.
_WRITABLE = {
    "learner": re.compile(rf"{re.escape(FINAL_MODEL)}|{CHECKPOINT_NAME.pattern}"),
    "evaluator": re.compile(re.escape(BEST_MODEL)),
}
# The files that each role may read: the learner resumes, the evaluator goes on from the best score.
_CHECKPOINT = "checkpoint"
_READABLE = {"learner": (_CHECKPOINT, FINAL_MODEL, INITIAL_MODEL), "evaluator": (BEST_MODEL,)}
# A file whose next piece takes longer than this is not coming any more.
_RECEIVING_SECONDS = 5.0
_MOST_PIECES = 32  # that wait for the disk; a role sends few ahead


class FileStore:
    """The files of a run's directory, taken and given in pieces.

    Args:
        run_dir: the directory.
        keep: number of checkpoints to keep.

    Attributes:
        run_dir: the directory; the launcher changes it if another run takes its place.
    """

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.run_dir, self._keep = run_dir, keep
        self._took: dict[str, float] = {}
        self._unreadable: list[Path] = []  # checkpoints that the learner went back behind

    def receives(self, role: str) -> bool:
        """Tell whether a file of a role is on its way."""
        return time.monotonic() - self._took.get(role, -math.inf) < _RECEIVING_SECONDS

    def take(self, role: str, piece: FilePiece) -> Filed:
        """Write a piece; the last one completes the file.

        Raises:
            WireError: this role does not write this file, or the piece does not fit.
        """
        allowed = _WRITABLE.get(role)
        if allowed is None or not allowed.fullmatch(piece.name):
            raise WireError("malformed", f"a file {piece.name!r:.60} of {role}")
        path = self.run_dir / piece.name
        # Named like the temporary files of processes on this host, with 0 in place of their pid.
        temporary = path.with_name(f".{path.name}.0")
        error = ""
        try:
            last = piece.offset + len(piece.data) >= piece.size
            self._write(temporary, piece.offset, piece.data, last=last)
            if last:
                temporary.replace(path)
                if CHECKPOINT_NAME.fullmatch(piece.name):
                    self._prune(path.parent)
        except OSError as failure:
            error = f"{failure.filename or path}: {failure.strerror}"
        self._took[role] = time.monotonic()
        return Filed(piece.name, piece.push, piece.offset, error)

    def give(self, role: str, wanted: Fetch) -> Piece:
        """Read a piece of a file; the answer has no name if there is no such file.

        Raises:
            WireError: this role does not read this file.
        """
        if wanted.name not in _READABLE.get(role, ()):
            raise WireError("malformed", f"a request of {role} for {wanted.name!r:.60}")
        if wanted.name == _CHECKPOINT:
            found = list(checkpoints(self.run_dir))
            path = found[wanted.index] / "learner.pth" if wanted.index < len(found) else None
            self._unreadable = found[: wanted.index]
        else:
            path = self.run_dir / wanted.name
        if path is None or not path.is_file():
            return Piece(wanted.name, wanted.index, wanted.offset)
        with path.open("rb") as file:
            file.seek(wanted.offset)
            data = file.read(PIECE_BYTES)
        name, size = path.relative_to(self.run_dir).as_posix(), path.stat().st_size
        return Piece(wanted.name, wanted.index, wanted.offset, name, size, data)

    def _prune(self, saved: Path) -> None:
        """Keep the newest checkpoints that a learner can read, of which one was just saved."""
        for path in self._unreadable:
            if path != saved and path.is_dir():
                set_aside(path)
        self._unreadable = []
        prune(self.run_dir, self._keep, saved)

    def _write(self, path: Path, offset: int, data: bytes, *, last: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if offset == 0:
            path.unlink(missing_ok=True)
        written = path.stat().st_size if path.exists() else 0
        if written != offset:
            raise WireError("malformed", f"a piece at {offset} of a file of {written} bytes")
        with path.open("ab") as file:
            file.write(data)
            if last:
                file.flush()
                os.fsync(file.fileno())  # before it replaces a file that is safe


def _at_once(do: Callable[[], object], _nbytes: int) -> bool:
    do()
    return True


class Answered(NamedTuple):
    """The answer to a request about a file.

    Attributes:
        identity: connection of the role that asked.
        answer: answer to send, or the error because of which there is none.
    """

    identity: bytes
    answer: Filed | Piece | WireError | OSError


class FileDesk:
    """The exchange of files beside the coordinator's loop, which a disk must not hold up.

    A piece for which there is no room is not answered: the role sends the file again.

    Args:
        store: the files.
        aside: function that has work done, with the bytes that it holds; false if it has no room.
    """

    def __init__(
        self, store: FileStore, aside: Callable[[Callable[[], object], int], bool] = _at_once
    ) -> None:
        self._store, self._aside = store, aside
        self._answered: deque[Answered] = deque()
        self._asked: dict[str, float] = {}
        self._pieces = 0

    @property
    def is_busy(self) -> bool:
        """Return whether answers are still to come."""
        return self._pieces > 0

    def receives(self, role: str) -> bool:
        """Tell whether a file of a role is on its way, or waits for the disk."""
        recent = time.monotonic() - self._asked.get(role, -math.inf) < _RECEIVING_SECONDS
        return recent or self._store.receives(role)

    def ask(self, identity: bytes, role: str, message: FilePiece | Fetch) -> None:
        """Take or give a piece of a file of a role; ``answered`` has the answer later."""
        if self._pieces >= _MOST_PIECES:
            return
        nbytes = 0
        if isinstance(message, FilePiece):
            nbytes, self._asked[role] = len(message.data), time.monotonic()

        def exchange() -> None:
            try:
                if isinstance(message, FilePiece):
                    answer = self._store.take(role, message)
                else:
                    answer = self._store.give(role, message)
            except (WireError, OSError) as error:
                answer = error
            self._answered.append(Answered(identity, answer))

        self._pieces += self._aside(exchange, nbytes)

    def answered(self) -> Iterator[Answered]:
        """Yield the answers that are there, oldest first."""
        for _ in range(len(self._answered)):
            self._pieces -= 1
            yield self._answered.popleft()
