"""The folder of a run's sockets: where it is, and its care while the run goes on.

A system limits a socket's path to about a hundred bytes, and TMPDIR alone can be longer. Only this
user may enter the folder, so sockets without a path, which anybody can reach, are not an option.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.folders import Folder, sweep
from pdqn.errors import UsageError, reason_of
from pdqn.socket_files import make_private
from pdqn.transport import can_be_address

_PREFIX = "pdqn-"
# The longest name of a socket, such as "replay-12-3456-transitions", with room to spare.
_NAME = "x" * 40


class SocketsFolder:
    """A folder of sockets that is kept from cleaners, and made again if one has removed it.

    Each process binds its own sockets there once more; see ``SocketFile``.

    Args:
        path: the folder, which exists.

    Attributes:
        path: the folder.
        is_open: whether processes can be reached through the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._folder = path, Folder(path)
        self._folder.mark()
        self.is_open = True

    def look(self) -> str:
        """Look after the folder; return a line about what has changed, or an empty one."""
        self._folder.renew()
        if self._folder.is_in_place():
            return ""
        what = f"{self.path}, the folder of the run's sockets, was removed"
        try:
            make_private(self.path)
            self._folder.take(self.path)
            self._folder.mark()
        except OSError as error:
            told, self.is_open = not self.is_open, False
            why = f"it cannot be made again ({reason_of(error)}): a role that ends cannot come back"
            return "" if told else f"{what}, and {why}"
        self.is_open = True
        return f"{what}: it is made again"

    def remove(self) -> None:
        """Remove the folder."""
        self._folder.close()
        shutil.rmtree(self.path, ignore_errors=True)


def make_folder() -> Path:
    """Make a new folder for sockets, which only this user can enter.

    It is in the temporary directory, or, if that takes no sockets, in another one. Folders that
    processes of this user have left because they were killed are removed.

    Raises:
        UsageError: no directory takes sockets.
    """
    sweep(_candidates())
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=find_parent()))


@contextmanager
def folder() -> Iterator[Path]:
    """Make such a folder for the block, and remove it afterwards."""
    made = SocketsFolder(make_folder())
    try:
        yield made.path
    finally:
        made.remove()


def find_parent() -> str:
    """Find a directory in which sockets can be made.

    Raises:
        UsageError: there is none; the message says why not.
    """
    reasons: list[str] = []
    for parent in _candidates():
        reason = why_not(parent)
        if not reason:
            return parent
        reasons.append(f"{parent}: {reason}")
    raise UsageError(
        f"no directory takes the sockets of a run ({'; '.join(reasons)}); set TMPDIR to a short "
        "path in which you may write"
    )


def why_not(parent: str) -> str:
    """Say why sockets cannot be made in a folder of a directory; empty if they can.

    Args:
        parent: an absolute path.
    """
    if not can_be_address(parent):
        return "its name cannot be part of an address"
    try:
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent) as name:
            return _why_not_bound(f"{name}/{_NAME}")
    except OSError as error:
        return error.strerror or str(error)


def _candidates() -> Iterator[str]:
    """Yield directories in the order of preference, each once."""
    found: list[str] = []
    with contextlib.suppress(OSError):  # nothing can be written anywhere
        found.append(tempfile.gettempdir())
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    found += [path for path in (given, "/tmp", "/var/tmp", "/dev/shm") if Path(path).is_absolute()]
    yield from dict.fromkeys(found)


def _why_not_bound(path: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(path)
        except OSError as error:
            return error.strerror or "its path is too long"
    return ""
