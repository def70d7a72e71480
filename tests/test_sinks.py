"""Other destinations of a run's figures, which never stop the run."""

from __future__ import annotations

import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_end_to_end import free_port

from launcher.about import ABOUT, About
from launcher.records.sinks import PrometheusSink, WandbSink, check_sinks, make_sinks, metric_name
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.layers import build

Eventually = Callable[..., Any]


class FakeRun:
    def __init__(self, fails_at: int = -1) -> None:
        self.lines: list[dict[str, Any]] = []
        self.finished = False
        self._fails_at = fails_at

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "environment_steps")

    def log(self, line: dict[str, Any]) -> None:
        if len(self.lines) == self._fails_at:
            raise ConnectionError("no network")
        self.lines.append(line)

    def finish(self) -> None:
        self.finished = True


def install(monkeypatch: pytest.MonkeyPatch, init: Callable[..., Any]) -> None:
    module = ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    module.Settings = lambda **settings: settings  # type: ignore[attr-defined]
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "key")
    monkeypatch.setitem(sys.modules, "wandb", module)


def test_lines_reach_weights_and_biases_as_numbers(tmp_path: Path, monkeypatch: Any):
    run, started = FakeRun(), {}

    def init(**arguments: Any) -> FakeRun:
        started.update(arguments)
        return run

    install(monkeypatch, init)
    said: list[str] = []
    sink = WandbSink(Config(), tmp_path, said.append)
    sink.write({"environment_steps": 8, "train/loss": 0.5, "episodes_recent": [1.0]})
    sink.close()
    assert run.lines == [{"environment_steps": 8, "train/loss": 0.5}]
    assert run.finished
    assert started["name"] == tmp_path.name
    assert started["config"]["run"]["env"] == Config().run.env
    assert started["settings"] == {"console": "off", "silent": True}
    assert said == []


@pytest.mark.parametrize("when", ["at the start", "later"])
def test_its_failures_are_said_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
):
    def init(**_: Any) -> FakeRun:
        if when == "at the start":
            raise ConnectionError("no network")
        return FakeRun(fails_at=1)

    install(monkeypatch, init)
    said: list[str] = []
    sink = WandbSink(Config(), tmp_path, said.append)
    for step in range(4):
        sink.write({"environment_steps": step})
    sink.close()
    assert said[0] == "Weights & Biases takes no more: ConnectionError: no network"
    assert "did not take" in said[1]
    assert len(said) == 2


def test_after_a_failure_the_same_run_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
):
    runs, ids = [FakeRun(fails_at=1), FakeRun()], []

    def init(**arguments: Any) -> FakeRun:
        ids.append(arguments["id"])
        return runs[len(ids) - 1]

    install(monkeypatch, init)
    monkeypatch.setattr("launcher.records.sinks._FIRST_RETRY_SECONDS", 0.0)
    said: list[str] = []
    sink = WandbSink(Config(), tmp_path, said.append)
    for step in range(2):
        sink.write({"environment_steps": step})
    eventually(lambda: len(ids) == 2)
    sink.write({"environment_steps": 2})
    sink.close()
    assert [run.lines for run in runs] == [[{"environment_steps": 0}], [{"environment_steps": 2}]]
    assert len(set(ids)) == 1
    assert said == [
        "Weights & Biases takes no more: ConnectionError: no network",
        "Weights & Biases takes lines again, 1 were left out",
        "Weights & Biases did not take 1 lines",
    ]


def started_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **system: Any) -> dict[str, Any]:
    """Start a run there, and return the arguments with which it was."""
    given: dict[str, Any] = {}

    def init(**arguments: Any) -> FakeRun:
        given.update(arguments)
        return FakeRun()

    install(monkeypatch, init)
    config = build(("test", {"system": {"wandb": True, **system}}))
    WandbSink(config, tmp_path, print).close()
    return given


def test_a_run_there_is_called_as_a_person_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("PROJECT", "NAME", "TAGS", "RUN_GROUP", "RUN_ID", "NOTES"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    given = started_with(tmp_path, monkeypatch)
    assert (given["project"], given["name"]) == ("pdqn", tmp_path.name)
    assert not {"group", "tags", "notes"} & given.keys()
    words = About("three steps", ("paper",), ("with a large step size",))
    (tmp_path / ABOUT).write_text(words.text, encoding="utf-8")
    given = started_with(tmp_path, monkeypatch, wandb_project="mine", wandb_group="steps")
    assert (given["project"], given["group"]) == ("mine", "steps")
    assert (given["name"], given["tags"]) == ("three steps", ["paper"])
    assert given["notes"] == "with a large step size"


def test_its_usual_variables_are_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("PROJECT", "NAME", "NOTES"):
        monkeypatch.setenv(f"WANDB_{name}", "of a variable")
    monkeypatch.setenv("WANDB_TAGS", "a,b")
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    given = started_with(tmp_path, monkeypatch)
    assert not {"project", "name", "notes"} & given.keys()
    assert (given["tags"], given["id"]) == (["a", "b"], "given")


def test_a_resumed_run_goes_on_in_the_same_run_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    first = started_with(tmp_path, monkeypatch)
    again = started_with(tmp_path, monkeypatch)
    assert first["id"] == again["id"]
    assert again["resume"] == "allow"
    (tmp_path / "wandb_id").write_text("../../elsewhere", encoding="utf-8")
    assert started_with(tmp_path, monkeypatch)["id"] not in (first["id"], "../../elsewhere")


@pytest.mark.parametrize("how", ["offline", "netrc", "no key"])
def test_without_a_key_nobody_is_asked_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    run = FakeRun()
    install(monkeypatch, lambda **_: run)
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    if how == "offline":
        monkeypatch.setenv("WANDB_MODE", "offline")
    if how == "netrc":
        (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password key\n")
        (tmp_path / ".netrc").chmod(0o600)
    said: list[str] = []
    sink = WandbSink(Config(), tmp_path, said.append)
    sink.write({"environment_steps": 1})
    sink.close()
    taken = how != "no key"
    assert len(run.lines) == taken
    assert any("not logged in; run wandb login" in line for line in said) != taken


def test_one_that_hangs_delays_the_end_by_seconds_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    released = threading.Event()
    install(monkeypatch, lambda **_: released.wait(60))
    monkeypatch.setattr("launcher.records.sinks._LEAVE_SECONDS", 0.05)
    monkeypatch.setattr("launcher.records.sinks._MOST_LINES", 3)
    said: list[str] = []
    sink = WandbSink(Config(), tmp_path, said.append)
    for step in range(10):
        sink.write({"environment_steps": step})
    sink.close()
    assert said == ["Weights & Biases did not take 10 lines"]
    released.set()
    sink._thread.join(10)


def test_prometheus_finds_the_newest_figures(tmp_path: Path):
    pytest.importorskip("prometheus_client")
    port = free_port()
    config = build(("test", {"system": {"metrics_port": port}}))
    (sink,) = make_sinks(config, tmp_path, print)
    sink.write({"environment_steps": 8, "train/loss": None, "episodes_recent": [1.0]})
    sink.write({"environment_steps": 16, "rollout/ep_rew_mean": 2.5, "x": float("nan")})
    sink.write({"eval/baseline/greedy": 0.5})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert "pdqn_environment_steps 16.0" in text
    assert "pdqn_rollout_ep_rew_mean 2.5" in text
    assert "pdqn_train_loss" not in text
    steps = "environment_steps: steps of all environments since the run began [environment steps]"
    assert f"# HELP pdqn_environment_steps {steps}\n" in text
    assert "# HELP pdqn_x x\n" not in text, "what is not finite is left out"
    assert "# HELP pdqn_eval_baseline_greedy eval/baseline/greedy: score of" in text
    for refused in (lambda: PrometheusSink("127.0.0.1", port), lambda: check_sinks(config)):
        with pytest.raises(UsageError, match=f"--metrics-port {port}: 127.0.0.1: Address already"):
            refused()
    sink.close()
    PrometheusSink("127.0.0.1", port).close()


def test_names_become_what_prometheus_takes():
    assert metric_name("eval/baseline/exact greedy") == "pdqn_eval_baseline_exact_greedy"


def test_missing_packages_are_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"system\.wandb = true needs wandb: .*pdqn\[wandb\]"):
        check_sinks(build(("test", {"system": {"wandb": True}})))
    with pytest.raises(UsageError, match=r"needs prometheus_client: .*pdqn\[prometheus\]"):
        check_sinks(build(("test", {"system": {"metrics_port": 9000}})))
    check_sinks(Config())
