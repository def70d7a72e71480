"""The folders of a run's checkpoints: which there are, and which are kept. Torch is not needed."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

CHECKPOINTS, STATE = "checkpoints", "learner.pth"
_ASIDE = "unreadable-"
_MOST_ASIDE = 10
_log = logging.getLogger("learner")


def prune(run_dir: Path, keep: int, saved: Path) -> None:
    """Remove all checkpoints but the newest ``keep``, of which the one just saved is the first.

    A learner continues from the newest checkpoint that it can read. It could therefore not read
    those of later steps. They are set aside under another name, so that they do not take the places
    of those that follow.

    Args:
        run_dir: directory of the run.
        keep: number of checkpoints to keep.
        saved: the checkpoint just saved.
    """
    for later in checkpoints(run_dir):
        if _steps(later) <= _steps(saved):
            break
        set_aside(later)
    kept = list(checkpoints(run_dir))[:keep]
    for old in _directories(run_dir):
        if old not in kept:
            shutil.rmtree(old)


def set_aside(path: Path) -> None:
    """Rename a checkpoint; a person may still want to look at it, or at the newest ten of them."""
    aside = path.with_name(_ASIDE + path.name)
    if aside.exists():
        shutil.rmtree(aside)
    path.rename(aside)
    _log.warning("checkpoint %s could not be read: it is now %s", path, aside.name)
    for old in _directories(path.parent.parent, _ASIDE)[_MOST_ASIDE:]:
        shutil.rmtree(old)


def checkpoints(run_dir: Path) -> Iterator[Path]:
    """Yield complete checkpoints, newest first."""
    yield from (path for path in _directories(run_dir) if (path / STATE).exists())


def newest_steps(run_dir: Path) -> int | None:
    """Return the learner steps of the newest complete checkpoint; None if there is none."""
    newest = next(checkpoints(run_dir), None)
    return None if newest is None else _steps(newest)


def _directories(run_dir: Path, prefix: str = "") -> list[Path]:
    """Return the directories of checkpoints whose names have a prefix, most steps first."""
    name = re.compile(rf"{prefix}step-\d+")
    found = (run_dir / CHECKPOINTS).glob(f"{prefix}step-*")
    return sorted((path for path in found if name.fullmatch(path.name)), key=_steps, reverse=True)


def _steps(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
