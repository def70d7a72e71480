"""Batches at replay's door: whose they are."""

from __future__ import annotations

import numpy as np
import pytest

from pdqn import wire
from pdqn.layers import build
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.telemetry import Telemetry
from pdqn.tickets import ticket_of
from replay import intake as intakes
from replay.buffer import make_buffer
from replay.contents import Contents
from replay.intake import Intake
from replay.keeper import Keeper
from replay.limiter import RateLimiter
from replay.sender import UNKNOWN
from replay.sequences import Sequences
from replay.sharding import ShardLimiter

SPEC = EnvironmentSpec("test/Vector-v0", (FieldSpec("observation", (2,), "float32"),), 3)
SEAL = bytes(range(32))
CONFIG = build(("test", {"replay": {"capacity": 64, "min_size": 8, "store": "dense"}}))
GPU, ACTORS = "g" * 40, "a" * 40
NAMES = {GPU: "gpu", ACTORS: "actors-1", "": "a process without a key"}
FOREIGN = "refused/actors-1: a batch in another actor's name"


class Door:
    """An intake, its telemetry and a count of what is in its buffer."""

    def __init__(self, max_age: int = 0) -> None:
        self.telemetry = Telemetry()
        self._buffer = make_buffer(CONFIG, SPEC)
        named, sequences = NAMES.__getitem__, Sequences(4)
        contents = Contents(self._buffer, ShardLimiter(RateLimiter(1.0, 4.0, 8, 4)), sequences, 0)
        keeper = Keeper(contents, self.telemetry)
        self.intake = Intake(
            SPEC, "the-run", self._buffer, self.telemetry, sequences, SEAL, named, keeper, max_age
        )

    @property
    def size(self) -> int:
        return self._buffer.size

    def count(self, name: str) -> float:
        return self.telemetry.counters[name]


@pytest.fixture
def door() -> Door:
    return Door()


def batch(
    sequence: int,
    actor: int,
    ticket: bytes,
    incarnation: int = 0,
    action: int = 1,
    version: int = 0,
) -> bytes:
    columns = {name: np.zeros(4, dtype) for name, dtype in wire.TRANSITION_COLUMNS.items()}
    columns["priority"] += 1
    columns["action"] += action
    block = wire.compress_block({"observation": np.zeros((1, 2), np.float32)}, SPEC)
    return wire.encode_transitions(
        wire.TransitionBatch(
            "the-run", actor, incarnation, sequence, version, columns, [block], ticket
        )
    )


def test_a_batch_in_another_actors_name_is_refused_and_changes_nothing_of_its_stream(door: Door):
    real = ticket_of(SEAL, 3, 0, GPU)
    assert door.intake.take(batch(0, 3, real), GPU) == (4, (3, 0))
    stolen = ticket_of(SEAL, 7, 0, ACTORS)  # the sender's own
    for sequence in (1, 5, 1 << 40):
        assert door.intake.take(batch(sequence, 3, stolen), ACTORS) == (0, None)
    assert door.intake.expected((3, 0)) == 1
    assert door.intake.take(batch(1, 3, real), GPU) == (4, (3, 0))
    assert (door.size, door.count("transitions_received")) == (8, 8)
    assert door.count(FOREIGN) == 3
    assert door.count("batches_missing") == door.count("transitions_duplicate") == 0
    assert door.count("transitions_rejected") == door.count("transitions_refused") == 0


def test_the_first_batch_in_another_actors_name_is_written_down_with_its_sender(door: Door):
    for sequence in range(3):
        door.intake.take(batch(sequence, 3, ticket_of(SEAL, 7, 0, ACTORS)), ACTORS)
    text = "actors-1 sent a batch in another actor's name: ticket: not that of actor 3"
    assert door.telemetry.report().notes == (("refused", text),)


def test_a_ticket_is_worth_nothing_with_another_key(door: Door):
    ticket = ticket_of(SEAL, 3, 0, GPU)
    assert door.intake.take(batch(0, 3, ticket), ACTORS) == (0, None)
    door.intake.take(batch(0, 3, ticket), GPU)
    assert door.intake.take(batch(1, 3, ticket), ACTORS) == (0, None), "a stream that is known"
    assert door.intake.expected((3, 0)) == 1


def test_without_keys_a_ticket_is_still_needed(door: Door):
    assert door.intake.take(batch(0, 3, b""), "") == (0, None)
    assert door.intake.take(batch(0, 3, ticket_of(SEAL, 3, 0, "")), "") == (4, (3, 0))
    assert door.count("refused/a process without a key: a batch in another actor's name") == 1


def test_a_batch_of_an_earlier_incarnation_needs_its_own_ticket(door: Door):
    new, old = (ticket_of(SEAL, 3, incarnation, GPU) for incarnation in (1, 0))
    assert door.intake.take(batch(0, 3, new, incarnation=1), GPU)[0] == 4
    assert door.intake.take(batch(0, 3, new, incarnation=0), GPU) == (0, None)
    assert door.intake.take(batch(0, 3, old, incarnation=0), GPU)[0] == 4


def test_an_unusable_batch_is_neither_looked_at_nor_acknowledged_in_another_actors_name(door: Door):
    unusable = batch(0, 3, ticket_of(SEAL, 7, 0, ACTORS), action=99)
    assert door.intake.take(unusable, ACTORS) == (0, None)
    assert door.intake.expected((3, 0)) == UNKNOWN
    assert door.count("rejected/action") == 0
    assert door.intake.take(batch(0, 3, ticket_of(SEAL, 3, 0, GPU), action=99), GPU) == (0, (3, 0))
    assert door.count("rejected/action") == 1


def test_a_ticket_is_worked_out_once_for_a_stream(door: Door, monkeypatch: pytest.MonkeyPatch):
    checked: list[int] = []
    is_valid = intakes.is_valid
    monkeypatch.setattr(intakes, "is_valid", lambda *of: checked.append(of[2]) or is_valid(*of))
    ticket = ticket_of(SEAL, 3, 0, GPU)
    for sequence in range(5):
        door.intake.take(batch(sequence, 3, ticket), GPU)
    assert checked == [3]


def test_only_so_many_streams_are_remembered(door: Door, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("replay.sequences.MOST_STREAMS", 2)
    for actor in (0, 1, 2, 0):
        assert door.intake.take(batch(0, actor, ticket_of(SEAL, actor, 0, GPU)), GPU)[0] == 4
    assert len(door.intake._tickets._verified) == 2


# ---- age ----


def test_a_batch_that_is_too_old_is_settled_and_not_stored():
    door, ticket = Door(max_age=10), ticket_of(SEAL, 3, 0, GPU)
    door.intake.set_learner_steps(30)
    assert door.intake.take(batch(0, 3, ticket, version=20), GPU) == (4, (3, 0))
    assert door.intake.take(batch(1, 3, ticket, version=19), GPU) == (0, (3, 0))
    assert door.intake.expected((3, 0)) == 2
    assert (door.size, door.count("transitions_refused")) == (4, 4)
    assert door.count("rejected/too old") == 1
    (_, said) = next(note for note in door.telemetry.report().notes)
    assert "4 transitions are 11 learner steps old, at most 10 may be" in said


def test_what_becomes_too_old_in_the_buffer_is_counted_and_evicted():
    door, ticket = Door(max_age=10), ticket_of(SEAL, 3, 0, GPU)
    for sequence, version in enumerate((20, 26, 22)):
        door.intake.take(batch(sequence, 3, ticket, version=version), GPU)
    door.intake.set_learner_steps(30)
    assert (door.size, door.count("transitions_expired")) == (12, 0)
    door.intake.set_learner_steps(33)  # the third batch waits behind the second, and is not drawn
    assert (door.size, door.count("transitions_expired")) == (8, 8)
    door.intake.set_learner_steps(37)
    assert (door.size, door.count("transitions_expired")) == (0, 12)


def test_without_a_limit_nothing_is_too_old(door: Door):
    door.intake.set_learner_steps(1 << 40)
    assert door.intake.take(batch(0, 3, ticket_of(SEAL, 3, 0, GPU)), GPU) == (4, (3, 0))
    door.intake.set_learner_steps(1 << 41)
    assert (door.size, door.count("transitions_expired")) == (4, 0)
