"""Batches of segments on their way from an actor to the replays."""

from __future__ import annotations

import time
from collections.abc import Mapping

import zmq

from actors.segments import Segment, join_segments
from pdqn import wire
from pdqn.config import resolved
from pdqn.link import CoordinatorLink
from pdqn.messages import Welcome
from replay.sender import NO_TICKET, TransitionSender, shard_of
from replay.waiting import most_frames, shared_window, window_batches

# For a replay that is started again: once the run stops, without a launcher, or while it goes on.
_FLUSH_SECONDS, _ORPHAN_FLUSH_SECONDS, _DISMISSED_FLUSH_SECONDS = 8.0, 2.0, 60.0
# A shard that is silent, as is the launcher, is passed over for a while, if there is another.
_SILENCE_SECONDS, _PASSED_OVER_SECONDS = 5.0, 30.0


class Shipper:
    """A collector of segments that sends them as TransitionBatches to a shard of replay."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        link: CoordinatorLink,
        welcome: Welcome,
    ) -> None:
        self._enough = resolved(welcome.config.actor.batch_transitions)
        self._most_seconds = welcome.config.actor.send_seconds
        self._link = link
        self._welcome = welcome
        self._sender = TransitionSender(
            context,
            welcome.index,
            welcome.incarnation,
            window_batches(welcome.config),
            ticket=welcome.ticket or NO_TICKET,
        )
        self._share_window()
        self._shard: int | None = None
        self._passed_over: dict[tuple[str, ...], float] = {}  # until when, by addresses
        self._segments: list[Segment] = []
        self._gathered = 0
        self._made = 0  # transitions in batches so far
        self._frames = 0
        self._oldest = 0.0
        self._parameter_version = 0  # version of the oldest segment gathered
        self._patience_seconds, self._patience_ends = 0.0, 0.0
        self._waiting_since = 0.0

    def add(self, segments: list[Segment], parameter_version: int) -> None:
        """Add segments; send when there are enough, or when they have waited long enough."""
        # All of them at once: what an actor has made is known although it may be killed.
        self._link.telemetry.count("transitions_made", sum(segment.count for segment in segments))
        for segment in segments:
            self._make_room(segment)
            if not self._segments:
                self._oldest, self._parameter_version = time.monotonic(), parameter_version
            self._segments.append(segment)
            self._gathered += segment.count
            self._frames += segment.frame_count
            # One by one: environments in lockstep all finish at once.
            if self._gathered >= self._enough:
                self.send()
        if self._segments and time.monotonic() - self._oldest > self._most_seconds:
            self.send()

    def send(self) -> None:
        """Send the gathered segments; wait for replay, and report meanwhile."""
        if not self._segments:
            return
        columns, blocks = join_segments(self._segments, self._welcome.spec)
        self._made += self._gathered
        batch = wire.TransitionBatch(
            self._welcome.run,
            self._welcome.index,
            self._welcome.incarnation,
            self._sender.next_sequence,
            self._parameter_version,
            columns,
            blocks,
            self._welcome.ticket,
            self._made,
        )
        self._segments, self._gathered, self._frames = [], 0, 0
        data = wire.encode_transitions(batch)
        telemetry = self._link.telemetry
        self._waiting_since = time.monotonic()
        self._share_window()
        self._finish_elsewhere()
        # Needed even without a wait: a shard with a revoked key must not get more data.
        self._follow_shards()
        sent = self._sender.send(data, self._while_waiting)
        self._count_wait()
        telemetry.count("transitions_sent" if sent else "transitions_unsent", batch.count)
        telemetry.count("bytes_sent", len(data) if sent else 0)
        telemetry.activity = ""

    def finish(self) -> None:
        """Send the rest, and wait a little for the last acknowledgements."""
        self.send()
        self._waiting_since = time.monotonic()
        self._sender.flush(self._while_waiting)
        self._sender.close()

    def _make_room(self, segment: Segment) -> None:
        """Send the gathered segments if the new one would exceed the limits of a message."""
        transitions, frames = self._gathered + segment.count, self._frames + segment.frame_count
        if transitions > wire.MAX_TRANSITIONS or frames > self._most_frames:
            self.send()

    def _share_window(self) -> None:
        """Take this actor's part of the memory for waiting batches; actors may have joined."""
        actor = self._welcome.config.actor
        window_bytes = shared_window(
            resolved(actor.window_bytes), actor.count or 1, self._link.pulse.actor_slots
        )
        self._sender.window_bytes = window_bytes
        self._most_frames = most_frames(self._welcome.spec, window_bytes)

    def _while_waiting(self) -> bool:
        """Stay in touch and follow replay; return False if there is no reason to wait any more."""
        self._link.telemetry.activity = "waits for replay"
        # Count during the wait also: an actor that waits forever must be seen to wait.
        self._count_wait()
        self._link.poll()
        self._follow_shards()
        return not self._out_of_patience()

    def _count_wait(self) -> None:
        now = time.monotonic()
        self._link.telemetry.count("wait_seconds", now - self._waiting_since)
        self._waiting_since = now

    def _follow_shards(self) -> None:
        """Send to the wanted shard from now on, or stay while batches are unacknowledged.

        At another shard, unacknowledged batches would be stored twice.
        """
        self._pass_over()
        live = self._live_shards()
        stay = self._shard in live and self._sender.unacknowledged > 0
        shard = self._shard if stay else self._wanted_shard(live)
        if any(map(self._link.pulse.is_revoked, self._sender.addresses)):
            self._sender.close()
        if shard is not None:
            self._shard = shard
            self._sender.connect(*live[shard])

    def _pass_over(self) -> None:
        """Pass over a shard that has probably ended, which a launcher that hangs does not notice.

        Another one then gets what was not acknowledged, and may store it once more; that is
        counted. As long as the launcher is heard, it knows better which shards are alive.
        """
        silent_seconds = min(self._sender.unheard_seconds, self._link.silent_seconds)
        if silent_seconds > _SILENCE_SECONDS:
            now = time.monotonic()
            kept = {shard: until for shard, until in self._passed_over.items() if until > now}
            self._passed_over = kept | {self._sender.addresses: now + _PASSED_OVER_SECONDS}

    def _finish_elsewhere(self) -> None:
        """Finish with the present shard once this actor's own, or a first one, is available."""
        wanted = self._wanted_shard(self._live_shards())
        if wanted is not None and wanted != self._shard:
            self._sender.flush(self._while_waiting)

    def _wanted_shard(self, live: Mapping[int, tuple[str, str]]) -> int | None:
        return shard_of(self._welcome.index, self._welcome.config.replay.shards, live)

    def _live_shards(self) -> dict[int, tuple[str, str]]:
        """Find the addresses for transitions and acknowledgements of every live shard.

        Those that are passed over are not live, unless there are only such.
        """
        transitions = self._link.pulse.shards("transitions")
        acknowledgements = self._link.pulse.shards("acknowledgements")
        both = transitions.keys() & acknowledgements.keys()
        live = {shard: (transitions[shard], acknowledgements[shard]) for shard in both}
        now = time.monotonic()
        heard = {s: live[s] for s in live if self._passed_over.get(live[s], 0.0) <= now}
        return heard or live

    def _out_of_patience(self) -> bool:
        """Return whether this actor has waited long enough for replay, and must leave."""
        link, now = self._link, time.monotonic()
        if not link.stopping:
            return False
        seconds = _ORPHAN_FLUSH_SECONDS if link.orphaned else _FLUSH_SECONDS
        # Such an actor is in nobody's way, and a replay that is lost now comes back.
        seconds = _DISMISSED_FLUSH_SECONDS if link.is_dismissed else seconds
        if seconds != self._patience_seconds:
            self._patience_seconds, self._patience_ends = seconds, now + seconds
        return now >= self._patience_ends
