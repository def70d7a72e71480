"""A run's files, for a role that may be on another host than the run's directory.

On the launcher's host, a role reads and writes the run's directory itself. Elsewhere it works in a
directory of its own, and exchanges files with the coordinator in pieces. It pushes the files that
it saves, and fetches those that it continues from.

Only a few pieces may be unanswered at a time. This bounds the queues, and a role soon notices that
nobody answers. Pieces and requests lost with a connection are sent again over the next one.
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
from functools import partial
from pathlib import Path
from typing import TypeVar

from pdqn.errors import RunError
from pdqn.link import CoordinatorLink
from pdqn.messages import PIECE_BYTES, Fetch, Filed, FilePiece, Piece, Welcome

RUN_ID = "run_id"
# A supervisor sets this variable to the folder in which such directories are made. It can then
# remove them even if a role could not remove its own.
FOLDER_VARIABLE = "PDQN_FOLDER"
_NEWEST = "checkpoint"
CHECKPOINT_NAME = re.compile(r"checkpoints/step-[0-9]{9,12}/learner\.pth")
_PIECES_AHEAD = 4
_PATIENCE_SECONDS = 20.0
_LOST_SECONDS = 3.0
_TRIES = 3

Answer = TypeVar("Answer", Filed, Piece)
Result = TypeVar("Result")


class _LostError(RunError):
    """A missing answer although the coordinator is heard: it did not receive the request."""


class RunFiles:
    """The directory that a role works in, and transfers to and from the run's directory.

    Attributes:
        path: the directory on this host.
        here: whether it is the run's own directory.
    """

    def __init__(self, link: CoordinatorLink, welcome: Welcome) -> None:
        self._link, self._welcome = link, welcome
        self.here = is_here(welcome)
        self._pushes = 0
        self.path = Path(welcome.run_dir) if self.here else _own_directory()

    def has_lost_home(self) -> bool:
        """Work elsewhere if the run's directory holds another run by now; tell whether it does."""
        if not self.here or is_here(self._welcome):
            return False
        if not (self.path / RUN_ID).exists():
            return False  # it was removed, and is being made again
        self.here, self.path = False, _own_directory()
        return True

    def push(self, *names: str) -> None:
        """Copy files to the run's directory, where each appears whole or not at all.

        Args:
            names: paths relative to the directory.

        Raises:
            RunError: the coordinator does not answer, or refuses a file.
        """
        if self.here:
            return
        failures: list[RunError] = []
        for name in names:  # if one of several fails, the others may succeed
            try:
                self._push(name)
            except RunError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def fetch(self, name: str, index: int = 0) -> Path | None:
        """Get a file of the run's directory; None if it does not exist.

        Args:
            name: the file, or ``checkpoint`` for a checkpoint.
            index: how many of the newest checkpoints to skip.

        Raises:
            RunError: the coordinator does not answer, or sends another file.
        """
        offset = 0
        while True:
            wanted = Fetch(name, index, offset)
            piece = self._insist(partial(self._fetch_once, wanted))
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
        """Remove the directory if it is only for this role."""
        if not self.here:
            shutil.rmtree(self.path, ignore_errors=True)

    def _target(self, asked: str, given: str) -> Path:
        """Return where to write the received file; refuse one that was not asked for."""
        if not (CHECKPOINT_NAME.fullmatch(given) if asked == _NEWEST else given == asked):
            raise RunError(f"asked for {asked}, but the run's host sent the file {given!r:.60}")
        return self.path / given

    def _push(self, name: str) -> None:
        """Send a file; start again from its beginning if pieces of it were lost."""
        self._pushes += 1
        self._insist(partial(self._push_once, name))

    def _insist(self, attempt: Callable[[float], Result]) -> Result:
        """Do what a lost connection undoes; again if it did, and at last without being impatient.

        Args:
            attempt: function of the time after which a request counts as lost.
        """
        for _ in range(_TRIES - 1):
            with suppress(_LostError):
                return attempt(_LOST_SECONDS)
            self._await_place()
        return attempt(math.inf)

    def _await_place(self) -> None:
        """Wait until the coordinator knows this connection: it drops what it is asked before."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while not self._link.has_place:
            if time.monotonic() >= end:
                raise RunError(f"the run's host gave no place back for {_PATIENCE_SECONDS:g} s")
            self._link.poll(0.1)

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
        """Wait until the coordinator has taken a piece, in any attempt at sending the file."""
        wanted = self._pushes, offset

        def is_wanted(answer: Filed) -> bool:
            return (answer.push, answer.offset) == wanted

        if error := self._answer(Filed, is_wanted, lost_seconds).error:
            raise RunError(f"the run's host cannot take a file: {error}")

    def _fetch_once(self, wanted: Fetch, lost_seconds: float) -> Piece:
        self._link.ask(wanted)

        def is_wanted(answer: Piece) -> bool:
            return wanted == Fetch(answer.wanted, answer.index, answer.offset)

        return self._answer(Piece, is_wanted, lost_seconds)

    def _answer(
        self,
        kind: type[Answer],
        is_wanted: Callable[[Answer], bool],
        lost_seconds: float = math.inf,
    ) -> Answer:
        """Wait for an answer; skip those to requests that were given up.

        Args:
            kind: class of the answer.
            is_wanted: returns whether an answer is the expected one.
            lost_seconds: time after which the request counts as lost, although the coordinator is
                heard: it answers in order. A silent coordinator may be busy or cut off.
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
                since = time.monotonic()  # it is still working through earlier requests
            if time.monotonic() - since - self._link.silent_seconds > lost_seconds:
                raise _LostError("the run's host did not answer a request")
        raise RunError(f"the run's host did not answer for {_PATIENCE_SECONDS:g} s")


def is_here(welcome: Welcome) -> bool:
    """Return whether the run's directory is reachable: its file ``run_id`` names this run."""
    if not welcome.run_dir:  # as on a host that does not let the run's head name its folders
        return False
    path = Path(welcome.run_dir) / RUN_ID
    try:
        return path.read_text(encoding="utf-8") == welcome.run
    except OSError:
        return False


def _own_directory() -> Path:
    """Make a new directory that only this user can read."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(tempfile.mkdtemp(prefix="pdqn-", dir=folder or None))


def _pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of a file; one empty piece if the file is empty."""
    offset = 0
    with path.open("rb") as file:
        while (data := file.read(PIECE_BYTES)) or not offset:
            yield offset, data
            offset += len(data) or 1
