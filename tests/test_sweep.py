"""Searches for settings: the file, trials as runs, pruning, interruption, and what is shown."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from launcher.interrupts import Interrupts
from launcher.studies import sweep as sweeping
from launcher.studies.members import EXIT_INTERRUPTED
from launcher.studies.shown import importances, show_sweep
from launcher.studies.space import Sweep, sweep_of
from launcher.studies.sweep import Study, open_study
from pdqn import layers
from pdqn.errors import RunError, UsageError

if TYPE_CHECKING:
    from conftest import StartCommand

KNOWN = {name for name, *_ in layers.settings()}
FILE = """
env = "CartPole-v1"
trials = 6
options = ["--time", "30s"]
sampler = "random"
startup = 2

[settings]
"learner.double" = true

[search."learner.learning_rate"]
low = 1e-4
high = 1e-2
log = true

[search."actor.n_step"]
low = 1
high = 5

[search."network.hidden"]
choices = [32, 64]
"""


def read(text: str) -> Sweep:
    return sweep_of("a.toml", tomllib.loads(text), KNOWN)


# ---- the file ----


def test_a_trial_is_a_run_with_the_settings_of_all_and_those_it_has_chosen():
    sweep = read(FILE)
    assert sweep.options_of({"actor.n_step": 3, "learner.learning_rate": 0.5}) == [
        "--env", "CartPole-v1", "--time", "30s", "--set", "learner.double=true",
        "--set", "actor.n_step=3", "--set", "learner.learning_rate=0.5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("trials = 6", "trials = 0"), "a.toml: trials = 0; expected a whole number from 1 up"),
        (("trials = 6", ""), "a.toml: trials = None"),
        (("trials = 6", "trial = 6"), "a.toml: unknown key trial"),
        (('"random"', '"best"'), "sampler = 'best'; expected grid, random, tpe"),
        (('"random"', '"grid"'), "sampler = 'grid': every setting needs choices"),
        (('options = ["--time", "30s"]', 'options = "--time 30s"'), "expected a list of texts"),
        (('"actor.n_step"', '"actor.nstep"'), "there is no setting actor.nstep"),
        (('"learner.double"', '"double"'), "settings: there is no setting double"),
        (("low = 1\n", "low = 7\n"), "search.actor.n_step: low = 7, high = 5"),
        (("low = 1e-4", "low = 0"), "search.learner.learning_rate: log = True"),
        (("[32, 64]", "[]"), "search.network.hidden: choices"),
        (("[32, 64]", "[[1]]"), "expected numbers, texts, true or false"),
        (("high = 5", "high = 5\nmiddle = 3"), "expected a table with choices, or with low"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(change: tuple[str, str], told: str):
    assert change[0] in FILE
    with pytest.raises(UsageError) as refused:
        read(FILE.replace(*change))
    assert told in str(refused.value)


# ---- trials ----


class Runs:
    """Runs that end at once, in place of processes."""

    def __init__(self, scores: Callable[[int], Sequence[float]], codes: Sequence[int] = ()) -> None:
        self.scores, self.codes = scores, list(codes)
        self.started: list[tuple[str, list[str]]] = []
        self.stopped: list[str] = []
        self.lasting: list[str] = []

    def __call__(
        self,
        name: str,
        run_dir: Path,
        options: list[str],
        console: str,
        share: Any,
        lasting: Sequence[str],
    ) -> Runs.Run:
        self.started.append((name, options))
        self.lasting = [*lasting]
        code = self.codes.pop(0) if self.codes else 0
        return Runs.Run(self, name, run_dir, self.scores(int(name.split()[1])), code)

    class Run:
        """One of them, which tells one evaluation at every look."""

        def __init__(
            self, runs: Runs, name: str, run_dir: Path, scores: Sequence[float], code: int
        ) -> None:
            self.runs, self.name, self.run_dir = runs, name, run_dir
            self.code: int | None = None
            self.left, self._ends = list(scores), code
            run_dir.mkdir(parents=True, exist_ok=True)
            self._lines = 0

        def look(self) -> int | None:
            if not self.left:
                self.code = self._ends
                return self.code
            self._lines += 1
            line = {"environment_steps": self._lines, "eval/return_mean": self.left.pop(0)}
            with (self.run_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            return None

        def stop_now(self) -> None:
            self.runs.stopped.append(self.name)
            self.left.clear()

        def end(self) -> None:
            self.left.clear()
            self._ends = EXIT_INTERRUPTED

        def kill(self) -> None:
            self.left.clear()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(sweeping, "pause", lambda: None)
    monkeypatch.setattr(sweeping, "_LOOK_SECONDS", 0.0)
    return monkeypatch


def states(directory: Path) -> list[str]:
    trials = open_study(directory).get_trials(deepcopy=False)
    return [trial.state.name.lower() for trial in trials]


def test_trials_run_until_there_are_enough_and_the_best_is_known(
    tmp_path: Path, quick: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    runs = Runs(lambda index: [float(index), 10.0 + index])
    quick.setattr(sweeping, "Member", runs)
    study = Study(read(FILE), tmp_path / "s", ("--dask", "local"))
    assert study.run(Interrupts()) == 0
    assert states(tmp_path / "s") == ["complete"] * 6
    assert [name for name, _ in runs.started] == [f"trial {index}" for index in range(6)]
    options = runs.started[0][1]
    assert options[-2:] == runs.lasting == ["--dask", "local"]
    assert any(option.startswith("learner.learning_rate=") for option in options)
    assert open_study(tmp_path / "s").best_value == 15.0
    assert "best 15.0 (trial 5)" in capsys.readouterr().out
    assert Study(read(FILE), tmp_path / "s").run(Interrupts()) == 0
    assert len(runs.started) == 6, "it has all that it was to have"


def test_runs_that_are_worse_than_others_are_pruned(tmp_path: Path, quick: pytest.MonkeyPatch):
    runs = Runs(lambda index: [1.0] * 9 if index == 3 else [5.0 + index] * 9)
    quick.setattr(sweeping, "Member", runs)
    assert Study(read(FILE), tmp_path).run(Interrupts()) == 0
    assert runs.stopped == ["trial 3"]
    assert states(tmp_path).count("pruned") == 1
    pruned = open_study(tmp_path).get_trials(deepcopy=False)[3]
    assert len(pruned.intermediate_values) < 9


def test_an_interrupted_trial_goes_on_with_what_it_had_chosen(
    tmp_path: Path, quick: pytest.MonkeyPatch
):
    interrupts = Interrupts()

    def scores(index: int) -> list[float]:
        interrupts.count = int(index == 2)
        return [1.0, 2.0]

    runs = Runs(scores)
    quick.setattr(sweeping, "Member", runs)
    assert Study(read(FILE), tmp_path).run(interrupts) == EXIT_INTERRUPTED
    assert states(tmp_path) == ["complete", "complete", "running"]
    before = runs.started[2]
    again = Runs(lambda index: [3.0])
    quick.setattr(sweeping, "Member", again)
    assert Study(read(FILE), tmp_path).run(Interrupts()) == 0
    assert again.started[0] == before
    assert states(tmp_path) == ["complete"] * 6


def test_runs_that_fail_do_not_count_as_scores_and_three_in_a_row_end_the_sweep(
    tmp_path: Path, quick: pytest.MonkeyPatch
):
    quick.setattr(sweeping, "Member", Runs(lambda _: [1.0], codes=[1, 0, 1, 1, 1]))
    with pytest.raises(RunError, match="3 trials in a row have failed"):
        Study(read(FILE), tmp_path).run(Interrupts())
    assert states(tmp_path) == ["fail", "complete", "fail", "fail", "fail"]


def test_trials_at_the_same_time_are_no_more_than_asked_for(
    tmp_path: Path, quick: pytest.MonkeyPatch
):
    quick.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    runs = Runs(lambda _: [1.0] * 3)
    quick.setattr(sweeping, "Member", runs)
    assert Study(read(FILE), tmp_path, parallel=3).run(Interrupts()) == 0
    assert len(runs.started) == 6
    assert all("replay.memory=16%" in options for _, options in runs.started)


def test_another_process_does_not_run_the_same_sweep(tmp_path: Path):
    with (
        sweeping._alone(tmp_path),
        pytest.raises(UsageError, match="another process runs this sweep"),
    ):
        Study(read(FILE), tmp_path).run(Interrupts())


def test_a_sweep_is_shown_with_its_best_trials_first_and_what_matters(
    tmp_path: Path, quick: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    runs = Runs(lambda index: [5.0 * (index % 3) + index])
    quick.setattr(sweeping, "Member", runs)
    study = Study(read(FILE.replace("trials = 6", "trials = 9")), tmp_path)
    assert study.run(Interrupts()) == 0
    weights = importances(open_study(tmp_path))
    assert weights.keys() <= {"learner.learning_rate", "actor.n_step", "network.hidden"}
    assert sum(weights.values()) == pytest.approx(1.0)
    capsys.readouterr()
    assert show_sweep(tmp_path) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["trial", "state", "score", "settings", "run"]
    assert [line.split()[0] for line in lines[:2]] == ["8", "5"]
    assert "importance" in lines[9]
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    with pytest.raises(UsageError, match="holds no sweep"):
        show_sweep(tmp_path / "nothing")


def test_a_sweep_whose_trials_score_alike_says_that_no_setting_matters_yet(
    tmp_path: Path, quick: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    quick.setattr(sweeping, "Member", Runs(lambda _index: [5.0]))
    assert Study(read(FILE), tmp_path).run(Interrupts()) == 0
    capsys.readouterr()
    assert show_sweep(tmp_path) == 0
    assert "importance  not known: it takes three complete trials" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_of_real_runs_is_pruned_interrupted_and_resumed(
    pdqn_command: StartCommand, tmp_path: Path, eventually: Callable[..., Any]
):
    text = FILE.replace("trials = 6", "trials = 12").replace('"30s"', '"8s"')
    text = text.replace("[settings]\n", '[settings]\n"evaluation.period_seconds" = 1\n')
    (tmp_path / "cartpole.toml").write_text(text, encoding="utf-8")
    folder = tmp_path / "runs" / "sweeps" / "cartpole"
    with pdqn_command("sweep", "cartpole.toml", directory=tmp_path) as command:
        eventually((folder / "trial-0003" / "state.json").exists, 100)
        command.interrupt()
        assert command.wait() == EXIT_INTERRUPTED, command.stderr
    assert states(folder).count("running") == 1
    with pdqn_command("sweep", "cartpole.toml", directory=tmp_path) as command:
        assert command.wait(400) == 0, command.stderr
    found = states(folder)
    assert len(found) == 12
    assert set(found) <= {"complete", "pruned"}
    assert found.count("pruned") >= 1
    with pdqn_command("sweep", "cartpole.toml", "--show", directory=tmp_path) as command:
        assert command.wait() == 0, command.stderr
    assert "importance" in command.stdout
