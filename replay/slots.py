"""Memory of the client that rows of batches are written into."""

from __future__ import annotations

from dataclasses import dataclass, field

from replay.samples import (
    Sample,
)
from replay.shared_memory import SharedMemory


@dataclass(eq=False)
class Slots:
    """One memory of all slots.

    Attributes:
        shared: it, if replay can attach it.
        free: slots that no batch is in.
    """

    shared: SharedMemory | None
    free: list[Slot] = field(default_factory=list)


@dataclass(eq=False)
class Slot:
    """A place for one batch in a memory."""

    index: int
    slots: Slots
    sample: Sample
