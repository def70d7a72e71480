"""A short real run and its cost to each role, the check of what is measured piece by piece."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pdqn import layers
from pdqn.config import Config
from pdqn.errors import RunError

ROLES = ("actor", "replay", "learner", "evaluator")
_POLL_SECONDS = 0.2
# Time after the first learner step until rates are counted.
_SETTLING_SECONDS = 3.0
# The longest time until then, and from the end of counting to the end of the run.
_START_SECONDS, _END_SECONDS = 180.0, 60.0
_LEAST_LINES = 4
_LAST_CHARACTERS = 300


@dataclass(frozen=True)
class Trial:
    """The rates of a run once it has settled, and the CPU time of its roles.

    Attributes:
        seconds: length of the time that was looked at.
        environment_steps: per second.
        episodes: per second.
        samples: transitions per second that the learner has learned from.
        wire_bytes: bytes per second from actors to replay.
        cpu: CPU seconds per second, by role, and of the launcher.
        actor_waits: part of the actors' time spent waiting for replay.
        learner_waits: part of the learner's time spent waiting for samples.
    """

    seconds: float
    environment_steps: float
    episodes: float
    samples: float
    wire_bytes: float
    cpu: dict[str, float]
    actor_waits: float
    learner_waits: float

    @property
    def episode_steps(self) -> float:
        """Environment steps of an episode; nan if none ended."""
        return self.environment_steps / self.episodes if self.episodes else float("nan")


def run_trial(config: Config, seconds: float, cores: Sequence[int] = ()) -> Trial:
    """Run a configuration until it has settled, and for a while longer.

    Args:
        config: the run's, with all that is left to auto filled in.
        seconds: time for which rates are counted.
        cores: numbers of the cores that it may use; empty for those of this process.

    Raises:
        RunError: the run failed, or did not learn in time.
    """
    with _folder() as folder:
        file, run = folder / "bench.toml", folder / "run"
        file.write_text(_limited(config, seconds).to_toml(), encoding="utf-8")
        command = [sys.executable, "-m", "pdqn", "launch", "--config", str(file)]
        command += ["--run-dir", str(run), "--console", "off", "--force", "--yes"]
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            if cores:
                os.sched_setaffinity(process.pid, cores)
            launcher = _watch(process, run / "metrics.jsonl", seconds)
        lines = list(_lines(run / "metrics.jsonl"))
        if process.returncode and not _settled(lines):
            raise RunError(f"the benchmark's run failed: {_last_words(folder / 'output')}")
        return summarize(lines, launcher, config.learner.batch_size)


def _limited(config: Config, seconds: float) -> Config:
    """Return the configuration of a run that ends by time alone, and writes figures often."""
    settings = config.to_map()
    for limit in ("episodes", "steps"):
        settings["run"].pop(limit, None)
    own = {
        "run": {"time_seconds": seconds + _START_SECONDS},
        "system": {"metrics_seconds": 1.0, "pictures": False},
    }
    return layers.build(("plan", settings), ("benchmark", own))


def summarize(lines: Sequence[dict[str, Any]], launcher: Sequence[float], batch: int) -> Trial:
    """Make the rates out of a run's figures.

    Args:
        lines: of metrics.jsonl, without evaluations.
        launcher: CPU seconds of the launcher as each line was written.
        batch: transitions of a learner step.

    Raises:
        RunError: too few lines came after the first learner step.
    """
    chosen = _settled(lines)
    if len(chosen) < _LEAST_LINES:
        raise RunError("the benchmark's run ended soon after its first learner step")
    times = np.array([lines[i]["time_seconds"] for i in chosen])

    def growth(name: str) -> float:
        return slope(times, [float(lines[i].get(name) or 0.0) for i in chosen])

    def mean(name: str) -> float:
        return float(np.mean([float(lines[i].get(name) or 0.0) for i in chosen]))

    cpu = {role: growth(f"{role}/cpu_seconds") for role in ROLES}
    of_launcher = [launcher[min(i, len(launcher) - 1)] for i in chosen]
    return Trial(
        seconds=float(times[-1] - times[0]),
        environment_steps=growth("environment_steps"),
        episodes=growth("episodes"),
        samples=growth("learner_steps") * batch,
        wire_bytes=mean("replay/bytes_per_second"),
        cpu=cpu | {"launcher": slope(times, of_launcher)},
        actor_waits=mean("actor/wait_share"),
        learner_waits=mean("learner/wait_share"),
    )


def _settled(lines: Sequence[dict[str, Any]]) -> list[int]:
    """Return the places of the lines from which rates are counted; the last one is the end."""
    learning = [line["time_seconds"] for line in lines if line["learner_steps"]]
    since = learning[0] + _SETTLING_SECONDS if learning else float("inf")
    return [i for i, line in enumerate(lines[:-1]) if line["time_seconds"] >= since]


def slope(times: np.ndarray, values: Sequence[float]) -> float:
    """Return the growth per second of a line through all points, which bursts move little."""
    return float(np.polyfit(times - times[0], np.array(values), 1)[0])


@contextmanager
def _folder() -> Iterator[Path]:
    """Make a folder where the system keeps files on a disk, and remove it in the end."""
    folder = Path(tempfile.mkdtemp(prefix="pdqn-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _watch(process: subprocess.Popen[bytes], metrics: Path, seconds: float) -> list[float]:
    """Wait until the run has been counted for these seconds, and end it.

    Returns:
        The launcher's CPU seconds as each line of its figures was there.
    """
    end, found = time.monotonic() + seconds + _START_SECONDS, list[float]()
    try:
        looked = psutil.Process(process.pid)
        while process.poll() is None and time.monotonic() < end:
            lines = list(_lines(metrics))
            with suppress(psutil.Error):
                times = looked.cpu_times()
                found += [times.user + times.system] * (len(lines) - len(found))
            settled = [lines[i]["time_seconds"] for i in _settled(lines)]
            if len(settled) >= _LEAST_LINES and settled[-1] - settled[0] >= seconds:
                break
            time.sleep(_POLL_SECONDS)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            process.kill()
            process.wait()
    return found or [0.0]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the figures of a run that are complete, but for evaluations."""
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if text.endswith("\n"):
            line = json.loads(text)
            if "replay/size" in line:
                yield line


def _last_words(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    return text.splitlines()[-1][-_LAST_CHARACTERS:] if text else "it printed nothing"
