"""How a run is open to processes of other hosts, and how these find their way into it."""

from __future__ import annotations

import ipaddress
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.hosts.keys import AllowedClients, ensure_key, parse_key, read_head, read_key
from launcher.plan.machine import port_error
from pdqn import transport
from pdqn.errors import RunError, UsageError
from pdqn.transport import Network

EVERYWHERE = "0.0.0.0"
CLUSTER_KEY = "dask"
# Of documentation (RFC 5737): the route there is the one to everywhere else.
_SOMEWHERE = "tcp://192.0.2.1:9"


@dataclass(frozen=True)
class Access:
    """How a run is open to other hosts.

    Attributes:
        address: HOST:PORT where processes join; None for a run of this host's own roles only.
        network: keys, advertised address and ports of the launcher's own roles.
        clients: who may join; None where nothing is encrypted.
        elsewhere: roles that are not started here, and join from other hosts.
        pins: hosts of a cluster that roles must be placed on, by role.
        key_text: text of the key file of the hosts of a cluster; empty without keys.
    """

    address: str | None = None
    network: Network = field(default_factory=Network)
    clients: AllowedClients | None = None
    elsewhere: frozenset[str] = frozenset()
    pins: Mapping[str, str] = field(default_factory=dict)
    key_text: str = ""

    @property
    def local_address(self) -> str | None:
        """Where this host's own roles join."""
        return None if self.address is None else self.address.replace(EVERYWHERE, "127.0.0.1")

    @property
    def insecure(self) -> bool:
        """Whether what leaves this host is neither encrypted nor authenticated."""
        outside = self.address is not None and not transport.is_loopback(f"tcp://{self.address}")
        return outside and self.clients is None


def open_run(
    bind: str | None,
    *,
    keys: Path | None,
    insecure: bool,
    advertise: str | None,
    ports: tuple[int, int] | None,
    elsewhere: frozenset[str],
) -> Access:
    """What the options of ``pdqn launch`` say about other hosts.

    Args:
        bind: HOST[:PORT], or None.
        keys: directory of the run's keys.
        insecure: off loopback, too, without keys.
        advertise: address at which other hosts reach this one.
        ports: first and last that roles may bind.
        elsewhere: roles that will join from other hosts.

    Raises:
        UsageError: options that do not work, or not together.
    """
    if bind is None:
        given = {"--keys": keys, "--advertise": advertise, "--port-range": ports}
        given["--insecure"] = insecure or None
        given |= {f"--no-{role}": role in elsewhere or None for role in sorted(elsewhere)}
        for name in (name for name, value in given.items() if value is not None):
            raise UsageError(f"{name} is for a run that others join: give --bind HOST:PORT, too")
        return Access()
    address = parse_bind(bind)
    clients, pair = None, None
    if keys is not None:
        clients, pair = AllowedClients(keys), read_head(keys)
    host = address.rpartition(":")[0]
    if host == EVERYWHERE and advertise is None:
        advertise = _own_address(bind)
    access = Access(address, Network(pair, advertise, ports), clients, elsewhere)
    if access.insecure and not insecure:
        raise UsageError(
            f"--bind {bind}: {host} is not on loopback, and what leaves this host must be "
            "encrypted: make keys with 'pdqn keys DIR' and give --keys DIR; --insecure does without"
        )
    return access


def open_on_cluster(
    here: str,
    bind: str | None,
    *,
    keys: Path | None,
    insecure: bool,
    advertise: str | None,
    ports: tuple[int, int] | None,
    pins: Mapping[str, str],
) -> Access:
    """How a run is open to the workers of a cluster.

    Args:
        here: this host's address on the way to the cluster.
        bind: HOST[:PORT]; by default a free port there.
        keys: directory of the run's keys; what is missing there is made. None for keys of this
            run only, where it needs some: no file of them is left.
        insecure: off loopback, too, without keys.
        advertise: address at which workers reach this host.
        ports: first and last that roles here may bind.
        pins: hosts that roles must be placed on, by role.

    Raises:
        UsageError: as ``open_run``.
    """
    bind = bind or here
    on_loopback = transport.is_loopback(f"tcp://{parse_bind(bind)}")
    elsewhere = frozenset({"actor", "learner", "replay"})

    def open_with(used: Path | None) -> Access:
        text = "" if used is None else _cluster_key(used)
        access = open_run(
            bind,
            keys=used,
            insecure=insecure,
            advertise=advertise,
            ports=ports,
            elsewhere=elsewhere,
        )
        return replace(access, pins=dict(pins), key_text=text)

    if keys is not None or insecure or on_loopback:
        return open_with(None if insecure else keys)
    with tempfile.TemporaryDirectory(prefix="pdqn-") as folder:
        access = open_with(Path(folder) / "keys")
        assert access.clients is not None
        access.clients.settle()
    return access


def _cluster_key(keys: Path) -> str:
    """Text of the key file of a cluster's hosts, which is made if there is none."""
    path = ensure_key(keys, CLUSTER_KEY)
    read_key(path)
    return path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Door:
    """How a process on another host comes into a run.

    Attributes:
        endpoint: of the coordinator.
        network: how the process reaches others.
    """

    endpoint: str
    network: Network


def find_door(
    address: str,
    *,
    key: Path | str | None,
    insecure: bool,
    advertise: str | None = None,
    ports: tuple[int, int] | None = None,
) -> Door:
    """What the options of a command that joins say.

    Args:
        address: of the run.
        key: this host's key file, or its text.
        insecure: off loopback, too, without one.
        advertise: address at which other hosts reach this one.
        ports: first and last that roles may bind.

    Raises:
        UsageError: no such address, or a run off loopback without a key.
    """
    if not address.startswith(("tcp://", "ipc://")):
        raise UsageError(f"{address}: expected tcp://HOST:PORT or ipc://PATH")
    if address.startswith("tcp://") and not address.rpartition(":")[2].isdecimal():
        raise UsageError(f"{address} has no port; expected tcp://HOST:PORT")
    if key is None:
        if not transport.is_loopback(address) and not insecure:
            raise UsageError(
                f"{address} is not on loopback: give the key file that 'pdqn keys' made for this "
                "host with --key, or --insecure if the run has no keys"
            )
        return Door(address, Network(None, advertise, ports))
    host_key = read_key(key) if isinstance(key, Path) else parse_key(key)
    endpoint = transport.endpoint_of(address, host_key.head)
    return Door(endpoint, Network(host_key.keys, advertise, ports))


def parse_bind(bind: str) -> str:
    """``HOST:PORT`` that can be bound, with ``*`` for any free port.

    Raises:
        UsageError: no such address of this host, or a port that is in use.
    """
    host, _, port = bind.rpartition(":") if ":" in bind else (bind, "", "*")
    host = {"localhost": "127.0.0.1", "*": EVERYWHERE}.get(host, host)
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        raise UsageError(
            f"--bind {bind}: expected HOST or HOST:PORT, HOST an IPv4 address of this host or *"
        ) from None
    if port != "*":
        _check_port(bind, host, port)
    elif error := port_error(host, 0):
        raise UsageError(f"--bind {bind}: {error}")
    return f"{host}:{port}"


def _check_port(bind: str, host: str, port: str) -> None:
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--bind {bind}: {port!r} is no port; expected 1 to 65535")
    if error := port_error(host, int(port)):
        raise UsageError(f"--bind {bind}: {error}")


def _own_address(bind: str) -> str:
    """The address that other hosts most likely know this one by."""
    try:
        return transport.route_to(_SOMEWHERE)
    except RunError:
        pass
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = "127.0.0.1"
    if transport.is_loopback(f"tcp://{address}:1"):
        raise UsageError(
            f"--bind {bind}: this host's address is not known; give it with --advertise"
        )
    return address
