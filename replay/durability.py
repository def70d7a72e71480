"""The journal's place, and the start of a shard with what its journal holds."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from pdqn.config import Config
from pdqn.files import FOLDER_VARIABLE, is_here
from pdqn.messages import MAX_INDEX, Welcome
from pdqn.specs import EnvironmentSpec
from pdqn.telemetry import Telemetry
from replay.buffer import make_buffer
from replay.contents import Contents
from replay.journal import (
    Damage,
    Journal,
    OtherFormatError,
    SegmentHead,
    read_latest,
    segments_of,
)
from replay.keeper import Keeper
from replay.limiter import make_limiter
from replay.ownership import Owner, lock
from replay.recovery import OtherKindError, Result, Taken, recover
from replay.renewal import Renewal, finish_replacement, replace_folder
from replay.sequences import Sequences
from replay.sharding import ShardLimiter
from replay.waiting import window_batches

JOURNAL = "journal"
_POLL_SECONDS = 0.05
_RETRY_SECONDS = 1.0
_log = logging.getLogger("replay")


class StoppedError(Exception):
    """The order to stop, before the journal was read to its end."""


class Contact(Protocol):
    """A shard's contact with those who wait for it, such as ``pdqn.link.CoordinatorLink``.

    Attributes:
        telemetry: figures for the next report.
    """

    telemetry: Telemetry

    @property
    def stopping(self) -> bool:
        """Return whether the shard must end."""
        ...

    def poll(self, timeout_seconds: float = 0.0) -> None:
        """Keep in touch, for at least this time."""
        ...

    def wait(self, seconds: float) -> None:
        """Wait, and keep in touch meanwhile."""
        ...


class Opened(NamedTuple):
    """A shard that is ready to serve, and the keeper of its journal."""

    contents: Contents
    keeper: Keeper


def open_shard(
    link: Contact, welcome: Welcome, heartbeat: AbstractContextManager[object]
) -> Opened:
    """Make a shard's contents, with what its journal holds.

    Args:
        link: link to the coordinator.
        welcome: the replay's.
        heartbeat: heartbeat for what waits for the disk, and speaks with nobody meanwhile.

    Raises:
        StoppedError: the run ended meanwhile.
        RunError: another process keeps the journal.
    """
    telemetry, config = link.telemetry, welcome.config.replay
    folder = None
    if config.journal != "off":
        folder = journal_folder(welcome, os.environ.get(FOLDER_VARIABLE, ""))
        if folder is None:
            telemetry.note(JOURNAL, "no journal: this host has no folder for one; "
                           "replay.journal_dir names a folder")  # fmt: skip
    opened = None
    if folder is not None:
        try:
            if welcome.index == 0:
                with heartbeat:
                    left_out = _leave_out(folder.parent, config.shards)
                if left_out:
                    telemetry.note(JOURNAL, f"{left_out} transitions are left out: the run had "
                                   "more replays, and their journals are removed")  # fmt: skip
            opened = _open(link, welcome, folder, heartbeat)
        except OSError as error:
            telemetry.count("journal_failures")
            why = f"{error.filename or folder}: {error.strerror}"
            telemetry.note(JOURNAL, f"no journal: {why}; a replay that ends starts empty")
    if opened is None:
        contents = _new_contents(welcome)
        opened = Opened(contents, Keeper(contents, telemetry))
    return opened


def journal_folder(welcome: Welcome, own_folder: str) -> Path | None:
    """Choose the folder of a shard's journal; None if this host has no place for it.

    It is in the run's directory where that is reachable. Elsewhere it is where
    ``replay.journal_dir`` says, or else in the folder of this host's supervisor.

    Args:
        welcome: the replay's.
        own_folder: folder of this host's supervisor; empty if there is none.
    """
    name = f"replay-{welcome.index}"
    if welcome.config.replay.journal_dir and welcome.run_dir:
        run = hashlib.sha256(welcome.run_dir.encode()).hexdigest()[:8]
        base = Path(welcome.config.replay.journal_dir).expanduser()
        return base / f"{Path(welcome.run_dir).name}-{run}" / name
    if is_here(welcome):
        return Path(welcome.run_dir) / JOURNAL / name
    return Path(own_folder) / JOURNAL / name if own_folder else None


def kind_of(spec: EnvironmentSpec, config: Config) -> str:
    """Return a text that is equal for runs whose transitions mean the same."""
    actor = config.actor
    meaning = [spec.to_map(), actor.lookahead, actor.discount, actor.reward_clip]
    if actor.returns == "lambda":
        meaning += ["lambda", actor.trace_decay]
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def _new_contents(welcome: Welcome) -> Contents:
    config, life = welcome.config, welcome.incarnation
    buffer = make_buffer(config, welcome.spec, welcome.index, life)
    return Contents(
        buffer, ShardLimiter(make_limiter(config)), Sequences(window_batches(config)), life
    )


def _open(
    link: Contact, welcome: Welcome, folder: Path, heartbeat: AbstractContextManager[object]
) -> Opened:
    lease = _Lease(welcome, folder)
    lease.take(heartbeat, partial(_wait_for_lock, link))
    with heartbeat:
        finish_replacement(folder)
    contents, result = _recovered(link, welcome, folder)
    replay = welcome.config.replay
    reported = result if result.run == welcome.run else Result()
    telemetry = link.telemetry
    telemetry.count("transitions_recovered", contents.buffer.size)
    # The process before this one had no time to report them.
    telemetry.count("transitions_received", reported.unreported)
    telemetry.count("transitions_refused", reported.unreported_refused)
    head = partial(contents.head, welcome.run, kind_of(welcome.spec, welcome.config))
    sync = replay.journal == "sync"

    def renew() -> Renewal:
        # Its files may be gone with those of the journal. The keeper has the heartbeat.
        lease.take(nullcontext(), _do_not_wait)
        return Renewal(folder, contents, head, sync=sync, check=lease.check)

    keeper = Keeper(
        contents,
        telemetry,
        _new_journal(link, welcome, folder, head, heartbeat, lease.check),
        sync=sync,
        when_full=replay.journal_full,
        remove=partial(_remove, folder, lease.check),
        release=lease.release,
        renew=renew,
        unreported=reported.unreported,
        unreported_refused=reported.unreported_refused,
    )
    with heartbeat:
        keeper.take_snapshot()
    return Opened(contents, keeper)


class _Lease:
    """The right to keep a journal: a lock, and in a shared folder also the name of the owner."""

    def __init__(self, welcome: Welcome, folder: Path) -> None:
        self._path = folder.with_suffix(".lock")
        self._locked: int | None = None
        self._owner = None
        if welcome.config.replay.journal_dir:
            self._owner = Owner(folder.with_suffix(".owner"), welcome.run, welcome.incarnation)

    def take(self, heartbeat: AbstractContextManager[object], wait: Callable[[], object]) -> None:
        """Take it, or take it again where its files were removed.

        Args:
            heartbeat: heartbeat for what waits for the disk.
            wait: as of ``lock``.

        Raises:
            RunError: another process keeps the journal.
            OSError: the files cannot be made.
        """
        with heartbeat:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._is_locked():
            self.release()
            shared = self._owner is not None
            self._locked = lock(self._path, heartbeat, shared=shared, wait=wait)
        if self._owner is not None:
            with heartbeat:
                self._owner.claim()

    def check(self) -> None:
        """Return if no other process has taken it.

        The lock alone keeps other processes from a journal that no other host reaches.

        Raises:
            TakenOverError: another process has.
            OSError: that cannot be found out.
        """
        if self._owner is not None:
            self._owner.check()

    def release(self) -> None:
        """Let other processes have it."""
        if self._locked is not None:
            os.close(self._locked)
            self._locked = None

    def _is_locked(self) -> bool:
        if self._locked is None:
            return False
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._locked))
        except FileNotFoundError:
            return False


def _new_journal(
    link: Contact,
    welcome: Welcome,
    folder: Path,
    head: Callable[[], SegmentHead],
    heartbeat: AbstractContextManager[object],
    check: Callable[[], object],
) -> Journal | None:
    """Continue the journal in its folder; wait, or go on without, where it cannot be written.

    Raises:
        StoppedError: the run ended meanwhile.
    """
    while True:
        try:
            with heartbeat:
                return Journal(folder, head, check=check)
        except OSError as error:
            why = f"{error.filename or folder}: {error.strerror}"
        if welcome.config.replay.journal_full == "off":
            link.telemetry.count("journal_failures")
            link.telemetry.note(JOURNAL, f"no journal: {why}; a replay that ends starts empty")
            shutil.rmtree(folder, ignore_errors=True)
            return None
        link.telemetry.activity = f"waits: {why}"
        link.wait(_RETRY_SECONDS)
        if link.stopping:
            raise StoppedError


def _wait_for_lock(link: Contact) -> None:
    link.telemetry.activity = "waits for the process that has its journal"
    if link.stopping:
        raise StoppedError
    link.poll(_POLL_SECONDS)


def _do_not_wait() -> None:
    raise BlockingIOError(errno.EAGAIN, "another process keeps the journal")


def _leave_out(folder: Path, shards: int) -> int:
    """Remove the journals of shards that a resumed run has no more; count what they held."""
    left_out = 0
    for number in range(shards, MAX_INDEX):
        journal = folder / f"replay-{number}"
        if not segments_of(journal):
            break
        snapshot = read_latest(journal, Damage()).snapshot
        left_out += len(snapshot.priorities) if snapshot is not None else 0
        shutil.rmtree(journal)
        for suffix in (".lock", ".owner"):
            journal.with_suffix(suffix).unlink(missing_ok=True)
    return left_out


def _remove(folder: Path, check: Callable[[], object]) -> None:
    """Remove the journal, unless another process keeps it by now."""
    with suppress(OSError):
        check()
        shutil.rmtree(folder, ignore_errors=True)


def _recovered(link: Contact, welcome: Welcome, folder: Path) -> tuple[Contents, Result]:
    """Read the journal, if there is one that can be used; else remove it."""
    result = Result()
    # The first process of a run's shard does not continue a journal that somebody else left.
    if welcome.incarnation and segments_of(folder):
        kind = kind_of(welcome.spec, welcome.config)
        try:
            contents, result = _read(link, welcome, folder, kind)
        except OtherKindError:
            why = "its transitions mean something else"
        except OtherFormatError as error:
            why = str(error)
        else:
            _tell(link, contents, result)
            return contents, result
        link.telemetry.note(JOURNAL, f"the journal is not taken over: {why}")
    shutil.rmtree(folder, ignore_errors=True)
    return _new_contents(welcome), result


def _read(link: Contact, welcome: Welcome, folder: Path, kind: str) -> tuple[Contents, Result]:
    written: list[Journal] = []
    new = folder.with_suffix(".new")

    def rewrite(contents: Contents) -> Taken:
        """Write what is left, with its new keys, into a journal beside the damaged one."""
        run = ""

        def head() -> SegmentHead:
            return contents.head(run, kind)

        def take(of_run: str, first_key: int, mean: float | None, data: memoryview) -> None:
            nonlocal run
            journal = written[0] if written else None
            if journal is not None:
                # Segments begin between batches, and each is of one run.
                journal.write()
            if of_run != run:
                run = of_run
                if journal is None:
                    written.append(Journal(new, head))
                else:
                    journal.begin()
            written[0].store(first_key, mean, data)

        return take

    def show(share: float) -> None:
        _show(link, share)

    contents, result = recover(folder, welcome.spec, kind, lambda: _new_contents(welcome), show,
                               rewrite)  # fmt: skip
    if written:
        written[0].write()
        written[0].snapshot(contents.snapshot())
        written[0].close()
        replace_folder(folder, new)
    return contents, result


def _show(link: Contact, share: float) -> None:
    """Keep in touch with the coordinator while the journal is read."""
    link.telemetry.activity = f"reads its journal ({100 * share:.0f}%)"
    link.poll()
    if link.stopping:
        raise StoppedError


def _tell(link: Contact, contents: Contents, result: Result) -> None:
    """Report what the journal held, and what it has lost."""
    telemetry, damage = link.telemetry, result.damage
    size = contents.buffer.size
    _log.info("the journal held %d transitions; %d bytes were torn", size, damage.torn_bytes)
    places = max(damage.damaged, result.holes)
    telemetry.count("journal_damaged", places)
    parts = []
    if places:
        parts.append(f"{places} places of the journal are damaged")
    if result.left_out:
        parts.append(f"{result.left_out} transitions do not fit any more")
    if parts:
        telemetry.note(JOURNAL, f"{' and '.join(parts)}; {size} transitions are taken over")
