"""The same run with several seeds: one after another, at the same time, interrupted, and again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_ls import ended, made

from launcher.cli.studies import lasting_options, without_options
from launcher.studies.listing import runs_below
from launcher.studies.members import EXIT_INTERRUPTED, Member, is_complete, shares_of
from launcher.studies.seeds import memory_options, parse_seeds, summary_lines
from pdqn.errors import UsageError

if TYPE_CHECKING:
    from conftest import StartCommand

RUN = [
    "launch", "--env", "CartPole-v1", "--mode", "single", "--console", "plain",
    "--set", "evaluation.enabled=false", "--run-dir", "study",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("1:5", (1, 2, 3, 4, 5)),
        ("7", (7,)),
        ("0:0", (0,)),
        ("1,3,7", (1, 3, 7)),
        ("0,5:6", (0, 5, 6)),
    ],
)
def test_seeds_are_a_range_or_a_list(text: str, seeds: tuple[int, ...]):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "5:1", "-1:2", "1,1", "1:", "0:1000000000", "1.5"])
def test_what_is_not_seeds_is_refused(text: str):
    with pytest.raises(ValueError):  # noqa: PT011 - the command says what is accepted
        parse_seeds(text)


def test_a_member_gets_all_options_but_those_of_the_study():
    given = [
        "--env",
        "X",
        "--seeds",
        "1:5",
        "--run-dir=a b",
        "--set",
        "a=--seeds",
        "--parallel",
        "2",
    ]
    names = {"--seeds", "--run-dir", "--parallel"}
    assert without_options(given, names) == ["--env", "X", "--set", "a=--seeds"]


def test_a_run_that_goes_on_gets_the_options_that_no_run_directory_holds(
    tmp_path: Path, eventually: Callable[..., Any]
):
    given = ["--env", "X", "--dask", "tcp://s:8786", "--dask-pin=learner=gpu", "--set", "a=--yes",
             "--no-replay", "--time", "9s", "--bind", "*"]  # fmt: skip
    lasting = lasting_options(given)
    assert lasting == [
        "--dask",
        "tcp://s:8786",
        "--dask-pin=learner=gpu",
        "--no-replay",
        "--bind",
        "*",
    ]
    script = tmp_path / "pdqn" / "__main__.py"
    script.parent.mkdir()
    script.write_text("import sys; print(*sys.argv[1:])", encoding="utf-8")
    script.with_name("__init__.py").touch()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.toml").touch()
    for name, begins in (
        ("new", ["--run-dir", "new", *given]),
        ("old", ["--resume", "old", *lasting]),
    ):
        with contextlib.chdir(tmp_path):
            member = Member(name, Path(name), given, "off", lasting=lasting)
            assert eventually(lambda found=member: found.look() is not None)
        words = (tmp_path / f"{name}.out").read_text(encoding="utf-8").split()
        assert words == ["launch", *begins, "--console", "off", "--interrupt-exit", "130"]


def test_runs_at_the_same_time_share_cores_and_memory():
    assert shares_of([0, 1, 4, 5, 6], 2) == [{0, 1}, {4, 5, 6}]
    assert memory_options(["--steps", "9"], 2) == ["--set", "replay.memory=25%"]
    assert memory_options(["--set", "replay.capacity=100k"], 2) == []
    assert memory_options(["--steps", "9"], 1) == []
    with pytest.raises(UsageError, match="--parallel 3: this machine has 2 usable cores"):
        shares_of([0, 1], 3)


def test_the_scores_of_seeds_are_summed_up_with_a_standard_error(tmp_path: Path):
    for seed, score in ((1, 10.0), (2, 14.0), (3, 12.0)):
        run = made(tmp_path / f"seed{seed}", started=float(seed), run__seed=seed)
        ended(run, environment={"return_mean": score}, error="" if seed < 4 else None)
    made(tmp_path / "seed4", started=4.0, run__seed=4)
    lines = summary_lines(runs_below(tmp_path), [1, 2, 3, 4, 5])
    assert [line.split()[2] for line in lines[:4]] == ["done", "done", "done", "killed"]
    assert lines[4:] == ["seed 5    not run", "return over 3 seeds: 12.0 ± 1.2"]


def test_a_run_is_complete_when_it_came_to_its_limit(tmp_path: Path):
    run = made(tmp_path / "run")
    assert not is_complete(run)
    for reason, error, complete in (
        ("time", None, True), ("steps", None, True), ("interrupted", None, False),
        ("stop_at", None, True), ("failed", "no actor", False), ("time", "not saved", False),
    ):  # fmt: skip
        ended(run, exit_reason=reason, error=error)
        assert is_complete(run) is complete


def test_seeds_run_one_after_another_and_those_that_are_complete_stay(
    pdqn_command: StartCommand, tmp_path: Path
):
    with pdqn_command(*RUN, "--steps", "150", "--seeds", "1:2", directory=tmp_path) as command:
        assert command.wait() == 0, command.stderr
    assert "return over 2 seeds: " in command.stdout
    summaries = [tmp_path / "study" / f"seed{seed}" / "summary.json" for seed in (1, 2)]
    before = [path.stat().st_mtime_ns for path in summaries]
    assert [json.loads(path.read_text("utf-8"))["seed"] for path in summaries] == [1, 2]
    with pdqn_command(*RUN, "--steps", "150", "--seeds", "1:2", directory=tmp_path) as command:
        assert command.wait() == 0, command.stderr
    assert [path.stat().st_mtime_ns for path in summaries] == before


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [1, 2])
def test_ctrl_c_ends_the_study_and_the_same_command_goes_on(
    pdqn_command: StartCommand, tmp_path: Path, eventually: Callable[..., Any], parallel: int
):
    options = [*RUN, "--time", "8s", "--seeds", "1:3"]
    options += ["--parallel", "2"] if parallel == 2 else []
    with pdqn_command(*options, directory=tmp_path) as command:
        for seed in range(1, parallel + 1):  # that two begin together does not mean in this order
            eventually((tmp_path / "study" / f"seed{seed}" / "state.json").exists, 60)
        command.interrupt()
        assert command.wait() == 130
        assert "the same command with --run-dir goes on" in command.stderr
    states = {run.seed: run.state for run in runs_below(tmp_path / "study")}
    assert states == dict.fromkeys(range(1, parallel + 1), "interrupted")
    with pdqn_command(*options, directory=tmp_path) as command:
        assert command.wait() == 0, command.stderr
    assert [run.state for run in runs_below(tmp_path / "study")] == ["done"] * 3
    first = json.loads((tmp_path / "study" / "seed1" / "summary.json").read_text("utf-8"))
    assert first["sessions"] == 2


def test_what_does_not_go_with_seeds_is_refused(pdqn_command: StartCommand, tmp_path: Path):
    for options, told in (
        (["--seeds", "1:5", "--seed", "1"], "--seed does not go with --seeds 1:5"),
        (["--seeds", "five"], "--seeds five: expected FIRST:LAST such as 1:5, or 1,3,7"),
        (["--parallel", "2"], "--parallel 2 is for several runs: give --seeds"),
        (["--seeds", "1:2", "--parallel", "2", "--bind", "*"], "--bind does not go with"),
    ):
        with pdqn_command("launch", *options, directory=tmp_path) as command:
            assert command.wait() == 2
        assert told in command.stderr


def test_a_program_is_told_that_a_run_was_interrupted(
    pdqn_command: StartCommand, tmp_path: Path, eventually: Callable[..., Any]
):
    options = [*RUN, "--time", "60s", "--interrupt-exit", "130"]
    with pdqn_command(*options, directory=tmp_path) as command:
        eventually((tmp_path / "study" / "state.json").exists, 60)
        command.interrupt()
        assert command.wait() == 130
    assert runs_below(tmp_path / "study")[0].state == "interrupted"


def test_a_member_that_is_told_to_end_when_it_has_ended_counts_as_interrupted(
    tmp_path: Path, eventually: Callable[..., Any]
):
    script = tmp_path / "pdqn" / "__main__.py"
    script.parent.mkdir()
    script.write_text("import time; time.sleep(60)", encoding="utf-8")
    with contextlib.chdir(tmp_path):
        member = Member("one", tmp_path / "run", [], "off")
        member.stop_now()
        assert eventually(member.look) == EXIT_INTERRUPTED
