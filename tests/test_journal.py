"""The journal of a shard: after any kill, a new process holds what was written before it."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contents import rows_in
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from pdqn import wire
from pdqn.spans import Span
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.telemetry import Telemetry
from replay.buffer import PrioritizedBuffer, make_store
from replay.contents import Contents
from replay.intake import Intake
from replay.journal import Journal, OtherFormatError, SegmentHead, segments_of
from replay.keeper import Keeper, Receipt
from replay.limiter import RateLimiter
from replay.ownership import Owner, TakenOverError
from replay.records import RecordWriter, parse_records
from replay.recovery import OtherKindError, Result, Taken, recover
from replay.renewal import Renewal, finish_replacement
from replay.sequences import Sequences
from replay.sharding import ShardLimiter, Tally

SPEC = EnvironmentSpec("test/Vector-v0", (FieldSpec("observation", (2,), "float32"),), 3)
RUN, KIND = "the-run", "the-kind"
WINDOW = 4
KINDS = ("dense", "compressed")


def contents_of(life: int = 0, *, capacity: int = 24, kind: str = "dense") -> Contents:
    """Make empty contents, as the process with this incarnation does."""
    memory = 10_000 if kind == "compressed" else None
    buffer = PrioritizedBuffer(
        SPEC,
        capacity,
        store=make_store(kind, SPEC, capacity, memory, 1),  # type: ignore[arg-type]
        priority_exponent=0.6,
        priority_max=3.0,
        rng=np.random.default_rng(life),
        first_key=life << 40,
    )
    return Contents(buffer, ShardLimiter(RateLimiter(1.0, 40.0, 8, 4)), Sequences(WINDOW), life)


def encoded(
    sequence: int,
    count: int,
    seed: int = 0,
    *,
    actor: int = 0,
    run: str = RUN,
    broken: bool = False,
    made: int = 0,
) -> bytes:
    """Encode a batch with random numbers; a broken one has an action that does not exist."""
    rng = np.random.default_rng(seed)
    columns = {
        "action": rng.integers(0, 3, count, np.int32) + 9 * broken,
        "n_step_return": rng.normal(size=count).astype(np.float32),
        "discount": rng.random(count).astype(np.float32),
        "priority": rng.choice([0.0, 0.5, 1.0, 50.0], count).astype(np.float32),
        "observation_index": rng.integers(0, count + 1, count, np.int32),
        "bootstrap_index": rng.integers(0, count + 1, count, np.int32),
    }
    frames = rng.normal(size=(count + 1, 2)).astype(np.float32)
    block = wire.compress_block({"observation": frames}, SPEC)
    return wire.encode_transitions(
        wire.TransitionBatch(run, actor, 0, sequence, 7, columns, [block], bytes(16), made)
    )


class Shard:
    """A shard without sockets: contents, their journal, and the intake in front of them."""

    def __init__(
        self,
        folder: Path,
        contents: Contents,
        result: Result | None = None,
        *,
        run: str = RUN,
        segment_bytes: int = 700,
        check: Callable[[], object] = lambda: None,
        **settings: Any,
    ) -> None:
        self.contents, self.buffer = contents, contents.buffer
        self.telemetry = Telemetry()
        self.journal = Journal(folder, partial(contents.head, run, KIND), segment_bytes, check)
        unreported = 0 if result is None else result.unreported
        self.keeper = Keeper(
            contents, self.telemetry, self.journal, unreported=unreported, **settings
        )
        self.keeper.take_snapshot()
        self.intake = Intake(
            SPEC, run, self.buffer, self.telemetry, contents.sequences, b"", str, self.keeper
        )
        self.intake._tickets.check = lambda *_: None  # type: ignore[method-assign]

    def take(self, data: bytes) -> None:
        inserted, stream = self.intake.take(data)
        self.contents.limiter.count_inserted(inserted)
        if stream is not None:
            self.keeper.owe(stream, self.intake.expected(stream))

    def update(self, keys: np.ndarray, priorities: np.ndarray) -> None:
        self.keeper.update(keys, priorities)
        self.buffer.update_priorities(keys, priorities)

    def send(self, count: int, *, batches: int = 1) -> None:
        """Take and write new batches of ``count`` transitions."""
        for _ in range(batches):
            sequence = max(0, self.contents.sequences.expected((0, 0)))
            self.take(encoded(sequence, count, sequence))
            self.keeper.write()


def state_of(buffer: PrioritizedBuffer) -> dict[str, Any]:
    return {
        "keys": buffer.live_keys,
        "priorities": buffer.priorities().tolist(),
        "total": buffer.total_priority,
        "rows": rows_in(buffer),
    }


def recovered(
    folder: Path,
    life: int = 1,
    rewrite: Callable[[Contents], Taken] = lambda _: lambda *_: None,
    **arguments: Any,
) -> tuple[Contents, Result]:
    made = partial(contents_of, life, **arguments)
    return recover(folder, SPEC, KIND, made, rewrite=rewrite)


def continued(folder: Path, life: int = 1, **arguments: Any) -> Shard:
    return Shard(folder, *recovered(folder, life, **arguments))


class KilledAtAnyByte(RuleBasedStateMachine):
    """A shard that is killed at any byte of what it writes, and a twin that does what is whole.

    The twin is another shard, which does again what the first one has written.
    """

    @initialize(kind=st.sampled_from(KINDS), capacity=st.integers(3, 30))
    def make(self, kind: str, capacity: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="journal-")) / "journal"
        self.arguments: dict[str, Any] = {"kind": kind, "capacity": capacity}
        self.twin = contents_of(**self.arguments)
        self.shard = Shard(self.folder, contents_of(**self.arguments))
        self.life = 0
        self.seed = 0
        # Of this turn: the file and its size after each operation, and the operation on the twin.
        self.turn: list[tuple[Path, int, Callable[[], object]]] = []

    @rule(count=st.integers(1, 12), actor=st.integers(0, 2), skipped=st.integers(0, 2))
    def take(self, count: int, actor: int, skipped: int) -> None:
        self.seed += 1
        sequence = max(0, self.shard.intake.expected((actor, 0))) + skipped
        made = self.made(actor) + skipped + count
        data = encoded(sequence, count, self.seed, actor=actor, made=made)
        file, keys = self.shard.journal._segment, self.shard.buffer.inserted
        self.shard.take(data)
        fits = self.shard.buffer.inserted > keys
        mean, stream = self.mean_of_newest() if fits else None, (actor, 0)
        insert, refuse = (
            partial(self.insert_into_twin, data, mean),
            partial(self.refuse_in_twin, count),
        )
        put = partial(self.twin.sequences.put, stream, sequence + 1)
        account = partial(self.twin.accounts.add, stream, made, count, 0 if fits else count)
        for apply in (insert if fits else refuse, put, account):
            self.turn.append((file.path, file.size_bytes, apply))

    def made(self, actor: int) -> int:
        """Return what was made of an actor's stream up to the newest batch that the shard has."""
        spans = self.shard.contents.accounts.all()
        return max((span.end for span in spans if span.actor == actor), default=0)

    def mean_of_newest(self) -> float | None:
        """Return the mean that the newest record of the journal names."""
        _, _, (head, _) = self.shard.journal._segment._added[-1]
        mean = np.frombuffer(head, np.float64, 1, 8).item()
        return None if np.isnan(mean) else mean

    def insert_into_twin(self, data: bytes, mean: float | None) -> None:
        batch = wire.decode_transitions(data, SPEC, RUN)
        self.twin.buffer.insert(batch.columns, batch.blocks, batch.parameter_version, mean)
        self.twin.limiter.count_inserted(batch.count)

    def refuse_in_twin(self, count: int) -> None:
        self.twin.refused += count

    @rule(actor=st.integers(0, 2), count=st.integers(1, 9))
    def refuse(self, actor: int, count: int) -> None:
        sequence = max(0, self.shard.intake.expected((actor, 0)))
        file = self.shard.journal._segment
        made = self.made(actor) + count
        self.shard.take(encoded(sequence, count, actor=actor, broken=True, made=made))
        put = partial(self.twin.sequences.put, (actor, 0), sequence + 1)
        account = partial(self.twin.accounts.add, (actor, 0), made, count, count)
        for apply in (put, account, partial(self.refuse_in_twin, count)):
            self.turn.append((file.path, file.size_bytes, apply))

    @rule(data=st.data())
    def update(self, data: st.DataObject) -> None:
        first = self.shard.buffer.evicted
        key = st.integers(first - 3, self.shard.buffer.inserted + 2)
        keys = np.array(data.draw(st.lists(key, min_size=1, max_size=6)), np.int64)
        odd = st.sampled_from([0.0, 0.5, 2.0, 1e9, -1.0, float("nan")])
        drawn = data.draw(st.lists(odd, min_size=len(keys), max_size=len(keys)))
        priorities = np.array(drawn, np.float32)
        mean, file = self.shard.buffer.mean_priority, self.shard.journal._updates
        self.shard.update(keys, priorities)
        apply = partial(self.twin.buffer.update_priorities, keys, priorities, mean)
        self.turn.append((file.path, file.size_bytes, apply))

    @rule(count=st.integers(1, 8))
    def sample(self, count: int) -> None:
        self.shard.contents.limiter.count_sampled(count)
        self.shard.keeper.note_report()

    @rule()
    def write(self) -> None:
        self.shard.keeper.write()
        self.finish_turn()
        assert len(self.shard.keeper.settled()) >= 0

    @rule()
    def take_snapshot(self) -> None:
        self.shard.keeper.take_snapshot()
        self.finish_turn()
        _, *later = segments_of(self.folder)
        later = later[:-1]  # the newest may have begun after the snapshot
        assert all(s.first_key > self.shard.buffer.evicted for s in later), "nobody needs these"
        for suffix in ("snapshot", "updates"):
            assert len(list(self.folder.glob(f"*.{suffix}"))) == 1

    def finish_turn(self) -> None:
        for _, _, apply in self.turn:
            apply()
        self.turn.clear()
        # What was sampled is written with the other counts.
        self.twin.limiter.recover(self.shard.contents.limiter.get_state(), 0, 0)

    @rule(share=st.floats(0, 1))
    def kill_while_it_writes(self, share: float) -> None:
        journal = self.shard.journal
        files = [journal._segment, journal._updates]
        before = [file._written_bytes for file in files]
        pending = sum(file.size_bytes for file in files) - sum(before)
        sampled = self.twin.limiter.sampled
        for file in files:
            file.write()
        left = int(share * pending)
        for file, size in zip(files, before, strict=True):
            kept = min(left, file.size_bytes - size)
            left -= kept
            os.truncate(file.path, size + kept)
        for path, size, apply in self.turn:
            if size <= path.stat().st_size:
                apply()
        self.turn.clear()
        journal.close()
        self.life += 1
        contents, result = recovered(self.folder, self.life, **self.arguments)
        assert (result.damage.damaged, result.renumbered) == (0, False)
        self.compare(contents, sampled)
        self.shard = Shard(self.folder, contents, result)
        self.finish_turn()

    def compare(self, contents: Contents, sampled: int) -> None:
        contents.buffer.check_valid()
        assert state_of(contents.buffer) == state_of(self.twin.buffer)
        assert contents.limiter.inserted == self.twin.limiter.inserted
        assert contents.limiter.limiter.num_inserted == self.twin.limiter.limiter.num_inserted
        assert contents.limiter.sampled >= sampled
        assert contents.refused == self.twin.refused
        assert contents.life == 0
        assert contents.buffer.priorities_clipped == contents.buffer.ignored_evicted == 0
        assert contents.sequences.all() == self.twin.sequences.all()
        assert sorted(contents.accounts.all()) == sorted(self.twin.accounts.all())

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder.parent)
        if hasattr(self, "shard"):
            self.shard.journal.close()


TestKilledAtAnyByte = KilledAtAnyByte.TestCase
TestKilledAtAnyByte.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


class KilledError(BaseException):
    """A kill at one of the calls by which a process changes its journal."""


class Killer:
    """A count of those calls, of which one is cut short; after it there are no others.

    Attributes:
        calls: calls so far.
        at: the call that is cut short, counted from 0; None for none.
        share: share of the bytes that it writes.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.share = 0, 0.0
        self.at: int | None = None
        write = os.writev

        def writev(descriptor: int, pieces: list[bytes | memoryview]) -> int:
            if self.is_due():
                data = b"".join(pieces)
                write(descriptor, [data[: int(self.share * len(data))]])
                raise KilledError
            return write(descriptor, pieces)

        monkeypatch.setattr("replay.records.os.writev", writev)
        for name in ("replace", "unlink"):
            monkeypatch.setattr(Path, name, self.killing(getattr(Path, name)))

    def killing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def killed(*arguments: Any, **named: Any) -> Any:
            if self.is_due():
                raise KilledError
            return call(*arguments, **named)

        return killed

    def is_due(self) -> bool:
        self.calls += 1
        return self.at is not None and self.calls > self.at


class Sender:
    """Two actors' ways to a shard: all that is not acknowledged is sent again."""

    def __init__(self) -> None:
        counts = [(2, False), (3, True), (30, False), (1, False), (2, False), (2, True)] * 2
        made = itertools.accumulate(count for count, _ in counts)
        self.batches = [
            [
                encoded(number, count, number, actor=actor, broken=broken, made=end)
                for number, ((count, broken), end) in enumerate(zip(counts, ends, strict=True))
            ]
            for actor, ends in enumerate([list(made)] * 2)
        ]
        self.total = sum(count for count, _ in counts)
        self.refused = sum(count for count, broken in counts if broken or count > 24)
        self.acknowledged = {(0, 0): 0, (1, 0): 0}

    def send_all(self, shard: Shard) -> None:
        """Take turns as a replay does, with updates, reports and snapshots in between."""
        for number in range(len(self.batches[0])):
            for (actor, _), acknowledged in self.acknowledged.items():
                if number >= acknowledged:
                    shard.take(self.batches[actor][number])
            keys = np.arange(shard.buffer.evicted, shard.buffer.inserted)
            shard.update(keys, np.full(len(keys), 1.0 + number, np.float32))
            shard.keeper.note_report()
            shard.keeper.write()
            for receipt in shard.keeper.settled():
                self.acknowledged[receipt.stream] = receipt.expected
            if number % 4 == 3:
                shard.keeper.take_snapshot()


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_what_was_acknowledged_before_a_kill_at_any_write_is_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
):
    killer, kills = Killer(monkeypatch), 0
    while True:
        folder, sender = tmp_path / str(kills) / "journal", Sender()
        killer.calls, killer.at, killer.share = 0, kills, share
        shard, life = None, 0
        try:
            shard = Shard(folder, contents_of(capacity=24))
            sender.send_all(shard)
        except KilledError:
            killer.at, life = None, 1
            shard = continued(folder)
            for stream, expected in sender.acknowledged.items():
                assert max(0, shard.intake.expected(stream)) >= expected, "it is in the journal"
            sender.send_all(shard)
        # As if there had been no kill: each transition is accounted for exactly once.
        spans = sorted(shard.contents.accounts.all())
        assert spans == [Span(actor, 0, 0, sender.total, sender.refused) for actor in range(2)]
        stored = shard.contents.buffer.inserted % (1 << 40)
        assert stored == 2 * (sender.total - sender.refused)
        shard.journal.close()
        if not life:
            break
        kills += 1
    assert kills > 30, "each call of a run was cut short once"


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_costs_what_it_hits_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
):
    folder = tmp_path_factory.mktemp("flipped") / "journal"
    shard = Shard(folder, contents_of(capacity=100))
    shard.send(5, batches=3)
    shard.keeper.take_snapshot()
    shard.send(5, batches=9)
    shard.update(np.arange(4, 20), np.arange(16, dtype=np.float32))
    shard.keeper.write()
    shard.journal.close()
    before = rows_in(shard.buffer)
    files = sorted(folder.iterdir())
    ends = np.cumsum([file.stat().st_size for file in files])
    offset = int(place * ends[-1])
    number = int(np.searchsorted(ends, offset, side="right"))
    data = bytearray(files[number].read_bytes())
    data[offset - ends[number]] ^= 1 << bit
    files[number].write_bytes(data)
    contents, result = recovered(folder, capacity=100)
    contents.buffer.check_valid()
    after = rows_in(contents.buffer)
    left = iter(before)
    assert all(row in left for row in after), "all are from before, and in their order"
    if files[number].suffix == ".segment":
        lost = len(before) - len(after)
        assert lost in (0, 5), "what a record cost that is not a batch"
        assert bool(result.damage.damaged or result.damage.torn_bytes) or lost == 0
        # New keys are above all that were given out, so that no update hits another transition.
        assert contents.buffer.live_keys.start in ((1 << 40,) if result.renumbered else (0, 20))
    else:
        assert after == before
        assert contents.buffer.live_keys == range(60)


def damage(folder: Path, batch: bytes) -> None:
    """Change a byte of a batch in the journal."""
    for segment in segments_of(folder):
        data = bytearray(segment.path.read_bytes())
        if (place := data.find(batch)) >= 0:
            data[place + len(batch) // 2] ^= 1
            segment.path.write_bytes(data)
            return
    pytest.fail("the batch is in no segment")


def test_what_is_left_of_a_damaged_journal_gets_new_keys_and_keeps_its_priorities(tmp_path: Path):
    shard = Shard(tmp_path / "journal", contents_of())
    shard.send(2, batches=4)
    shard.update(np.array([4, 6]), np.array([1.25, 0.75], np.float32))
    shard.keeper.take_snapshot()
    shard.update(np.array([1, 7]), np.array([0.125, 1.5], np.float32))
    shard.keeper.write()
    shard.journal.close()
    before = shard.buffer.priorities().tolist()
    damage(tmp_path / "journal", encoded(1, 2, 1))  # keys 2 and 3
    contents, result = recovered(tmp_path / "journal")
    assert (result.renumbered, result.holes) == (True, 1)
    assert contents.buffer.live_keys == range(1 << 40, (1 << 40) + 6)
    assert contents.buffer.priorities().tolist() == before[:2] + before[4:]
    assert contents.sequences.all() == {(0, 0): 4}, "what is lost is not asked for again"
    assert (contents.life, contents.limiter.inserted) == (0, 8)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_segment_whose_first_record_is_damaged_keeps_its_batches(tmp_path: Path, lost: int):
    folder = tmp_path / "journal"
    shard = Shard(folder, contents_of(), segment_bytes=1 << 20)
    shard.send(3, batches=2)
    shard.keeper.take_snapshot()
    shard.journal.close()
    second = Shard(folder, *recovered(folder), run="resumed", segment_bytes=1 << 20)
    second.take(encoded(0, 4, 9, actor=1, run="resumed"))
    second.keeper.take_snapshot()
    second.journal.close()
    file = segments_of(folder)[lost].path
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    contents, result = recovered(folder, 2)
    assert rows_in(contents.buffer) == rows_in(second.buffer)
    assert contents.buffer.priorities().tolist() == second.buffer.priorities().tolist()
    assert contents.sequences.all() == {(0, 0): 2, (1, 0): 1}
    assert (result.run, result.damage.damaged, result.left_out) == ("resumed", 1, 0)
    first = 2 << 40
    assert contents.buffer.live_keys == (range(10) if lost else range(first, first + 10))


def test_batches_are_left_out_if_nothing_tells_what_they_mean(tmp_path: Path):
    folder = tmp_path / "journal"
    shard = Shard(folder, contents_of(), segment_bytes=1 << 20)
    shard.send(3, batches=2)
    shard.journal.close()
    (segment,) = segments_of(folder)
    data = bytearray(segment.path.read_bytes())
    data[20] ^= 1
    segment.path.write_bytes(data)
    for snapshot in folder.glob("*.snapshot"):
        snapshot.unlink()
    contents, result = recovered(folder)
    assert (contents.buffer.size, result.left_out, result.damage.damaged) == (0, 6, 1)


def test_an_end_that_is_missing_although_it_was_written_is_a_damage(tmp_path: Path):
    shard = Shard(tmp_path / "journal", contents_of(), segment_bytes=1 << 20)
    shard.send(2, batches=2)
    written = shard.journal._segment.size_bytes
    shard.send(2)
    shard.keeper.take_snapshot()
    shard.journal.close()
    os.truncate(segments_of(tmp_path / "journal")[-1].path, written)
    contents, result = recovered(tmp_path / "journal")
    assert result.renumbered, "keys 4 and 5 were given out"
    assert contents.buffer.live_keys == range(1 << 40, (1 << 40) + 4)


def test_the_batches_of_every_session_of_a_run_are_taken_over(tmp_path: Path):
    folder = tmp_path / "journal"
    shard = Shard(folder, contents_of())
    shard.send(3, batches=2)
    shard.journal.close()
    second = Shard(folder, *recovered(folder), run="the-run-resumed")
    second.take(encoded(0, 4, 9, actor=1, run="the-run-resumed"))
    second.keeper.write()
    second.journal.close()
    contents, result = recovered(folder, 2)
    assert state_of(contents.buffer) == state_of(second.buffer)
    assert contents.buffer.live_keys == range(10)
    assert result.run == "the-run-resumed"
    assert contents.sequences.all() == {(0, 0): 2, (1, 0): 1}


def test_transitions_that_mean_something_else_are_not_taken_over(tmp_path: Path):
    Shard(tmp_path / "journal", contents_of()).journal.close()
    with pytest.raises(OtherKindError):
        recover(tmp_path / "journal", SPEC, "other", contents_of)


def test_the_journal_of_another_version_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("replay.journal._FORMAT", 99)
    Shard(tmp_path / "journal", contents_of()).journal.close()
    monkeypatch.undo()
    with pytest.raises(OtherFormatError, match="has the format 99, not 1"):
        recovered(tmp_path / "journal")


@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_buffer_takes_over_the_newest(tmp_path: Path, kind: str):
    shard = Shard(tmp_path / "journal", contents_of(kind=kind))
    shard.send(3, batches=8)
    shard.journal.close()
    contents, result = recovered(tmp_path / "journal", capacity=10, kind=kind)
    assert contents.buffer.live_keys == range(15, 24)
    assert rows_in(contents.buffer) == rows_in(shard.buffer)[15:]
    assert contents.buffer.priorities().tolist() == shard.buffer.priorities().tolist()[15:]
    assert not result.renumbered


def test_batches_that_a_smaller_buffer_cannot_hold_are_left_out(tmp_path: Path):
    shard = Shard(tmp_path / "journal", contents_of())
    for count in (2, 8, 3):
        shard.send(count)
    shard.journal.close()
    contents, result = recovered(tmp_path / "journal", capacity=6)
    assert (result.left_out, result.renumbered, contents.buffer.size) == (8, True, 5)


def test_the_size_of_a_journal_is_bounded_by_the_buffer_and_a_segment(tmp_path: Path):
    folder, segment = tmp_path / "journal", 4000
    shard = Shard(folder, contents_of(), segment_bytes=segment)
    sizes = []
    for _ in range(60):
        shard.send(6, batches=5)
        shard.keeper.take_snapshot()
        sizes.append(shard.keeper.journal_bytes)
    live = len(encoded(0, 6)) * 4
    assert max(sizes[5:]) <= live + 2 * (segment + live)
    assert sum(path.stat().st_size for path in folder.iterdir()) == sizes[-1]
    shard.journal.close()
    assert continued(folder).buffer.live_keys == shard.buffer.live_keys


# ---- counts ----


def test_counts_and_what_was_not_reported_go_on(tmp_path: Path):
    shard = Shard(tmp_path / "journal", contents_of(3))
    shard.send(6, batches=2)
    shard.keeper.note_report()
    shard.contents.limiter.count_sampled(4)
    shard.keeper.write()
    shard.send(5)
    shard.take(encoded(3, 2, broken=True))
    shard.keeper.write()
    shard.journal.close()
    contents, result = recovered(tmp_path / "journal", 4)
    limiter = contents.limiter
    assert (limiter.inserted, limiter.sampled, contents.life) == (17, 4, 3)
    assert (result.unreported, result.unreported_refused) == (5, 2)
    again = Shard(tmp_path / "journal", contents, result)
    again.journal.close()
    assert recovered(tmp_path / "journal", 5)[1].unreported == 5, "it is not reported yet"


def test_a_shard_believes_a_tally_of_what_it_did_just_before_it_was_killed(tmp_path: Path):
    shard = Shard(tmp_path / "journal", contents_of())
    shard.send(6, batches=2)
    shard.contents.limiter.count_sampled(4)
    shard.keeper.take_snapshot()
    shard.contents.limiter.count_sampled(8)  # it does not come to write this
    shard.journal.close()
    limiter = recovered(tmp_path / "journal")[0].limiter
    assert (limiter.sampled, limiter.limiter.balance) == (4, 0.0)
    tally = Tally(12, 12, inserted_elsewhere=5, sampled_elsewhere=3, balance=-2.0)
    assert limiter.follow(tally)
    assert (limiter.sampled, limiter.limiter.num_sampled, limiter.limiter.balance) == (12, 15, -2)


# ---- acknowledgements ----


def owed(shard: Shard) -> list[Receipt]:
    return shard.keeper.settled()


def test_with_sync_a_batch_is_acknowledged_once_the_disk_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
):
    shard = Shard(tmp_path / "journal", contents_of(), sync=True)
    synced: list[int] = []
    sync = RecordWriter.sync

    def note(file: RecordWriter) -> None:
        sync(file)
        synced.append(file._written_bytes)

    monkeypatch.setattr(RecordWriter, "sync", note)
    shard.send(3)
    written = shard.journal._segment._written_bytes
    assert owed(shard) == []
    assert shard.keeper.waits
    assert eventually(lambda: owed(shard)) == [((0, 0), 1, False)]
    assert written in synced
    assert not shard.keeper.waits
    shard.send(3, batches=40)  # segments and a snapshot are replaced meanwhile
    shard.keeper.take_snapshot()
    assert eventually(lambda: owed(shard)) == [((0, 0), 41, False)]
    shard.keeper.close()
    assert len(segments_of(tmp_path / "journal")) < 8
    assert continued(tmp_path / "journal").buffer.live_keys == shard.buffer.live_keys


@pytest.mark.parametrize("sync", [False, True])
def test_a_process_whose_journal_another_one_keeps_acknowledges_nothing_more(
    tmp_path: Path, eventually: Callable[..., Any], sync: bool
):
    folder, path = tmp_path / "journal", tmp_path / "owner"
    owners = [Owner(path, RUN, incarnation) for incarnation in range(2)]
    owners[0].claim()
    first = Shard(folder, contents_of(), check=owners[0].check, sync=sync)
    first.send(3, batches=2)
    assert eventually(lambda: owed(first)) == [((0, 0), 2, False)]
    if sync:
        first.send(3)  # it is written, and the disk does not have it yet
    owners[1].claim()
    second = Shard(folder, *recovered(folder), check=owners[1].check)
    later = encoded(9, 4, 9, actor=1)
    if sync:
        with pytest.raises(TakenOverError, match=f"{tmp_path}: incarnation 1 keeps this journal"):
            eventually(lambda: owed(first))
    else:
        first.take(later)
        with pytest.raises(TakenOverError, match=f"{tmp_path}: incarnation 1 keeps this journal"):
            first.keeper.write()
    with pytest.raises(TakenOverError):
        first.keeper.take_snapshot()
    with pytest.raises(TakenOverError):
        owners[0].claim()
    second.take(later)
    second.keeper.write()
    assert owed(second) == [((1, 0), 10, False)]
    second.journal.close()
    first.journal.close()
    contents, result = recovered(folder, 2)
    assert state_of(contents.buffer) == state_of(second.buffer), "the batch is there once"
    assert not result.renumbered


class FullDisk:
    """A disk that has no more room, while it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        writev = os.writev

        def write(descriptor: int, pieces: Any) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return writev(descriptor, pieces)

        monkeypatch.setattr("replay.records.os.writev", write)


def test_a_full_disk_turns_the_journal_off_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    disk, folder = FullDisk(monkeypatch), tmp_path / "journal"
    remove = partial(shutil.rmtree, folder)
    shard = Shard(folder, contents_of(), remove=remove)
    shard.send(3)
    assert owed(shard) == [((0, 0), 1, False)]
    disk.full = True
    shard.send(3)
    assert owed(shard) == [((0, 0), 2, False)], "as without a journal"
    assert not shard.keeper.is_on
    assert not folder.exists(), "contents that are not up to date must not come back"
    [(kind, text)] = shard.telemetry.report().notes
    assert kind == "journal"
    assert text == (
        "the journal cannot be written: No space left on device; the run goes on without it, "
        "and a replay that ends starts empty"
    )
    assert shard.telemetry.counters["journal_failures"] == 1
    shard.send(3)
    shard.keeper.close()


def test_a_full_disk_may_block_the_actors_until_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    disk, folder = FullDisk(monkeypatch), tmp_path / "journal"
    shard = Shard(folder, contents_of(), when_full="block")
    shard.send(3)
    owed(shard)
    disk.full = True
    shard.send(3)
    assert shard.keeper.blocked
    assert owed(shard) == [], "it is not in the journal"
    shard.update(np.arange(6), np.full(6, 0.25, np.float32))  # the learner goes on
    for _ in range(3):
        shard.keeper.take_snapshot()
    assert shard.keeper.blocked
    disk.full = False
    shard.keeper.take_snapshot()
    assert not shard.keeper.blocked
    assert owed(shard) == [((0, 0), 2, False)]
    assert [text[:33] for _, text in shard.telemetry.report().notes] == [
        "the journal cannot be written: No",
        "the journal can be written again:",
    ]
    shard.journal.close()
    assert state_of(continued(folder).buffer) == state_of(shard.buffer)


# ---- files that are gone ----


def renewing(tmp_path: Path, *, stored: str = "dense", **settings: Any) -> Shard:
    """Make a shard whose journal is written again after a loss, in small segments."""
    folder, contents = tmp_path / "journal", contents_of(kind=stored)
    head = partial(contents.head, RUN, KIND)
    sync = settings.get("sync", False)
    renew = partial(Renewal, folder, contents, head, segment_bytes=700, sync=sync)
    return Shard(folder, contents, renew=renew, remove=partial(shutil.rmtree, folder), **settings)


def look(shard: Shard) -> None:
    """Attend to a journal as if a second had passed."""
    shard.keeper._next_look = shard.keeper._next_try = 0.0
    shard.keeper.attend()


@pytest.mark.parametrize("stored", KINDS)
@pytest.mark.parametrize("sync", [False, True])
def test_a_journal_that_somebody_removed_is_written_again_from_the_buffer(
    tmp_path: Path, stored: str, sync: bool, eventually: Callable[..., Any]
):
    folder = tmp_path / "journal"
    shard = renewing(tmp_path, stored=stored, sync=sync)
    shard.send(5, batches=9)
    shard.take(encoded(9, 40))  # it is refused
    shard.update(np.arange(30, 40), np.linspace(0, 3, 10, dtype=np.float32))
    shard.contents.limiter.count_sampled(5)
    shutil.rmtree(folder)
    look(shard)
    assert eventually(lambda: (shard.keeper.attend(), shard.keeper.is_on)[1])
    texts = [text for kind, text in shard.telemetry.report().notes if kind == "journal"]
    assert texts == [
        "files of the journal were removed; replay writes all that it holds again, and starts "
        "empty if it ends before then",
        f"the journal is complete again: it holds all {shard.buffer.size} transitions",
    ]
    shard.send(4, batches=3)
    shard.update(np.arange(40, 50), np.ones(10, np.float32))
    shard.keeper.write()
    contents, result = recovered(folder, kind=stored)  # as after a kill
    contents.buffer.check_valid()
    assert state_of(contents.buffer) == state_of(shard.buffer)
    assert not result.renumbered
    assert contents.sequences.all() == shard.contents.sequences.all()
    assert contents.accounts.all() == shard.contents.accounts.all()
    assert contents.refused == shard.contents.refused == 40
    limiter, before = contents.limiter, shard.contents.limiter
    assert (limiter.inserted, limiter.sampled) == (before.inserted, before.sampled)
    shard.keeper.close()
    assert {path.name for path in tmp_path.iterdir()} == {"journal"}


@pytest.mark.parametrize("pattern", ["*.segment", "*.updates"])
def test_a_single_file_that_is_gone_is_a_loss(tmp_path: Path, pattern: str):
    shard = renewing(tmp_path)
    shard.send(5, batches=4)
    min((tmp_path / "journal").glob(pattern)).unlink()
    look(shard)
    shard.keeper.close()
    assert state_of(recovered(tmp_path / "journal")[0].buffer) == state_of(shard.buffer)


class TestRenewal:
    """The renewal of a journal while the shard goes on."""

    @pytest.mark.parametrize("stored", KINDS)
    def test_what_is_inserted_and_evicted_meanwhile_is_right(self, tmp_path: Path, stored: str):
        shard = renewing(tmp_path, stored=stored)
        shard.send(3, batches=12)
        renewal = shard.keeper._renew()  # type: ignore[misc]
        assert isinstance(renewal, Renewal)
        for sent in (1, 1, 2, 9, 1):  # nine drive out the batch that is next
            renewal._write_batch()
            shard.send(3, batches=sent)
            assert not renewal.step(0.0)
        assert renewal.step(60.0)
        shard.journal.close()
        renewal.finish().close()
        contents, result = recovered(tmp_path / "journal", kind=stored)
        contents.buffer.check_valid()
        assert state_of(contents.buffer) == state_of(shard.buffer)
        assert contents.sequences.all() == shard.contents.sequences.all()
        assert (result.holes, result.damage.damaged) == (0, 0)

    def test_who_wants_no_loss_waits_for_it(self, tmp_path: Path):
        shard = renewing(tmp_path, when_full="block")
        shard.send(3, batches=2)
        owed(shard)
        shard.send(3)
        shutil.rmtree(tmp_path / "journal")
        renew, shard.keeper._renew = shard.keeper._renew, unable
        look(shard)
        assert shard.keeper.blocked
        assert owed(shard) == [], "it is not in the journal any more"
        shard.keeper._renew = renew
        look(shard)
        while shard.keeper.waits:
            shard.keeper.attend()
        assert not shard.keeper.blocked
        assert owed(shard) == [((0, 0), 3, False)]
        shard.keeper.close()

    def test_after_a_full_disk_there_is_a_journal_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        disk, folder = FullDisk(monkeypatch), tmp_path / "journal"
        shard = renewing(tmp_path)
        shard.send(3, batches=4)
        disk.full = True
        shard.send(3)
        look(shard)
        assert not shard.keeper.is_on
        assert not list(tmp_path.iterdir()), "it must not come back as it was"
        disk.full = False
        look(shard)
        shard.keeper.close()
        assert state_of(recovered(folder)[0].buffer) == state_of(shard.buffer)
        assert shard.telemetry.counters["journal_failures"] == 1

    def test_a_disk_without_room_is_not_filled(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        shard = renewing(tmp_path)
        shard.send(3)
        shutil.rmtree(tmp_path / "journal")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1))  # type: ignore[attr-defined]
        look(shard)
        assert not shard.keeper.is_on
        assert not list(tmp_path.iterdir())
        monkeypatch.undo()
        look(shard)
        shard.keeper.close()
        assert state_of(recovered(tmp_path / "journal")[0].buffer) == state_of(shard.buffer)

    @pytest.mark.parametrize("stored", KINDS)
    def test_a_kill_at_any_call_leaves_all_or_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str
    ):
        killer = Killer(monkeypatch)
        monkeypatch.setattr(Path, "rename", killer.killing(Path.rename))
        found: set[int] = set()
        for at in itertools.count():
            place, killer.at = tmp_path / str(at), None
            place.mkdir()
            shard = renewing(place, stored=stored)
            shard.send(3, batches=7)
            shutil.rmtree(place / "journal")
            killer.calls, killer.at, killer.share = 0, at, 0.5
            try:
                look(shard)
                while not shard.keeper.is_on:
                    shard.keeper.attend()
            except KilledError:
                killer.at = None
            is_whole, killer.at = killer.at is not None, None
            finish_replacement(place / "journal")
            contents, _ = recovered(place / "journal", kind=stored)
            if contents.buffer.size:
                assert state_of(contents.buffer) == state_of(shard.buffer)
            found.add(contents.buffer.size)
            if is_whole:
                break
        assert found == {0, 21}

    def test_one_that_was_interrupted_leaves_the_journal_as_it_was(self, tmp_path: Path):
        shard = renewing(tmp_path)
        shard.send(3, batches=6)
        renewal = shard.keeper._renew()  # type: ignore[misc]
        assert isinstance(renewal, Renewal)
        renewal._write_batch()
        shard.journal.close()
        finish_replacement(tmp_path / "journal")
        assert state_of(recovered(tmp_path / "journal")[0].buffer) == state_of(shard.buffer)
        renewal.abandon()
        assert {path.name for path in tmp_path.iterdir()} == {"journal"}


def unable() -> Any:
    raise OSError(5, "Input/output error")


# ---- records ----


def test_a_record_that_looks_like_another_in_its_bytes_is_read_as_one(tmp_path: Path):
    inner = RecordWriter(tmp_path / "inner")
    inner.add(1, b"abc")
    inner.write()
    inner.close()
    outer = RecordWriter(tmp_path / "outer")
    outer.add(2, (tmp_path / "inner").read_bytes(), b"more")
    outer.add(3)
    outer.write()
    outer.close()
    contents = parse_records((tmp_path / "outer").read_bytes())
    assert [(r.kind, len(r.payload)) for r in contents.records] == [(2, 23), (3, 0)]
    assert (contents.damaged, contents.torn_bytes) == (0, 0)


def test_more_pieces_than_one_call_takes_are_written_in_order(tmp_path: Path):
    writer = RecordWriter(tmp_path / "file")
    for number in range(1500):
        writer.add(number, bytes([number % 256]) * (number % 5))
    writer.write()
    writer.close()
    records = parse_records((tmp_path / "file").read_bytes()).records
    expected = [(n, bytes([n % 256]) * (n % 5)) for n in range(1500)]
    assert [(r.kind, bytes(r.payload)) for r in records] == expected


def test_a_part_that_was_written_before_the_disk_was_full_is_cut_off_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    writer, writev = RecordWriter(tmp_path / "file"), os.writev
    calls = itertools.count()

    def short(descriptor: int, pieces: Any) -> int:
        if next(calls) % 2:
            raise OSError(28, "No space left on device")
        return writev(descriptor, [memoryview(b"".join(pieces))[:20]])

    writer.add(1, b"first")
    writer.write()
    monkeypatch.setattr("replay.records.os.writev", short)
    writer.add(2, b"the second")
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            writer.write()
        assert (tmp_path / "file").stat().st_size == 21
    monkeypatch.undo()
    writer.write()
    writer.close()
    records = parse_records((tmp_path / "file").read_bytes()).records
    assert [bytes(record.payload) for record in records] == [b"first", b"the second"]


def test_a_new_segment_begins_with_the_present_state(tmp_path: Path):
    shard = Shard(tmp_path / "journal", contents_of(), segment_bytes=1)
    shard.send(3, batches=3)
    shard.journal.close()
    heads = [
        SegmentHead.decode(parse_records(s.path.read_bytes()).records[0].payload)
        for s in segments_of(tmp_path / "journal")
    ]
    assert [(head.first_key, dict(head.streams)) for head in heads] == [
        (0, {}),
        (0, {}),
        (3, {(0, 0): 1}),
        (6, {(0, 0): 2}),
        (9, {(0, 0): 3}),
    ]


def test_the_sampler_goes_on_after_a_stop_and_repeats_no_sample_after_a_kill(tmp_path: Path):
    shard = Shard(tmp_path, contents_of())
    shard.send(3)
    shard.buffer.sample(4)
    shard.keeper.close()
    expected = shard.buffer.sample(4).keys.tolist()
    stopped = continued(tmp_path)
    assert stopped.buffer.sample(4).keys.tolist() == expected
    stopped.update(np.array([0]), np.array([2.0], np.float32))
    stopped.keeper.write()
    former = stopped.buffer.rng.bit_generator.state
    killed, _ = recovered(tmp_path, life=2)
    assert killed.buffer.rng.bit_generator.state == contents_of(2).buffer.rng.bit_generator.state
    assert killed.buffer.rng.bit_generator.state != former
