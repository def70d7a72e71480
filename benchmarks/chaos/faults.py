"""Faults: functions that do one thing to a run that goes on, or to its files between sessions.

Each maker returns a fault. A fault gets the case, takes every choice from its random generator, and
adds a line to its notes.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import zmq

from benchmarks.chaos.run import Run, wait_until
from benchmarks.chaos.surroundings import Clock, Disk, Group, is_root

_MOST_GARBAGE_BYTES = 100_000
_TCP_TRIES = 50


@dataclass
class Case:
    """A scenario under way.

    Attributes:
        run: the run.
        rng: generator of every choice.
        notes: faults so far, in words.
        undo: functions that must be called at the end, newest first.
        disk: disk of the run's directory, if it has one of its own.
        shm: folder that is the run's /dev/shm, if it has one of its own.
        pids: control group of the run, if it has one.
        clock: clock of the run, if it has one.
        leaves_files: whether a process was killed that alone could remove its temporary files.
    """

    run: Run
    rng: random.Random
    notes: list[str] = field(default_factory=list)
    undo: list[Callable[[], object]] = field(default_factory=list)
    disk: Disk | None = None
    shm: Path | None = None
    pids: Group | None = None
    clock: Clock | None = None
    leaves_files: bool = False

    def note(self, text: str) -> None:
        """Note a fault."""
        self.notes.append(text)


Fault = Callable[[Case], None]


def one_after_another(*faults: Fault, pause: tuple[float, float] = (0.0, 0.0)) -> Fault:
    """Make one fault of several, with pauses of random seconds between them."""

    def inject(case: Case) -> None:
        for number, fault in enumerate(faults):
            if number:
                time.sleep(case.rng.uniform(*pause))
            fault(case)

    return inject


# ---- signals ----


def send(who: str, number: signal.Signals, *, every: bool = False) -> Fault:
    """Send a signal to one process of that name, or to every one."""

    def inject(case: Case) -> None:
        found = sorted(case.run.wait_for(who), key=lambda process: process.pid)
        chosen = found if every else case.rng.sample(found, 1)
        for process in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        case.note(f"{number.name} to {who}, {len(chosen)} of {len(found)}")

    return inject


def send_if_any(who: str, number: signal.Signals) -> Fault:
    """Send a signal to a process that some systems do without."""

    def inject(case: Case) -> None:
        found = case.run.processes(who)
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        case.note(f"{number.name} to {len(found)} {who}")

    return inject


def kill(who: str, *, every: bool = False) -> Fault:
    """Kill one process of that name, or every one."""
    return send(who, signal.SIGKILL, every=every)


def send_group(number: signal.Signals) -> Fault:
    """Send a signal to the launcher's process group, as a terminal does."""

    def inject(case: Case) -> None:
        os.killpg(case.run.launcher.session, number)
        case.note(f"{number.name} to the group")

    return inject


def kill_everything(case: Case) -> None:
    """Kill all processes at once, so that none can react to the end of another."""
    for process in case.run.members():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGSTOP)
    for process in case.run.members():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    case.note("SIGKILL to everything")


def kill_everything_storm(case: Case) -> None:
    """Kill random roles, one every half second."""
    for _ in range(6):
        names = [name for name in ("replay", "learner", "actor") if case.run.processes(name)]
        if names:
            kill(case.rng.choice(names))(case)
        time.sleep(0.5)


def stop(who: str, seconds: float, *, every: bool = False, meanwhile: Fault | None = None) -> Fault:
    """Stop a process of that name, or every one, and let it go on after a while.

    Args:
        who: name of the processes.
        seconds: time until they go on.
        every: whether to stop every one.
        meanwhile: fault that happens a moment after the stop.
    """

    def inject(case: Case) -> None:
        found = sorted(case.run.wait_for(who), key=lambda process: process.pid)
        chosen = found if every else [case.rng.choice(found)]
        case.note(f"SIGSTOP for {seconds:g} s to {who}, {len(chosen)} of {len(found)}")
        _signal(chosen, signal.SIGSTOP)
        ends = time.monotonic() + seconds
        try:
            if meanwhile is not None:
                time.sleep(case.rng.uniform(0.0, 3.0))
                meanwhile(case)
            time.sleep(max(0.0, ends - time.monotonic()))
        finally:
            _signal(chosen, signal.SIGCONT)

    return inject


def kill_host(case: Case) -> None:
    """Kill all processes of a host that joined."""
    case.run.hosts[0].end_all()
    case.leaves_files = True
    case.note("a host killed")


def move_host(case: Case) -> None:
    """Kill all processes of a host with replay, and let another host join in its place.

    Before the run has missed the first one, the place is taken.
    """
    kill_host(case)
    events = case.run.path / "events.jsonl"
    wait_until(lambda: '"vanished"' in events.read_text("utf-8"), 60.0, "the end of the host")
    case.run.join("replay")


def stop_host(seconds: float) -> Fault:
    """Let all processes of a host that joined stand still for a while."""

    def inject(case: Case) -> None:
        members = case.run.hosts[0].members()
        case.note(f"SIGSTOP for {seconds:g} s to a host of {len(members)} processes")
        _signal(members, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            _signal(members, signal.SIGCONT)

    return inject


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


# ---- files ----


def flip_bits(pattern: str, bits: int = 8, *, every: bool = False) -> Fault:
    """Flip bits in the newest file of this pattern in the run's directory, or in every one."""

    def damage(case: Case, path: Path) -> None:
        data = bytearray(path.read_bytes())
        for _ in range(bits if data else 0):
            data[case.rng.randrange(len(data))] ^= 1 << case.rng.randrange(8)
        path.write_bytes(data)
        case.note(f"{bits} bits of {path.relative_to(case.run.path)} flipped")

    return _each_file(pattern, damage, every=every)


def cut(pattern: str, *, every: bool = False) -> Fault:
    """Cut the newest file of this pattern at a random place, or every one."""

    def damage(case: Case, path: Path) -> None:
        size = case.rng.randrange(max(1, path.stat().st_size))
        os.truncate(path, size)
        case.note(f"{path.relative_to(case.run.path)} cut to {size} bytes")

    return _each_file(pattern, damage, every=every)


def overwrite(pattern: str, content: bytes) -> Fault:
    """Put something else into the newest file of this pattern."""

    def damage(case: Case, path: Path) -> None:
        path.write_bytes(content)
        case.note(f"{path.relative_to(case.run.path)} is {content[:20]!r}")

    return _each_file(pattern, damage)


def append(pattern: str, content: bytes) -> Fault:
    """Append something to the newest file of this pattern."""

    def damage(case: Case, path: Path) -> None:
        with path.open("ab") as file:
            file.write(content)
        case.note(f"{len(content)} bytes appended to {path.relative_to(case.run.path)}")

    return _each_file(pattern, damage)


def remove(pattern: str, *, every: bool = False) -> Fault:
    """Remove the newest file or folder of this pattern in the run's directory, or every one."""

    def damage(case: Case, path: Path) -> None:
        _remove(path)
        case.note(f"{path.relative_to(case.run.folder)} removed")

    return _each_file(pattern, damage, every=every)


def _each_file(pattern: str, damage: Callable[[Case, Path], None], *, every: bool = False) -> Fault:
    def inject(case: Case) -> None:
        found = wait_until(
            lambda: sorted(case.run.path.glob(pattern), key=lambda path: path.stat().st_mtime),
            20.0,
            pattern,
        )
        for path in found if every else found[-1:]:
            damage(case, path)

    return inject


def put_folder(name: str) -> Fault:
    """Make a folder in the place of a file of the run."""

    def inject(case: Case) -> None:
        path = case.run.path / name
        with contextlib.suppress(FileExistsError):
            path.mkdir()
        case.note(f"{name} is a folder" if path.is_dir() else f"{name} came back first")

    return inject


def clean_temporary(pattern: str) -> Fault:
    """Remove folders of the temporary directory, as a cleaner does."""

    def inject(case: Case) -> None:
        found = sorted(case.run.temporary.glob(pattern))
        for path in found:
            _remove(path)
        case.note(f"{len(found)} of {pattern} in the temporary directory removed")

    return inject


def remove_run(case: Case) -> None:
    """Remove the run's directory."""
    _remove(case.run.path)
    case.note("the run's directory removed")


def replace_run_by_file(case: Case) -> None:
    """Move the run's directory away, and put a file in its place."""
    case.run.path.rename(case.run.path.with_name("elsewhere"))
    with contextlib.suppress(FileExistsError):
        case.run.path.touch(exist_ok=False)
    case.note("a file in place of the run's directory")


def move_run(case: Case) -> None:
    """Move the run's directory."""
    case.run.path.rename(case.run.path.with_name("elsewhere"))
    case.note("the run's directory moved")


def _remove(path: Path) -> None:
    # The run may write there at the same time.
    for _ in range(20):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            return
        except OSError:
            continue
        return


# ---- disks ----


def fill_disk(seconds: float | None) -> Fault:
    """Fill the run's disk, and make room again after a while; None for never."""

    def inject(case: Case) -> None:
        assert case.disk is not None
        case.note(f"the disk full for {seconds or 'ever'} s")
        if seconds is None:
            case.disk.fill()
            return
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            case.disk.fill()
            time.sleep(0.1)
        case.disk.free()

    return inject


def freeze_disk(seconds: float) -> Fault:
    """Let the run's disk hang for a while."""

    def inject(case: Case) -> None:
        assert case.disk is not None
        case.note(f"the disk hangs for {seconds:g} s")
        case.disk.freeze(seconds).wait(seconds + 30)

    return inject


def make_read_only(seconds: float) -> Fault:
    """Let the run's folders take no new file for a while; files that are open can be written."""

    def inject(case: Case) -> None:
        folders = [case.run.path, *(p for p in case.run.path.iterdir() if p.is_dir())]
        case.note(f"read-only for {seconds:g} s")
        _set_read_only(folders, on=True)
        try:
            time.sleep(seconds)
        finally:
            _set_read_only(folders, on=False)

    return inject


def _set_read_only(folders: list[Path], *, on: bool) -> None:
    if is_root():  # whom modes do not stop
        command = ["chattr", "+i" if on else "-i", *map(str, folders)]
        subprocess.run(command, check=True, timeout=10)
        return
    for folder in folders:
        folder.chmod(0o500 if on else 0o700)


def fill_shared_memory(case: Case) -> None:
    """Leave no byte of the run's /dev/shm free."""
    assert case.shm is not None
    with contextlib.suppress(OSError), (case.shm / "filler").open("ab") as file:
        while True:
            file.write(bytes(1 << 20))
    case.note("/dev/shm full")


# ---- limits and clocks ----


def take_descriptors(who: str, spare: int, seconds: float) -> Fault:
    """Leave a process only a few more descriptors than it has, for a while."""

    def limit(process: psutil.Process) -> tuple[int, str]:
        few = process.num_fds() + spare
        return few, f"{few} descriptors for {who}, {seconds:g} s"

    return _limit(who, resource.RLIMIT_NOFILE, limit, seconds)


def limit_file_size(who: str, size_bytes: int, seconds: float) -> Fault:
    """Let a process write no file beyond a size, for a while."""
    told = f"files of {size_bytes} bytes for {who}, {seconds:g} s"
    return _limit(who, resource.RLIMIT_FSIZE, lambda _: (size_bytes, told), seconds)


def _limit(
    who: str, kind: int, limit: Callable[[psutil.Process], tuple[int, str]], seconds: float
) -> Fault:
    """Lower a limit of a process for a while; ``limit`` gives the number, and what is noted."""

    def inject(case: Case) -> None:
        process = case.rng.choice(case.run.wait_for(who))
        old = resource.prlimit(process.pid, kind)
        lower, told = limit(process)
        case.note(told)
        resource.prlimit(process.pid, kind, (lower, old[1]))
        try:
            time.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, kind, old)

    return inject


def take_processes(then: Fault, seconds: float) -> Fault:
    """Let no process or thread start for a while, and do something meanwhile."""

    def inject(case: Case) -> None:
        assert case.pids is not None
        case.pids.limit(case.pids.count)
        case.note(f"no new processes for {seconds:g} s")
        try:
            then(case)
            time.sleep(seconds)
        finally:
            case.pids.limit(None)

    return inject


def move_clock(seconds: int) -> Fault:
    """Set the wall's clock of the run forward, or back."""

    def inject(case: Case) -> None:
        assert case.clock is not None
        case.clock.move(seconds)
        case.note(f"clock moved by {seconds} s")

    return inject


# ---- garbage ----


def send_raw(make: Callable[[random.Random], bytes], what: str, folders: str = "pdqn-*") -> Fault:
    """Send bytes to every socket in these folders, and every port, over plain connections."""

    def inject(case: Case) -> None:
        count = 0
        for address in _addresses(case.run, folders):
            with contextlib.suppress(OSError), _connected(address) as connection:
                connection.sendall(make(case.rng))
                count += 1
                time.sleep(0.05)
        case.note(f"{what} to {count} sockets")

    return inject


def send_messages(case: Case) -> None:
    """Send messages of random frames to every socket of the run, as each kind of socket."""
    context = zmq.Context()
    kinds = (zmq.DEALER, zmq.PUSH, zmq.REQ, zmq.SUB, zmq.XSUB)
    addresses = [a for a in _addresses(case.run) if isinstance(a, str)]
    try:
        for address in addresses:
            for kind in kinds:
                _send_frames(context, case, f"ipc://{address}", kind)
    finally:
        context.destroy(linger=200)
    case.note(f"random messages to {len(addresses)} sockets")


def _send_frames(context: zmq.Context, case: Case, endpoint: str, kind: int) -> None:
    with context.socket(kind) as sender:
        sender.setsockopt(zmq.SNDTIMEO, 100)
        sender.setsockopt(zmq.LINGER, 100)
        sender.connect(endpoint)
        for _ in range(5):
            frames = [case.rng.randbytes(case.rng.randrange(3000)) for _ in range(3)]
            with contextlib.suppress(zmq.ZMQError):
                sender.send_multipart(frames[: case.rng.randint(1, 3)])


def flood(case: Case) -> None:
    """Open many silent connections to every socket of the run, for a few seconds."""
    with contextlib.ExitStack() as stack:
        count = 0
        for address in _addresses(case.run):
            for _ in range(_TCP_TRIES):
                with contextlib.suppress(OSError):
                    stack.enter_context(_connected(address))
                    count += 1
        time.sleep(3.0)
    case.note(f"{count} silent connections")


def random_bytes(rng: random.Random) -> bytes:
    """Return some bytes."""
    return rng.randbytes(rng.randrange(1, _MOST_GARBAGE_BYTES))


def half_message(rng: random.Random) -> bytes:
    """Return ZeroMQ's greeting and the beginning of a long frame."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
    ready = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH"
    return greeting + ready + b"\x02" + (1 << 40).to_bytes(8, "big") + rng.randbytes(1000)


def other_protocol(_rng: random.Random) -> bytes:
    """Return a request of the web."""
    return b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def _addresses(run: Run, folders: str = "pdqn-*") -> list[str | int]:
    """List the paths and loopback ports at which the run listens."""
    paths = sorted(run.temporary.glob(f"{folders}/*"))
    found: list[str | int] = [str(path) for path in paths if path.is_socket()]
    for process in run.members():
        with contextlib.suppress(psutil.Error):
            ports = (c.laddr.port for c in process.net_connections("tcp") if c.status == "LISTEN")
            found += sorted(ports)
    return found


def _connected(address: str | int) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(1.0)
    try:
        connection.connect(address if isinstance(address, str) else ("127.0.0.1", address))
    except OSError:
        connection.close()
        raise
    return connection
