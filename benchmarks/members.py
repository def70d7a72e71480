"""The cost of members for a launcher: ``python -m benchmarks.members``.

The launcher is a real ``pdqn launch`` with its live console on a pseudo-terminal, watched by
``pdqn watch`` over TCP. Its members are simulated: each has its own connection and speaks the
protocol of a role, without a role behind it. They join at 1,000 a second, report once a second, and
leave. The figures are processor time of the launcher's process, input and output threads included.
"""

from __future__ import annotations

import argparse
import os
import pty
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import zmq

import pdqn
from launcher.hosts.access import Door, find_door
from launcher.hosts.address import ADDRESS, find_endpoint
from pdqn import transport
from pdqn.messages import TO_MEMBER, Episode, Join, Leave, Message, Refuse, Report, decode
from pdqn.transport import Context

JOINS_PER_SECOND, LEAVES_PER_SECOND = 1000, 1000
SERVERS = ("replay", "learner", "evaluator")
COLUMNS, LINES = 160, 50
PATIENCE_SECONDS = 120.0


def main() -> None:
    """Measure each number of members and print one table."""
    parser = argparse.ArgumentParser(description="Measure what a launcher spends on its members.")
    parser.add_argument("--members", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--seconds", type=float, default=20.0, help="of reports once a second")
    parser.add_argument("--console", choices=["rich", "plain"], default="rich")
    options = parser.parse_args()
    print("share of a core of the launcher; a report and its answer include the frames")
    heads = ("members", "joining", "reporting", "leaving", "all", "us a join", "us a report")
    print("".join(f"{head:>13}" for head in heads))
    for members in options.members:
        print("".join(f"{cell:>13}" for cell in measure(members, options.seconds, options.console)))


def measure(members: int, seconds: float, console: str) -> list[str]:
    """Run a launcher with this many actors and return the cells of its row."""
    with launcher(console) as (process, run), watcher(run):
        door = find_door(str(run), key=None, insecure=False)
        actors = Members(door, members)
        servers = [Members(door, 1, role) for role in SERVERS]
        everybody = [actors, *servers]
        for server in servers:
            server.join(1)
        joining = spent(process, lambda: actors.join(members))
        reporting = spent(process, lambda: report(everybody, seconds))
        leaving = spent(process, actors.leave)
        for one in everybody:
            one.close()
    (join_cpu, join_wall), (cpu, wall), (leave_cpu, leave_wall) = joining, reporting, leaving
    share = (join_cpu + cpu + leave_cpu) / (join_wall + wall + leave_wall)
    return [
        f"{members:,}",
        f"{join_cpu / join_wall:.1%}",
        f"{cpu / wall:.1%}",
        f"{leave_cpu / leave_wall:.1%}",
        f"{share:.1%}",
        f"{1e6 * join_cpu / members:.0f}",
        f"{1e6 * cpu / actors.reports:.0f}",
    ]


class Members:
    """Members of one role on one socket, with one connection for each.

    Args:
        door: the way into the run.
        count: number of members.
        role: of all members.
    """

    def __init__(self, door: Door, count: int, role: str = "actor") -> None:
        self._role, self._count = role, count
        self._context = Context(door.network)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        for _ in range(count):
            # Messages go to the connections in turns.
            transport.connect(self._socket, door.endpoint)
        self._steps = 0
        self.reports = 0

    def join(self, count: int) -> None:
        """Join one after the other, and wait for every welcome."""
        host = socket.gethostname()
        welcomed, started = 0, time.monotonic()
        for index in range(count):
            self._send(Join(self._role, pdqn.__version__, host, index + 1, index))
            welcomed += self._drain()
            pace(started, index, JOINS_PER_SECOND)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while welcomed < count:
            assert time.monotonic() < deadline, f"{welcomed} of {count} joined"
            self._socket.poll(100)
            welcomed += self._drain()

    def report(self) -> None:
        """Report in the name of the next member."""
        self._steps += 8
        counters = dict.fromkeys(("episodes", "transitions_sent", "bytes_sent"), self._steps)
        report = Report(
            counters={**counters, "environment_steps": self._steps, "wait_seconds": 0.5},
            gauges={"epsilon": 0.1, "cpu_percent": 90.0, "memory_bytes": 3e7, "guidance": 0.0},
            activity="waits for replay",
            episodes=(Episode(1.0, 8, None),),
            endpoints={"parameters": "ipc:///nowhere"} if self._role == "learner" else {},
        )
        self._send(report)
        self._drain()
        self.reports += 1

    def leave(self) -> None:
        """Leave one after the other."""
        started = time.monotonic()
        for index in range(self._count):
            self._send(Leave(Report()))
            self._drain()
            pace(started, index, LEAVES_PER_SECOND)

    def close(self) -> None:
        """Close the connections."""
        self._context.destroy(linger=0)

    @property
    def count(self) -> int:
        """Number of members."""
        return self._count

    def _send(self, message: Message) -> None:
        self._socket.send(message.encoded)

    def _drain(self) -> int:
        """Receive the coordinator's answers and count the welcomes."""
        welcomed = 0
        while self._socket.poll(0):
            data = self._socket.recv()
            if b"welcome" in data[:40]:
                welcomed += 1
            elif b"refuse" in data[:40]:
                refusal = decode(data, TO_MEMBER)
                assert not isinstance(refusal, Refuse), refusal.reason
        return welcomed


def report(everybody: list[Members], seconds: float) -> None:
    """Let every member report once a second, spread evenly."""
    turns = [one for one in everybody for _ in range(one.count)]
    started, sent = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        turns[sent % len(turns)].report()
        sent += 1
        pace(started, sent, len(turns))


def pace(started: float, done: int, per_second: int) -> None:
    """Wait until it is time for the next one."""
    ahead = done / per_second - (time.monotonic() - started)
    if ahead > 0.002:
        time.sleep(ahead)


def spent(process: psutil.Process, work: Callable[[], None]) -> tuple[float, float]:
    """Return a process's processor time during some work, and the work's wall time."""
    before, started = process.cpu_times(), time.monotonic()
    work()
    after, wall = process.cpu_times(), time.monotonic() - started
    return after.user + after.system - before.user - before.system, wall


@contextmanager
def launcher(console: str) -> Iterator[tuple[psutil.Process, Path]]:
    """Start a launcher whose roles all come from elsewhere; yield process and run directory."""
    terminal, end = pty.openpty()
    reader = threading.Thread(target=drain, args=(terminal,), daemon=True)
    reader.start()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        command = [
            sys.executable, "-m", "pdqn", "launch", "--env", "CartPole-v1", "--preset", "none",
            "--actors", "0", "--no-learner", "--no-replay", "--bind", "127.0.0.1",
            "--time", "1h", "--console", console, "--run-dir", str(directory),
            "--set", "system.pictures=false",
        ]  # fmt: skip
        environment = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": str(LINES)}
        environment["TERM"] = "xterm-256color"
        with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment) as run:
            await_address(directory)
            try:
                yield psutil.Process(run.pid), directory
            finally:
                run.kill()
                run.wait()
                os.close(end)
                os.close(terminal)


@contextmanager
def watcher(run: Path) -> Iterator[None]:
    """Watch the run from a second console, over TCP."""
    address = find_endpoint(run).partition("|")[0]
    key = str(run / "keys" / "local.key")
    command = [sys.executable, "-m", "pdqn", "watch", address, "--key", key, "--console", "json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as watch:
        try:
            yield
            assert watch.poll() is None, "the watcher has given up"
        finally:
            watch.kill()
            watch.wait()


def await_address(run: Path) -> None:
    """Wait until others can join."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (run / ADDRESS).exists():
        assert time.monotonic() < deadline, "the launcher does not open its run"
        time.sleep(0.1)


def drain(terminal: int) -> None:
    """Read the drawn output, as a terminal does."""
    try:
        while os.read(terminal, 1 << 16):
            pass
    except OSError:
        return


if __name__ == "__main__":
    main()
