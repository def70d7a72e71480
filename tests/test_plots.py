"""Pictures from a run's metrics, at any time of a run."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from launcher.metrics.metrics import RunMetrics
from launcher.results.training import plot_training, read_metrics, smoothed, training_figure
from launcher.run.state import RunState

PNG = b"\x89PNG\r\n\x1a\n"


def training_line(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "time_seconds": step / 1000,
        "environment_steps": step,
        "rollout/ep_rew_mean": 0.3,
        "rollout/ep_len_mean": 13.0,
        "rollout/exploration_rate": 0.1,
        "rollout/coverage": 0.3 + step * 1e-6,
        "train/loss": 0.01,
        "time/fps": 12_000.0,
        "actor/episodes_per_second": 900.0,
        "replay/size": step,
        "replay/capacity": 200_000,
        "learner/policy_lag": 12.0,
    } | changes


def evaluation_line(step: int) -> dict[str, Any]:
    return {
        "environment_steps": step,
        "eval/return_mean": 0.35,
        "eval/return_error": 0.01,
        "eval/coverage": 0.36,
        "eval/coverage_error": 0.006,
        "eval/baseline/random": 0.266,
        "eval/baseline/greedy": 0.414,
    }


def write(run_dir: Path, *lines: dict[str, Any], rest: str = "") -> Path:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir / "metrics.jsonl").write_text(text + rest, encoding="utf-8")
    return run_dir


def write_state(run_dir: Path, scores: list[float]) -> None:
    RunState(metrics={"distribution": scores, "headline": "coverage"}).write(run_dir)


def distribution(run_dir: Path) -> list[str]:
    """List the texts in the panel of the last episodes' scores."""
    figure = training_figure(read_metrics(run_dir), run_dir.name)
    (axes,) = [axes for axes in figure.axes if "last episodes" in axes.get_title()]
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def texts(run_dir: Path) -> list[str]:
    """List all texts in the picture, panel by panel."""
    figure = training_figure(read_metrics(run_dir), run_dir.name)
    return [
        " ".join([axes.get_title(), *(text.get_text() for text in axes.texts)])
        for axes in figure.axes
    ]


def test_a_whole_run_becomes_one_picture(tmp_path: Path) -> None:
    rng = random.Random(0)
    lines = [training_line(1000 * index) for index in range(100)]
    lines[50:50] = [evaluation_line(50_000)]
    write(tmp_path, *lines)
    write_state(tmp_path, [rng.gauss(0.38, 0.03) for _ in range(200)])
    path = plot_training(tmp_path)
    assert path == tmp_path / "training_results.png"
    assert path.read_bytes().startswith(PNG)
    names = ["metrics.jsonl", "state.json", "training_results.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    panels = texts(tmp_path)
    assert "no data yet" not in " ".join(panels)
    assert "greedy 0.414" in panels[0]
    assert any("0.36 ± 0.006" in panel for panel in panels)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{}],
        [{"environment_steps": 0}],
        [{"environment_steps": None, "train/loss": 1.0}],
        [{"environment_steps": 5, "train/loss": None, "time/fps": float("nan")}],
        [training_line(5)],
        [evaluation_line(5)],
        [{"environment_steps": 5, "train/loss": 0.0, "episodes_recent": [None, math.nan]}],
        [{"environment_steps": 5, "time/fps": 9.0, "learner/policy_lag": 3.0}],
        [training_line(5, episodes_recent=[0.5], **{"replay/capacity": 0})],
    ],
)
def test_anything_may_be_missing(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    assert plot_training(write(tmp_path, *lines)).read_bytes().startswith(PNG)


def test_a_run_without_metrics_has_a_picture_that_says_so(tmp_path: Path) -> None:
    assert plot_training(tmp_path).exists()
    assert sum("no data yet" in panel for panel in texts(tmp_path)) == 6


def test_a_line_that_a_kill_cut_off_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, training_line(1), training_line(2), rest='{"environment_steps": 3, "tra')
    assert len(read_metrics(tmp_path).lines) == 2


def test_lines_that_are_no_objects_are_skipped(tmp_path: Path) -> None:
    write(tmp_path, training_line(1), rest='[1, 2]\n\n"text"\n')
    assert len(read_metrics(tmp_path).lines) == 1


def test_the_last_scores_are_drawn_from_what_the_run_knows_now(tmp_path: Path) -> None:
    write(tmp_path, training_line(1, episodes_recent=[0.1]), training_line(2))
    write_state(tmp_path, [0.25, 0.75])
    assert distribution(tmp_path) == ["mean 0.5, 2 episodes"]


@pytest.mark.parametrize("state", [None, "", "{}", '{"metrics": {}}', '{"metrics": []}'])
def test_the_last_scores_of_a_run_of_an_earlier_version_are_those_of_its_newest_line(
    tmp_path: Path, state: str | None
) -> None:
    lines = [training_line(step, episodes_recent=[0.1 * step] * step) for step in (1, 2, 3)]
    write(tmp_path, *lines, evaluation_line(3), {"episodes_recent": None})
    if state is not None:
        (tmp_path / "state.json").write_text(state, encoding="utf-8")
    assert distribution(tmp_path) == ["mean 0.3, 3 episodes"]


def test_the_scores_of_older_lines_are_not_kept_in_memory(tmp_path: Path) -> None:
    lines = [training_line(step, episodes_recent=[0.5] * 500) for step in (1, 2, 3)]
    metrics = read_metrics(write(tmp_path, *lines))
    assert [len(line) for line in metrics.lines] == [len(training_line(1))] * 3
    assert metrics.recent == (0.5,) * 500


def test_series_are_finite_pairs(tmp_path: Path) -> None:
    lines = [training_line(step, **{"train/loss": loss}) for step, loss in ((1, None), (2, 0.5))]
    steps, losses = read_metrics(write(tmp_path, *lines)).series("train/loss")
    assert steps.tolist() == [2.0]
    assert losses.tolist() == [0.5]


COVERAGE = ("coverage", "rollout/coverage", "eval/coverage")
RETURN = ("return", "rollout/ep_rew_mean", "eval/return_mean")


@pytest.mark.parametrize(("headline", "score"), [("coverage", COVERAGE), (None, RETURN)])
def test_the_score_is_the_headline_metric_that_the_run_has_written_down(
    tmp_path: Path, headline: str | None, score: tuple[str, str, str]
) -> None:
    # A figure that this version does not know must not be mistaken for the headline metric.
    write(tmp_path, training_line(1, **{"rollout/of_a_later_version": 1.0}))
    RunState(metrics=RunMetrics(headline).get_state()).write(tmp_path)
    assert read_metrics(tmp_path).score == score


@pytest.mark.parametrize(
    ("state", "summary", "score"),
    [
        ({"evaluation": {"metrics": {"coverage": 0.36}}}, {}, COVERAGE),
        ({"evaluation": None}, {"environment": {"metrics": {"coverage": 0.37}}}, COVERAGE),
        ({"evaluation": None}, {"environment": {"metrics": {}}}, RETURN),
        ({"evaluation": []}, {"environment": "CartPole-v1"}, RETURN),
        ({}, {}, RETURN),
    ],
)
def test_the_headline_metric_of_a_run_of_an_earlier_version_is_found_beside_its_values(
    tmp_path: Path, state: dict[str, Any], summary: dict[str, Any], score: tuple[str, str, str]
) -> None:
    write(tmp_path, training_line(1))
    RunState(metrics=state).write(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    assert read_metrics(tmp_path).score == score
    assert plot_training(tmp_path).read_bytes().startswith(PNG)


def test_the_title_names_environment_and_seed(tmp_path: Path) -> None:
    summary = {"environment": {"id": "pdqn/CirclePlacement-v0"}, "seed": 7}
    (tmp_path / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    figure = training_figure(read_metrics(tmp_path), tmp_path.name)
    assert figure.get_suptitle() == "pdqn/CirclePlacement-v0, seed 7"


def test_smoothing_keeps_a_constant_and_the_length() -> None:
    assert smoothed(np.full(90, 2.0)) == pytest.approx(np.full(90, 2.0))
    assert smoothed(np.array([0.0, 3.0, 0.0])) == pytest.approx([1.5, 1.0, 1.5])


def test_plotting_needs_neither_torch_nor_a_display() -> None:
    check = "import sys, launcher.results.training as _; print({%s} & set(sys.modules))"
    check %= "'torch', 'matplotlib.pyplot'"
    answer = subprocess.run(
        [sys.executable, "-c", check], check=True, capture_output=True, text=True, timeout=60
    )
    assert answer.stdout.strip() == "set()"


def panel(run_dir: Path, title: str) -> Axes:
    figure = training_figure(read_metrics(run_dir), run_dir.name)
    figure.draw_without_rendering()
    (axes,) = [axes for axes in figure.axes if title in axes.get_title()]
    return axes


@pytest.mark.parametrize("score", [-0.4, -512.0, 0.3, 0.0])
def test_the_values_of_bars_are_within_their_panel(tmp_path: Path, score: float) -> None:
    line = {"environment_steps": 9, "eval/return_mean": score, "eval/return_error": abs(score) / 50}
    axes = panel(write(tmp_path, line | {"eval/baseline/random": 1.5 * score}), "beside")
    box = axes.get_window_extent()
    assert len(axes.texts) == 2
    for text in axes.texts:
        label = text.get_window_extent()
        assert box.x0 <= label.x0, text.get_text()
        assert label.x1 <= box.x1, text.get_text()


def test_a_single_bar_does_not_fill_its_panel(tmp_path: Path) -> None:
    line = {"environment_steps": 9, "eval/return_mean": 500.0, "eval/return_error": 0.0}
    axes = panel(write(tmp_path, line), "beside")
    (bar,) = axes.patches
    assert bar.get_window_extent().height < 0.3 * axes.get_window_extent().height


def test_ticks_below_one_are_numbers_and_not_thousandths(tmp_path: Path) -> None:
    lines = [training_line(s, **{"actor/episodes_per_second": 0.8}) for s in (500, 1500, 2_000_000)]
    axes = panel(write(tmp_path, *lines), "throughput")
    shown = [tick.get_text() for tick in (*axes.get_yticklabels(), *axes.get_xticklabels())]
    assert "0.5" in shown or "0.4" in shown
    assert not [text for text in shown if text.endswith("m")]
    assert "1.5M" in shown or "2M" in shown
