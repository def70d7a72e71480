"""Runs of ``benchmarks.learning``: real processes, bounded waits, one ``Result`` each."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.learning_cases import INPUT, Case, System
from benchmarks.learning_results import Result, baselines_of_metrics, curve_of_metrics

ROOT = Path(__file__).resolve().parents[1]
_START_AND_END_SECONDS = 300.0
_EVALUATION_SECONDS = 1800.0
_PEER_EVALUATIONS = 4.0  # a peer's clock stops while it evaluates, its process does not
_MAKING_SECONDS = 300.0
_STOP_SECONDS = 60.0
_PROGRESS_SECONDS = 30.0
_POLL_SECONDS = 0.5
_SUMMARY = (
    "exit_reason",
    "environment_steps",
    "learner_steps",
    "episodes",
    "environment_steps_per_second",
    "learner_steps_per_second",
    "samples_per_insert",
    "policy_lag_mean",
    "actors",
    "mode",
    "restarts",
)


class RunFailedError(RuntimeError):
    """A process failed or took too long; the text names it and its output."""


@dataclass(frozen=True)
class Tools:
    """Programs and folders for runs.

    Attributes:
        pdqn: the command.
        peer_python: the Python that has the peers.
        work: folder of run directories and logs.
    """

    pdqn: Path
    peer_python: Path
    work: Path

    def missing(self, case: Case, systems: Sequence[System]) -> str | None:
        """Name what is missing for systems of a case in a sentence, or return None."""
        if not self.pdqn.is_file():
            return f"{self.pdqn} is not there; name the command with --pdqn"
        if any(system.peer for system in systems) and not self.peer_python.is_file():
            return f"{self.peer_python} is not there; docs/learning.md says how to make it"
        python = str(self.pdqn.with_name("python"))
        for module in case.needs:
            imported = subprocess.run(
                [python, "-c", f"import {module}"], capture_output=True, timeout=120, check=False
            )
            if imported.returncode:
                return f"{python} has no {module}: pip install it there"
        return None


def run(case: Case, system: System, seed: int, seconds: float, tools: Tools) -> Result:
    """Run one system with one seed.

    Args:
        case: the case of the system.
        system: the system to run.
        seed: of the run.
        seconds: time of training.
        tools: programs and folders.

    Raises:
        RunFailedError: a process failed, or did not end in time.
    """
    name = f"{case.name}-{system.name.replace(' ', '-')}-seed{seed}"
    folder = tools.work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    one = run_peer if system.peer else run_ours
    return one(case, system, seed, seconds, tools, folder)


def run_ours(
    case: Case, system: System, seed: int, seconds: float, tools: Tools, folder: Path
) -> Result:
    """Run ``pdqn launch``, and ``pdqn eval`` if the case asks for it."""
    shown = ["launch", *system.arguments, "--time", f"{seconds:g}s", "--seed", f"{seed}"]
    run_dir = folder / "run"
    metrics = run_dir / "metrics.jsonl"
    made = folder / INPUT
    if case.makes:
        make(case.makes, made, tools)
    given = [word.replace(INPUT, str(made)) for word in shown]
    launched, wall = wait_for(
        [str(tools.pdqn), *given, "--console", "plain", "--run-dir", str(run_dir)],
        folder / "launch.log",
        seconds + _START_AND_END_SECONDS,
        lambda: last_evaluation(json_lines(metrics)),
    )
    command = "pdqn " + shlex.join(shown)
    if case.makes:
        command = f"python -m {case.makes} {INPUT}; {command}"
    final = final_figures(run_dir)
    if case.final_episodes:
        asked = ["eval", "RUN", "--episodes", f"{case.final_episodes}", "--quick", "--json"]
        command += "; pdqn " + shlex.join(asked)
        final["evaluation"] = evaluate(tools, run_dir, asked, folder)
    clock = next(e["clock"] - e["time_seconds"] for e in json_lines(run_dir / "events.jsonl"))
    lines = json_lines(metrics)
    curve = curve_of_metrics(lines, clock - launched)
    result = described(case, system, seed, command, wall, curve, final)
    return replace(result, baselines=baselines_of_metrics(lines))


def make(module: str, path: Path, tools: Tools) -> None:
    """Have a script write the input of a run."""
    python = str(tools.pdqn.with_name("python"))
    wait_for([python, "-m", module, str(path)], path.with_suffix(".log"), _MAKING_SECONDS, str)


def evaluate(tools: Tools, run_dir: Path, asked: list[str], folder: Path) -> dict[str, Any]:
    """Return the output of ``pdqn eval --json`` for the final parameters."""
    log = folder / "eval.json"
    arguments = [str(run_dir) if word == "RUN" else word for word in asked]
    wait_for([str(tools.pdqn), *arguments], log, _EVALUATION_SECONDS, lambda: "evaluating")
    found = [line for line in json_lines(log) if "return_mean" in line]
    if not found:
        raise RunFailedError(f"pdqn eval printed no result: see {log}")
    return found[-1]


def final_figures(run_dir: Path) -> dict[str, Any]:
    """Read the final figures from the summary, and the samples per second."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    config = tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8"))
    figures = {key: summary.get(key) for key in _SUMMARY}
    rate = summary.get("learner_steps_per_second") or 0.0
    return figures | {"samples_per_second": rate * config["learner"]["batch_size"]}


def run_peer(
    case: Case, system: System, seed: int, seconds: float, tools: Tools, folder: Path
) -> Result:
    """Run a peer's script, with its launch time, so that its start-up counts as ours does."""
    assert system.peer is not None
    shown = ["-m", system.peer, *system.arguments, "--seed", f"{seed}"]
    if case.measure != "threshold":  # in "threshold", its number of steps ends it
        shown += ["--seconds", f"{seconds:g}"]
    if case.final_episodes:
        shown += ["--final-episodes", f"{case.final_episodes}"]
    log = folder / "peer.log"
    limit = _PEER_EVALUATIONS * seconds + _START_AND_END_SECONDS
    launched = ["--launched", f"{time.time():.3f}"]
    _, wall = wait_for(
        [str(tools.peer_python), *shown, *launched],
        log,
        limit + (_EVALUATION_SECONDS if case.final_episodes else 0.0),
        lambda: last_evaluation(json_lines(log)),
    )
    lines = json_lines(log)
    names = ("environment_steps", "wall_seconds", "return_mean", "return_error")
    curve = [[line[name] for name in names] for line in lines if "wall_seconds" in line]
    final = next((line for line in lines if line.get("done")), {})
    command = shlex.join(["PEER_PYTHON", *shown])
    return described(case, system, seed, command, wall, curve, final)


def described(
    case: Case,
    system: System,
    seed: int,
    command: str,
    wall_seconds: float,
    curve: list[list[float]],
    final: dict[str, Any],
) -> Result:
    """Build a result with its place and date."""
    return Result(
        case=case.name,
        system=system.name,
        seed=seed,
        command=command,
        commit=commit(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        cores=os.cpu_count() or 0,
        wall_seconds=wall_seconds,
        curve=curve,
        final=final,
    )


def wait_for(
    command: list[str], log: Path, seconds: float, progress: Callable[[], str]
) -> tuple[float, float]:
    """Run a process in its own session to its end, and print its progress from time to time.

    Returns:
        Unix time of its start, and its duration in seconds.

    Raises:
        RunFailedError: its exit code was not 0, or it did not end within ``seconds``.
    """
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PDQN_")}
    errors = log.with_suffix(".err")
    with log.open("wb") as out, errors.open("wb") as err:
        launched = time.time()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            follow(process, launched, seconds, progress)
        finally:
            stop(process)
    if process.returncode:
        last = errors.read_text(encoding="utf-8", errors="replace").strip()[-600:]
        raise RunFailedError(f"exit code {process.returncode}: see {log.parent}\n{last}")
    return launched, time.time() - launched


def follow(
    process: subprocess.Popen[bytes], launched: float, seconds: float, progress: Callable[[], str]
) -> None:
    """Wait for the end, with a bound."""
    told = launched
    while process.poll() is None:
        time.sleep(_POLL_SECONDS)
        now = time.time()
        if now - launched > seconds:
            raise RunFailedError(f"{process.args} did not end within {seconds:.0f} s")
        if now - told > _PROGRESS_SECONDS:
            told = now
            print(f"    {now - launched:5.0f} s  {progress()}", flush=True)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole session if it still runs: first as Ctrl-C would, then by force."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(_STOP_SECONDS)


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a JSON-lines file that may still grow."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]


def last_evaluation(lines: list[dict[str, Any]]) -> str:
    """Describe the newest evaluation."""
    for line in reversed(lines):
        value = line.get("eval/return_mean", line.get("return_mean"))
        if value is not None:
            return f"{line.get('environment_steps', 0):,.0f} steps, evaluated return {value:.4g}"
    return "no evaluation yet"


def commit() -> str:
    """Return the commit's short name, with ``+`` if tracked files except results have changed."""
    git = ["git", "--no-optional-locks", "-C", str(ROOT)]
    asked = ("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "-uno", ":!docs")
    try:
        name, changed = (
            subprocess.run([*git, *a], capture_output=True, text=True, timeout=30, check=True)
            for a in asked
        )
    except (OSError, subprocess.SubprocessError) as error:
        print(f"no commit: {error}", file=sys.stderr)
        return "unknown"
    return name.stdout.strip() + ("+" if changed.stdout.strip() else "")
