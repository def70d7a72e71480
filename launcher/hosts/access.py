"""Access to a run from other hosts: the address it opens, its keys, and the way in."""

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
from pdqn.trust import Trust

EVERYWHERE = "0.0.0.0"
CLUSTER_KEY = "dask"
# An address for documentation (RFC 5737): the route to it is the route to everywhere else.
_SOMEWHERE = "tcp://192.0.2.1:9"


@dataclass(frozen=True)
class Access:
    """The terms on which other hosts may join a run.

    Attributes:
        address: HOST:PORT where processes join; None for a run of this host's roles only.
        network: keys, advertised address and ports of the launcher's own roles.
        clients: the keys that may join; None if nothing is encrypted.
        elsewhere: roles that are not started here, and join from other hosts.
        pins: hosts of a cluster that roles must be placed on, by role.
        key_text: text of the key file for a cluster's hosts; empty without keys.
    """

    address: str | None = None
    network: Network = field(default_factory=Network)
    clients: AllowedClients | None = None
    elsewhere: frozenset[str] = frozenset()
    pins: Mapping[str, str] = field(default_factory=dict)
    key_text: str = ""

    @property
    def local_address(self) -> str | None:
        """The address where this host's own roles join."""
        return None if self.address is None else self.address.replace(EVERYWHERE, "127.0.0.1")

    @property
    def insecure(self) -> bool:
        """Return whether data leaves this host neither encrypted nor authenticated."""
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
    """Open a run to other hosts, as the options of ``pdqn launch`` say.

    Args:
        bind: HOST[:PORT], or None.
        keys: directory of the run's keys.
        insecure: allow an address beyond loopback without keys.
        advertise: address at which other hosts reach this one.
        ports: first and last port that roles may bind.
        elsewhere: roles that will join from other hosts.

    Raises:
        UsageError: options that do not work, alone or together.
    """
    if bind is None:
        given = {"--keys": keys, "--advertise": advertise, "--port-range": ports}
        given["--insecure"] = insecure or None
        given |= {f"--no-{role}": role in elsewhere or None for role in sorted(elsewhere)}
        for name in (name for name, value in given.items() if value is not None):
            raise UsageError(f"{name} is for a run that others join: give --bind HOST:PORT")
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
            f"--bind {bind}: {host} is not on loopback, so the run must be encrypted. Make keys "
            "with 'pdqn keys DIR' and give --keys DIR, or do without by --insecure"
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
    """Open a run to the workers of a cluster.

    Args:
        here: this host's address on the way to the cluster.
        bind: HOST[:PORT]; by default a free port at ``here``.
        keys: directory of the run's keys; missing keys are made there. None for keys of this
            run alone, if it needs any: their files are removed at once.
        insecure: allow an address beyond loopback without keys.
        advertise: address at which workers reach this host.
        ports: first and last port that roles here may bind.
        pins: hosts that roles must be placed on, by role.

    Raises:
        UsageError: as from ``open_run``.
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
    """Return the text of the key file for a cluster's hosts; make the file if there is none."""
    path = ensure_key(keys, CLUSTER_KEY)
    read_key(path)
    return path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Door:
    """The way into a run for a process on another host.

    Attributes:
        endpoint: the coordinator's.
        network: keys, address and ports with which the process reaches others.
    """

    endpoint: str
    network: Network

    def trusting(self, trust: Trust) -> Door:
        """Return this door for processes that may run what the trust permits."""
        return replace(self, network=replace(self.network, trust=trust))


def find_door(
    address: str,
    *,
    key: Path | str | None,
    insecure: bool,
    advertise: str | None = None,
    ports: tuple[int, int] | None = None,
) -> Door:
    """Find the way into a run, as the options of a command that joins say.

    Args:
        address: the run's.
        key: this host's key file, or its text.
        insecure: allow an address beyond loopback without a key.
        advertise: address at which other hosts reach this one.
        ports: first and last port that roles may bind.

    Raises:
        UsageError: an address that is not one, or a run beyond loopback without a key.
    """
    if not address.startswith(("tcp://", "ipc://")):
        raise UsageError(f"{address}: expected tcp://HOST:PORT or ipc://PATH")
    if address.startswith("tcp://") and not address.rpartition(":")[2].isdecimal():
        raise UsageError(f"{address} has no port; expected tcp://HOST:PORT")
    if key is None:
        if not transport.is_loopback(address) and not insecure:
            raise UsageError(
                f"{address} is not on loopback: give --key with the file that 'pdqn keys' made for "
                "this host, or --insecure if the run has no keys"
            )
        return Door(address, Network(None, advertise, ports))
    host_key = read_key(key) if isinstance(key, Path) else parse_key(key)
    endpoint = transport.endpoint_of(address, host_key.head)
    return Door(endpoint, Network(host_key.keys, advertise, ports))


def parse_bind(bind: str) -> str:
    """Return a ``HOST:PORT`` that can be bound, with ``*`` for any free port.

    Raises:
        UsageError: this host does not have the address, or the port is in use.
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
        raise UsageError(f"--bind {bind}: {port!r} is not a port; expected 1 to 65535")
    if error := port_error(host, int(port)):
        raise UsageError(f"--bind {bind}: {error}")


def _own_address(bind: str) -> str:
    """Guess the address by which other hosts know this one.

    Raises:
        UsageError: this host has no address but loopback.
    """
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
