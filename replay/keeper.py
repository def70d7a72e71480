"""The keeper of a shard's journal: what is written when, and what happens if the disk is full."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pdqn.spans import Stream
from pdqn.telemetry import Telemetry
from pdqn.wire import TransitionBatch
from replay.contents import Contents
from replay.journal import Counts, Journal, Refused, Sync
from replay.records import Piece

SNAPSHOT_SECONDS = 5.0
_SYNC_SECONDS = 0.02
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_log = logging.getLogger("replay")


class Receipt(NamedTuple):
    """An acknowledgement that may be sent now.

    Attributes:
        stream: (actor, incarnation) to which it goes.
        expected: sequence number that is expected next.
        greeting: whether it answers a hello.
    """

    stream: Stream
    expected: int
    greeting: bool


class Successor(Protocol):
    """A journal that is written from the buffer; see ``replay.renewal``."""

    def step(self) -> bool:
        """Write for a moment; return whether everything is written."""
        ...

    def finish(self) -> Journal:
        """Put it in the place of the one before; everything must be written."""
        ...

    def abandon(self) -> None:
        """Remove it."""
        ...


class Keeper:
    """The journal of a shard as its settings want it; without a journal it does nothing.

    Batches are collected before they are inserted, and written before they are acknowledged. The
    order of a turn is therefore: ``store``, insertion, ``owe``, ``write``, ``settled``.

    Args:
        contents: contents of the shard.
        telemetry: telemetry that counts failures.
        journal: the journal; None for none.
        sync: whether acknowledgements wait until the disk itself has the batches.
        when_full: ``off`` to go on without a journal where it cannot be written, or ``block`` to
            take no batches until it can.
        remove: function that removes the journal's files.
        release: function that lets other processes have the journal.
        renew: function that begins a journal in the place of a lost one; it is written from the
            buffer. None if that is not possible.
        unreported: transitions received that no report to the coordinator has counted.
        unreported_refused: transitions refused that no report has counted.

    Attributes:
        blocked: whether no batches may be taken now.
    """

    def __init__(
        self,
        contents: Contents,
        telemetry: Telemetry,
        journal: Journal | None = None,
        *,
        sync: bool = False,
        when_full: Literal["off", "block"] = "off",
        remove: Callable[[], object] = lambda: None,
        release: Callable[[], object] = lambda: None,
        renew: Callable[[], Successor] | None = None,
        unreported: int = 0,
        unreported_refused: int = 0,
    ) -> None:
        self._contents = contents
        self._telemetry = telemetry
        self._journal = journal
        self._when_full = when_full
        self._remove, self._release = remove, release
        self.blocked = False
        self._owed: dict[Stream, Receipt] = {}
        self._sync = sync
        self._syncs = _Syncs() if sync and journal is not None else None
        self._renew = renew
        self._successor: Successor | None = None
        self._pause = _RETRY_SECONDS
        self._reported_key = contents.buffer.inserted - unreported
        self._reported_refused = contents.refused - unreported_refused
        self._counted = False
        self._next_snapshot = self._next_try = self._next_look = 0.0
        self._snapshot_bytes = 0

    @property
    def journal_bytes(self) -> int:
        """Bytes of the journal when the last snapshot was taken; 0 without a journal."""
        return self._snapshot_bytes

    @property
    def is_on(self) -> bool:
        """Return whether there is a journal."""
        return self._journal is not None

    # ---- what is collected ----

    def store(self, batch: TransitionBatch, data: Piece) -> None:
        """Collect a batch for which there is room, and which is inserted next.

        Its bytes, ``data``, must not change before ``write``.
        """
        self._contents.accounts.add(batch.stream, batch.made, batch.count)
        if self._journal is not None:
            buffer = self._contents.buffer
            self._journal.store(buffer.inserted, buffer.mean_priority, data)

    def refuse(self, stream: Stream, sequence: int, count: int, made: int) -> None:
        """Collect a stub of a refused batch.

        Args:
            stream: (actor, incarnation) of its sender.
            sequence: its number in the stream.
            count: its transitions.
            made: transitions of the stream up to its last one; 0 if it does not say.
        """
        contents = self._contents
        contents.refused += count
        contents.accounts.add(stream, made, count, refused=count)
        if self._journal is not None:
            self._journal.refuse(Refused(stream, sequence, count, contents.refused, made))

    def update(self, keys: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """Collect priority updates that are applied next."""
        # While the disk is full they are not kept: the snapshot that ends this has them.
        if self._journal is None or self.blocked:
            return
        buffer = self._contents.buffer
        if keys.max(initial=-1) >= buffer.inserted:
            # They have no effect now, and must have none on the transitions that get them later.
            given_out = keys < buffer.inserted
            keys, priorities = keys[given_out], priorities[given_out]
        self._journal.update(keys, priorities, buffer.mean_priority)
        self._counted = True

    def note_report(self) -> None:
        """Note that a report has told the coordinator all that is counted by now."""
        self._reported_key = self._contents.buffer.inserted
        self._reported_refused = self._contents.refused
        self._counted = True

    def owe(self, stream: Stream, expected: int, *, greeting: bool = False) -> None:
        """Note an acknowledgement that is due once all that was collected is safe."""
        former = self._owed.get(stream)
        greeting = greeting or (former is not None and former.greeting)
        self._owed[stream] = Receipt(stream, expected, greeting)

    # ---- what is written ----

    def write(self) -> None:
        """Write what was collected."""
        journal = self._journal
        if journal is None or self.blocked:
            return
        if self._counted:
            journal.count(self._counts)
            self._counted = False
        try:
            journal.write()
            if self._syncs is None and journal.has_retired:
                journal.begin_sync().finish()
        except OSError as error:
            self._fail(error)

    def settled(self) -> list[Receipt]:
        """Return the acknowledgements that may be sent now, once each."""
        if self._syncs is not None and self._journal is not None:
            try:
                return self._syncs.turn(self._journal, self._owed, self.blocked)
            except OSError as error:
                self._fail(error)
        if self.blocked:
            return []
        receipts = list(self._owed.values())
        self._owed.clear()
        return receipts

    def attend(self) -> None:
        """Take a snapshot when one is due; try again to write where the disk was full.

        Once a second, look whether the files are still there. A lost journal is renewed.
        """
        now = time.monotonic()
        if self._journal is not None and now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            if not self._journal.is_whole:
                self._lose("files of the journal were removed")
        if self._journal is None:
            if self._successor is not None or now >= self._next_try:
                self._go_on_renewing()
            return
        if now < (self._next_try if self.blocked else self._next_snapshot):
            return
        self._next_snapshot, self._next_try = now + SNAPSHOT_SECONDS, now + _RETRY_SECONDS
        self.take_snapshot()

    def take_snapshot(self) -> None:
        """Write what was collected and a snapshot."""
        if self._journal is None:
            return
        try:
            self._journal.snapshot(self._contents.snapshot())
            self._journal.count(self._counts)
            self._journal.write()
            if self._syncs is None:
                self._journal.begin_sync().finish()
            self._snapshot_bytes = self._journal.nbytes
        except OSError as error:
            self._fail(error)
            return
        if self.blocked:
            self.blocked = False
            self._note("the journal can be written again: replay takes batches again")

    def _lose(self, why: str) -> None:
        """Go on without a journal until another one holds what the buffer holds."""
        self._telemetry.count("journal_failures")
        self._let_go()
        self._next_try = 0.0
        self.blocked = self._renew is not None and self._when_full == "block"
        if self._renew is None:
            self._note(f"{why}; the run goes on without it, and a replay that ends starts empty")
            return
        meanwhile = "takes no batches" if self.blocked else "starts empty if it ends"
        self._note(f"{why}; replay writes all that it holds again, and {meanwhile} before then")

    def _go_on_renewing(self) -> None:
        """Begin the journal that follows a lost one, or write a part of it, or finish it."""
        if self._renew is None:
            return
        try:
            if self._successor is None:
                self._successor = self._renew()
            if not self._successor.step():
                return
            self._journal = self._successor.finish()
        except OSError as error:
            _log.warning("the journal cannot be written again yet: %s", error)
            self._next_try = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
            if self._successor is not None:
                self._successor.abandon()
                self._successor = None
            return
        self._successor = None
        self._syncs = _Syncs() if self._sync else None
        self.blocked, self._counted = False, True
        self._next_snapshot, self._pause = 0.0, _RETRY_SECONDS
        size = self._contents.buffer.size
        self._note(f"the journal is complete again: it holds all {size} transitions")

    def close(self) -> None:
        """Write a last snapshot, and close the journal; one report of this process may follow.

        A journal that is being written again is completed.
        """
        self.note_report()
        while self._successor is not None:
            self._go_on_renewing()
        self.take_snapshot()
        if self._syncs is not None:
            self._syncs.close()
        if self._journal is not None:
            if self._syncs is not None:
                self._journal.begin_sync().run()
            self._journal.close()
            self._journal = None
        self._release()

    @property
    def waits(self) -> bool:
        """Return whether acknowledgements wait for the disk, or a new journal has to be written."""
        if self._syncs is None:
            return self._successor is not None
        return bool(self._owed or self._syncs.waiting)

    @property
    def _counts(self) -> Counts:
        sampled = self._contents.limiter.sampled
        return Counts(sampled, self._reported_key, self._reported_refused)

    def _fail(self, error: OSError) -> None:
        """Go on without a journal, or wait, after it could not be written."""
        self._telemetry.count("journal_failures")
        why = f"the journal cannot be written: {error.strerror or error}"
        if self._when_full == "block":
            if not self.blocked:
                self.blocked = True
                self._note(f"{why}; replay takes no batches until it can (replay.journal_full)")
            return
        self._let_go()
        # Contents that are not up to date must not come back; and others may need the room.
        self._remove()
        self._next_try = time.monotonic() + self._pause
        again = "" if self._renew is None else ", until there is room for a new one"
        self._note(f"{why}; the run goes on without it{again}, and a replay that ends starts empty")

    def _let_go(self) -> None:
        """Close the journal, and let acknowledgements go without it."""
        if self._syncs is not None:
            self._syncs.close()
            self._owed = self._syncs.waiting | self._owed
            self._syncs = None
        if self._journal is not None:
            self._journal.close()
        self._journal, self._snapshot_bytes = None, 0

    def _note(self, text: str) -> None:
        _log.warning("%s", text)
        self._telemetry.note("journal", text)


class _Syncs:
    """Waits for the disk in a thread, one after the other; each lets acknowledgements go."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "sync")
        self._running: tuple[Sync, Future[None]] | None = None
        self._next = 0.0
        self.waiting: dict[Stream, Receipt] = {}

    def turn(self, journal: Journal, owed: dict[Stream, Receipt], blocked: bool) -> list[Receipt]:
        """Finish a sync, and begin the next one if it is due; return what is acknowledged.

        Args:
            journal: the journal, all of which is written unless it is blocked.
            owed: acknowledgements that wait; those that a new sync covers are taken from it.
            blocked: whether the journal cannot be written.

        Raises:
            OSError: the disk fails.
        """
        done: list[Receipt] = []
        if self._running is not None and self._running[1].done():
            sync, future = self._running
            self._running = None
            future.result()
            sync.finish()
            done = list(self.waiting.values())
            self.waiting = {}
        now = time.monotonic()
        if self._running is None and owed and now >= self._next and not blocked:
            self._next = now + _SYNC_SECONDS
            self.waiting = dict(owed)
            owed.clear()
            sync = journal.begin_sync()
            self._running = sync, self._pool.submit(sync.run)
        return done

    def close(self) -> None:
        """Wait for the sync that is running, and end the thread."""
        self._pool.shutdown()
        if self._running is not None:
            self._running[0].finish()
            self._running = None
