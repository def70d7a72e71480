"""Memory of the client that rows of batches are written into."""

from __future__ import annotations

import logging
import mmap
from dataclasses import dataclass, field

from replay.samples import Sample, SlotLayout
from replay.shared_memory import MemoryAddress, SharedMemory, SharedMemoryError

_log = logging.getLogger("learner")


@dataclass(eq=False)
class Slot:
    """A place for one batch in a memory.

    Attributes:
        memory: the one it lies in.
        sample: its arrays.
    """

    index: int
    memory: SlotMemory
    sample: Sample

    @property
    def address(self) -> MemoryAddress | None:
        """Where replay can attach the slot's memory; None if it cannot."""
        return None if self.memory.shared is None else self.memory.shared.address


@dataclass(eq=False)
class SlotMemory:
    """One memory of all slots.

    Attributes:
        shared: it, if replay can attach it.
        free: slots that no batch is in.
    """

    shared: SharedMemory | None
    free: list[Slot] = field(default_factory=list)


class Slots:
    """The slots of a client, all in its present memory.

    Args:
        layout: of the memory.
        share: whether replay is to write into it, where it can.
    """

    def __init__(self, layout: SlotLayout, *, share: bool) -> None:
        self._layout, self._share = layout, share
        self._said_why = False
        self._memory = self._make()

    @property
    def shared(self) -> bool:
        """Whether replay can attach the memory, as far as it is this process's doing."""
        return self._memory.shared is not None

    @property
    def free(self) -> bool:
        """Whether there is a slot that no batch is in."""
        return bool(self._memory.free)

    def take(self) -> Slot:
        """Take a free slot out."""
        return self._memory.free.pop()

    def put(self, slot: Slot) -> None:
        """Have a slot free again; one of an earlier memory goes with it."""
        if slot.memory is self._memory:
            self._memory.free.append(slot)

    def renew(self) -> None:
        """Make new memory; the old one lives on as long as batches lie in it."""
        self.close()
        self._memory = self._make()

    def close(self) -> None:
        """Share the memory no more; who has it keeps it."""
        if self._memory.shared is not None:
            self._memory.shared.close()

    def is_present(self, slot: Slot) -> bool:
        """Whether a slot lies in the present memory."""
        return slot.memory is self._memory

    def say_why(self, why: str) -> None:
        """Log once why batches do not come through shared memory."""
        if not self._said_why:
            self._said_why = True
            _log.info("SampleBatches come over the socket: %s", why)

    def _make(self) -> SlotMemory:
        shared, body = self._make_shared()
        memory = SlotMemory(shared)
        memory.free = [
            Slot(index, memory, self._layout.view(body, index))
            for index in range(self._layout.count)
        ]
        return memory

    def _make_shared(self) -> tuple[SharedMemory | None, memoryview]:
        """Memory for all slots; shared if it is to be and can be."""
        try:
            if not self._share:
                raise SharedMemoryError("replay.transport = socket")
            shared = SharedMemory(self._layout.nbytes)
        except SharedMemoryError as error:
            self.say_why(str(error))
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            return None, memoryview(mmap.mmap(-1, self._layout.nbytes, flags=flags))
        return shared, shared.body
