"""A run's files for a role that may be on another host than the run's directory.

Where the directory is the launcher's own, a role reads and writes it. Elsewhere it works in a
directory of its own, and files go through the coordinator, in pieces: what it saves to there, what
it goes on from to here. A piece is answered before more than a few others follow, so that no queue
grows, and nothing waits longer than it takes to see that nobody answers. What gets lost with a
connection is sent again once there is another.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from pdqn.errors import RunError
from pdqn.link import CoordinatorLink
from pdqn.messages import PIECE_BYTES, Fetch, Filed, FilePiece, Piece, Welcome

RUN_ID = "run_id"
# Names the folder for such directories where whoever started the role keeps one, and removes it
# also when a role could not remove its own.
FOLDER_VARIABLE = "PDQN_FOLDER"
_NEWEST = "checkpoint"
CHECKPOINT_NAME = re.compile(r"checkpoints/step-[0-9]{9,12}/learner\.pth")
_PIECES_AHEAD = 4
_PATIENCE_SECONDS = 20.0
_LOST_SECONDS = 3.0
_TRIES = 3


class _LostError(RunError):
    """The coordinator is heard, and does not answer: it has not got what was sent."""


class RunFiles:
    """The directory that a role works in, and the way from and to the run's own.

    Attributes:
        path: of the directory here.
        here: whether it is the run's own.
    """

    def __init__(self, link: CoordinatorLink, welcome: Welcome) -> None:
        self._link = link
        self.here = is_here(welcome)
        self._pushes = 0
        self.path = Path(welcome.run_dir) if self.here else _own_directory()

    def push(self, *names: str) -> None:
        """Bring files to the run's directory; there they are whole or not there.

        Args:
            names: below the directory.

        Raises:
            RunError: the coordinator does not answer, or refuses one.
        """
        if self.here:
            return
        failures: list[RunError] = []
        for name in names:  # of several, one may get through
            try:
                self._push(name)
            except RunError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def fetch(self, name: str, index: int = 0) -> Path | None:
        """Get a file of the run's directory; None if there is none.

        Args:
            name: of the file, or ``checkpoint`` for the newest but ``index``.

        Raises:
            RunError: the coordinator does not answer, or gives another file.
        """
        offset = 0
        while True:
            wanted = Fetch(name, index, offset)
            self._link.ask(wanted)
            piece = self._fetched(wanted)
            if not piece.name:
                return None
            target = self._target(name, piece.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab" if offset else "wb") as file:
                file.write(piece.data)
            offset += len(piece.data)
            if offset >= piece.size or not piece.data:
                return target

    def close(self) -> None:
        """Remove a directory that was only for this role."""
        if not self.here:
            shutil.rmtree(self.path, ignore_errors=True)

    def _target(self, asked: str, given: str) -> Path:
        """Find where a file goes that was asked for; nothing else is written."""
        if not (CHECKPOINT_NAME.fullmatch(given) if asked == _NEWEST else given == asked):
            raise RunError(f"asked for {asked}, the run's host gives a file {given!r:.60}")
        return self.path / given

    def _push(self, name: str) -> None:
        """Bring a file, from its beginning again where pieces of it were lost on their way."""
        self._pushes += 1
        for _ in range(_TRIES - 1):
            with suppress(_LostError):
                return self._push_once(name, _LOST_SECONDS)
        return self._push_once(name, math.inf)

    def _push_once(self, name: str, lost_seconds: float) -> None:
        path = self.path / name
        size, unanswered = path.stat().st_size, deque[int]()
        for offset, data in _pieces(path):
            self._link.ask(FilePiece(name, self._pushes, offset, size, data))
            unanswered.append(offset)
            if len(unanswered) >= _PIECES_AHEAD:
                self._await_filed(unanswered.popleft(), lost_seconds)
        for offset in unanswered:
            self._await_filed(offset, lost_seconds)

    def _await_filed(self, offset: int, lost_seconds: float) -> None:
        """Wait until a piece was taken: by any try, since with the last one the file is whole."""
        wanted = self._pushes, offset

        def is_wanted(answer: Filed | Piece) -> bool:
            return isinstance(answer, Filed) and (answer.push, answer.offset) == wanted

        answer = self._answer(Filed, is_wanted, lost_seconds)
        if isinstance(answer, Filed) and answer.error:
            raise RunError(f"the run's host cannot take a file: {answer.error}")

    def _fetched(self, wanted: Fetch) -> Piece:
        def is_wanted(answer: Filed | Piece) -> bool:
            return isinstance(answer, Piece) and wanted == Fetch(
                answer.wanted, answer.index, answer.offset
            )

        answer = self._answer(Piece, is_wanted)
        assert isinstance(answer, Piece)
        return answer

    def _answer(
        self,
        kind: type[Filed] | type[Piece],
        is_wanted: Callable[[Filed | Piece], bool],
        lost_seconds: float = math.inf,
    ) -> Filed | Piece:
        """Wait for an answer; one to something that was given up is passed over.

        Args:
            kind: of the answer.
            is_wanted: whether it is the answer that is waited for.
            lost_seconds: what was asked is lost when the coordinator says something else so much
                later: it answers in order. While it says nothing it may be busy, or cut off.
        """
        since = time.monotonic()
        while time.monotonic() - since < _PATIENCE_SECONDS:
            self._link.poll(0.1)
            while self._link.answers:
                answer = self._link.answers.popleft()
                if not isinstance(answer, kind):
                    continue
                if is_wanted(answer):
                    return answer
                since = time.monotonic()  # it works off what was sent before
            if time.monotonic() - since - self._link.silent_seconds > lost_seconds:
                raise _LostError("the run's host did not answer to a piece of a file")
        raise RunError(f"the run's host did not answer for {_PATIENCE_SECONDS:g} s")


def is_here(welcome: Welcome) -> bool:
    """Whether the run's directory is in reach: it names the run that it is of."""
    path = Path(welcome.run_dir) / RUN_ID
    try:
        return path.read_text(encoding="utf-8") == welcome.run
    except OSError:
        return False


def _own_directory() -> Path:
    """A new directory that only this user can look into."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(tempfile.mkdtemp(prefix="pdqn-", dir=folder or None))


def _pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of a file; one empty piece of an empty one."""
    offset = 0
    with path.open("rb") as file:
        while (data := file.read(PIECE_BYTES)) or not offset:
            yield offset, data
            offset += len(data) or 1
