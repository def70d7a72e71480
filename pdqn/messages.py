"""Control messages between the coordinator and the others in a run, one dataclass for each kind.

A message checks its types, ranges, finite numbers and lengths when it is made, on both sides. Code
that holds a message need not check it again. On the wire, a message is a msgpack map of its fields
with a ``type`` (its ``KIND``) and a ``version``; see ``pdqn.wire``.

    =============  ==========================  =====================================================
    message        from                        says
    =============  ==========================  =====================================================
    ``Join``       a process                   give me a place in the run
    ``Rejoin``     a role or host              give me back the place that I had
    ``Report``     a role or host              counters, gauges, episodes, notes since the last one
    ``Leave``      a role or host              a last report, and why it ends
    ``FilePiece``  a role on another host      a piece of a file for the run's directory
    ``Fetch``      a role on another host      send me this piece of a file
    ``Watch``      a console elsewhere         show me the run
    ``Welcome``    the coordinator             your place, the configuration, the environment
    ``Pulse``      the coordinator             what to do now, and the addresses of all services
    ``Refuse``     the coordinator             there is no place for you, and why
    ``Unknown``    the coordinator             you have no place here (any more): rejoin
    ``Filed``      the coordinator             a piece of a file was taken, or could not be
    ``Piece``      the coordinator             the piece of a file that you asked for
    ``Over``       the coordinator             to a console elsewhere: the run has ended
    =============  ==========================  =====================================================
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Self, get_args

from pdqn import layers, transport, wire
from pdqn.checks import (
    as_keys,
    as_notes,
    as_pids,
    as_prose,
    as_tuple,
    check_addresses,
    check_finite,
    check_name,
    check_names,
    check_numbers,
    check_secret,
    check_text,
    check_whole,
    is_finite,
    refusal,
)
from pdqn.clients import Client, as_clients, to_map
from pdqn.config import Config
from pdqn.episodes import MAX_EPISODES as MAX_EPISODES
from pdqn.episodes import Episode, as_episodes
from pdqn.errors import UsageError
from pdqn.patterns import fill
from pdqn.spans import Span, as_spans
from pdqn.specs import EnvironmentSpec
from pdqn.tickets import SEAL_BYTES, TICKET_BYTES
from pdqn.wire import WireError, shown

ROLES = ("actor", "replay", "learner", "evaluator", "host")
# Errors of readers of a configuration or a spec for what they cannot read.
_UNREADABLE = (UsageError, TypeError, ValueError, LookupError, AttributeError, RecursionError)
COMMANDS = ("hold", "run", "drain", "finish", "stop")
# The activity of a learner during its last save, for which the launcher waits.
LAST_SAVE = "saves for the last time"

PIECE_BYTES = 1 << 19
MAX_FILE_BYTES = 1 << 33
MAX_INDEX = 1 << 20
MAX_ACTIVITY, MAX_REASON, MAX_TEXT = 80, 400, 4000
MAX_NOTES, MAX_ENDED = 20, 4096
_MAX_PATH = 4096


class MessageError(WireError):
    """A control message that was rejected.

    Attributes:
        kind: kind of the message, to count by; ``unreadable`` if it has no known kind.
    """

    def __init__(self, kind: str, error: WireError) -> None:
        ValueError.__init__(self, f"{kind}: {error}")
        self.reason, self.count, self.sender = error.reason, error.count, error.sender
        self.kind = kind


@dataclass(frozen=True)
class Message:
    """Base of all messages: the conversion to and from plain data.

    Raises:
        WireError: a field has a value that the message does not accept.
    """

    KIND: ClassVar[str]

    def to_map(self) -> dict[str, Any]:
        """Convert to plain data for msgpack."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def from_map(cls, content: Mapping[str, Any]) -> Self:
        """Check plain data and make a message of it.

        Raises:
            WireError: a field is missing, is unknown, or has a value that is not accepted.
        """
        try:
            return cls(**content)
        except TypeError as error:
            raise WireError("malformed", f"{error!s:.120}") from None

    @cached_property
    def encoded(self) -> bytes:
        """This message as bytes."""
        return wire.encode_control(self.KIND, self.to_map())


# ---- from roles, hosts and consoles ----


@dataclass(frozen=True)
class Join(Message):
    """A request for a place in the run.

    Attributes:
        role: one of ``ROLES``; the coordinator answers any other with a reason.
        package: version of pdqn that the process runs.
        host: name of its host.
        pid: process id on that host.
        index: index that the role would like to have; None for any.
        agent: name of the host's supervisor that started it; empty for the launcher's own
            processes.
    """

    KIND = "join"

    role: str
    package: str
    host: str
    pid: int
    index: int | None = None
    agent: str = ""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("role", "package", "host", "agent"):
            check_name(getattr(self, name), name)
        check_whole(self.pid, "pid")
        if self.index is not None:
            check_whole(self.index, "index")


@dataclass(frozen=True)
class Rejoin(Message):
    """A request for the old place, from a role or host that the coordinator considers gone.

    Attributes:
        run: id of the run in which it had the place.
        incarnation: its incarnation there.
        endpoints: addresses of what it serves, by name.
    """

    KIND = "rejoin"

    role: str
    index: int
    incarnation: int
    run: str
    host: str
    pid: int
    agent: str = ""
    endpoints: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("role", "run", "host", "agent"):
            check_name(getattr(self, name), name)
        check_whole(self.pid, "pid")
        check_whole(self.index, "index", MAX_INDEX)
        check_whole(self.incarnation, "incarnation")
        check_addresses(self.endpoints, "endpoints")


@dataclass(frozen=True)
class Evaluation(Message):
    """Results of greedy episodes on held-out seeds.

    Attributes:
        parameter_version: learner steps of the parameters.
        episodes: number of episodes that count: with a score, or cut before it was known.
        return_mean: mean of their undiscounted returns.
        return_error: standard error of that mean.
        metrics: mean of the environment's headline metric, by its name; empty without one.
        errors: standard error of each of ``metrics``.
        baselines: mean score of the environment's baselines on the same seeds.
        differences: the policy minus each baseline, paired by seed: (mean, standard error).
        best: score of the parameters that are kept as the best; None if there are none.
        best_version: learner steps of these parameters; None if they are not known.
        best_is_first: no evaluation was above the run's first, whose parameters are kept.
        dropped: number of episodes without a score.
        length_mean: mean environment steps of an episode.
        baseline_errors: standard error of each of ``baselines``.
        cut: number of ``episodes`` that were cut off before their end.
        unscored: number of those whose headline metric was not known by then.
    """

    KIND = "evaluation"

    parameter_version: int
    episodes: int
    return_mean: float
    return_error: float
    metrics: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    baselines: dict[str, float] = field(default_factory=dict)
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)
    best: float | None = None
    dropped: int = 0
    length_mean: float = 0.0
    baseline_errors: dict[str, float] = field(default_factory=dict)
    cut: int = 0
    unscored: int = 0
    best_version: int | None = None
    best_is_first: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("parameter_version", "episodes", "dropped", "cut", "unscored"):
            check_whole(getattr(self, name), name)
        for name in ("return_mean", "return_error", "length_mean"):
            check_finite(getattr(self, name), name)
        if self.best is not None:
            check_finite(self.best, "best")
        if self.best_version is not None:
            check_whole(self.best_version, "best_version")
        if not isinstance(self.best_is_first, bool):
            raise refusal(self.best_is_first, "best_is_first", "true or false")
        for name in ("metrics", "errors", "baselines", "baseline_errors"):
            check_numbers(getattr(self, name), name)
        check_names(self.differences, "differences")
        pairs = {name: as_tuple(pair, name, 2) for name, pair in self.differences.items()}
        for name, pair in pairs.items():
            if len(pair) != 2 or not all(map(is_finite, pair)):
                raise refusal(pair, name, "a mean and its standard error")
        if not self.metrics.keys() <= self.errors.keys():
            raise WireError("malformed", "metrics and errors name different things")
        _set(self, "differences", pairs)


@dataclass(frozen=True)
class Report(Message):
    """Figures of a role or host.

    Attributes:
        counters: values that only grow while the process lives, by name.
        gauges: newest values, by name.
        activity: the current work or wait, in a few words.
        episodes: episodes that have finished since the last report.
        evaluation: the evaluation that has finished since the last report, if any.
        notes: (kind, text) of noteworthy events.
        endpoints: addresses of what it serves, by name.
        ended: pids of a host's processes that have ended, whose places are free. Every report
            repeats them: one that is lost does no harm.
        spans: transitions that a replay has settled; each replaces an earlier one with its start.
    """

    KIND = "report"

    counters: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    activity: str = ""
    episodes: tuple[Episode, ...] = ()
    evaluation: Evaluation | None = None
    notes: tuple[tuple[str, str], ...] = ()
    endpoints: dict[str, str] = field(default_factory=dict)
    ended: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        """Check the fields."""
        check_numbers(self.counters, "counters")
        check_numbers(self.gauges, "gauges")
        _set(self, "activity", as_prose(self.activity, "activity", MAX_ACTIVITY))
        check_addresses(self.endpoints, "endpoints")
        _set(self, "episodes", as_episodes(self.episodes))
        _set(self, "notes", as_notes(self.notes, "notes", MAX_NOTES, MAX_TEXT))
        _set(self, "spans", as_spans(self.spans))
        _set(self, "ended", as_pids(self.ended, "ended", MAX_ENDED))
        if isinstance(self.evaluation, dict):
            _set(self, "evaluation", Evaluation.from_map(self.evaluation))
        elif not isinstance(self.evaluation, Evaluation | None):
            raise refusal(self.evaluation, "evaluation", "a map")

    @property
    def has_news(self) -> bool:
        """Return whether it holds anything that no later report repeats."""
        return bool(self.episodes or self.evaluation or self.notes)

    def to_map(self) -> dict[str, Any]:
        """Convert to plain data."""
        evaluation = None if self.evaluation is None else self.evaluation.to_map()
        return super().to_map() | {"evaluation": evaluation}


@dataclass(frozen=True)
class Leave(Message):
    """The last message of a role or host.

    Attributes:
        report: the final figures.
        reason: the error that ended it, in one line; empty if it did not fail.
        trace: the traceback.
    """

    KIND = "leave"

    report: Report = field(default_factory=Report)
    reason: str = ""
    trace: str = ""

    def __post_init__(self) -> None:
        """Check the fields."""
        if isinstance(self.report, dict):
            _set(self, "report", Report.from_map(self.report))
        elif not isinstance(self.report, Report):
            raise refusal(self.report, "report", "a map")
        _set(self, "reason", as_prose(self.reason, "reason", MAX_REASON))
        _set(self, "trace", as_prose(self.trace, "trace", MAX_TEXT, keep="\n\t"))

    def to_map(self) -> dict[str, Any]:
        """Convert to plain data."""
        return super().to_map() | {"report": self.report.to_map()}


@dataclass(frozen=True)
class FilePiece(Message):
    """A piece of a file for the run's directory.

    Attributes:
        name: path of the file relative to the directory.
        push: number of the transfer, which tells its answers from those of others.
        offset: position of the piece in the file, in bytes.
        size: size of the whole file, in bytes.
        data: the piece, at most ``PIECE_BYTES``.
    """

    KIND = "file"

    name: str
    push: int
    offset: int
    size: int
    data: bytes

    def __post_init__(self) -> None:
        """Check the fields."""
        check_name(self.name, "name", _MAX_PATH)
        check_whole(self.push, "push")
        check_whole(self.size, "size", MAX_FILE_BYTES + 1)
        check_whole(self.offset, "offset", self.size + 1)
        _data(self.data)


@dataclass(frozen=True)
class Fetch(Message):
    """A request for a piece of a file of the run's directory.

    Attributes:
        name: the file, or ``checkpoint`` for a checkpoint.
        index: how many of the newest checkpoints to skip.
        offset: position of the piece in the file, in bytes.
    """

    KIND = "fetch"

    name: str
    index: int
    offset: int

    def __post_init__(self) -> None:
        """Check the fields."""
        check_name(self.name, "name", _MAX_PATH)
        check_whole(self.index, "index", MAX_INDEX)
        check_whole(self.offset, "offset", MAX_FILE_BYTES + 1)


@dataclass(frozen=True)
class Watch(Message):
    """A request by a console elsewhere for the present state of the run."""

    KIND = "watch"


def _set(message: Message, name: str, value: Any) -> None:
    """Set a field of a message that is being made."""
    object.__setattr__(message, name, value)


def _data(value: Any) -> None:
    if type(value) is not bytes or len(value) > PIECE_BYTES:
        raise refusal(value, "data", f"at most {PIECE_BYTES} bytes")


# ---- from the coordinator ----


@dataclass(frozen=True)
class Pulse(Message):
    """The state of the run as one member sees it.

    A pulse is a state and not an order: a lost or repeated one does no harm.

    Attributes:
        command: one of ``COMMANDS``:
            - ``hold``: be ready; the run is not complete yet.
            - ``run``: work.
            - ``drain``: take what still arrives (replay); do not start anything again (a host).
            - ``finish``: evaluate the final parameters one last time (evaluator).
            - ``stop``: flush or save, and leave.
        endpoints: known addresses of ``parameters`` and, for each replay k, of ``transitions/k``,
            ``acknowledgements/k`` and ``samples/k``.
        actor_slot: this actor's place on the epsilon ladder, from 0.
        actor_slots: number of actors that share the ladder.
        final_version: with ``finish``, the parameter_version to evaluate last.
        samples_per_insert: replay's target ratio from now on; None for the configured one.
        saves: how often the coordinator has asked the learner to save at once.
        allowed: limits of an actor's counters, by name, if the run has limits.
        clients: those that may connect to this role, by public key, if the run is encrypted.
        revoked: public keys that are no longer allowed.
        count: number of processes that a host must have; 0 for as many as it began with.
        condemned: pids of a host's roles that hang and that the host must end.
        progress: share of the run that is over, for a learner whose step size depends on it.
    """

    KIND = "pulse"

    command: str = "run"
    endpoints: dict[str, str] = field(default_factory=dict)
    actor_slot: int = 0
    actor_slots: int = 1
    final_version: int = 0
    samples_per_insert: float | None = None
    saves: int = 0
    allowed: dict[str, int] = field(default_factory=dict)
    clients: dict[str, Client] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()
    count: int = 0
    condemned: tuple[int, ...] = ()
    progress: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.command not in COMMANDS:
            raise refusal(self.command, "command", f"one of {', '.join(COMMANDS)}")
        check_addresses(self.endpoints, "endpoints")
        for name in ("actor_slot", "final_version", "saves", "count"):
            check_whole(getattr(self, name), name)
        check_whole(self.actor_slots, "actor_slots", least=1)
        ratio = self.samples_per_insert
        if ratio is not None and not (is_finite(ratio) and ratio > 0):
            raise refusal(ratio, "samples_per_insert", "a finite number above 0")
        if not (is_finite(self.progress) and 0 <= self.progress <= 1):
            raise refusal(self.progress, "progress", "a number from 0 to 1")
        check_numbers(self.allowed, "allowed")
        _set(self, "clients", as_clients(self.clients, "clients"))
        _set(self, "revoked", frozenset(as_keys(self.revoked, "revoked")))
        _set(self, "condemned", as_pids(self.condemned, "condemned", MAX_ENDED))

    def to_map(self) -> dict[str, Any]:
        """Convert to plain data."""
        return super().to_map() | {
            "revoked": sorted(self.revoked),
            "clients": to_map(self.clients),
        }

    def is_revoked(self, endpoint: str) -> bool:
        """Return whether the key that serves at an endpoint has been revoked."""
        return transport.split(endpoint)[1] in self.revoked

    def shards(self, name: str) -> dict[int, str]:
        """Find the addresses at which live replays offer a service, by index.

        Args:
            name: ``transitions``, ``acknowledgements`` or ``samples``.
        """
        split = ((key.partition("/"), address) for key, address in self.endpoints.items())
        return {
            int(index): address
            for (served, _, index), address in split
            if served == name and index.isascii() and index.isdigit()
        }


@dataclass(frozen=True)
class Welcome(Message):
    """A role's place in the run, and the run's description.

    Attributes:
        index: index of the role among those of its kind, from 0.
        incarnation: how often a role with this index was started before.
        bind: address pattern for the role's sockets; ``{name}`` stands for the socket's name, and
            ``{host}`` for this host's address.
        run_dir: directory of the run on the launcher's host.
        versions: versions, on the launcher's host, of the packages that the environment comes from.
        memory_bytes: memory that is planned for this role; 0 if none is, without a limit.
        ticket: for an actor, proof that its batches are its own; empty for others.
        seal: for a replay, the secret of which tickets are made; empty for others.
    """

    KIND = "welcome"

    run: str
    index: int
    incarnation: int
    config: Config
    spec: EnvironmentSpec
    bind: str
    run_dir: str
    versions: dict[str, str] = field(default_factory=dict)
    pulse: Pulse = field(default_factory=Pulse)
    memory_bytes: int = 0
    ticket: bytes = field(default=b"", repr=False)
    seal: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        """Check the fields."""
        check_name(self.run, "run")
        check_whole(self.index, "index", MAX_INDEX)
        check_whole(self.incarnation, "incarnation")
        check_name(self.bind, "bind", _MAX_PATH)
        # The one text that stays as it is: a person's own directory may have any name.
        check_text(self.run_dir, "run_dir", _MAX_PATH)
        check_addresses(self.versions, "versions")
        check_whole(self.memory_bytes, "memory_bytes")
        check_secret(self.ticket, "ticket", TICKET_BYTES)
        check_secret(self.seal, "seal", SEAL_BYTES)

    def to_map(self) -> dict[str, Any]:
        """Convert to plain data."""
        # Arguments of an environment may be whole numbers that msgpack does not have.
        parts = {name: getattr(self, name).to_map() for name in ("spec", "pulse")}
        return super().to_map() | parts | {"config": self.config.to_toml()}

    @classmethod
    def from_map(cls, content: Mapping[str, Any]) -> Self:
        """Check plain data and make a message of it."""
        parts: dict[str, dict[str, Any]] = {}
        for name in ("spec", "pulse"):
            part = content.get(name)
            if not isinstance(part, dict):
                raise refusal(part, name, "a map")
            parts[name] = part
        try:
            config = layers.from_map(tomllib.loads(content["config"]))
            spec = EnvironmentSpec.from_map(parts["spec"])
        except _UNREADABLE as error:
            raise WireError("malformed", f"{error!s:.200}") from None
        pulse = Pulse.from_map(parts["pulse"])
        return super().from_map({**content, "config": config, "spec": spec, "pulse": pulse})

    def address(self, name: str) -> str:
        """Return the address to which this role binds its socket of that name."""
        return fill(self.bind, "name", name)


@dataclass(frozen=True)
class Refuse(Message):
    """A refusal: there is no place in the run.

    Attributes:
        reason: the reason, in one line.
        taken: whether another process has the place, which may become free.
    """

    KIND = "refuse"

    reason: str
    taken: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        _set(self, "reason", as_prose(self.reason, "reason", MAX_REASON))
        if type(self.taken) is not bool:
            raise refusal(self.taken, "taken", "true or false")


@dataclass(frozen=True)
class Unknown(Message):
    """The answer to a report or request from a process that has no place."""

    KIND = "unknown"


@dataclass(frozen=True)
class Filed(Message):
    """The answer to a ``FilePiece``, whose fields it repeats.

    Attributes:
        error: the reason why the piece could not be taken; empty if it was.
    """

    KIND = "filed"

    name: str
    push: int
    offset: int
    error: str = ""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_name(self.name, "name", _MAX_PATH)
        check_whole(self.push, "push")
        check_whole(self.offset, "offset", MAX_FILE_BYTES + 1)
        _set(self, "error", as_prose(self.error, "error", _MAX_PATH))


@dataclass(frozen=True)
class Piece(Message):
    """The answer to a ``Fetch``.

    Attributes:
        wanted: the requested name.
        index: the requested index.
        offset: the requested offset.
        name: path of the file relative to the run's directory; empty if there is no such file.
        size: size of the whole file, in bytes.
        data: the piece, at most ``PIECE_BYTES``.
    """

    KIND = "piece"

    wanted: str
    index: int
    offset: int
    name: str = ""
    size: int = 0
    data: bytes = b""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("wanted", "name"):
            check_name(getattr(self, name), name, _MAX_PATH)
        check_whole(self.index, "index", MAX_INDEX)
        check_whole(self.offset, "offset", MAX_FILE_BYTES + 1)
        check_whole(self.size, "size", MAX_FILE_BYTES + 1)
        _data(self.data)


@dataclass(frozen=True)
class Over(Message):
    """The last message to a console elsewhere: the run has ended."""

    KIND = "over"


Kinds = Mapping[str, type[Message]]
FromMember = Join | Rejoin | Report | Leave | FilePiece | Fetch | Watch
FromCoordinator = Welcome | Pulse | Refuse | Unknown | Filed | Piece
TO_COORDINATOR: Kinds = {kind.KIND: kind for kind in get_args(FromMember)}
TO_MEMBER: Kinds = {kind.KIND: kind for kind in get_args(FromCoordinator)}


def decode(data: bytes | memoryview, kinds: Kinds) -> Message:
    """Read a message and check it.

    Args:
        data: the bytes of the message.
        kinds: the kinds accepted here.

    Raises:
        MessageError: the message cannot be read, is of another kind, or fails its own check.
    """
    kind = "unreadable"
    try:
        content = wire.decode_control(data)
        named, _ = content.pop("type"), content.pop("version")
        if named not in kinds:
            raise WireError("type", f"{shown(named)} is not a message for this side")
        kind = named
        return kinds[named].from_map(content)
    except WireError as error:
        raise MessageError(kind, error) from None
