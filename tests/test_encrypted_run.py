"""A run with keys, and intruders with a wrong key, no key, or a key that came late."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from launcher.hosts.keys import make_keys, read_key, revoke
from pdqn import transport, wire
from pdqn.errors import RunError
from pdqn.link import CoordinatorLink
from pdqn.messages import Pulse
from pdqn.transport import Context, KeyPair, Network
from replay.sender import Hello

if TYPE_CHECKING:
    from conftest import Command, Observed, StartCommand

Eventually = Callable[..., Any]
ReadLines = Callable[[Path], list[dict[str, Any]]]
Observe = Callable[["Command"], "Observed"]

RUN = [
    "--env", "CartPole-v1", "--console", "plain", "--run-dir", "run", "--actors", "1",
    "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "replay.samples_per_insert=4", "--set", "learner.batch_size=16",
    "--set", "system.telemetry_seconds=0.2", "--set", "system.metrics_seconds=0.2",
    "--set", "learner.publish_seconds=0.1", "--set", "evaluation.enabled=false",
    # The insider is in the process of the tests, which holds more than an actor may.
    "--set", "system.memory_limit=0",
]  # fmt: skip
# The sockets of a run, with the message that an outsider would send to each.
DOORS = {
    "coordinator": (zmq.DEALER, wire.encode_control("watch", {})),
    "transitions/0": (zmq.PUSH, b"garbage"),
    "acknowledgements/0": (zmq.DEALER, Hello(0, 0).encode()),
    "samples/0": (zmq.DEALER, b"garbage"),
    "parameters": (zmq.SUB, None),
}
QUIET_MILLISECONDS = 1500


class Insider:
    """A member with a listed key, which has joined and knows every address."""

    def __init__(self, endpoint: str, keys: KeyPair) -> None:
        self._context = Context(Network(keys, agent="insider"))
        self._link = CoordinatorLink(self._context, endpoint, "actor")
        self._link.join()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._talk)
        self._thread.start()

    @property
    def pulse(self) -> Pulse:
        return self._link.pulse

    @property
    def is_thrown_out(self) -> bool:
        return not self._thread.is_alive()

    def _talk(self) -> None:
        with contextlib.suppress(RunError):  # the coordinator throws it out in the end
            while not self._stop.is_set():
                self._link.poll(0.05)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)
        self._link.leave()
        self._context.destroy(linger=0)


class Knocking:
    """Connections to all of a run's sockets."""

    def __init__(self, keys: KeyPair | None, endpoints: dict[str, str]) -> None:
        self._context = Context(Network(keys))
        self._sockets = {name: self._knock(name, endpoints[name], keys) for name in DOORS}

    def answered(self, milliseconds: int) -> set[str]:
        """List the sockets that sent an answer."""
        poller = zmq.Poller()
        for socket in self._sockets.values():
            if socket.type != zmq.PUSH:
                poller.register(socket, zmq.POLLIN)
        heard = dict(poller.poll(milliseconds))
        return {name for name, socket in self._sockets.items() if socket in heard}

    def drain(self) -> None:
        for socket in self._sockets.values():
            while socket.type != zmq.PUSH and socket.poll(0):
                socket.recv()

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _knock(self, name: str, endpoint: str, keys: KeyPair | None) -> zmq.Socket[bytes]:
        kind, message = DOORS[name]
        socket = self._context.socket(kind)
        if kind == zmq.SUB:
            socket.subscribe(b"")
        transport.connect(socket, endpoint if keys else transport.split(endpoint)[0])
        if message is not None:
            with contextlib.suppress(zmq.Again):
                socket.send(message, zmq.NOBLOCK)
        return socket


@pytest.fixture
def closing() -> Iterator[list[Any]]:
    things: list[Any] = []
    yield things
    for thing in reversed(things):
        thing.close()


def test_only_listed_keys_get_anything_or_change_anything_at_any_socket(
    pdqn_command: StartCommand,
    eventually: Eventually,
    read_lines: ReadLines,
    observe: Observe,
    tmp_path: Path,
    closing: list[Any],
):
    make_keys(tmp_path / "keys", ("insider:actor,replay,learner,evaluator",))
    key = read_key(tmp_path / "keys" / "insider.key")

    def knock(keys: KeyPair | None) -> Knocking:
        closing.append(Knocking(keys, endpoints))
        return closing[-1]

    options = ("--bind", "127.0.0.1", "--keys", "keys")
    with pdqn_command("launch", *RUN, *options, directory=tmp_path) as run:
        seen = observe(run)
        found = seen.until(lambda: re.findall(r"--join (tcp://\S+)", run.stdout))
        head = transport.endpoint_of(found[0], key.head)
        insider = Insider(head, key.keys)
        closing.append(insider)
        seen.learns()
        assert not insider.is_thrown_out
        seen.until(lambda: DOORS.keys() - {"coordinator"} <= insider.pulse.endpoints.keys())
        endpoints = {**insider.pulse.endpoints, "coordinator": head}

        listed = knock(key.keys)
        eventually(lambda: {"coordinator", "parameters"} <= listed.answered(200))
        stranger = KeyPair.new()
        for unlisted in [knock(stranger), knock(None)]:
            assert unlisted.answered(QUIET_MILLISECONDS // 2) == set()

        allowed = tmp_path / "keys" / "allowed.toml"
        for mode, said in ((0o664, "others can write to it"), (0o600, "can be read again")):
            allowed.chmod(mode)
            eventually(lambda said=said: said in run.stdout)
        revoke(tmp_path / "keys", "insider")
        eventually(lambda: "revoked" in (tmp_path / "run" / "events.jsonl").read_text())
        eventually(lambda: insider.is_thrown_out)
        eventually(lambda: listed.drain() or not listed.answered(QUIET_MILLISECONDS), 20.0)
        assert knock(key.keys).answered(QUIET_MILLISECONDS) == set()
        before = seen.metric("learner_steps")
        eventually(lambda: seen.metric("learner_steps") > before + 10)
        run.interrupt()
        assert run.wait(20.0) == 0, run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    last = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["learner_steps"] > 0
    summary = seen.summary()
    # Replay has looked at no garbage except the insider's, and perhaps not even at that.
    assert summary["transitions"]["rejected"] <= 1
    assert summary["transitions"]["lost"] == 0
