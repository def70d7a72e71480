"""Starts of processes that fail or hang, and what lives on when a helper is killed."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.hosts.supervisor import Supervisor
from launcher.processes import forkserver
from launcher.processes.children import Forked, Order, modules_path
from launcher.processes.forkserver import ForkServer, Patience
from launcher.processes.restarts import Ended, Exit
from launcher.processes.role_process import describe_failure
from pdqn.process import OF_GROUP
from pdqn.transport import Network

Eventually = Callable[..., Any]

NOBODY = "ipc:///nobody/is/here"
NO_MORE = os.strerror(errno.EAGAIN)


# ---- failures ----


def test_a_limit_of_the_machine_ends_a_role_with_one_line_and_a_fault_of_ours_with_its_traceback():
    limit = OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/dev/null")
    assert describe_failure(limit) == "OSError: [Errno 24] Too many open files: '/dev/null'"
    with pytest.raises(PermissionError) as raised:
        raise PermissionError(errno.EPERM, "no\x1b")
    told = describe_failure(raised.value)
    assert told.startswith("\nTraceback")
    assert told.endswith("PermissionError: [Errno 1] no\\x1b")


# ---- an early start ----


def test_a_forkserver_that_was_begun_early_gets_the_limits_that_are_set_later():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    server = ForkServer()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
        server.begin()
        pid = server.pid
        assert pid
        server.begin()
        assert server.pid == pid, "there is one already"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (soft - 1, hard)
    Supervisor(NOBODY, None, 5, forkserver=server).share_limits()
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (soft, hard)
    server.close()
    server.share_limits()  # of nobody


# ---- patience ----


def test_a_forkserver_has_a_minute_for_its_imports():
    patience = Patience(since=100.0)
    patience.ask(101.0)
    assert patience.lack(160.0) == ""
    assert patience.lack(160.1) == "not ready within 60 s"


def test_a_forkserver_that_nobody_asks_may_be_silent():
    patience = Patience(since=100.0)
    patience.hear(103.0, is_answer=False)
    assert patience.lack(9999.0) == ""


def test_requests_that_came_during_the_imports_are_answered_ten_seconds_after_them():
    patience = Patience(since=100.0)
    patience.ask(100.0)
    patience.hear(150.0, is_answer=False)
    assert patience.lack(160.0) == ""
    assert patience.lack(160.1) == "no answer for 10 s"


def test_each_answer_gives_the_next_ten_seconds_more():
    patience = Patience(since=0.0, is_ready=True)
    patience.ask(100.0)
    patience.ask(105.0)
    patience.hear(109.0, is_answer=True)
    assert patience.lack(119.0) == ""
    assert patience.lack(119.1) == "no answer for 10 s"
    patience.hear(120.0, is_answer=True)
    assert patience.lack(9999.0) == ""


# ---- a forkserver ----


def order(tmp_path: Path, role: str = "replay") -> Order:
    log = tmp_path / "log"
    return Order(role, NOBODY, 0, log, Network(), modules_path(), tuple(sys.argv))


@pytest.fixture
def make() -> Iterator[Callable[..., ForkServer]]:
    made: list[ForkServer] = []

    def make(preloaded: str = "json") -> ForkServer:
        made.append(ForkServer(preloaded))
        return made[-1]

    yield make
    for server in made:
        server.close()


def test_a_process_lives_on_without_its_forkserver_and_a_new_one_forks_the_next(
    make: Callable[..., ForkServer], eventually: Eventually, tmp_path: Path
):
    server = make()
    first = server.start(order(tmp_path))
    eventually(lambda: server.turn() or first.pid)
    before = server.pid
    os.kill(before, signal.SIGKILL)
    assert eventually(server.turn) == Ended(
        "forkserver", 0, before, "killed by SIGKILL", 0.5, False
    )
    assert first.is_alive
    second = server.start(order(tmp_path))
    eventually(lambda: server.turn() or second.pid)
    assert server.pid != before
    assert server.restarts == 1
    # The signals to the group must not end it before it ignores them, nor what it forks.
    status = Path(f"/proc/{server.pid}/status").read_text(encoding="ascii")
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    assert all(blocked >> (number - 1) & 1 for number in OF_GROUP)
    first.send_signal(signal.SIGKILL)
    second.send_signal(signal.SIGKILL)
    assert eventually(first.look) == Exit(None)
    assert eventually(lambda: server.turn() or second.look()) == Exit(-signal.SIGKILL)


def test_the_exit_code_of_a_process_comes_through_its_forkserver(
    make: Callable[..., ForkServer], eventually: Eventually, tmp_path: Path
):
    server = make()
    child = server.start(order(tmp_path, "no such role"))
    assert eventually(lambda: server.turn() or child.look()) == Exit(1)


def test_without_a_forkserver_a_process_tells_its_exit_code_itself(tmp_path: Path):
    child = Forked(order(tmp_path))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, subprocess.Popen(["true"]) as process:
        child.hand_over(ours, 1)
        (lifeline,) = socket.recv_fds(theirs, 4, 1)[1]
        child.started(process.pid, os.pidfd_open(process.pid))
        os.write(lifeline, b"\x07")
        os.close(lifeline)
        process.wait()
    child.orphan()
    assert child.look() == Exit(7)


def test_a_forkserver_that_hangs_is_ended_and_what_it_was_asked_for_has_failed(
    make: Callable[..., ForkServer],
    eventually: Eventually,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(forkserver, "_ANSWER_SECONDS", 0.3)
    server = make()
    first = server.start(order(tmp_path, "no such role"))
    eventually(lambda: server.turn() or first.look())
    os.kill(server.pid, signal.SIGSTOP)
    second = server.start(order(tmp_path))
    ended = eventually(server.turn)
    assert ended.cause == "no answer for 0.3 s"
    assert second.exit == Exit(failure="the forkserver ended (no answer for 0.3 s)")
    assert not psutil.pid_exists(ended.pid)


def test_a_forkserver_that_cannot_fork_fails_one_process_and_lives(
    make: Callable[..., ForkServer], eventually: Eventually, tmp_path: Path
):
    server = make("failing_fork")
    for _ in range(2):
        child = server.start(order(tmp_path))
        assert eventually(lambda c=child: server.turn() or c.look()) == Exit(failure=NO_MORE)


def test_a_forkserver_that_ends_again_and_again_is_given_up(
    make: Callable[..., ForkServer],
    eventually: Eventually,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(forkserver, "_RESTARTS", 0)
    server = make("no_such_module")
    child = server.start(order(tmp_path))
    assert eventually(server.turn).restart_seconds is None
    assert child.exit == Exit(failure="the forkserver ended (exit code 1)")
    assert server.is_given_up


# ---- a supervisor ----


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[[str], Supervisor]]:
    made: list[Supervisor] = []

    def supervise(preloaded: str) -> Supervisor:
        made.append(Supervisor(NOBODY, tmp_path, 5, forkserver=ForkServer(preloaded)))
        return made[-1]

    yield supervise
    for supervisor in made:
        supervisor.kill_all()


@pytest.mark.parametrize("role", ["replay", "actor"], ids=["started directly", "forked"])
def test_a_start_for_which_there_is_no_process_is_an_end_of_the_role_and_is_tried_again(
    supervise: Callable[[str], Supervisor],
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    role: str,
):
    def fail(*_: Any, **__: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, NO_MORE)

    supervisor = supervise("json")
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", fail)
        supervisor.start(role, 0)
        ended = eventually(supervisor.check)
    assert ended == [Ended(role, 0, 0, f"not started: {NO_MORE}", 0.5)]
    assert supervisor.slots()[role, 0] == "restarting"
    eventually(lambda: supervisor.check() or supervisor.pids())
    assert supervisor.restarted == {role: 1}


def test_roles_that_a_run_cannot_do_without_do_not_wait_for_a_forkserver_that_hangs(
    supervise: Callable[[str], Supervisor], eventually: Eventually
):
    supervisor = supervise("hanging_import")
    supervisor.start("actor", 0)
    supervisor.start("replay", 0)
    assert supervisor.check() == []
    assert len(supervisor.pids()) == 1
    supervisor.kill_all()
    supervisor.check()
    assert not supervisor.busy()


def test_a_learner_does_not_wait_for_a_forkserver_that_has_failed(
    supervise: Callable[[str], Supervisor], eventually: Eventually
):
    supervisor = supervise("no_such_module")
    supervisor.start("learner", 0)
    ended: list[Ended] = []
    eventually(lambda: ended.extend(supervisor.check()) or supervisor.pids())
    assert [(one.role, one.cause) for one in ended] == [
        ("forkserver", "exit code 1"),
        ("learner", "not started: the forkserver ended (exit code 1)"),
    ]
    assert supervisor.restarted == {"learner": 1}


def test_a_forkserver_killed_while_many_start_leaves_none_of_them_in_between(
    supervise: Callable[[str], Supervisor], eventually: Eventually
):
    supervisor = supervise("json")
    supervisor.start("actor", 0)
    eventually(lambda: supervisor.check() or supervisor.pids())
    (server,) = (p for p in psutil.Process().children() if p.cmdline()[0] == "pdqn forkserver")
    eventually(lambda: supervisor.check() or server.status() == psutil.STATUS_SLEEPING)
    for index in range(1, 9):
        supervisor.start("replay", index)
    server.kill()
    ended: list[Ended] = []
    eventually(lambda: ended.extend(supervisor.check()) or len(supervisor.pids()) == 9)
    causes = {one.cause for one in ended if one.role != "forkserver"}
    assert causes <= {"not started: the forkserver ended (killed by SIGKILL)"}
    assert [one.restart_seconds for one in ended if one.role == "forkserver"] == [0.5]
    assert "forkserver" not in supervisor.restarted, "it was not needed again"
    supervisor.start("actor", 1)
    eventually(lambda: supervisor.check() or len(supervisor.pids()) == 10)
    assert supervisor.restarted["forkserver"] == 1
    supervisor.ask_to_leave()
    pids = supervisor.pids()
    assert supervisor.join(60.0, ["actor", "replay"])
    supervisor.kill_all()
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))


ORPHANS = """
import os, signal, sys, time
from launcher.processes.children import Direct, Order
from launcher.processes.forkserver import ForkServer
from pdqn.transport import Network

order = Order("replay", "ipc:///nobody/is/here", 0, None, Network(), tuple(sys.path), ("",))
server, children = ForkServer("json"), [Direct(order)]
for number in (signal.SIGKILL, signal.SIGSTOP):
    children.append(server.start(order))
    while not children[-1].pid:
        server.turn()
        time.sleep(0.02)
    pid = server.pid
    os.kill(pid, number)
    while number == signal.SIGKILL and not server.turn():
        time.sleep(0.02)
print(pid, *(child.pid for child in children), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_outlives_a_launcher_that_is_killed_after_its_forkserver(eventually: Eventually):
    command = [sys.executable, "-c", ORPHANS]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    pids = [int(pid) for pid in ended.stdout.split()]
    assert len(pids) == 4, ended.stderr
    eventually(lambda: not any(_lives(pid) for pid in pids))


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
