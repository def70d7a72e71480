"""The command ``pdqn watch``: the console of a run, in another terminal or on another host."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import zmq

from launcher.console.console import Console, Kind, make_console
from launcher.console.output import reader_has_gone
from launcher.hosts.access import find_door
from launcher.interrupts import Interrupts
from launcher.metrics.snapshot import TO_CONSOLE, Seen
from launcher.rundir import CONFIG, SNAPSHOT, SUMMARY, is_open
from pdqn import transport, wire
from pdqn.errors import RunError, UsageError
from pdqn.messages import Message, MessageError, Over, Watch, decode
from pdqn.transport import Context
from pdqn.wire import WireError

KEYS = {"q": "leave; the run goes on", "?": "show or hide this help"}
_TURN_SECONDS = 0.1
_ASK_SECONDS = 0.5
_PATIENCE_SECONDS = 10.0
_OTHER_VERSION = "the run is of another version of pdqn"


class Source(Protocol):
    """A place from which a run can be seen."""

    def look(self) -> Seen | None:
        """Return what there is to see now; None if there is nothing new.

        Raises:
            RunError: the run cannot be seen, or can no longer be seen.
        """
        ...

    def summary(self) -> dict[str, Any]:
        """Return how the run went; empty if that is not known."""
        ...

    def close(self) -> None:
        """Stop looking."""
        ...


class Directory:
    """The view of a run through its directory."""

    def __init__(self, path: Path) -> None:
        try:
            is_run = (path / CONFIG).is_file()
        except OSError as error:
            # Such as another person's private folder, or a name that is too long.
            raise UsageError(f"{path}: {error.strerror}") from error
        if not is_run:
            raise UsageError(f"{path} is not a run directory (it needs {CONFIG})")
        self._path = path
        self._written = 0
        self._last: Seen | None = None

    def look(self) -> Seen | None:
        """Return the newest snapshot that the run has written."""
        try:
            alive = is_open(self._path)
        except OSError as error:
            raise RunError(f"{self._path}: {error.strerror}") from error
        found = self._read()
        if found is None and not (self._path / CONFIG).exists():
            raise RunError(f"{self._path} is not a run directory any more: it was removed or moved")
        if found is None and not alive and not _is_done(self._last):
            raise RunError(f"{self._path}: its run ended without a last snapshot (killed?)")
        self._last = found or self._last
        return found

    def _read(self) -> Seen | None:
        path = self._path / SNAPSHOT
        if not path.exists() or (written := path.stat().st_mtime_ns) == self._written:
            return None
        self._written = written
        return _seen(_read_map(path))

    def summary(self) -> dict[str, Any]:
        """Read summary.json."""
        path = self._path / SUMMARY
        return _read_map(path) if path.exists() else {}

    def close(self) -> None:
        """Do nothing: nothing is open."""


def _read_map(path: Path) -> dict[str, Any]:
    """Read a file that a run replaces as a whole: any other content is damage."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} cannot be read (it holds a {type(content).__name__})")
    return content


class Address:
    """The view of a run through its coordinator."""

    def __init__(self, address: str, key: Path | None = None, *, insecure: bool = False) -> None:
        door = find_door(address, key=key, insecure=insecure)
        self._address = address
        self._context = Context(door.network)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_CONTROL_BYTES)
        try:
            transport.connect(self._socket, door.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise UsageError(f"{address}: {error.strerror}; expected tcp://HOST:PORT") from error
        self._asked = -_ASK_SECONDS
        self._heard = time.monotonic()
        self._last: Seen | None = None

    def look(self) -> Seen | None:
        """Return what the coordinator answered since the last call."""
        now = time.monotonic()
        if now - self._asked >= _ASK_SECONDS:
            self._asked = now
            # Without a connection the request has nowhere to go.
            with contextlib.suppress(zmq.Again):
                self._socket.send(Watch().encoded, zmq.NOBLOCK)
        found = None
        while self._socket.poll(0):
            message = self._read()
            self._heard = now
            if isinstance(message, Over) and self._last is not None:
                found = _done(self._last)
            elif isinstance(message, Seen) and message.snapshot is not None:
                self._last = found = message
        if now - self._heard > _PATIENCE_SECONDS:
            what = "no run answers" if self._last is None else "the run no longer answers"
            raise RunError(f"{self._address}: {what}, for {now - self._heard:.0f} s")
        return found

    def _read(self) -> Message:
        try:
            return decode(self._socket.recv(), TO_CONSOLE)
        except MessageError as error:
            raise RunError(f"{self._address}: {_OTHER_VERSION} ({error})") from error

    def summary(self) -> dict[str, Any]:
        """Return nothing: the summary is written after the coordinator has closed."""
        return {}

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)


def watch(
    target: str,
    console: Kind,
    interrupts: Interrupts,
    *,
    key: Path | None = None,
    insecure: bool = False,
) -> int:
    """Show a run until it ends, or until the person leaves; return the exit code.

    Args:
        target: a run directory, or the address of a coordinator.
        console: how to show it.
        interrupts: Ctrl-C leaves.
        key: file with which a run on another host admits this one.
        insecure: look at a run that has no keys.
    """
    remote = "://" in target
    source = Address(target, key, insecure=insecure) if remote else Directory(Path(target))
    view = make_console(console, sys.stdout, keys=KEYS)
    view.start()
    try:
        ended = _follow(source, view, interrupts)
    finally:
        view.stop()
        source.close()
    summary = source.summary() if ended else {}
    if summary:
        _finish(view, summary)
    return 0


def _finish(view: Console, summary: dict[str, Any]) -> None:
    """Show how a run went, if its summary is one: another person may have written it."""
    error = summary.get("error")
    try:
        view.finish(summary, None if error is None else str(error))
    except (TypeError, ValueError, KeyError, AttributeError) as fault:
        raise RunError(f"{SUMMARY} cannot be read ({type(fault).__name__}: {fault})") from fault


def _follow(source: Source, view: Console, interrupts: Interrupts) -> bool:
    """Show a run until it has ended, or until nobody looks; return whether it has ended."""
    said, last = 0, None
    while not interrupts.count and "q" not in view.pressed() and not reader_has_gone(sys.stdout):
        last = source.look() or last
        if last is not None:
            said = _show(last, said, view)
            if _is_done(last):
                return True
        time.sleep(_TURN_SECONDS)
    return False


def _show(seen: Seen, said: int, view: Console) -> int:
    """Show a snapshot and the messages that are new; return how many there have been."""
    if seen.snapshot is not None:
        view.update(seen.snapshot)
    new = seen.messages[-(seen.said - said) :] if seen.said > said else ()
    for _, text in new:
        view.message(text)
    return seen.said


def _seen(content: dict[str, Any]) -> Seen:
    try:
        return Seen.from_map(content)
    except WireError as error:
        raise RunError(f"{_OTHER_VERSION} ({error})") from error


def _done(seen: Seen) -> Seen:
    """Return the same view with the run's stage set to done."""
    assert seen.snapshot is not None
    return replace(seen, snapshot=replace(seen.snapshot, stage="done"))


def _is_done(seen: Seen | None) -> bool:
    return seen is not None and seen.snapshot is not None and seen.snapshot.stage == "done"
