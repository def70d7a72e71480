"""The run directory, which holds everything that a run leaves behind."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from launcher.folders import Folder
from launcher.strict_json import to_json
from pdqn.atomic import replacing
from pdqn.config import Config, NetworkConfig
from pdqn.errors import UsageError
from pdqn.files import RUN_ID
from pdqn.layers import CONFIG, CONFIGURED
from pdqn.locking import take_lock
from pdqn.logs import Bound, keep_within
from pdqn.text import is_path_utf8

STATE_FILE = "state.json"
# The meaning of the parameters depends on these settings, among them all of the network's.
STRUCTURAL = (
    *(("run", key) for key in ("env", "env_args", "frame_stack", "seed")),
    *(("network", field.name) for field in dataclasses.fields(NetworkConfig)),
)

SUMMARY, SNAPSHOT, EVENTS = "summary.json", "snapshot.json", "events.jsonl"
METRICS = "metrics.jsonl"
# A run of a month has a few megabytes; an environment that fails at every step has more.
_MOST_EVENTS = Bound(64 << 20, 16 << 20, 16 << 20, '{"event": "cut", "bytes": {}}\n')
_LOCK_TRIES, _LOCK_SECONDS = 10, 0.02
_TEMPORARY = re.compile(
    r"\.(run_id|(address|about|origin)\.json|config\.toml|configured\.toml|(summary|state|snapshot)\.json|(final|best)_model\.pth|"
    r"learner\.pth|(training_results|strategy)\.png)\.\d+"
)


class RunDirectory:
    """The files of one run; while it is open, no other process can open it.

    Args:
        path: the directory, which stays the same if this process goes to another one.
        resumed_at: seconds for which the run has run already; None for a new run.

    Attributes:
        path: the directory's absolute path; another one once another run has taken its place.
        shown: the path as the person gave it.
        taken: why the run cannot go on here; empty while it can.
        event_trouble: why the newest event is not written; None if it is.
        restore: called once the directory was made again, for what others have written there.

    Raises:
        UsageError: the directory cannot be written, is in use, or holds another run.
    """

    def __init__(self, path: Path, resumed_at: float | None = None) -> None:
        check_path(path)
        self.shown = str(path)
        # An environment in this process may change the directory that relative paths begin from.
        self.path = path = path.absolute()
        self.taken = ""
        self.event_trouble: OSError | None = None
        self.restore: Callable[[], None] = lambda: None
        self._kept: dict[str, str] = {}
        self._is_link = False
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._was_empty = not any(path.iterdir())
            if resumed_at is None and (path / CONFIG).exists():
                raise UsageError(
                    f"run directory {self.shown} already holds a run; choose another, or continue "
                    f"it: --resume {self.shown}"
                )
            self._events = _open_alone(path / EVENTS)
            self._make_folders()
            if resumed_at is not None:
                _tidy(path)
            self._metrics = self.metrics_path.open("a", encoding="utf-8")
            self._folder = Folder(path)
        except FileExistsError as error:
            raise UsageError(
                f"run directory {self.shown} cannot be made: something else has that name; choose "
                "another --run-dir"
            ) from error
        except OSError as error:
            raise UsageError(
                f"run directory {self.shown} cannot be written: {error.strerror}"
            ) from error
        self._started = time.monotonic() - (resumed_at or 0.0)

    @property
    def metrics_path(self) -> Path:
        """The file of the lines of figures."""
        return self.path / METRICS

    @property
    def logs(self) -> Path:
        """The folder of the roles' logs."""
        return self.path / "logs"

    def log_path(self, role: str, index: int) -> Path:
        """Return the path of one role's log."""
        return self.logs / f"{role}-{index}.log"

    def named(self, path: Path) -> str:
        """Return a path in this directory as a person who named the directory would write it."""
        return str(Path(self.shown) / path.relative_to(self.path))

    def write_config(
        self, config: Config, configured: Config, others: Mapping[str, str] | None = None
    ) -> None:
        """Write the configuration as filled in, and as a person wrote it.

        Args:
            config: as filled in.
            configured: as a person wrote it.
            others: further texts, by the names of their files.

        Raises:
            UsageError: that is not possible, as on a full disk; a new directory is removed again.
        """
        try:
            self._keep(CONFIGURED, configured.to_toml())
            self._keep(CONFIG, config.to_toml())
            for name, text in (others or {}).items():
                self._keep(name, text)
        except OSError as error:
            self._discard()
            raise UsageError(
                f"run directory {self.shown} cannot be written: {error.strerror}; make room there, "
                "or choose another --run-dir"
            ) from error

    def name_run(self, run: str) -> None:
        """Write the run's identifier: roles that find it here work in this directory."""
        self._keep(RUN_ID, run)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Append to metrics.jsonl."""
        self.append_metrics(to_json(line))

    def append_metrics(self, line: str) -> None:
        """Append a line, without its end, to metrics.jsonl."""
        _append(self._metrics, line)

    def event(self, kind: str, **details: Any) -> None:
        """Append to events.jsonl, with the time since the start and the time of day."""
        self.append_event(self.event_line(kind, **details))

    def event_line(self, kind: str, **details: Any) -> str:
        """Return the line of an event that happens now; nothing is written."""
        stamp = {"time_seconds": round(time.monotonic() - self._started, 3), "clock": time.time()}
        return to_json({**stamp, "event": kind, **details})

    def append_event(self, line: str) -> None:
        """Append a line, without its end, to events.jsonl."""
        self.event_trouble = None
        try:
            _append(self._events, line)
        except OSError as error:
            # On a full disk the line stays in memory until there is room.
            self.event_trouble = error

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace summary.json; a reader never sees a part of it."""
        self._replace(SUMMARY, to_json(summary, indent=2) + "\n")

    def write_snapshot(self, seen: Mapping[str, Any]) -> None:
        """Replace the snapshot that ``pdqn watch`` shows; a reader never sees a part of it."""
        self._replace(SNAPSHOT, to_json(seen, separators=(",", ":")))

    def look(self) -> str:
        """Notice that the directory or one of its files has gone, and make it again.

        A moved directory stays in use, through a link in its old place. A run is only moved out,
        and ``taken`` set, if another run is in its place.

        Returns:
            a line about what happened; empty if nothing did.

        Raises:
            OSError: the directory cannot be made again; a later call tries once more.
        """
        keep_within(self.path / EVENTS, _MOST_EVENTS)
        self._folder.renew()
        if self._folder.is_in_place():
            return self._look_at_files()
        if self._holds_another():
            return self._move_out()
        moved = self._folder.now_at()
        if moved is not None and not os.path.lexists(self.path):
            self.path.symlink_to(moved)
            self._is_link = True
            return f"{self.path} was moved: the run goes on in {moved}, to which {self.path} leads"
        return self._make_again(moved)

    def _look_at_files(self) -> str:
        """Write files again that were removed alone, as by an rm that met a file being written."""
        lines = ((EVENTS, self._events), (METRICS, self._metrics))
        gone = [name for name, file in lines if not _is_at(self.path / name, file)]
        gone += [name for name in self._kept if not (self.path / name).exists()]
        if not gone:
            return ""
        self._fill()
        return (
            f"{', '.join(gone)} in {self.path} removed while the run went on: what is written from "
            "now on is there, and --resume needs what is saved from now on"
        )

    def _make_again(self, moved: Path | None) -> str:
        if self._is_link:  # to where the directory was moved, and has been removed since
            self.path.unlink(missing_ok=True)
            self._is_link = False
        self.path.mkdir(parents=True, exist_ok=True)
        self._folder.take(self.path)
        self._fill()
        where = "lost" if moved is None else f"in {moved}"
        return (
            f"{self.path} was removed while the run went on: it is made again, and --resume needs "
            f"what is saved from now on; all that was written before is {where}"
        )

    def _fill(self) -> None:
        """Write again what the directory needs for the run to go on, and to be resumed."""
        self._make_folders()
        self._open_files()
        for name, text in self._kept.items():
            self._replace(name, text)
        self.restore()

    def _holds_another(self) -> bool:
        """Return whether another run is in this run's place."""
        try:
            found = (self.path / RUN_ID).read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        return found != self._kept.get(RUN_ID)

    def _move_out(self) -> str:
        """Go to where the directory is now, or to a new one, to save what was learned."""
        before, moved = self.path, self._folder.now_at()
        self.path = moved or _free_path(before)
        if moved is None:
            self._make_again(None)
        else:
            self._folder.take(moved)
            self.restore()
        self.taken = f"{before} holds another run by now: what is saved last is in {self.path}"
        return self.taken

    def _make_folders(self) -> None:
        self.logs.mkdir(exist_ok=True)
        (self.path / "checkpoints").mkdir(exist_ok=True)

    def _open_files(self) -> None:
        """Open the files of lines that are not in their places; a lock that is held stays.

        Raises:
            OSError: one of them cannot be opened, or another process has it locked.
        """
        # A full disk, perhaps, where the old ones were, keeps their last lines.
        if not _is_at(self.path / EVENTS, self._events):
            events = self._open_events()
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = events
        if not _is_at(self.metrics_path, self._metrics):
            metrics = self.metrics_path.open("a", encoding="utf-8")
            with contextlib.suppress(OSError):
                self._metrics.close()
            self._metrics = metrics

    def _open_events(self) -> TextIO:
        path = self.path / EVENTS
        try:
            return _open_alone(path)
        except UsageError as error:
            raise OSError(errno.EBUSY, "another process has it open", str(path)) from error

    def _discard(self) -> None:
        """Close the files, and remove what was made here if the directory was empty before."""
        self.close()
        if not self._was_empty:
            return
        for name in {*self._kept, EVENTS, METRICS, CONFIGURED, CONFIG}:
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else is there by now
            for folder in (self.logs, self.path / "checkpoints", self.path):
                folder.rmdir()

    def _keep(self, name: str, text: str) -> None:
        """Write a file that is written again if the directory is made again."""
        self._kept[name] = text
        self._replace(name, text)

    def _replace(self, name: str, text: str) -> None:
        replace_text(self.path / name, text)

    def close(self) -> None:
        """Close the files, and so let another process open the directory."""
        self._folder.close()
        with contextlib.closing(self._events):
            self._metrics.close()


def replace_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Replace a file's text: a reader finds either the old text or the new one.

    Args:
        path: the file.
        text: its new content.
        durable: survive a power failure, which takes as long as the disk does.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def default_path(env_id: str, seed: int) -> Path:
    """Return ``runs/<env>__seed<seed>__<time>``."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", env_id)
    return Path("runs") / f"{name}__seed{seed}__{time.strftime('%Y%m%d-%H%M%S')}"


def new_path(env_id: str, seed: int) -> Path:
    """Make a new run's directory, and return its path.

    The path is that of ``default_path``, with a number appended if that directory already exists.
    """
    first = default_path(env_id, seed)
    check_path(first)
    for number in itertools.count(1):
        path = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:
            pass  # opening the run directory reports why
        return path
    raise AssertionError


def check_path(path: Path) -> None:
    """Refuse a run directory whose path is not UTF-8, which TensorBoard and torch write.

    Raises:
        UsageError: its bytes are not UTF-8, or this locale gives its characters other bytes.
    """
    if is_path_utf8(str(path.absolute())):
        return
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        raise UsageError(f"run directory {path}: its path is not UTF-8; choose another --run-dir")
    raise UsageError(
        f"run directory {path}: this locale writes paths in {encoding}; set LC_ALL=C.UTF-8, or "
        "choose a --run-dir whose whole path is ASCII"
    )


def _open_alone(path: Path) -> TextIO:
    """Open a file for appending, and lock it for as long as this process has it open."""
    file = path.open("a", encoding="utf-8")
    # A process that watches the run tests the lock, and thereby holds it for a moment.
    if take_lock(file, _LOCK_TRIES, _LOCK_SECONDS):
        return file
    file.close()
    raise UsageError(f"run directory {path.parent} is in use: its run goes on")


def _free_path(path: Path) -> Path:
    """Return the path with the first number at its end that leads to nothing."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(found for found in numbered if not os.path.lexists(found))


def _is_at(path: Path, file: TextIO) -> bool:
    """Tell whether an open file is the one at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def is_open(path: Path) -> bool:
    """Tell whether a process has the run in this directory open, as far as that can be known."""
    if not (path / EVENTS).exists():
        return False
    with (path / EVENTS).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # it is locked, or the file system has no locks
            return True
    return False


def _tidy(path: Path) -> None:
    """Remove what a killed session left half-written."""
    (path / SNAPSHOT).unlink(missing_ok=True)  # it shows how the last session ended
    for file in (path / METRICS, path / EVENTS):
        if not file.exists():
            continue
        content = file.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(file, content.rfind(b"\n") + 1)
    # The names of temporary files from atomic writes: a dot, the file's name, the process.
    for left in (*path.glob(".*"), *path.glob("checkpoints/step-*/.*")):
        if _TEMPORARY.fullmatch(left.name) and left.is_file():
            left.unlink()


def _append(file: TextIO, line: str) -> None:
    file.write(line + "\n")
    file.flush()
