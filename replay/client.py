"""The learner's way to replay: it asks for SampleBatches, and gets none unasked.

The client keeps ``learner.prefetch`` requests outstanding, each for a batch or a few small ones.
Every request carries the new priorities of earlier batches. Replay writes the rows into the
client's memory if it can, and otherwise sends them as messages. Several shards each write their
rows of the same batch. See ``replay.samples`` for the messages, and ``replay.sharding`` for the
shares of a batch.

**Lost requests.** A shard may end, and a connection may break, while rows are outstanding. The
client asks for those rows again. It does so at once if the shard is gone, and otherwise when a
report of the shard's state does not list the request. The shard that got the first request may
still live, and may write late into the memory of that request. The client therefore makes new
memory for all its slots and moves its batches there: a late write never hits another batch.

**Silence.** A shard answers a request for its state at once, even if its rows have to wait. If one
shard is silent for seconds while others answer, it may be alive but unreachable. The others then
give its rows, the ledger works without it, and the client keeps asking it. See ``replay.silence``.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
import zmq
from numpy.typing import NDArray

from pdqn import transport, wire
from pdqn.config import Config
from pdqn.specs import EnvironmentSpec
from replay.limiter import make_limiter
from replay.outstanding import Batch, Held, Part, Shard
from replay.samples import (
    Sample,
    SampleAnswer,
    SampleLayout,
    SampleRequest,
    SlotLayout,
    decode_answer,
    encode_request,
    rows_of_request,
    slot_count,
)
from replay.sharding import Ledger, allocate
from replay.silence import Silences
from replay.slots import Slots

# Interval of requests for the shards' states; for a single shard, they only find lost requests.
_STATE_SECONDS = 0.05
_TRY_AGAIN_SECONDS = 1.0
_ONLY_SHARD_STATE_SECONDS = 1.0
_STATE_PATIENCE_SECONDS = 1.0
_MOST_ANSWERS_PER_TURN = 256
_HEADER_BYTES = 1 << 20  # largest size of a message from replay, without rows that it brings
_log = logging.getLogger("learner")


class SampleClient:
    """Sockets (DEALER) to the shards of replay; use them from one thread.

    Args:
        context: context of the process.
        spec: spec of the run's environment.
        config: configuration of the run.
        rng: source of randomness for the division of batches among shards.

    Attributes:
        rejected: number of answers that made no sense.
        priorities_dropped: number of new priorities for shards that are gone.
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
        self._rows = rows_of_request(config, spec)
        layout = SlotLayout(spec, self._rows, slot_count(config))
        self._slots = Slots(layout, share=config.replay.transport == "auto")
        self._part_layout = lru_cache(64)(lambda rows: SampleLayout(spec, rows))
        self._ledger = Ledger(make_limiter(config)) if config.replay.shards > 1 else None
        self._shards: dict[int, Shard] = {}
        self._addresses: dict[int, str] = {}
        self._poller = zmq.Poller()
        self._silences = Silences()
        self._requests = 0
        self._learner_steps = 0
        self._asked: list[Batch] = []
        self._ready: deque[Batch] = deque()
        self._next: deque[Held] = deque()
        self._held: list[Held] = []
        self.rejected = 0
        self.priorities_dropped = 0

    @property
    def shared_memory(self) -> bool:
        """Return whether all batches come through shared memory, as far as known."""
        shards = self._shards.values()
        return self._slots.shared is not None and all(shard.attaches for shard in shards)

    @property
    def unheard(self) -> str:
        """Name the shards that have not answered for seconds; empty if none."""
        return self._silences.unheard

    @property
    def has_next(self) -> bool:
        """Return whether a batch is there that came together with the last one."""
        return bool(self._next)

    def connect(self, shards: Mapping[int, str]) -> None:
        """Ask these shards from now on, by index; call this whenever they may have changed.

        Requests to other shards go to these instead.
        """
        if shards == self._addresses:
            return
        for shard in list(self._shards.values()):
            if shards.get(shard.index) != shard.address:
                self._drop(shard)
                self._silences.forget(shard.index)
        for index, address in shards.items():
            if index not in self._shards:
                self._add(index, address)

    def set_samples_per_insert(self, target: float) -> None:
        """Change the target ratio for counting due samples from now on, as replay does."""
        if self._ledger is not None and self._ledger.limiter.target != target:
            self._ledger.limiter.set_samples_per_insert(target)

    def receive(self, timeout_seconds: float, learner_steps: int) -> Sample | None:
        """Return the next SampleBatch, or None if none is complete in time.

        Its arrays may be written to, and are valid until it is released.

        Args:
            timeout_seconds: longest time to wait.
            learner_steps: present learner steps, from which replay computes the age of parameters.
        """
        self._learner_steps = learner_steps
        if self._next:
            return self._hold_next()
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._hear()
            self._ask_ahead()
            now = time.monotonic()
            self._ask_states(now)
            if self._ready:
                self._next.extend(self._ready.popleft().divide(self._batch_size))
                return self._hold_next()
            if now >= deadline:
                return None
            self._try_again(now)  # nothing arrived: not with every batch
            self._wait(min(deadline - now, self._state_seconds))

    def release(self, sample: Sample, priorities: NDArray[np.float32] | None) -> None:
        """Give a batch's memory back, and have its new priorities sent with the next request.

        Args:
            sample: a sample that ``receive`` returned and that has not been released.
            priorities: float32[batch_size], or None to leave them as they are.

        Raises:
            ValueError: the sample is another one, or the number of priorities is wrong.
        """
        held = next((held for held in self._held if held.sample is sample), None)
        if held is None:
            raise ValueError("the sample is not one that was received and not released")
        if priorities is not None:
            if priorities.shape != sample.keys.shape:
                raise ValueError(f"{priorities.shape} priorities for {sample.keys.shape} rows")
            new = np.asarray(priorities, np.float32)
            self.priorities_dropped += held.whole.update(held, new)
        self._held.remove(held)
        whole = held.whole
        whole.unreleased -= sample.count
        if not whole.unreleased:
            # Parts refer to it: a message's memory would live on until the cycle is collected.
            whole.parts.clear()
            self._slots.put(whole.slot)

    def _hold_next(self) -> Sample:
        held = self._next.popleft()
        self._held.append(held)
        return held.sample

    def close(self) -> None:
        """Close the sockets and give the memory back; samples that are held stay valid."""
        for shard in list(self._shards.values()):
            self._disconnect(shard)
        self._slots.close()

    def _wait(self, seconds: float) -> None:
        if self._shards:
            self._poller.poll(max(1, int(1000 * seconds)))
        else:
            time.sleep(seconds)  # polling nothing would not wait

    # ---- shards ----

    @property
    def _state_seconds(self) -> float:
        return _ONLY_SHARD_STATE_SECONDS if self._ledger is None else _STATE_SECONDS

    def _add(self, index: int, address: str) -> None:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        rows = self._part_layout(self._rows).nbytes
        socket.setsockopt(zmq.MAXMSGSIZE, rows + _HEADER_BYTES)
        refusals = transport.Refusals(socket)
        transport.connect(socket, address)
        self._shards[index] = Shard(index, address, socket, refusals, time.monotonic())
        self._addresses[index] = address
        self._poller.register(socket, zmq.POLLIN)

    def _try_again(self, now: float) -> None:
        """Reconnect to shards that refused this client: they may not know it yet."""
        for shard in list(self._shards.values()):
            if now - shard.opened >= _TRY_AGAIN_SECONDS and shard.refusals.reason():
                self._reconnect(shard)

    def _reconnect(self, shard: Shard) -> None:
        """Reconnect to a shard as if it were new; its silence goes on."""
        self._drop(shard)
        self._add(shard.index, shard.address)

    def _drop(self, shard: Shard) -> None:
        self._disconnect(shard)
        self.priorities_dropped += sum(len(keys) // 8 for keys, _ in shard.updates)
        if self._ledger is not None:
            self._ledger.lose(shard.index)
        self._lose(list(shard.parts), shard)

    def _disconnect(self, shard: Shard) -> None:
        self._poller.unregister(shard.socket)
        shard.refusals.close()
        shard.socket.close()
        shard.alive = False
        del self._shards[shard.index], self._addresses[shard.index]

    # ---- asking ----

    def _ask_ahead(self) -> None:
        """Keep ``prefetch`` requests outstanding, as far as there are slots and shards for them."""
        for batch in self._asked:
            unasked, batch.unasked = batch.unasked, []
            for start, rows in unasked:
                self._ask_rows(batch, start, rows)
        while (
            self._can_ask
            and self._slots.free
            and len(self._asked) + len(self._ready) < self._prefetch
        ):
            slot = self._slots.free.pop()
            batch = Batch(slot, slot.sample, self._rows, unreleased=self._rows)
            self._asked.append(batch)
            self._ask_rows(batch, 0, self._rows)

    @property
    def _can_ask(self) -> bool:
        if self._ledger is None:
            return bool(self._shards)
        return self._ledger.open and bool(self._ledger.totals)

    def _ask_rows(self, batch: Batch, start: int, rows: int) -> None:
        if not self._can_ask:
            batch.unasked.append((start, rows))
            return
        for shard, count in self._shares(rows):
            in_slot = batch.slot.address is not None and shard.attaches
            part = Part(batch, shard, start, count, batch.slot, in_slot)
            shard.parts[self._send(shard, part)] = part
            start += count

    def _shares(self, rows: int) -> Iterator[tuple[Shard, int]]:
        if self._ledger is None:
            yield next(iter(self._shards.values())), rows
            return
        for index, count in allocate(rows, self._ledger.totals, self._rng.random()).items():
            yield self._shards[index], count

    def _ask_states(self, now: float) -> None:
        """Ask shards without recent requests for their state alone.

        This tells shards that give no rows what the others do, and it finds lost requests.
        """
        for shard in self._shards.values():
            if now - shard.asked < self._state_seconds:
                continue
            if self._ledger is None and not shard.parts:
                continue
            if shard.state_asked is None or now - shard.state_asked > _STATE_PATIENCE_SECONDS:
                shard.state_asked = now
                self._send(shard, None)
                self._silences.asked(shard.index)

    def _send(self, shard: Shard, part: Part | None) -> int:
        """Send a request for rows, or for the state alone; return its number."""
        self._requests += 1
        keys, priorities = shard.next_updates()
        slot = part.slot if part is not None and part.in_slot else None
        request = SampleRequest(
            request=self._requests,
            batch_size=self._rows,
            rows=0 if part is None else part.rows,
            start=0 if part is None else part.start,
            slot=None if slot is None else slot.index,
            memory=None if slot is None else slot.address,
            learner_steps=self._learner_steps,
            tally=None if self._ledger is None else self._ledger.tally(shard.index),
            keys=keys,
            priorities=priorities,
        )
        # Never full: prefetch bounds the outstanding requests. After a refusal there may be no
        # connection; the rows are asked for again on the next one.
        with contextlib.suppress(zmq.Again):
            shard.socket.send(encode_request(request), zmq.NOBLOCK)
        shard.asked = time.monotonic()
        return self._requests

    # ---- hearing ----

    def _hear(self) -> None:
        """Process the answers that have arrived."""
        for shard in list(self._shards.values()):
            for _ in range(_MOST_ANSWERS_PER_TURN):
                if not self._hear_from(shard):
                    break
        bytes_asked = len(self._asked) * self._part_layout(self._rows).nbytes
        for index in self._silences.turn(self._addresses, bytes_asked):
            self._reconnect(self._shards[index])
        if self._ledger is not None:
            self._ledger.begin([i for i in self._shards if not self._silences.is_given_up(i)])

    def _hear_from(self, shard: Shard) -> bool:
        """Process one answer; return whether there was one."""
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
            if (part := shard.parts.get(answer.request)) is not None:
                slab_bytes = None if slab is None else len(slab)
                part.check(answer, slab_bytes, self._part_layout(part.rows).nbytes)
        except wire.WireError as error:
            self.rejected += 1
            if self.rejected == 1:
                _log.warning("rejected an answer of replay %d: %s", shard.index, error)
            return True
        self._silences.heard(shard.index)
        if self._ledger is not None:
            self._ledger.hear(shard.index, answer.state)
        if answer.rows:
            self._take(shard, answer, slab)
        else:
            shard.state_asked = None
            self._lose(shard.lost_by(answer), shard)
        return True

    def _take(self, shard: Shard, answer: SampleAnswer, slab: zmq.Frame | None) -> None:
        """Take the rows of an answer, or those that it reports in the slot."""
        part = shard.parts.pop(answer.request, None)
        if part is None:
            return
        came: Sample | None = None
        if answer.slot is None:
            assert slab is not None
            came = self._part_layout(part.rows).view(slab.buffer)
            self._note_refusal(part, answer.memory)
        batch = part.batch
        batch.take(part, came)
        if not batch.missing:
            self._asked.remove(batch)
            self._ready.append(batch)

    def _note_refusal(self, part: Part, why: str) -> None:
        # A shard can no longer attach memory that has been replaced, and need not.
        if why and self._slots.is_present(part.slot):
            part.shard.attaches = False
            index = part.shard.index
            self._slots.say_why(f"replay {index} cannot use this learner's memory: it {why}")

    # ---- what got lost ----

    def _lose(self, numbers: list[int], shard: Shard) -> None:
        """Ask again for the rows of requests that will no longer be answered."""
        lost = [shard.parts.pop(number) for number in numbers]
        if any(part.in_slot for part in lost):
            self._slots.renew()
        for part in lost:
            if part.in_slot and part.batch.slot is part.slot:
                part.batch.move(self._slots.free.pop())
            part.batch.unasked.append((part.start, part.rows))
