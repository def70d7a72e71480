"""The files of a run whose directory is on another host."""

from __future__ import annotations

import contextlib
import math
import socket
import stat
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from actors.environments.describe import describe_environment
from launcher.coordinator.admission import Admission
from launcher.coordinator.coordinator import Coordinator
from launcher.coordinator.files import FileDesk, FileStore
from launcher.hosts.access import open_run
from launcher.metrics.metrics import RunMetrics
from learner.checkpoint import save_checkpoint
from learner.learner import Learner
from pdqn.errors import RunError
from pdqn.files import FOLDER_VARIABLE, RUN_ID, RunFiles
from pdqn.layers import build
from pdqn.link import CoordinatorLink
from pdqn.messages import PIECE_BYTES, Fetch, Filed, FilePiece, Piece, Welcome
from pdqn.model_head import BEST_MODEL, FINAL_MODEL
from pdqn.wire import WireError

if TYPE_CHECKING:
    from conftest import StartCommand

CONFIG = {
    "run": {"env": "CartPole-v1"},
    "actor": {"count": 1},
    # The least that keeps a learner in the run.
    "replay": {
        "capacity": 1000, "min_size": 8, "samples_per_insert": 1.0,
        "samples_per_insert_tolerance": 1e12, "store": "dense",
    },
    "learner": {"device": "cpu", "precision": "float32", "learning_rate": 1e-3, "threads": 1},
    "network": {"kind": "mlp", "hidden": 8, "layers": 1},
    "system": {"telemetry_seconds": 0.2},
}  # fmt: skip
CHECKPOINT = "checkpoints/step-000000007/learner.pth"


def content(count: int) -> bytes:
    return bytes(index * 7 % 251 for index in range(251)) * (count // 251 + 1)


# ---- pieces ----


def piece(
    name: str, data: bytes, offset: int = 0, size: int | None = None, push: int = 0
) -> FilePiece:
    return FilePiece(name, push, offset, offset + len(data) if size is None else size, data)


def test_a_file_is_there_with_its_last_piece_and_not_before(tmp_path: Path):
    store = FileStore(tmp_path, keep=2)
    answer = store.take("learner", piece(FINAL_MODEL, b"one ", 0, 8, push=5))
    assert answer == Filed(FINAL_MODEL, 5, 0)
    assert not (tmp_path / FINAL_MODEL).exists()
    store.take("learner", piece(FINAL_MODEL, b"more", 4, 8))
    assert (tmp_path / FINAL_MODEL).read_bytes() == b"one more"
    store.take("learner", piece(FINAL_MODEL, b"half", 0, 8))
    assert (tmp_path / FINAL_MODEL).read_bytes() == b"one more", "until the next one is whole"
    store.take("learner", piece(FINAL_MODEL, b"begun anew"))
    assert (tmp_path / FINAL_MODEL).read_bytes() == b"begun anew"
    assert [path.name for path in tmp_path.iterdir()] == [FINAL_MODEL]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path):
    store = FileStore(tmp_path, keep=2)
    for step in (1, 2, 3):
        store.take("learner", piece(f"checkpoints/step-{step:09d}/learner.pth", b"x"))
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-000000002", "step-000000003"]
    newest, before = (store.give("learner", Fetch("checkpoint", i, 0)) for i in (0, 1))
    assert newest.name == "checkpoints/step-000000003/learner.pth"
    assert before.name == "checkpoints/step-000000002/learner.pth"
    assert not store.give("learner", Fetch("checkpoint", 2, 0)).name


@pytest.mark.parametrize("keep", [1, 2])
def test_a_learner_that_went_back_behind_a_damaged_checkpoint_keeps_its_saves(
    tmp_path: Path, keep: int
):
    store = FileStore(tmp_path, keep)
    for step in (500, 1000, 520, 540):
        store.take("learner", piece(f"checkpoints/step-{step:09d}/learner.pth", b"%d" % step))
        newest = store.give("learner", Fetch("checkpoint", 0, 0))
        assert newest.data == b"%d" % step
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    kept = ["step-000000520", "step-000000540"][-keep:]
    assert names == [*kept, "unreadable-step-000001000"]


def test_a_damaged_checkpoint_does_not_take_the_place_of_one_that_can_be_read(tmp_path: Path):
    store = FileStore(tmp_path, keep=2)
    names = [f"checkpoints/step-{step:09d}/learner.pth" for step in (500, 1000, 1200)]
    for name in names[:2]:
        store.take("learner", piece(name, b"x"))
    for index, name in ((0, names[1]), (1, names[0])):  # the learner could not read the newest
        assert store.give("learner", Fetch("checkpoint", index, 0)).name == name
    store.take("learner", piece(names[2], b"x"))
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == ["step-000000500", "step-000001200", "unreadable-step-000001000"]


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("actor", FINAL_MODEL), ("learner", BEST_MODEL), ("evaluator", FINAL_MODEL),
        ("learner", "../final_model.pth"), ("learner", "/etc/passwd"), ("learner", "config.toml"),
        ("learner", "checkpoints/step-1/../../x"), ("learner", f"{CHECKPOINT}\n"), ("learner", 7),
    ],
)  # fmt: skip
def test_nobody_writes_what_is_not_theirs(tmp_path: Path, role: str, name: Any):
    with pytest.raises(WireError):
        FileStore(tmp_path, keep=2).take(role, piece(name, b"x"))
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "wrong",
    [{"offset": 5}, {"offset": -1}, {"size": 1 << 40}, {"data": "text"}, {"offset": 9, "size": 8}],
)
def test_pieces_that_do_not_fit_are_refused(tmp_path: Path, wrong: dict[str, Any]):
    def take() -> None:
        given = FilePiece.from_map(piece(FINAL_MODEL, b"x").to_map() | wrong)
        FileStore(tmp_path, keep=2).take("learner", given)

    with pytest.raises(WireError):
        take()
    assert not (tmp_path / FINAL_MODEL).exists()


KEY_FILES = ("head.key", "local.key", "allowed.toml", ".lock")


@pytest.mark.parametrize("name", [f"keys/{name}" for name in KEY_FILES])
def test_the_keys_of_a_run_are_neither_given_nor_taken(tmp_path: Path, name: str):
    access = open_run(
        "127.0.0.1", keys=None, insecure=False, advertise=None, ports=None, elsewhere=frozenset()
    )
    access.with_keys(tmp_path)
    before = (tmp_path / name).read_bytes()
    store = FileStore(tmp_path, keep=2)
    for spelling in (name, f"./{name}", f"checkpoints/../{name}", str(tmp_path / name)):
        with pytest.raises(WireError):
            store.give("learner", Fetch(spelling, 0, 0))
        for role in ("actor", "replay", "learner", "evaluator", "host"):
            with pytest.raises(WireError):
                store.take(role, piece(spelling, b"x"))
    assert (tmp_path / name).read_bytes() == before
    assert {path.name for path in (tmp_path / "keys").iterdir()} == set(KEY_FILES)


def test_a_learner_may_read_the_model_in_place_of_damaged_checkpoints(tmp_path: Path):
    (tmp_path / FINAL_MODEL).write_bytes(b"parameters")
    store = FileStore(tmp_path, keep=2)
    assert store.give("learner", Fetch(FINAL_MODEL, 0, 0)).data == b"parameters"


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("learner", "config.toml"), ("learner", BEST_MODEL), ("evaluator", "checkpoint"),
        ("actor", "checkpoint"), ("actor", BEST_MODEL), ("host", BEST_MODEL),
    ],
)  # fmt: skip
def test_other_files_are_not_given(tmp_path: Path, role: str, name: str):
    (tmp_path / "config.toml").write_text("secret")
    with pytest.raises(WireError):
        FileStore(tmp_path, 2).give(role, Fetch(name, 0, 0))


# ---- over the wire ----


class Cable:
    """A relay of connections to a port; the first one breaks after a number of bytes."""

    def __init__(self, endpoint: str, most_bytes: int) -> None:
        self._port = int(endpoint.rpartition(":")[2])
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self.ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._serve, most_bytes)

    def close(self) -> None:
        for end in (self._server, *self.ends):
            _shut_down(end)
        for thread in self._threads:
            thread.join(10)
        for end in (self._server, *self.ends):
            end.close()

    def _serve(self, most_bytes: float) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                return
            self.ends += [near, far]
            self._start(self._carry, near, far, most_bytes)
            self._start(self._carry, far, near, math.inf)
            most_bytes = math.inf

    def _carry(self, source: socket.socket, sink: socket.socket, most_bytes: float) -> None:
        with contextlib.suppress(OSError):
            while most_bytes > 0 and (data := source.recv(1 << 16)):
                sink.sendall(data)
                most_bytes -= len(data)
        for end in (source, sink):
            _shut_down(end)

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self._threads[-1].start()


def _shut_down(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # already closed
        end.shutdown(socket.SHUT_RDWR)


class Host:
    """A coordinator in a separate thread, and roles with or without its directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._coordinator = Coordinator(
            self._context,
            "tcp://127.0.0.1:*",
            welcome=Welcome(
                "this run",
                0,
                0,
                build(("test", CONFIG)),
                describe_environment("CartPole-v1", {}),
                "tcp://{host}:*",
                str(directory),
            ),
            metrics=RunMetrics(None),
            files=FileDesk(FileStore(directory, keep=2)),
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self._links: list[CoordinatorLink] = []
        self._cables: list[Cable] = []

    @property
    def endpoint(self) -> str:
        return self._coordinator.endpoint

    def files(self, role: str, cable: Cable | None = None) -> RunFiles:
        endpoint = self.endpoint if cable is None else cable.endpoint
        link = CoordinatorLink(self._context, endpoint, role)
        self._links.append(link)
        return RunFiles(link, link.join())

    def cable(self, most_bytes: int) -> Cable:
        self._cables.append(Cable(self.endpoint, most_bytes))
        return self._cables[-1]

    def receives_file(self, role: str) -> bool:
        return self._coordinator.receives_file(role)

    def serves(self, name: str) -> bool:
        return name in self._coordinator.membership.places.served()

    def silence(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def close(self) -> None:
        self.silence()
        for link in self._links:
            link.leave()
        self._context.destroy(linger=0)
        for cable in self._cables:
            cable.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            self._coordinator.poll(0.02)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def test_a_role_on_the_same_host_works_in_the_runs_directory(host: Host):
    (host.directory / RUN_ID).write_text("this run")
    files = host.files("learner")
    assert files.here
    assert files.path == host.directory
    files.close()
    assert host.directory.exists()


def test_a_directory_of_the_same_name_elsewhere_is_not_the_runs(host: Host):
    (host.directory / RUN_ID).write_text("another run")
    files = host.files("learner")
    assert not files.here
    files.close()
    assert not files.path.exists()


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, 9 * PIECE_BYTES + 1])
def test_files_of_any_size_come_over_whole_and_back(host: Host, size: int):
    learner = host.files("learner")
    (learner.path / CHECKPOINT).parent.mkdir(parents=True)
    (learner.path / CHECKPOINT).write_bytes(content(size)[:size])
    learner.push(CHECKPOINT)
    assert (host.directory / CHECKPOINT).read_bytes() == content(size)[:size]
    (learner.path / CHECKPOINT).unlink()
    assert learner.fetch("checkpoint") == learner.path / CHECKPOINT
    assert (learner.path / CHECKPOINT).read_bytes() == content(size)[:size]
    assert learner.fetch("checkpoint", 1) is None
    learner.close()


def test_a_run_that_stops_knows_whether_a_file_still_comes(host: Host, eventually: Any):
    learner = host.files("learner")
    assert not host.receives_file("learner")
    (learner.path / FINAL_MODEL).write_bytes(b"x")
    learner.push(FINAL_MODEL)
    # The next file may follow at once.
    eventually(lambda: host.receives_file("learner"), 2.0)
    assert not host.receives_file("evaluator")
    eventually(lambda: not host.receives_file("learner"))
    learner.close()


def test_a_host_that_cannot_write_says_why(host: Host):
    (host.directory / "checkpoints").write_text("in the way")
    learner = host.files("learner")
    (learner.path / CHECKPOINT).parent.mkdir(parents=True)
    (learner.path / CHECKPOINT).write_bytes(b"x")
    with pytest.raises(RunError, match=r"the run's host cannot take a file: .*checkpoints"):
        learner.push(CHECKPOINT)
    learner.close()


def test_nobody_waits_forever_for_a_host_that_is_gone(host: Host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pdqn.files._PATIENCE_SECONDS", 0.3)
    learner = host.files("learner")
    (learner.path / FINAL_MODEL).write_bytes(b"x")
    host.silence()
    with pytest.raises(RunError, match=r"did not answer for 0.3 s"):
        learner.push(FINAL_MODEL)
    learner.close()


# The place is given back after a second: before it, a piece is soon lost three times.
@pytest.mark.parametrize("lost_seconds", [0.5, 0.05])
def test_a_file_is_whole_although_the_connection_broke_while_it_was_brought(
    host: Host, monkeypatch: pytest.MonkeyPatch, lost_seconds: float
):
    monkeypatch.setattr("pdqn.files._LOST_SECONDS", lost_seconds)
    monkeypatch.setattr("pdqn.files._PATIENCE_SECONDS", 5.0)
    cable = host.cable(9 * PIECE_BYTES)
    learner = host.files("learner", cable)
    whole = content(20 * PIECE_BYTES)
    (learner.path / FINAL_MODEL).write_bytes(whole)
    learner.push(FINAL_MODEL)
    assert (host.directory / FINAL_MODEL).read_bytes() == whole
    assert len(cable.ends) == 4, "there were two connections"
    learner.close()


@pytest.mark.parametrize("lost_seconds", [0.5, 0.05])
def test_a_file_is_whole_although_the_connection_broke_while_it_was_fetched(
    host: Host, monkeypatch: pytest.MonkeyPatch, lost_seconds: float
):
    monkeypatch.setattr("pdqn.files._LOST_SECONDS", lost_seconds)
    monkeypatch.setattr("pdqn.files._PATIENCE_SECONDS", 5.0)
    cable = host.cable(2000)
    learner = host.files("learner", cable)
    whole = content(60 * PIECE_BYTES)
    (host.directory / FINAL_MODEL).write_bytes(whole)
    assert learner.fetch(FINAL_MODEL) == learner.path / FINAL_MODEL
    assert (learner.path / FINAL_MODEL).read_bytes() == whole
    assert len(cable.ends) == 4, "there were two connections"
    learner.close()


def test_a_role_that_gets_no_place_back_gives_a_file_up(
    host: Host, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Admission, "answer", lambda *_: "waits")
    monkeypatch.setattr("pdqn.files._LOST_SECONDS", 0.05)
    monkeypatch.setattr("pdqn.files._PATIENCE_SECONDS", 2.0)
    learner = host.files("learner", host.cable(9 * PIECE_BYTES))
    (learner.path / FINAL_MODEL).write_bytes(content(20 * PIECE_BYTES))
    with pytest.raises(RunError, match=r"gave no place back for 2 s"):
        learner.push(FINAL_MODEL)
    learner.close()


def test_a_file_whose_pieces_are_lost_again_and_again_is_given_up(
    host: Host, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
):
    pieces = Counter[int]()

    def lose(_: FileStore, __: str, piece: FilePiece) -> Filed:
        pieces[piece.offset] += 1
        raise WireError("malformed", "lost")

    monkeypatch.setattr(FileStore, "take", lose)
    monkeypatch.setattr("pdqn.files._LOST_SECONDS", 0.1)
    monkeypatch.setattr("pdqn.files._PATIENCE_SECONDS", 4.0)
    learner = host.files("learner")
    (learner.path / FINAL_MODEL).write_bytes(content(9 * PIECE_BYTES))
    with pytest.raises(RunError, match=r"did not answer for 4 s"):
        learner.push(FINAL_MODEL)
    # At most this many pieces are in transit at a time.
    eventually(lambda: pieces == {index * PIECE_BYTES: 3 for index in range(4)})
    learner.close()


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("checkpoint", "{elsewhere}/checkpoints/step-000000007/learner.pth"),
        ("checkpoint", "../learner.pth"), ("checkpoint", "checkpoints/../../learner.pth"),
        ("checkpoint", f"{CHECKPOINT}/../../../../x"), ("checkpoint", FINAL_MODEL),
        ("checkpoint", f"x/{CHECKPOINT}"), (BEST_MODEL, CHECKPOINT),
        (BEST_MODEL, "{elsewhere}/best_model.pth"), (BEST_MODEL, f"../{BEST_MODEL}"),
    ],
)  # fmt: skip
def test_nothing_is_written_that_was_not_asked_for(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, given: str
):
    elsewhere = tmp_path / "elsewhere"
    name = given.format(elsewhere=elsewhere)

    def give(_: FileStore, _role: str, wanted: Fetch) -> Piece:
        return Piece(wanted.name, wanted.index, wanted.offset, name, 4, b"owns")

    monkeypatch.setattr(FileStore, "give", give)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    files = host.files("learner")
    with pytest.raises(
        RunError, match=r"^asked for \w+(.pth)?, but the run's host sent the file .+$"
    ):
        files.fetch(asked)
    assert [path for path in tmp_path.rglob("*") if path != files.path] == []
    files.close()


def test_what_a_role_that_was_killed_has_left_is_removed_by_its_host(
    host: Host, pdqn_command: StartCommand, eventually: Callable[..., Any], tmp_path: Path
):
    with (
        tempfile.TemporaryDirectory(prefix="t-") as folder,
        pdqn_command(
            "learner",
            "--join",
            host.endpoint,
            "--insecure",
            directory=tmp_path / "elsewhere",
            TMPDIR=folder,
        ) as command,
    ):
        (path,) = eventually(lambda: list(Path(folder).glob("pdqn-*/pdqn-*")))
        assert {stat.S_IMODE(p.stat().st_mode) for p in (path, path.parent)} == {0o700}
        eventually(lambda: command.role("learner")).kill()
        eventually(lambda: "killed by SIGKILL" in command.stderr)
        assert path.exists()
        command.interrupt()
        assert command.wait() == 0, command.stderr
        assert not list(Path(folder).glob("pdqn-*"))


def test_a_learner_elsewhere_tries_every_checkpoint_and_sets_the_damaged_ones_aside(
    host: Host, pdqn_command: StartCommand, eventually: Callable[..., Any], tmp_path: Path
):
    learner = Learner(build(("test", CONFIG)), describe_environment("CartPole-v1", {}))
    damaged = build(("test", CONFIG)).checkpoint.keep + 1
    for step in range(1, damaged + 2):
        learner.learner_steps = step
        path = save_checkpoint(host.directory, learner.get_state(), keep=99)
        if step > 1:
            (path / "learner.pth").write_bytes(b"damaged")
    with pdqn_command(
        "learner", "--join", host.endpoint, "--insecure", directory=tmp_path / "elsewhere"
    ) as command:
        eventually(lambda: host.serves("parameters"))
        command.interrupt()
        assert command.wait() == 0, command.stderr
    names = sorted(path.name for path in (host.directory / "checkpoints").iterdir())
    aside = [f"unreadable-step-{step:09d}" for step in range(2, damaged + 2)]
    assert names == ["step-000000001", *aside]


def test_where_no_directory_is_there_is_no_run(host: Host):
    link_files = host.files("evaluator")
    assert not link_files.here
    assert link_files.fetch(BEST_MODEL) is None
    link_files.close()
