"""The file with a line for every episode that actors have finished."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.metrics.episodes import Finished
from pdqn.logs import Bound, keep_within

EPISODES = "episodes.csv"
_BOUND = Bound(64 << 20, 16 << 20, 16 << 20, "# {} bytes of episodes were left out here\n")
_HEAD = "time_seconds,environment_steps,actor,return,length,headline\n"


def rows(finished: Sequence[Finished], seconds: float, steps: int, left_out: int) -> str:
    """Return the lines of episodes that have ended since the last lines.

    Args:
        finished: the episodes.
        seconds: time since the run's start.
        steps: environment steps of the run.
        left_out: episodes that there was no room for.
    """
    stamp = f"{seconds:.3f},{steps}"
    lines = [
        f"{stamp},{each.actor},{each.episode.score:.9g},{each.episode.length},"
        f"{'' if each.episode.headline is None else f'{each.episode.headline:.9g}'}\n"
        for each in finished
    ]
    return "".join(lines) + (f"# {left_out} episodes were left out here\n" if left_out else "")


def append(folder: Path, text: str) -> None:
    """Append lines to the file, which begins with a head, and keep it within its bound.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / EPISODES
    with path.open("a+b") as file:
        if not file.tell():
            text = _HEAD + text
        elif file.seek(file.tell() - 1) >= 0 and file.read(1) != b"\n":
            text = f"\n{text}"  # a kill has cut a line off
        file.write(text.encode("ascii"))
    keep_within(path, _BOUND)
