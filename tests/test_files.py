"""The files of a run whose directory is on another host."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from launcher.coordinator import Coordinator
from launcher.filestore import FileStore
from launcher.metrics import RunMetrics
from pdqn.config import build
from pdqn.errors import RunError
from pdqn.files import PIECE_BYTES, RUN_ID, RunFiles
from pdqn.link import CoordinatorLink
from pdqn.model import BEST_MODEL, FINAL_MODEL
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.wire import WireError

SPEC = EnvironmentSpec("CartPole-v1", (FieldSpec("observation", (4,), "float32"),), 2)
CHECKPOINT = "checkpoints/step-000000007/learner.pth"


def content(count: int) -> bytes:
    return bytes(index * 7 % 251 for index in range(251)) * (count // 251 + 1)


# ---- pieces ----


def piece(name: str, data: bytes, offset: int = 0, size: int | None = None) -> dict[str, Any]:
    whole = offset + len(data) if size is None else size
    return {"name": name, "offset": offset, "size": whole, "data": data}


def test_a_file_is_there_with_its_last_piece_and_not_before(tmp_path: Path):
    store = FileStore(tmp_path, keep=2)
    answer = store.take("learner", piece(FINAL_MODEL, b"one ", 0, 8) | {"push": 5})
    assert answer == {"name": FINAL_MODEL, "push": 5, "offset": 0}
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
    newest, before = (store.give({"name": "checkpoint", "index": i, "offset": 0}) for i in (0, 1))
    assert newest["name"] == "checkpoints/step-000000003/learner.pth"
    assert before["name"] == "checkpoints/step-000000002/learner.pth"
    assert not store.give({"name": "checkpoint", "index": 2, "offset": 0})["name"]


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
    with pytest.raises(WireError):
        FileStore(tmp_path, keep=2).take("learner", piece(FINAL_MODEL, b"x") | wrong)
    assert not (tmp_path / FINAL_MODEL).exists()


def test_other_files_are_not_given(tmp_path: Path):
    (tmp_path / "config.toml").write_text("secret")
    with pytest.raises(WireError):
        FileStore(tmp_path, 2).give({"name": "config.toml", "index": 0, "offset": 0})


# ---- over the wire ----


class Host:
    """A coordinator in a thread of its own, and roles that have its directory or not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._coordinator = Coordinator(
            self._context,
            "tcp://127.0.0.1:*",
            run="this run",
            run_dir=str(directory),
            role_bind="tcp://127.0.0.1:*",
            config=build(("test", {"actor": {"count": 1}})),
            spec=SPEC,
            metrics=RunMetrics(None),
            files=FileStore(directory, keep=2),
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self._links: list[CoordinatorLink] = []

    def files(self, role: str) -> RunFiles:
        link = CoordinatorLink(self._context, self._coordinator.endpoint, role)
        self._links.append(link)
        return RunFiles(link, link.join())

    def receives_file(self, role: str) -> bool:
        return self._coordinator.receives_file(role)

    def silence(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def close(self) -> None:
        self.silence()
        for link in self._links:
            link.leave()
        self._context.destroy(linger=0)

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
    assert host.receives_file("learner"), "the next one may follow at once"
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


def test_where_no_directory_is_there_is_no_run(host: Host):
    link_files = host.files("evaluator")
    assert not link_files.here
    assert link_files.fetch(BEST_MODEL) is None
    link_files.close()
