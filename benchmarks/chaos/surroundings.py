"""The surroundings of a run that can be taken away: disks, memory, processes, clocks, terminals.

Much of it needs root. Mounts are made in a namespace of this process, so none outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_NEW_NAMESPACE = 0x20000
_FILL_BYTES = 1 << 20
_COMMAND_SECONDS = 20.0
_PIPE_BYTES = 4096
# A clock that a file moves, for programs that are started with this library.
_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long offset(void) {
    static long *at;
    if (!at) {
        int file = open(getenv("CHAOS_CLOCK"), O_RDONLY);
        if (file < 0) return 0;
        at = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
        close(file);
    }
    return at == MAP_FAILED ? 0 : *at;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (!result && clock == CLOCK_REALTIME) now->tv_sec += offset();
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec time;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return result;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


def is_root() -> bool:
    """Return whether this process may mount."""
    return os.geteuid() == 0


def keep_mounts_private() -> None:
    """Give this process mounts of its own, which end with it and its children."""
    if is_root():
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_NEW_NAMESPACE) == 0:
            _run("mount", "--make-rprivate", "/")


@cache
def lacks(what: str) -> str:
    """Say why something cannot be had here; empty if it can.

    Args:
        what: ``mount``, ``loop``, ``pids``, ``memory``, ``time`` or ``clock``.
    """
    if what == "clock":
        return "" if shutil.which("gcc") else "no C compiler"
    if not is_root():
        return "not root"
    with tempfile.TemporaryDirectory() as folder:
        try:
            if what == "mount":
                Disk(Path(folder), 4).unmount()
            elif what == "loop":
                Disk(Path(folder), 16, "ext4").unmount()
            elif what == "time":
                _run("unshare", "-T", "--monotonic", "1000", "true")
            else:
                Group(what, "pdqn-chaos-probe").remove()
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
    return ""


class Disk:
    """A small disk of its own.

    Args:
        folder: folder in which it is mounted, which is empty.
        size_mb: its size in MB.
        kind: ``tmpfs``, or ``ext4`` in a file beside it, which can be frozen.

    Attributes:
        path: folder on it.
    """

    def __init__(self, folder: Path, size_mb: int, kind: str = "tmpfs") -> None:
        self.path = folder
        if kind == "tmpfs":
            _run("mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder))
            return
        image = folder.with_suffix(".img")
        with image.open("wb") as file:
            file.truncate(size_mb << 20)
        try:
            _run("mkfs.ext4", "-q", "-m", "0", str(image))
            _run("mount", "-o", "loop,noatime", str(image), str(folder))
        finally:
            image.unlink()

    def fill(self) -> None:
        """Leave no byte free."""
        with contextlib.suppress(OSError), (self.path / "filler").open("ab") as file:
            while True:
                file.write(bytes(_FILL_BYTES))
        with contextlib.suppress(OSError), (self.path / "filler").open("ab", 0) as file:
            while True:
                file.write(b"\0")

    def free(self) -> None:
        """Make room again."""
        with contextlib.suppress(OSError):
            (self.path / "filler").unlink()

    def freeze(self, seconds: float) -> subprocess.Popen[bytes]:
        """Let every write to it wait for this long, even if this process ends meanwhile."""
        path = str(self.path)
        script = 'fsfreeze -f "$1" && sleep "$2"; fsfreeze -u "$1"'
        return subprocess.Popen(
            ["sh", "-c", script, "sh", path, str(seconds)],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def unmount(self) -> None:
        """Remove it."""
        unmount(self.path)


def unmount(folder: Path) -> None:
    """Remove a mount, even while something still uses it."""
    _run("umount", "--lazy", str(folder))


class Group:
    """A control group with a limit.

    Args:
        controller: ``pids`` or ``memory``.
        name: its name.
    """

    def __init__(self, controller: str, name: str) -> None:
        old = Path("/sys/fs/cgroup") / controller
        self.path = (old if old.is_dir() else Path("/sys/fs/cgroup")) / name
        is_old = old.is_dir()
        names = {"pids": "pids.max", "memory": "memory.max"}
        self._limit = "memory.limit_in_bytes" if is_old and controller == "memory" else (
            names[controller]
        )  # fmt: skip
        self.path.mkdir(exist_ok=True)
        if not (self.path / self._limit).exists():
            self.path.rmdir()
            raise OSError(f"no controller {controller}")

    def prefix(self) -> list[str]:
        """Return a command that runs another one in this group."""
        return ["sh", "-c", f'echo $$ > "{self.path}/cgroup.procs"; exec "$@"', "sh"]

    def limit(self, amount: int | None) -> None:
        """Set the limit; None for none."""
        unlimited = "-1" if "limit_in_bytes" in self._limit else "max"
        text = unlimited if amount is None else str(amount)
        (self.path / self._limit).write_text(text, "ascii")

    @property
    def count(self) -> int:
        """Number of processes and threads in a group of ``pids``."""
        return int((self.path / "pids.current").read_text("ascii"))

    def remove(self) -> None:
        """Remove the group, if its processes have ended."""
        with contextlib.suppress(OSError):
            self.path.rmdir()


class Clock:
    """A clock of the wall that a file moves.

    Args:
        folder: folder for the library and the file.

    Attributes:
        variables: environment variables for commands that go by this clock.
    """

    def __init__(self, folder: Path) -> None:
        source, library, self._file = (folder / f"clock.{s}" for s in ("c", "so", "offset"))
        source.write_text(_CLOCK, "ascii")
        _run("gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl")
        self.move(0)
        self.variables = {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self._file)}

    def move(self, seconds: int) -> None:
        """Set the clock this many seconds ahead of the machine's, or behind it."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(seconds.to_bytes(8, "little", signed=True))


def own_shared_memory(folder: Path, size_mb: int) -> list[str]:
    """Return a command that runs another one with a /dev/shm of its own, seen here as a folder."""
    Disk(folder, size_mb)
    script = 'mount --bind "$1" /dev/shm; shift; exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", str(folder)]


def unread_pipe() -> tuple[int, int]:
    """Return the end for writing of a small pipe, and the other end, which nobody reads."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return writer, reader


def _run(*command: str) -> None:
    result = subprocess.run(
        command, capture_output=True, timeout=_COMMAND_SECONDS, check=False, text=True
    )
    if result.returncode:
        raise OSError(f"{' '.join(command[:3])}: {result.stderr.strip()[:200]}")
