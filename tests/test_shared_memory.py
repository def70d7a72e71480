"""Memory shared between processes: attaching, refusals, and nothing left behind."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from replay.shared_memory import (
    Attachments,
    MemoryAddress,
    SharedMemory,
    SharedMemoryError,
    attach,
)

NBYTES = 10_000
Eventually = Callable[..., Any]

# Either attaches the memory that its arguments name and writes a byte, or creates memory and prints
# its name.
ATTACHES = """
import sys
from replay.shared_memory import MemoryAddress, attach
pid, fd, nbytes = map(int, sys.argv[1:4])
attach(MemoryAddress(pid, fd, bytes.fromhex(sys.argv[4]), nbytes))[nbytes - 1] = 42
"""
MAKES = """
import sys
from replay.shared_memory import SharedMemory
memory = SharedMemory(int(sys.argv[1]))
memory.body[0] = 7
a = memory.address
print(a.pid, a.fd, a.token.hex(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory(NBYTES)
    yield memory
    memory.close()


def python(program: str, *arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_another_process_writes_what_this_one_reads(memory: SharedMemory):
    address = memory.address
    arguments = (address.pid, address.fd, address.nbytes, address.token.hex())
    with python(ATTACHES, *arguments) as process:
        process.communicate()
    assert process.returncode == 0
    assert memory.body[NBYTES - 1] == 42
    assert memory.body[0] == 0


def test_what_was_attached_has_no_name_and_outlives_a_process_that_is_killed():
    with python(MAKES, NBYTES) as process:
        assert process.stdout is not None
        pid, fd, token = process.stdout.readline().split()
        body = attach(MemoryAddress(int(pid), int(fd), bytes.fromhex(token), NBYTES))
        assert str(Path(f"/proc/{pid}/fd/{fd}").readlink()).endswith(" (deleted)")
        process.kill()
        process.wait()
    assert body[0] == 7
    body[1] = 8


def test_memory_stays_valid_for_who_has_it_when_it_is_closed(memory: SharedMemory):
    body = attach(memory.address)
    memory.close()
    memory.close()
    body[3] = 9
    assert memory.body[3] == 9


def test_closed_memory_cannot_be_attached_any_more(memory: SharedMemory):
    memory.close()
    with pytest.raises(SharedMemoryError):
        attach(memory.address)


def test_the_body_is_aligned_for_any_dtype_and_as_long_as_asked_for(memory: SharedMemory):
    for body in (memory.body, attach(memory.address)):
        assert len(body) == NBYTES
        assert np.frombuffer(body, np.uint8).ctypes.data % 64 == 0


# ---- what cannot be made ----


def test_too_little_room_is_an_error_that_says_how_much_is_needed():
    with pytest.raises(SharedMemoryError, match=r"/dev/shm has .* MB free, 1125899\d* ?.* needed"):
        SharedMemory(1 << 50)


def test_no_file_system_in_memory_is_an_error():
    with pytest.raises(SharedMemoryError, match="no memory file in /nowhere: No such file"):
        SharedMemory(100, "/nowhere")


def test_a_failure_leaves_no_open_file():
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(SharedMemoryError):
            SharedMemory(1 << 50)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# ---- what is refused ----


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"token": b"x" * 16}, "another process"),
        ({"nbytes": NBYTES - 1}, "bytes, not"),
        ({"nbytes": 0}, "bytes, not"),
        ({"pid": (1 << 31) - 1}, "No such file"),
        ({"fd": 100_000}, "No such file"),
    ],
)
def test_memory_that_is_not_as_said_is_refused(
    memory: SharedMemory, change: dict[str, Any], reason: str
):
    with pytest.raises(SharedMemoryError, match=reason):
        attach(dataclasses.replace(memory.address, **change))


def refused(fd: int, size: int, reason: str) -> None:
    with pytest.raises(SharedMemoryError, match=reason):
        attach(MemoryAddress(os.getpid(), fd, bytes(16), size - 64))


def test_a_file_with_a_name_is_refused(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file:
        refused(file.fileno(), 4096, "not an unnamed file")


def test_devices_pipes_and_directories_are_refused(tmp_path: Path):
    reading, writing = os.pipe()
    fds = [os.open("/dev/null", os.O_RDWR), os.open(tmp_path, os.O_RDONLY), reading, writing]
    for fd in fds:
        refused(fd, 4096, "not an unnamed file")
        os.close(fd)


def test_a_file_that_is_not_allocated_is_refused_since_writing_to_it_may_fail():
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    os.ftruncate(fd, 1 << 20)
    refused(fd, 1 << 20, "bytes, not")
    os.close(fd)


def test_what_may_only_be_read_is_refused(tmp_path: Path):
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o400)
    os.posix_fallocate(fd, 0, 4096)
    if os.getuid() != 0:  # root may write everywhere
        refused(fd, 4096, "Permission denied")
    os.close(fd)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_another_users_file_is_refused(memory: SharedMemory):
    os.fchown(memory.address.fd, 65_534, -1)
    with pytest.raises(SharedMemoryError, match="another user"):
        attach(memory.address)


# ---- what replay keeps attached ----


def test_memory_is_attached_once(memory: SharedMemory):
    attachments = Attachments()
    first = attachments.get(memory.address, 0.0)
    memory.close()
    assert attachments.get(memory.address, 1.0) is first


def test_only_the_few_used_last_are_kept():
    attachments, memories = Attachments(), [SharedMemory(100) for _ in range(5)]
    for memory in memories[:4]:
        attachments.get(memory.address, 0.0)
    attachments.get(memories[0].address, 1.0)
    attachments.get(memories[4].address, 2.0)
    assert attachments.count == 4
    for memory in memories:
        memory.close()
    attachments.get(memories[0].address, 3.0)
    with pytest.raises(SharedMemoryError):
        attachments.get(memories[1].address, 3.0)


def test_what_is_silent_for_long_is_given_back(memory: SharedMemory):
    attachments = Attachments()
    attachments.get(memory.address, 0.0)
    attachments.drop_silent(60.0)
    assert attachments.count == 1
    attachments.drop_silent(60.1)
    assert attachments.count == 0


def test_what_is_refused_is_not_kept(memory: SharedMemory):
    attachments = Attachments()
    for _ in range(2):
        with pytest.raises(SharedMemoryError):
            attachments.get(dataclasses.replace(memory.address, token=bytes(16)), 0.0)
    assert attachments.count == 0
