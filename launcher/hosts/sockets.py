"""The folder of the sockets through which the processes of this host reach each other."""

from __future__ import annotations

import shutil
from pathlib import Path

from launcher.folders import Folder
from pdqn.doors import make_private
from pdqn.errors import reason_of


class SocketsFolder:
    """A folder of sockets that is kept from cleaners, and made again if one has removed it.

    Each process binds its own sockets there once more; see ``LocalDoor``.

    Args:
        path: the folder, which exists.

    Attributes:
        path: the folder.
        is_open: whether processes can be reached through the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._folder = path, Folder(path)
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
