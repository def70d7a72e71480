"""From reports to figures, and from figures to the files of the run's directory."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]

from launcher.metrics.counters import Counters
from launcher.metrics.metrics import MemberKey, RunMetrics
from launcher.metrics.waiting import bottleneck, replay_waits
from launcher.records.records import Records
from launcher.records.scalars import ScalarWriter
from launcher.rundir import RunDirectory, default_path, new_path
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.messages import Evaluation, Report

ReadLines = Any


def report(
    metrics: RunMetrics,
    role: str,
    now: float = 0.0,
    *,
    index: int = 0,
    incarnation: int = 0,
    gauges: dict[str, float] | None = None,
    episodes: list[list[Any]] | None = None,
    evaluation: dict[str, Any] | None = None,
    spans: Sequence[tuple[int, ...]] = (),
    **counters: float,
) -> None:
    content = {
        "counters": counters,
        "gauges": gauges or {},
        "episodes": episodes or [],
        "evaluation": evaluation,
        "spans": spans,
    }
    metrics.ingest(MemberKey(role, index, incarnation), Report.from_map(content), now)


def evaluation_of(score: float) -> dict[str, Any]:
    return {
        "parameter_version": 70,
        "episodes": 4,
        "return_mean": score,
        "return_error": 0.5,
        "metrics": {"coverage": 0.25},
        "errors": {"coverage": 0.125},
        "baselines": {"random": 0.1},
        "differences": {"random": [0.15, 0.03]},
        "best": 5.0,
    }


def test_the_nearest_baseline_is_the_one_that_the_policy_differs_least_from():
    metrics, baselines = RunMetrics("coverage"), {"random": 0.1, "exact_greedy": 0.25, "bound": 0.4}
    differences = {"random": [0.15, 0.03], "exact_greedy": [-0.001, 0.0003], "bound": [-0.15, 0.02]}
    known = {"baselines": baselines, "differences": differences}
    report(metrics, "evaluator", evaluation=evaluation_of(3.0) | known)
    view = metrics.evaluation_view()
    assert view is not None
    assert view.nearest == ("exact greedy", -0.001, 0.0003)


# ---- totals ----


def test_counters_are_added_up_over_actors_and_their_incarnations():
    metrics = RunMetrics(None)
    report(metrics, "actor", environment_steps=100)
    report(metrics, "actor", environment_steps=150)
    report(metrics, "actor", index=1, environment_steps=7)
    # Actor 0 was restarted: it counts from 0 again.
    report(metrics, "actor", incarnation=1, environment_steps=30)
    report(metrics, "actor", incarnation=1, environment_steps=31)
    assert metrics.total("actor", "environment_steps") == 150 + 7 + 31
    assert metrics.counts()["environment_steps"] == 188


def test_a_late_report_of_the_incarnation_before_adds_only_what_is_new():
    metrics = RunMetrics(None)
    report(metrics, "actor", environment_steps=100)
    report(metrics, "actor", incarnation=1, environment_steps=5)
    report(metrics, "actor", incarnation=0, environment_steps=104)
    assert metrics.total("actor", "environment_steps") == 109


def test_counters_of_the_same_name_in_different_roles_are_apart():
    metrics = RunMetrics(None)
    report(metrics, "actor", wait_seconds=3.0)
    report(metrics, "learner", wait_seconds=4.0)
    assert metrics.total("actor", "wait_seconds") == 3.0
    assert metrics.total("learner", "wait_seconds") == 4.0


def test_a_gauge_is_the_mean_over_those_who_are_there():
    metrics = RunMetrics(None)
    assert metrics.gauge("actor", "epsilon") is None
    report(metrics, "actor", gauges={"epsilon": 0.5})
    report(metrics, "actor", index=1, gauges={"epsilon": 0.1})
    report(metrics, "actor", index=2, gauges={"memory_bytes": 1.0})
    assert metrics.gauge("actor", "epsilon") == pytest.approx(0.3)
    metrics.forget("actor", 0)
    assert metrics.gauge("actor", "epsilon") == 0.1
    assert metrics.member_gauges("actor", 2) == {"memory_bytes": 1.0}


def test_a_gauge_that_a_member_no_longer_reports_does_not_count():
    metrics = RunMetrics(None)
    report(metrics, "actor", gauges={"epsilon": 0.5, "guidance": 1.0})
    report(metrics, "actor", index=1, gauges={"epsilon": 0.1, "guidance": 0.0})
    report(metrics, "actor", incarnation=1, gauges={"epsilon": 0.3})
    assert metrics.value("rollout/guidance") == 0.0
    assert metrics.value("rollout/exploration_rate") == pytest.approx(0.2)
    metrics.forget("actor", 1)
    assert metrics.value("rollout/guidance") is None
    assert metrics.member_gauges("actor", 1) == {}


def test_what_is_taken_over_members_is_of_the_last_tick_and_of_those_who_are_there():
    metrics = RunMetrics(None)

    def epsilon() -> float | None:
        return metrics.current()["rollout/exploration_rate"]

    report(metrics, "actor", gauges={"epsilon": 0.5})
    assert epsilon() == 0.5
    report(metrics, "actor", gauges={"epsilon": 0.25})
    assert epsilon() == 0.5
    metrics.tick(1.0)
    assert epsilon() == 0.25
    report(metrics, "actor", index=1, gauges={"epsilon": 0.75})
    assert epsilon() == 0.5
    metrics.forget("actor", 0)
    assert epsilon() == 0.75
    report(metrics, "actor", index=1, gauges={"epsilon": 0.125})
    assert metrics.line(1.0, capacity=50)["rollout/exploration_rate"] == 0.125, "a line is fresh"


def test_sizes_of_several_replays_are_added_up_and_targets_are_not():
    metrics = RunMetrics(None)
    assert metrics.current()["replay/size"] is None
    gauges = {"size": 100.0, "stored_bytes": 5000.0, "limiter_target": 8.0}
    report(metrics, "replay", gauges=gauges | {"limiter_balance": 30.0, "blocked_for_seconds": 2.0})
    report(
        metrics,
        "replay",
        index=1,
        gauges=gauges | {"limiter_balance": -10.0, "blocked_for_seconds": 5.0},
    )
    current = metrics.current()
    assert current["replay/size"] == 200.0
    assert current["replay/stored_bytes"] == 10_000.0
    assert current["replay/samples_per_insert_target"] == 8.0
    assert current["replay/limiter_balance"] == 10.0, "each knows that of all"
    assert current["replay/blocked_for_seconds"] == 5.0
    assert metrics.summary()["bytes_per_transition"]["stored"] == 50.0
    metrics.forget("replay", 1)
    assert metrics.current()["replay/size"] == 100.0


def test_what_cannot_be_used_is_counted():
    metrics = RunMetrics(None)
    report(metrics, "learner", steps_skipped=5, answers_rejected=6, priorities_dropped=7)
    for role, dropped in (("actor", 2), ("evaluator", 3)):
        report(metrics, role, reports_dropped=dropped, control_rejected=1)
    report(metrics, "replay", priorities_ignored=3, requests_dropped=2)
    report(metrics, "replay", index=1, priorities_ignored=4, answers_undeliverable=1)
    current = metrics.current()
    assert current["replay/priorities_ignored"] == 7
    assert current["replay/requests_dropped"] == 2
    assert current["replay/answers_undeliverable"] == 1
    assert current["system/reports_dropped"] == 5
    assert current["system/control_rejected"] == 2
    assert current["learner/steps_skipped"] == 5
    assert current["learner/answers_rejected"] == 6
    assert current["learner/priorities_dropped"] == 7


def test_the_loss_is_that_of_the_steps_that_were_taken():
    metrics = RunMetrics(None)
    metrics.tick(0.0)
    report(metrics, "learner", learner_steps=20, steps_skipped=4, loss_sum=8)
    metrics.tick(1.0)
    assert metrics.current()["train/loss"] == 0.5


def test_without_a_step_that_was_taken_there_is_no_loss():
    metrics = RunMetrics(None)
    metrics.tick(0.0)
    report(metrics, "learner", learner_steps=20, steps_skipped=20, loss_sum=0)
    metrics.tick(1.0)
    assert metrics.current()["train/loss"] is None


def test_the_learner_tells_whether_it_shares_memory_with_replay():
    metrics = RunMetrics(None)
    assert metrics.current()["learner/shared_memory"] is None
    report(metrics, "learner", gauges={"shared_memory": 1.0})
    assert metrics.current()["learner/shared_memory"] == 1.0


def test_messages_that_replay_refused_are_listed_by_reason():
    metrics = RunMetrics(None)
    refused = {"rejected/not finite": 2.0, "rejected/size": 1.0, "samples": 9.0}
    metrics.ingest(MemberKey("replay", 0, 0), Report(refused), 0.0)
    metrics.ingest(MemberKey("actor", 0, 0), Report({"rejected/other": 5.0}), 0.0)
    assert metrics.rejected() == {"not finite": 2, "size": 1}


def test_learner_steps_stay_known_while_the_learner_is_being_restarted():
    metrics = RunMetrics(None)
    assert metrics.learner_steps() == 0
    report(metrics, "learner", gauges={"learner_steps": 500})
    metrics.forget("learner", 0)
    assert metrics.learner_steps() == 500
    # The learner goes on from its newest checkpoint, slightly behind.
    report(metrics, "learner", incarnation=1, gauges={"learner_steps": 480})
    assert metrics.learner_steps() == 480


# ---- rates and ratios ----


def test_a_rate_is_growth_over_the_last_ten_seconds():
    metrics = RunMetrics(None)
    for second in range(31):
        # 2 steps a second at first, 5 a second from second 20 on.
        steps = 2 * second if second <= 20 else 40 + 5 * (second - 20)
        report(metrics, "actor", float(second), environment_steps=steps)
        metrics.tick(float(second))
    assert metrics.value("time/fps") == pytest.approx(5.0)
    assert metrics.current()["time/fps"] == pytest.approx(5.0)


def test_there_is_no_rate_before_the_second_mark():
    metrics = RunMetrics(None)
    report(metrics, "actor", environment_steps=10)
    assert metrics.value("time/fps") == 0.0
    metrics.tick(0.0)
    assert metrics.value("time/fps") == 0.0
    report(metrics, "actor", environment_steps=16)
    metrics.tick(2.0)
    assert metrics.value("time/fps") == 3.0


def test_after_a_long_pause_the_rate_is_taken_from_the_mark_before():
    metrics = RunMetrics(None)
    metrics.tick(0.0)
    report(metrics, "actor", environment_steps=200)
    metrics.tick(100.0)
    assert metrics.value("time/fps") == 2.0


def test_the_loss_is_the_mean_over_the_steps_of_the_last_seconds():
    metrics = RunMetrics(None)
    assert metrics.current()["train/loss"] is None
    metrics.tick(0.0)
    report(metrics, "learner", loss_sum=6.0, learner_steps=4)
    metrics.tick(1.0)
    assert metrics.current()["train/loss"] == pytest.approx(1.5)


def test_samples_per_insert_and_policy_lag_are_over_the_whole_run():
    metrics = RunMetrics(None)
    assert metrics.value("replay/samples_per_insert") == 0.0
    assert metrics.value("learner/policy_lag") == 0.0
    report(metrics, "replay", samples=640, transitions_received=80, policy_lag_sum=200)
    assert metrics.value("replay/samples_per_insert") == 8.0
    assert metrics.value("learner/policy_lag") == 2.5


def test_what_is_in_flight_was_sent_and_has_not_been_seen():
    metrics = RunMetrics(None)
    report(metrics, "actor", transitions_sent=100)
    report(metrics, "actor", index=1, transitions_sent=20)
    assert metrics.in_flight() == 120
    report(
        metrics,
        "replay",
        transitions_received=90,
        # No actor counted the duplicates, or the transitions that strangers sent.
        transitions_duplicate=3,
        transitions_rejected=11,
        transitions_refused=10,
        batches_missing=1,
        spans=[(0, 0, 0, 100, 10)],
    )
    assert metrics.in_flight() == 20
    assert metrics.value("system/lost") == 1
    # The report about sending may come after the report about receiving.
    report(metrics, "replay", transitions_received=130, spans=[(1, 0, 0, 40, 0)])
    assert metrics.in_flight() == 0
    assert metrics.value("system/transitions_waiting") == 0


def test_what_a_killed_actor_has_sent_is_waited_for_until_every_replay_has_taken_all():
    metrics = RunMetrics(None)
    report(metrics, "actor", transitions_made=100, transitions_sent=90)
    report(metrics, "replay", spans=[(0, 0, 0, 60, 0)])
    metrics.ledger.end((0, 0), "died")
    report(metrics, "replay", index=1, gauges={"drained": 1})
    report(metrics, "replay", gauges={"drained": 0})
    assert metrics.in_flight() == 40
    report(metrics, "replay", gauges={"drained": 1}, spans=[(0, 0, 0, 80, 0)])
    assert metrics.in_flight() == 0
    assert metrics.value("system/transitions_died") == 20


def test_who_waits_for_whom_is_told_in_words():
    metrics = RunMetrics(None)
    metrics.tick(0.0)
    assert bottleneck(metrics.current()) == "balanced: nobody waits"
    # Two actors, 10 s: 8.6 of 20 seconds waited.
    report(metrics, "actor", wait_seconds=8.0)
    report(metrics, "actor", index=1, wait_seconds=0.6)
    metrics.tick(10.0)
    assert metrics.value("actor/wait_share") == pytest.approx(0.43)
    assert bottleneck(metrics.current()) == "learner-bound: actors wait 43%"
    report(metrics, "learner", wait_seconds=8.9)
    metrics.tick(20.0)
    assert bottleneck(metrics.current()) == "actor-bound: learner waits 89%"


def test_what_replay_lets_wait_is_told_with_its_cause_and_since_when():
    metrics = RunMetrics(None)
    metrics.tick(0.0)
    assert replay_waits(metrics.current(), 1000) == ""
    # Two replays, 10 s: samples waited for 5 of 20 seconds, when nothing was stored yet.
    report(metrics, "replay", gauges={"blocked_for_seconds": 4.4}, samples_blocked_seconds=3.0)
    report(metrics, "replay", index=1, gauges={"blocked_for_seconds": 0}, samples_blocked_seconds=2)
    metrics.tick(10.0)
    assert metrics.current()["replay/samples_blocked_share"] == pytest.approx(0.25)
    assert replay_waits(metrics.current(), 1000) == "samples wait 25% (fills to 1,000, 4 s)"
    report(metrics, "replay", samples=64, transitions_received=8, samples_blocked_seconds=11)
    metrics.tick(20.0)
    assert replay_waits(metrics.current(), 1000) == "samples wait 40% (actors are behind)"
    report(metrics, "replay", inserts_blocked_seconds=8.6, samples_blocked_seconds=11)
    metrics.tick(30.0)
    assert metrics.current()["replay/inserts_blocked_share"] == pytest.approx(0.43)
    assert replay_waits(metrics.current(), 1000) == "inserts wait 43% (learner is behind)"
    report(metrics, "replay", inserts_blocked_seconds=8.62, samples_blocked_seconds=11)
    metrics.tick(40.0)
    assert replay_waits(metrics.current(), 1000) == "", "less than half a percent"


def test_a_standstill_is_measured_from_the_last_step_or_from_the_start():
    metrics = RunMetrics(None)
    assert metrics.seconds_without_steps(50.0) == 0.0
    metrics.expect_steps(60.0)
    assert metrics.seconds_without_steps(75.0) == 15.0
    report(metrics, "actor", 80.0, environment_steps=4)
    assert metrics.seconds_without_steps(85.0) == 5.0
    report(metrics, "actor", 90.0, environment_steps=4)
    assert metrics.seconds_without_steps(95.0) == 15.0, "a report without a step is no step"


# ---- episodes and evaluations ----


def test_episode_figures_are_means_of_the_last_hundred():
    metrics = RunMetrics("coverage")
    assert metrics.value("rollout/coverage") is None
    report(metrics, "actor", episodes=[[1000.0, 9, 0.9]] * 50)
    report(metrics, "actor", episodes=[[1.0, 3, 0.25]] * 50 + [[2.0, 5, 0.75]] * 50)
    current = metrics.current()
    assert current["rollout/ep_rew_mean"] == 1.5
    assert current["rollout/ep_len_mean"] == 4.0
    assert current["rollout/coverage"] == metrics.value("rollout/coverage") == 0.5


def test_an_evaluation_is_written_once_and_shown_until_the_next():
    metrics = RunMetrics("coverage")
    assert metrics.evaluation_view() is None
    report(metrics, "evaluator", evaluation=evaluation_of(3.0))
    assert metrics.take_evaluations() == [Evaluation.from_map(evaluation_of(3.0))]
    assert metrics.take_evaluations() == []
    view = metrics.evaluation_view()
    assert view is not None
    assert (view.parameter_version, view.return_mean, view.baselines) == (70, 3.0, {"random": 0.1})
    assert view.nearest == ("random", 0.15, 0.03)
    line = metrics.evaluation_line(Evaluation.from_map(evaluation_of(3.0)), 12.34567)
    assert line["time_seconds"] == 12.346
    assert line["eval/coverage"] == 0.25
    assert line["eval/coverage_error"] == 0.125
    assert line["eval/baseline/random"] == 0.1
    assert (line["eval/difference/random"], line["eval/difference/random_error"]) == (0.15, 0.03)
    assert line["eval/best"] == 5.0


# ---- summary ----


def test_the_summary_adds_up():
    metrics = RunMetrics("coverage")
    report(metrics, "actor", 100.0, environment_steps=0)
    report(metrics, "actor", 101.0, environment_steps=8)
    report(
        metrics,
        "actor",
        105.0,
        environment_steps=200,
        transitions_made=194,
        transitions_sent=190,
        transitions_unsent=4,
        episodes=[[2.0, 10, 0.25], [4.0, 10, 0.75]],
    )
    report(metrics, "actor", 109.0, environment_steps=200, episodes_unused=1)
    metrics.ingest(MemberKey("actor", 0, 0), Report({"episodes": 20}), 109.0)
    report(
        metrics,
        "replay",
        gauges={"size": 160.0, "stored_bytes": 16_000.0},
        transitions_received=180,
        transitions_duplicate=5,
        transitions_rejected=2,
        transitions_refused=2,
        spans=[(0, 0, 0, 150, 1), (0, 0, 158, 190, 1)],
        priorities_clipped=3,
        transitions_expired=7,
        samples=720,
        policy_lag_sum=90,
        bytes_received=9000,
    )
    report(metrics, "learner", gauges={"learner_steps": 45}, learner_steps=45)
    report(metrics, "evaluator", evaluation=evaluation_of(5.0))
    metrics.ledger.close()
    summary = metrics.summary()
    # Four seconds pass from the first report of steps, at 101, to the last, at 105.
    assert summary["active_seconds"] == 4.0
    assert summary["environment_steps"] == 200
    assert summary["environment_steps_per_second"] == 50.0
    assert summary["episodes"] == 20
    assert summary["episodes_per_second"] == 5.0
    assert summary["learner_steps"] == 45
    assert summary["learner_steps_per_second"] == 45 / 4
    assert summary["samples_per_insert"] == 4.0
    assert summary["policy_lag_mean"] == 0.5
    assert summary["environment"] == {"return_mean": 3.0, "metrics": {"coverage": 0.5}}
    told = dict(summary["eval"])
    assert (
        told.pop("reached") == "the policy covers 0.15 ± 0.03 more than random on 4 held-out maps"
    )
    assert told.pop("best_model") == ""
    assert Evaluation.from_map(told) == Evaluation.from_map(evaluation_of(5.0))
    assert summary["transitions"] == {
        "made": 194,
        "sent": 190,
        "received": 180,
        "refused": 2,
        "waiting": 0,
        "lost": 8,
        "died": 4,
        "stored_twice": 0,
        "duplicate": 5,
        "rejected": 2,
        "unsent": 4,
    }
    assert summary["priorities_clipped"] == 3
    assert summary["transitions_expired"] == 7
    assert summary["bytes_per_transition"] == {"wire": 50.0, "stored": 100.0}


def test_the_summary_of_nothing_has_zeros_and_no_division():
    summary = RunMetrics(None).summary()
    assert summary["environment_steps_per_second"] == summary["samples_per_insert"] == 0.0
    assert summary["bytes_per_transition"] == {"wire": 0.0, "stored": 0.0}
    assert summary["environment"] == {"return_mean": None, "metrics": {}}
    assert summary["eval"] is None


def test_steps_are_counted_over_the_time_in_which_they_were_taken():
    metrics = RunMetrics(None)
    metrics.expect_steps(100.0)
    assert not metrics.moves
    for now, steps in ((101.0, 100), (102.0, 200)):
        report(metrics, "actor", now, environment_steps=steps)
        metrics.tick(now)
    assert metrics.moves
    assert metrics.summary()["environment_steps_per_second"] == 100.0
    assert metrics.seconds_since_first_step(103.0) == 3.0


# ---- run directory ----


def test_a_new_run_directory_is_made_with_all_its_parents(tmp_path: Path):
    directory = RunDirectory(tmp_path / "a" / "b")
    assert {path.name for path in directory.path.iterdir()} == {
        "logs",
        "checkpoints",
        "metrics.jsonl",
        "events.jsonl",
    }
    assert directory.log_path("actor", 3) == directory.path / "logs" / "actor-3.log"
    directory.close()


def test_runs_that_begin_in_the_same_second_have_directories_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "now")
    paths = [new_path("CartPole-v1", 0) for _ in range(3)]
    assert [path.name for path in paths] == [
        f"CartPole-v1__seed0__now{n}" for n in ("", "-2", "-3")
    ]
    for path in paths:
        RunDirectory(path).close()


def test_a_directory_that_holds_a_run_is_refused_and_left_alone(tmp_path: Path):
    first = RunDirectory(tmp_path)
    first.write_config(build(), build())
    first.metrics({"environment_steps": 1})
    first.close()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match="already holds a run; choose another"):
        RunDirectory(tmp_path)
    assert {path: path.read_bytes() for path in before} == before


def test_a_place_that_cannot_be_written_is_refused_with_the_reason(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written: Not a directory"):
        RunDirectory(tmp_path / "file" / "run")


def test_the_configuration_is_written_as_it_was_resolved(tmp_path: Path):
    directory = RunDirectory(tmp_path)
    config = build(("test", {"run": {"seed": 3, "env_args": {"radii": [3, 2]}}}))
    directory.write_config(config, build())
    directory.close()
    written = tomllib.loads((tmp_path / "config.toml").read_text(encoding="utf-8"))
    assert written == config.to_map()
    written = tomllib.loads((tmp_path / "configured.toml").read_text(encoding="utf-8"))
    assert written == build().to_map()


def test_lines_can_be_read_while_the_run_goes_on(tmp_path: Path, read_lines: ReadLines):
    directory = RunDirectory(tmp_path)
    directory.event("joined", role="actor", index=2)
    directory.metrics({"environment_steps": 8})
    event = read_lines(tmp_path / "events.jsonl")[0]
    assert (event["event"], event["role"], event["index"]) == ("joined", "actor", 2)
    assert event["time_seconds"] >= 0
    assert read_lines(tmp_path / "metrics.jsonl") == [{"environment_steps": 8}]
    directory.close()


def test_what_json_does_not_have_is_written_as_null(tmp_path: Path):
    directory = RunDirectory(tmp_path)
    values = {"a": math.nan, "b": [1.5, math.inf], "c": {"d": (-math.inf, 2)}, "e": "NaN"}
    directory.metrics(values)
    directory.event("odd", value=math.nan)
    directory.write_summary(values)
    directory.close()

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    expected = {"a": None, "b": [1.5, None], "c": {"d": [None, 2]}, "e": "NaN"}
    for name in ("metrics.jsonl", "events.jsonl", "summary.json"):
        content = json.loads((tmp_path / name).read_text(), parse_constant=refuse)
        assert name == "events.jsonl" or content == expected
    assert not list(tmp_path.glob(".*")), "nothing temporary is left"


def test_the_default_directory_says_what_was_run():
    path = default_path("pdqn/CirclePlacement-v0", 7)
    assert path.parent == Path("runs")
    assert path.name.startswith("pdqn-CirclePlacement-v0__seed7__20")


# ---- records ----


def test_a_line_goes_to_metrics_and_its_numbers_to_tensorboard(
    tmp_path: Path, read_lines: ReadLines
):
    directory = RunDirectory(tmp_path)
    records = Records(directory, build())
    metrics = RunMetrics("coverage")
    report(metrics, "actor", episodes=[[1.0, 3, 0.25]], environment_steps=30)
    records.line(metrics.line(1.0, capacity=50))
    report(metrics, "actor", gauges={}, environment_steps=40)
    records.line(metrics.line(2.0, capacity=50))
    records.close()
    assert records.flush(10.0)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["environment_steps"] for line in lines] == [30, 40]
    assert lines[0]["rollout/coverage"] == 0.25
    assert lines[0]["replay/capacity"] == 50
    assert lines[0]["train/loss"] is None
    assert lines[1]["rollout/exploration_rate"] is None
    drawn = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    drawn.Reload()
    assert {"rollout/ep_rew_mean", "time_seconds", "rollout/coverage"} <= set(
        drawn.Tags()["scalars"]
    )
    assert "train/loss" not in drawn.Tags()["scalars"]
    # Every common script for event files reads them so.
    steps = [event.step for event in drawn.Scalars("rollout/ep_rew_mean")]
    assert steps == [30, 40]
    assert [event.value for event in drawn.Scalars("rollout/coverage")] == [0.25] * 2


def test_tensorboard_is_told_the_settings(tmp_path: Path):
    settings = {"run.seed": 3, "learner.double": True, "actor.n_step": None, "run.env": "X"}
    writer = ScalarWriter(tmp_path / "my run" / "tensorboard", settings=settings)
    writer.write({"eval/return_mean": 1.0}, 5)
    writer.close()
    read = EventAccumulator(str(tmp_path / "my run" / "tensorboard"))
    read.Reload()
    told = read.PluginTagToContent("hparams")
    session = HParamsPluginData.FromString(told[SESSION_START_INFO_TAG]).session_start_info
    assert session.group_name == "my run"
    assert session.hparams["run.seed"].number_value == 3
    assert session.hparams["learner.double"].bool_value is True
    assert session.hparams["actor.n_step"].string_value == "None"
    experiment = HParamsPluginData.FromString(told[EXPERIMENT_TAG]).experiment
    assert [info.name for info in experiment.hparam_infos] == list(settings)
    assert [info.name.tag for info in experiment.metric_infos] == ["eval/return_mean"]


# ---- figures of members that may not be trusted ----


def claim(metrics: RunMetrics, role: str, counters: dict[str, float], **of: Any) -> None:
    gauges = of.get("gauges", {})
    metrics.ingest(MemberKey(role, of.get("index", 0), 0), Report(counters, gauges), 0.0)


def test_the_names_of_counters_and_gauges_that_a_role_makes_up_are_bounded():
    metrics = RunMetrics(None)
    for turn in range(20):
        names = {f"name {turn} {number}": 1.0 for number in range(100)}
        claim(metrics, "actor", {"environment_steps": 5.0} | names, index=turn, gauges=names)
    assert metrics.total("actor", "environment_steps") == 20 * 5, "known names are always counted"
    assert len(metrics.get_state()["totals"]) == 100 + 2
    kept = sum(len(metrics.member_gauges("actor", turn)) for turn in range(20))
    assert kept == 100
    assert metrics.value("system/figures_dropped") == 2 * (20 * 100 - 100)


def test_names_that_actors_make_up_take_no_room_from_those_of_others():
    metrics = RunMetrics(None)
    claim(metrics, "actor", {f"name {number}": 1.0 for number in range(4000)})
    claim(metrics, "replay", {"rejected/size": 3.0})
    metrics.count("refused/actors-1: an evaluation")
    assert metrics.rejected() == {"size": 3, "actors-1: an evaluation": 1}


def test_a_member_cannot_say_of_another_that_it_was_refused():
    metrics = RunMetrics(None)
    claim(metrics, "actor", {"refused/gpu-host: a batch in another actor's name": 99.0})
    assert metrics.rejected() == {}
    assert metrics.summary()["refused"] == {}


@pytest.mark.parametrize("steps", [1e300, 1.7e308, float(1 << 60), -1.0])
def test_counters_that_cannot_be_are_dropped_and_leave_whole_numbers(steps: float):
    metrics = RunMetrics(None)
    for index in range(3):
        claim(metrics, "actor", {"environment_steps": steps, "episodes": 7.0}, index=index)
    assert metrics.counts() == {"environment_steps": 0, "episodes": 21, "learner_steps": 0}
    assert metrics.value("system/figures_dropped") == 3
    json.dumps(metrics.line(1.0, 10), allow_nan=False)
    json.dumps(metrics.summary(), allow_nan=False)


def test_totals_stay_whole_however_many_members_report_the_most():
    metrics = RunMetrics(None)
    for index in range(1000):
        report(metrics, "actor", index=index, environment_steps=float(1 << 53))
    assert metrics.counts()["environment_steps"] == 1 << 53


def test_a_counter_that_falls_takes_nothing_away():
    metrics = RunMetrics(None)
    for steps in (100.0, 40.0):
        report(metrics, "actor", environment_steps=steps)
    report(metrics, "actor", index=1, environment_steps=7.0)
    assert metrics.counts()["environment_steps"] == 107


def test_gauges_and_episodes_of_any_size_leave_finite_means():
    metrics = RunMetrics("coverage")
    for index in range(3):
        rows = [[1.7e308, 1, None], [1.0, 1, 1.7e308], [2.0, 4, 0.5]]
        gauges = {"epsilon": 1.7e308, "cpu_percent": 3.0}
        report(metrics, "actor", index=index, gauges=gauges, episodes=rows)
        report(metrics, "learner", index=index, gauges={"learner_steps": 1.7e308, "q_mean": 1e38})
    metrics.tick(1.0)
    line = json.loads(json.dumps(metrics.line(1.0, 10), allow_nan=False))
    assert line["rollout/ep_rew_mean"] == 2.0
    assert line["rollout/coverage"] == 0.5
    assert line["train/q_mean"] == 1e38, "a learner that diverges is seen to"
    assert line["rollout/exploration_rate"] is None
    assert line["learner_steps"] == 0


def test_an_incarnation_that_cannot_come_back_is_forgotten_and_its_counters_are_not():
    metrics = RunMetrics(None)
    report(metrics, "actor", environment_steps=5)
    metrics.counters.forget(MemberKey("actor", 0, 0))
    assert metrics.counted(MemberKey("actor", 0, 0)) == {}
    assert metrics.counts()["environment_steps"] == 5


def test_a_member_that_names_ever_new_counters_takes_no_more_memory_for_them():
    counters = Counters()
    for round_ in range(10):
        key = MemberKey("actor", 0, round_)
        names = {f"{round_} {number}": 1.0 for number in range(4000)}
        counters.add(key, {"environment_steps": 5.0, **names})
    assert counters.total("actor", "environment_steps") == 50
    assert len(counters.get_state()) <= 2049
    assert counters.total("actor", "figures_dropped") == 40_000 - 100
    assert len(counters.counted(MemberKey("actor", 0, 9))) == 1
    assert counters.counted(MemberKey("actor", 0, 7)) == {}, "it cannot come back"
