"""The learner's way to replay: it asks for SampleBatches, is never sent more.

The client keeps ``learner.prefetch`` batches requested; every request carries the new priorities
of earlier batches. Replay writes the rows into memory of the client where it can, else they come
as messages. Several shards write their rows of the same batch each. See ``replay.samples`` for
the messages, and ``replay.sharding`` for whose rows a batch gets.

**Lost requests.** A shard may end, and a connection may break, while rows are outstanding. Those
are asked for again: at once when the shard is not among those alive any more, and otherwise when
the shard, asked for its state, does not know of the request. Whoever got the first request may
still live and write into the memory that it was given, late. So that this is never memory of
another batch, the client makes new memory for all its slots then, and takes its batches there.

**Silence.** A shard answers at once when it is asked for its state, whatever its rows wait for.
One that does not for long, while others do, may live where this client cannot reach it: the
others give its rows, the ledger does without it, and it is asked anew until it answers. Where
nobody answers it may be this host's own line that is cut. There is nobody to go on with, then, and
all are waited for.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import zmq
from numpy.typing import NDArray

from pdqn import transport, wire
from pdqn.config import Config
from pdqn.silence import Listening
from pdqn.specs import EnvironmentSpec
from replay.limiter import make_limiter
from replay.samples import (
    MAX_UPDATES,
    Sample,
    SampleAnswer,
    SampleLayout,
    SampleRequest,
    SlotLayout,
    decode_answer,
    encode_request,
    slot_count,
)
from replay.sharding import Ledger, allocate
from replay.shared_memory import SharedMemory, SharedMemoryError
from replay.slots import Slot, Slots

# Shards are asked for their state this often; a single one only to find requests that got lost.
_STATE_SECONDS = 0.05
_TRY_AGAIN_SECONDS = 1.0
_ONLY_SHARD_STATE_SECONDS = 1.0
_STATE_PATIENCE_SECONDS = 1.0
# Silence that is too long; and as answers go over one connection, what they take on a slow line.
_SILENCE_SECONDS = 10.0
_SLOWEST_BYTES_PER_SECOND = 2e6
_MOST_ANSWERS_PER_TURN = 256
_HEADER_BYTES = 1 << 20  # at most, of a message from replay; rows that it brings come on top
_MOST_UPDATES_WAITING = 256
_log = logging.getLogger("learner")


@dataclass(eq=False)
class _Silence:
    """Of a shard that was asked for its state and has answered nothing since.

    Attributes:
        listened: seconds that the client had listened for when it began.
        answered: seconds in which anybody had answered by then.
        said: it is in the log.
        given_up: the others give the shard's rows until it answers.
    """

    listened: float
    answered: float
    said: bool = False
    given_up: bool = False


@dataclass(eq=False)
class _Shard:
    """A connection to a shard.

    Attributes:
        refusals: tells when the shard does not let this client in.
        opened: monotonic time at which the connection was made.
        parts: outstanding requests for rows, by number.
        updates: bytes of keys and of priorities that wait for a request to go with.
        asked: monotonic time of the last request.
        state_asked: of the last one for the state alone that is unanswered; None for none.
        silence: since the first one after which nothing was heard, over earlier connections, too.
        alive: the connection is still the one in use.
        attaches: as far as known, the shard can attach the client's memory.
    """

    index: int
    address: str
    socket: zmq.Socket[bytes]
    refusals: transport.Refusals
    opened: float
    parts: dict[int, _Part] = field(default_factory=dict)
    updates: deque[tuple[bytes, bytes]] = field(default_factory=deque)
    asked: float = -1e9
    state_asked: float | None = None
    silence: _Silence | None = None
    alive: bool = True
    attaches: bool = True


@dataclass(eq=False)
class _Part:
    """Rows of a batch that a shard gives, and the slot that it was told to write them into."""

    batch: _Batch
    shard: _Shard
    start: int
    rows: int
    slot: Slot
    in_slot: bool


@dataclass(eq=False)
class _Batch:
    """A batch on its way, or with the learner.

    Attributes:
        sample: the slot's, or the memory of the message that brought all of it.
        unasked: (start, rows) that no shard has been asked for.
        parts: what has come.
        missing: rows that have not.
    """

    slot: Slot
    sample: Sample
    missing: int
    unasked: list[tuple[int, int]]
    parts: list[_Part] = field(default_factory=list)


class SampleClient:
    """DEALERs to the shards of replay; use from one thread.

    Args:
        context: of the process.
        spec: of the run's environment.
        config: of the run.
        rng: for what is random in sharing batches out.

    Attributes:
        rejected: answers that made no sense.
        priorities_dropped: new priorities of shards that are gone.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        spec: EnvironmentSpec,
        config: Config,
        rng: np.random.Generator,
    ) -> None:
        self._context = context
        self._rng = rng
        self._batch_size = config.learner.batch_size
        self._prefetch = config.learner.prefetch
        self._share = config.replay.transport == "auto"
        self._layout = SlotLayout(spec, self._batch_size, slot_count(config))
        self._part_layout = lru_cache(64)(lambda rows: SampleLayout(spec, rows))
        self._ledger = Ledger(make_limiter(config)) if config.replay.shards > 1 else None
        self._said_why = False
        self._slots = self._new_slots()
        self._shards: dict[int, _Shard] = {}
        self._poller = zmq.Poller()
        self._listening = Listening(_SILENCE_SECONDS)
        # Goes on with answers only: by it nobody is silent when nobody is heard.
        self._answering = Listening(_SILENCE_SECONDS)
        self._requests = 0
        self._learner_steps = 0
        self._asked: list[_Batch] = []
        self._ready: deque[_Batch] = deque()
        self._held: list[_Batch] = []
        self.rejected = 0
        self.priorities_dropped = 0

    @property
    def shared_memory(self) -> bool:
        """Whether all batches come through shared memory, as far as known."""
        shards = self._shards.values()
        return self._slots.shared is not None and all(shard.attaches for shard in shards)

    @property
    def unheard(self) -> str:
        """Which shards have not answered for long, in words; empty if none."""
        silent = [str(s.index) for s in self._shards.values() if s.silence and s.silence.said]
        if len(silent) < 2:
            return f"replay {silent[0]} does not answer" if silent else ""
        return f"replays {', '.join(sorted(silent, key=int))} do not answer"

    def connect(self, shards: Mapping[int, str]) -> None:
        """Ask these shards from now on, by index; call it whenever they may have changed.

        What was asked of others is asked of these.
        """
        if shards == {shard.index: shard.address for shard in self._shards.values()}:
            return
        for shard in list(self._shards.values()):
            if shards.get(shard.index) != shard.address:
                self._drop(shard)
        for index, address in shards.items():
            if index not in self._shards:
                self._add(index, address)

    def set_samples_per_insert(self, target: float) -> None:
        """Count what is due by another ratio from now on, as replay does."""
        if self._ledger is not None and self._ledger.limiter.target != target:
            self._ledger.limiter.set_samples_per_insert(target)

    def receive(self, timeout_seconds: float, learner_steps: int) -> Sample | None:
        """The next SampleBatch, or None when none is complete in time.

        Its arrays may be written to, and are valid until it is released.

        Args:
            timeout_seconds: to wait at most.
            learner_steps: for replay to know how old the actors' parameters are.
        """
        self._learner_steps = learner_steps
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._hear()
            self._ask_ahead()
            now = time.monotonic()
            self._ask_states(now)
            if self._ready:
                self._held.append(self._ready.popleft())
                return self._held[-1].sample
            if now >= deadline:
                return None
            self._try_again(now)  # nothing came: not with every batch that does
            self._wait(min(deadline - now, self._state_seconds))

    def release(self, sample: Sample, priorities: NDArray[np.float32] | None) -> None:
        """Give a batch's memory back, and have its new priorities sent with the next request.

        Args:
            sample: that ``receive`` returned and that was not released yet.
            priorities: float32[batch_size], or None to leave them as they are.

        Raises:
            ValueError: another sample, or another number of priorities.
        """
        batch = next((held for held in self._held if held.sample is sample), None)
        if batch is None:
            raise ValueError("the sample is not one that was received and not released")
        if priorities is not None:
            if priorities.shape != sample.keys.shape:
                raise ValueError(f"{priorities.shape} priorities for {sample.keys.shape} rows")
            self._update(batch, np.asarray(priorities, np.float32))
        self._held.remove(batch)
        # Parts refer to their batch: until that is undone, a message's memory would live on.
        batch.parts.clear()
        self._free(batch.slot)

    def close(self) -> None:
        """Close the sockets, and give the memory back; samples that are held stay valid."""
        for shard in list(self._shards.values()):
            self._disconnect(shard)
        if self._slots.shared is not None:
            self._slots.shared.close()

    def _wait(self, seconds: float) -> None:
        if self._shards:
            self._poller.poll(max(1, int(1000 * seconds)))
        else:
            time.sleep(seconds)  # a poller of nothing would not wait

    # ---- shards ----

    @property
    def _state_seconds(self) -> float:
        return _ONLY_SHARD_STATE_SECONDS if self._ledger is None else _STATE_SECONDS

    def _add(self, index: int, address: str) -> None:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        rows = self._part_layout(self._batch_size).nbytes
        socket.setsockopt(zmq.MAXMSGSIZE, rows + _HEADER_BYTES)
        refusals = transport.Refusals(socket)
        transport.connect(socket, address)
        self._shards[index] = _Shard(index, address, socket, refusals, time.monotonic())
        self._poller.register(socket, zmq.POLLIN)

    def _try_again(self, now: float) -> None:
        """Connect anew to shards that did not let this client in: they may not know it yet."""
        for shard in list(self._shards.values()):
            if now - shard.opened >= _TRY_AGAIN_SECONDS and shard.refusals.reason():
                self._reconnect(shard)

    def _reconnect(self, shard: _Shard) -> None:
        """Connect anew, as to a shard that was never heard."""
        self._drop(shard)
        self._add(shard.index, shard.address)
        self._shards[shard.index].silence = shard.silence

    def _drop(self, shard: _Shard) -> None:
        self._disconnect(shard)
        self.priorities_dropped += sum(len(keys) // 8 for keys, _ in shard.updates)
        if self._ledger is not None:
            self._ledger.lose(shard.index)
        self._lose(list(shard.parts), shard)

    def _disconnect(self, shard: _Shard) -> None:
        self._poller.unregister(shard.socket)
        shard.refusals.close()
        shard.socket.close()
        shard.alive = False
        del self._shards[shard.index]

    # ---- asking ----

    def _ask_ahead(self) -> None:
        """Have ``prefetch`` batches requested, as far as there are slots and shards for them."""
        for batch in self._asked:
            unasked, batch.unasked = batch.unasked, []
            for start, rows in unasked:
                self._ask_rows(batch, start, rows)
        while self._can_ask and self._slots.free and self._count_requested < self._prefetch:
            slot = self._slots.free.pop()
            batch = _Batch(slot, slot.sample, self._batch_size, [])
            self._asked.append(batch)
            self._ask_rows(batch, 0, self._batch_size)

    @property
    def _count_requested(self) -> int:
        return len(self._asked) + len(self._ready)

    @property
    def _can_ask(self) -> bool:
        if self._ledger is None:
            return bool(self._shards)
        return self._ledger.open and bool(self._ledger.totals)

    def _ask_rows(self, batch: _Batch, start: int, rows: int) -> None:
        if not self._can_ask:
            batch.unasked.append((start, rows))
            return
        for shard, count in self._shares(rows):
            in_slot = batch.slot.slots.shared is not None and shard.attaches
            part = _Part(batch, shard, start, count, batch.slot, in_slot)
            shard.parts[self._send(shard, part)] = part
            start += count

    def _shares(self, rows: int) -> Iterator[tuple[_Shard, int]]:
        if self._ledger is None:
            yield next(iter(self._shards.values())), rows
            return
        for index, count in allocate(rows, self._ledger.totals, self._rng.random()).items():
            yield self._shards[index], count

    def _ask_states(self, now: float) -> None:
        """Ask shards that were not asked for anything lately for their state alone.

        It tells those that give no rows what the others do, and it finds requests that got lost.
        """
        for shard in self._shards.values():
            if now - shard.asked < self._state_seconds:
                continue
            if self._ledger is None and not shard.parts:
                continue
            if shard.state_asked is None or now - shard.state_asked > _STATE_PATIENCE_SECONDS:
                shard.state_asked = now
                self._send(shard, None)
                if shard.silence is None:
                    shard.silence = _Silence(self._listening.seconds, self._answering.seconds)

    def _send(self, shard: _Shard, part: _Part | None) -> int:
        """Send a request for rows, or for the state alone; its number."""
        self._requests += 1
        keys, priorities = _next_updates(shard)
        shared = part.slot.slots.shared if part is not None and part.in_slot else None
        request = SampleRequest(
            request=self._requests,
            batch_size=self._batch_size,
            rows=0 if part is None else part.rows,
            start=0 if part is None else part.start,
            slot=None if part is None or shared is None else part.slot.index,
            memory=None if shared is None else shared.address,
            learner_steps=self._learner_steps,
            tally=None if self._ledger is None else self._ledger.tally(shard.index),
            keys=keys,
            priorities=priorities,
        )
        # Never full: what is outstanding is bounded by prefetch. There may be no connection, where
        # a shard did not let this client in; its rows are asked for again on the next one.
        with contextlib.suppress(zmq.Again):
            shard.socket.send(encode_request(request), zmq.NOBLOCK)
        shard.asked = time.monotonic()
        return self._requests

    def _update(self, batch: _Batch, priorities: NDArray[np.float32]) -> None:
        for part in batch.parts:
            rows = slice(part.start, part.start + part.rows)
            if not part.shard.alive:
                self.priorities_dropped += part.rows
                continue
            keys = batch.sample.keys[rows]
            part.shard.updates.append((keys.tobytes(), priorities[rows].tobytes()))
            if len(part.shard.updates) > _MOST_UPDATES_WAITING:
                self.priorities_dropped += len(part.shard.updates.popleft()[1]) // 4

    # ---- hearing ----

    def _hear(self) -> None:
        """Take in the answers that are there."""
        for shard in list(self._shards.values()):
            for _ in range(_MOST_ANSWERS_PER_TURN):
                if not self._hear_from(shard):
                    break
        self._listening.turn()
        self._notice_silence()
        if self._ledger is not None:
            shards = self._shards.values()
            self._ledger.begin([s.index for s in shards if not s.silence or not s.silence.given_up])

    def _hear_from(self, shard: _Shard) -> bool:
        """Take in an answer; whether there was one."""
        try:
            frame = shard.socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        slab: zmq.Frame | None = None
        more = frame.more
        while more:
            slab = shard.socket.recv(copy=False)
            more = slab.more
        try:
            answer = decode_answer(frame.buffer)
            self._check(shard, answer, slab)
        except wire.WireError as error:
            self.rejected += 1
            if self.rejected == 1:
                _log.warning("rejected an answer of replay %d: %s", shard.index, error)
            return True
        self._note_heard(shard)
        if self._ledger is not None:
            self._ledger.hear(shard.index, answer.state)
        if answer.rows:
            self._take(shard, answer, slab)
        else:
            shard.state_asked = None
            known = answer.request, *answer.waiting
            self._lose([n for n in shard.parts if n < answer.request and n not in known], shard)
        return True

    def _check(self, shard: _Shard, answer: SampleAnswer, slab: zmq.Frame | None) -> None:
        """Check an answer for rows against what was asked.

        Raises:
            WireError: they do not belong together.
        """
        part = shard.parts.get(answer.request)
        if part is None:
            return
        if (answer.rows, answer.start) != (part.rows, part.start):
            raise wire.WireError("index", "other rows than asked for")
        if answer.slot is not None:
            if not part.in_slot or answer.slot != part.slot.index:
                raise wire.WireError("index", "another slot than asked for")
        elif slab is None or len(slab) != self._part_layout(part.rows).nbytes:
            raise wire.WireError("size", "no slab of the rows asked for")

    def _take(self, shard: _Shard, answer: SampleAnswer, slab: zmq.Frame | None) -> None:
        """Take in the rows that an answer brings, or that it says are in the slot."""
        part = shard.parts.pop(answer.request, None)
        if part is None:
            return
        batch, rows = part.batch, (part.start, part.start + part.rows)
        if answer.slot is None:
            assert slab is not None
            came = self._part_layout(part.rows).view(slab.buffer)
            if part.rows == self._batch_size:
                batch.sample = came  # where it is: nobody else has this memory
            else:
                batch.sample.rows(*rows).copy_from(came)
            self._note_refusal(part, answer.memory)
        elif part.slot is not batch.slot:
            batch.sample.rows(*rows).copy_from(part.slot.sample.rows(*rows))
        batch.parts.append(part)
        batch.missing -= part.rows
        if not batch.missing:
            self._asked.remove(batch)
            self._ready.append(batch)

    def _note_refusal(self, part: _Part, why: str) -> None:
        # Memory that was replaced meanwhile cannot be attached any more, and need not be.
        if why and part.slot.slots is self._slots:
            part.shard.attaches = False
            index = part.shard.index
            self._say_why(f"replay {index} cannot use this learner's memory: it {why}")

    # ---- silence ----

    def _note_heard(self, shard: _Shard) -> None:
        self._answering.turn()
        silence, shard.silence = shard.silence, None
        if silence is not None and silence.said:
            _log.info("replay %d answers now", shard.index)

    def _notice_silence(self) -> None:
        """Do without shards that have not answered for long while others did."""
        silences = [(shard, shard.silence) for shard in self._shards.values() if shard.silence]
        patience = self._patience_seconds
        for shard, silence in silences:
            if not silence.given_up and self._answering.seconds - silence.answered > patience:
                silence.given_up = True
                self._say_silent(shard, silence, "the others give its rows until it does")
                self._reconnect(shard)
        if len(silences) < len(self._shards):
            return
        if all(self._listening.seconds - s.listened > patience for _, s in silences):
            for shard, silence in silences:
                self._say_silent(shard, silence, "it is waited for")

    @property
    def _patience_seconds(self) -> float:
        """Silence that is too long now: what a shard says comes after rows that it sent before."""
        bytes_asked = len(self._asked) * self._part_layout(self._batch_size).nbytes
        return _SILENCE_SECONDS + bytes_asked / _SLOWEST_BYTES_PER_SECOND

    def _say_silent(self, shard: _Shard, silence: _Silence, what_follows: str) -> None:
        if not silence.said:
            silence.said = True
            address = transport.split(shard.address)[0]
            _log.warning("replay %d does not answer at %s: %s", shard.index, address, what_follows)

    # ---- what got lost ----

    def _lose(self, numbers: list[int], shard: _Shard) -> None:
        """Ask again for the rows of requests that will not be answered any more."""
        lost = [shard.parts.pop(number) for number in numbers]
        if any(part.in_slot for part in lost):
            self._renew()
        for part in lost:
            if part.in_slot and part.batch.slot is part.slot:
                self._move(part.batch)
            part.batch.unasked.append((part.start, part.rows))

    def _renew(self) -> None:
        """Make new memory; the old one lives on as long as batches lie in it."""
        if self._slots.shared is not None:
            self._slots.shared.close()
        self._slots = self._new_slots()

    def _move(self, batch: _Batch) -> None:
        """Bring a batch that is not complete to a slot of the present memory."""
        old, batch.slot = batch.sample, self._slots.free.pop()
        batch.sample = batch.slot.sample
        for part in batch.parts:
            rows = (part.start, part.start + part.rows)
            batch.sample.rows(*rows).copy_from(old.rows(*rows))

    # ---- memory ----

    def _new_slots(self) -> Slots:
        shared, memory = self._new_memory()
        slots = Slots(shared)
        slots.free = [
            Slot(index, slots, self._layout.view(memory, index))
            for index in range(self._layout.count)
        ]
        return slots

    def _new_memory(self) -> tuple[SharedMemory | None, memoryview]:
        """Memory for all slots; shared if it is to be and can be."""
        try:
            if not self._share:
                raise SharedMemoryError("replay.transport = socket")
            shared = SharedMemory(self._layout.nbytes)
        except SharedMemoryError as error:
            self._say_why(str(error))
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            return None, memoryview(mmap.mmap(-1, self._layout.nbytes, flags=flags))
        return shared, shared.body

    def _free(self, slot: Slot) -> None:
        if slot.slots is self._slots:
            self._slots.free.append(slot)

    def _say_why(self, why: str) -> None:
        if not self._said_why:
            self._said_why = True
            _log.info("SampleBatches come over the socket: %s", why)


def _next_updates(shard: _Shard) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As many of the waiting priorities as a request may carry."""
    keys, priorities, size = [], [], 0
    while shard.updates and size + len(shard.updates[0][1]) // 4 <= MAX_UPDATES:
        some_keys, some_priorities = shard.updates.popleft()
        keys.append(some_keys)
        priorities.append(some_priorities)
        size += len(some_priorities) // 4
    return np.frombuffer(b"".join(keys), np.int64), np.frombuffer(b"".join(priorities), np.float32)
