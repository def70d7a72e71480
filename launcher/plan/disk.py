"""The disk that the replays' journals take."""

from __future__ import annotations

from pathlib import Path

import psutil

from launcher.numbers import size
from pdqn.config import Config, resolved
from replay.journal import SEGMENT_BYTES

# Action, return, discount, priority, and the places of two frames, four bytes each.
_COLUMNS_BYTES = 24


def journal_bytes(config: Config, frame_bytes: float) -> int:
    """Return the bytes that the journals of all shards take at most.

    Args:
        config: with the capacity filled in.
        frame_bytes: bytes of the frames of a transition as actors send them.
    """
    transitions = resolved(config.replay.capacity) * (_COLUMNS_BYTES + frame_bytes)
    # The one that is written on, and the one of which a part is evicted.
    return int(transitions) + config.replay.shards * 2 * SEGMENT_BYTES


def describe_journal(config: Config, frame_bytes: float, folder: Path) -> tuple[str, str]:
    """Describe the journals' use of a disk.

    Args:
        config: as above, and so ``frame_bytes``.
        folder: folder of the journals, which need not exist yet.

    Returns:
        A line, and a warning. The line is empty without a journal, and the warning if it fits.
    """
    if config.replay.journal == "off" or config.run.mode == "single":
        return "", ""
    folder = Path(config.replay.journal_dir or folder).expanduser().absolute()
    there = next((p for p in (folder, *folder.parents) if p.is_dir()), None)
    if there is None:
        return "", ""
    needed, free = journal_bytes(config, frame_bytes), psutil.disk_usage(str(there)).free
    free += sum(path.stat().st_size for path in folder.glob("journal/*/*.segment"))  # a resumed run
    line = f"journal: up to {size(needed)} in {folder}, where {size(free)} are free"
    if needed <= free:
        return line, ""
    setting = "replay.journal_dir" if config.replay.journal_dir else "--run-dir"
    return line, (
        f"replay's journal may take {size(needed)}, and {folder} has {size(free)} free: name "
        f"another folder with {setting}, lower replay.capacity, or set replay.journal to off"
    )
