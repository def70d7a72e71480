"""The files that roles on other hosts save into the run's directory, and go on from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learner.checkpoint import checkpoints, prune
from pdqn.files import CHECKPOINT_NAME, PIECE_BYTES
from pdqn.model import BEST_MODEL, FINAL_MODEL
from pdqn.wire import WireError

# Who may write what: nobody else's business is there to be done.
_WRITABLE = {
    "learner": re.compile(rf"{re.escape(FINAL_MODEL)}|{CHECKPOINT_NAME.pattern}"),
    "evaluator": re.compile(re.escape(BEST_MODEL)),
}
_MOST_BYTES = 1 << 33


class FileStore:
    """Takes and gives files of a run's directory in pieces.

    Args:
        run_dir: the directory.
        keep: checkpoints.
    """

    def __init__(self, run_dir: Path, keep: int) -> None:
        self._run_dir, self._keep = run_dir, keep

    def take(self, role: str, piece: Mapping[str, Any]) -> dict[str, Any]:
        """Take in a piece; with the last one the file is there. The answer.

        Raises:
            WireError: a piece of a file that this role does not write, or that makes no sense.
        """
        name, offset, size, data = (piece[key] for key in ("name", "offset", "size", "data"))
        allowed = _WRITABLE.get(role)
        if allowed is None or not isinstance(name, str) or not allowed.fullmatch(name):
            raise WireError("malformed", f"a file {name!r:.60} of {role}")
        if not isinstance(data, bytes) or not 0 <= int(offset) <= int(size) <= _MOST_BYTES:
            raise WireError("malformed", f"a piece of {name} that is none")
        answer = {"name": name, "push": piece.get("push"), "offset": offset}
        path = self._run_dir / name
        # Like the temporary files of processes here, which have their pid for a number.
        temporary = path.with_name(f".{path.name}.0")
        try:
            last = int(offset) + len(data) >= int(size)
            self._write(temporary, int(offset), data, last=last)
            if last:
                temporary.replace(path)
                if CHECKPOINT_NAME.fullmatch(name):
                    prune(self._run_dir, self._keep)
        except OSError as error:
            return {**answer, "error": f"{error.filename or path}: {error.strerror}"}
        return answer

    def give(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A piece of a file; without a name if there is no such file.

        Raises:
            WireError: a request that makes no sense.
        """
        name, index, offset = request["name"], int(request["index"]), int(request["offset"])
        if name == "checkpoint":
            found = list(checkpoints(self._run_dir))
            path = found[index] / "learner.pth" if 0 <= index < len(found) else None
        elif name == BEST_MODEL:
            path = self._run_dir / BEST_MODEL
        else:
            raise WireError("malformed", f"a request for {name!r:.60}")
        answer = {"wanted": name, "index": index, "offset": offset}
        if path is None or not path.is_file() or offset < 0:
            return {**answer, "name": "", "size": 0, "data": b""}
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(PIECE_BYTES)
        found = path.relative_to(self._run_dir).as_posix()
        return {**answer, "name": found, "size": path.stat().st_size, "data": data}

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
                os.fsync(file.fileno())  # before it takes the place of what is safe
