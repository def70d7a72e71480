"""Another user of the same machine, who tries every socket and every file of a run.

``python intruder.py FILE`` begins as root and imports all that it needs. Then it becomes
``nobody``, and prints what it got as JSON. FILE holds the JSON of ``Targets``.
"""

from __future__ import annotations

import asyncio
import contextlib
import encodings.idna  # noqa: F401 - nobody can import it later, when a host's name needs it
import json
import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import zmq

NOBODY = 65534
_PATIENCE_SECONDS = 1.5
# What ZeroMQ says to everybody before a handshake: its signature, version and mechanism.
_GREETING_BYTES = 64
# What TLS says to those who do not speak it.
_TLS_ALERT, _TLS_ALERT_BYTES = b"\x15\x03", 7
_HTTP = b"GET / HTTP/1.0\r\n\r\n"


@dataclass(frozen=True)
class Targets:
    """Everything of a run that another user can name.

    Attributes:
        ports: of TCP, on loopback.
        paths: of Unix sockets; abstract names begin with a zero character.
        trees: folders with all that is in them.
        processes: ids.
        secrets: files that nobody else may read.
        head: public key of the run, which is not secret; empty if it has none.
        messages: what members say to a coordinator, in hexadecimal.
        dask: whether to try as a client of Dask as well.
    """

    ports: list[int]
    paths: list[str]
    trees: list[str]
    processes: list[int]
    secrets: list[str] = field(default_factory=list)
    head: str = ""
    messages: list[str] = field(default_factory=list)
    dask: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass
class Loot:
    """Attempts of the intruder, and its successes.

    Attributes:
        tried: number of attempts by kind.
        got: a line for each success.
    """

    tried: dict[str, int] = field(default_factory=dict)
    got: list[str] = field(default_factory=list)

    def attempt(self, kind: str, what: object, act: Callable[[], object]) -> None:
        """Count an attempt; it got something unless it returns a false value, or an OSError."""
        self.tried[kind] = self.tried.get(kind, 0) + 1
        with contextlib.suppress(OSError):
            if found := act():
                self.got.append(f"{kind} {what}: {found!r:.200}")


# ---- sockets ----


def answered(port: int, data: bytes) -> bytes:
    """Send raw bytes and return what comes back, without ZeroMQ's greeting."""
    with socket.create_connection(("127.0.0.1", port), _PATIENCE_SECONDS) as connection:
        connection.settimeout(_PATIENCE_SECONDS / 3)
        received = b""
        with contextlib.suppress(OSError):
            connection.sendall(data)
            while len(received) < 4096 and (part := connection.recv(4096)):
                received += part
    is_greeting = received.startswith(b"\xff") and len(received) <= _GREETING_BYTES
    is_alert = received.startswith(_TLS_ALERT) and len(received) <= _TLS_ALERT_BYTES
    return b"" if is_greeting or is_alert else received


def tls_answered(port: int) -> bytes:
    """Talk TLS without a certificate, and return what comes back."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), _PATIENCE_SECONDS) as connection,
        context.wrap_socket(connection) as secured,
    ):
        secured.settimeout(_PATIENCE_SECONDS / 3)
        secured.sendall(_HTTP)
        return secured.recv(4096)


def unix_answered(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PATIENCE_SECONDS)
        connection.connect(path)
    return "connected"


def knock(targets: Targets, loot: Loot) -> None:
    """Connect to every port with every kind of socket, in the clear and with keys of its own."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    poller = zmq.Poller()
    doors: dict[zmq.Socket[bytes], str] = {}
    for port in targets.ports:
        for keys in ("no key", "own key")[: 2 if targets.head else 1]:
            for kind in (zmq.DEALER, zmq.SUB, zmq.PUSH, zmq.REQ):
                door = _door(context, kind, targets.head if keys == "own key" else "")
                door.connect(f"tcp://127.0.0.1:{port}")
                poller.register(door, zmq.POLLIN)
                doors[door] = f"port {port}, {keys}, kind {kind}"
    for message in map(bytes.fromhex, targets.messages):
        for door in doors:
            with contextlib.suppress(zmq.ZMQError):
                door.send(message, zmq.NOBLOCK)
    heard = dict(poller.poll(int(1000 * _PATIENCE_SECONDS)))
    for door, name in doors.items():
        loot.attempt("zmq", name, lambda door=door: door in heard and door.recv(zmq.NOBLOCK))
    context.destroy(linger=0)


def _door(context: zmq.Context[zmq.Socket[bytes]], kind: int, head: str) -> zmq.Socket[bytes]:
    door = context.socket(kind)
    if head:
        door.curve_publickey, door.curve_secretkey = zmq.curve_keypair()
        door.setsockopt_string(zmq.CURVE_SERVERKEY, head)
    if kind == zmq.SUB:
        door.subscribe(b"")
    return door


DASK_SECURITY: dict[str, Any] = {}


def get_ready_for_dask() -> None:
    """Import all of Dask that a client needs, while this process can still read its files."""
    from distributed import Security

    DASK_SECURITY.update({"tcp": Security(), "tls": Security.temporary()})
    asyncio.run(_identity("tcp://127.0.0.1:9"))


def ask_dask(targets: Targets, loot: Loot) -> None:
    """Ask every port, as a Dask client would, who is there; with a certificate of its own also."""
    addresses = [f"{protocol}://127.0.0.1:{p}" for protocol in DASK_SECURITY for p in targets.ports]

    async def ask_all() -> list[object]:
        return list(await asyncio.gather(*map(_identity, addresses)))

    for address, found in zip(addresses, asyncio.run(ask_all()), strict=True):
        loot.attempt("dask", address, lambda found=found: found)


async def _identity(address: str) -> object:
    """Return what a scheduler, worker or nanny says about itself; whoever hears it can run code."""
    from distributed.comm.core import connect

    own = DASK_SECURITY[address.partition(":")[0]].get_connection_args("client")
    # A connection that was closed in the middle is a ValueError to tornado.
    with contextlib.suppress(OSError, TimeoutError, ValueError):
        comm = await connect(address, timeout=_PATIENCE_SECONDS, **own)
        try:
            await comm.write({"op": "identity", "reply": True})
            return await asyncio.wait_for(comm.read(), _PATIENCE_SECONDS) or "connected"
        finally:
            comm.abort()
    return None


# ---- files ----


def search(targets: Targets, loot: Loot) -> None:
    """Try to change everything in the trees, and to read what is secret."""
    for tree in targets.trees:
        for path in _all_in(Path(tree)):
            loot.attempt("write", path, lambda p=path: _can_write(p))
    for secret in targets.secrets:
        loot.attempt("read", secret, lambda s=secret: Path(s).read_bytes() or "empty")
    for process in targets.processes:
        for name in ("mem", "environ", "maps", "fd", "cwd"):
            path = Path(f"/proc/{process}/{name}")
            loot.attempt("process", path, lambda p=path: _read(p))
        for number in range(64):
            path = Path(f"/proc/{process}/fd/{number}")
            loot.attempt("descriptor", path, lambda p=path: p.open("rb").read(1) or "open")


def _all_in(path: Path) -> Iterator[Path]:
    yield path
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            for child in path.iterdir():
                yield from _all_in(child)


def _can_write(path: Path) -> str:
    """Write nothing into a file, rename it, and make another beside it or in it."""
    for act in (_append, _rename, _make):
        with contextlib.suppress(OSError):
            act(path)
            return act.__name__
    return ""


def _append(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK))


def _rename(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}-taken"))


def _make(path: Path) -> None:
    (path / "planted").touch()


def _read(path: Path) -> object:
    if path.name == "fd":
        return os.listdir(path)  # noqa: PTH208 - names are enough
    return path.resolve(strict=True) != path if path.name == "cwd" else path.read_bytes()


def main() -> None:
    """Become nobody, try everything, and print the loot."""
    targets = Targets(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    if targets.dask:
        get_ready_for_dask()
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    loot = Loot()
    for port in targets.ports:
        for data in (b"", b"garbage\r\n\r\n", _HTTP, b"\x00" * 64):
            loot.attempt("raw", port, lambda p=port, d=data: answered(p, d))
        loot.attempt("tls", port, lambda p=port: tls_answered(p))
    for path in targets.paths:
        loot.attempt("unix", path, lambda p=path: unix_answered(p))
    knock(targets, loot)
    search(targets, loot)
    if targets.dask:
        ask_dask(targets, loot)
    sys.stdout.write(json.dumps(asdict(loot)))


if __name__ == "__main__":
    main()
