"""Files that cannot be written: a run goes on, reports it, and saves when there is room again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from learner.checkpoint_folders import checkpoints
from pdqn.model import write_atomically

if TYPE_CHECKING:
    from conftest import StartCommand

Eventually = Callable[..., Any]
ReadLines = Callable[[Path], list[dict[str, Any]]]
RUN = [
    "launch", "--env", "CartPole-v1", "--console", "plain", "--run-dir", "run",
    "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "learner.batch_size=16", "--set", "network.hidden=16",
    "--set", "checkpoint.period_seconds=0.5", "--set", "system.metrics_seconds=0.2",
    "--set", "evaluation.episodes=1", "--set", "evaluation.period_seconds=0.5",
]  # fmt: skip


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def as_torch_tells_it(*_: Any) -> None:
    try:
        full()
    except OSError:
        raise RuntimeError("[enforce fail at inline_container.cc:672]")  # noqa: B904


@pytest.mark.parametrize(
    ("where", "failure"),
    [("os.fsync", full), ("torch.save", full), ("torch.save", as_torch_tells_it)],
)
def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, failure: Callable[..., None]
):
    path = tmp_path / "learner.pth"
    write_atomically(path, {"learner_steps": 1})
    with monkeypatch.context() as patched:
        patched.setattr(where, failure)
        with pytest.raises(OSError, match="No space left on device"):
            write_atomically(path, {"learner_steps": 2})
    assert list(tmp_path.iterdir()) == [path]
    assert torch.load(path, weights_only=True) == {"learner_steps": 1}


def in_the_way(folder: Path) -> None:
    """Put a file in the place of a folder, so that nothing can be written into it."""
    while True:
        folder.rename(folder.with_name(f"old-{len(list(folder.parent.glob('old-*')))}"))
        try:
            folder.touch(exist_ok=False)
        except FileExistsError:  # a save came first
            continue
        return


@pytest.mark.slow  # a person's save is refused in test_keyboard
@pytest.mark.parametrize("mode", ["parallel", "single"])
def test_a_checkpoint_that_cannot_be_written_is_told_and_the_next_one_is(
    pdqn_command: StartCommand,
    eventually: Eventually,
    read_lines: ReadLines,
    tmp_path: Path,
    mode: str,
):
    folder = tmp_path / "run" / "checkpoints"
    actors = ["--actors", "1"] if mode == "parallel" else []

    def told() -> list[str]:
        events = read_lines(tmp_path / "run" / "events.jsonl")
        return [e["text"] for e in events if e["event"] == "checkpoint"]

    command = pdqn_command(*RUN, "--mode", mode, *actors, "--time", "120s", directory=tmp_path)
    with command:
        eventually(lambda: list(checkpoints(tmp_path / "run")), 60)
        in_the_way(folder)
        eventually(lambda: any("tries again next time" in text for text in told()), 60)
        folder.unlink()
        eventually(lambda: list(checkpoints(tmp_path / "run")), 60)
        command.interrupt()
        assert command.wait(20) == 0, command.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["restarts"].values()) == {0}
    assert summary["first_error"] is None
