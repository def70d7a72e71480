"""A member with an actor's key that does everything an actor must not, in a real run.

The run goes on, learns, loses nothing of the others, and says what it refused from whom.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import zmq

import pdqn
from launcher.hosts.keys import make_keys, read_key
from pdqn import messages, transport, wire
from pdqn.messages import (
    Fetch,
    FilePiece,
    Join,
    Leave,
    Message,
    Pulse,
    Refuse,
    Rejoin,
    Report,
    Unknown,
    Watch,
    Welcome,
)
from pdqn.transport import Context, KeyPair, Network
from replay.samples import SampleRequest, encode_request
from replay.sender import Hello

if TYPE_CHECKING:
    from conftest import Command, Observed, StartCommand

Eventually = Callable[..., Any]
Observe = Callable[["Command"], "Observed"]
MB = 1 << 20
CASES = 20_000
RUN = [
    "--env", "CartPole-v1", "--console", "plain", "--run-dir", "run", "--actors", "1",
    "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "replay.samples_per_insert=4", "--set", "learner.batch_size=16",
    "--set", "system.telemetry_seconds=0.2", "--set", "system.metrics_seconds=0.2",
    "--set", "learner.publish_seconds=0.1", "--set", "checkpoint.period_seconds=2",
]  # fmt: skip


class Hostile:
    """A process with an actor's key, which speaks the protocol by hand."""

    def __init__(self, endpoint: str, keys: KeyPair, agent: str = "evil") -> None:
        self.context = Context(Network(keys, agent=agent))
        self.endpoint, self.agent = endpoint, agent
        self._sockets: list[zmq.Socket[bytes]] = []
        self.socket = self.connect(zmq.DEALER, endpoint)

    def connect(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        self._sockets.append(socket)
        if kind == zmq.SUB:
            socket.subscribe(b"")
        transport.connect(socket, endpoint)
        return socket

    def send(self, message: Message) -> None:
        self.socket.send(message.encoded)

    def hear(self, kind: type[Message], milliseconds: int = 10_000) -> Any:
        """Wait for a message of a kind; None if none came in time."""
        deadline = time.monotonic() + milliseconds / 1000
        while (left := deadline - time.monotonic()) > 0 and self.socket.poll(int(1000 * left)):
            message = messages.decode(self.socket.recv(), messages.TO_MEMBER)
            if isinstance(message, kind):
                return message
        return None

    def drain(self, milliseconds: int) -> None:
        """Wait for an answer, whatever it is, and drop all that are there."""
        self.socket.poll(milliseconds)
        while self.socket.poll(0):
            self.socket.recv()

    def join(self, role: str = "actor", **fields: Any) -> Message | None:
        self.send(Join(role, pdqn.__version__, "elsewhere", 1, agent=self.agent, **fields))
        return self.hear((Welcome, Refuse))  # pyright: ignore[reportArgumentType]

    def close(self) -> None:
        for socket in self._sockets:
            socket.close()
        self.context.destroy(linger=0)


class Peak:
    """The largest resident memory of each role and of the launcher, while it watches."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._stop = threading.Event()
        self.bytes: dict[str, int] = {}
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            for name in ("launcher", "learner", "replay"):
                process = self._command.process.pid if name == "launcher" else None
                found = psutil.Process(process) if process else self._command.role(name)
                with contextlib.suppress(psutil.Error):
                    if found is not None:
                        rss = found.memory_info().rss
                        self.bytes[name] = max(self.bytes.get(name, 0), rss)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


class Attack:
    """The run, the hostile member in it, and the run's addresses."""

    def __init__(self, command: Command, seen: Observed, directory: Path) -> None:
        self.command, self.seen = command, seen
        key = read_key(directory / "keys" / "hostile.key")
        self.keys = key.keys
        line = seen.until(lambda: [x for x in command.stdout.splitlines() if "tcp://" in x])[0]
        address = next(word for word in line.replace(",", " ").split() if "tcp://" in word)
        self.head = transport.endpoint_of(address.rstrip(".;"), key.head)
        self.members: list[Hostile] = []

    def member(self, agent: str = "evil") -> Hostile:
        self.members.append(Hostile(self.head, self.keys, agent))
        return self.members[-1]

    def close(self) -> None:
        for member in self.members:
            member.close()


@pytest.fixture
def attack(pdqn_command: StartCommand, observe: Observe, tmp_path: Path) -> Iterator[Attack]:
    make_keys(tmp_path / "keys", ("hostile",))
    options = ("--bind", "127.0.0.1", "--keys", "keys")
    with pdqn_command("launch", *RUN, *options, directory=tmp_path) as command:
        seen = observe(command)
        made = Attack(command, seen, tmp_path)
        seen.learns()
        seen.until(seen.checkpoints)
        yield made
        made.close()


def mutated(rng: random.Random, value: Any) -> Any:
    """Change one value at random, to one of its type or of another."""
    strange = [
        None, True, -1, 0, 1, 2**62, 2**63 - 1, -(2**63), 1e308, float("nan"), float("inf"), "",
        "x" * rng.randrange(5000), "\x1b]0;title\x07\x1b[2J", "../../etc/passwd", b"", b"\xff" * 9,
        [], [[]] * rng.randrange(50), {}, {"a": {}}, {"x" * 90: 1}, [None] * rng.randrange(5000),
    ]  # fmt: skip
    if isinstance(value, dict) and value and rng.random() < 0.5:
        key = rng.choice(list(value))
        return {**value, rng.choice([key, "another", 7]): mutated(rng, value[key])}
    if isinstance(value, list | tuple) and value and rng.random() < 0.5:
        parts = list(value)
        at = rng.randrange(len(parts))
        parts[at] = mutated(rng, parts[at])
        return parts
    if isinstance(value, int) and abs(value) < 2**62 and rng.random() < 0.5:
        return value + rng.choice([-1, 1, 1000])
    return rng.choice(strange)


def garbage(rng: random.Random, templates: list[Message]) -> bytes:
    """Encode a message of any kind with fields changed at random."""
    message = rng.choice(templates)
    content: Mapping[str, Any] = message.to_map()
    for _ in range(rng.choice([0, 1, 1, 1, 2, 5])):
        name = rng.choice([*content, "unheard_of"])
        content = {**content, name: mutated(rng, content.get(name))}
    data = wire.encode_control(rng.choice([message.KIND] * 9 + ["nothing"]), content)
    if rng.random() < 0.1:  # and sometimes with a byte changed, or cut short
        at = rng.randrange(len(data))
        data = data[:at] if rng.random() < 0.5 else data[:at] + bytes([data[at] ^ 64]) + data[at:]
    return data


@pytest.mark.timeout(240)
def test_a_hostile_member_changes_nothing_of_a_run_and_is_named(attack: Attack):
    seen, command = attack.seen, attack.command
    peak = Peak(command)
    try:
        pulse = does_what_an_actor_must_not(attack)
        floods(attack, pulse)
    finally:
        peak.close()
    seen.grows("learner_steps", "environment_steps", "episodes")
    assert all(command.role(role) for role in ("replay", "learner", "actor"))
    # A CartPole run's roles have some 300 MB each, mostly torch's pages.
    assert max(peak.bytes.values()) < 1200 * MB, peak.bytes
    summary = seen.interrupt()
    transitions = summary["transitions"]
    assert transitions["lost"] == 0
    assert transitions["received"] <= transitions["sent"]
    assert summary["learner_steps"] > 0
    assert not any(summary["restarts"].values())
    for what in (
        "a request to join",
        "an address of what another serves",
        "a request for another's place",
        "a file",
        "a connection",
        "a batch in another actor's name",
        "a hello in another actor's name",
        "more than 16 messages in a connection",
    ):
        assert summary["refused"][f"hostile: {what}"] > 0, summary["refused"]
    assert "Traceback" not in command.stdout + command.stderr
    assert "\x1b]0" not in command.stdout + command.stderr
    assert "hostile: " in command.stdout


def does_what_an_actor_must_not(attack: Attack) -> Pulse:
    """Ask for everything that is not an actor's; return a pulse with the run's addresses."""
    hostile, seen = attack.member(), attack.seen
    for role in ("learner", "replay", "evaluator"):
        answer = hostile.join(role)
        assert isinstance(answer, Refuse), answer
        assert "is not for the role" in answer.reason
    welcome = hostile.join()
    assert isinstance(welcome, Welcome)
    pulse = seen.until(lambda: ask_for_pulse(hostile))
    before = dict(pulse.endpoints)
    takes_over_endpoints(hostile, before)
    takes_places(hostile, welcome)
    touches_files(attack, hostile)
    assert ask_for_pulse(hostile).endpoints == before
    acts_for_others(attack, hostile, welcome, before)
    return pulse


def ask_for_pulse(hostile: Hostile) -> Any:
    """Report nothing and return the pulse once it has every address; else None."""
    hostile.send(Report())
    pulse = hostile.hear(Pulse)
    return pulse if pulse is not None and len(pulse.endpoints) >= 4 else None


def takes_over_endpoints(hostile: Hostile, endpoints: dict[str, str]) -> None:
    mine = transport.endpoint_of("tcp://127.0.0.1:9", hostile_key(hostile))
    for name in (*endpoints, "parameters", "samples/7", "anything"):
        for address in (mine, endpoints.get(name, mine), "ipc:///tmp/somewhere"):
            hostile.send(Report(endpoints={name: address}))


def hostile_key(hostile: Hostile) -> str:
    keys = hostile.context.network.keys
    assert keys is not None
    return keys.public


def takes_places(hostile: Hostile, welcome: Welcome) -> None:
    """Ask for the places of others, by the names that they have."""
    for role in ("learner", "replay", "evaluator", "actor", "host"):
        for agent in ("", hostile.agent):
            for incarnation in range(3):
                rejoin = Rejoin(role, 0, incarnation, welcome.run, "elsewhere", 1, agent)
                hostile.send(rejoin)
    # It has its own place still, or has none; in any case no other's.
    hostile.hear(Refuse, 2000)


def touches_files(attack: Attack, hostile: Hostile) -> None:
    run = attack.seen.path
    before = {path: path.read_bytes() for path in run.glob("*.toml")}
    names = ("final_model.pth", "best_model.pth", "config.toml", "../outside", "keys/head.key")
    for number, name in enumerate(names):
        hostile.send(FilePiece(name, number, 0, 4, b"evil"))
        hostile.send(Fetch(name, 0, 0))
    hostile.send(FilePiece("checkpoints/step-999999999/learner.pth", 9, 0, 4, b"evil"))
    hostile.send(Fetch("checkpoint", 0, 0))
    assert hostile.hear(messages.Piece, 1500) is None, "a file of the run"
    assert {path: path.read_bytes() for path in run.glob("*.toml")} == before
    assert not (run.parent / "outside").exists()
    assert not (run / "checkpoints" / "step-999999999").exists()
    for model in ("final_model.pth", "best_model.pth"):
        assert not (run / model).exists() or (run / model).read_bytes() != b"evil"


def acts_for_others(
    attack: Attack, hostile: Hostile, welcome: Welcome, endpoints: dict[str, str]
) -> None:
    """Send priorities as the learner, and batches and hellos as another actor."""
    samples = hostile.connect(zmq.DEALER, endpoints["samples/0"])
    parameters = hostile.connect(zmq.PUB, endpoints["parameters"])
    request = SampleRequest(
        request=1, batch_size=16, rows=16, start=0, slot=None, memory=None, learner_steps=1 << 40,
        tally=None, keys=np.arange(1000), priorities=np.full(1000, 1e30, np.float32),
    )  # fmt: skip
    for socket in (samples, parameters):
        with contextlib.suppress(zmq.Again):
            socket.send(encode_request(request), zmq.NOBLOCK)
    assert not samples.poll(2000), "replay answers only the learner"
    hello = hostile.connect(zmq.DEALER, endpoints["acknowledgements/0"])
    hello.send(Hello(0, 0).encode())
    assert not hello.poll(1000), "acknowledgements of another actor"
    push = hostile.connect(zmq.PUSH, endpoints["transitions/0"])
    for sequence in (0, 5, 1 << 20, 1 << 40):
        for data in batches_of_actor_0(welcome, sequence):
            push.send(data)


def batches_of_actor_0(welcome: Welcome, sequence: int) -> list[bytes]:
    """Make batches of the run's own actor, with the tickets that this member can think of."""
    columns = {name: np.zeros(4, dtype) for name, dtype in wire.TRANSITION_COLUMNS.items()}
    frames = {
        field.name: np.zeros((4, *field.stored_shape), field.stored_dtype)
        for field in welcome.spec.fields
    }
    block = wire.compress_block(frames, welcome.spec)
    return [
        wire.encode_transitions(
            wire.TransitionBatch(welcome.run, 0, incarnation, sequence, 0, columns, [block], ticket)
        )
        for incarnation in (0, 1)
        for ticket in (welcome.ticket, b"", bytes(16))
    ]


def floods(attack: Attack, pulse: Pulse) -> None:
    """Flood every socket: with messages at random, connections, subscriptions, and frames."""
    sends_messages_at_random(attack)
    endpoints = pulse.endpoints
    for name, kind in (
        ("parameters", zmq.XSUB),
        ("acknowledgements/0", zmq.DEALER),
        ("transitions/0", zmq.PUSH),
    ):
        flooding = attack.member("floods").connect(kind, endpoints[name])
        for number in range(20_000):
            with contextlib.suppress(zmq.Again):
                flooding.send(b"\x01" + number.to_bytes(400, "big"), zmq.NOBLOCK)
    endless = attack.member("floods")
    for _ in range(300):
        endless.socket.send(bytes(MB // 2), zmq.SNDMORE)
    endless.socket.send(b"")
    crowd = [attack.member("crowd") for _ in range(200)]
    for member in crowd:
        with contextlib.suppress(zmq.Again):
            member.socket.send(Watch().encoded, zmq.NOBLOCK)
    attack.seen.grows("learner_steps")


def sends_messages_at_random(attack: Attack) -> None:
    hostile, rng = attack.member("random"), random.Random(7)
    templates: list[Message] = [
        Join("actor", pdqn.__version__, "elsewhere", 1, agent="random"),
        Rejoin("actor", 0, 0, "run", "elsewhere", 1, "random", {"parameters": "tcp://a:1|k"}),
        Report({"environment_steps": 5.0}, {"epsilon": 0.5}, "acts", notes=(("kind", "text"),)),
        Leave(Report({"episodes": 3}), "an error", "a trace"),
        FilePiece("final_model.pth", 1, 0, 4, b"evil"),
        Fetch("checkpoint", 0, 0),
        Watch(),
        Unknown(),
    ]
    for number in range(CASES):
        hostile.socket.send(garbage(rng, templates))
        if number % 500 == 0:
            # As fast as the run takes them: what is sent faster would be cut, and not be looked at.
            hostile.send(Watch())
            hostile.drain(200)
