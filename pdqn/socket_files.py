"""The files of sockets, which cleaners of temporary folders remove under a running process."""

from __future__ import annotations

import logging
import os
import stat
import time
from pathlib import Path

import zmq

from pdqn import transport

_LOOK_SECONDS = 1.0
_PREFIX = "ipc://"
_log = logging.getLogger("sockets")


def make_private(folder: Path) -> None:
    """Make a folder for this user alone, unless it is there.

    Raises:
        PermissionError: others can write to the folder that is there, or it is somebody else's.
        OSError: it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(folder)


def _check_private(folder: Path) -> None:
    """Check that a folder is for this user alone.

    Raises:
        PermissionError: others can write to it, or it is somebody else's.
        OSError: there is none.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder for this user alone")


class SocketFile:
    """The file of a bound socket. While it is there, processes of this host can connect.

    The socket is bound once more if the file has gone. Connections that exist are not touched. A
    folder that has gone is made again by the process that has made it, which may have ended.

    Args:
        socket: the bound socket. Use it and this object from one thread.
        endpoint: where it is bound; without a file, such as for TCP, there is nothing to do.
    """

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str) -> None:
        self._socket = socket
        self._address = transport.split(endpoint)[0]
        is_file = self._address.startswith(_PREFIX)
        self._path = Path(self._address.removeprefix(_PREFIX)) if is_file else None
        self._next_look = 0.0
        self._trouble = ""

    def tend(self) -> None:
        """Look after the file, at most once a second; a failure is logged once."""
        now = time.monotonic()
        if self._path is None or now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        if self._path.exists():
            return
        try:
            _check_private(self._path.parent)
            self._socket.bind(self._address)
        except (OSError, zmq.ZMQError) as error:
            if str(error) != self._trouble:
                _log.warning("the socket %s was removed: %s", self._path, error)
            self._trouble = str(error)
        else:
            self._trouble = ""
            _log.info("the socket %s was removed: it is made again", self._path)
