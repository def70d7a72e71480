"""A run over several hosts: network namespaces that are connected by a switch of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pdqn.model import load_model

if TYPE_CHECKING:
    from conftest import Command, Observed, StartCommand

Observe = Callable[["Command"], "Observed"]

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
        """Return the words that run a command on a host."""
        return ("ip", "netns", "exec", f"{self._prefix}-{host}")

    def connections(self, host: str) -> Counter[str]:
        """Count the connections of others to what a host has bound, by their address."""
        listens, talks = (
            subprocess.run(
                [*self.on(host), "ss", "-Hnt", *which], capture_output=True, text=True, check=True
            ).stdout.splitlines()
            for which in (["-l"], ["state", "established"])
        )
        bound = {line.split()[3].rpartition(":")[2] for line in listens}
        ends = (line.split()[-2:] for line in talks)
        return Counter(
            theirs.rpartition(":")[0] for ours, theirs in ends if ours.rpartition(":")[2] in bound
        )

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
        self, network: Network, start: StartCommand, observe: Observe, directory: Path
    ) -> None:
        self.network, self._start, self._observe = network, start, observe
        self.directory, self.keys = directory, directory / "keys"
        self.seen: Observed

    def make_keys(self) -> None:
        roles = {"replay": ":replay", "learner": ":learner"}
        names = [f"{name}{roles.get(name, '')}" for name in HOSTS if name != "head"]
        with self._start("keys", str(self.keys), *names, directory=self.directory) as command:
            assert command.wait() == 0, command.stderr

    def launch(self, *options: str) -> Command:
        bind = ["--bind", f"10.77.0.1:{PORT}", "--keys", str(self.keys), "--actors", "0"]
        command = self.on("head", "launch", *SMALL, *bind, *options)
        self.seen = self._observe(command)
        return command

    def join(self, host: str, role: str, *options: str) -> Command:
        key = ["--key", str(self.keys / f"{host}.key")]
        return self.on(host, role, "--join", f"tcp://10.77.0.1:{PORT}", *key, *options)

    def on(self, host: str, *arguments: str, at: str = "") -> Command:
        directory = self.directory / (at or host)
        return self._start(*arguments, directory=directory, prefix=self.network.on(host))

    @property
    def ladder(self) -> tuple[float, float]:
        """Least and most that an environment of those who are there explores."""
        name = "rollout/exploration_rate"
        return self.seen.metric(f"{name}_min"), self.seen.metric(f"{name}_max")


@pytest.fixture
def run(
    network: Network,
    pdqn_command: StartCommand,
    observe: Observe,
    tmp_path: Path,
) -> Run:
    made = Run(network, pdqn_command, observe, tmp_path)
    made.make_keys()
    return made


QUICK = ["--set", "system.host_timeout_seconds=4"]


@pytest.mark.timeout(300)  # ten processes of five hosts share the cores with other tests
@pytest.mark.parametrize(
    ("options", "cut_seconds"),
    [(QUICK, 6.0), ([], 20.0)],
    ids=["quick", "twenty seconds"],
)
@pytest.mark.slow
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
        run.seen.until(lambda: (run.seen.path / "events.jsonl").exists())
        assert "waits for replay (0 of 1), learner (0 of 1), actor (0 of 1)" in run.seen.until(
            lambda: head.stdout if "waits for" in head.stdout else ""
        )
        run.seen.until(lambda: run.seen.metric("learner_steps") > 0)
        # Of a learner that has taken hundreds of steps, actors act on what it published.
        run.seen.until(lambda: run.seen.metric("learner_steps") > 300, 120.0)
        run.seen.until(
            lambda: run.seen.metric("learner/policy_lag") < run.seen.metric("learner_steps") / 3
        )
        # All actors of a host get it over one connection.
        once = {"10.77.0.4": 1, "10.77.0.5": 1}
        run.seen.until(lambda: run.network.connections("learner") == once)
        everybody = roles_of(left, right)
        run.network.cut("left")
        cut = time.monotonic()
        run.seen.until(lambda: run.seen.events("vanished"), 25.0)
        assert run.seen.events("vanished")[0]["roles"] == 2
        run.seen.until(
            lambda: run.ladder == pytest.approx((0.4**8, 0.4))
        )  # all of it is one actor's
        run.seen.grows("environment_steps", "learner_steps")
        run.seen.until(lambda: time.monotonic() - cut > cut_seconds)
        run.network.mend("left")
        run.seen.until(lambda: len(run.seen.events("rejoined")) == 3, 30.0)
        run.seen.grows("environment_steps", "learner_steps")
        assert roles_of(left, right) == everybody, "nobody had to be started again"
        run.seen.interrupt()
        for other in (replay, learner, left, right):
            assert other.wait(20.0) == 0, other.stderr
            assert "Traceback" not in other.stderr
    summary = run.seen.summary()
    assert summary["exit_reason"] == "interrupted"
    assert summary["transitions"]["lost"] == 0
    assert summary["transitions"]["received"] > 0
    for host in ("replay", "learner", "left", "right"):
        assert not (run.directory / host / "run").exists(), "files go to the run's own host"
    assert (
        load_model(run.seen.path / "final_model.pth").parameter_version == summary["learner_steps"]
    )


@pytest.mark.slow
def test_lambda_returns_of_two_hosts_reach_a_learner_elsewhere_through_two_replays(run: Run):
    fresh = ["actor.returns=lambda", "learner.target=none", "network.layer_norm=true"]
    settings = [word for setting in fresh for word in ("--set", setting)]
    with (
        run.launch("--no-learner", "--preset", "none", "--replays", "2", *settings) as head,
        run.join("learner", "learner") as learner,
        run.join("left", "actor", "--count", "2") as left,
        run.join("right", "actor", "--count", "1") as right,
    ):
        run.seen.until(lambda: (run.seen.path / "events.jsonl").exists())
        run.seen.until(lambda: run.seen.metric("learner_steps") > 300, 120.0)
        run.seen.interrupt()
        for other in (learner, left, right):
            assert other.wait(20.0) == 0, other.stderr
        assert head.process.returncode == 0
    replays = {e["index"] for e in run.seen.events("joined") if e["role"] == "replay"}
    assert replays == {0, 1}
    transitions = run.seen.summary()["transitions"]
    assert transitions["received"] > 0
    assert transitions["lost"] == transitions["refused"] == 0


@pytest.mark.slow
def test_actors_beside_the_launcher_share_a_connection_to_a_learner_elsewhere(run: Run):
    with (
        run.launch("--no-learner", "--actors", "2") as head,
        run.join("learner", "learner") as learner,
    ):
        run.seen.until(lambda: (run.seen.path / "events.jsonl").exists())
        run.seen.grows("environment_steps", "learner_steps")
        run.seen.until(lambda: run.network.connections("learner") == {"10.77.0.1": 1})
        run.seen.until(
            lambda: run.seen.metric("learner/policy_lag") < run.seen.metric("learner_steps") / 3
        )
        run.seen.interrupt()
        assert learner.wait(20.0) == 0, learner.stderr
        assert head.process.returncode == 0
    assert run.seen.summary()["transitions"]["lost"] == 0


def test_delay_and_loss_slow_a_run_and_do_nothing_else(run: Run):
    run.network.disturb("left", "delay", "40ms", "10ms", "loss", "2%")
    with run.launch() as head, run.join("left", "actor", "--count", "2") as left:
        run.seen.until(lambda: (run.seen.path / "events.jsonl").exists())
        run.seen.grows("environment_steps", "learner_steps")
        run.seen.interrupt()
        assert left.wait(20.0) == 0, left.stderr
        assert head.process.returncode == 0
    assert run.seen.summary()["transitions"]["lost"] == 0
    assert run.seen.summary()["restarts"] == dict.fromkeys(ROLES, 0)


@pytest.mark.slow
def test_a_host_whose_key_is_revoked_is_out_and_the_others_go_on(run: Run):
    with (
        run.launch(),
        run.join("left", "actor") as left,
        run.join("right", "actor", "--count", "auto") as right,
    ):
        run.seen.until(lambda: (run.seen.path / "events.jsonl").exists())
        run.seen.until(lambda: {e["role"] for e in run.seen.events("joined")} >= {"actor", "host"})
        run.seen.until(lambda: len(roles_of(left)) == 1 and len(roles_of(right)) >= 1)
        run.seen.grows("environment_steps", "learner_steps")
        with run.on("head", "keys", str(run.keys), "--revoke", "left", at="keys") as revoke:
            assert revoke.wait() == 0, revoke.stderr
        assert left.wait(20.0) == 1, left.stderr
        assert "no longer has a place for this role: its key was revoked" in left.stderr
        assert {event["role"] for event in run.seen.events("revoked")} == {"host", "actor"}
        run.seen.grows("environment_steps", "learner_steps")
        run.seen.interrupt()
        assert right.wait(20.0) == 0, right.stderr
    assert run.seen.summary()["restarts"] == dict.fromkeys(ROLES, 0)


@pytest.mark.slow
def test_a_host_without_the_right_key_is_told_nothing(run: Run):
    with run.launch() as head:
        run.seen.until(lambda: (run.seen.path / "events.jsonl").exists())
        address = f"tcp://10.77.0.1:{PORT}"
        with run.on("left", "actor", "--join", address) as other:
            assert other.wait() == 2
            assert "--key" in other.stderr
        with run.on("left", "replay", "--join", address, "--insecure") as other:
            assert other.wait() == 1
            assert "is encrypted: give the key file" in other.stderr
        assert {event["role"] for event in run.seen.events("joined")} <= {"replay", "learner"}
        run.seen.interrupt()
        assert head.process.returncode == 0
