"""Joining, reporting and following over real sockets, between the coordinator and the links."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

import pdqn
from launcher.coordinator.coordinator import Coordinator
from launcher.coordinator.files import FileDesk, FileStore
from launcher.coordinator.membership import Event
from launcher.coordinator.readmission import Readmissions
from launcher.coordinator.watchers import Watchers
from launcher.hosts.supervisor import Supervisor
from launcher.metrics.metrics import MemberKey, RunMetrics
from pdqn import messages, transport, wire
from pdqn.clients import EVERY_ROLE, Client
from pdqn.config import Config
from pdqn.errors import JoinRefusedError, RunError, UsageError
from pdqn.layers import build
from pdqn.link import CoordinatorLink
from pdqn.messages import (
    Episode,
    Evaluation,
    Fetch,
    FilePiece,
    Pulse,
    Rejoin,
    Report,
    Welcome,
)
from pdqn.silence import ListeningClock
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.telemetry import Telemetry
from pdqn.tickets import is_valid
from pdqn.transport import Context, KeyPair, Network
from pdqn.trust import EVERYTHING
from replay.client import SampleClient
from replay.sender import TransitionSender

Eventually = Callable[..., Any]

SPEC = EnvironmentSpec("test/Vector-v0", (FieldSpec("observation", (4,), "float32"),), 2)
CONFIG = build(
    (
        "test",
        {
            "run": {"seed": 5, "env_args": {"size": 3}},
            "actor": {"count": 2},
            "system": {"telemetry_seconds": 0.01, "heartbeat_timeout_seconds": 60.0},
        },
    )
)


class Hub:
    """A coordinator and its links, all in one thread except for the waiting in ``join``."""

    def __init__(
        self,
        eventually: Eventually,
        config: Config = CONFIG,
        role_bind: str = "ipc:///sockets/{role}-{name}",
        context: Context | None = None,
    ) -> None:
        self._eventually = eventually
        self.context: zmq.Context[zmq.Socket[bytes]] = context or zmq.Context()
        self.metrics = RunMetrics(None)
        self.coordinator = Coordinator(
            self.context,
            "tcp://127.0.0.1:*",
            welcome=Welcome("the-run", 0, 0, config, SPEC, role_bind, "/the/directory"),
            metrics=self.metrics,
        )
        self.contexts: list[Context] = []
        self._pool = ThreadPoolExecutor(1)
        self._links: list[CoordinatorLink] = []
        self._sockets: list[zmq.Socket[bytes]] = []

    def join(
        self, role: str, index: int | None = None, context: Context | None = None
    ) -> tuple[CoordinatorLink, Welcome]:
        link = CoordinatorLink(
            context or self.context, self.coordinator.endpoint, role, index=index
        )
        self._links.append(link)
        answer = self._pool.submit(link.join, 30.0)
        self.until(answer.done)
        return link, answer.result()

    def until(self, happened: Callable[[], Any]) -> None:
        """Let coordinator and links talk until something is true."""

        def talk() -> Any:
            self.coordinator.poll(0.01)
            return happened()

        self._eventually(talk)

    def poll_until(self, link: CoordinatorLink, happened: Callable[[], Any]) -> None:
        def talk() -> Any:
            link.poll()
            return happened()

        self.until(talk)

    def events(self, kind: str) -> list[Event]:
        return [event for event in self.coordinator.events if event.kind == kind]

    def stranger(self) -> zmq.Socket[bytes]:
        """Open a socket that speaks to the coordinator without a link."""
        socket = self.socket(zmq.DEALER)
        socket.connect(self.coordinator.endpoint)
        return socket

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        self._sockets.append(self.context.socket(kind))
        return self._sockets[-1]

    def close(self) -> None:
        self._pool.shutdown()
        for context in (self.context, *self.contexts):
            context.destroy(linger=0)


@pytest.fixture
def hub(eventually: Eventually) -> Iterator[Hub]:
    hub = Hub(eventually)
    yield hub
    hub.close()


def tell(hub: Hub, sender: bytes, kind: str, **content: Any) -> None:
    """Hand the coordinator a message of one of many members; real sockets would take too long."""
    message = messages.TO_COORDINATOR[kind].from_map(content)
    hub.coordinator._receive(sender, message, "", len(message.encoded))


def rejoining(**changes: Any) -> Rejoin:
    place = {"role": "actor", "index": 0, "incarnation": 0, "run": "the-run"}
    return Rejoin(**place | {"host": "here", "pid": 1} | changes)


def request(**changes: Any) -> dict[str, Any]:
    own = {"role": "actor", "index": None, "host": "here", "pid": 1, "package": pdqn.__version__}
    return {**own, **changes}


# ---- joining ----


def test_a_role_that_joins_learns_what_the_run_is(hub: Hub):
    link, welcome = hub.join("learner")
    assert (welcome.run, welcome.run_dir) == ("the-run", "/the/directory")
    assert (welcome.index, welcome.incarnation) == (0, 0)
    assert welcome.config == CONFIG
    assert welcome.spec == SPEC
    assert welcome.address("parameters") == "ipc:///sockets/learner-0-0-parameters"
    assert link.pulse.command == "run"
    assert link.pulse.actor_slots == 2
    member = next(hub.coordinator.membership.members("learner"))
    assert member.pid == os.getpid()
    assert [event.role for event in hub.events("joined")] == ["learner"]


def test_settings_of_a_host_take_the_place_of_the_runs(hub: Hub):
    context = Context(Network(settings={"learner": {"threads": 7}}))
    hub.contexts.append(context)
    _, welcome = hub.join("learner", context=context)
    assert welcome.config.learner.threads == 7
    assert dataclasses.replace(welcome.config, learner=CONFIG.learner) == CONFIG


def test_actors_from_elsewhere_come_after_the_indices_of_this_hosts_own(hub: Hub):
    assert [hub.join("actor", index)[1].index for index in (1, 0)] == [1, 0]
    assert [hub.join("actor")[1].index for _ in range(2)] == [2, 3]
    last, _ = hub.join("actor")
    assert last.pulse.actor_slots == 5, "all of them share the epsilon ladder"


def test_actors_are_held_until_the_run_is_complete(hub: Hub):
    link, _ = hub.join("actor", 0)
    assert link.pulse.command == "hold"
    hub.coordinator.command(["actor"], "run")
    hub.poll_until(link, lambda: link.pulse.command == "run")


def test_what_is_missing_is_told_in_words(hub: Hub):
    assert (
        hub.coordinator.membership.missing() == "replay (0 of 1), learner (0 of 1), actor (0 of 2)"
    )
    hub.join("replay")
    hub.join("actor", 0)
    assert hub.coordinator.membership.missing() == "learner (0 of 1), actor (1 of 2)"
    hub.join("learner")
    hub.join("actor", 1)
    assert hub.coordinator.membership.missing() == ""


def test_a_run_without_actors_of_its_own_waits_for_one(eventually: Eventually):
    hub = Hub(eventually, build(("test", {"actor": {"count": 0}})))
    assert (
        hub.coordinator.membership.missing() == "replay (0 of 1), learner (0 of 1), actor (0 of 1)"
    )
    hub.close()


def test_a_run_of_several_replays_waits_for_all_of_them_and_refuses_more(eventually: Eventually):
    hub = Hub(eventually, build(("test", {"actor": {"count": 1}, "replay": {"shards": 2}})))
    assert (
        hub.coordinator.membership.missing() == "replay (0 of 2), learner (0 of 1), actor (0 of 1)"
    )
    assert hub.join("replay", 1)[1].index == 1
    assert (
        hub.coordinator.membership.missing() == "replay (1 of 2), learner (0 of 1), actor (0 of 1)"
    )
    assert hub.join("replay")[1].index == 0, "the shard that is free"
    with pytest.raises(RunError, match="refused this replay: the run has its 2 replays already"):
        hub.join("replay")
    hub.coordinator.lost("replay", 1)
    _, welcome = hub.join("replay", 7)
    assert (welcome.index, welcome.incarnation) == (1, 1), "there is no shard 7"
    hub.close()


@pytest.mark.parametrize("named", ["a replay", "a learner", "an evaluator"])
def test_a_second_of_a_kind_is_refused_with_a_sentence(hub: Hub, named: str):
    role = named.partition(" ")[2]
    hub.join(role)
    with pytest.raises(RunError, match=f"refused this {role}: the run has {named} already"):
        hub.join(role)
    assert hub.coordinator.membership.count(role) == 1
    assert [event.text for event in hub.events("refused")] == [f"the run has {named} already"]


def test_another_version_of_the_package_is_refused(hub: Hub):
    stranger = hub.stranger()
    stranger.send(wire.encode_control("join", request(package="0.0.9")))
    hub.until(lambda: stranger.poll(0))
    answer = wire.decode_control(stranger.recv())
    assert answer["type"] == "refuse"
    assert answer["reason"] == f"it runs pdqn '0.0.9', the run {pdqn.__version__}"
    assert hub.coordinator.membership.count("actor") == 0


def test_a_role_that_does_not_exist_is_refused(hub: Hub):
    with pytest.raises(RunError, match="there is no role 'critic'; there are actor, replay"):
        hub.join("critic")


def test_nobody_joins_a_run_that_is_stopping(hub: Hub):
    hub.coordinator.command(["actor"], "stop")
    with pytest.raises(RunError, match="the run is stopping"):
        hub.join("actor")


def test_an_address_where_nobody_answers_is_given_up():
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    link = CoordinatorLink(context, "tcp://127.0.0.1:1", "actor")
    with pytest.raises(RunError, match=r"no coordinator answered at tcp://127\.0\.0\.1:1 in 0 s"):
        link.join(timeout_seconds=0.3)
    context.destroy(linger=0)


def test_an_address_in_use_is_told_in_one_line(hub: Hub):
    with pytest.raises(UsageError, match=r"cannot bind tcp://127.0.0.1:\d+: Address already in"):
        Coordinator(
            hub.context,
            hub.coordinator.endpoint,
            welcome=Welcome("", 0, 0, CONFIG, SPEC, "", ""),
            metrics=hub.metrics,
        )


# ---- losing and leaving ----


def test_a_role_that_was_lost_comes_back_as_its_next_incarnation(hub: Hub):
    link, first = hub.join("actor", 1)
    link.telemetry.count("environment_steps", 30)
    link.report()
    hub.until(lambda: hub.metrics.total("actor", "environment_steps") == 30)
    hub.coordinator.lost("actor", 1)
    assert hub.coordinator.membership.count("actor") == 0
    link, second = hub.join("actor", 1)
    assert (first.incarnation, second.incarnation) == (0, 1)
    assert second.index == 1
    link.telemetry.count("environment_steps", 12)
    link.report()
    hub.until(lambda: hub.metrics.total("actor", "environment_steps") == 42)


def test_what_a_lost_incarnation_still_says_is_not_counted(hub: Hub):
    link, _ = hub.join("actor", 0)
    hub.coordinator.lost("actor", 0)
    link.telemetry.count("environment_steps", 5)
    link.report()
    other, _ = hub.join("actor", 0)
    other.report()
    hub.until(lambda: next(hub.coordinator.membership.members("actor")).reported)
    assert hub.metrics.total("actor", "environment_steps") == 0


def test_a_process_that_ends_takes_nobody_with_it_who_has_its_place_elsewhere(hub: Hub):
    hub.join("replay", 0)
    pid = next(hub.coordinator.membership.members("replay")).pid
    hub.coordinator.lost("replay", 0, pid + 1)
    assert hub.coordinator.membership.count("replay") == 1
    hub.coordinator.lost("replay", 0, pid)
    assert hub.coordinator.membership.count("replay") == 0


def test_nobody_comes_back_who_never_was_there(hub: Hub):
    stranger = hub.stranger()
    stranger.send(rejoining(index=5, incarnation=0).encoded)
    hub.until(lambda: stranger.poll(0))
    assert wire.decode_control(stranger.recv())["type"] == "refuse"
    again = rejoining().to_map() | {"incarnation": -1, "endpoints": [1]}
    stranger.send(wire.encode_control("rejoin", again))
    hub.until(lambda: hub.coordinator.rejected["rejoin"] == 1)
    assert hub.coordinator.membership.count("actor") == 0


def test_each_incarnation_binds_at_an_address_of_its_own(hub: Hub):
    _, first = hub.join("replay")
    hub.coordinator.lost("replay", 0)
    _, second = hub.join("replay")
    assert first.address("samples") != second.address("samples")


def test_leaving_is_counted_to_the_last_figure(hub: Hub):
    link, _ = hub.join("actor", 0)
    link.telemetry.count("transitions_sent", 7)
    link.leave()
    hub.until(lambda: not hub.coordinator.membership.count("actor"))
    assert hub.metrics.total("actor", "transitions_sent") == 7
    assert [event.error for event in hub.events("left")] == [False]


def test_leaving_with_a_reason_is_an_error(hub: Hub):
    link, _ = hub.join("actor", 0)
    link.leave("ValueError: the environment broke")
    hub.until(lambda: hub.events("failed"))
    event = hub.events("failed")[0]
    assert (event.role, event.index, event.error) == ("actor", 0, True)
    assert event.text == "ValueError: the environment broke"


def test_who_is_not_heard_for_long_is_silent(hub: Hub):
    link, _ = hub.join("actor", 0)
    hub.join("learner")
    member = next(hub.coordinator.membership.members("actor"))
    member.heard -= 100.0
    assert [m.key.role for m in hub.coordinator.membership.silent(50.0)] == ["actor"]
    link.report()
    hub.until(lambda: not hub.coordinator.membership.silent(50.0))


def test_a_role_knows_that_its_launcher_is_gone_when_it_hears_nothing(eventually: Eventually):
    system = {"telemetry_seconds": 0.01, "heartbeat_timeout_seconds": 0.2}
    hub = Hub(eventually, build(("test", {"system": system})))
    link, _ = hub.join("actor")
    assert not link.orphaned
    eventually(lambda: link.poll() or link.stopping)
    assert link.orphaned
    assert link.pulse.command != "stop"
    hub.close()


class Parent:
    """The watch of a role's process on the one that has had it started."""

    is_watching, gone, is_dismissed = True, False, False

    def tell_ready(self) -> None:
        """Tell nobody."""


@pytest.mark.parametrize("agent", ["", "of a host"], ids=["launcher", "host"])
def test_a_role_of_the_launcher_waits_while_that_lives_and_one_of_a_host_for_the_time_set(
    agent: str, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
):
    system = {"telemetry_seconds": 0.01, "heartbeat_timeout_seconds": 0.2}
    hub = Hub(eventually, build(("test", {"system": system})))
    link, _ = hub.join("actor")
    parent = Parent()
    monkeypatch.setattr(link, "_parent", parent)
    monkeypatch.setattr(CoordinatorLink, "_network", Network(agent=agent))
    eventually(lambda: link.poll() or link.silent_seconds > 0.2)
    assert link.stopping == bool(agent)
    parent.gone = True
    assert link.stopping
    assert not link.is_dismissed
    parent.is_dismissed = True
    assert link.is_dismissed
    link.pulse = Pulse("stop")
    assert not link.is_dismissed, "the run does not go on without it"
    hub.close()


class Stops:
    """The time for which processes were stopped, in addition to the time that passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._seconds = 0.0
        monkeypatch.setattr("pdqn.silence.monotonic", lambda: time.monotonic() + self._seconds)

    def stop(self, seconds: float) -> None:
        self._seconds += seconds


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Stops:
    return Stops(monkeypatch)


def test_silence_is_counted_only_while_one_listens(stops: Stops):
    listening = ListeningClock(30.0)
    stops.stop(4.0)
    listening.turn()
    assert listening.seconds == pytest.approx(4.0, abs=1.0)
    assert not listening.was_away
    stops.stop(1000.0)
    listening.turn()
    assert listening.seconds == pytest.approx(10.0, abs=1.0), "a fifth of 30 s more"
    assert listening.was_away
    listening.turn()
    assert not listening.was_away


def test_who_listens_seldom_notices_silence_all_the_same(stops: Stops):
    listening = ListeningClock(30.0)
    for _ in range(6):
        stops.stop(29.0)
        listening.turn()
    assert listening.seconds > 30.0


def test_a_role_that_was_stopped_does_not_take_its_launcher_for_gone(hub: Hub, stops: Stops):
    link, _ = hub.join("actor", 0)
    stops.stop(1000.0)
    assert not link.stopping, "it looks at that before it listens"
    link.poll()
    assert not link.stopping, "and the coordinator, stopped as well, has not answered yet"
    hub.poll_until(link, lambda: link.silent_seconds == 0.0)


def test_a_role_that_was_stopped_notices_a_launcher_that_is_gone_now(hub: Hub, stops: Stops):
    link, _ = hub.join("actor", 0)
    stops.stop(1000.0)
    link.poll()
    for _ in range(5):
        assert not link.orphaned
        stops.stop(12.0)
        link.poll()
    assert link.orphaned


def test_a_coordinator_that_was_stopped_takes_no_role_and_no_host_for_silent(
    hub: Hub, stops: Stops
):
    hub.join("actor", 0)
    host(hub, "one")
    limits = CONFIG.system.heartbeat_timeout_seconds, CONFIG.system.host_timeout_seconds
    stops.stop(1000.0)
    assert not hub.coordinator.membership.silent(limits[0])
    assert not hub.coordinator.membership.silent_hosts(limits[1])
    hub.coordinator.poll(0.0)
    assert hub.coordinator.was_away
    assert not hub.coordinator.membership.silent(limits[0])
    assert not hub.coordinator.membership.silent_hosts(limits[1])


def test_a_role_that_hangs_after_a_stop_is_found_and_no_other(hub: Hub, stops: Stops):
    hub.join("actor", 0)
    lively, _ = hub.join("actor", 1)
    member = next(m for m in hub.coordinator.membership.members() if m.key.index == 1)
    stops.stop(1000.0)
    hub.coordinator.poll(0.0)
    for _ in range(60):
        stops.stop(1.0)
        lively.report()
        hub.until(lambda: hub.coordinator.membership.silent_seconds(member) == 0.0)
    assert [m.key.index for m in hub.coordinator.membership.silent(50.0)] == [0]


# ---- pulses ----


# ---- places ----


def test_who_was_not_heard_for_a_while_gets_the_old_place_back(hub: Hub):
    link, welcome = hub.join("actor")
    link.telemetry.count("environment_steps", 5)
    hub.poll_until(link, lambda: next(hub.coordinator.membership.members("actor")).reported)
    hub.coordinator.lost("actor", welcome.index)
    assert hub.coordinator.membership.count("actor") == 0
    hub.poll_until(link, lambda: hub.coordinator.membership.count("actor"))
    member = next(hub.coordinator.membership.members("actor"))
    assert (member.key.index, member.key.incarnation) == (welcome.index, 0)
    assert [event.index for event in hub.events("rejoined")] == [welcome.index]
    link.telemetry.count("environment_steps", 2)
    hub.poll_until(link, lambda: hub.metrics.counts()["environment_steps"] == 7)


def test_who_is_back_serves_where_it_did_from_that_moment(hub: Hub):
    replay, _ = hub.join("replay")
    actor, _ = hub.join("actor")
    served = {"transitions/0": "tcp://a:1", "acknowledgements/0": "tcp://a:2"}
    replay.serve_at(served)
    hub.poll_until(replay, lambda: actor.poll() or actor.pulse.endpoints == served)
    hub.coordinator.lost("replay", 0)
    hub.until(lambda: actor.poll() or not actor.pulse.endpoints)
    replay.report()
    hub.poll_until(replay, lambda: hub.events("rejoined"))
    member = next(hub.coordinator.membership.members("replay"))
    assert member.endpoints == served, "before its next report"


def test_what_was_placed_elsewhere_for_good_gets_no_place_back(hub: Hub):
    link = host(hub, "one", "learner")
    assert hub.coordinator.lose_host("one", for_good=True) == 0
    with pytest.raises(RunError, match="no longer has a place for this role"):
        hub.poll_until(link, lambda: False)
    hub.join("learner")


def test_what_had_not_joined_when_it_was_placed_elsewhere_for_good_is_refused(hub: Hub):
    hub.coordinator.lose_host("one", for_good=True)
    for role in ("host", "learner"):
        with pytest.raises(JoinRefusedError, match=f"refused this {role}: its host was given up"):
            host(hub, "one", role)
    host(hub, "two", "learner")


def any_reported(hub: Hub, role: str) -> bool:
    return any(member.reported for member in hub.coordinator.membership.members(role))


def test_what_is_told_only_once_is_not_lost_while_who_tells_it_is_taken_for_gone(hub: Hub):
    link, _ = hub.join("actor", 0)
    evaluator, _ = hub.join("evaluator", 0)
    hub.coordinator.lost("actor", 0)
    hub.coordinator.lost("evaluator", 0)
    link.telemetry.episode(Episode(7.0, 3))
    link.telemetry.note("seeds", "1, 2, 3")
    evaluator.telemetry.evaluation(evaluation())
    for one, role in ((link, "actor"), (evaluator, "evaluator")):
        one.report()
        hub.poll_until(one, lambda role=role: any_reported(hub, role))
    assert hub.metrics.current()["rollout/ep_rew_mean"] == 7.0
    assert hub.metrics.counts()["episodes"] == 1
    assert [event.text for event in hub.events("seeds")] == ["1, 2, 3"]
    assert hub.metrics.take_evaluations() == [Evaluation.from_map(evaluation())]


def rejoin(hub: Hub, sender: bytes, index: int, **changes: Any) -> None:
    """Ask for the place of an actor's newest incarnation."""
    incarnation = max(0, hub.coordinator.membership.incarnations["actor", index] - 1)
    place = {"index": index, "incarnation": incarnation}
    tell(hub, sender, "rejoin", **rejoining(**place | changes).to_map())


def test_a_connection_made_anew_loses_nothing_that_is_told_only_once(hub: Hub):
    tell(hub, b"before", "join", **request())
    index = next(hub.coordinator.membership.members("actor")).key.index
    for score in (3.0, 5.0):
        tell(hub, b"after", "report", counters={"episodes": 2}, episodes=[[score, 1, None]])
        rejoin(hub, b"after", index)
    assert hub.metrics.counts()["episodes"] == 0, "its old connection may still be alive"
    hub.coordinator.membership.listened_seconds += 1.0
    rejoin(hub, b"after", index)
    assert hub.coordinator.membership.count("actor") == 1
    assert hub.metrics.current()["rollout/ep_rew_mean"] == 4.0
    assert hub.metrics.counts()["episodes"] == 2
    tell(hub, b"after", "report", counters={"episodes": 3}, episodes=[[7.0, 1, None]])
    assert hub.metrics.current()["rollout/ep_rew_mean"] == 5.0, "and nothing is counted twice"


def test_what_somebody_tells_whose_place_is_taken_is_not_counted(hub: Hub):
    tell(hub, b"first", "join", **request(index=0))
    hub.coordinator.lost("actor", 0)
    tell(hub, b"second", "join", **request(index=0))
    tell(hub, b"first", "report", counters={"episodes": 1}, episodes=[[7.0, 1, None]])
    for incarnation in (0, 1):  # 0 is out of date, and 1 is a lie
        rejoin(hub, b"first", 0, incarnation=incarnation)
    assert hub.metrics.counts()["episodes"] == 0
    assert hub.metrics.current()["rollout/ep_rew_mean"] is None


def test_a_role_of_another_run_gets_no_place(hub: Hub):
    tell(hub, b"first", "join", **request(index=0))
    hub.coordinator.lost("actor", 0)
    rejoin(hub, b"first", 0, run="another-run")
    assert hub.coordinator.membership.count("actor") == 0
    rejoin(hub, b"first", 0)
    assert hub.coordinator.membership.count("actor") == 1


def test_of_those_who_never_get_a_place_only_the_newest_are_remembered():
    kept = Readmissions(most_bytes=10)

    def put(sender: bytes, text: str) -> None:
        kept.put(sender, Report(activity=text), len(text))

    def take(sender: bytes) -> list[str]:
        return [report.activity for report in kept.take(sender)]

    for sender, text in ((b"a", "1234"), (b"b", "56"), (b"a", "78"), (b"c", "90")):
        put(sender, text)
    put(b"d", "x")  # ten bytes were there already
    assert take(b"b") == []
    assert take(b"a") == ["1234", "78"]
    assert take(b"a") == []
    put(b"e", "1234567")
    assert [take(sender) for sender in (b"c", b"d", b"e")] == [["90"], ["x"], ["1234567"]]
    put(b"f", "too long by far")
    assert take(b"f") == []


def test_reports_of_one_key_drive_out_none_of_another():
    kept = Readmissions(most_bytes=10)
    kept.put(b"a", Report(activity="mine"), 4, "key")
    for number in range(100):
        kept.put(b"%d" % number, Report(), 5, "flood")
    assert [report.activity for report in kept.take(b"a", "key")] == ["mine"]
    assert kept.take(b"99", "key") == [], "of another key"
    assert len(kept.take(b"99", "flood")) == 1


def test_watchers_of_one_key_drive_out_none_of_another():
    watchers = Watchers()
    watchers.note(b"console", "key", 1.0)
    for number in range(1000):
        watchers.note(b"%d" % number, "flood", 2.0)
    watchers.note(b"900", "flood", 3.0)
    told = list(watchers.since(0.5))
    assert told[0] == b"console"
    assert len(told) == 101
    assert told[-1] == b"900"
    assert list(watchers.since(2.5)) == [b"900"]


WITHOUT_A_PLACE = {
    "report": Report(),
    "file": FilePiece("final_model.pth", 0, 0, 1, b"x"),
    "fetch": Fetch("checkpoint", 0, 0),
}


@pytest.mark.parametrize("kind", WITHOUT_A_PLACE)
def test_who_has_no_place_is_told_so_whatever_it_wants(hub: Hub, kind: str):
    stranger = hub.stranger()
    stranger.send(WITHOUT_A_PLACE[kind].encoded)
    hub.until(lambda: stranger.poll(0))
    assert wire.decode_control(stranger.recv())["type"] == "unknown"
    assert hub.coordinator.rejected.total() == 0


def tell_ended(link: CoordinatorLink, pid: int) -> None:
    link.telemetry.ended = (pid,)
    link.report()


def test_a_process_that_ended_leaves_its_place_to_the_next_at_once(hub: Hub):
    agent = host(hub, "one")
    host(hub, "one", "learner")
    stranger = host(hub, "two")
    tell_ended(stranger, os.getpid())
    tell_ended(agent, os.getpid() + 1)
    for _ in range(5):
        hub.coordinator.poll(0.05)
    assert hub.coordinator.membership.count("learner") == 1, (
        "it was neither that host nor that process"
    )
    tell_ended(agent, os.getpid())
    hub.until(lambda: not hub.coordinator.membership.count("learner"))
    host(hub, "one", "learner")


def test_a_host_that_does_not_say_who_it_is_is_refused(hub: Hub):
    with pytest.raises(JoinRefusedError, match="a host must say who it is"):
        hub.join("host")


def test_a_place_that_somebody_else_has_by_now_is_not_given_back(hub: Hub):
    link, _ = hub.join("actor", 1)
    hub.coordinator.lost("actor", 1)
    hub.join("actor", 1)

    def poll() -> None:
        hub.poll_until(link, lambda: False)

    with pytest.raises(
        RunError, match="no longer has a place for this role: somebody else has taken it"
    ):
        poll()
    assert hub.coordinator.membership.count("actor") == 1


def test_a_role_of_another_run_is_given_no_place(hub: Hub):
    stranger = hub.stranger()
    stranger.send(rejoining(run="another").encoded)
    hub.until(lambda: stranger.poll(0))
    assert wire.decode_control(stranger.recv())["type"] == "refuse"
    assert hub.coordinator.membership.count("actor") == 0


def test_actors_share_the_ladder_without_gaps_whoever_comes_and_goes(hub: Hub):
    """Share among two local actors, of which the second never came, and those that joined."""
    links = [hub.join("actor", index)[0] for index in (0, 5, 7)]

    def slots() -> list[tuple[int, int]]:
        for link in links:
            link.poll()
        return [(link.pulse.actor_slot, link.pulse.actor_slots) for link in links]

    hub.until(lambda: slots() == [(0, 4), (2, 4), (3, 4)])
    hub.coordinator.membership.give_up(1)
    hub.coordinator.command(["actor"], "run")
    hub.until(lambda: slots() == [(0, 3), (1, 3), (2, 3)])
    links.pop(1).leave()
    hub.until(lambda: slots() == [(0, 2), (1, 2)])


# ---- hosts ----


def host(hub: Hub, agent: str, role: str = "host") -> CoordinatorLink:
    context = Context(Network(agent=agent, trust=EVERYTHING))
    hub.contexts.append(context)
    return hub.join(role, context=context)[0]


def test_a_host_that_is_silent_takes_its_roles_with_it_and_nobody_elses(hub: Hub):
    host(hub, "one")
    two = host(hub, "two")
    for agent in ("one", "one", "two"):
        host(hub, agent, "actor")
    hub.join("actor", 0)
    hub.poll_until(two, lambda: len(hub.coordinator.membership.silent_hosts(0.0)) == 2)
    assert hub.coordinator.lose_host("one") == 2
    left = sorted((m.agent, m.key.role) for m in hub.coordinator.membership.members())
    assert left == [("", "actor"), ("two", "actor"), ("two", "host")]
    assert not hub.coordinator.membership.silent(60.0)


def test_the_host_of_a_role_that_hangs_is_told_to_end_it(hub: Hub):
    link = host(hub, "one")
    host(hub, "one", "actor")
    member = next(hub.coordinator.membership.members("actor"))
    hub.coordinator.membership.condemn(member)
    hub.poll_until(link, lambda: link.pulse.condemned == (member.pid,))
    tell_ended(link, member.pid)
    hub.poll_until(link, lambda: not link.pulse.condemned)


def test_a_host_is_told_how_many_actors_it_is_to_have(hub: Hub):
    one, two = host(hub, "one"), host(hub, "two")
    assert one.pulse.count == 0, "as many as it began with"
    hub.coordinator.resize("one", 7)
    hub.poll_until(one, lambda: one.pulse.count == 7)
    two.poll()
    assert two.pulse.count == 0


def test_hosts_of_the_same_name_are_told_apart(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    hub.join("actor", 0)
    host(hub, "one")
    members = hub.coordinator.membership.members
    (first,) = members("host")
    assert hub.coordinator.host_of(first) == f"{first.host} (1)", "the launcher is there, too"
    assert hub.coordinator.host_of(next(members("actor"))) == first.host
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert hub.coordinator.host_of(first) == first.host
    monkeypatch.undo()
    host(hub, "two")
    names = {hub.coordinator.host_of(member) for member in members("host")}
    assert names == {f"{first.host} (1)", f"{first.host} (2)"}


# ---- keys and roles ----


class Keyed(Hub):
    """A hub of an encrypted run, and contexts of hosts with keys for some roles."""

    def __init__(self, eventually: Eventually, *, telemetry_seconds: float = 0.01) -> None:
        self._keys = {name: KeyPair.new() for name in ("head", "gpu", "actors")}
        self._context = Context(Network(self._keys["head"]))
        config = dataclasses.replace(
            CONFIG, system=dataclasses.replace(CONFIG.system, telemetry_seconds=telemetry_seconds)
        )
        super().__init__(eventually, config, context=self._context)
        public = {name: keys.public for name, keys in self._keys.items()}
        self.coordinator.allow(
            {
                public["head"]: Client("head", EVERY_ROLE),
                public["gpu"]: Client("gpu", frozenset({"replay", "learner"})),
                public["actors"]: Client("actors", frozenset({"actor"})),
            }
        )

    def key(self, name: str) -> str:
        return self._keys[name].public

    def host(self, name: str, agent: str | None = None) -> Context:
        """Make the context of a process on a host."""
        agent = name if agent is None else agent
        context = Context(Network(self._keys[name], agent=agent, trust=EVERYTHING))
        self.contexts.append(context)
        return context

    def dealer(self, name: str) -> zmq.Socket[bytes]:
        """Open a socket that speaks to the coordinator with a host's key, without a link."""
        self._sockets.append(self.host(name).socket(zmq.DEALER))
        transport.connect(self._sockets[-1], self.coordinator.endpoint)
        return self._sockets[-1]

    def refused(self) -> dict[str, int]:
        return self.metrics.summary()["refused"]


@pytest.fixture
def keyed(eventually: Eventually) -> Iterator[Keyed]:
    hub = Keyed(eventually)
    yield hub
    hub.close()


def connect_again(link: CoordinatorLink) -> None:
    """Break a link's connection, and let it make another, which has another identity."""
    address = link._socket.getsockopt_string(zmq.LAST_ENDPOINT)
    link._socket.disconnect(address)
    link._socket.connect(address)


def test_an_actor_with_a_key_becomes_nobodys_parameters_and_its_name_is_told(keyed: Keyed):
    learner, _ = keyed.join("learner", context=keyed.host("gpu"))
    served = {"parameters": f"tcp://10.0.0.1:1|{keyed.key('gpu')}"}
    learner.serve_at(served)
    actor, _ = keyed.join("actor", context=keyed.host("actors"))
    keyed.poll_until(learner, lambda: actor.poll() or actor.pulse.endpoints == served)
    actor.serve_at({"parameters": f"tcp://10.6.6.6:1|{keyed.key('actors')}"})
    keyed.poll_until(actor, keyed.refused)
    assert next(iter(keyed.refused())) == "actors: an address of what another serves"
    assert keyed.coordinator.membership.places.served() == served
    event = keyed.events("refused")[0]
    assert (event.role, event.text) == ("actor", "actors: an address of what another serves")
    actor.serve_at({})
    keyed.poll_until(actor, lambda: next(keyed.coordinator.membership.members("actor")).reported)


def test_an_actor_with_a_key_gets_no_live_learners_place(keyed: Keyed):
    learner, place = keyed.join("learner", context=keyed.host("gpu"))
    thief = keyed.dealer("actors")
    request = rejoining(
        role="learner", index=place.index, incarnation=place.incarnation, agent="gpu",
        host=next(keyed.coordinator.membership.members("learner")).host, pid=os.getpid(),
    )  # fmt: skip
    thief.send(request.encoded)
    keyed.until(lambda: thief.poll(0))
    assert wire.decode_control(thief.recv())["reason"] == "somebody else has taken it"
    assert keyed.refused() == {"actors: a request for another's place": 1}
    learner.report()
    member = next(keyed.coordinator.membership.members("learner"))
    keyed.poll_until(learner, lambda: member.reported)
    assert member.user == keyed.key("gpu")


def test_who_connects_again_gets_its_own_place_back_and_loses_nothing(keyed: Keyed):
    learner, place = keyed.join("learner", context=keyed.host("gpu"))
    actor, where = keyed.join("actor", context=keyed.host("actors"))
    actor.telemetry.episode(Episode(3.0, 1))
    actor.report()
    connect_again(actor)
    connect_again(learner)
    actor.telemetry.episode(Episode(5.0, 1))
    keyed.poll_until(actor, lambda: learner.poll() or len(keyed.events("rejoined")) == 2)
    keys = {member.key for member in keyed.coordinator.membership.members()}
    assert keys == {
        MemberKey("learner", place.index, place.incarnation),
        MemberKey("actor", where.index, where.incarnation),
    }
    keyed.poll_until(actor, lambda: keyed.metrics.current()["rollout/ep_rew_mean"] == 4.0)
    assert keyed.refused() == {}


def test_tickets_are_for_actors_and_the_seal_is_for_replays(keyed: Keyed):
    _, replay = keyed.join("replay", context=keyed.host("gpu"))
    _, actor = keyed.join("actor", context=keyed.host("actors"))
    _, learner = keyed.join("learner", context=keyed.host("gpu"))
    assert is_valid(replay.seal, actor.ticket, actor.index, actor.incarnation, keyed.key("actors"))
    assert (replay.ticket, actor.seal, learner.ticket, learner.seal) == (b"", b"", b"", b"")


def test_a_process_without_a_supervisor_is_the_launchers_own(keyed: Keyed):
    with pytest.raises(JoinRefusedError, match="only the launcher's own processes join without"):
        keyed.join("actor", context=keyed.host("actors", agent=""))
    assert keyed.join("actor", 1, keyed.host("head", agent=""))[1].index == 1
    assert keyed.join("actor", 0, keyed.host("actors"))[1].index == 2


def test_a_file_that_a_role_may_not_read_is_refused_by_name(
    keyed: Keyed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(keyed.coordinator, "_files", FileDesk(FileStore(tmp_path, 2)))
    actor, _ = keyed.join("actor", context=keyed.host("actors"))
    actor.ask(Fetch("checkpoint", 0, 0))
    keyed.until(lambda: keyed.coordinator.rejected == {"file": 1})
    assert keyed.refused() == {"actors: a file": 1}
    assert [event.text for event in keyed.events("refused")] == ["actors: a file"]


def test_a_role_waits_for_its_place_while_the_coordinator_hears_the_others(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    replay, _ = hub.join("replay")
    asked: list[MemberKey] = []
    monkeypatch.setattr(
        hub.coordinator, "_may_admit", lambda key: len(asked.append(key) or asked) > 5
    )
    heard: list[float] = []
    (member,) = hub.coordinator.membership.members("replay")

    def talk() -> bool:
        replay.report()
        heard.append(member.heard)
        return len(asked) > 5

    late = CoordinatorLink(hub.context, hub.coordinator.endpoint, "learner")
    hub._links.append(late)
    answer = hub._pool.submit(late.join, 30.0)
    hub.until(talk)
    hub.until(answer.done)
    assert set(asked) == {MemberKey("learner", 0, 0)}
    assert heard[-1] > heard[0], "nobody is kept waiting"
    assert not hub.coordinator.membership.silent(0.5)


# ---- where everybody is ----


def test_endpoints_are_told_to_everybody_and_withdrawn_when_their_server_is_lost(hub: Hub):
    replay, _ = hub.join("replay")
    learner, _ = hub.join("learner")
    assert learner.pulse.endpoints == {}
    replay.serve_at({"samples/0": "ipc:///somewhere"})
    replay.poll()
    hub.poll_until(learner, lambda: learner.pulse.endpoints == {"samples/0": "ipc:///somewhere"})
    late, _ = hub.join("actor")
    assert late.pulse.endpoints == {"samples/0": "ipc:///somewhere"}
    hub.coordinator.lost("replay", 0)
    hub.poll_until(learner, lambda: learner.pulse.endpoints == {})


_NUMBERS = st.integers(0, 3)
_SERVED = st.dictionaries(
    st.sampled_from(["samples", "transitions"]), st.sampled_from(["ipc:///here", "ipc:///there"])
)
_CHANGES = st.one_of(
    st.tuples(st.just("join"), _NUMBERS, st.none()),
    st.tuples(st.sampled_from(["rejoin", "report", "leave"]), _NUMBERS, _SERVED),
    st.tuples(st.sampled_from(["is lost", "takes its host with it"]), _NUMBERS, st.none()),
)


@settings(max_examples=50, deadline=None)
@given(changes=st.lists(_CHANGES, max_size=30), anew=st.booleans())
def test_what_is_told_of_who_serves_where_follows_every_change(
    eventually: Eventually, changes: list[tuple[str, int, dict[str, str] | None]], anew: bool
):
    hub = Hub(eventually, build(("test", {"replay": {"shards": 4}})))
    membership = hub.coordinator.membership
    places: dict[int, MemberKey] = {}
    for kind, number, served in changes:
        agent, sender = f"host {number % 2}", b"%d" % number
        place = places.get(number, MemberKey("replay", number, 0))
        endpoints = {f"{name}/{place.index}": where for name, where in (served or {}).items()}
        membership.listened_seconds += 10.0
        if kind == "is lost":
            hub.coordinator.lost("replay", place.index)
        elif kind == "takes its host with it":
            hub.coordinator.lose_host(agent)
        elif kind == "join":
            tell(hub, sender, "join", **request(role="replay", agent=agent, pid=number))
            if member := membership.places.find(sender):
                places[number] = member.key
        elif kind == "rejoin":
            again = rejoining(role="replay", index=place.index, incarnation=place.incarnation)
            again = dataclasses.replace(again, agent=agent, pid=number, endpoints=endpoints)
            tell(hub, sender + b" again" if anew else sender, "rejoin", **again.to_map())
        else:
            report = {"endpoints": endpoints}
            tell(hub, sender, kind, **({"report": report} if kind == "leave" else report))
        there: dict[str, str] = {}
        for member in membership.members():
            there |= member.endpoints
        assert membership.places.served() == there
    hub.close()


def test_a_pulse_tells_the_replays_that_are_alive_by_their_index(eventually: Eventually):
    hub = Hub(eventually, build(("test", {"replay": {"shards": 2}})))
    replays = [hub.join("replay", index)[0] for index in range(2)]
    learner, _ = hub.join("learner")
    for index, replay in enumerate(replays):
        names = ("samples", "transitions", "acknowledgements")
        replay.serve_at({f"{name}/{index}": f"ipc:///{name}-{index}" for name in names})
        replay.poll()
    hub.poll_until(learner, lambda: len(learner.pulse.endpoints) == 6)
    assert learner.pulse.shards("samples") == {0: "ipc:///samples-0", 1: "ipc:///samples-1"}
    assert learner.pulse.shards("parameters") == {}
    hub.coordinator.lost("replay", 0)
    hub.poll_until(learner, lambda: len(learner.pulse.endpoints) == 3)
    assert learner.pulse.shards("transitions") == {1: "ipc:///transitions-1"}
    hub.close()


def test_only_endpoints_with_a_number_are_of_a_shard():
    pulse = Pulse(endpoints={"samples/2": "two", "samples": "none", "samples/x": "x", "a/1": "a"})
    assert pulse.shards("samples") == {2: "two"}


def test_samples_per_insert_of_a_running_run_is_told_to_all_at_once_and_logged(hub: Hub):
    replay, _ = hub.join("replay")
    assert replay.pulse.samples_per_insert is None
    hub.coordinator.set_samples_per_insert(2.5)
    hub.until(lambda: True)
    hub.poll_until(replay, lambda: replay.pulse.samples_per_insert == 2.5)
    assert [event.text for event in hub.events("samples_per_insert")] == ["2.5 from now on"]
    late, _ = hub.join("learner")
    assert late.pulse.samples_per_insert == 2.5


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_samples_per_insert_that_would_block_a_side_forever_is_refused(hub: Hub, value: float):
    with pytest.raises(UsageError, match=f"samples_per_insert = {value}; expected a finite number"):
        hub.coordinator.set_samples_per_insert(value)
    assert hub.events("samples_per_insert") == []
    link, _ = hub.join("replay")
    assert link.pulse.samples_per_insert is None


@pytest.mark.parametrize("value", [0, -3.0, "fast", True, math.inf, [1]])
def test_a_pulse_with_a_ratio_that_no_limiter_takes_is_refused_and_counted(hub: Hub, value: Any):
    router = hub.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    link = CoordinatorLink(hub.context, f"tcp://127.0.0.1:{port}", "replay")
    link.report()
    identity, _ = router.recv_multipart()
    pulse = {"command": "drain", "samples_per_insert": value}
    router.send_multipart([identity, wire.encode_control("pulse", pulse)])
    hub.poll_until(link, lambda: link.telemetry.counters["control_rejected/pulse"] == 1)
    assert link.pulse.samples_per_insert is None
    assert link.pulse.command == "run"
    link.leave()


def test_the_stop_command_reaches_those_it_is_for(hub: Hub):
    actor, _ = hub.join("actor")
    learner, _ = hub.join("learner")
    hub.coordinator.command(["actor"], "stop")
    hub.poll_until(actor, lambda: actor.stopping)
    learner.report()
    hub.poll_until(learner, lambda: next(hub.coordinator.membership.members("learner")).reported)
    assert not learner.stopping


def test_the_evaluator_is_told_which_parameters_are_the_last(hub: Hub):
    evaluator, _ = hub.join("evaluator")
    hub.coordinator.finish(1234)
    hub.poll_until(evaluator, lambda: evaluator.pulse.command == "finish")
    assert evaluator.pulse.final_version == 1234


def test_a_role_that_missed_a_pulse_is_told_again_with_its_next_report(hub: Hub):
    link, _ = hub.join("actor")
    link.pulse = dataclasses.replace(link.pulse, command="hold")  # as if the pulse had been lost
    hub.coordinator.command(["actor"], "stop")
    hub.until(lambda: True)
    hub.poll_until(link, lambda: link.pulse.command == "stop")


# ---- a real replay ----


class Replaying(Hub):
    """A hub with a replay process; the test is both its actor and its learner."""

    def __init__(self, eventually: Eventually, samples_per_insert: float, logs: Path) -> None:
        replay = {
            "capacity": 2000,
            "min_size": 32,
            "store": "dense",
            "memory": "1000000",
            "decode_threads": 1,
            "samples_per_insert": samples_per_insert,
            "samples_per_insert_tolerance": 64.0,
        }
        sections = {
            # The largest message is derived from the last two.
            "actor": {"count": 1, "window": 4, "segment_length": 256, "batch_transitions": 256},
            "learner": {"batch_size": 16, "prefetch": 2},
            "replay": replay,
            "system": {"telemetry_seconds": 0.05},
        }
        config = build(("test", sections))
        super().__init__(eventually, config, role_bind="tcp://127.0.0.1:*")
        self._supervisor = Supervisor(self.coordinator.endpoint, logs, restarts=0)
        self._supervisor.start("replay", 0)
        self._link, welcome = self.join("learner")
        self.poll_until(self._link, lambda: self._link.pulse.shards("samples"))
        pulse = self._link.pulse
        self._ticket = self.join("actor", 0)[1].ticket
        self._sender = TransitionSender(self.context, 0, 0, 4, ticket=self._ticket)
        self._sender.connect(pulse.shards("transitions")[0], pulse.shards("acknowledgements")[0])
        rng = np.random.default_rng(0)
        self._client = SampleClient(self.context, SPEC, welcome.config, rng)
        self._client.connect(pulse.shards("samples"))

    def exchange(self) -> None:
        """Send TransitionBatches and take SampleBatches, as far as replay permits."""
        self.coordinator.poll(0.0)
        self._link.poll()
        for _ in range(20):
            self._sender.send(self._batch(), lambda: False)
            sample = self._client.receive(0.001, 0)
            if sample is not None:
                self._client.release(sample, None)

    def ratio_of_the_next(self, inserts: int) -> float:
        """Measure the samples per insert over the next ``inserts`` inserts."""
        before = self._counted()
        counts = self._eventually(lambda: self._grown(before, inserts))
        return counts["samples"] / counts["transitions_received"]

    def close(self) -> None:
        self._sender.close()
        self._client.close()
        self.coordinator.command(["replay"], "stop")
        self.until(lambda: not self.coordinator.membership.count("replay"))
        self._supervisor.stop_restarting()
        assert self._supervisor.join(10.0, ["replay"])
        super().close()

    def _counted(self) -> dict[str, float]:
        names = ("samples", "transitions_received")
        return {name: self.metrics.total("replay", name) for name in names}

    def _grown(self, before: dict[str, float], inserts: int) -> dict[str, float] | None:
        self.exchange()
        grown = {name: value - before[name] for name, value in self._counted().items()}
        return grown if grown["transitions_received"] >= inserts else None

    def _batch(self) -> bytes:
        columns = {name: np.zeros(8, dtype) for name, dtype in wire.TRANSITION_COLUMNS.items()}
        columns["priority"] += 1
        block = wire.compress_block({"observation": np.zeros((1, 4), np.float32)}, SPEC)
        sequence = self._sender.next_sequence
        return wire.encode_transitions(
            wire.TransitionBatch("the-run", 0, 0, sequence, 0, columns, [block], self._ticket)
        )


def test_a_replay_follows_a_ratio_that_is_changed_while_it_runs(
    eventually: Eventually, tmp_path: Path
):
    hub = Replaying(eventually, 2.0, tmp_path)
    hub.ratio_of_the_next(200)  # also fills the buffer
    # Over 800 inserts, 0.2 allows for two tolerances of 64 samples and for a late report.
    assert hub.ratio_of_the_next(800) == pytest.approx(2.0, abs=0.3)
    assert hub.metrics.gauge("replay", "limiter_target") == 2.0
    for target in (6.0, 1.0):
        hub.coordinator.set_samples_per_insert(target)
        eventually(lambda t=target: hub.exchange() or reached(hub, t))
        hub.ratio_of_the_next(200)
        assert hub.ratio_of_the_next(800) == pytest.approx(target, abs=0.3)
    hub.close()


def reached(hub: Hub, target: float) -> bool:
    return hub.metrics.gauge("replay", "limiter_target") == target


# ---- reports ----


def test_reports_carry_counters_gauges_episodes_and_what_the_role_does(hub: Hub):
    link, _ = hub.join("actor", 0)
    link.telemetry.count("environment_steps", 8)
    link.telemetry.gauge("epsilon", 0.25)
    link.telemetry.episode(Episode(score=3.0, length=4, headline=None))
    link.telemetry.activity = "waits for replay"
    link.report()
    hub.until(lambda: next(hub.coordinator.membership.members("actor")).reported)
    assert next(hub.coordinator.membership.members("actor")).activity == "waits for replay"
    assert hub.metrics.gauge("actor", "epsilon") == 0.25
    assert hub.metrics.gauge("actor", "memory_bytes") is not None
    assert hub.metrics.current()["rollout/ep_rew_mean"] == 3.0
    assert hub.metrics.counts()["episodes"] == 1


def effort(work: Callable[[], Any]) -> int:
    """Count the lines of Python that run, turns of loops included."""
    steps = 0

    def trace(*_: Any) -> Any:
        nonlocal steps
        steps += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps


@pytest.mark.parametrize("limits", [{}, {"steps": 10**9, "episodes": 10**9}])
def test_what_a_report_takes_does_not_grow_with_the_members(
    eventually: Eventually, limits: dict[str, int]
):
    def effort_among(members: int) -> int:
        hub = Hub(eventually, build(("test", {"run": limits})))
        hub.coordinator.command(["actor"], "run")
        for index in range(members):
            tell(hub, b"%d" % index, "join", **request(index=index))
        tell(hub, b"replay", "join", **request(role="replay"))
        tell(hub, b"replay", "report", endpoints={"samples/0": "ipc:///here"})
        spent = effort(lambda: tell(hub, b"1", "report", counters={"environment_steps": 8}))
        hub.close()
        return spent

    few, many = effort_among(2), effort_among(500)
    assert few > 20
    assert many < few + 100


def test_telemetry_reports_counters_again_and_episodes_and_evaluations_once():
    telemetry = Telemetry()
    telemetry.count("episodes_seen", 2)
    telemetry.episode(Episode(1.5, 10, 0.5))
    telemetry.evaluation(evaluation())
    first, second = telemetry.report(), telemetry.report()
    assert first.episodes == (Episode(1.5, 10, 0.5),)
    assert first.evaluation == Evaluation.from_map(evaluation())
    assert second.episodes == ()
    assert second.evaluation is None
    assert second.counters == {"episodes_seen": 2, "episodes": 1} == first.counters


def test_the_details_of_very_many_episodes_are_dropped_and_counted():
    telemetry = Telemetry()
    for _ in range(2005):
        telemetry.episode(Episode(1.0, 1))
    report = telemetry.report()
    assert len(report.episodes) == 2000
    assert report.counters == {"episodes": 2005, "episode_details_dropped": 5}
    assert messages.decode(report.encoded, messages.TO_COORDINATOR) == report


def test_figures_that_are_not_finite_are_left_out_and_counted():
    telemetry = Telemetry()
    telemetry.count("policy_lag_sum", 2.0)
    telemetry.count("policy_lag_sum", math.nan)
    telemetry.gauge("q_mean", math.inf)
    telemetry.gauge("epsilon", 0.5)
    telemetry.episode(Episode(math.nan, 3))
    telemetry.episode(Episode(1.0, 3, math.inf))
    telemetry.evaluation(evaluation(return_mean=math.inf))
    report = telemetry.report()
    assert report.gauges == {"epsilon": 0.5}
    assert report.episodes == ()
    assert report.evaluation is None
    assert [kind for kind, _ in report.notes] == ["evaluation"]
    assert report.counters == {
        "policy_lag_sum": 2.0, "figures_dropped": 1, "episodes": 2, "episode_details_dropped": 2,
    }  # fmt: skip


# ---- garbage ----

GARBAGE = {
    "noise": [b"\xc1\x00garbage"],
    "empty": [b""],
    "two frames": [b"one", b"two"],
    "no map": [b"\x93\x01\x02\x03"],
    "other version": [b"\x82\xa7version\xcd\x03\xe7\xa4type\xa4join"],
    "join without a role": [wire.encode_control("join", {"package": pdqn.__version__})],
    "join without a pid": [wire.encode_control("join", request(pid="x"))],
    "join with an endless pid": [wire.encode_control("join", request(pid=float("inf")))],
    "role is a map": [wire.encode_control("join", request(role={"a": 1}, pid=None))],
}


def evaluation(**changes: Any) -> dict[str, Any]:
    figures = dict.fromkeys(("parameter_version", "episodes", "return_mean", "return_error"), 1)
    groups: dict[str, Any] = {"metrics": {}, "errors": {}, "baselines": {}, "differences": {}}
    return {**figures, **groups, "best": 1.0, **changes}


BAD_REPORTS: dict[str, dict[str, Any]] = {
    "endpoints are a list": {"endpoints": ["x"]},
    "counters are a list": {"counters": [1]},
    "a counter is a text": {"counters": {"environment_steps": "many"}},
    "a counter is not finite": {"counters": {"environment_steps": float("nan")}},
    "gauges are a number": {"gauges": 7},
    "a gauge is not finite": {"gauges": {"memory_bytes": float("nan")}},
    "an evaluation's mean is a text": {"evaluation": evaluation(return_mean="good")},
    "a gauge is a text": {"gauges": {"epsilon": "high"}},
    "episodes are numbers": {"episodes": [1, 2]},
    "an episode is short": {"episodes": [[1.0]]},
    "an episode's score is a text": {"episodes": [["x", 1, None]]},
    "evaluation is a text": {"evaluation": "good"},
    "evaluation lacks its figures": {"evaluation": {"episodes": 3}},
    "a difference has no error": {"evaluation": evaluation(differences={"random": 1.0})},
    "a difference is a text": {"evaluation": evaluation(differences={"random": ["x", 1.0]})},
    "a metric has no error": {"evaluation": evaluation(metrics={"coverage": 0.5})},
    "baselines are a list": {"evaluation": evaluation(baselines=[0.5])},
    "a counter's name is no text": {"counters": {b"environment_steps": 1}},
    "a gauge's name is no text": {"gauges": {b"epsilon": 1.0}},
    "an episode's length is not finite": {"episodes": [[1.0, float("inf"), None]]},
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_counted_and_harms_nobody(hub: Hub, name: str):
    link, _ = hub.join("actor", 0)
    stranger = hub.stranger()
    stranger.send_multipart(GARBAGE[name])
    hub.until(lambda: hub.coordinator.rejected.total() + len(hub.events("refused")) == 1)
    assert hub.coordinator.membership.count("actor") == 1
    link.report()
    hub.until(lambda: next(hub.coordinator.membership.members("actor")).reported)


def test_a_stranger_that_did_not_join_is_not_listened_to(hub: Hub):
    stranger = hub.stranger()
    stranger.send(wire.encode_control("report", {"counters": {"environment_steps": 1e9}}))
    stranger.send(wire.encode_control("join", request()))
    hub.until(lambda: hub.coordinator.membership.count("actor") == 1)
    assert hub.metrics.total("actor", "environment_steps") == 0


@pytest.mark.parametrize("name", BAD_REPORTS)
def test_a_report_that_makes_no_sense_is_counted_and_not_used(hub: Hub, name: str):
    stranger = hub.stranger()
    stranger.send(wire.encode_control("join", request()))
    hub.until(lambda: hub.coordinator.membership.count("actor"))
    stranger.send(wire.encode_control("report", BAD_REPORTS[name]))
    hub.until(lambda: hub.coordinator.rejected == {"report": 1})
    assert hub.metrics.summary()["control_rejected"] == {"report": 1}
    hub.metrics.tick(1.0)
    hub.metrics.tick(2.0)
    hub.metrics.line(1.0, 10)
    assert hub.metrics.counts()["environment_steps"] == 0
    assert hub.metrics.take_evaluations() == []


def test_an_evaluation_with_all_its_figures_is_used(hub: Hub):
    stranger = hub.stranger()
    stranger.send(wire.encode_control("join", request(role="evaluator")))
    hub.until(lambda: hub.coordinator.membership.count("evaluator"))
    good = evaluation(
        metrics={"coverage": 0.5}, errors={"coverage": 0.1}, differences={"random": [0.1, 0.01]}
    )
    stranger.send(wire.encode_control("report", {"evaluation": good}))
    hub.until(lambda: hub.metrics.take_evaluations() == [Evaluation.from_map(good)])


def test_garbage_from_the_coordinator_is_counted_by_the_role(hub: Hub, eventually: Eventually):
    router = hub.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    link = CoordinatorLink(hub.context, f"tcp://127.0.0.1:{port}", "actor")
    link.report()
    identity, _ = router.recv_multipart()
    router.send_multipart([identity, b"garbage"])
    router.send_multipart([identity, wire.encode_control("pulse", {"command": "explode"})])
    eventually(lambda: link.poll() or link.telemetry.counters["control_rejected"] == 2)
    assert link.pulse.command == "run"
    link.leave()
