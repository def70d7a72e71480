"""A run as people and programs see it: the live picture, plain lines, JSON lines."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console as Terminal

from launcher import numbers
from launcher.console.console import RichConsole, make_console
from launcher.console.dashboard import chart, health, render, sparkline
from launcher.console.keyboard import KEYS
from launcher.console.lines import progress_line, progress_map, summary_rows
from launcher.metrics.roster import MOST_HOSTS, MemberView
from launcher.metrics.snapshot import EvaluationView, Snapshot
from launcher.metrics.waiting import limiting_stage

SUMMARY = {
    "exit_reason": "episode limit",
    "wall_seconds": 754.0,
    "episodes": 12_345,
    "environment_steps": 160_485,
    "learner_steps": 5210,
    "episodes_per_second": 12.3,
    "environment_steps_per_second": 1234.0,
    "learner_steps_per_second": 78.1,
    "samples_per_insert": 0.503,
    "policy_lag_mean": 12.4,
    "environment": {"id": "x", "return_mean": 0.372, "metrics": {"coverage": 0.372}},
    "eval": {
        "return_mean": 0.391,
        "episodes": 32,
        "metrics": {"coverage": 0.391},
        "baselines": {"greedy": 0.414},
        "differences": {"greedy": [-0.0232, 0.00081]},
    },
    "transitions": {"sent": 160_000, "received": 159_990, "lost": 10},
    "restarts": {"actor": 1, "replay": 0},
    "run_dir": "runs/x",
}


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeTerminal(io.StringIO):
    """A text stream that claims to be a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def member(role: str, index: int = 0, **changes: Any) -> MemberView:
    values: dict[str, Any] = {
        "role": role,
        "index": index,
        "host": "head",
        "pid": 1000 + index,
        "state": "alive",
        "activity": "trains",
        "cpu_percent": 97.0,
        "memory_bytes": 20_000_000,
    }
    return MemberView(**values | changes)


SHOWN: dict[str, float | None] = {
    "episodes": 12_345,
    "environment_steps": 160_485,
    "learner_steps": 5210,
    "actor/episodes_per_second": 943.1,
    "time/fps": 12_260.0,
    "learner/steps_per_second": 96.2,
    "replay/samples_per_second": 6150.0,
    "replay/inserts_per_second": 12_230.0,
    "replay/bytes_per_second": 29.4e6,
    "replay/samples_per_insert": 0.503,
    "replay/samples_per_insert_target": 0.5,
    "learner/policy_lag": 12.4,
    "rollout/ep_rew_mean": 0.3721,
    "rollout/coverage": 0.3722,
    "rollout/ep_len_mean": 13.0,
    "train/loss": 0.00123,
    "train/q_mean": 0.214,
    "rollout/exploration_rate": 0.0853,
    "replay/size": 123_456.0,
    "replay/capacity": 200_000,
    "replay/stored_bytes": 5_430_000_000.0,
    "replay/inserts_blocked_share": 0.43,
    "replay/samples_blocked_share": 0.01,
    "actor/wait_share": 0.43,
    "learner/wait_share": 0.02,
    "system/transitions_lost": 0,
}


def snapshot(
    actors: int = 3, figures: Mapping[str, float | None] | None = None, **changes: Any
) -> Snapshot:
    others = tuple(member(role) for role in ("replay", "learner", "evaluator"))
    series = tuple(0.25 + 0.0005 * index for index in range(300))
    values: dict[str, Any] = {
        "run_dir": "runs/CirclePlacement-v0__seed7__1",
        "env": "pdqn/CirclePlacement-v0",
        "mode": "parallel",
        "seed": 7,
        "stage": "running",
        "waiting_for": "",
        "elapsed_seconds": 754.0,
        "progress": 0.53,
        "remaining_seconds": 661.0,
        "headline": "coverage",
        "figures": {**SHOWN, **(figures or {})},
        "replay_waits": "inserts wait 43% (learner is behind, 12 s)",
        "bottleneck": "learner-bound: actors wait 43%",
        "evaluation": EvaluationView(
            5000,
            32,
            0.391,
            0.0061,
            {"coverage": 0.391},
            {"random": 0.266, "greedy": 0.4142},
            ("greedy", -0.0232, 0.00081),
        ),
        "members": tuple(member("actor", index) for index in range(actors)) + others,
        "restarts": 1,
        "rejected": {"bad shape": 10, "not finite": 2},
        "first_error": None,
        "history": {"rollout/coverage": series, "train/loss": series, "time/fps": series},
    }
    return Snapshot(**values | changes)


def starting() -> Snapshot:
    """Return the first snapshot of a run, in which nothing is known yet."""
    unknown = [name for name in SHOWN if name.startswith(("rollout/", "train/"))]
    unknown += ["replay/size", "replay/stored_bytes"]
    figures = dict.fromkeys(SHOWN, 0.0) | dict.fromkeys(unknown)
    changes: dict[str, Any] = {
        "stage": "starting",
        "waiting_for": "the learner, 3 s",
        "bottleneck": "",
        "replay_waits": "",
        "elapsed_seconds": 0.0,
        "progress": None,
        "remaining_seconds": None,
        "evaluation": None,
        "members": (),
        "restarts": 0,
        "rejected": {},
        "history": {},
    }
    return snapshot(0, figures, **changes)


def lines_of(view: Snapshot, width: int, height: int, *messages: tuple[float, str]) -> list[str]:
    terminal = Terminal(
        file=io.StringIO(), width=width, height=height, color_system=None, legacy_windows=False
    )
    with terminal.capture() as capture:
        terminal.print(render(view, width, height, messages))
    return capture.get().splitlines()


# ---- the picture ----


@pytest.mark.parametrize("actors", [0, 1, 120])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (120, 30), (100, 60), (40, 10)])
@pytest.mark.parametrize("error", [None, "ValueError: " + "a long story " * 30])
def test_the_picture_fits_the_terminal(
    width: int, height: int, actors: int, error: str | None
) -> None:
    view = snapshot(actors, first_error=error)
    lines = lines_of(view, width, height, *[(float(i), f"event {i} " * 40) for i in range(60)])
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def hosts_at_work() -> tuple[MemberView, ...]:
    hosts = [member("host", host=host) for host in ("head", "actors-1")]
    actors = [member("actor", index, host="actors-1") for index in range(9)]
    return (*hosts, *actors, member("learner"), *[member("replay", index) for index in range(3)])


@pytest.mark.parametrize("height", [1, 5, 10, 24, 40, 60])
def test_the_picture_fits_every_narrow_terminal(height: int) -> None:
    events = [(1.0, "an event"), (2.0, "another event, which is longer")]
    views = {
        "several actors": snapshot(9, first_error="KeyError: 'map'", insecure=True),
        "two actors": snapshot(2, progress=None),
        "several hosts": snapshot(members=hosts_at_work()),
        "starting": starting(),
    }
    for width in range(1, 61):
        for name, view in views.items():
            lines = lines_of(view, width, height, *events)
            assert len(lines) <= height, (name, width)
            assert max(map(len, lines)) <= width, (name, width)


@pytest.mark.parametrize("width", [1, 4, 10, 30])
def test_the_keys_are_explained_in_every_narrow_terminal(width: int) -> None:
    explained = render(snapshot(2), width, 40, keys=KEYS)
    assert all(len(str(line)) <= width for line in explained.renderables)


def test_a_small_terminal_shows_everything_that_matters() -> None:
    lines = lines_of(snapshot(120), 80, 24, (700.0, "actor 40 restarted"))
    text = "\n".join(lines)
    for figure in (
        "pdqn/CirclePlacement-v0", "parallel · seed 7", "12:34", "53%", "11:01 left",
        "12.3k episodes", "160k steps", "120 actors", "12.3k/s", "wait 43%", "29.4 MB/s",
        "2.40 kB each", "in 12.2k/s", "out 6.15k/s", "in waits 43%",
        "inserts wait 43% (learner is behind, 12 s)", "waits 2%", "step 5.21k", "lag 12.4",
        "learner-bound: actors wait 43%", "0.00123", "0.0853", "target 0.500", "62%", "5.43 GB",
        "0.391 ±0.0061", "greedy        0.414", "120 alive", "2.40 GB", "evaluator",
        "-0.023 ±0.00081 beside greedy",
        "rejected 12", "bad shape 10", "actor 40 restarted",
    ):  # fmt: skip
        assert figure in text
    assert "…" not in text


def test_clipped_priorities_are_shown_once_there_are_any() -> None:
    without, clipped = snapshot(), snapshot(figures={"replay/priorities_clipped": 1234.0})
    assert "clipped" not in "\n".join(lines_of(without, 100, 30))
    assert "priorities clipped 1.23k" in "\n".join(lines_of(clipped, 100, 30))
    stream = io.StringIO()
    make_console("plain", stream).update(clipped)
    assert "priorities clipped 1.23k" in stream.getvalue()


def test_a_large_terminal_adds_charts_and_events() -> None:
    events = [(float(index), f"event {index}") for index in range(8)]
    lines = lines_of(snapshot(120), 200, 50, *events)
    text = "\n".join(lines)
    assert len(lines) == 50
    assert "┈ greedy" in text
    assert text.count("▪") == 120
    assert all(f"event {index}" in text for index in range(8))


def test_what_the_run_waits_for_is_shown_while_it_starts() -> None:
    for width, height in ((80, 24), (200, 50)):
        text = "\n".join(lines_of(starting(), width, height))
        assert "waits for the learner, 3 s" in text
        assert "starting" in text
        assert "no evaluation yet" in text


def test_values_that_are_not_finite_are_drawn_as_missing() -> None:
    history = {"rollout/coverage": (0.1, math.nan, 0.3), "train/loss": (math.nan, math.inf)}
    figures = {"train/loss": math.nan, "train/q_mean": math.inf, "learner/policy_lag": math.nan}
    view = snapshot(figures=figures, history=history)
    assert len(lines_of(view, 200, 50)) == 50


def test_the_first_error_is_pinned() -> None:
    text = "\n".join(lines_of(snapshot(first_error="KeyError: 'map' (actor-3.log)"), 80, 24))
    assert "✖ first error: KeyError: 'map' (actor-3.log)" in text
    assert "● errors" in text


def test_a_low_terminal_keeps_what_is_most_important() -> None:
    text = "\n".join(lines_of(snapshot(first_error="KeyError"), 80, 6))
    assert "first error" in text
    assert "learner-bound" in text
    assert "learning" not in text


def test_markup_in_names_is_not_interpreted() -> None:
    view = snapshot(env="[red]x[/red]", first_error="[bold]list index[/bold]")
    text = "\n".join(lines_of(view, 80, 24))
    assert "[red]x[/red]" in text
    assert "[bold]list index[/bold]" in text


def test_several_replays_have_rows_of_their_own_where_there_is_room() -> None:
    states = ("alive", "restarting")
    replays = [member("replay", index, state=states[index]) for index in range(2)]
    members = (member("actor"), *replays, member("learner"), member("evaluator"))
    view = snapshot(members=members)
    high = lines_of(view, 80, 50)
    assert any("● replay 0  trains" in line for line in high)
    assert any("● replay 1  restarting" in line for line in high)
    low = "\n".join(lines_of(view, 80, 24))
    assert "● replays   1 of 2, 1 res" in low
    assert "● learner" in low
    assert "● evaluator" in low


def test_many_replays_do_not_push_the_rest_off_the_screen() -> None:
    members = (*[member("actor", i) for i in range(9)], *[member("replay", i) for i in range(20)])
    text = "\n".join(lines_of(snapshot(members=(*members, member("learner"))), 80, 24))
    assert "replays   20 alive" in text
    assert "● learner" in text


def test_parts_of_one_host_that_join_by_themselves_are_one_host() -> None:
    # One Dask worker has a part with actors, one with the learner, and one with replay.
    names = ("vm (1)", "vm (2)", "vm (3)", "vm")
    hosts = [member("host", index, host=host) for index, host in enumerate(names)]
    assert "  host alive; learner alive  " in progress_line(
        snapshot(members=(*hosts, member("learner", host="vm (2)")))
    )
    late = member("host", 4, host="gpu-host", state="late")
    others = (*hosts, member("host", 5, host="vm (5)", state="late"), late, member("host", 6))
    assert "hosts 2 late, 1 alive" in progress_line(snapshot(members=others))
    many = tuple(member("host", index, host=f"h{index}") for index in range(MOST_HOSTS + 7))
    assert f"hosts {MOST_HOSTS + 7} alive" in progress_line(snapshot(members=many))


def test_several_hosts_have_a_line_each_with_what_they_do_and_how_busy_they_are() -> None:
    def on(host: str, *roles: str) -> list[MemberView]:
        load = {"cpu_percent": 61.0, "memory_bytes": 9_000_000_000}
        there = [member(role, index, host=host) for index, role in enumerate(roles)]
        return [member("host", host=host, **load), *there]

    members = (
        *on("head", "evaluator"),
        *on("gpu-host", "learner", "replay"),
        *on("actors-7-long-name", *["actor"] * 30),
        member("actor", 40, host="actors-7-long-name", state="late"),
    )
    lines = lines_of(snapshot(members=members), 200, 50)
    shown = [" ".join(line.split("● ", 1)[1].split()) for line in lines if "61%" in line]
    assert [line.rpartition(" 61%")[0] for line in shown] == [
        "head evaluator",
        "gpu-host learner, replay",
        "actors-7-lon 31 actors, 1 late",
    ]
    assert all("9.00 GB" in line for line in shown)
    text = "\n".join(lines_of(snapshot(members=members), 80, 24))
    for host in ("head", "gpu-host", "actors-7-lon"):
        assert f"● {host}" in text


def test_a_run_that_is_not_encrypted_says_so_all_the_time() -> None:
    for width, height in ((80, 24), (200, 50)):
        assert "not encrypted" in "\n".join(lines_of(snapshot(insecure=True), width, height))
        assert "not encrypted" not in "\n".join(lines_of(snapshot(), width, height))
    assert "NOT ENCRYPTED" in progress_line(snapshot(insecure=True))
    assert "NOT ENCRYPTED" not in progress_line(snapshot())
    assert progress_map(snapshot(insecure=True))["insecure"] is True


def test_what_waits_in_replay_is_shown_in_its_stage() -> None:
    def shown(**changes: Any) -> list[str]:
        return lines_of(snapshot(**changes), 80, 24)

    assert "nobody waits" in shown(replay_waits="")[5]
    waiting = "samples wait 100% (actors are behind, 300 s)"
    actor_bound = "actor-bound: learner waits 100%"
    shares = {
        "replay/inserts_blocked_share": 0.0,
        "replay/samples_blocked_share": 1.0,
        "actor/wait_share": 0.0,
        "learner/wait_share": 1.0,
    }
    lines = shown(replay_waits=waiting, bottleneck=actor_bound, figures=shares)
    assert "│ out wait 100%│" in lines[5]
    assert f"{actor_bound} " in lines[7]
    assert waiting in lines[7]


def test_a_first_error_leaves_every_panel_on_a_small_terminal() -> None:
    text = "\n".join(lines_of(snapshot(120, first_error="KeyError: 'map'"), 80, 24))
    for words in (
        "KeyError: 'map'",
        "in waits 43%",
        "learning",
        "throughput",
        "evaluation",
        "roles",
    ):
        assert words in text


def test_health_names_the_worst_first() -> None:
    late = member("actor", 1, state="late")
    dead = member("learner", state="dead")
    waits = snapshot(rejected={}, waiting_for="actor (none is left), 12 s")
    assert health(waits) == ("degraded", "waits for actor")
    healthy = snapshot(rejected={})
    assert health(healthy) == ("healthy", "healthy")
    assert health(snapshot(members=(late,), rejected={})) == ("degraded", "1 late")
    assert health(snapshot()) == ("degraded", "12 rejected")
    assert health(snapshot(members=(late, dead))) == ("failing", "1 dead")


def test_the_limiting_stage_is_the_one_that_others_wait_for() -> None:
    def limiting(actors: float, learner: float) -> str | None:
        return limiting_stage({"actor/wait_share": actors, "learner/wait_share": learner})

    assert limiting(0.4, 0.0) == "learner"
    assert limiting(0.0, 0.4) == "actors"
    assert limiting(0.05, 0.05) is None


def test_evaluation_without_a_headline_metric_shows_the_return() -> None:
    view = snapshot(headline=None, evaluation=EvaluationView(10, 5, 480.0, 12.0))
    text = "\n".join(lines_of(view, 80, 24))
    assert "return          480 ±12" in text


@pytest.mark.parametrize("changes", [{}, {"evaluation": None}], ids=["evaluated", "not yet"])
def test_the_console_says_when_exact_greedy_is_passed(changes: dict[str, Any]) -> None:
    view = snapshot(expectation="above exact greedy in ~12 min", **changes)
    for width, height in ((80, 24), (200, 50)):
        lines = lines_of(view, width, height)
        assert len(lines) <= height
        assert any("above exact greedy in ~12 min" in line for line in lines)
    assert "  above exact greedy in ~12 min  " in progress_line(view)
    again = Snapshot.from_map(view.to_map())
    assert again.expectation == view.expectation
    earlier = {name: value for name, value in view.to_map().items() if name != "expectation"}
    assert Snapshot.from_map(earlier).expectation == ""


def test_a_narrow_panel_has_the_nearest_baseline_and_the_share_of_the_gap() -> None:
    baselines = {"random": 0.26, "exact greedy": 0.4172, "dual bound": 0.4256, "upper bound": 0.56}
    evaluation = EvaluationView(
        9156, 32, 0.4198, 0.001, {"coverage": 0.4198}, baselines, ("exact greedy", 0.0026, 0.0003)
    )
    text = "\n".join(lines_of(snapshot(evaluation=evaluation), 80, 24))
    for words in ("exact greedy  0.417", "+0.0026 ±0.0003 beside exact", "31% of the provable gap"):
        assert words in text
    expected = snapshot(evaluation=evaluation, expectation="above exact greedy in ~2 min")
    text = "\n".join(lines_of(expected, 80, 24))
    assert "exact greedy  0.417" in text
    assert "above exact greedy in ~2 min" in text
    wide = "\n".join(lines_of(snapshot(evaluation=evaluation), 200, 50))
    assert "upper bound" in wide


def test_sparklines_rise_with_the_values() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([3, 3, 3], 8) == "▁▁▁"
    assert sparkline([13.0, 13.0 + 2e-15], 8) == "▁▁"
    assert sparkline([80, 100], 8, low=0.0) == "▇█"
    assert sparkline([1, None, 2], 8) == "▁ █"
    assert sparkline([], 8) == ""


@settings(deadline=None)
@given(
    st.lists(st.none() | st.floats(allow_nan=True), max_size=50),
    st.integers(1, 60),
    st.integers(1, 12),
    st.sampled_from([{}, {"level": 0.5}]),
)
def test_charts_fit_their_frame_whatever_the_values_are(
    values: list[float | None], width: int, height: int, marks: dict[str, float]
) -> None:
    assert len(sparkline(values, width)) <= width
    assert len(chart(values, width, height, marks)) in (1, height)


def test_a_chart_goes_from_the_lower_left_to_the_upper_right() -> None:
    rows = [row.plain for row in chart([0.0, 1.0], 12, 4, {})]
    assert rows[0].startswith("1.00 ")
    assert rows[-1].startswith("   0 ")
    dots = [len(row) - len(row.rstrip()) for row in rows]
    assert dots == sorted(dots)


# ---- consoles ----


def test_auto_draws_only_on_a_terminal_that_can_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert type(make_console("auto", FakeTerminal())).__name__ == "RichConsole"
    assert type(make_console("auto", io.StringIO())).__name__ == "PlainConsole"
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_console("auto", FakeTerminal())).__name__ == "PlainConsole"


@pytest.mark.parametrize("kind", ["rich", "plain", "json", "off"])
def test_every_console_can_be_used_in_any_order(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    console = make_console(kind, FakeTerminal())
    console.stop()
    console.start()
    console.start()
    console.message("before the first snapshot")
    console.update(snapshot())
    console.stop()
    console.stop()
    console.finish(SUMMARY, None)
    console.message("after the end")
    console.finish({}, "nothing was done")


def test_plain_writes_a_line_every_five_seconds_and_at_every_stage() -> None:
    stream, clock = io.StringIO(), Clock()
    console = make_console("plain", stream, clock=clock)
    for stage, second in (("starting", 0), ("running", 1), ("running", 2), ("running", 6.5)):
        clock.now = 100.0 + second
        console.update(snapshot(stage=stage))
    assert len(stream.getvalue().splitlines()) == 3


def test_plain_says_the_same_as_the_picture() -> None:
    stream = io.StringIO()
    make_console("plain", stream).update(snapshot(120))
    line = stream.getvalue()
    for figure in (
        "[12:34]", "53%, 11:01 left", "episodes 12.3k (943/s)", "env steps 160k (12.3k/s)",
        "learner steps 5.21k (96.2/s)", "samples/insert 0.503 of 0.500", "lag 12.4",
        "coverage 0.372", "loss 0.00123", "epsilon 0.0853", "buffer 123k of 200k, 5.43 GB",
        "eval coverage 0.391 +-0.0061 (random 0.266, greedy 0.414), -0.023 +-0.00081 beside greedy",
        "actors 120 alive",
        "learner alive", "learner-bound: actors wait 43%",
        "inserts wait 43% (learner is behind, 12 s)", 
        "restarts 1, lost 0, rejected 12 (bad shape 10, not finite 2)",
    ):  # fmt: skip
        assert figure in line


def test_plain_writes_messages_at_once_and_the_last_state_in_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    console = make_console("plain", stream, clock=clock)
    console.update(snapshot(figures={"episodes": 1}))
    console.message("actor 3 restarted")
    console.update(snapshot(figures={"episodes": 999}))
    console.finish(SUMMARY, None)
    lines = stream.getvalue().splitlines()
    assert lines[1] == "actor 3 restarted"
    assert "episodes 999" in lines[2]
    assert lines[3].startswith("done")


def test_plain_survives_a_stream_that_cannot_encode_or_has_gone() -> None:
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    make_console("plain", ascii_only).message("näher")
    ascii_only.seek(0)
    assert ascii_only.read() == "n\\xe4her\n"
    closed = io.StringIO()
    closed.close()
    make_console("plain", closed).message("nobody reads this")


def test_json_writes_one_strict_object_a_line() -> None:
    stream = io.StringIO()
    console = make_console("json", stream)
    console.update(snapshot(120, {"train/loss": math.nan}))
    console.message("actor 3 restarted")
    console.finish(SUMMARY, "the learner died")
    progress, message, summary = map(json.loads, stream.getvalue().splitlines())
    assert progress["event"] == "progress"
    assert progress["figures"]["train/loss"] is None
    assert progress["members"]["actor"] == {"alive": 120}
    assert progress["evaluation"]["baselines"] == {"random": 0.266, "greedy": 0.4142}
    assert progress["figures"]["environment_steps"] == 160_485
    assert "history" not in progress
    assert message == {"event": "message", "text": "actor 3 restarted"}
    assert summary == {"event": "summary", "error": "the learner died", "summary": SUMMARY}


def test_off_says_only_why_a_run_failed(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    console = make_console("off", stream)
    console.update(snapshot())
    console.message("something")
    console.finish(SUMMARY, None)
    console.finish(SUMMARY, "no memory left")
    assert stream.getvalue() == ""
    assert capsys.readouterr() == ("", "error: no memory left\n")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> FakeTerminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    return FakeTerminal()


def test_rich_draws_at_most_four_times_a_second(terminal: FakeTerminal) -> None:
    clock = Clock()
    console = RichConsole(terminal, clock)
    console.start()
    sizes = []
    # The cost of drawing may skip some of them, but the last one is always due.
    for now in (100.0, 100.1, 100.2, 200.0):
        clock.now = now
        console.update(snapshot())
        sizes.append(len(terminal.getvalue()))
    console.stop()
    assert sizes[0] == sizes[1] == sizes[2] < sizes[3]


def test_rich_leaves_the_last_picture_and_every_message_behind(terminal: FakeTerminal) -> None:
    console = RichConsole(terminal, Clock())
    console.start()
    console.update(snapshot(figures={"episodes": 1}))
    for index in range(50):
        console.message(f"event number {index}.")
    console.update(snapshot(figures={"episodes": 777}))
    console.finish(SUMMARY, "the learner died")
    _, _, left_behind = terminal.getvalue().rpartition("\x1b[?1049l")
    assert "777 episodes" in left_behind
    assert all(f"event number {index}." in left_behind for index in range(50))
    assert "the learner died" in left_behind


def test_rich_keeps_no_place_for_events_in_the_last_picture_which_stands_above_them(
    terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINES", "50")
    console = RichConsole(terminal, Clock())
    console.start()
    console.update(snapshot())
    console.message("actor 3 restarted")
    console.finish(SUMMARY, None)
    before, _, left_behind = terminal.getvalue().rpartition("\x1b[?1049l")
    assert "none yet" in before
    assert "none yet" not in left_behind
    assert left_behind.count("actor 3 restarted") == 1
    assert left_behind.index("throughput") < left_behind.index("actor 3 restarted")


def test_a_picture_that_cannot_be_drawn_ends_nothing_and_says_why(
    terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise TypeError("'float' object is not iterable")

    monkeypatch.setattr("launcher.console.console.render", broken)
    console = RichConsole(terminal, Clock())
    console.start()
    console.update(snapshot())
    console.finish(SUMMARY, None)
    shown = terminal.getvalue().replace("\n", " ").replace("\r", "")
    assert "this picture cannot be drawn (TypeError: 'float' object is not iterable)" in shown
    assert "12.3k episodes" in shown


def test_rich_turns_stray_output_into_messages(terminal: FakeTerminal) -> None:
    before = sys.stdout, sys.stderr
    console = RichConsole(terminal, Clock())
    console.start()
    sys.stdout.write("a stray ")
    sys.stdout.write("line\n")
    sys.stderr.write("an unfinished one")
    console.stop()
    assert (sys.stdout, sys.stderr) == before
    assert "a stray line" in terminal.getvalue()
    assert "an unfinished one" in terminal.getvalue()


def test_the_summary_takes_a_few_lines() -> None:
    rows = summary_rows(SUMMARY, None)
    text = "\n".join(text for _, text in rows)
    assert len(rows) == 7
    assert "12.3k episodes" in text
    assert "in 12:34 (episode limit)" in text
    assert "coverage 0.391, return 0.391 over 32 episodes; baselines: greedy 0.414;" in text
    assert "; -0.023 +-0.00081 beside greedy" in text
    assert "10 lost" in text
    assert "runs/x" in text
    assert summary_rows({}, "no environment") == [("error", "no environment")]


# ---- numbers ----


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (math.nan, "-"), (0, "0"), (0.0, "0"), (7, "7"), (0.5, "0.500"),
        (0.0853, "0.0853"), (1.2e-5, "1.20e-5"), (12.34, "12.3"), (99.99, "100"), (999, "999"),
        (999.6, "1.00k"), (12_345, "12.3k"), (-1234.5, "-1.23k"), (999_999, "1.00M"),
        (2.5e9, "2.50G"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert numbers.number(value) == text


def test_sizes_durations_and_plurals() -> None:
    assert [numbers.size(b) for b in (None, 12, 1234, 5.43e9)] == [
        "-",
        "12 B",
        "1.23 kB",
        "5.43 GB",
    ]
    durations = [numbers.duration(seconds) for seconds in (7, 754, 3723, 90_061)]
    assert durations == ["0:07", "12:34", "1:02:03", "1d 01:01"]
    assert (numbers.plural(1, "actor"), numbers.plural(0, "actor")) == ("1 actor", "0 actors")


@settings(deadline=None)
@given(st.just(0.0) | st.floats(1e-30, 1e15))
def test_numbers_stay_short(value: float) -> None:
    assert len(numbers.number(value)) <= 8


def test_a_large_picture_is_drawn_less_often_so_that_drawing_costs_little(
    terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, spent = Clock(), iter([0.0, 0.03, 1.0, 1.001, 2.0, 2.001, 3.0, 3.0])
    monkeypatch.setattr("launcher.console.console.time.thread_time", lambda: next(spent))
    console = RichConsole(terminal, clock)
    console.start()
    drawn = []
    for now in (100.0, 101.9, 102.1, 102.4):
        clock.now = now
        before = len(terminal.getvalue())
        console.update(snapshot())
        drawn.append(len(terminal.getvalue()) > before)
    console.stop()
    # 30 ms of drawing are 1.5% of two seconds; one millisecond is less than a quarter of a second.
    assert drawn == [True, False, True, True]


def test_the_help_takes_the_place_of_the_panels_and_fits() -> None:
    keys = {"q": "stop", "?": "help"}
    for width, height in ((80, 24), (200, 50)):
        shown = list(render(snapshot(), width, height, (), keys).renderables)
        text = "\n".join(str(line) for line in shown)
        assert len(shown) <= height
        assert "q  stop" in text
        assert "throughput" not in text
