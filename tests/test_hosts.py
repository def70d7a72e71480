"""A run over several hosts: network namespaces that are connected by a switch of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pdqn.model import load_model

if TYPE_CHECKING:
    from conftest import Command, StartCommand

Eventually = Callable[..., Any]
ReadLines = Callable[[Path], list[dict[str, Any]]]

ROLES = ("actor", "replay", "learner", "evaluator")
HOSTS = ("head", "replay", "learner", "left", "right")
PORT = 7777
SMALL = [
    "--env", "CartPole-v1", "--console", "plain", "--run-dir", "run",
    "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "replay.samples_per_insert=4", "--set", "learner.batch_size=16",
    "--set", "system.telemetry_seconds=0.2", "--set", "system.metrics_seconds=0.2",
    "--set", "checkpoint.period_seconds=1", "--set", "evaluation.enabled=false",
]  # fmt: skip


def roles_of(*commands: Command) -> set[int]:
    """Process ids of the roles that commands have started."""
    titles = ((p.pid, " ".join(p.cmdline())) for c in commands for p in c.members())
    return {pid for pid, title in titles if title.startswith("pdqn actor")}


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Network:
    """Hosts at 10.77.0.1, 2, ... in namespaces, each with a cable to a switch."""

    def __init__(self) -> None:
        self._prefix = f"pdqn{os.getpid()}"
        self._namespaces: list[str] = []
        self._switch = self._namespace("switch")
        ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._switch, "link", "set", "bridge", "up")
        for number, host in enumerate(HOSTS, 1):
            namespace = self._namespace(host)
            peer = ("peer", "name", "cable", "netns", namespace)
            ip("-n", self._switch, "link", "add", host, "type", "veth", *peer)
            ip("-n", self._switch, "link", "set", host, "master", "bridge", "up")
            ip("-n", namespace, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", namespace, "link", "set", device, "up")

    def on(self, host: str) -> tuple[str, ...]:
        """What runs a command on a host."""
        return ("ip", "netns", "exec", f"{self._prefix}-{host}")

    def cut(self, host: str) -> None:
        ip("-n", self._switch, "link", "set", host, "down")

    def mend(self, host: str) -> None:
        ip("-n", self._switch, "link", "set", host, "up")

    def disturb(self, host: str, *how: str) -> None:
        """Delay and lose what goes to a host, with tc netem."""
        add = ["tc", "-n", self._switch, "qdisc", "add", "dev", host, "root", "netem", *how]
        done = subprocess.run(add, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no netem here: {done.stderr.strip()}")

    def close(self) -> None:
        for namespace in self._namespaces:
            ip("netns", "delete", namespace)

    def _namespace(self, name: str) -> str:
        namespace = f"{self._prefix}-{name}"
        ip("netns", "add", namespace)
        self._namespaces.append(namespace)
        return namespace


@pytest.fixture
def network() -> Iterator[Network]:
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the command ip")
    made = None
    try:
        made = Network()
        yield made
    except OSError as error:
        pytest.skip(f"network namespaces are not permitted: {error}")
    finally:
        if made is not None:
            made.close()


class Run:
    """A run on the head, and who takes part on other hosts."""

    def __init__(
        self, network: Network, start: StartCommand, directory: Path, eventually: Eventually,
        read_lines: ReadLines,
    ) -> None:  # fmt: skip
        self.network, self._start, self.directory = network, start, directory
        self._eventually, self._read_lines = eventually, read_lines
        self.keys = directory / "keys"
        self.commands: dict[str, Command] = {}
        self.path = directory / "head" / "run"

    def make_keys(self) -> None:
        names = [name for name in HOSTS if name != "head"]
        with self._start("keys", str(self.keys), *names, directory=self.directory) as command:
            assert command.wait() == 0, command.stderr

    def launch(self, *options: str) -> Command:
        bind = ["--bind", f"10.77.0.1:{PORT}", "--keys", str(self.keys), "--actors", "0"]
        return self.on("head", "launch", *SMALL, *bind, *options)

    def join(self, host: str, role: str, *options: str) -> Command:
        key = ["--key", str(self.keys / f"{host}.key")]
        return self.on(host, role, "--join", f"tcp://10.77.0.1:{PORT}", *key, *options)

    def on(self, host: str, *arguments: str, at: str = "") -> Command:
        directory = self.directory / (at or host)
        command = self._start(*arguments, directory=directory, prefix=self.network.on(host))
        self.commands[at or host] = command
        return command

    def until(self, happened: Callable[[], Any], seconds: float = 60.0) -> Any:
        def happened_or_ended() -> Any:
            answer = happened()
            head = self.commands["head"]
            if not answer and head.process.poll() is not None:
                pytest.fail(f"the run ended: {head.stdout}\n{head.stderr}")
            return answer

        return self._eventually(happened_or_ended, seconds)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self._read_lines(self.path / "events.jsonl") if e["event"] == kind]

    def metric(self, name: str) -> float:
        lines = self._read_lines(self.path / "metrics.jsonl")
        return next((line[name] for line in reversed(lines) if line.get(name) is not None), 0)

    def grows(self, *names: str) -> None:
        for _ in range(2):
            before = {name: self.metric(name) for name in names}
            self.until(lambda b=before: all(self.metric(name) > b[name] for name in names))

    @property
    def ladder(self) -> tuple[float, float]:
        """Least and most that an environment of those who are there explores."""
        name = "rollout/exploration_rate"
        return self.metric(f"{name}_min"), self.metric(f"{name}_max")

    def interrupt(self) -> None:
        head = self.commands["head"]
        head.interrupt()
        assert head.wait(20.0) == 0, head.stderr

    def summary(self) -> dict[str, Any]:
        return json.loads((self.path / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture
def run(
    network: Network,
    pdqn_command: StartCommand,
    tmp_path: Path,
    eventually: Eventually,
    read_lines: ReadLines,
) -> Run:
    made = Run(network, pdqn_command, tmp_path, eventually, read_lines)
    made.make_keys()
    return made


QUICK = ["--set", "system.host_timeout_seconds=4"]


@pytest.mark.parametrize(
    ("options", "cut_seconds"),
    [(QUICK, 6.0), pytest.param([], 20.0, marks=pytest.mark.slow)],
    ids=["quick", "twenty seconds"],
)
def test_five_hosts_train_together_and_a_cut_cable_costs_no_role_for_good(
    run: Run, options: list[str], cut_seconds: float
):
    with (
        run.launch("--no-learner", "--no-replay", *options) as head,
        run.join("replay", "replay") as replay,
        run.join("learner", "learner") as learner,
        run.join("left", "actor", "--count", "2") as left,
        run.join("right", "actor", "--count", "1") as right,
    ):
        run.until(lambda: (run.path / "events.jsonl").exists())
        assert "waits for replay (0 of 1), learner (0 of 1), actor (0 of 1)" in run.until(
            lambda: head.stdout if "waits for" in head.stdout else ""
        )
        run.until(lambda: run.metric("learner_steps") > 0)
        everybody = roles_of(left, right)
        run.network.cut("left")
        cut = time.monotonic()
        run.until(lambda: run.events("vanished"), 25.0)
        assert run.events("vanished")[0]["roles"] == 2
        run.until(lambda: run.ladder == pytest.approx((0.4**8, 0.4)))  # all of it is one actor's
        run.grows("environment_steps", "learner_steps")
        run.until(lambda: time.monotonic() - cut > cut_seconds)
        run.network.mend("left")
        run.until(lambda: len(run.events("rejoined")) == 3, 30.0)
        run.grows("environment_steps", "learner_steps")
        assert roles_of(left, right) == everybody, "nobody had to be started again"
        run.interrupt()
        for other in (replay, learner, left, right):
            assert other.wait(20.0) == 0, other.stderr
            assert "Traceback" not in other.stderr
    summary = run.summary()
    assert summary["exit_reason"] == "interrupted"
    assert summary["transitions"]["lost"] == 0
    assert summary["transitions"]["received"] > 0
    for host in ("replay", "learner", "left", "right"):
        assert not (run.directory / host / "run").exists(), "files go to the run's own host"
    assert load_model(run.path / "final_model.pth").parameter_version == summary["learner_steps"]


def test_delay_and_loss_slow_a_run_and_do_nothing_else(run: Run):
    run.network.disturb("left", "delay", "40ms", "10ms", "loss", "2%")
    with run.launch() as head, run.join("left", "actor", "--count", "2") as left:
        run.until(lambda: (run.path / "events.jsonl").exists())
        run.grows("environment_steps", "learner_steps")
        run.interrupt()
        assert left.wait(20.0) == 0, left.stderr
        assert head.process.returncode == 0
    assert run.summary()["transitions"]["lost"] == 0
    assert run.summary()["restarts"] == dict.fromkeys(ROLES, 0)


@pytest.mark.slow
def test_a_host_whose_key_is_revoked_is_out_and_the_others_go_on(run: Run):
    with (
        run.launch(),
        run.join("left", "actor") as left,
        run.join("right", "actor", "--count", "auto") as right,
    ):
        run.until(lambda: (run.path / "events.jsonl").exists())
        run.until(lambda: {e["role"] for e in run.events("joined")} >= {"actor", "host"})
        run.until(lambda: len(roles_of(left)) == 1 and len(roles_of(right)) >= 1)
        run.grows("environment_steps", "learner_steps")
        with run.on("head", "keys", str(run.keys), "--revoke", "left", at="keys") as revoke:
            assert revoke.wait() == 0, revoke.stderr
        assert left.wait(20.0) == 1, left.stderr
        assert "no place for it any more: its key was revoked" in left.stderr
        assert {event["role"] for event in run.events("revoked")} == {"host", "actor"}
        run.grows("environment_steps", "learner_steps")
        run.interrupt()
        assert right.wait(20.0) == 0, right.stderr
    assert run.summary()["restarts"] == dict.fromkeys(ROLES, 0)


@pytest.mark.slow
def test_a_host_without_the_right_key_is_told_nothing(run: Run):
    with run.launch() as head:
        run.until(lambda: (run.path / "events.jsonl").exists())
        address = f"tcp://10.77.0.1:{PORT}"
        with run.on("left", "actor", "--join", address) as other:
            assert other.wait() == 2
            assert "--key" in other.stderr
        with run.on("left", "replay", "--join", address, "--insecure") as other:
            assert other.wait() == 1
            assert "is encrypted: give the key file" in other.stderr
        assert {event["role"] for event in run.events("joined")} <= {"replay", "learner"}
        run.interrupt()
        assert head.process.returncode == 0
