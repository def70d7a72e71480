"""Key files: written for their owner only, and refused otherwise."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zmq

from launcher.hosts import keys
from launcher.hosts.access import Access, open_on_cluster
from pdqn.errors import UsageError

if TYPE_CHECKING:
    from conftest import StartCommand


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_every_host_gets_a_file_of_its_own_that_only_the_owner_can_read(tmp_path: Path):
    directory = tmp_path / "keys"
    made = keys.make_keys(directory, ("gpu", "actors-1"))
    assert [path.name for path in made] == ["head.key", "gpu.key", "actors-1.key"]
    assert {mode(path) for path in made} == {0o600}
    assert mode(directory) == 0o700
    head = keys.read_head(directory)
    hosts = [keys.read_key(path) for path in made[1:]]
    assert [host.name for host in hosts] == ["gpu", "actors-1"]
    assert {host.head for host in hosts} == {head.public}
    pairs = [head, *(host.keys for host in hosts)]
    assert len({pair.public for pair in pairs}) == 3
    for pair in pairs:
        assert zmq.curve_public(pair.secret.encode()).decode() == pair.public
    listed = {host.name: host.keys.public for host in hosts}
    assert keys.read_allowed(directory) == listed


def test_hosts_are_added_and_revoked_later(tmp_path: Path):
    keys.make_keys(tmp_path, ("one",))
    head = keys.read_head(tmp_path)
    first = keys.read_key(tmp_path / "one.key")
    assert [path.name for path in keys.make_keys(tmp_path, ("two",))] == ["two.key"]
    assert keys.read_head(tmp_path) == head, "the run's own stays what it is"
    keys.revoke(tmp_path, "one")
    assert list(keys.read_allowed(tmp_path)) == ["two"]
    assert not (tmp_path / "one.key").exists()
    keys.make_keys(tmp_path, ("one",))
    assert keys.read_key(tmp_path / "one.key").keys != first.keys


def test_a_run_sees_within_a_second_or_so_who_is_let_in(tmp_path: Path, eventually):
    keys.make_keys(tmp_path, ("one",))
    clients = keys.AllowedClients(tmp_path)
    head = keys.read_head(tmp_path).public
    one = keys.read_key(tmp_path / "one.key").keys.public
    assert set(clients.look()) == {head, one}
    keys.revoke(tmp_path, "one")
    eventually(lambda: set(clients.look()) == {head})
    (tmp_path / keys.ALLOWED).write_text(f'[keys]\none = "{one}"\n', encoding="utf-8")
    eventually(lambda: set(clients.look()) == {head, one})


def roles_of(directory: Path) -> dict[str, str]:
    """Return the roles of every admitted key by its name, joined with commas."""
    clients = keys.AllowedClients(directory).clients.values()
    return {client.name: ",".join(sorted(client.roles)) for client in clients}


EVERY_ROLE = "actor,evaluator,learner,replay,watch"


def test_a_key_is_for_actors_unless_roles_are_named(tmp_path: Path):
    keys.make_keys(tmp_path, ("one", "gpu:learner,replay", "laptop:watch"))
    assert roles_of(tmp_path) == {
        "head": EVERY_ROLE, "one": "actor", "gpu": "learner,replay", "laptop": "watch",
    }  # fmt: skip
    keys.ensure_key(tmp_path, "cluster")
    assert roles_of(tmp_path)["cluster"] == EVERY_ROLE


def test_a_key_is_given_other_roles_and_keeps_its_file(tmp_path: Path):
    keys.make_keys(tmp_path, ("one", "two:learner"))
    before = keys.read_key(tmp_path / "one.key")
    assert keys.make_keys(tmp_path, ("one:evaluator",)) == []
    assert keys.read_key(tmp_path / "one.key") == before
    assert roles_of(tmp_path) == {"head": EVERY_ROLE, "one": "evaluator", "two": "learner"}


def test_without_names_the_keys_and_their_roles_are_listed(tmp_path: Path):
    keys.make_keys(tmp_path, ("one", "gpu:learner,replay"))
    assert keys.described(tmp_path) == ["one (actor)", "gpu (learner, replay)"]


def test_a_name_that_comes_back_after_a_revocation_has_none_of_its_old_roles(tmp_path: Path):
    keys.make_keys(tmp_path, ("one:learner",))
    keys.revoke(tmp_path, "one")
    keys.make_keys(tmp_path, ("one",))
    assert roles_of(tmp_path)["one"] == "actor"


@pytest.mark.parametrize("name", ["one:", "one:head", "one:actor,", "one:actor learner", ":actor"])
def test_an_unknown_role_is_refused_before_anything_is_made(tmp_path: Path, name: str):
    said = refused(keys.make_keys, tmp_path / "keys", ("fine", name))
    assert name in said
    assert "expected" in said
    assert not (tmp_path / "keys").exists()


def test_a_list_with_strange_roles_is_refused(tmp_path: Path):
    keys.make_keys(tmp_path, ("one",))
    path = tmp_path / keys.ALLOWED
    good = path.read_text()
    for roles in ('one = "learner"', "one = [1]", 'one = ["root"]', "one = [[]]"):
        path.write_text(f"{good}\n[roles]\n{roles}\n")
        assert "not a list of roles" in refused(keys.AllowedClients, tmp_path)


class Looks:
    """A run that reads its list of keys once a second, by a clock that the test sets."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for clock in ("time.monotonic", "pdqn.silence.monotonic"):
            monkeypatch.setattr(clock, lambda: self.now)
        self.list = directory / keys.ALLOWED
        self.clients = keys.AllowedClients(directory)
        self.head = keys.read_head(directory).public
        self.others = self.clients.clients.keys() - {self.head}

    def __call__(self, seconds: float = 1.0) -> frozenset[str]:
        """Let seconds pass and return the admitted keys, except for the run's own."""
        self.now += seconds
        return frozenset(self.clients.look().keys() - {self.head})


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Looks:
    keys.make_keys(tmp_path, ("one", "two"))
    return Looks(tmp_path, monkeypatch)


def is_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# Ways to spoil the list, each with the message that the run gives.
UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "others may write": (lambda path: path.chmod(0o664), "others can write to it"),
    "half of it": (lambda path: path.write_text("[keys]\none = "), "Invalid value"),
    "no table": (lambda path: path.write_text("keys = 1\n"), "not every value is a public key"),
    "no file": (is_a_folder, "Is a directory"),
    "gone": (lambda path: path.unlink(), "has no list of keys any more"),
    "empty": (lambda path: path.write_text(""), "has no list of keys any more"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_list_that_cannot_be_read_for_a_moment_puts_nobody_out(looks: Looks, what: str):
    good = looks.list.read_text()
    assert (looks(), looks.clients.trouble) == (looks.others, "")
    spoil, why = UNREADABLE[what]
    spoil(looks.list)
    for _ in range(4):
        assert looks() == looks.others
    assert why in looks.clients.trouble
    assert "the last list stays in force for 5 s" in looks.clients.trouble
    looks.list.rmdir() if looks.list.is_dir() else looks.list.unlink(missing_ok=True)
    looks.list.write_text(good)
    assert (looks(), looks.clients.trouble) == (looks.others, "")


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_list_that_cannot_be_read_for_long_lets_in_the_run_alone(looks: Looks, what: str):
    spoil, why = UNREADABLE[what]
    spoil(looks.list)
    for _ in range(6):
        looks()
    for _ in range(3):
        assert looks() == frozenset()
        assert why in looks.clients.trouble
        assert "until it can be read, no other host is admitted" in looks.clients.trouble


def test_time_in_which_the_launcher_was_stopped_puts_nobody_out(looks: Looks):
    looks.list.write_text("")
    assert looks() == looks.others
    assert looks(3600.0) == looks.others


def test_who_is_on_the_list_no_longer_is_out_at_the_next_look(looks: Looks):
    keys.revoke(looks.list.parent, "one")
    two = keys.read_key(looks.list.parent / "two.key").keys.public
    assert looks() == {two}
    looks.list.write_text("[keys]\n")
    assert (looks(), looks.clients.trouble) == (frozenset(), "")


def test_without_a_list_a_run_waits_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keys.make_keys(tmp_path, ())
    looks = Looks(tmp_path, monkeypatch)
    assert (looks(), looks.clients.trouble) == (frozenset(), "")
    keys.make_keys(tmp_path, ("one",))
    assert looks() == {keys.read_key(tmp_path / "one.key").keys.public}


def test_keys_of_one_run_on_a_cluster_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    access = on_cluster("0.0.0.0", keys=None)
    assert list(tmp_path.iterdir()) == []
    assert access.clients is not None
    cluster = keys.parse_key(access.key_text)
    head = access.network.keys
    assert head is not None
    assert cluster.head == head.public
    everybody = {cluster.head, cluster.keys.public}
    assert access.clients.clients.keys() == everybody
    monkeypatch.setattr("time.monotonic", lambda: 1e12)
    assert access.clients.look().keys() == everybody, "the files are not looked for again"


def test_a_cluster_gets_a_key_in_a_directory_of_keys_and_keeps_it(tmp_path: Path):
    first = on_cluster("127.0.0.1", keys=tmp_path / "keys")
    assert keys.read_key(tmp_path / "keys" / "dask.key") == keys.parse_key(first.key_text)
    assert on_cluster("127.0.0.1", keys=tmp_path / "keys").key_text == first.key_text
    # An interrupted revocation has left the file.
    allowed = tmp_path / "keys" / "allowed.toml"
    allowed.write_text("[keys]\n")
    anew = keys.parse_key(on_cluster("127.0.0.1", keys=tmp_path / "keys").key_text)
    assert keys.read_allowed(tmp_path / "keys") == {"dask": anew.keys.public}


def test_a_cluster_on_this_host_has_keys_as_any_other(tmp_path: Path):
    access = on_cluster("127.0.0.1", keys=None)
    assert access.clients is not None
    assert access.key_text
    assert access.with_keys(tmp_path) is access
    assert list(tmp_path.iterdir()) == []
    without = on_cluster("127.0.0.1", keys=None, insecure=True)
    assert without.clients is None
    assert not without.key_text


def test_nobody_can_ask_for_keys_and_for_none(tmp_path: Path):
    said = refused(lambda: on_cluster("127.0.0.1", keys=tmp_path / "keys", insecure=True))
    assert "--insecure uses no keys" in said
    assert list(tmp_path.iterdir()) == []


def on_cluster(here: str, *, keys: Path | None, insecure: bool = False) -> Access:
    return open_on_cluster(
        here, None, keys=keys, insecure=insecure, advertise="10.0.0.1", ports=None, pins={}
    )


def refused(question, *arguments) -> str:
    with pytest.raises(UsageError) as raised:
        question(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_others_can_read_or_write_is_refused(tmp_path: Path):
    keys.make_keys(tmp_path, ("one",))
    path = tmp_path / "one.key"
    path.chmod(0o640)
    assert refused(keys.read_key, path) == (
        f"{path}: others can read it (mode 0640); chmod 600 {path}"
    )
    (tmp_path / "head.key").chmod(0o604)
    assert "mode 0604" in refused(keys.read_head, tmp_path)
    (tmp_path / keys.ALLOWED).chmod(0o620)
    assert "others can write to it" in refused(keys.read_allowed, tmp_path)


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o777])
def test_a_directory_that_others_can_open_is_refused(tmp_path: Path, mode: int):
    directory = tmp_path / "keys"
    keys.make_keys(directory, ("one",))
    clients = keys.AllowedClients(directory)
    directory.chmod(mode)
    expected = f"{directory}: others can open it (mode {mode:04o}); chmod 700 {directory}"
    assert refused(keys.read_head, directory) == expected
    assert refused(keys.read_allowed, directory) == expected
    assert refused(keys.make_keys, directory, ("two",)) == expected
    assert refused(keys.revoke, directory, "one") == expected
    assert sorted(path.name for path in directory.glob("*.key")) == ["head.key", "one.key"]
    clients._next_look = 0.0
    clients.look()
    assert expected in clients.trouble


def test_a_directory_of_another_user_is_refused(tmp_path: Path):
    if os.geteuid():
        pytest.skip("only root can give a directory to another user")
    directory = tmp_path / "keys"
    keys.make_keys(directory, ())
    os.chown(directory, 65534, 65534)
    assert "belongs to another user (uid 65534)" in refused(keys.read_head, directory)
    assert "belongs to another user (uid 65534)" in refused(keys.make_keys, directory, ("two",))


def test_what_is_no_key_file_is_refused(tmp_path: Path):
    keys.make_keys(tmp_path, ("one", "two"))
    one, two = tmp_path / "one.key", tmp_path / "two.key"
    assert "no such key file" in refused(keys.read_key, tmp_path / "three.key")
    assert "names no run" in refused(keys.read_key, tmp_path / "head.key")
    public = f'public = "{keys.read_key(one).keys.public}"'
    other = f'public = "{keys.read_key(two).keys.public}"'
    one.write_text(one.read_text().replace(public, other))
    assert "not a key file" in refused(keys.read_key, one), "the keys do not belong together"
    two.write_text("not TOML at all")
    assert "not a key file" in refused(keys.read_key, two)
    (tmp_path / keys.ALLOWED).write_text('[keys]\none = "short"\n')
    assert "not every value is a public key" in refused(keys.read_allowed, tmp_path)
    for text in ("keys = 1", 'keys = ["x"]', "[keys]\none = 1"):
        (tmp_path / keys.ALLOWED).write_text(text)
        assert "not every value is a public key" in refused(keys.read_allowed, tmp_path)


@pytest.mark.parametrize("name", ["head", "", "../one", "a b", "-x", "x" * 65])
def test_names_that_are_none_are_refused_before_anything_is_made(tmp_path: Path, name: str):
    assert "cannot name a key" in refused(keys.make_keys, tmp_path / "keys", ("fine", name))
    assert not (tmp_path / "keys").exists()


def test_a_name_that_is_taken_and_one_that_is_not_there(tmp_path: Path):
    keys.make_keys(tmp_path, ("one",))
    assert "exists; revoke it first" in refused(keys.make_keys, tmp_path, ("one",))
    assert "has no key 'two'; it has one" in refused(keys.revoke, tmp_path, "two")


def test_a_name_that_is_given_twice_is_made_once(tmp_path: Path):
    made = keys.make_keys(tmp_path, ("one", "one"))
    assert [path.name for path in made] == ["head.key", "one.key"]


def test_a_host_whose_file_has_been_moved_away_keeps_its_key_until_it_is_revoked(tmp_path: Path):
    keys.make_keys(tmp_path, ("one",))
    path, before = tmp_path / "one.key", keys.read_allowed(tmp_path)
    path.rename(tmp_path / "moved")
    assert refused(keys.make_keys, tmp_path, ("two", "one")) == (
        f"{path} is no longer here, but whoever has it may join; revoke it first, with --revoke one"
    )
    assert keys.read_allowed(tmp_path) == before, "nor is the other one made"
    keys.revoke(tmp_path, "one")
    keys.make_keys(tmp_path, ("one",))
    assert keys.read_allowed(tmp_path) == {"one": keys.read_key(path).keys.public}
    assert keys.read_allowed(tmp_path) != before


def test_calls_at_the_same_time_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def slowly(make: Callable[[], object] = zmq.curve_keypair) -> object:
        time.sleep(0.05)
        return make()

    monkeypatch.setattr("zmq.curve_keypair", slowly)
    names = ("one", "two", "three")
    with ThreadPoolExecutor(len(names)) as pool:
        made = [*pool.map(lambda name: keys.make_keys(tmp_path, (name,)), names)]
    assert sorted(len(files) for files in made) == [1, 1, 2], "one of them makes the run's own"
    hosts = [keys.read_key(tmp_path / f"{name}.key") for name in names]
    assert keys.read_allowed(tmp_path) == {host.name: host.keys.public for host in hosts}
    assert {host.head for host in hosts} == {keys.read_head(tmp_path).public}


def test_runs_that_begin_at_the_same_time_share_the_key_of_their_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def slowly(make: Callable[[], object] = zmq.curve_keypair) -> object:
        time.sleep(0.05)
        return make()

    monkeypatch.setattr("zmq.curve_keypair", slowly)
    with ThreadPoolExecutor(3) as pool:
        runs = [*pool.map(lambda _: on_cluster("127.0.0.1", keys=tmp_path), range(3))]
    assert len({run.key_text for run in runs}) == 1
    assert list(keys.read_allowed(tmp_path)) == ["dask"]


def test_a_call_that_hangs_is_not_waited_for_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keys.make_keys(tmp_path, ("one",))
    monkeypatch.setattr(keys, "_LOCK_SECONDS", 0.0)
    hangs, goes_on = threading.Event(), threading.Event()

    def hanging(make: Callable[[], object] = zmq.curve_keypair) -> object:
        hangs.set()
        goes_on.wait(30)
        return make()

    monkeypatch.setattr("zmq.curve_keypair", hanging)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(keys.make_keys, tmp_path, ("two",))
        try:
            assert hangs.wait(30)
            for question, name in ((keys.make_keys, ("three",)), (keys.revoke, "one")):
                assert refused(question, tmp_path, name) == (
                    f"{tmp_path}: another pdqn is changing the keys, and does not finish"
                )
        finally:
            goes_on.set()
        assert call.result() == [tmp_path / "two.key"]
    assert list(keys.read_allowed(tmp_path)) == ["one", "two"]


class Interruption(BaseException):
    """A stand-in for the exception of Ctrl-C."""


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object], int], bool]:
    """Provide ``interrupt(call, step)``: interrupts before the directory's change ``step``."""

    def interrupted(call: Callable[[], object], step: int) -> bool:
        """Tell if the call came that far."""
        left = step

        def counted(change: Callable[..., object]) -> Callable[..., object]:
            def changing(*arguments: object, **options: object) -> object:
                nonlocal left
                left -= 1
                if left == -1:
                    raise Interruption
                return change(*arguments, **options)

            return changing

        with monkeypatch.context() as patch:
            for name in ("open", "fdopen", "unlink", "replace"):
                patch.setattr(f"os.{name}", counted(getattr(os, name)))
            try:
                call()
            except Interruption:
                return True
        return False

    return interrupted


def test_what_was_interrupted_anywhere_is_finished_by_a_call_for_what_is_missing(
    tmp_path: Path, interrupt: Callable[..., bool]
):
    step, was_interrupted = 0, True
    while was_interrupted:
        directory = tmp_path / f"made {step}"
        was_interrupted = interrupt(lambda d=directory: keys.make_keys(d, ("one", "two")), step)
        names = [n for n in ("one", "two") if not (directory / f"{n}.key").exists()]
        keys.make_keys(directory, tuple(names))
        listed = {n: keys.read_key(directory / f"{n}.key").keys.public for n in ("one", "two")}
        assert keys.read_allowed(directory) == listed, f"after step {step}"
        assert keys.read_key(directory / "one.key").head == keys.read_head(directory).public
        assert not list(directory.glob(".*key*")), "secrets that nobody needs"
        step += 1
    assert step > 10


def test_a_revocation_that_was_interrupted_is_finished_by_the_same_call(
    tmp_path: Path, interrupt: Callable[..., bool]
):
    step, was_interrupted = 0, True
    while was_interrupted:
        directory = tmp_path / f"made {step}"
        keys.make_keys(directory, ("one",))
        was_interrupted = interrupt(lambda d=directory: keys.revoke(d, "one"), step)
        if was_interrupted:
            keys.revoke(directory, "one")
        assert keys.read_allowed(directory) == {}, f"after step {step}"
        assert not (directory / "one.key").exists()
        step += 1
    assert step > 3


def test_a_key_whose_revocation_was_interrupted_is_not_let_in_by_a_new_file(
    tmp_path: Path, interrupt: Callable[..., bool]
):
    keys.make_keys(tmp_path, ("one",))
    path, revoked = tmp_path / "one.key", keys.read_key(tmp_path / "one.key")
    step = 0
    while keys.read_allowed(tmp_path):
        assert interrupt(lambda: keys.revoke(tmp_path, "one"), step)
        step += 1
    assert path.exists(), "it has been revoked, and its file is still to be removed"
    keys.make_keys(tmp_path, ("one",))
    assert keys.read_allowed(tmp_path) == {"one": keys.read_key(path).keys.public}
    assert keys.read_key(path).keys != revoked.keys


def test_a_key_file_of_which_nothing_was_written_is_made(tmp_path: Path):
    keys.make_keys(tmp_path, ())
    (tmp_path / "one.key").touch(0o600)
    keys.make_keys(tmp_path, ("one",))
    assert keys.read_allowed(tmp_path) == {"one": keys.read_key(tmp_path / "one.key").keys.public}


def test_a_key_file_that_is_not_this_runs_is_neither_overwritten_nor_removed(tmp_path: Path):
    keys.make_keys(tmp_path / "keys", ())
    keys.make_keys(tmp_path / "other", ("theirs",))
    (tmp_path / "other" / "theirs.key").rename(tmp_path / "keys" / "theirs.key")
    (tmp_path / "keys" / "web.key").write_text("-----BEGIN PRIVATE KEY-----\n")
    for name in ("theirs", "web"):
        path = tmp_path / "keys" / f"{name}.key"
        assert refused(keys.make_keys, tmp_path / "keys", (name,)) == (
            f"{path} exists, but is not a key file of this run; move it away"
        )
        assert f"has no key '{name}'" in refused(keys.revoke, tmp_path / "keys", name)
        assert path.exists()


def test_the_command_tells_what_it_made(pdqn_command: StartCommand, tmp_path: Path):
    with pdqn_command("keys", "keys", "gpu", directory=tmp_path) as command:
        assert command.wait() == 0, command.stderr
    assert command.stdout.split() == ["keys/head.key", "keys/gpu.key"]
    with pdqn_command("keys", "keys", "--revoke", "gpu", directory=tmp_path) as command:
        assert command.wait() == 0, command.stderr
    assert command.stdout == "gpu is no longer admitted\n"
