"""Commands on a run's own host find it by its directory, and nothing else is taken for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.hosts import keys
from launcher.hosts.access import Access, Door, find_door, open_run
from launcher.hosts.address import ADDRESS, RunAddress, remove_address
from launcher.rundir import CONFIG, RunDirectory
from pdqn import transport
from pdqn.errors import UsageError

if TYPE_CHECKING:
    from conftest import Command, Observed, StartCommand

Observe = Callable[["Command"], "Observed"]

ADDRESS_HERE = "tcp://127.0.0.1:7777"


def opened(keys: Path | None = None, *, insecure: bool = False) -> Access:
    return open_run(
        "127.0.0.1",
        keys=keys,
        insecure=insecure,
        advertise=None,
        ports=None,
        elsewhere=frozenset(),
    )


def door(address: Path | str, key: Path | None = None, *, insecure: bool = False) -> Door:
    return find_door(str(address), key=key, insecure=insecure)


def refused(address: Path | str, key: Path | None = None, *, insecure: bool = False) -> str:
    with pytest.raises(UsageError) as raised:
        door(address, key, insecure=insecure)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}


class RunHere:
    """The directory of a run in progress, held by this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.directory = RunDirectory(path)
        (path / CONFIG).touch()
        self.name("this run")
        self.endpoint = ""

    def name(self, run: str) -> None:
        self.directory.name_run(run)

    def open(self, access: Access) -> Access:
        """Make the keys that the run needs, and write where it is joined."""
        access = access.with_keys(self.path)
        own = access.network.keys
        self.endpoint = transport.endpoint_of(ADDRESS_HERE, own.public if own else None)
        RunAddress("this run", self.endpoint).write(self.path)
        return access


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunHere]:
    made = RunHere(tmp_path / "run")
    yield made
    made.directory.close()


def test_a_run_that_binds_makes_keys_that_only_its_user_can_read(run: RunHere):
    access = run.open(opened())
    assert access.clients is not None
    assert not access.insecure
    assert (run.path / "keys").stat().st_mode & 0o777 == 0o700
    names = ("head.key", "local.key", "allowed.toml", ".lock")
    assert modes(run.path / "keys") == dict.fromkeys(names, 0o600)
    roles = {client.name: client.roles for client in access.clients.clients.values()}
    assert roles["local"] == roles["head"]
    assert len(roles["local"]) == 5


def test_a_command_needs_only_the_directory(run: RunHere):
    run.open(opened())
    found = door(run.path)
    assert found.endpoint == run.endpoint
    assert found.network.keys == keys.read_key(run.path / "keys" / "local.key").keys


def test_a_session_that_resumes_the_run_uses_the_same_keys(run: RunHere):
    first, again = (run.open(opened()) for _ in range(2))
    assert first.network.keys == again.network.keys
    assert first.clients is not None
    assert again.clients is not None
    assert first.clients.clients == again.clients.clients


def test_hosts_are_added_to_the_keys_of_a_run_that_goes_on(run: RunHere):
    access = run.open(opened())
    keys.make_keys(run.path / "keys", ("gpu:learner",))
    assert access.clients is not None
    access.clients._next_look = 0.0
    assert "gpu" in {client.name for client in access.clients.look().values()}


def test_a_run_that_nobody_joins_makes_no_keys(run: RunHere):
    access = Access().with_keys(run.path)
    assert access.network.keys is None
    assert not (run.path / "keys").exists()


def test_an_insecure_run_is_joined_as_such_and_in_no_other_way(run: RunHere):
    access = run.open(opened(insecure=True))
    assert access.insecure
    assert access.clients is None
    assert not (run.path / "keys").exists()
    assert door(run.path, insecure=True).endpoint == ADDRESS_HERE
    assert "the run has no keys, and admits everybody: give --insecure" in refused(run.path)


def test_an_encrypted_run_is_never_joined_in_the_clear(run: RunHere):
    run.open(opened())
    assert "the run is encrypted: leave out --insecure" in refused(run.path, insecure=True)
    assert "needs a key" in refused(ADDRESS_HERE)


def test_keys_from_elsewhere_are_given_by_hand(run: RunHere, tmp_path: Path):
    keys.make_keys(tmp_path / "keys", ("here",))
    run.open(opened(tmp_path / "keys"))
    assert not (run.path / "keys").exists()
    assert "made no key for this host there; give --key" in refused(run.path)
    found = door(run.path, tmp_path / "keys" / "here.key")
    assert found.endpoint == run.endpoint


def test_the_own_keys_of_an_earlier_session_are_not_for_a_run_with_others(
    run: RunHere, tmp_path: Path
):
    run.open(opened())
    keys.make_keys(tmp_path / "keys", ())
    run.open(opened(tmp_path / "keys"))
    assert "made no key for this host there; give --key" in refused(run.path)


def test_a_directory_without_a_run_that_can_be_joined_is_refused_in_a_line(
    run: RunHere, tmp_path: Path
):
    assert "not a run directory; expected tcp://HOST:PORT, or" in refused(tmp_path / "nowhere")
    assert "not a run directory" in refused(tmp_path)
    assert "is not open to other processes; launch it with --bind" in refused(run.path)
    run.open(opened())
    door(run.path)
    run.name("a later session")
    assert "is not open to other processes" in refused(run.path)
    run.name("this run")
    run.directory.close()
    assert "this run has ended" in refused(run.path), "its file was left over"
    remove_address(run.path)
    assert "this run has ended" in refused(run.path)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"run": 7, "endpoint": "tcp://a:1"}', '{"run": "x", "endpoint": "a"}'],
)
def test_a_damaged_address_is_refused_in_a_line(run: RunHere, content: str):
    run.open(opened())
    (run.path / ADDRESS).write_text(content)
    assert f"{run.path / ADDRESS} cannot be read" in refused(run.path)


def test_keys_that_others_could_read_or_have_written_are_refused(run: RunHere):
    run.open(opened())
    (run.path / "keys").chmod(0o755)
    assert "others can open it (mode 0755); chmod 700" in refused(run.path)
    with pytest.raises(UsageError, match="others can open it"):
        opened().with_keys(run.path)
    (run.path / "keys").chmod(0o700)
    (run.path / "keys" / "local.key").chmod(0o640)
    assert "others can read it (mode 0640)" in refused(run.path)


def test_a_run_of_another_user_is_refused(run: RunHere):
    if os.geteuid():
        pytest.skip("only root can give files to another user")
    run.open(opened())
    os.chown(run.path / "keys", 65534, 65534)
    assert "belongs to another user (uid 65534)" in refused(run.path)
    os.chown(run.path / ADDRESS, 65534, 65534)
    said = refused(run.path)
    assert "the run belongs to another user (uid 65534)" in said
    assert "--key" in said


def test_a_person_is_told_how_others_join(run: RunHere, tmp_path: Path):
    access = run.open(opened())
    assert access.invitation(run.endpoint, run.path) == (
        f"processes of this host join with --join {run.path}; others with --join {ADDRESS_HERE} "
        f"--key FILE, made by: pdqn keys {run.path}/keys HOST"
    )
    keys.make_keys(tmp_path / "keys", ())
    access = run.open(opened(tmp_path / "keys"))
    assert access.invitation(run.endpoint, run.path) == (
        f"other processes join with --join {ADDRESS_HERE} --key FILE, made by: "
        f"pdqn keys {tmp_path}/keys HOST"
    )
    access = run.open(opened(insecure=True))
    assert access.invitation(run.endpoint, run.path) == (
        f"other processes join with --join {ADDRESS_HERE} --insecure"
    )


RUN = [
    "launch", "--env", "CartPole-v1", "--console", "plain", "--run-dir", "run", "--actors", "1",
    "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "learner.batch_size=16", "--set", "system.telemetry_seconds=0.2",
    "--set", "system.metrics_seconds=0.2", "--set", "evaluation.enabled=false",
]  # fmt: skip


def test_an_insecure_run_says_so_to_its_end_and_leaves_no_address(
    pdqn_command: StartCommand, observe: Observe, tmp_path: Path
):
    with pdqn_command(*RUN, "--bind", "127.0.0.1", "--insecure", directory=tmp_path) as command:
        seen = observe(command)
        seen.until((seen.path / ADDRESS).exists)
        seen.learns()
        summary = seen.interrupt()
    assert "warning: nothing is encrypted: whoever reaches 127.0.0.1:*, every user of" in (
        command.stdout
    )
    assert "NOT ENCRYPTED" in command.stdout
    assert summary["insecure"] is True
    assert json.loads((seen.path / "snapshot.json").read_text())["snapshot"]["insecure"] is True
    assert not (seen.path / ADDRESS).exists()
    assert not (seen.path / "keys").exists()


@pytest.mark.slow
def test_a_resumed_run_admits_the_keys_that_it_made_before(
    pdqn_command: StartCommand, observe: Observe, tmp_path: Path
):
    options = ["--bind", "127.0.0.1"]
    with pdqn_command(*RUN, *options, directory=tmp_path) as command:
        seen = observe(command)
        seen.until((seen.path / ADDRESS).exists)
        with pdqn_command("keys", "run/keys", "other", directory=tmp_path) as made:
            assert made.wait() == 0, made.stderr
        shutil.copy(seen.path / "keys" / "other.key", tmp_path)
        seen.learns()
        seen.interrupt()
    resume = ["launch", "--resume", "run", "--time", "1h", "--console", "plain", *options]
    with pdqn_command(*resume, directory=tmp_path) as command:
        seen = observe(command)
        seen.until((seen.path / ADDRESS).exists)
        join = ["actor", "--join", "run", "--key", "other.key"]
        with pdqn_command(*join, directory=tmp_path) as other:
            seen.until(lambda: other.role("actor", 1))
            seen.grows("learner_steps")
            assert seen.interrupt()["insecure"] is False
            assert other.wait(20.0) == 0, other.stderr
