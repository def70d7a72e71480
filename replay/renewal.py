"""The renewal of a journal whose files are gone: the buffer's contents become its first batches.

It goes on beside the work of the shard, slice by slice, in a folder of its own. Batches that are
inserted meanwhile are written from the buffer too, so the renewal ends when it has caught up. Only
then does the new journal take its place. It is like one that began with the oldest live batch:
recovery needs nothing else.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pdqn.wire import TransitionBatch, encode_transitions
from replay.buffer import stored_batch
from replay.contents import Contents
from replay.journal import SEGMENT_BYTES, Journal, SegmentHead, Sync

_SLICE_SECONDS = 0.004
# What is free on the disk must exceed the buffer's contents by this factor.
_ROOM = 2
# No actor has these numbers. The state of the streams is in the segments' heads.
_NOBODY = (1 << 32) - 1


class Renewal:
    """A journal that is written from a buffer.

    Args:
        folder: folder of the journal that it replaces.
        contents: contents of the shard.
        head: as of ``Journal``.
        sync: whether the disk must hold it in the end.
        segment_bytes: size beyond which a new segment begins.
        check: as of ``Journal``.

    Raises:
        OSError: it cannot be written, or there is no room for it.
    """

    def __init__(
        self,
        folder: Path,
        contents: Contents,
        head: Callable[[], SegmentHead],
        *,
        sync: bool = False,
        segment_bytes: int = SEGMENT_BYTES,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._folder, self._new = folder, folder.with_suffix(".new")
        self._contents, self._buffer, self._head_now = contents, contents.buffer, head
        self._segment_bytes, self._check = segment_bytes, check
        shutil.rmtree(self._new, ignore_errors=True)
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        needed = _ROOM * self._buffer.stored_bytes + segment_bytes
        if shutil.disk_usage(folder.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.parent))
        self._pool = ThreadPoolExecutor(1, "sync") if sync else None
        self._syncing: tuple[Sync, Future[None]] | None = None
        self._is_open = False
        try:
            self._begin()
        except OSError:
            self.abandon()
            raise

    def step(self, seconds: float = _SLICE_SECONDS) -> bool:
        """Write for a moment; return whether everything is written.

        Args:
            seconds: duration after which no further batch is begun.

        Raises:
            OSError: the disk is full, or fails.
        """
        if self._buffer.evicted > self._key:
            self._start_over()
        end = time.monotonic() + seconds
        while self._key < self._buffer.inserted and time.monotonic() < end:
            self._write_batch()
        is_safe = self._tend_complete()
        return is_safe and self._key == self._buffer.inserted

    def finish(self) -> Journal:
        """Put it in the place of the one before, and return it; everything must be written.

        Raises:
            OSError: the disk is full, or fails.
        """
        self._journal.snapshot(self._contents.snapshot())
        sync = self._journal.begin_sync()
        if self._pool is not None:
            sync.run()
        sync.finish()
        self._close()
        replace_folder(self._folder, self._new)
        return Journal(self._folder, self._head_now, self._segment_bytes, self._check)

    def abandon(self) -> None:
        """Remove what is written."""
        self._close()
        shutil.rmtree(self._new, ignore_errors=True)

    def _close(self) -> None:
        if self._is_open:
            self._close_journal()
        if self._pool is not None:
            self._pool.shutdown()

    def _close_journal(self) -> None:
        if self._syncing is not None:
            sync, future = self._syncing
            self._syncing = None
            wait([future])
            sync.finish()
        self._journal.close()
        self._is_open = False

    def _begin(self) -> None:
        """Begin with the oldest live batch."""
        self._key = self._buffer.evicted
        self._frame = self._buffer.store.live_frames.start
        # First keys of the batches that are written and were alive lately, to find the next one.
        self._written: deque[int] = deque()
        self._journal = Journal(self._new, self._head, self._segment_bytes, self._check)
        self._is_open = True

    def _start_over(self) -> None:
        """Begin again, because the next batch was evicted before it could be written."""
        self._close_journal()
        shutil.rmtree(self._new, ignore_errors=True)
        self._begin()

    def _head(self) -> SegmentHead:
        """Describe the shard's state before the next batch."""
        head = self._head_now()
        if self._key == head.first_key:
            return head
        place = self._buffer.store.place_of(self._frame)
        return replace(head, first_key=self._key, cursor=place)

    def _write_batch(self) -> None:
        while self._written and self._written[0] < self._buffer.evicted:
            self._written.popleft()
        batch = stored_batch(self._buffer, len(self._written), self._key, self._frame)
        nobody = (_NOBODY, _NOBODY, 0)
        message = TransitionBatch(
            self._head_now().run, *nobody, batch.parameter_version, batch.columns, batch.blocks
        )
        # The priorities are clipped already.
        self._journal.store(self._key, math.inf, encode_transitions(message))
        self._written.append(self._key)
        self._key += message.count
        self._frame += message.frames
        self._journal.write()

    def _tend_complete(self) -> bool:
        """Close segments that are complete; return whether the disk holds them, if it must."""
        if self._pool is None:
            self._journal.begin_sync().finish()
            return True
        if self._syncing is None and self._journal.has_retired:
            sync = self._journal.begin_sync()
            self._syncing = sync, self._pool.submit(sync.run)
        if self._syncing is not None and self._syncing[1].done():
            sync, future = self._syncing
            self._syncing = None
            sync.finish()
            future.result()
        return self._syncing is None


def replace_folder(folder: Path, new: Path) -> None:
    """Put a complete journal in the place of another one, or of none; see ``finish_replacement``.

    Raises:
        OSError: the folders cannot be renamed.
    """
    damaged = folder.with_suffix(".damaged")
    with suppress(FileNotFoundError):
        folder.rename(damaged)
    new.rename(folder)
    shutil.rmtree(damaged, ignore_errors=True)


def finish_replacement(folder: Path) -> None:
    """Finish or undo the replacement of a journal that was interrupted."""
    new, damaged = folder.with_suffix(".new"), folder.with_suffix(".damaged")
    if damaged.exists() and not folder.exists() and new.exists():
        new.rename(folder)
    for left in (new, damaged):
        shutil.rmtree(left, ignore_errors=True)
