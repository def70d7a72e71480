"""A role's line to the coordinator: join, report, follow.

The coordinator answers every report with a *pulse*, and sends one at once when something
changes. A pulse says what the role is to do (``command``) and where its peers are
(``endpoints``); it is a state, not an order, so a lost or repeated one does no harm.

Commands: ``hold`` (be ready, the run is not complete yet); ``run``; ``drain`` (replay: take what
still comes; a host: start nothing again); ``finish`` (evaluator: one last evaluation of the final
parameters); ``stop`` (flush or save, and leave).

A role that was not heard for a while is taken for gone. When it is back, the coordinator tells it
so, and it asks for its old place (``rejoin``): it gets that unless somebody else has it by now.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import zmq

import pdqn
from pdqn import process, transport, wire
from pdqn.config import Config
from pdqn.errors import JoinRefusedError, RunError, type_and_first_line
from pdqn.layers import from_map
from pdqn.process import ParentWatch
from pdqn.silence import Listening
from pdqn.specs import EnvironmentSpec
from pdqn.telemetry import Telemetry
from pdqn.transport import Context, Network

_TRACE_CHARACTERS = 4000
_REJOIN_SECONDS = 1.0
_ANSWERS = ("piece", "filed")
_MOST_ANSWERS = 16
COMMANDS = ("hold", "run", "drain", "finish", "stop")
# What a learner says it does when it saves for the last time, which is worth waiting for.
LAST_SAVE = "saves for the last time"


@dataclass(frozen=True)
class Welcome:
    """What a role learns when it joins.

    Attributes:
        index: number of the role among its like, from 0.
        incarnation: how often this index was started before.
        bind: address pattern where the role binds; ``{name}`` stands for the socket's name, and
            ``{host}`` for this host's address.
        run_dir: directory of the run on the launcher's host.
        versions: of the packages that the run's environment comes from, on that host.
    """

    run: str
    index: int
    incarnation: int
    config: Config
    spec: EnvironmentSpec
    bind: str
    run_dir: str
    versions: dict[str, str] = field(default_factory=dict)

    def address(self, name: str) -> str:
        """Where this role binds its socket of that name."""
        return self.bind.replace("{name}", name)


@dataclass
class Pulse:
    """The newest state that the coordinator sent.

    Attributes:
        command: one of ``COMMANDS``.
        endpoints: where ``parameters``, and of each replay k ``transitions/k``,
            ``acknowledgements/k`` and ``samples/k`` are served, as known.
        actor_slot: this actor's place on the epsilon ladder, from 0.
        actor_slots: actors that share the ladder.
        final_version: with ``finish``, the parameter_version to evaluate last.
        samples_per_insert: what replay is to aim at from now on; None for what is configured.
        saves: how often the learner has been asked to save at once.
        allowed: how far an actor's counters may go, by name, where the run has limits.
        clients: public keys that may connect to this role, where the run is encrypted.
        revoked: public keys that are let in no longer.
        count: how many processes a host is to have; 0 for as many as it began with.
        condemned: pids of a host's roles that hang: it is to end them.
    """

    command: str = "run"
    endpoints: dict[str, str] = field(default_factory=dict)
    actor_slot: int = 0
    actor_slots: int = 1
    final_version: int = 0
    samples_per_insert: float | None = None
    saves: int = 0
    allowed: dict[str, int] = field(default_factory=dict)
    clients: tuple[str, ...] = ()
    revoked: frozenset[str] = frozenset()
    count: int = 0
    condemned: tuple[int, ...] = ()

    def is_revoked(self, endpoint: str) -> bool:
        """Whether somebody serves there who is let in no longer."""
        return transport.split(endpoint)[1] in self.revoked

    def shards(self, name: str) -> dict[int, str]:
        """Where the replays that are alive serve this, by index: from endpoints ``name/index``."""
        split = ((key.partition("/"), address) for key, address in self.endpoints.items())
        return {
            int(index): address
            for (served, _, index), address in split
            if served == name and index.isascii() and index.isdigit()
        }


class CoordinatorLink:
    """A DEALER to the coordinator. Use from one thread.

    Args:
        context: of the process.
        address: of the coordinator, an endpoint.
        role: that this process is.
        index: that it would like to have.
        parent: tells when who started this process is gone.

    Attributes:
        answers: of the coordinator to what was asked of it, oldest first.
        revocations: how often keys were taken off the list of those that may connect.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        role: str,
        *,
        index: int | None = None,
        parent: ParentWatch | None = None,
    ) -> None:
        self._context = context
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 2000)
        self._socket.setsockopt(zmq.SNDHWM, 1000)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_CONTROL_BYTES)
        self._refusals = transport.Refusals(self._socket)
        transport.connect(self._socket, address)
        self._address = address
        self._role = role
        self._index = index
        self._parent = parent
        self._place: dict[str, Any] = {}
        self._next_rejoin = 0.0
        self._process = psutil.Process()
        self._next_report = 0.0
        self._period_seconds = 1.0
        self._timeout_seconds = 30.0
        self._listening = Listening(self._timeout_seconds)
        self._heard = self._listening.seconds
        self._serves: dict[str, str] = {}
        self.pulse = Pulse()
        self.telemetry = Telemetry()
        self.revocations = 0
        self.answers: deque[dict[str, Any]] = deque(maxlen=_MOST_ANSWERS)

    @property
    def stopping(self) -> bool:
        """Whether this role is to end: told so, or its launcher is gone."""
        return self.pulse.command == "stop" or self.orphaned

    @property
    def orphaned(self) -> bool:
        """Whether the launcher is gone, or this host's part of it."""
        silent = self.silent_seconds > self._timeout_seconds
        return silent or (self._parent is not None and self._parent.gone)

    @property
    def silent_seconds(self) -> float:
        """How long the coordinator has not been heard, by all that was listened to."""
        return self._listening.seconds - self._heard

    def join(self, timeout_seconds: float = 60.0) -> Welcome:
        """Ask to take part until answered.

        Raises:
            JoinRefusedError: with the coordinator's sentence, or because of the keys.
            RunError: no answer in time.
        """
        asked = False
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if self._parent is not None and self._parent.gone:
                raise RunError("the launcher ended before this role joined")
            if refusal := self._refusals.reason():
                raise JoinRefusedError(f"{self._shown} {refusal}")
            asked = asked or self._try_to_send("join", self._request())
            if not self._socket.poll(200):
                continue
            message = wire.decode_control(self._socket.recv())
            if message["type"] == "refuse":
                raise JoinRefusedError(
                    f"{self._shown} refused this {self._role}: {message['reason']}"
                )
            if message["type"] == "welcome":
                return self._welcomed(message)
        raise RunError(f"no coordinator answered at {self._shown} in {timeout_seconds:.0f} s")

    def serve_at(self, endpoints: dict[str, str]) -> None:
        """Tell the coordinator where this role's sockets are, with the next report."""
        self._serves = endpoints
        self._next_report = 0.0

    def poll(self, timeout_seconds: float = 0.0) -> None:
        """Take in what the coordinator sent, and report if it is time."""
        arrived = self._socket.poll(int(timeout_seconds * 1000))
        self._listening.turn()
        while arrived and self._socket.poll(0):
            self._receive(self._socket.recv())
        if time.monotonic() >= self._next_report:
            self.report()

    def wait(self, seconds: float) -> None:
        """Wait for so long and stay in touch; no longer than until this role is to end."""
        ends = time.monotonic() + seconds
        while not self.stopping and (left := ends - time.monotonic()) > 0:
            self.poll(left)

    @property
    def exhausted(self) -> bool:
        """Whether this role has done all that it is allowed to, as things stand."""
        counters = self.telemetry.counters
        return any(counters[name] >= most for name, most in self.pulse.allowed.items())

    def report(self) -> None:
        """Send telemetry now."""
        self._next_report = time.monotonic() + self._period_seconds
        self._send("telemetry")

    def ask(self, kind: str, content: dict[str, Any]) -> None:
        """Ask the coordinator for something; its answer will be among ``answers``.

        Raises:
            RunError: there is no connection to it.
        """
        if not self._try_to_send(kind, content):
            raise RunError(f"there is no connection to {self._shown}")

    def tell(self, kind: str, content: dict[str, Any]) -> None:
        """Tell the coordinator something; without a connection it is not told."""
        self._try_to_send(kind, content)

    def leave(self, reason: str = "", trace: str = "") -> None:
        """Say goodbye with the final figures, and close.

        Args:
            reason: why this role failed, in one line; empty if it did not.
            trace: the traceback.
        """
        self._send("leave", reason=reason, trace=trace)
        self._refusals.close()
        self._socket.close()

    def register(self, poller: zmq.Poller) -> None:
        """Wake a poller when the coordinator speaks."""
        poller.register(self._socket, zmq.POLLIN)

    def _send(self, kind: str, **extra: Any) -> None:
        self.telemetry.gauge("cpu_percent", self._process.cpu_percent())
        self.telemetry.gauge("memory_bytes", self._process.memory_info().rss)
        content = {**self.telemetry.report(), "endpoints": self._serves, **extra}
        if not self._try_to_send(kind, content):
            self.telemetry.count("reports_dropped")

    def _welcomed(self, message: dict[str, Any]) -> Welcome:
        config = from_map(message["config"], self._network.settings)
        self._place = {name: message[name] for name in ("run", "index", "incarnation")}
        self._period_seconds = config.system.telemetry_seconds
        self._timeout_seconds = config.system.heartbeat_timeout_seconds
        self._listening = Listening(self._timeout_seconds)
        self._heard = self._listening.seconds
        self._read_pulse(message["pulse"])
        # Events that nobody reads would stop the whole context in the end.
        self._refusals.close()
        return Welcome(
            run=message["run"],
            index=message["index"],
            incarnation=message["incarnation"],
            config=config,
            spec=EnvironmentSpec.from_map(message["spec"]),
            bind=self._bind_pattern(message["bind"]),
            run_dir=message["run_dir"],
            versions=dict(message.get("versions") or {}),
        )

    def _try_to_send(self, kind: str, content: dict[str, Any]) -> bool:
        """Send if there is a connection, or one being made, with room; whether it is on its way."""
        try:
            self._socket.send(wire.encode_control(kind, content), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _rejoin(self) -> None:
        """Ask for the old place; once a second at most, since every report is answered so."""
        now = time.monotonic()
        if now >= self._next_rejoin:
            self._next_rejoin = now + _REJOIN_SECONDS
            request = {**self._request(), **self._place, "endpoints": self._serves}
            self._try_to_send("rejoin", request)

    def _request(self) -> dict[str, Any]:
        """Who asks to take part."""
        network = self._network
        return {
            "role": self._role,
            "index": self._index,
            "host": socket.gethostname(),
            "agent": network.agent,
            "pid": os.getpid(),
            "package": pdqn.__version__,
        }

    @property
    def _network(self) -> Network:
        return transport.network_of(self._context)

    @property
    def _shown(self) -> str:
        return transport.split(self._address)[0]

    def _bind_pattern(self, pattern: str) -> str:
        if "{host}" not in pattern:
            return pattern
        everywhere = self._network.advertise is not None
        host = "0.0.0.0" if everywhere else transport.route_to(self._address)
        return pattern.replace("{host}", host)

    def _receive(self, data: bytes) -> None:
        try:
            message = wire.decode_control(data)
        except wire.WireError:
            self.telemetry.count("control_rejected")
            return
        self._heard = self._listening.seconds
        if message["type"] == "pulse":
            self._read_pulse(message)
        elif message["type"] in _ANSWERS:
            self.answers.append(message)
        elif message["type"] == "unknown" and self._place:
            self._rejoin()
        elif message["type"] == "refuse":
            raise RunError(f"{self._shown} has no place for it any more: {message.get('reason')}")

    def _read_pulse(self, message: dict[str, Any]) -> None:
        command = message.get("command")
        if command in COMMANDS:
            self.pulse = Pulse(
                command=command,
                endpoints=dict(message.get("endpoints") or {}),
                actor_slot=int(message.get("actor_slot") or 0),
                actor_slots=int(message.get("actor_slots") or 1),
                final_version=int(message.get("final_version") or 0),
                samples_per_insert=_positive(message.get("samples_per_insert")),
                saves=int(message.get("saves") or 0),
                allowed={str(k): int(v) for k, v in (message.get("allowed") or {}).items()},
                clients=tuple(map(str, message.get("clients") or ())),
                revoked=frozenset(map(str, message.get("revoked") or ())),
                count=int(message.get("count") or 0),
                condemned=tuple(map(int, message.get("condemned") or ())),
            )
            if isinstance(self._context, Context):
                self.revocations += self._context.allow(self.pulse.clients)


def _positive(value: Any) -> float | None:
    """A number that a limiter may aim at; None for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) and value > 0 else None


@contextmanager
def role(
    name: str,
    address: str,
    index: int | None,
    log_path: Path | None,
    network: Network | None = None,
) -> Iterator[tuple[zmq.Context[zmq.Socket[bytes]], CoordinatorLink, Welcome]]:
    """The frame of every role's process: prepare, join, do (the body), say goodbye.

    An error in the body is logged with its traceback, told to the coordinator, and raised
    again: the process ends with a failure, and its supervisor decides what follows.
    """
    parent = process.prepare(name, index, log_path)
    context = Context(network)
    link = CoordinatorLink(context, address, name, index=index, parent=parent)
    try:
        welcome = link.join()
        process.set_title(name, welcome.index)
        yield context, link, welcome
        link.leave()
    except JoinRefusedError:
        raise
    except Exception as error:
        logging.getLogger(name).exception("this role failed")
        trace = traceback.format_exc()[-_TRACE_CHARACTERS:]
        link.leave(type_and_first_line(error), trace)
        raise
    finally:
        context.destroy(linger=3000)
