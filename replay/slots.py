"""The client's memory for the rows of batches."""

from __future__ import annotations

import logging
import mmap
from dataclasses import dataclass

from replay.samples import Sample, SlotLayout
from replay.shared_memory import MemoryAddress, SharedMemory, SharedMemoryError

_log = logging.getLogger("learner")


@dataclass(eq=False)
class Slot:
    """A place for one batch in a memory.

    Attributes:
        shared: its memory, if replay can attach it.
        sample: its arrays.
    """

    index: int
    shared: SharedMemory | None
    sample: Sample

    @property
    def address(self) -> MemoryAddress | None:
        """Address of the slot's memory for replay; None if replay cannot attach it."""
        return None if self.shared is None else self.shared.address


class Slots:
    """The slots of a client, all in its present memory.

    Args:
        layout: layout of the memory.
        share: whether replay may write into it, if it can.

    Attributes:
        shared: the memory, if replay can attach it.
        free: slots without a batch.
    """

    def __init__(self, layout: SlotLayout, *, share: bool) -> None:
        self._layout, self._share = layout, share
        self._said_why = False
        self._make()

    def put(self, slot: Slot) -> None:
        """Mark a slot as free again; drop one of an earlier memory."""
        if self.is_present(slot):
            self.free.append(slot)

    def renew(self) -> None:
        """Make new memory; the old one lives on as long as batches lie in it."""
        self.close()
        self._make()

    def close(self) -> None:
        """Stop sharing the memory; processes that have attached it keep it."""
        if self.shared is not None:
            self.shared.close()

    def is_present(self, slot: Slot) -> bool:
        """Return whether a slot lies in the present memory."""
        return slot in self._slots

    def say_why(self, why: str) -> None:
        """Log once why batches do not come through shared memory."""
        if not self._said_why:
            self._said_why = True
            _log.info("SampleBatches come over the socket: %s", why)

    def _make(self) -> None:
        self.shared, body = self._make_shared()
        self._slots = [
            Slot(index, self.shared, self._layout.view(body, index))
            for index in range(self._layout.count)
        ]
        self.free = list(self._slots)

    def _make_shared(self) -> tuple[SharedMemory | None, memoryview]:
        """Make memory for all slots, shared if requested and possible."""
        try:
            if not self._share:
                raise SharedMemoryError("replay.transport = socket")
            shared = SharedMemory(self._layout.nbytes)
        except SharedMemoryError as error:
            self.say_why(str(error))
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            return None, memoryview(mmap.mmap(-1, self._layout.nbytes, flags=flags))
        return shared, shared.body
