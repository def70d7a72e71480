"""The file in a run's directory by which commands on the same host find the run.

It holds the address where processes of this host join, and the public key of the process that
serves there. With the key file that the run has made in its directory, a command of the same user
needs no more than ``--join RUN``.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.hosts.keys import KEYS, HostKey, check_private, read_key
from launcher.rundir import CONFIG, is_open, replace_text
from pdqn import transport
from pdqn.checks import check_text
from pdqn.errors import UsageError
from pdqn.files import RUN_ID
from pdqn.wire import WireError

ADDRESS = "address.json"
# Name of the key for commands on the run's host.
LOCAL_KEY = "local"
_MAX_BYTES = 10_000


@dataclass(frozen=True)
class RunAddress:
    """The way into a run for processes of its host.

    Attributes:
        run: the run's identifier, as in its directory: a file of an earlier session has another.
        endpoint: the coordinator's; it has a key if the run is encrypted.

    Raises:
        WireError: one of them is not a text, or the endpoint has another protocol.
    """

    run: str
    endpoint: str

    def __post_init__(self) -> None:
        """Check the fields."""
        check_text(self.run, "run")
        check_text(self.endpoint, "endpoint")
        if not self.endpoint.startswith("tcp://"):
            raise WireError("malformed", f"endpoint = {self.endpoint!r:.60}; expected tcp://")

    def write(self, directory: Path) -> None:
        """Write it into the run's directory; a reader never sees a part of it."""
        replace_text(directory / ADDRESS, json.dumps(asdict(self)) + "\n")


def remove_address(directory: Path) -> None:
    """Remove the file, since nobody can join any more."""
    with contextlib.suppress(OSError):
        (directory / ADDRESS).unlink(missing_ok=True)


def find_endpoint(directory: Path) -> str:
    """Find where a run in progress on this host is joined.

    Raises:
        UsageError: there is no run, it has ended, it is not open to other processes, or another
            user could have written its address.
    """
    path = directory / ADDRESS
    try:
        if not (directory / CONFIG).is_file():
            raise UsageError(
                f"--join {directory}: not a run directory; expected tcp://HOST:PORT, or the "
                "directory of a run on this host"
            )
        goes_on = is_open(directory)
        found = _read(path) if path.exists() else None
        run = (directory / RUN_ID).read_text(encoding="utf-8") if found else ""
    except OSError as error:
        raise UsageError(f"--join {directory}: {error.strerror}") from error
    if not goes_on:
        raise UsageError(f"--join {directory}: this run has ended")
    if found is None or found.run != run:
        raise UsageError(
            f"--join {directory}: this run is not open to other processes; launch it with --bind"
        )
    return found.endpoint


def find_key(directory: Path, endpoint: str) -> HostKey:
    """Read the key that a run has made for commands on its host.

    Raises:
        UsageError: it has made none, or the key cannot be trusted.
    """
    keys = directory / KEYS
    path = keys / f"{LOCAL_KEY}.key"
    check_private(keys)
    key = read_key(path) if path.exists() else None
    if key is None or key.head != transport.split(endpoint)[1]:
        raise UsageError(
            f"--join {directory}: the run has made no key for this host there; give --key with a "
            "file from its own directory of keys"
        )
    return key


def _read(path: Path) -> RunAddress:
    """Read the file.

    Raises:
        UsageError: it belongs to another user, or holds something else.
    """
    with path.open("rb") as file:
        owner = os.fstat(file.fileno()).st_uid
        content = file.read(_MAX_BYTES)
    if owner != os.geteuid():
        raise UsageError(
            f"--join {path.parent}: the run belongs to another user (uid {owner}); join its "
            "address with --key, and a file that they made with 'pdqn keys'"
        )
    try:
        return RunAddress(**json.loads(content))
    except (ValueError, TypeError, WireError) as error:
        raise UsageError(f"{path} cannot be read ({error})") from error
