"""A role's line to the coordinator: join, report, follow.

The coordinator answers every report with a *pulse*, and also sends one whenever something changes.
A pulse gives the role's ``command`` and the ``endpoints`` of its peers. It is a state, not an
order, so a lost or repeated pulse does no harm.

After a period of silence, the coordinator considers a role gone. When the role is back, the
coordinator reports this, and the role asks for its old place (``rejoin``). It gets the place unless
another process has taken it.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import zmq

import pdqn
from pdqn import admission, layers, messages, process, transport, wire
from pdqn.checks import MAX_NAME
from pdqn.errors import (
    HostRefusalError,
    JoinRefusedError,
    NotTrustedError,
    PlaceTakenError,
    RunError,
    type_and_first_line,
)
from pdqn.memory import MemoryLimit, MemoryLimitError, held_bytes, machine_bytes
from pdqn.messages import (
    MAX_REASON,
    MAX_TEXT,
    Fetch,
    Filed,
    FilePiece,
    FromMember,
    Join,
    Leave,
    Message,
    MessageError,
    Piece,
    Pulse,
    Refuse,
    Rejoin,
    Report,
    Unknown,
    Welcome,
)
from pdqn.patterns import fill
from pdqn.process import ParentWatch
from pdqn.silence import ListeningClock
from pdqn.telemetry import Telemetry
from pdqn.text import printable_lines
from pdqn.transport import Context, Network

_REJOIN_SECONDS = 1.0
_MOST_ANSWERS = 16


class CoordinatorLink:
    """A DEALER socket to the coordinator. Use it from one thread.

    Args:
        context: context of this process.
        address: endpoint of the coordinator.
        role: role of this process.
        index: index that the role would like to have; None for any.
        parent: watch on the process that started this one, if any.

    Attributes:
        pulse: the newest pulse.
        telemetry: figures for the next report.
        answers: the coordinator's answers to requests, oldest first.
        has_place: whether the coordinator knows this connection, as far as it has said.
        reports: number of reports sent.
        revocations: how often keys were removed from the list of allowed keys.
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
        self._place: Welcome | None = None
        self._next_rejoin = 0.0
        self._process = psutil.Process()
        self._memory = MemoryLimit(role)
        self._next_report = 0.0
        self._period_seconds = 1.0
        self._timeout_seconds = 30.0
        self._listening = ListeningClock(self._timeout_seconds)
        self._heard = self._listening.seconds
        self._serves: dict[str, str] = {}
        self._is_ready = False
        self.has_place = True
        self.pulse = Pulse()
        self.telemetry = Telemetry()
        self.revocations = 0
        self.reports = 0
        self.answers: deque[Filed | Piece] = deque(maxlen=_MOST_ANSWERS)

    @property
    def stopping(self) -> bool:
        """Return whether this role must end: on command, or because the launcher is gone."""
        return self.pulse.command == "stop" or self.orphaned

    @property
    def orphaned(self) -> bool:
        """Return whether the launcher, or its supervisor on this host, is gone.

        A role that the launcher itself has started is certain of it, and waits for one that hangs.
        Any other takes a long silence as the end.
        """
        if self._parent is not None and (self._parent.gone or self._is_with_launcher):
            return self._parent.gone
        return self.silent_seconds > self._timeout_seconds

    @property
    def is_dismissed(self) -> bool:
        """Return whether this role must end although the run goes on."""
        asked = self._parent is not None and self._parent.is_dismissed
        return asked and self.pulse.command != "stop"

    @property
    def _is_with_launcher(self) -> bool:
        """Return whether this role notices the end of the launcher itself."""
        watches = self._parent is not None and self._parent.is_watching
        return watches and not self._network.agent

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last message of the coordinator, counting only time spent listening."""
        return self._listening.seconds - self._heard

    def join(
        self, timeout_seconds: float = 60.0, is_given_up: Callable[[], bool] = lambda: False
    ) -> Welcome:
        """Ask for a place in the run until the coordinator answers.

        Args:
            timeout_seconds: longest time to wait.
            is_given_up: function that returns whether a person has given up waiting.

        Raises:
            JoinRefusedError: the coordinator refuses, with its reason, or does not accept the keys.
            HostRefusalError: the run asks for what this host does not permit.
            RunError: the launcher ended, or no answer came in time.
        """
        asked = False
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if self._parent is not None and self._parent.gone:
                raise RunError("the launcher ended before this role joined")
            if is_given_up():
                raise RunError(f"interrupted before the run at {self._shown} answered")
            if refusal := self._refusals.reason():
                raise JoinRefusedError(f"{self._shown} {refusal}")
            asked = asked or self._try_to_send(self._request())
            message = self._read() if self._socket.poll(200) else None
            if isinstance(message, Refuse):
                kind = PlaceTakenError if message.taken else JoinRefusedError
                raise kind(f"{self._shown} refused this {self._role}: {message.reason}")
            if isinstance(message, Welcome):
                return self._welcomed(message)
        raise RunError(f"no coordinator answered at {self._shown} in {timeout_seconds:.0f} s")

    def serve_at(self, endpoints: dict[str, str]) -> None:
        """Announce the addresses of this role's sockets, with the next report: it is ready."""
        self.tell_ready()
        self._serves = endpoints
        self._next_report = 0.0

    def tell_ready(self) -> None:
        """Tell the supervisor that this role can work: if it ends later, it did not fail to start.

        It may say so again, such as when its sockets are made again.
        """
        if self._parent is not None and not self._is_ready:
            self._parent.tell_ready()
        self._is_ready = True

    def poll(self, timeout_seconds: float = 0.0) -> None:
        """Process the coordinator's messages, and report if it is time."""
        arrived = self._socket.poll(int(timeout_seconds * 1000))
        self._listening.turn()
        while arrived and self._socket.poll(0):
            self._receive(self._read())
        if time.monotonic() >= self._next_report:
            self.report()

    def wait(self, seconds: float) -> None:
        """Wait for a number of seconds, or until this role must end; keep in touch meanwhile."""
        ends = time.monotonic() + seconds
        while not self.stopping and (left := ends - time.monotonic()) > 0:
            self.poll(left)

    @property
    def exhausted(self) -> bool:
        """Return whether this role has reached one of its present limits."""
        counters = self.telemetry.counters
        return any(counters[name] >= most for name, most in self.pulse.allowed.items())

    def report(self) -> None:
        """Send telemetry now.

        Raises:
            MemoryLimitError: this process holds more memory than its limit.
        """
        self._next_report = time.monotonic() + self._period_seconds
        self._count_turned_away()
        self._send(self._figures())
        if excess := self._memory.excess(held_bytes()):
            # The console shows every such note, but of errors only the first.
            self.telemetry.note("memory", excess)
            raise MemoryLimitError(excess)

    def settle_memory(self) -> None:
        """Expect this process to hold what it holds now, if that is more than was planned."""
        self._memory.settle(held_bytes())

    def ask(self, message: Fetch | FilePiece) -> None:
        """Send the coordinator a request; the answer will be among ``answers``.

        Raises:
            RunError: there is no connection to the coordinator.
        """
        if not self._try_to_send(message):
            raise RunError(f"there is no connection to {self._shown}")

    def leave(self, reason: str = "", trace: str = "") -> None:
        """Say goodbye with the final figures, and close the socket.

        Args:
            reason: the error that ended this role, in one line; empty if it did not fail.
            trace: the traceback.
        """
        # The end of a traceback says most: it is cut only once its escapes have their full length.
        trace = printable_lines(trace)[-MAX_TEXT:]
        self._send(Leave(self._figures(), reason[:MAX_REASON], trace))
        self._refusals.close()
        self._socket.close()

    def register(self, poller: zmq.Poller) -> None:
        """Wake a poller when the coordinator speaks."""
        poller.register(self._socket, zmq.POLLIN)

    def _count_turned_away(self) -> None:
        """Count the refusals of this process's sockets, by who was refused and for what."""
        for who, times in transport.turned_away(self._context).items():
            self.telemetry.count(f"refused/{who}"[:MAX_NAME], times)

    def _figures(self) -> Report:
        with suppress(OSError):  # no descriptor is left: the gauges stay as they are
            self.telemetry.gauge("cpu_percent", self._process.cpu_percent())
            self.telemetry.gauge("memory_bytes", self._process.memory_info().rss)
        self.telemetry.counters["cpu_seconds"] = time.process_time()
        return self.telemetry.report(self._serves)

    def _send(self, message: Report | Leave) -> None:
        if self._try_to_send(message):
            self.reports += 1
        else:
            self.telemetry.count("reports_dropped")

    def _welcomed(self, welcome: Welcome) -> Welcome:
        try:
            welcome = admission.admitted(welcome, self._network, self._address)
        except NotTrustedError as error:
            self.leave(f"{process.own_host()} refuses {error}")
            raise HostRefusalError(str(error)) from error
        config = layers.from_map(welcome.config.to_map(), self._network.settings)
        self._period_seconds = config.system.telemetry_seconds
        self._timeout_seconds = config.system.heartbeat_timeout_seconds
        planned, multiple = welcome.memory_bytes, config.system.memory_limit
        self._memory = MemoryLimit(self._role, planned, multiple, machine_bytes())
        self._listening = ListeningClock(self._timeout_seconds)
        self._heard = self._listening.seconds
        self._follow(welcome.pulse)
        # Unread events would block the whole context in the end.
        self._refusals.close()
        self._place = replace(welcome, config=config, bind=self._bind_pattern(welcome.bind))
        return self._place

    def _try_to_send(self, message: FromMember) -> bool:
        """Send if a present or pending connection has room; return whether it does."""
        try:
            self._socket.send(message.encoded, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _request(self) -> Join:
        """Make the request for a place."""
        return Join(
            role=self._role,
            package=pdqn.__version__,
            host=process.own_host(),
            pid=os.getpid(),
            index=self._index,
            agent=self._network.agent,
        )

    def _rejoin(self, place: Welcome) -> None:
        """Ask for the old place; at most once a second, as every report gets that answer."""
        now = time.monotonic()
        if now >= self._next_rejoin:
            self._next_rejoin = now + _REJOIN_SECONDS
            request = Rejoin(
                role=self._role,
                index=place.index,
                incarnation=place.incarnation,
                run=place.run,
                host=process.own_host(),
                pid=os.getpid(),
                agent=self._network.agent,
                endpoints=dict(self._serves),
            )
            self._try_to_send(request)

    @property
    def _network(self) -> Network:
        return transport.network_of(self._context)

    @property
    def _shown(self) -> str:
        return transport.split(self._address)[0]

    def _bind_pattern(self, pattern: str) -> str:
        if not pattern.startswith("tcp://{host}:"):
            return pattern
        everywhere = self._network.advertise is not None
        host = "0.0.0.0" if everywhere else transport.route_to(self._address)
        return fill(pattern, "host", host)

    def _read(self) -> Message | None:
        """Read a message; count a malformed one and return None."""
        try:
            return messages.decode(self._socket.recv(), messages.TO_MEMBER)
        except MessageError as error:
            self.telemetry.count("control_rejected")
            self.telemetry.count(f"control_rejected/{error.kind}")
            return None

    def _receive(self, message: Message | None) -> None:
        if message is None:
            return
        self._heard = self._listening.seconds
        if isinstance(message, Pulse):
            self._follow(message)
        elif isinstance(message, Piece | Filed):
            self.answers.append(message)
        elif isinstance(message, Unknown) and self._place is not None:
            self.has_place = False
            self._rejoin(self._place)
        elif isinstance(message, Refuse):
            raise RunError(f"{self._shown} no longer has a place for this role: {message.reason}")

    def _follow(self, pulse: Pulse) -> None:
        self.has_place = True  # a pulse is for members alone
        self.pulse, refused = admission.followed(pulse, self._network, self._address)
        self.telemetry.count("endpoints_refused", refused)
        if isinstance(self._context, Context):
            self.revocations += self._context.allow(pulse.clients)


@contextmanager
def role(
    name: str,
    address: str,
    index: int | None,
    log_path: Path | None,
    network: Network | None = None,
) -> Iterator[tuple[zmq.Context[zmq.Socket[bytes]], CoordinatorLink, Welcome]]:
    """Run a role's process around the body: prepare, join, yield, say goodbye.

    The frame logs an error in the body with its traceback, reports it to the coordinator, and
    raises it again. The process then ends with a failure, and its supervisor decides what follows.

    Yields:
        the context, the link to the coordinator, and its welcome.
    """
    parent = process.prepare(name, index, log_path)
    log = logging.getLogger(name)
    context = Context(network)
    link = CoordinatorLink(context, address, name, index=index, parent=parent)
    try:
        welcome = link.join()
        process.set_title(name, welcome.index)
        if parent.log_trouble:
            link.telemetry.note("log", f"it has no log ({parent.log_trouble})")
        # Without a log, standard error may be a terminal, where nobody asked for this.
        told = logging.DEBUG if log_path is None else logging.INFO
        again = f", started {welcome.incarnation} times before" if welcome.incarnation else ""
        log.log(told, "%s %d joined as process %d%s", name, welcome.index, os.getpid(), again)
        yield context, link, welcome
        link.leave()
        log.log(told, "it has left in order")
    except JoinRefusedError:
        raise
    except MemoryLimitError as error:
        log.error("this role %s", error)
        link.leave("ended by its memory limit")
        raise
    except Exception as error:
        if parent.gone and isinstance(error, RunError):  # the role itself works
            log.error("%s", error)
            raise
        log.exception("this role failed")
        link.leave(type_and_first_line(error), traceback.format_exc())
        raise
    finally:
        context.destroy(linger=3000)
