"""Runs on Dask clusters of real processes: workers die and come, and the run goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import pytest

if TYPE_CHECKING:
    from conftest import Command, Observed, StartCommand

pytest.importorskip("distributed", reason="needs pdqn[dask]")

from distributed import Security
from distributed.comm.core import connect

from benchmarks.chaos.checks import takeovers
from launcher.hosts.access import Access
from launcher.hosts.dask.answers import WorkerDescription
from launcher.hosts.dask.cluster import DaskCluster, Ending
from launcher.run.launch import _warnings_of_access
from launcher.studies.members import EXIT_INTERRUPTED
from pdqn.errors import UsageError

Eventually = Callable[..., Any]
ReadLines = Callable[[Path], list[dict[str, Any]]]
Observe = Callable[["Command"], "Observed"]

RUN = [
    "--env", "CartPole-v1", "--console", "plain", "--run-dir", "run",
    "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "replay.samples_per_insert=4", "--set", "learner.batch_size=16",
    "--set", "system.telemetry_seconds=0.2", "--set", "system.metrics_seconds=0.2",
    "--set", "checkpoint.period_seconds=1", "--set", "evaluation.enabled=false",
]  # fmt: skip
TIGHT = 60.0


class Cluster:
    """A scheduler and its workers, each a separate process."""

    def __init__(self, directory: Path, eventually: Eventually) -> None:
        self._directory, self._eventually = directory, eventually
        self.file = directory / "scheduler.json"
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.scheduler = self._dask(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-jupyter",
            "--scheduler-file", str(self.file),
        )  # fmt: skip
        eventually(self.file.exists, TIGHT)

    def add(self, name: str) -> None:
        self.workers[name] = self._dask(
            "worker", "--scheduler-file", str(self.file), "--no-nanny", "--nthreads", "2",
            "--no-dashboard", "--name", name, "--host", "127.0.0.1",
            "--local-directory", str(self._directory / name),
        )  # fmt: skip

    def roles(self, name: str) -> dict[int, str]:
        """Map the process ids of the roles under a worker to their titles."""
        found: dict[int, str] = {}
        if self.workers[name].poll() is not None:
            return found
        for process in psutil.Process(self.workers[name].pid).children(recursive=True):
            try:
                title = " ".join(process.cmdline()).strip()
            except psutil.NoSuchProcess:
                continue
            if title.startswith("pdqn "):
                found[process.pid] = title
        return found

    def having(self, role: str) -> list[str]:
        """List the names of the workers that have a role."""
        return [
            name
            for name in self.workers
            if any(title.startswith(f"pdqn {role} ") for title in self.roles(name).values())
        ]

    def kill(self, name: str) -> list[int]:
        """Kill a worker as a power failure would, and leave its roles alone."""
        left = list(self.roles(name))
        worker = self.workers.pop(name)
        worker.send_signal(signal.SIGKILL)
        worker.wait(10)
        return left

    def die(self, name: str) -> None:
        """Kill a worker and all below it, so that none of them can do anything more."""
        worker = self.workers.pop(name)
        everything = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(True)]
        for process in everything:
            process.suspend()
        for process in everything:
            process.kill()
        worker.wait(10)

    def actors(self) -> int:
        titles = (title for name in self.workers for title in self.roles(name).values())
        return sum(title.startswith("pdqn actor ") for title in titles)

    def close(self) -> None:
        for process in (*self.workers.values(), self.scheduler):
            process.kill()
        for process in (*self.workers.values(), self.scheduler):
            process.wait()

    def _dask(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = self._directory / f"dask-{arguments[0]}-{len(self.workers)}.log"
        with log.open("wb") as file:
            command = [sys.executable, "-m", "dask", *arguments]
            return subprocess.Popen(command, stdout=file, stderr=file, cwd=self._directory)


@pytest.fixture
def cluster(tmp_path: Path, eventually: Eventually) -> Iterator[Cluster]:
    directory = tmp_path / "cluster"
    directory.mkdir()
    made = Cluster(directory, eventually)
    yield made
    made.close()


@pytest.fixture
def interpreter(tmp_path: Path) -> str:
    """Provide a fast command that passes for a Python with pdqn."""
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\necho \'{"hostname": "there", "gpus": ["one", "two"]}\'\n')
    path.chmod(0o755)
    return str(path)


def found(cluster: DaskCluster, count: int) -> list[str]:
    """Return the workers' addresses as soon as there are ``count``."""
    cluster.poll()
    return list(cluster.workers) if len(cluster.workers) == count else []


def registered(cluster: Cluster) -> int:
    """Count the workers that the scheduler has registered so far."""
    return cluster.file.with_name("dask-scheduler-0.log").read_text().count("Register worker")


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.timeout(120)
def test_a_worker_that_hangs_is_told_as_such_and_keeps_nobody_waiting(
    cluster: Cluster, interpreter: str, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("launcher.hosts.dask.cluster._DESCRIBE_SECONDS", 5.0)
    for name in ("hangs", "works"):
        cluster.add(name)
    with contextlib.closing(DaskCluster(str(cluster.file), interpreter)) as seen:
        eventually(lambda: found(seen, 2), TIGHT)
        pids = {pid: address for address, pid in seen._client.run(os.getpid).items()}
        hangs, works = (pids[cluster.workers[name].pid] for name in ("hangs", "works"))
        cluster.workers["hangs"].send_signal(signal.SIGSTOP)
        assert seen.describe() == {
            hangs: WorkerDescription(error="the worker does not answer"),
            works: WorkerDescription(hostname="there", gpus=("one", "two")),
        }
        assert [(worker.address, worker.gpus) for worker in seen.workers.values()] == [(works, 2)]
        seen.start("role", works, ["-c", "anything"], "a line")
        assert eventually(seen.endings) == [Ending("role", "exit code 0")]


@pytest.mark.timeout(60)
def test_how_a_role_ended_is_not_waited_for_when_its_worker_hangs_since(
    cluster: Cluster, interpreter: str, eventually: Eventually
):
    cluster.add("a")
    with contextlib.closing(DaskCluster(str(cluster.file), interpreter)) as seen:
        (worker,) = eventually(lambda: found(seen, 1), TIGHT)
        seen.start("role", worker, ["-c", "anything"], "a line")
        eventually(seen._futures["role"].done)
        cluster.workers["a"].send_signal(signal.SIGSTOP)
        assert seen.endings() == [Ending("role", "the worker does not answer")]
        assert not seen.endings()


@pytest.mark.slow
def test_a_replay_whose_host_dies_is_started_on_another_with_its_contents(
    cluster: Cluster,
    pdqn_command: StartCommand,
    eventually: Eventually,
    observe: Observe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    root = Path(__file__).parents[1]
    paths = os.pathsep.join([str(root / "benchmarks/chaos/hooks"), str(root)])
    monkeypatch.setenv("PYTHONPATH", paths)
    monkeypatch.setenv("CHAOS_WITNESS", str(tmp_path / "witness"))
    (tmp_path / "witness").mkdir()
    for name in ("a", "b", "c"):
        cluster.add(name)
    eventually(lambda: registered(cluster) == 3, TIGHT)
    shared = ("--set", f"replay.journal_dir={tmp_path}/shared")
    options = ("--dask", str(cluster.file), "--actors", "3", *shared)
    with pdqn_command("launch", *RUN, *options, directory=tmp_path) as run:
        seen = observe(run)
        for times in range(1, 3):
            seen.learns() if times == 1 else seen.grows("environment_steps", "learner_steps")
            (host,) = cluster.having("replay")
            cluster.die(host)
            seen.until(lambda n=times: len(takeovers(tmp_path / "witness")) == n)
            cluster.add(f"{host}{times}")
        seen.grows("environment_steps", "learner_steps")
        summary = seen.interrupt()
    found = takeovers(tmp_path / "witness")
    assert [one.is_exact for one in found] == [True, True], found
    assert all(one.size_before > 0 for one in found)
    assert summary["transitions"]["lost"] == 0


@pytest.mark.slow
def test_workers_that_die_and_come_change_where_the_roles_are_and_nothing_else(
    cluster: Cluster,
    pdqn_command: StartCommand,
    eventually: Eventually,
    observe: Observe,
    tmp_path: Path,
):
    for name in ("a", "b", "c"):
        cluster.add(name)
    eventually(lambda: registered(cluster) == 3, TIGHT)
    pin = ("--dask-pin", f"replay={socket.gethostname()}")  # as in pdqn check --dask
    options = ("--dask", str(cluster.file), "--actors", "4", *pin)
    with pdqn_command("launch", *RUN, *options, directory=tmp_path) as run:
        seen = observe(run)
        seen.learns()
        assert run.role("actor") is None, "nothing but the evaluator is on the launcher's host"
        (learner,), (replay,) = cluster.having("learner"), cluster.having("replay")
        assert learner != replay
        only_actors = next(name for name in "abc" if name not in (learner, replay))
        left = cluster.kill(only_actors)
        eventually(lambda: gone(left), 20.0)
        eventually(lambda: len(cluster.having("actor")) == 2, TIGHT)
        seen.grows("environment_steps", "learner_steps")

        left = cluster.kill(replay)
        eventually(lambda: cluster.having("replay") == [learner], TIGHT)
        eventually(lambda: gone(left), 20.0)
        seen.grows("environment_steps", "learner_steps")

        cluster.add("d")
        eventually(lambda: "d" in cluster.having("actor"), TIGHT)
        eventually(lambda: cluster.actors() == 4, TIGHT)
        seen.grows("environment_steps", "learner_steps")
        run.interrupt()
        assert run.wait(30.0) == 0, run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    summary = seen.summary()
    assert summary["exit_reason"] == "interrupted"
    assert summary["restarts"]["replay"] == 1
    assert summary["restarts"]["actor"] >= 2
    assert "is gone, and with it" in run.stdout
    assert (seen.path / "final_model.pth").exists()


def test_a_local_cluster_listens_only_to_holders_of_its_certificate(interpreter: str):
    before = {connection.laddr for connection in listening()}
    with contextlib.closing(DaskCluster("local", interpreter)) as seen:
        assert seen.is_encrypted
        workers = len(seen.workers)
        found = [c for c in listening() if c.laddr not in before]
        assert len(found) == 1 + 2 * workers, "the scheduler, workers and their nannies"
        for connection in found:
            assert connection.laddr.ip == "127.0.0.1"
            assert says_who_it_is(connection.laddr.port, seen.address, None) == ""
            own = Security.temporary().get_connection_args("client")
            assert says_who_it_is(connection.laddr.port, seen.address, own) == ""
        own = seen._client.security.get_connection_args("client")
        port = int(seen.address.rpartition(":")[2])
        assert "Scheduler" in says_who_it_is(port, seen.address, own), "the question is right"
        folders = [
            info["local_directory"] for info in seen._client.scheduler_info()["workers"].values()
        ]
        (private,) = {Path(folder).parents[1] for folder in folders}
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert not private.exists()


def listening() -> list[Any]:
    """List the sockets of TCP that this process and its children listen to."""
    own = psutil.Process()
    return [
        connection
        for process in (own, *own.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]


def says_who_it_is(port: int, scheduler: str, own: dict[str, Any] | None) -> str:
    """Ask a port as Dask does, in the clear without arguments; empty if it does not answer."""

    async def ask() -> Any:
        protocol = "tcp" if own is None else urlsplit(scheduler).scheme
        comm = await connect(f"{protocol}://127.0.0.1:{port}", timeout=1.0, **(own or {}))
        try:
            await comm.write({"op": "identity", "reply": True})
            return await asyncio.wait_for(comm.read(), 5.0)
        finally:
            comm.abort()

    try:
        return str(asyncio.run(ask()))
    except (OSError, TimeoutError, ValueError):
        return ""


def test_without_cryptography_a_local_cluster_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, interpreter: str
):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(UsageError, match=r"^--dask local needs cryptography.*'pdqn\[dask\]'$"):
        DaskCluster("local", interpreter)


def test_a_scheduler_that_is_not_encrypted_is_told_once(
    cluster: Cluster, interpreter: str, eventually: Eventually
):
    cluster.add("a")
    with contextlib.closing(DaskCluster(str(cluster.file), interpreter)) as seen:
        assert not seen.is_encrypted
        (said,) = _warnings_of_access(Access(), seen)
        assert said == (
            f"the Dask scheduler at {seen.address} is not encrypted: whoever reaches it can run "
            "code on its workers and here"
        )


def test_a_local_cluster_trains(pdqn_command: StartCommand, tmp_path: Path):
    options = ("--dask", "local", "--actors", "1", "--episodes", "20")
    with (
        socket.socket() as taken,
        pdqn_command("launch", *RUN, *options, directory=tmp_path) as run,
    ):
        with contextlib.suppress(OSError):  # already in use: just as good for this test
            taken.bind(("0.0.0.0", 8787))  # the default port of Dask's dashboard
            taken.listen()
        assert run.wait(120.0) == 0, run.stderr
    assert not run.stderr
    assert "is not encrypted" not in run.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["exit_reason"] == "episodes"
    assert summary["transitions"]["lost"] == 0


@pytest.mark.slow
def test_a_run_whose_scheduler_is_lost_ends_with_everything_saved(
    cluster: Cluster,
    pdqn_command: StartCommand,
    eventually: Eventually,
    read_lines: ReadLines,
    tmp_path: Path,
):
    cluster.add("a")
    options = ("--dask", str(cluster.file), "--actors", "1")
    with pdqn_command("launch", *RUN, *options, directory=tmp_path) as run:
        path = tmp_path / "run" / "metrics.jsonl"
        eventually(lambda: any(x.get("learner_steps", 0) > 0 for x in read_lines(path)), TIGHT)
        cluster.scheduler.send_signal(signal.SIGKILL)
        assert run.wait(60.0) == 1, run.stderr
    assert "the Dask scheduler does not answer any more" in run.stdout + run.stderr
    assert (tmp_path / "run" / "final_model.pth").exists()
    assert (tmp_path / "run" / "summary.json").exists()


def test_check_shows_the_workers_and_what_they_would_get(
    cluster: Cluster, pdqn_command: StartCommand, tmp_path: Path
):
    cluster.add("a")
    cluster.add("b")
    arguments = ("check", "--env", "CartPole-v1", "--actors", "7", "--dask", str(cluster.file))

    def check(*more: str) -> dict[str, Any]:
        with pdqn_command(*arguments, "--json", *more, directory=tmp_path) as command:
            command.wait()
        assert not command.stderr
        return json.loads(command.stdout)

    shown = check()
    while len(shown["workers"]) < 2:  # they start one after the other
        shown = check()
    roles = sorted(role for worker in shown["workers"] for role in worker["roles"])
    assert roles == ["3 actors", "4 actors", "learner 0", "replay 0"]
    assert shown["ok"]
    assert {worker["slots"] for worker in shown["workers"]} == {2}
    without = check("--dask-python", "/no/such/python")
    assert not without["ok"]
    assert "/no/such/python" in without["workers"][0]["error"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(
            ["--dask", "tcp://127.0.0.1:9"],
            "--dask tcp://127.0.0.1:9: no scheduler answers",
            marks=pytest.mark.slow,
        ),
        (["--dask", "nowhere.json"], "--dask nowhere.json: expected tcp://HOST:PORT"),
        (["--dask", "local", "--no-learner"], "--no-learner: with --dask it is placed"),
        (["--dask", "local", "--dask-pin", "actor=x"], "--dask-pin actor=x: expected learner or"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(
    pdqn_command: StartCommand, tmp_path: Path, options: list[str], said: str
):
    with pdqn_command("launch", *RUN, *options, directory=tmp_path) as command:
        assert command.wait() == 2, command.stdout
    assert command.stderr.startswith(f"pdqn: {said}")
    assert command.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_sweep_runs_its_trials_on_the_cluster_and_goes_on_there(
    cluster: Cluster, pdqn_command: StartCommand, eventually: Eventually, tmp_path: Path
):
    pytest.importorskip("optuna", reason="needs pdqn[sweep]")
    for name in ("a", "b"):
        cluster.add(name)
    text = """
        env = "CartPole-v1"
        trials = 4
        pruner = "none"
        options = ["--steps", "15000", "--actors", "2"]
        [settings]
        "evaluation.period_seconds" = 1
        "evaluation.episodes" = 4
        "replay.min_size" = 200
        [search."actor.n_step"]
        low = 1
        high = 5
    """
    (tmp_path / "cartpole.toml").write_text(text, encoding="utf-8")
    folder = tmp_path / "runs" / "sweeps" / "cartpole"
    sweep = ("sweep", "cartpole.toml", "--dask", str(cluster.file))
    with pdqn_command(*sweep, directory=tmp_path) as command:
        eventually(lambda: cluster.actors() == 2, 100)
        eventually((folder / "trial-0000" / "state.json").exists, 100)
        command.interrupt()
        assert command.wait() == EXIT_INTERRUPTED, command.stderr
    eventually(lambda: not cluster.actors(), TIGHT)
    with pdqn_command(*sweep, directory=tmp_path) as command:
        # The trial that was interrupted is on the cluster again.
        eventually(lambda: cluster.actors() == 2, 100)
        assert not (folder / "trial-0001").exists()
        assert command.wait(400) == 0, command.stderr
    for index in range(4):
        summary = json.loads((folder / f"trial-{index:04}" / "summary.json").read_text("utf-8"))
        assert summary["exit_reason"] == "steps"
        assert summary["transitions"]["lost"] == 0
    with pdqn_command("sweep", "cartpole.toml", "--show", directory=tmp_path) as command:
        assert command.wait() == 0, command.stderr
    assert command.stdout.count(" complete ") == 4
