"""Access to a run from other hosts: the address it opens, its keys, and the way in."""

from __future__ import annotations

import ipaddress
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.hosts.address import LOCAL_KEY, find_endpoint, find_key
from launcher.hosts.keys import (
    KEYS,
    AllowedClients,
    HostKey,
    ensure_key,
    parse_key,
    read_head,
    read_key,
)
from launcher.plan.machine import port_error
from pdqn import transport
from pdqn.errors import RunError, UsageError
from pdqn.transport import Network
from pdqn.trust import EVERYTHING, Trust

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
        insecure: nothing is encrypted, as a person wants it.
        clients: the keys that may join; None if nothing is encrypted, or until ``with_keys``.
        keys: directory of the keys; None if their files are removed at once, or without keys.
        elsewhere: roles that are not started here, and join from other hosts.
        pins: hosts of a cluster that roles must be placed on, by role.
        key_text: text of the key file for a cluster's hosts; empty without keys.
    """

    address: str | None = None
    network: Network = field(default_factory=Network)
    insecure: bool = False
    clients: AllowedClients | None = None
    keys: Path | None = None
    elsewhere: frozenset[str] = frozenset()
    pins: Mapping[str, str] = field(default_factory=dict)
    key_text: str = ""

    @property
    def local_address(self) -> str | None:
        """The address where this host's own roles join."""
        return None if self.address is None else self.address.replace(EVERYWHERE, "127.0.0.1")

    def local_endpoint(self, endpoint: str) -> str:
        """Return the endpoint at which this host's own roles join.

        Args:
            endpoint: the coordinator's.
        """
        local = self.local_address
        if local is None:
            return endpoint
        address, key = transport.split(endpoint)
        host, port = local.rpartition(":")[0], address.rpartition(":")[2]
        return transport.endpoint_of(f"tcp://{host}:{port}", key)

    def with_keys(self, run_dir: Path) -> Access:
        """Return the same terms, with keys of the run's own if it needs some and was given none.

        They are in the run's directory, and serve a session that resumes the run as well.

        Raises:
            UsageError: keys that are there cannot be trusted, or none can be made.
        """
        if self.address is None or self.insecure or self.clients is not None:
            return self
        keys = run_dir / KEYS
        ensure_key(keys, LOCAL_KEY)
        network = replace(self.network, keys=read_head(keys))
        return replace(self, network=network, clients=AllowedClients(keys), keys=keys)

    def invitation(self, endpoint: str, run_dir: Path) -> str:
        """Tell a person how other processes join; empty if none can.

        Args:
            endpoint: the coordinator's.
            run_dir: the run's directory.
        """
        join = f"--join {transport.split(endpoint)[0]}"
        if self.insecure:
            return f"other processes join with {join} --insecure"
        if self.keys is None:
            return ""
        others = f"with {join} --key FILE, made by: pdqn keys {self.keys} HOST"
        if self.keys != run_dir / KEYS:
            return f"other processes join {others}"
        return f"processes of this host join with --join {run_dir}; others {others}"


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
        keys: directory of the run's keys; None for keys of its own, unless it is insecure.
        insecure: encrypt nothing, and admit everybody.
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
    if insecure:
        _refuse_keys(keys)
    address = parse_bind(bind)
    clients, pair = None, None
    if keys is not None:
        clients, pair = AllowedClients(keys), read_head(keys)
    host = address.rpartition(":")[0]
    if host == EVERYWHERE and advertise is None:
        advertise = _own_address(bind)
    network = Network(pair, advertise, ports)
    return Access(address, network, insecure, clients, keys, elsewhere)


def _refuse_keys(keys: Path | None) -> None:
    if keys is not None:
        raise UsageError(f"--insecure uses no keys, got --keys {keys}; give one of the two")


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
            session alone: their files are removed at once.
        insecure: encrypt nothing, and admit everybody.
        advertise: address at which workers reach this host.
        ports: first and last port that roles here may bind.
        pins: hosts that roles must be placed on, by role.

    Raises:
        UsageError: as from ``open_run``.
    """
    bind = bind or here
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

    if insecure:
        _refuse_keys(keys)
        return open_with(None)
    if keys is not None:
        return open_with(keys)
    with tempfile.TemporaryDirectory(prefix="pdqn-") as folder:
        access = open_with(Path(folder) / "keys")
        assert access.clients is not None
        access.clients.settle()
    return replace(access, keys=None)


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
        """Return this door for processes that may run what the trust permits.

        The directory of a run permits all that this run names.
        """
        if self.network.trust.everything:
            return self
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
        address: the run's, or its directory on this host.
        key: this host's key file, or its text; by default the one in the run's directory.
        insecure: join without a key.
        advertise: address at which other hosts reach this one.
        ports: first and last port that roles may bind.

    Raises:
        UsageError: an address that is not one, a directory without a run in progress, or no key.
    """
    if "://" not in address:
        return _find_door_here(Path(address), key, insecure, Network(None, advertise, ports))
    if not address.startswith(("tcp://", "ipc://")):
        raise UsageError(f"{address}: expected tcp://HOST:PORT, ipc://PATH or a run directory")
    if address.startswith("tcp://") and not address.rpartition(":")[2].isdecimal():
        raise UsageError(f"{address} has no port; expected tcp://HOST:PORT")
    network = Network(None, advertise, ports)
    if key is not None:
        host_key = _given_key(key)
        endpoint = transport.endpoint_of(address, host_key.head)
        return Door(endpoint, replace(network, keys=host_key.keys))
    if address.startswith("tcp://") and not insecure:
        raise UsageError(
            f"{address} needs a key: give the run's directory if it is on this host, --key with a "
            "file of 'pdqn keys', or --insecure"
        )
    return Door(address, network)


def _find_door_here(
    directory: Path, key: Path | str | None, insecure: bool, network: Network
) -> Door:
    """Find the way into a run on this host by its directory."""
    endpoint = find_endpoint(directory)
    is_encrypted = transport.split(endpoint)[1] is not None
    if insecure == is_encrypted:
        why = "is encrypted: leave out" if insecure else "has no keys, and admits everybody: give"
        raise UsageError(f"--join {directory}: the run {why} --insecure")
    if insecure:
        return Door(endpoint, network)
    if key is None:
        host_key, network = find_key(directory, endpoint), replace(network, trust=EVERYTHING)
    else:
        host_key = _given_key(key)
    endpoint = transport.endpoint_of(transport.split(endpoint)[0], host_key.head)
    return Door(endpoint, replace(network, keys=host_key.keys))


def _given_key(key: Path | str) -> HostKey:
    return read_key(key) if isinstance(key, Path) else parse_key(key)


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
