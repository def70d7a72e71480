"""Runs from Python: what a program may ask for, and what it sees and decides meanwhile."""

from __future__ import annotations

import io
import math
import os
import re
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
from driven import start_script
from test_console import snapshot as seen

import pdqn
from launcher.cli import options
from launcher.console.driven import DrivenConsole
from pdqn import layers
from pdqn.driver import child, columns, display
from pdqn.driver import run as run_module
from pdqn.driver.callables import name_of
from pdqn.driver.settings import Options, request
from pdqn.errors import RunError, UsageError

ROOT = Path(__file__).parents[1]
Play = Callable[..., Callable[..., pdqn.Run]]


def asked(env: Any = None, time: Any = None, config: Any = None, **given: Any) -> Any:
    return request(env, time, Options(config=config), given)


# ---- settings ----


def test_settings_have_the_names_of_the_file_and_of_the_options():
    found = asked(
        "CartPole-v1",
        "2m",
        {"learner": {"batch_size": 16}, "run": {"seed": 3}, "mode": "single"},
        seed=4,
        actors=2,
        learner={"learning_rate": "1e-3"},
        network={"hidden": None},
    )
    config = layers.build(*found.layers)
    assert (config.run.env, config.run.time_seconds, config.run.seed) == ("CartPole-v1", 120.0, 4)
    assert config.run.mode == "single"
    assert (config.actor.count, config.learner.batch_size) == (2, 16)
    assert (config.learner.learning_rate, config.network.hidden) == (0.001, None)


def test_what_a_program_asks_for_reaches_the_command_as_it_is():
    arguments = {"level": np.int64(3), "name": "64", "share": math.inf}
    found = asked("CartPole-v1", 1.5, env_args=arguments, steps=np.int64(7))
    line = child.json.dumps(found.layers)
    read = options._read_given(io.StringIO(line + "\nstop\n"))
    run = layers.build(*read).run
    assert (run.env_args, run.steps, run.time_seconds) == (
        {"level": 3, "name": "64", "share": math.inf}, 7, 1.5,
    )  # fmt: skip


def test_a_person_who_types_into_a_driven_run_is_told():
    with pytest.raises(UsageError, match="standard input begins with another line"):
        options._read_given(io.StringIO("hello\n"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"learner": {"batch_size": 0}}, r"argument: learner.batch_size = 0; expected a whole"),
        ({"learner": {"batch": 1}}, r"argument: unknown key learner.batch; learner has"),
        ({"learner": 3}, r"argument: learner = 3; expected a dict .* learner=\{'batch_size'"),
        ({"learning_rate": 1}, r"learning_rate; write learner=\{'learning_rate': ...\}"),
        ({"period_seconds": 1}, r"write evaluation=\{.*\} or checkpoint=\{'period_seconds'"),
        ({"learnin_rate": 1}, r"did you mean learning_rate: learner=\{'learning_rate': ...\}\?"),
        ({"sed": 1}, r"argument: unknown setting sed; did you mean seed\?"),
        ({"xyzzy": 1}, r"argument: unknown setting xyzzy; pdqn settings lists"),
        ({"time": "soon"}, r"argument: time: 'soon' is not a duration; write 90s"),
        ({"time": 0}, r"argument: time: '0.0'; expected a finite time above zero"),
        ({"actors": 1, "actor": {"count": 2}}, r"actors is given twice: also as actor="),
        ({"env": 3}, r"environment 3 is neither a name nor a function"),
        ({"stop_at": "retrn=3"}, r"run.stop_at = 'retrn=3'; expected FIGURE=VALUE"),
        ({"config": {"lerner": {}}}, r"config: unknown setting lerner; did you mean learner\?"),
    ],
)
def test_what_is_not_known_is_refused_in_the_words_of_the_command(given: Any, words: str):
    with pytest.raises(UsageError, match=words):
        asked(**given)


# ---- functions ----


def make() -> None:
    """An environment's maker, at the top level of a module."""


class Makers:
    @staticmethod
    def make() -> None:
        pass


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a person's, which is imported already."""
    (tmp_path / "own.py").write_text("def make(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    import own  # pyright: ignore[reportMissingImports]

    return own


def test_a_function_of_a_module_is_named_with_the_folder_where_it_is(
    tmp_path: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    assert name_of("environment", module.make) == ("own:make", str(tmp_path.resolve()))
    found = asked(module.make, network=module.make)
    config = layers.build(*found.layers)
    assert (config.run.env, config.network.kind) == ("own:make", "own:make")
    assert found.folders == [str(tmp_path.resolve())]
    # A run searches the current directory anyway.
    monkeypatch.chdir(tmp_path)
    assert name_of("environment", module.make) == ("own:make", None)


def test_a_script_is_named_by_its_file(module: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(module.make, "__module__", "__main__")
    module.__spec__ = None
    assert name_of("environment", module.make)[0] == "own:make"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda: None, "it is a lambda"),
        (Makers.make, "it is inside a function or class"),
        (partial(make), "it is neither a function nor a class"),
    ],
)
def test_what_no_process_could_import_is_refused_with_what_to_do(function: Any, reason: str):
    with pytest.raises(UsageError, match=f"{reason}; write it at the top level of a module"):
        asked(function)


def test_a_function_of_a_notebook_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    notebook = ModuleType("__main__")
    exec("def make(): ...", vars(notebook))
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    with pytest.raises(UsageError, match=r"in a notebook; write it .* %%writefile my_code.py"):
        asked(notebook.make)


def test_a_function_that_its_module_has_replaced_is_refused(module: ModuleType):
    before = module.make
    vars(module)["make"] = None
    with pytest.raises(UsageError, match="own has another make"):
        asked(before)


# ---- the command's side ----


def driven(*orders: str, at_end: bool = False) -> tuple[DrivenConsole, io.StringIO]:
    """A console that has read these orders; without an end there may be more of them."""
    out, reading = io.StringIO(), threading.Event()

    class Orders(io.StringIO):
        def readline(self, *_: Any) -> str:
            raise AssertionError

        def __iter__(self) -> Any:
            yield from (f"{order}\n" for order in orders)
            reading.set()
            if not at_end:
                threading.Event().wait(20)

    console = DrivenConsole(out, Orders(), lambda: 0.0)
    assert reading.wait(20)
    return console, out


def test_orders_wait_until_the_run_has_begun(eventually: Any):
    console, _ = driven("pause", "pause", "save", "nonsense", "resume", "finish")
    assert console.pressed() == []
    console.update(seen(stage="running"))
    # A key changes sides; an order says which one.
    assert console.pressed() == ["p", "s", "p", "finish"]
    assert console.pressed() == []


def test_a_pause_of_a_paused_run_changes_nothing():
    console, _ = driven("pause", "resume")
    console.update(seen(stage="paused"))
    assert console.pressed() == ["p"]


def test_a_run_whose_program_has_gone_is_stopped_at_any_stage(eventually: Any):
    stopped, _ = driven("stop")
    orphan, _ = driven(at_end=True)
    for console in (stopped, orphan):
        assert eventually(console.pressed) == ["q"]


def test_a_driven_run_says_what_programs_and_people_read():
    console, out = driven()
    console.message("hello")
    console.update(seen(stage="running"))
    console.finish({"exit_reason": "time"}, None)
    lines = [child.json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["message", "progress", "summary"]
    assert lines[1]["figures"]["environment_steps"] > 0
    assert "steps" in lines[1]["line"]
    assert len(lines[1]["line"]) < 200


# ---- the program's side, with a stand-in for the run ----


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Start ``pdqn.launch`` or ``pdqn.train`` with a script in the place of the run."""

    def play(script: str) -> Callable[..., pdqn.Run]:
        monkeypatch.setattr(child, "start", start_script(tmp_path / "run", script))
        return pdqn.train

    return play


def test_a_program_sees_every_stage_and_every_evaluation(play: Play):
    train = play(
        "figures('starting'); evaluate(5.0); evaluate(6.0);"
        "figures('running', **{'train/loss': None, 'time/fps': 3}); evaluate(7.0);"
        "figures('done'); end()"
    )
    stages, means, ends = [], [], []
    run = train(
        "CartPole-v1",
        on_snapshot=lambda s: stages.append(s.stage),
        on_evaluation=lambda e: means.append(e["eval/return_mean"]),
        on_end=ends.append,
    )
    assert stages[-1] == "done"
    assert means == [5.0, 6.0, 7.0]
    assert ends == [run]
    assert run.summary == run.wait() == {"exit_reason": "time"}
    assert not run.is_running
    # Whoever looks later sees the last state.
    assert [s.stage for s in run] == ["done"]


def test_figures_that_are_not_known_compare_as_false_and_wrong_names_are_told(play: Play):
    train = play("evaluate(6.0); figures('done', **{'train/loss': None, 'time/fps': 3}); end()")
    (last,) = train("CartPole-v1")
    assert (last["time/fps"], last["eval/return_mean"], last["time_seconds"]) == (3.0, 6.0, 1.5)
    assert not last["train/loss"] >= 0
    assert not last["rollout/ep_rew_mean"] >= 0
    with pytest.raises(KeyError, match="rollout/ep_rew_mean"):
        last["ep_rew_mean"]
    assert set(last) == {"time/fps", "train/loss", "eval/parameter_version",
                         "eval/return_mean", "time_seconds"}  # fmt: skip


def test_a_run_that_goes_on_tells_of_no_evaluation_twice(play: Play, tmp_path: Path):
    means: list[float] = []
    for mean, resume in ((5.0, None), (6.0, tmp_path / "run")):
        play(f"figures('running'); evaluate({mean}); figures('done'); end()")
        pdqn.train(resume=resume, on_evaluation=lambda e: means.append(e["eval/return_mean"]))
    assert means == [5.0, 6.0]


def test_a_condition_ends_the_run_as_a_limit_does(play: Play):
    train = play(
        "figures('running')\nfor line in sys.stdin:\n"
        "    (path / 'order').write_text(line); end('stop_when')"
    )
    run = train("CartPole-v1", stop_when=lambda s: s.stage == "running")
    assert (run.path / "order").read_text() == "finish\n"
    assert run.summary == {"exit_reason": "stop_when"}


@pytest.mark.parametrize(("code", "kind"), [(2, UsageError), (1, RunError)])
def test_a_run_that_cannot_begin_raises_what_the_command_says(play: Play, code: int, kind: Any):
    train = play(f"print('pdqn: there is no disk', file=sys.stderr); sys.exit({code})")
    with pytest.raises(kind, match=r"^there is no disk$"):
        train("CartPole-v1")


def test_a_run_that_fails_raises_why_and_says_where_it_is(play: Play, tmp_path: Path):
    train = play("figures('running'); end('failed', 1, 'no actor can be kept alive')")
    with pytest.raises(RunError, match=r"^no actor can be kept alive") as raised:
        train("CartPole-v1")
    assert str(tmp_path / "run") in raised.value.__notes__[0]


WAITS = "figures('running')\nfor line in sys.stdin: pass\ntime.sleep(60)"


@pytest.mark.parametrize("fault", [ZeroDivisionError, KeyboardInterrupt])
def test_what_a_callback_or_a_person_raises_ends_the_run_first(play: Play, fault: Any):
    def raising(_: Any) -> None:
        raise fault

    ends = []
    with pytest.raises(fault) as raised:
        play(WAITS)("CartPole-v1", on_snapshot=raising, on_end=ends.append)
    assert "the run is in" in raised.value.__notes__[0]
    (run,) = ends
    assert (run.is_running, run.summary) == (False, {"exit_reason": "interrupted"})


def test_callbacks_of_a_run_in_the_background_end_it_and_are_heard_by_who_waits(play: Play):
    play(WAITS)
    ends = []

    def raising(_: Any) -> None:
        raise ZeroDivisionError

    run = pdqn.launch("CartPole-v1", on_snapshot=raising, on_end=ends.append)
    with pytest.raises(ZeroDivisionError):
        run.wait(60)
    assert ends == [run]


def test_who_waits_for_a_run_waits_no_longer_than_asked(play: Play):
    play(WAITS)
    run = pdqn.launch("CartPole-v1")
    with pytest.raises(TimeoutError, match=r"the run goes on after 0\.1 s"):
        run.wait(0.1)
    assert run.stop() == run.stop() == {"exit_reason": "interrupted"}
    for order in (run.pause, run.resume, run.save):
        with pytest.raises(RunError, match="the run has ended"):
            order()


def test_a_program_that_has_found_pdqn_by_its_path_starts_the_same_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("PYTHONPATH", "given")
    paths: list[str] = []

    def note(_: Any, env: Any, **others: Any) -> None:
        paths.append(env["PYTHONPATH"])

    monkeypatch.setattr(child.subprocess, "Popen", note)
    for entry in ("elsewhere", str(child.ROOT)):
        monkeypatch.setattr(sys, "path", [entry])
        child.start([], ["own"])
    assert paths == [f"given{os.pathsep}own", f"given{os.pathsep}own{os.pathsep}{child.ROOT}"]


def test_an_order_waits_for_a_run_that_starts_and_gives_up_one_that_does_not_obey(
    play: Play, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_module, "_ORDER_SECONDS", 0.2)
    play(
        "figures('starting'); order = sys.stdin.readline(); time.sleep(0.5)\n"
        "figures('paused' if order == 'pause\\n' else order); time.sleep(60)"
    )
    run = pdqn.launch("CartPole-v1")
    run.pause()
    assert run.snapshot.stage == "paused"
    with pytest.raises(RunError, match=r"resume: nothing has happened for 0\.2 s"):
        run.resume()
    run.stop()


def test_a_script_that_a_run_imports_does_not_start_another(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(child.WITHIN, "1")
    with pytest.raises(UsageError, match="below `if __name__ == '__main__':`"):
        pdqn.launch("CartPole-v1")


def test_results_of_any_run_can_be_read(tmp_path: Path):
    with pytest.raises(UsageError, match="is not a run directory"):
        pdqn.Run(tmp_path)
    (tmp_path / "config.toml").touch()
    run = pdqn.Run(tmp_path)
    assert (run.summary, run.metrics(frame=False), run.is_running) == ({}, {}, False)
    for needs in (run.wait, run.stop, lambda: next(iter(run))):
        with pytest.raises(RunError, match="this program has not started the run"):
            needs()


PAGES = [ROOT / "README.md", ROOT / "docs" / "python.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_the_pages_runs_as_it_is_written(
    page: Path, play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    play("figures('running'); evaluate(480.0); figures('done'); end()")
    (tmp_path / "my_games.py").write_text("class MyEnv: ...\ndef make_network(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(run_module, "output_of", lambda *_: '{"return_mean": 480.0}')

    class Actor:
        def act(self, observation: Any) -> Any:
            return np.zeros(np.shape(observation)[:-1], np.int64)

    monkeypatch.setattr("pdqn.policy.load_policy", lambda *_, **__: Actor())
    names: dict[str, Any] = {"gymnasium": gymnasium, "observation": np.zeros(4)}
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert any("pdqn.train(" in block for block in blocks)
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
    sys.modules.pop("my_games", None)


# ---- columns and displays ----

LINES = (
    b'{"time_seconds": 1, "train/loss": null}\n'
    b'{"time_seconds": 2, "eval/parameter_version": 3, "eval/return_mean": 4.5}\n'
    b'{"time_seconds": 3, "train/loss": 0.5}\n'
    b'{"time_seconds": 4, "tra'
)


def test_figures_are_columns_of_training_and_of_evaluations(tmp_path: Path):
    (tmp_path / "config.toml").touch()
    (tmp_path / "metrics.jsonl").write_bytes(LINES)
    run = pdqn.Run(tmp_path)
    found = run.metrics(frame=False)
    np.testing.assert_array_equal(found["time_seconds"], [1.0, 3.0])
    np.testing.assert_array_equal(found["train/loss"], [np.nan, 0.5])
    assert run.evaluations(frame=False)["eval/return_mean"].tolist() == [4.5]
    assert run.metrics(frame=True)["train/loss"].dropna().tolist() == [0.5]


def test_a_line_that_is_being_written_is_read_later(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    assert columns.read_lines(file) == ([], 0)
    file.write_bytes(LINES)
    lines, end = columns.read_lines(file)
    assert (len(lines), end) == (3, LINES.rindex(b"\n") + 1)
    file.write_bytes(LINES + b'in/loss": 1}\n')
    assert columns.read_lines(file, end)[0] == [{"time_seconds": 4, "train/loss": 1}]


def test_a_terminal_has_one_line_below_the_messages(capsys: pytest.CaptureFixture[str], play: Play):
    train = play("print(json.dumps({'event': 'message', 'text': 'careful\\x1b['})); "
                 "figures('done\x1b[2J'); end()")  # fmt: skip
    train("CartPole-v1", show=True)
    shown = capsys.readouterr().err
    assert "careful\\x1b[\n" in shown
    assert shown.endswith("\r\x1b[Kdone\\x1b[2J\n")


def test_nobody_is_shown_anything_where_nobody_looks(capsys: pytest.CaptureFixture[str]):
    assert isinstance(display.make_display(None), display.Nowhere)
    assert isinstance(display.make_display(False), display.Nowhere)
