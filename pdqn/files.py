"""A run's files for a role that may be on another host than the run's directory.

Where the directory is the launcher's own, a role reads and writes it. Elsewhere it works in a
directory of its own, and files go through the coordinator, in pieces: what it saves to there, what
it goes on from to here. A piece is answered before more than a few others follow, so that no queue
grows, and nothing waits longer than it takes to see that nobody answers.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pdqn.errors import RunError
from pdqn.link import CoordinatorLink, Welcome

RUN_ID = "run_id"
PIECE_BYTES = 1 << 19
_PIECES_AHEAD = 4
_PATIENCE_SECONDS = 20.0


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
        self.path = Path(welcome.run_dir if self.here else tempfile.mkdtemp(prefix="pdqn-"))

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
            RunError: the coordinator does not answer.
        """
        offset = 0
        while True:
            self._link.ask("fetch", {"name": name, "index": index, "offset": offset})
            piece = self._answer("piece", wanted=name, index=index, offset=offset)
            if not piece["name"]:
                return None
            target = self.path / piece["name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab" if offset else "wb") as file:
                file.write(piece["data"])
            offset += len(piece["data"])
            if offset >= int(piece["size"]) or not piece["data"]:
                return target

    def close(self) -> None:
        """Remove a directory that was only for this role."""
        if not self.here:
            shutil.rmtree(self.path, ignore_errors=True)

    def _push(self, name: str) -> None:
        path = self.path / name
        self._pushes += 1
        size, unanswered = path.stat().st_size, deque[int]()
        for offset, data in _pieces(path):
            piece = {"name": name, "push": self._pushes, "offset": offset, "size": size}
            self._link.ask("file", piece | {"data": data})
            unanswered.append(offset)
            if len(unanswered) >= _PIECES_AHEAD:
                self._answer("filed", push=self._pushes, offset=unanswered.popleft())
        for offset in unanswered:
            self._answer("filed", push=self._pushes, offset=offset)

    def _answer(self, kind: str, **wanted: Any) -> dict[str, Any]:
        """The answer with these values; one to something that was given up is passed over."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            self._link.poll(0.1)
            while self._link.answers:
                answer = self._link.answers.popleft()
                if answer["type"] != kind or any(answer.get(k) != v for k, v in wanted.items()):
                    continue
                if answer.get("error"):
                    raise RunError(f"the run's host cannot take a file: {answer['error']}")
                return answer
        raise RunError(f"the run's host did not answer for {_PATIENCE_SECONDS:g} s")


def is_here(welcome: Welcome) -> bool:
    """Whether the run's directory is in reach: it names the run that it is of."""
    path = Path(welcome.run_dir) / RUN_ID
    try:
        return path.read_text(encoding="utf-8") == welcome.run
    except OSError:
        return False


def _pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of a file; one empty piece of an empty one."""
    offset = 0
    with path.open("rb") as file:
        while (data := file.read(PIECE_BYTES)) or not offset:
            yield offset, data
            offset += len(data) or 1
