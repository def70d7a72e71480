"""A member that floods the run's records: what is written down of it, and of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_console import Clock, FakeTerminal, snapshot
from test_coordinator import Hub, evaluation, request, tell
from test_single import Listening, config_of, session_of

from launcher.console.console import RichConsole
from launcher.coordinator.flood import LEFT_OUT, EventLimit
from launcher.coordinator.membership import Event
from launcher.metrics.allowance import Allowance
from launcher.metrics.counters import MemberKey
from launcher.metrics.metrics import RunMetrics
from launcher.run.ends import Ends
from pdqn.messages import MAX_NOTES, MAX_TEXT, Evaluation, Report

DAY = 24 * 3600
Eventually = Callable[..., Any]


@pytest.fixture
def hub(eventually: Eventually) -> Iterator[Hub]:
    hub = Hub(eventually)
    yield hub
    hub.close()


def written(events: list[Event]) -> int:
    return sum(len(event.text) for event in events)


def test_an_allowance_fills_up_again_but_never_beyond_its_start():
    allowance = Allowance(100.0, 10.0)
    assert allowance.left(0.0) == 100.0
    allowance.use(60.0, 1000.0)
    assert not allowance.is_whole(1000.0)
    assert [allowance.left(1000.0 + t) for t in (0.0, 1.0, 6.0, 60.0)] == [40.0, 50.0, 100.0, 100.0]
    assert allowance.is_whole(1006.0)
    assert allowance.left(900.0) == 40.0, "a clock that goes back adds nothing"


def test_a_member_that_writes_all_day_fills_less_than_a_hundred_megabytes():
    limit, kept = EventLimit(), list[Event]()
    for second in range(0, DAY, 60):
        for _ in range(MAX_NOTES):
            kept += limit.take(Event("seeds", "actor", 7, "x" * MAX_TEXT), 1000.0 + second)
    assert written(kept) < 100e6
    sent = DAY // 60 * MAX_NOTES
    notices = sum(event.kind == LEFT_OUT for event in kept)
    assert limit.left_out["actor", 7] == sent - (len(kept) - notices)


def test_what_is_left_out_is_counted_and_named_now_and_then():
    limit = EventLimit()
    taken = [
        limit.take(Event("seeds", "actor", 7, "x" * 4000), 1000.0 + n / 10) for n in range(200)
    ]
    kept = [event for events in taken for event in events]
    notices = [event for event in kept if event.kind == LEFT_OUT]
    assert 1 <= len(notices) <= 2, "20 seconds have passed, and a notice comes every ten"
    assert (notices[0].role, notices[0].index) == ("actor", 7)
    assert notices[0].text == "1 event left out so far: more than a place may write"
    assert limit.left_out["actor", 7] == 200 - len(kept) + len(notices)


def test_a_flood_takes_nothing_from_what_others_have_to_say():
    limit = EventLimit()
    for _ in range(5000):
        limit.take(Event("seeds", "actor", 7, "x" * 4000), 1000.0)
    for role, index in (("actor", 8), ("learner", 0), ("replay", 0)):
        event = Event("failed", role, index, "it broke", error=True)
        assert limit.take(event, 1000.0) == [event]


def test_a_key_with_many_places_takes_nothing_from_what_other_keys_have_to_say():
    limit = EventLimit()
    for index in range(4000):
        for _ in range(20):
            limit.take(Event("seeds", "actor", index, "x" * 4000), 1000.0, "its key")
    for user in ("another key", ""):
        event = Event("failed", "learner", 0, "it broke", error=True)
        assert limit.take(event, 1000.0, user) == [event]


def test_requests_for_a_place_leave_its_holder_everything_that_it_has_to_say():
    limit = EventLimit()
    for _ in range(10_000):
        limit.take(Event("refused", "learner", 0, "a request for another's place"), 1000.0, "one")
    event = Event("saved", "learner", 0, "step 1000")
    assert limit.take(event, 1000.0, "the learner's") == [event]


def test_ten_thousand_actors_that_join_at_once_are_all_written_down():
    limit = EventLimit()
    for index in range(10_000):
        event = Event("joined", "actor", index, f"actor {index} on some-host-name, pid 123456")
        assert limit.take(event, 1000.0) == [event]
    assert not limit.left_out


def test_many_places_together_have_a_limit_and_take_no_memory_for_ever():
    limit, kept = EventLimit(), list[Event]()
    for index in range(50_000):
        for _ in range(3):
            kept += limit.take(Event("joined", "actor", index, "x" * 400), 1000.0 + index / 1000)
    assert written(kept) < 6e6
    assert len(limit._places) <= 10_000, "those that are quiet are forgotten"
    assert len(limit.left_out) <= 10_001


def test_processes_that_are_refused_share_a_limit_whatever_they_call_themselves():
    limit = EventLimit()
    kept = [limit.take(Event("refused", f"role {n}", -1, "x" * 100), 1000.0) for n in range(10_000)]
    assert sum(map(len, kept)) <= 501


# ---- a real coordinator ----


def test_a_member_that_floods_notes_is_named_and_the_run_says_how_much_it_left_out(
    hub: Hub, tmp_path: Path
):
    console = Listening()
    session = session_of(config_of({"env": "CartPole-v1"}), tmp_path, console)
    ends = Ends(session, hub.coordinator, None)  # pyright: ignore[reportArgumentType]
    tell(hub, b"flood", "join", **request())
    tell(hub, b"honest", "join", **request())
    notes = [["checkpoint", "x" * 4000]] * MAX_NOTES
    for turn in range(500):
        tell(hub, b"flood", "report", notes=notes)
        if turn % 100 == 0:
            tell(hub, b"honest", "report", notes=[["seeds", f"of turn {turn}"]])
        while hub.coordinator.events:
            ends.take(hub.coordinator.events.popleft())
    assert session.records.flush(60)
    session.run_dir.close()
    records = (tmp_path / "events.jsonl").read_text("utf-8")
    assert len(records) < 1_000_000, "of 40 MB"
    assert all(f"of turn {turn}" in records for turn in range(0, 500, 100))
    assert any(line.startswith("actor 2: 1 event left out so far") for line in console.said)
    assert hub.metrics.summary()["control_rejected"][LEFT_OUT] > 9000


def test_one_that_joins_and_leaves_all_the_time_is_bounded_as_well(hub: Hub):
    for _ in range(5000):
        tell(hub, b"restless", "join", **request())
        tell(hub, b"restless", "leave", report={}, reason="x" * 400)
    assert written(list(hub.coordinator.events)) < 200_000
    assert hub.metrics.summary()["control_rejected"][LEFT_OUT] > 5000


# ---- evaluations and counters ----


def test_evaluations_that_come_all_the_time_do_not_fill_the_disk_and_the_evaluators_are_kept():
    metrics = RunMetrics(None)
    many = {f"metric {n} " + "x" * 60: 1.0 for n in range(1000)}
    large = Evaluation.from_map(evaluation(baselines=many))
    usual = Evaluation.from_map(evaluation())
    lines = 0
    for second in range(3600):
        for _ in range(10):
            metrics.ingest(MemberKey("actor", 0, 0), Report(evaluation=large), 1000.0 + second)
        if second % 2 == 0:
            report = Report(evaluation=usual)
            metrics.ingest(MemberKey("evaluator", 0, 0), report, 1000.0 + second)
        found = metrics.take_evaluations()
        assert (usual in found) == (second % 2 == 0)
        lines += sum(one is not usual for one in found)
    assert lines < 30, "four megabytes an hour"
    assert metrics.summary()["control_rejected"]["evaluation"] == 36_000 - lines


# ---- the console ----


def test_a_console_keeps_the_newest_messages_and_says_how_many_it_left_out(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("launcher.console.console._MOST_MESSAGES", 50)
    stream = FakeTerminal()
    console = RichConsole(stream, Clock())
    console.start()
    console.update(snapshot())
    for number in range(120):
        console.message(f"message number {number}.")
    console.stop()
    left = stream.getvalue().rpartition("\x1b[?1049l")[2]
    assert "70 earlier messages left out here, see events.jsonl" in left
    assert "number 69." not in left
    assert "number 70." in left
    assert "number 119." in left
