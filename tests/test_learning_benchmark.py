"""The learning benchmark: times and bands from curves, cases, result files, table rows."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.circle_placement.maps import load_maps
from benchmarks import learning, learning_report
from benchmarks.learning_cases import INPUT, PDQN, SB3, Case, System, cases
from benchmarks.learning_results import (
    Result,
    above,
    band,
    baselines_of_metrics,
    curve_of_metrics,
    first_at,
    later_half_means,
    mean_and_error,
    read,
    read_all,
    result_path,
    stays_from,
    write,
)
from benchmarks.learning_runs import (
    RunFailedError,
    Tools,
    json_lines,
    last_evaluation,
    make,
    wait_for,
)
from launcher.cli.commands import cli
from pdqn import layers

EXAMPLE = Result(
    case="cartpole",
    system=PDQN,
    seed=2,
    command="pdqn launch --env CartPole-v1 --time 60s --seed 2",
    commit="abc1234",
    date="2026-01-01T00:00:00+00:00",
    cores=2,
    wall_seconds=66.123456789,
    curve=[
        [0.0, 5.0, 9.4, 0.2],
        [1000.0, 20.0, 480.0, 3.0],
        [2000.0, 30.0, 500.0, 0.0],
        [3000.0, 40.0, 500.0, 0.0],
    ],
)


def curve_of(*returns: float, seconds: float = 10.0) -> list[list[float]]:
    """Build a curve of evaluations every ``seconds`` seconds and every 100 steps."""
    return [[100.0 * i, seconds * i, value, 0.0] for i, value in enumerate(returns)]


def example_of(name: str) -> Case:
    return next(case for case in cases() if case.name == name)


@pytest.mark.parametrize(
    ("returns", "seconds"),
    [
        ((9, 200, 480, 500, 490), 20.0),
        ((9, 500, 470, 475, 480, 480), 30.0),  # an earlier success that was lost does not count
        ((475, 475, 475), 0.0),
        ((9, 200, 500, 500), None),  # too few at the end to count as staying
        ((500, 500, 500, 474.9), None),
        ((), None),
    ],
)
def test_the_time_is_that_from_which_on_all_evaluations_reach_the_threshold(returns, seconds):
    assert stays_from(curve_of(*returns), 475) == seconds


def test_a_band_interpolates_between_evaluations_and_stays_where_all_curves_reach():
    long, short = [[0, 0, 0, 0], [200, 20, 20, 0]], [[50, 5, 9, 0], [100, 9, 9, 0]]
    found = band([long, short, []], column=0)
    assert (found["x"][0], found["x"][-1]) == (50, 100)
    np.testing.assert_allclose(found["high"], np.maximum(found["x"] / 10, 9))
    np.testing.assert_allclose(found["low"], np.minimum(found["x"] / 10, 9))
    np.testing.assert_allclose(found["mean"], (found["x"] / 10 + 9) / 2)


def test_curves_that_share_no_steps_have_no_band():
    assert [len(v) for v in band([], column=0).values()] == [0, 0, 0, 0]
    apart = [[[0, 0, 1, 0], [10, 1, 1, 0]], [[20, 0, 1, 0], [30, 1, 1, 0]]]
    assert [len(v) for v in band(apart, column=0).values()] == [0, 0, 0, 0]


def test_the_later_half_is_that_of_the_steps_which_all_curves_share():
    # All three reach from 0 to 200. Between 100 and 200 the first climbs from 1 to 2, then goes on.
    climbing, flat = curve_of(0, 1, 2, 99), curve_of(5, 5, 5)
    (first,), second = later_half_means([[climbing], [flat, []]], column=0)
    assert first == pytest.approx(1.5)
    assert second == [5.0]


def test_mean_and_standard_error_over_seeds():
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / math.sqrt(3)))
    mean, error = mean_and_error([4.0])
    assert (mean, math.isnan(error)) == (4.0, True)
    assert all(math.isnan(value) for value in mean_and_error([]))


def test_an_evaluation_belongs_to_the_steps_at_which_its_parameters_were_made():
    lines = [
        {"time_seconds": 1.0, "environment_steps": 0, "learner_steps": 0},
        {"time_seconds": 6.0, "environment_steps": 1000, "learner_steps": 100},
        {"time_seconds": 11.0, "environment_steps": 3000, "learner_steps": 200},
        {
            "time_seconds": 12.0, "environment_steps": 3200, "learner_steps": 210,
            "eval/parameter_version": 150, "eval/return_mean": 7.0, "eval/return_error": 0.5,
        },
    ]  # fmt: skip
    assert curve_of_metrics(lines, offset_seconds=2.0) == [[2000.0, 14.0, 7.0, 0.5]]


def test_results_come_back_from_their_files(tmp_path):
    path = write(tmp_path, EXAMPLE)
    assert path == result_path(tmp_path, "cartpole", PDQN, 2)
    assert read(path) == replace(EXAMPLE, wall_seconds=66.1235)
    assert read_all(tmp_path) == [read(path)]
    assert not list(tmp_path.rglob("*.part"))


def test_the_first_evaluation_at_the_threshold_need_not_stay_there():
    curve = [[0.0, 5.0, 100.0, 0.0], [1.0, 7.0, 480.0, 0.0], [2.0, 9.0, 300.0, 0.0]]
    assert first_at(curve, 475.0) == 7.0
    assert stays_from(curve, 475.0) is None
    assert first_at(curve, 500.0) == math.inf


def test_a_file_that_is_no_result_is_named(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.json is not a result"):
        read(path)


def test_cases_and_their_systems_have_names_of_their_own():
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)
    for case in cases():
        assert len({system.name for system in case.systems}) == len(case.systems)
        assert len(case.systems) <= len(learning_report.COLOURS)


def test_every_case_is_a_command_line_that_launch_accepts():
    for case in cases():
        for system in case.systems:
            if system.peer is None:
                arguments = [*system.arguments, "--time", "60s", "--seed", "1"]
                context = cli.commands["launch"].make_context("launch", arguments)
                assignments = context.params["assignments"]
                layers.build(("--set", layers.from_assignments(assignments)))


def test_a_case_that_has_not_run_says_so_in_every_row():
    table = learning_report.section([], [])
    systems = sum(len(case.systems) for case in cases())
    assert table.count(f"| {learning_report.NOT_RUN} |") == systems


def test_rows_name_result_seeds_wall_time_commit_and_command():
    command = "pdqn launch --env CartPole-v1 --time 60s --seed"
    never = replace(
        EXAMPLE, seed=3, curve=EXAMPLE.curve[:1], wall_seconds=70.0, command=f"{command} 3"
    )
    third = replace(EXAMPLE, seed=5, curve=EXAMPLE.curve, command=f"{command} 5")
    rows = learning_report.rows_of(example_of("cartpole"), [EXAMPLE, never, third])
    assert rows[0] == [
        "cartpole",
        PDQN,
        "median 20.0 s (20.0 s to never); 2 of 3 stay at 475; "
        "first evaluation there: median 20.0 s (20.0 s to never)",
        "2 3 5",
        "67 s, 2 cores",
        "`abc1234`",
        f"`{command} SEED`",
    ]
    assert rows[1][:3] == ["cartpole", SB3, learning_report.NOT_RUN]


def test_a_row_says_what_the_policies_returned_after_runs_until_a_threshold():
    played = replace(EXAMPLE, final={"evaluation": {"return_mean": 499.5}})
    text = learning_report.threshold_text(475.0, [played, played])
    assert text.endswith("(20.0 s to 20.0 s); after the run, return 499.5 ± 0 (499.5, 499.5)")


def test_a_policy_is_shown_beside_exact_greedy():
    evaluation = {
        "return_mean": 0.495,
        "return_error": 0.002,
        "baselines": {"random": 0.2, "exact_greedy": 0.5},
        "differences": {"random": [0.3, 0.01], "exact_greedy": [-0.005, 0.001]},
    }
    result = replace(EXAMPLE, final={"evaluation": evaluation})
    assert learning_report.baseline_text([result]) == (
        "0.4950 ± 0.0020; 99.0% of exact greedy (0.5000); paired -0.0050 ± 0.0010"
    )
    assert result.final_return == 0.495


def test_a_curve_is_set_against_a_baseline_on_its_own_maps():
    lines = [
        {"eval/baseline/exact_greedy": 0.5, "eval/baseline/random": 0.2, "eval/return_mean": 0.4},
        {"learner_steps": 7},
    ]
    assert baselines_of_metrics(lines) == {"exact_greedy": 0.5, "random": 0.2}
    assert baselines_of_metrics(lines[1:]) == {}
    result = replace(EXAMPLE, curve=[[100.0, 10.0, 0.4, 0.05]], baselines={"exact_greedy": 0.5})
    ((steps, wall, difference, error),) = above(result, "exact_greedy").curve
    assert (steps, wall, error) == (100.0, 10.0, 0.0)
    assert difference == pytest.approx(-0.1)


def test_returns_have_a_mean_an_error_and_each_seed():
    group = [replace(EXAMPLE, curve=curve_of(0, value)) for value in (1.0, 2.0, 3.0)]
    assert learning_report.return_text(group) == "return 2 ± 0.58 (1, 2, 3)"
    assert learning_report.return_text(group[:1]) == "return 1 (1)"


def test_the_document_is_changed_between_its_markers_only():
    text = f"before\n{learning_report.START}\nold\n{learning_report.END}\nafter\n"
    changed = learning_report.replaced(text, "new")
    assert changed == f"before\n{learning_report.START}\n\nnew\n{learning_report.END}\nafter\n"
    with pytest.raises(ValueError, match="lacks"):
        learning_report.replaced("nothing", "new")


def test_the_report_writes_the_table_and_a_picture_of_what_has_run(tmp_path):
    document = tmp_path / "learning.md"
    document.write_text(f"{learning_report.START}\n{learning_report.END}\n", encoding="utf-8")
    write(tmp_path / "results", EXAMPLE)
    write(tmp_path / "results", replace(EXAMPLE, system=SB3))
    learning_report.report(tmp_path / "results", document)
    text = document.read_text(encoding="utf-8")
    assert "](learning/cartpole.png)" in text
    assert [path.name for path in tmp_path.rglob("*.png")] == ["cartpole.png"]


def test_durations_are_read_as_the_command_line_has_them():
    assert [learning.seconds(text) for text in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    for text in ("", "soon", "-3", "nan", "inf", "s"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a duration"):
            learning.seconds(text)


def test_a_failed_run_says_why_and_one_that_takes_too_long_is_ended(tmp_path):
    fail = [sys.executable, "-c", "import sys; sys.exit('no such luck')"]
    with pytest.raises(RunFailedError, match=r"exit code 1: see .*\n.*no such luck"):
        wait_for(fail, tmp_path / "a.log", 60.0, str)
    # A process that a script starts in the background ignores SIGINT unless it chooses otherwise.
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); time.sleep(60)"
    sleep = [sys.executable, "-c", code]
    with pytest.raises(RunFailedError, match="did not end within 0 s"):
        wait_for(sleep, tmp_path / "b.log", 0.1, str)


def test_the_rectangles_of_a_case_are_maps_that_the_environment_takes(tmp_path):
    tools = Tools(Path(sys.executable), tmp_path, tmp_path)
    make(example_of("placement-rectangles").makes, tmp_path / INPUT, tools)
    maps = load_maps(str(tmp_path / INPUT))
    assert (maps.extent, maps.size, len(maps.names)) == ((64, 96), 96, 2048)
    assert len(maps.held_out) > 256


def test_progress_is_the_newest_whole_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_evaluation(json_lines(path)) == "no evaluation yet"
    path.write_text(
        'noise\n{"environment_steps": 1000, "eval/return_mean": 9.5}\n{"environment_st',
        encoding="utf-8",
    )
    assert last_evaluation(json_lines(path)) == "1,000 steps, evaluated return 9.5"


def test_what_is_missing_for_a_case_is_named(tmp_path):
    here = Path(sys.executable)
    case = replace(
        example_of("atari-breakout"), needs=("nowhere_to_be_found",), systems=(System("x", ()),)
    )
    without_command = Tools(tmp_path / "pdqn", here, tmp_path).missing(case, case.systems)
    assert without_command is not None
    assert "--pdqn" in without_command
    lacking = Tools(here.with_name("pdqn"), here, tmp_path).missing(case, case.systems)
    assert lacking is not None
    assert "nowhere_to_be_found" in lacking


def test_the_peers_python_is_missed_only_where_a_peer_runs(tmp_path):
    case = example_of("cartpole")
    tools = Tools(Path(sys.executable), tmp_path / "nowhere", tmp_path)
    ours, peer = case.systems
    assert tools.missing(case, [ours]) is None
    assert "nowhere is not there" in (tools.missing(case, [ours, peer]) or "")


def test_a_result_that_is_there_is_not_made_again(tmp_path, capsys):
    case = example_of("cartpole")
    chosen = learning.parser().parse_args(["cartpole", "--out", str(tmp_path), "--seeds", "2"])
    write(tmp_path, EXAMPLE)
    nothing = Tools(tmp_path, tmp_path, tmp_path)
    assert learning.run_one(case, case.systems[0], 2, chosen, nothing)
    assert "is there" in capsys.readouterr().out
