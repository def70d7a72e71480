"""Key files: made for their owner alone, and refused when they are not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zmq

from launcher import keys
from launcher.access import Access, open_on_cluster
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
    assert clients.look() == {head, one}
    keys.revoke(tmp_path, "one")
    eventually(lambda: clients.look() == {head})
    (tmp_path / keys.ALLOWED).write_text(f'[keys]\none = "{one}"\n', encoding="utf-8")
    eventually(lambda: clients.look() == {head, one})
    (tmp_path / keys.ALLOWED).chmod(0o666)
    eventually(lambda: clients.look() == {head})  # what everybody can write is no list


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
    assert access.clients.clients == everybody
    monkeypatch.setattr("time.monotonic", lambda: 1e12)
    assert access.clients.look() == everybody, "the files are not looked for again"


def test_a_cluster_gets_a_key_in_a_directory_of_keys_and_keeps_it(tmp_path: Path):
    first = on_cluster("127.0.0.1", keys=tmp_path / "keys")
    assert keys.read_key(tmp_path / "keys" / "dask.key") == keys.parse_key(first.key_text)
    assert on_cluster("127.0.0.1", keys=tmp_path / "keys").key_text == first.key_text


def test_a_cluster_on_this_host_needs_no_keys(tmp_path: Path):
    assert on_cluster("127.0.0.1", keys=None).clients is None


def on_cluster(here: str, *, keys: Path | None) -> Access:
    return open_on_cluster(
        here, None, keys=keys, insecure=False, advertise="10.0.0.1", ports=None, pins={}
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


def test_what_is_no_key_file_is_refused(tmp_path: Path):
    keys.make_keys(tmp_path, ("one", "two"))
    one, two = tmp_path / "one.key", tmp_path / "two.key"
    assert "no such key file" in refused(keys.read_key, tmp_path / "three.key")
    assert "names no run" in refused(keys.read_key, tmp_path / "head.key")
    public = f'public = "{keys.read_key(one).keys.public}"'
    other = f'public = "{keys.read_key(two).keys.public}"'
    one.write_text(one.read_text().replace(public, other))
    assert "no key file" in refused(keys.read_key, one), "the keys do not belong together"
    two.write_text("not TOML at all")
    assert "no key file" in refused(keys.read_key, two)
    (tmp_path / keys.ALLOWED).write_text('[keys]\none = "short"\n')
    assert "not every value is a public key" in refused(keys.read_allowed, tmp_path)


@pytest.mark.parametrize("name", ["head", "", "../one", "a b", "-x", "x" * 65])
def test_names_that_are_none_are_refused_before_anything_is_made(tmp_path: Path, name: str):
    assert "is no name for a key" in refused(keys.make_keys, tmp_path / "keys", ("fine", name))
    assert not (tmp_path / "keys").exists()


def test_a_name_that_is_taken_and_one_that_is_not_there(tmp_path: Path):
    keys.make_keys(tmp_path, ("one",))
    assert "exists; revoke it first" in refused(keys.make_keys, tmp_path, ("one",))
    assert "has no key 'two'; it has one" in refused(keys.revoke, tmp_path, "two")


def test_the_command_tells_what_it_made(pdqn_command: StartCommand, tmp_path: Path):
    with pdqn_command("keys", "keys", "gpu", directory=tmp_path) as command:
        assert command.wait() == 0, command.stderr
    assert command.stdout.split() == ["keys/head.key", "keys/gpu.key"]
    with pdqn_command("keys", "keys", "--revoke", "gpu", directory=tmp_path) as command:
        assert command.wait() == 0, command.stderr
    assert command.stdout == "gpu is let in no longer\n"
