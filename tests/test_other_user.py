"""Another user of the same machine gets nothing from a run, and changes nothing in it."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import zmq
from intruder import Targets

import pdqn
from launcher.hosts.keys import read_head
from pdqn.messages import ROLES, Fetch, Join, Report, Watch

if TYPE_CHECKING:
    from conftest import Command, Observed, StartCommand

Observe = Callable[["Command"], "Observed"]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become another user without a password"
)

RUN = [
    "launch", "--env", "CartPole-v1", "--console", "plain", "--run-dir", "run", "--actors", "1",
    "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "replay.samples_per_insert=4", "--set", "learner.batch_size=16",
    "--set", "system.telemetry_seconds=0.2", "--set", "system.metrics_seconds=0.2",
    "--set", "evaluation.enabled=false",
]  # fmt: skip
INTRUDER = Path(__file__).with_name("intruder.py")
SHARED_MEMORY = Path("/dev/shm")
PROCESSES = 4  # launcher, replay, learner, actor


@pytest.fixture
def folder() -> Iterator[Path]:
    """Provide a folder that every user can open: pytest's own would keep them out by itself."""
    with tempfile.TemporaryDirectory(prefix="o-") as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "tmp").mkdir()
        (path / "tmp").chmod(0o1777)
        yield path


def targets_of(command: Command, folder: Path, shared_before: set[Path], **more: Any) -> Targets:
    """List every socket, file and process of a run."""
    ports, paths = set(), set()
    processes = command.members()
    for process in processes:
        for connection in process.net_connections("all"):
            if connection.family == socket.AF_UNIX:
                paths.add(str(connection.laddr).replace("@", "\0", 1))
            elif connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE):
                assert connection.laddr.ip == "127.0.0.1", "nothing listens beyond loopback"
                ports.add(connection.laddr.port)
    run = folder / "run"
    return Targets(
        sorted(ports),
        sorted(paths - {""}),
        # Of folders that everybody may write to, what is in them.
        [*map(str, (run, *(folder / "tmp").iterdir(), *_shared_memory() - shared_before))],
        [process.pid for process in processes],
        [str(path) for path in (run / "keys").glob("*")],
        messages=[message.encoded.hex() for message in _messages()],
        **more,
    )


def _shared_memory() -> set[Path]:
    return set(SHARED_MEMORY.iterdir())


def _messages() -> list[Any]:
    joins = [Join(role, pdqn.__version__, "here", 1, agent="intruder") for role in (*ROLES, "host")]
    return [*joins, Watch(), Report(), Fetch("checkpoint", 0, 0)]


def intrude(targets: Targets, folder: Path) -> dict[str, Any]:
    """Let another user try everything, and return the loot."""
    file = folder / "targets.json"
    file.write_text(targets.to_json(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(INTRUDER), str(file)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_no_secret_in_the_open(targets: Targets) -> None:
    """Check that what everybody can read has no secret key: files, and command lines."""
    keys = [Path(path) for path in targets.secrets if path.endswith(".key")]
    secrets = [tomllib.loads(path.read_text(encoding="utf-8"))["secret"] for path in keys]
    files = [path for tree in targets.trees for path in Path(tree).rglob("*") if path.is_file()]
    readable = [path for path in files if path.stat().st_mode & stat.S_IROTH]
    assert readable
    lines = [Path(f"/proc/{process}/cmdline") for process in targets.processes]
    for path in (*readable, *lines):
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in secrets), path


def assert_a_run_is_closed(
    command: Command, seen: Observed, folder: Path, shared_before: set[Path], **more: Any
) -> dict[str, int]:
    """Let another user try everything while a run learns; return the number of attempts."""
    seen.learns()
    joined = seen.events("joined")
    targets = targets_of(command, folder, shared_before, **more)
    assert len(targets.processes) >= PROCESSES
    loot = intrude(targets, folder)
    assert loot["got"] == []
    assert_no_secret_in_the_open(targets)
    seen.grows("environment_steps", "learner_steps")
    assert seen.events("joined") == joined
    assert seen.events("refused") == []
    command.interrupt()
    assert command.wait(60.0) == 0, command.stderr
    assert "Traceback" not in command.stdout + command.stderr
    summary = seen.summary()
    assert summary["transitions"]["lost"] == summary["transitions"]["rejected"] == 0
    assert set(summary["restarts"].values()) == {0}
    assert summary["insecure"] is False
    assert list((folder / "tmp").iterdir()) == [], "nothing is left"
    tried = loot["tried"]
    assert tried["write"] > 10
    assert tried["process"] >= 5 * PROCESSES
    assert tried["descriptor"] > 100
    return tried


def test_a_default_run_is_closed_to_other_users(
    pdqn_command: StartCommand, observe: Observe, folder: Path
):
    before = _shared_memory()
    temporary = str(folder / "tmp")
    with pdqn_command(*RUN, directory=folder, TMPDIR=temporary) as command:
        tried = assert_a_run_is_closed(command, observe(command), folder, before)
    assert tried["unix"] > 4
    assert "raw" not in tried, "it has no socket of TCP"


def test_a_run_that_binds_loopback_is_closed_to_other_users(
    pdqn_command: StartCommand, observe: Observe, folder: Path
):
    before = _shared_memory()
    options, temporary = ("--bind", "127.0.0.1"), str(folder / "tmp")
    with pdqn_command(*RUN, *options, directory=folder, TMPDIR=temporary) as command:
        seen = observe(command)
        seen.until((folder / "run" / "address.json").exists)
        head = read_head(folder / "run" / "keys").public
        tried = assert_a_run_is_closed(command, seen, folder, before, head=head)
    assert tried["raw"] == 4 * 5, "coordinator, replay's three, learner"
    assert tried["zmq"] == 5 * 2 * 4
    assert tried["read"] == 4


@pytest.mark.slow
def test_a_local_dask_cluster_is_closed_to_other_users(
    pdqn_command: StartCommand, observe: Observe, folder: Path
):
    pytest.importorskip("distributed", reason="needs pdqn[dask]")
    before = _shared_memory()
    options, temporary = ("--dask", "local"), str(folder / "tmp")
    with pdqn_command(*RUN, *options, directory=folder, TMPDIR=temporary) as command:
        tried = assert_a_run_is_closed(command, observe(command), folder, before, dask=True)
    workers = min(4, psutil.cpu_count() or 1)
    # A scheduler, workers and their nannies, and nothing else beside the run's own five.
    assert tried["raw"] // 4 <= 5 + 1 + 2 * workers
    assert tried["dask"] == 2 * tried["raw"] // 4


def test_the_intruder_gets_into_what_is_open(folder: Path):
    """Its attempts mean something: each kind succeeds where a run would be careless."""
    open_file, secret = folder / "tmp" / "all.toml", folder / "head.key"
    open_file.touch()
    open_file.chmod(0o666)
    secret.write_text("secret")
    path = folder / "socket"
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as router,
        socket.socket(socket.AF_UNIX) as by_path,
        socket.socket(socket.AF_UNIX) as by_name,
    ):
        port = router.bind_to_random_port("tcp://127.0.0.1")
        name = f"\0pdqn-test-{os.getpid()}"
        for listener, where in ((by_path, str(path)), (by_name, name)):
            listener.bind(where)
            listener.listen()
        path.chmod(0o777)
        done = threading.Event()
        answering = threading.Thread(target=_answer, args=(router, done))
        answering.start()
        targets = Targets(
            [port], [str(path), name], [str(open_file)], [], [str(secret)], messages=["00"]
        )
        try:
            got = intrude(targets, folder)["got"]
        finally:
            done.set()
            answering.join()
    assert {line.split()[0] for line in got} == {"read", "unix", "write", "zmq"}
    assert sum(line.startswith("unix") for line in got) == 2


def _answer(router: zmq.Socket[bytes], done: threading.Event) -> None:
    while not done.is_set():
        if router.poll(100):
            router.send_multipart(router.recv_multipart())


@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="needs pdqn[dask]")
def test_the_intruder_gets_into_a_dask_scheduler_without_certificates(
    eventually: Callable[..., Any], folder: Path
):
    command = [
        sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0",
        "--no-dashboard", "--no-jupyter", "--scheduler-file", str(folder / "scheduler.json"),
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=folder) as scheduler:
        try:
            eventually((folder / "scheduler.json").exists)
            address = json.loads((folder / "scheduler.json").read_text())["address"]
            port = int(address.rpartition(":")[2])
            got = intrude(Targets([port], [], [], [], dask=True), folder)["got"]
        finally:
            scheduler.terminate()
    assert {line.split()[0] for line in got} >= {"dask"}
