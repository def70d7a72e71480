"""The hub of a run: who is in it, what they report, and what they are to do.

Roles connect with one address. Each is answered with a pulse for every report, and at once when
something changes; see ``pdqn.link`` for the other side.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import zmq

import pdqn
from launcher.coordinator.budget import Budgets
from launcher.coordinator.files import FileStore
from launcher.coordinator.metrics import MemberKey, RunMetrics
from launcher.coordinator.readmission import Aside
from pdqn import transport, wire
from pdqn.config import Config, resolved
from pdqn.errors import RunError, UsageError
from pdqn.link import LAST_SAVE
from pdqn.silence import Listening
from pdqn.specs import EnvironmentSpec

# A host is a supervisor elsewhere, which starts roles there and speaks for their host.
ROLES = ("actor", "replay", "learner", "evaluator", "host")
_BINDING = ("replay", "learner")
_SINGLE = ("learner", "evaluator")
_MOST_MESSAGES_PER_TURN = 1000
_MOST_EVENTS = 1000
# Pieces of a file that come slower than this apart do not come any more.
_FILE_SECONDS = 5.0
_MOST_MEMBERS = 1 << 20
_MOST_WATCHERS, _WATCHED_SECONDS = 100, 5.0
# What a report has that no later one has again.
_ONCE = ("episodes", "evaluation", "notes")
_ASIDE_BYTES = 4 << 20
_EVALUATED = {
    "parameter_version", "episodes", "return_mean", "return_error", "metrics", "errors",
    "baselines", "differences", "best",
}  # fmt: skip
_log = logging.getLogger("coordinator")


@dataclass
class Member:
    """One role that has joined.

    Attributes:
        agent: name of the host's supervisor that started it; empty for the launcher's own roles.
        user: public key that it was let in with; empty where nothing is encrypted.
        heard: when its last message came, by the coordinator's time of listening.
        reported: whether it has reported since joining.
    """

    key: MemberKey
    host: str
    pid: int
    heard: float
    agent: str = ""
    user: str = ""
    activity: str = ""
    endpoints: dict[str, str] = field(default_factory=dict)
    reported: bool = False


@dataclass(frozen=True)
class Event:
    """Something worth writing down; ``error`` if it is one, with its traceback."""

    kind: str
    role: str
    index: int
    text: str
    error: bool = False
    trace: str = ""


class Coordinator:
    """A ROUTER that all roles join. Use from one thread.

    Args:
        context: of the process.
        address: to bind.
        run: id of the run.
        run_dir: its directory on this host.
        role_bind: address pattern where roles bind.
        config: of the run.
        spec: of its environment.
        metrics: takes the reports.
        versions: of the packages that the environment comes from.
        files: takes and gives files of the directory; None for none.
        own_actors: that the launcher starts itself; by default all that are configured.
        incarnations: as below, of earlier sessions.

    Attributes:
        incarnations: how often each (role, index) has joined, those of earlier sessions included.
        endpoint: where roles join.
        seen: what is sent to those who watch.
        events: what is to be written down, oldest first.
        rejected: messages that were no messages, or of somebody whose key was revoked.

    Raises:
        UsageError: the address cannot be bound.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        *,
        run: str,
        run_dir: str,
        role_bind: str,
        config: Config,
        spec: EnvironmentSpec,
        metrics: RunMetrics,
        versions: Mapping[str, str] | None = None,
        files: FileStore | None = None,
        own_actors: int | None = None,
        incarnations: Mapping[tuple[str, int], int] | None = None,
    ) -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_CONTROL_BYTES)
        try:
            self.endpoint = transport.bind(self._socket, address)
        except (zmq.ZMQError, RunError) as error:
            self._socket.close()
            reason = error.strerror if isinstance(error, zmq.ZMQError) else error
            raise UsageError(f"cannot bind {address}: {reason}") from error
        self._welcome = {
            "run": run,
            "run_dir": run_dir,
            "config": config.to_map(),
            "spec": spec.to_map(),
            "versions": dict(versions or {}),
        }
        self._run = run
        self._files = files
        self._role_bind = role_bind
        self._context = context
        self._clients: tuple[str, ...] = ()
        self._revoked: set[str] = set()
        self._actors = config.actor.count or 0
        self._own_actors = self._actors if own_actors is None else own_actors
        self._shards = config.replay.shards
        self._samples_per_insert: float | None = None
        self._configured_ratio = config.replay.samples_per_insert
        self._saves = 0
        self._metrics = metrics
        system = config.system
        timeout_seconds = min(system.heartbeat_timeout_seconds, system.host_timeout_seconds)
        self._listening = Listening(timeout_seconds)
        self._members: dict[bytes, Member] = {}
        # Put together when it is asked for, since every pulse has it; None once it has changed.
        self._served: dict[str, str] | None = None
        self._aside = Aside(_ASIDE_BYTES)
        self.incarnations = Counter(incarnations)
        self._commands: dict[str, str] = dict.fromkeys(ROLES, "run")
        self._commands |= {"actor": "hold", "evaluator": "hold"}
        self._watchers: dict[bytes, float] = {}
        limits = {"episodes": config.run.episodes, "environment_steps": config.run.steps}
        self._limited = tuple(limits)
        self._budgets = Budgets(limits, config.actor.envs_per_actor or 1)
        self._final_version = 0
        self._filed: dict[str, float] = {}
        self._given_up: set[int] = set()
        self._counts: dict[str, int] = {}
        self._gone: set[str] = set()
        self._slots: dict[int, int] = {}
        self._condemned: defaultdict[str, deque[int]] = defaultdict(lambda: deque(maxlen=100))
        self._place_actors()
        self.seen: Mapping[str, Any] = {}
        self.events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self.rejected = 0

    @property
    def samples_per_insert(self) -> float:
        """What every replay is to aim at."""
        return self._samples_per_insert or resolved(self._configured_ratio)

    @property
    def was_away(self) -> bool:
        """Whether this process had not listened for seconds when it last did: it was stopped."""
        return self._listening.was_away

    def poll(self, timeout_seconds: float) -> None:
        """Handle what roles sent; wait up to the timeout for the first message."""
        arrived = self._socket.poll(int(timeout_seconds * 1000))
        self._listening.turn()
        if not arrived:
            return
        for _ in range(_MOST_MESSAGES_PER_TURN):
            if not self._socket.poll(0):
                return
            frames = self._socket.recv_multipart(copy=False)
            try:
                if len(frames) != 2:
                    raise wire.WireError("malformed", f"{len(frames)} frames")
                user = self._user(frames[1])
                self._handle(frames[0].bytes, wire.decode_control(frames[1].bytes), user)
            except Exception as error:  # noqa: BLE001 - whatever a message does, the run goes on
                self.rejected += 1
                if self.rejected < 100:
                    foreseen = isinstance(error, wire.WireError)
                    _log.warning("rejected a control message: %s", error, exc_info=not foreseen)

    def allow(self, clients: Iterable[str]) -> None:
        """Let in these public keys only; whoever came in with another one is gone."""
        allowed = frozenset(clients)
        if allowed == frozenset(self._clients) or not isinstance(self._context, transport.Context):
            return
        self._revoked = (self._revoked | set(self._clients)) - allowed
        self._clients = tuple(sorted(allowed))
        self._context.allow(allowed)
        for identity, member in list(self._members.items()):
            if member.user not in allowed:
                key = member.key
                self.events.append(Event("revoked", key.role, key.index, f"on {member.host}"))
                self._send(identity, "refuse", {"reason": "its key was revoked"})
                self._remove(identity)
        self._pulse_all()

    def command(self, roles: Iterable[str], command: str) -> None:
        """Tell roles what to do from now on."""
        for role in roles:
            self._commands[role] = command
        self._pulse_all()

    def finish(self, final_version: int) -> None:
        """Tell the evaluator to evaluate these parameters last."""
        self._final_version = final_version
        self.command(["evaluator"], "finish")

    def save(self) -> None:
        """Let the learner save at once."""
        self._saves += 1
        self._pulse_all()

    def set_samples_per_insert(self, value: float) -> None:
        """Let every replay aim at this many samples for each insert from now on.

        Raises:
            UsageError: not a positive finite number.
        """
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"samples_per_insert = {value}; expected a finite number above 0")
        self._samples_per_insert = float(value)
        self.events.append(Event("samples_per_insert", "replay", -1, f"{value:g} from now on"))
        self._pulse_all()

    def members(self, role: str | None = None) -> Iterator[Member]:
        """Those who have joined and not left."""
        return (m for m in self._members.values() if role in (None, m.key.role))

    def count(self, role: str) -> int:
        """How many of a role are in the run."""
        return sum(1 for _ in self.members(role))

    def missing(self) -> str:
        """What the run waits for, in words; empty when it is complete."""
        wanted = {"replay": self._shards, "learner": 1, "actor": max(1, self._actors)}
        present = {role: min(self.count(role), number) for role, number in wanted.items()}
        parts = [
            f"{role} ({present[role]} of {number})"
            for role, number in wanted.items()
            if present[role] < number
        ]
        return ", ".join(parts)

    def silent(self, seconds: float) -> list[Member]:
        """Roles not heard for so long, by all that was listened to."""
        roles = (member for member in self._members.values() if member.key.role != "host")
        return [member for member in roles if self.silent_seconds(member) > seconds]

    def silent_hosts(self, seconds: float) -> list[Member]:
        """Hosts of which nothing was heard for so long."""
        return [host for host in self.members("host") if self.silent_seconds(host) > seconds]

    def silent_seconds(self, member: Member) -> float:
        """How long a member has not been heard."""
        return self._listening.seconds - member.heard

    def host_of(self, member: Member) -> str:
        """The name of a role's host; with a number where several hosts have the same name."""
        hosts = [host for host in self.members("host") if host.host == member.host]
        own = next((host.key.index for host in hosts if host.agent == member.agent), None)
        alone = len(hosts) == 1 and member.host != socket.gethostname()
        return member.host if own is None or alone else f"{member.host} ({own + 1})"

    def lost(self, role: str, index: int, pid: int | None = None) -> None:
        """The process of a role has ended without saying goodbye.

        Args:
            role: what it was.
            index: its number.
            pid: of a process of this host; whoever has taken its place elsewhere stays.
        """
        for identity, member in list(self._members.items()):
            same = (member.key.role, member.key.index) == (role, index)
            if same and (pid is None or (member.pid == pid and not member.agent)):
                self._remove(identity)

    def lose_host(self, agent: str, *, for_good: bool = False) -> int:
        """A host is not heard any more, and nothing on it; how many roles it had.

        Args:
            agent: its supervisor's name.
            for_good: nothing of it gets its place back.
        """
        if for_good:
            self._gone.add(agent)
        gone = [identity for identity, m in self._members.items() if m.agent == agent]
        for identity in gone:
            self._remove(identity)
        self._condemned.pop(agent, None)
        return len(gone) - 1

    def condemn(self, member: Member) -> None:
        """Have the host of a role that hangs end its process."""
        if member.agent:
            self._condemned[member.agent].append(member.pid)

    def resize(self, agent: str, count: int) -> None:
        """Have a host run so many actors from now on, at least one."""
        if self._counts.get(agent) != count:
            self._counts[agent] = count
            self._pulse_all()

    def give_up(self, actor: int) -> None:
        """One of the launcher's own actors will not come back: others take its place."""
        self._given_up.add(actor)
        self._place_actors()

    def close(self) -> None:
        """Tell those who watch that this was all, and close the socket."""
        recent = time.monotonic() - _WATCHED_SECONDS
        for identity in (who for who, asked in self._watchers.items() if asked > recent):
            self._send(identity, "ended", {})
        self._socket.close()

    def _user(self, frame: zmq.Frame) -> str:
        """The public key of who sent a message; empty where nothing is encrypted.

        Raises:
            WireError: it has been revoked since the connection was made.
        """
        if not isinstance(self._context, transport.Context) or self._context.network.keys is None:
            return ""
        user = str(frame.get("User-Id"))
        if user not in self._clients:
            raise wire.WireError("malformed", f"a message of {user}, which is not let in any more")
        return user

    def _handle(self, identity: bytes, message: dict[str, Any], user: str) -> None:
        if message["type"] == "join":
            self._join(identity, message, user)
        elif message["type"] == "rejoin":
            self._rejoin(identity, message, user)
        elif message["type"] == "watch":
            self._watch(identity)
        elif identity in self._members and message["type"] == "ended":
            self._ended(self._members[identity], int(message["pid"]))
        elif identity in self._members and message["type"] in ("file", "fetch"):
            self._exchange_file(identity, self._members[identity], message)
        elif identity in self._members:
            self._hear(identity, self._members[identity], message)
        elif message["type"] in ("telemetry", "file", "fetch"):
            self._send(identity, "unknown", {})
            self._set_aside(identity, message)

    def _set_aside(self, identity: bytes, message: dict[str, Any]) -> None:
        """Keep what somebody without a place tells only once, until the place is given back."""
        if message["type"] != "telemetry" or not any(message.get(name) for name in _ONCE):
            return
        _check_report(message)
        content = {name: value for name, value in message.items() if name != "type"}
        self._aside.put(identity, wire.encode_control("telemetry", content))

    def _ended(self, host: Member, pid: int) -> None:
        """A host tells that a process of its own has ended: its place is free at once."""
        host.heard = self._listening.seconds
        if pid in self._condemned[host.agent]:
            self._condemned[host.agent].remove(pid)
        for identity, member in list(self._members.items()):
            if host.agent and (member.agent, member.pid) == (host.agent, pid):
                self._remove(identity)

    @property
    def revoked(self) -> Set[str]:
        """Public keys that were let in, and are no longer."""
        return self._revoked

    def served_at(self, name: str) -> str:
        """Where something is served; empty where it is not."""
        return self._endpoints().get(name, "")

    def is_saving(self) -> bool:
        """Whether the learner has said that it saves for the last time."""
        return any(member.activity == LAST_SAVE for member in self.members("learner"))

    def receives_file(self, role: str) -> bool:
        """Whether a file of a role on another host is on its way."""
        return time.monotonic() - self._filed.get(role, -math.inf) < _FILE_SECONDS

    def _exchange_file(self, identity: bytes, member: Member, message: dict[str, Any]) -> None:
        """Take or give a piece of a file of a role on another host."""
        member.heard = self._listening.seconds
        if self._files is None:
            raise wire.WireError("malformed", "a file, and this run has no directory")
        if message["type"] == "file":
            taken = self._files.take(member.key.role, message)
            self._filed[member.key.role] = time.monotonic()
            self._send(identity, "filed", taken)
        else:
            self._send(identity, "piece", self._files.give(message))

    def _watch(self, identity: bytes) -> None:
        """Show somebody the run; remember the newest few who asked."""
        self._watchers.pop(identity, None)
        self._watchers[identity] = time.monotonic()
        if len(self._watchers) > _MOST_WATCHERS:
            del self._watchers[next(iter(self._watchers))]
        self._send(identity, "seen", dict(self.seen))

    def _join(self, identity: bytes, message: dict[str, Any], user: str) -> None:
        role = message["role"]
        refusal = self._refusal(role, message)
        if refusal:
            self._send(identity, "refuse", {"reason": refusal})
            self.events.append(Event("refused", str(role), -1, refusal))
            return
        index = self._free_index(role, message.get("index"))
        incarnation = self.incarnations[role, index]
        self.incarnations[role, index] += 1
        key = MemberKey(role, index, incarnation)
        member = _member(key, message, user, self._listening.seconds)
        self._add(identity, member)
        bind = self._role_bind.replace("{role}", f"{role}-{index}-{incarnation}")
        welcome = {
            **self._welcome,
            "index": index,
            "incarnation": incarnation,
            "bind": bind,
            "pulse": self._pulse(member),
        }
        self._send(identity, "welcome", welcome)
        where = f"{role} {index} on {member.host}, pid {member.pid}, incarnation {incarnation}"
        self.events.append(Event("joined", role, index, where))

    def _rejoin(self, identity: bytes, message: dict[str, Any], user: str) -> None:
        """Give a role that was not heard for a while its place back, if that is still free."""
        key = MemberKey(str(message["role"]), int(message["index"]), int(message["incarnation"]))
        place = (key.role, key.index)
        last = self.incarnations.get(place, 0) - 1
        aside = self._aside.take(identity)
        gone = message["run"] != self._run or _agent(message) in self._gone
        if gone or key.role not in ROLES or last != key.incarnation or last < 0:
            self._send(identity, "refuse", {"reason": "somebody else has taken it"})
            return
        # On a connection that was made anew it has another identity.
        for former, member in list(self._members.items()):
            if member.key == key:
                del self._members[former]
        member = _member(key, message, user, self._listening.seconds)
        member.endpoints = {str(k): str(v) for k, v in (message.get("endpoints") or {}).items()}
        self._add(identity, member)
        self.events.append(Event("rejoined", key.role, key.index, f"on {member.host}"))
        if member.endpoints:
            self._pulse_all()
        else:
            self._send(identity, "pulse", self._pulse(member))
        for report in aside:
            self._take_in(key, wire.decode_control(report))

    def _add(self, identity: bytes, member: Member) -> None:
        self._members[identity] = member
        self._served = None
        if member.key.role == "actor":
            self._place_actors()

    def _place_actors(self) -> None:
        """Share the epsilon ladder among the actors that are there or will be again."""
        own = set(range(self._own_actors)) - self._given_up
        indices = own | {member.key.index for member in self.members("actor")}
        self._slots = {index: slot for slot, index in enumerate(sorted(indices))}

    def _refusal(self, role: Any, message: dict[str, Any]) -> str:
        if role not in ROLES:
            return f"there is no role {role!r:.40}; there are {', '.join(ROLES)}"
        if message.get("package") != pdqn.__version__:
            return f"it runs pdqn {message.get('package')!r:.20}, the run {pdqn.__version__}"
        if self._commands[role] == "stop":
            return "the run is stopping"
        if role == "host" and not _agent(message):
            return "a host must say who it is"
        if _agent(message) in self._gone:
            return "its host was given up, and others have taken its place"
        if role in _SINGLE and self.count(role):
            return f"the run has {'an' if role == 'evaluator' else 'a'} {role} already"
        if role == "replay" and self.count(role) >= self._shards:
            several = f"its {self._shards} replays" if self._shards > 1 else "a replay"
            return f"the run has {several} already"
        return ""

    def _free_index(self, role: str, wanted: Any) -> int:
        taken = {member.key.index for member in self.members(role)}
        # A replay's index is its shard: what is stored where follows from it.
        below = self._shards if role == "replay" else _MOST_MEMBERS
        if isinstance(wanted, int) and 0 <= wanted < below and wanted not in taken:
            return wanted
        if role == "host":
            return sum(name == "host" for name, _ in self.incarnations)
        # Those who join from elsewhere come after the indices of this host's own actors.
        first = self._own_actors if role == "actor" else 0
        return next(i for i in range(first, first + len(taken) + 1) if i not in taken)

    def _hear(self, identity: bytes, member: Member, message: dict[str, Any]) -> None:
        _check_report(message)
        member.heard = self._listening.seconds
        member.reported = True
        member.activity = str(message.get("activity") or "")[:80]
        self._take_in(member.key, message)
        endpoints = {str(k): str(v) for k, v in (message.get("endpoints") or {}).items()}
        moved = endpoints != member.endpoints
        if moved:
            member.endpoints, self._served = endpoints, None
        if message["type"] == "leave":
            reason = str(message.get("reason") or "")[:400]
            kind = "failed" if reason else "left"
            trace = str(message.get("trace") or "")[-4000:]
            key = member.key
            self.events.append(Event(kind, key.role, key.index, reason, bool(reason), trace))
            self._remove(identity)
        elif moved:
            self._pulse_all()
        else:
            self._send(identity, "pulse", self._pulse(member))

    def _take_in(self, key: MemberKey, report: dict[str, Any]) -> None:
        """Count what a role reports, and write down what it notes."""
        self._metrics.ingest(key, report, time.monotonic())
        for kind, text in report.get("notes") or []:
            self.events.append(Event(kind, key.role, key.index, text))

    def _remove(self, identity: bytes) -> None:
        member = self._members.pop(identity)
        self._served = None
        self._budgets.forget(member.key)
        if member.key.role == "actor":
            self._place_actors()
        if self._commands[member.key.role] in ("hold", "run"):
            self._metrics.forget(member.key.role, member.key.index)
        if member.endpoints:
            self._pulse_all()

    def _endpoints(self) -> dict[str, str]:
        if self._served is None:
            self._served = {}
            for member in self._members.values():
                self._served |= member.endpoints
        return self._served

    def _pulse(self, member: Member) -> dict[str, Any]:
        key = member.key
        return {
            "command": self._commands[key.role],
            "endpoints": self._endpoints(),
            "actor_slot": self._slots.get(key.index, 0),
            "actor_slots": max(1, len(self._slots)),
            "clients": self._clients if key.role in _BINDING else (),
            "revoked": sorted(self._revoked),
            "condemned": list(self._condemned[member.agent]) if key.role == "host" else (),
            "count": self._counts.get(member.agent, 0) if key.role == "host" else 0,
            "final_version": self._final_version,
            "samples_per_insert": self._samples_per_insert,
            "saves": self._saves,
            "allowed": self._allowed(key) if key.role == "actor" else {},
        }

    def _allowed(self, key: MemberKey) -> dict[str, int]:
        """What an actor may do of everything that the run is limited to."""
        counted = self._metrics.counted(key)
        done = {name: int(counted.get(name, 0)) for name in self._limited}
        if self._commands["actor"] == "hold":
            # Nobody is given anything before all are there to share it.
            return self._budgets.note(key, done)
        totals = {name: int(self._metrics.total("actor", name)) for name in self._limited}
        return self._budgets.allow(key, done, totals)

    def _pulse_all(self) -> None:
        for identity, member in self._members.items():
            self._send(identity, "pulse", self._pulse(member))

    def _send(self, identity: bytes, kind: str, content: dict[str, Any]) -> None:
        # A ROUTER drops what is for a peer that is gone or does not read: pulses are repeated.
        self._socket.send_multipart([identity, wire.encode_control(kind, content)])


def _member(key: MemberKey, message: Mapping[str, Any], user: str, heard: float) -> Member:
    host = str(message["host"])[:80]
    return Member(key, host, int(message["pid"]), heard, _agent(message), user)


def _agent(message: Mapping[str, Any]) -> str:
    return str(message.get("agent") or "")[:80]


def _check_report(message: dict[str, Any]) -> None:
    """Refuse a report that the run's figures could not digest; a gauge may be NaN, a count not."""
    counters, gauges, endpoints = (
        message.get(name) or {} for name in ("counters", "gauges", "endpoints")
    )
    parts = (counters, gauges, endpoints)
    if not all(isinstance(part, dict) for part in parts):
        raise wire.WireError("malformed", "a report whose parts are no maps")
    if not all(isinstance(name, str) for part in parts for name in part):
        raise wire.WireError("malformed", "a report with a name that is no text")
    if not all(isinstance(value, int | float) for value in gauges.values()):
        raise wire.WireError("malformed", "a gauge that is no number")
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in counters.values()):
        raise wire.WireError("malformed", "a counter that is no finite number")
    notes = message.get("notes") or []
    if not isinstance(notes, list) or not all(_is_note(note) for note in notes):
        raise wire.WireError("malformed", "a note that is no pair of texts")
    evaluation = message.get("evaluation")
    if evaluation and not _is_evaluation(evaluation):
        raise wire.WireError("malformed", "an evaluation without its figures")


def _is_evaluation(evaluation: Any) -> bool:
    if not isinstance(evaluation, dict) or not evaluation.keys() >= _EVALUATED:
        return False
    groups = [evaluation[name] for name in ("metrics", "errors", "baselines", "differences")]
    if not all(isinstance(group, dict) for group in groups):
        return False
    *means, differences = groups
    pairs = [pair for pair in differences.values() if isinstance(pair, list) and len(pair) == 2]
    figures = [value for values in (*(g.values() for g in means), *pairs) for value in values]
    return (
        len(pairs) == len(differences)
        and evaluation["metrics"].keys() <= evaluation["errors"].keys()
        and all(isinstance(value, int | float) for value in figures)
    )


def _is_note(note: Any) -> bool:
    return (
        isinstance(note, list)
        and len(note) == 2
        and all(isinstance(text, str) and len(text) <= 4000 for text in note)
    )
