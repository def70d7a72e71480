"""Metrics of an environment's own, from its info to everything that shows figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from metric_environments import LENGTH
from test_console import lines_of, snapshot

from actors.environments.describe import describe_environment
from actors.environments.infos import final_metrics, own_metrics
from actors.evaluation import Scores, describe_own, play, random_act
from actors.rollout import Identity, Rollout
from launcher.console.lines import progress_line, summary_rows
from launcher.evaluation.evaluate import Circumstances, evaluate
from launcher.metrics.counters import MemberKey
from launcher.metrics.metrics import RunMetrics
from launcher.records.event_records import figures_record
from launcher.records.sinks import _documentation, metric_name
from launcher.results.models import Permission
from pdqn.config import Config, RunConfig
from pdqn.episodes import MAX_METRIC_VALUES, MAX_METRICS
from pdqn.layers import build
from pdqn.messages import Episode, Report, decode
from pdqn.model import save_model
from pdqn.networks import build_network
from pdqn.telemetry import Telemetry
from pdqn.wire import WireError

ACTOR = MemberKey("actor", 0, 0)


def played(env: str, steps: int) -> Report:
    """Return the report of an actor with two environments."""
    actor = {"envs_per_actor": 2, "discount": 0.5, "segment_length": 16}
    config = build(("test", {"run": {"env": env}, "actor": actor, "network": {"hidden": 8}}))
    spec = describe_environment(env, {}, 1)
    torch.manual_seed(0)
    rollout = Rollout(config, spec, build_network(spec, config.network), Identity(0, 0))
    telemetry = Telemetry()
    for _ in range(steps):
        rollout.step(telemetry)
    rollout.close()
    return telemetry.report()


def test_an_episode_has_the_metrics_of_its_last_step_and_what_is_no_number_is_counted():
    report = played("metric_environments:Car", 2 * LENGTH)
    first, second = {"fuel": 1.0, "crashed": 1.0}, {"fuel": 2.0}
    assert [episode.metrics for episode in report.episodes] == [first, first, second, second]
    assert report.counters["figures_dropped"] == 4 * 4


def test_a_batch_of_an_environments_own_tells_its_metrics_in_the_same_way():
    report = played("metric_environments:cars", LENGTH)
    assert [episode.metrics for episode in report.episodes] == [None, {"fuel": 1.0}]


def test_another_thing_under_the_same_key_is_left_out_and_counted():
    report = played("metric_environments:Noise", LENGTH)
    assert [episode.metrics for episode in report.episodes] == [None, None]
    assert report.counters["figures_dropped"] == 2
    ended = np.array([True])
    assert final_metrics({"final_info": {"metrics": np.array(["a"])}}, ended) == ({}, 1)
    assert final_metrics({"final_info": {}}, ended) == final_metrics({}, ended) == ({}, 0)


def test_names_are_few_short_and_printable():
    many = {f"m{i}": i for i in range(MAX_METRICS + 3)}
    told, dropped = own_metrics(many)
    assert (len(told), dropped) == (MAX_METRICS, 3)
    assert own_metrics({"x" * 41: 1, "a\x1b[": 1, "": 1, "ok": 2}) == ({"ok": 2.0}, 3)


def test_a_report_holds_a_bounded_number_of_values():
    telemetry, metrics = Telemetry(), {f"m{i}": 1.0 for i in range(MAX_METRICS)}
    for _ in range(MAX_METRIC_VALUES // MAX_METRICS + 2):
        telemetry.episode(Episode(1.0, 1, None, metrics))
    report = telemetry.report()
    assert sum(len(episode.metrics or ()) for episode in report.episodes) == MAX_METRIC_VALUES
    assert report.counters["figures_dropped"] == 2 * MAX_METRICS
    assert decode(report.encoded, {Report.KIND: Report}) == report
    telemetry.episode(Episode(1.0, 1, None, metrics))
    assert telemetry.report().episodes[0].metrics == metrics


@pytest.mark.parametrize("metrics", [{"a": float("nan")}, {"a": "b"}, {"x" * 41: 1.0}, [1.0],
                                     {f"m{i}": 1.0 for i in range(21)}, {"\x1b": 1.0}])  # fmt: skip
def test_metrics_that_no_actor_sends_are_refused(metrics: Any):
    with pytest.raises(WireError):
        Report(episodes=(Episode(1.0, 1, None, metrics),))


def reported(*metrics: dict[str, float]) -> RunMetrics:
    run = RunMetrics("coverage")
    run.ingest(ACTOR, Report(episodes=tuple(Episode(1.0, 1, 0.5, one) for one in metrics)), 1.0)
    return run


def test_figures_are_means_over_the_episodes_that_tell_them():
    run = reported({"fuel": 1.0, "crashed": 1.0}, {"fuel": 3.0})
    line = run.line(1.0, 50)
    assert (line["info/fuel"], line["info/crashed"]) == (2.0, 1.0)
    run.tick(1.0)
    assert run.history()["info/fuel"] == (2.0,)
    assert run.summary()["environment"]["metrics"] == {"coverage": 0.5, "fuel": 2.0, "crashed": 1.0}
    later = RunMetrics("coverage")
    later.set_state(json.loads(json.dumps(run.get_state())))
    assert later.line(1.0, 50)["info/fuel"] == 2.0


def test_a_state_of_an_earlier_version_has_none():
    state = reported({"fuel": 1.0}).get_state()
    del state["metrics"]
    later = RunMetrics("coverage")
    later.set_state(state)
    assert "info/fuel" not in later.line(1.0, 50)


def test_a_run_keeps_as_many_names_as_an_episode_and_counts_the_others():
    run = reported(*({f"m{i}": 1.0} for i in range(MAX_METRICS + 2)), {"m0": 1e40})
    assert sum(name.startswith("info/") for name in run.current()) == MAX_METRICS
    assert run.value("system/figures_dropped") == 3


def test_every_view_shows_them():
    view = snapshot(figures={"info/fuel": 2.5, "info/later": None}, headline=None)
    assert "fuel 2.50" in progress_line(view)
    for width, height in ((80, 24), (200, 50)):
        text = "\n".join(lines_of(view, width, height))
        assert "fuel" in text
        assert "later" not in text
    rows = dict(summary_rows({"environment": {"return_mean": 1.0, "metrics": {"fuel": 2.5}}}, None))
    assert "fuel 2.5" in rows["training"]
    assert metric_name("info/fuel") == "pdqn_info_fuel"
    assert "end of the last 100 episodes" in _documentation("info/fuel")
    assert b"info/fuel" in figures_record({"info/fuel": 2.5}, 7)


def test_an_evaluation_has_them_with_the_episodes_that_tell_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    spec = describe_environment("metric_environments:Seeded", {}, 1)
    config = Config(run=RunConfig(env=spec.id))
    save_model(tmp_path / "m.pth", config, spec, build_network(spec, config.network), 7)
    differs = Circumstances(seed=10)  # episodes of the seeds 10 to 14
    for as_json in (True, False):
        evaluate(
            tmp_path / "m.pth",
            5,
            as_json=as_json,
            permission=Permission(everything=True),
            differs=differs,
        )
    result, _, shown = capsys.readouterr().out.partition("\n")
    info = json.loads(result)["info"]
    assert set(info) == {"fuel", "crashed"}
    assert info["fuel"] == {"mean": 12.0, "error": pytest.approx(0.5**0.5), "episodes": 5}
    assert info["crashed"] == {
        "mean": pytest.approx(1 / 3),
        "error": pytest.approx(1 / 3),
        "episodes": 3,
    }
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert any("info/fuel" in row and "12.0000 ± 0.7071" in row for row in rows)
    assert any("info/crashed in 3 episodes" in row and "0.3333" in row for row in rows)


def test_an_episode_that_is_cut_has_not_told_them():
    spec = describe_environment("metric_environments:Seeded", {}, 1)
    scores = play(
        random_act(spec, np.random.default_rng(0)),
        spec,
        {},
        [1, 2, 3],
        max_episode_steps=LENGTH - 1,
    )
    assert scores is not None
    assert scores.cut.all()
    assert describe_own(scores, spec) == {}


def test_an_evaluation_has_as_many_names_as_an_episode():
    spec = describe_environment("metric_environments:Seeded", {}, 1)
    own = np.array([{f"m{first + i}": 1.0 for i in range(MAX_METRICS)} for first in (0, 5)], object)
    counted = np.ones(2), np.ones(2, np.int64), np.full(2, np.nan), np.zeros(2, bool)
    described = describe_own(Scores(*counted, own), spec)
    assert list(described) == [f"m{i}" for i in range(MAX_METRICS)]
    assert described["m5"]["episodes"] == 2
