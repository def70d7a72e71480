"""The limits of what the head of a run can have a host do that joins it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from actors.environments.describe import describe_environment
from launcher.cli.trusting import admitting, read_allow_list, take_trust
from launcher.coordinator.coordinator import Coordinator
from launcher.coordinator.files import FileDesk, FileStore
from launcher.metrics.metrics import RunMetrics
from pdqn.admission import admitted, followed
from pdqn.config import Config
from pdqn.errors import HostRefusalError, NotTrustedError, UsageError
from pdqn.files import RUN_ID, RunFiles
from pdqn.layers import Layer, build
from pdqn.link import CoordinatorLink
from pdqn.messages import Pulse, Welcome
from pdqn.transport import Context, Network
from pdqn.trust import EVERYTHING, NOTHING, Trust

if TYPE_CHECKING:
    from conftest import Command, Observed, StartCommand

Eventually = Callable[..., Any]
Observe = Callable[["Command"], "Observed"]

HEAD = "tcp://10.0.0.1:7777"
OVER_TCP = "tcp://{host}:*"
SMALL: Layer = {"run": {"env": "CartPole-v1"}, "system": {"telemetry_seconds": 0.05}}
MODULE = """
import pathlib
pathlib.Path({mark!r}).touch()
import gymnasium

def make(**env_args):
    return gymnasium.make("CartPole-v1")
"""


def settings(
    env: str = "CartPole-v1",
    kind: str = "mlp",
    evaluated: dict[str, Any] | None = None,
    **args: Any,
) -> Config:
    changed = {"run": {"env": env, "env_args": args}, "network": {"kind": kind}}
    return build(
        ("test", SMALL), ("test", {**changed, "evaluation": {"env_args": evaluated or {}}})
    )


def welcome(config: Config | None = None, **changes: Any) -> Welcome:
    config = config or settings()
    spec = replace(describe_environment("CartPole-v1", {}), id=config.run.env)
    return replace(Welcome("run", 0, 0, config, spec, OVER_TCP, "/the/directory"), **changes)


def admit(asked: Welcome, trust: Trust = NOTHING, address: str = HEAD) -> Welcome:
    return admitted(asked, Network(agent="a host", trust=trust), address)


# ---- what a head may ask for ----


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (settings("os:system"), "its environment is os:system, .* --env os:system, or --trust"),
        (settings(kind="os:system"), "its network is os:system, .* --network os:system"),
        (settings(inner="os:system"), "its argument inner is os:system, .* give --trust"),
        (settings(evaluated={"inner": "os:system"}), "its argument inner is os:system"),
        (settings(inner="os.system"), "its argument inner is os.system"),
    ],
    ids=["environment", "network", "argument", "argument in evaluation", "dotted argument"],
)
def test_a_head_cannot_have_a_host_run_code_that_the_host_has_not_named(config: Config, told: str):
    asked = welcome(config)
    with pytest.raises(NotTrustedError, match=f"^{HEAD}: {told}"):
        admit(asked)
    assert admit(asked, EVERYTHING) == asked
    assert admitted(asked, Network(), HEAD) == asked, "the launcher's own roles trust it"


def test_an_environment_has_one_name():
    """Roles make the environment of the spec, whatever the configuration says."""
    asked = welcome()
    with pytest.raises(NotTrustedError, match="two names CartPole-v1 and os:system"):
        admit(replace(asked, spec=replace(asked.spec, id="os:system")))


def test_a_host_runs_what_it_has_named():
    named = Trust(frozenset({"mine:make"}), frozenset({"mine:network"}))
    asked = welcome(settings("mine:make", "mine:network", level=3))
    assert admit(asked, named) == replace(asked, run_dir="")
    with pytest.raises(NotTrustedError, match="mine:other"):
        admit(welcome(settings("mine:other")), named)


@pytest.mark.parametrize(
    "pattern",
    ["ipc:///home/me/{name}", "tcp://0.0.0.0:22", "tcp://{host}:22", "inproc://x", "", "{name}"],
)
def test_a_head_does_not_choose_where_a_host_binds(pattern: str):
    with pytest.raises(NotTrustedError, match="are to bind"):
        admit(welcome(bind=pattern))


def test_roles_that_join_through_a_socket_bind_beside_it():
    address = "ipc:///run/pdqn/coordinator"
    beside = welcome(bind="ipc:///run/pdqn/actor-0-0-{name}")
    assert admit(beside, address=address).bind == beside.bind
    for pattern in ("ipc:///run/pdqn/../x", "ipc:///run/{name}", OVER_TCP):
        with pytest.raises(NotTrustedError):
            admit(welcome(bind=pattern), address=address)


def test_a_head_names_no_folder_of_a_host():
    assert admit(welcome()).run_dir == ""
    assert admit(welcome(), EVERYTHING).run_dir == "/the/directory"


def test_a_head_has_a_host_start_no_processes_and_connect_to_no_files():
    pulse = Pulse(
        endpoints={"samples/0": "tcp://10.0.0.2:1|KEY", "parameters": "ipc:///x"}, count=9
    )
    there, refused = followed(pulse, Network(agent="a host"), HEAD)
    assert (there.count, there.endpoints) == (0, {"samples/0": "tcp://10.0.0.2:1|KEY"})
    assert refused == 1
    assert followed(pulse, Network(), HEAD) == (pulse, 0)
    assert followed(pulse, Network(agent="a host", trust=EVERYTHING), HEAD) == (pulse, 0)


def test_a_list_names_what_runs_may_have_here(tmp_path: Path):
    path = tmp_path / "allowed"
    path.write_text("# ours\nmine:make  # the environment\n\n  mine:network\n")
    assert read_allow_list(path) == {"mine:make", "mine:network"}
    path.chmod(0o666)
    with pytest.raises(UsageError, match=r"everybody may write it: chmod o-w"):
        read_allow_list(path)
    with pytest.raises(UsageError, match="No such file"):
        read_allow_list(tmp_path / "nowhere")


def given(*words: str) -> Trust:
    """Return the permission of the options of a command that joins."""
    found: list[Trust] = []

    @click.command
    @admitting
    def command(**options: Any) -> None:
        found.append(take_trust(options))
        assert options == {}

    command.main(list(words), standalone_mode=False)
    return found[0]


def test_options_permit_what_they_name_and_nothing_else(tmp_path: Path):
    (tmp_path / "allowed").write_text("mine:make  # ours\n")
    name = frozenset({"mine:make"})
    assert given() == NOTHING
    assert given("--trust") == EVERYTHING
    assert given("--env", "mine:make") == Trust(name)
    assert given("--network", "mine:make") == Trust(networks=name)
    assert given("--allow-list", str(tmp_path / "allowed")) == Trust(name, name)


# ---- a hostile head ----


class Head:
    """A coordinator in a thread of its own, which asks for what a test has it ask for."""

    def __init__(self, directory: Path, asked: Welcome) -> None:
        self._context: Context = Context()
        self.coordinator = Coordinator(
            self._context,
            "tcp://127.0.0.1:*",
            welcome=asked,
            metrics=RunMetrics(None),
            files=FileDesk(FileStore(directory, keep=2)),
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self._contexts: list[Context] = []
        self._joined: list[CoordinatorLink] = []

    @property
    def endpoint(self) -> str:
        return self.coordinator.endpoint

    def told(self) -> list[str]:
        """List the reasons that hosts and roles have given for their end."""
        return [event.text for event in list(self.coordinator.events) if event.kind == "failed"]

    def link(self, role: str, trust: Trust = NOTHING) -> CoordinatorLink:
        context = Context(Network(agent="a host", trust=trust))
        self._contexts.append(context)
        return CoordinatorLink(context, self.endpoint, role)

    def joined(self, role: str, trust: Trust = NOTHING) -> tuple[CoordinatorLink, Welcome]:
        link = self.link(role, trust)
        answer = link.join()
        self._joined.append(link)
        return link, answer

    def close(self) -> None:
        for link in self._joined:
            link.leave()
        for context in self._contexts:
            context.destroy(linger=0)
        self._stop.set()
        self._thread.join(10)
        self.coordinator.close()
        self._context.destroy(linger=0)

    def _serve(self) -> None:
        while not self._stop.is_set():
            self.coordinator.poll(0.02)


@pytest.fixture
def heads(tmp_path: Path) -> Iterator[Callable[[Welcome], Head]]:
    made: list[Head] = []

    def make(asked: Welcome) -> Head:
        made.append(Head(tmp_path / "head", asked))
        return made[-1]

    yield make
    for head in made:
        head.close()


Heads = Callable[[Welcome], Head]


@pytest.mark.parametrize("role", ["actor", "replay", "learner", "evaluator", "host"])
def test_every_process_of_a_host_looks_at_its_own_welcome(
    heads: Heads, role: str, eventually: Eventually
):
    """A head could show the host's supervisor one welcome, and its roles another."""
    head = heads(welcome(settings("os:system")))
    with pytest.raises(HostRefusalError, match="os:system, which would run code"):
        head.link(role).join()
    (told,) = eventually(head.told)
    assert "refuses tcp://127.0.0.1:" in told
    assert "--env os:system" in told


def test_a_file_at_a_path_that_a_head_names_stays(heads: Heads, tmp_path: Path):
    """libzmq removes what is at the path of an ipc socket before it binds it."""
    victim = tmp_path / "victim-parameters"
    victim.write_text("precious")
    head = heads(welcome(bind=f"ipc://{tmp_path}/victim-{{name}}"))
    with pytest.raises(HostRefusalError, match="are to bind ipc://"):
        head.link("learner").join()
    assert victim.read_text() == "precious"


def test_a_learner_writes_into_no_directory_that_a_head_names(heads: Heads, tmp_path: Path):
    """Whoever was in an earlier run of this user knows its directory and its id."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / RUN_ID).write_text("the run")
    head = heads(welcome(run="the run", run_dir=str(mine)))
    files = RunFiles(*head.joined("learner"))
    assert not files.here
    assert files.path != mine
    files.close()
    assert RunFiles(*head.joined("evaluator", EVERYTHING)).path == mine


def test_a_host_without_a_directory_is_nowhere_near_one(
    heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / RUN_ID).write_text("the run")
    files = RunFiles(*heads(welcome(run="the run")).joined("learner"))
    assert not files.here, "the current directory is not the run's"
    files.close()


@pytest.mark.parametrize("role", ["actor", "learner"])
def test_a_command_that_joins_a_hostile_head_says_so_in_one_line(
    heads: Heads, pdqn_command: StartCommand, tmp_path: Path, role: str, eventually: Eventually
):
    mark = tmp_path / "mark"
    head = heads(welcome(settings("os:system", command=f"touch {mark}")))
    join = (role, "--join", head.endpoint, "--insecure")
    with pdqn_command(*join, directory=tmp_path / "host") as command:
        assert command.wait() == 2
    assert command.stderr == (
        f"pdqn: {head.endpoint}: its environment is os:system, which would run code; if you trust "
        "it, give --env os:system, or --trust\n"
    )
    assert len(eventually(head.told)) == 1
    assert not mark.exists()


# ---- a run of a person's own environment ----

RUN = [
    "--env", "mine:make", "--bind", "127.0.0.1", "--actors", "0", "--console", "plain",
    "--run-dir", "run", "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "learner.batch_size=16", "--set", "evaluation.enabled=false",
    "--set", "system.telemetry_seconds=0.2", "--set", "system.metrics_seconds=0.2",
]  # fmt: skip


def test_a_host_takes_part_once_it_has_named_the_environment(
    pdqn_command: StartCommand, observe: Observe, tmp_path: Path
):
    marks = {name: tmp_path / f"mark-{name}" for name in ("head", "host")}
    for name, mark in marks.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(MODULE.format(mark=str(mark)))
    (tmp_path / "host" / "allowed").write_text("mine:make  # ours\n")
    with pdqn_command("launch", *RUN, directory=tmp_path / "head") as head:
        seen = observe(head)
        said = seen.until(lambda: [x for x in head.stdout.splitlines() if "--join tcp://" in x])
        address = next(word for word in said[0].split() if word.startswith("tcp://"))
        key = str(tmp_path / "head" / "run" / "keys" / "local.key")

        def join(*options: str, at: tuple[str, ...] = (address, "--key", key)) -> Command:
            return pdqn_command("actor", "--join", *at, *options, directory=tmp_path / "host")

        with join() as refused:
            assert refused.wait() == 2, refused.stderr
        assert "mine:make, which would run code" in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert not marks["host"].exists()
        seen.until(lambda: "its environment is mine:make" in head.stdout)
        (line,) = [x for x in head.stdout.splitlines() if "its environment is mine:make" in x]
        assert "host 0: " in line
        for joining in (
            partial(join, "--allow-list", "allowed"),
            partial(join, at=("../head/run",)),
        ):
            steps = seen.metric("environment_steps")
            with joining() as actor:
                seen.until(lambda before=steps: seen.metric("environment_steps") > before)
                actor.interrupt()
                assert actor.wait() == 0, actor.stderr
        assert marks["host"].exists()
        head.interrupt()
        assert head.wait() == 0, head.stderr
