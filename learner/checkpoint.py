"""Checkpoints: whole or not there, the newest few kept, a damaged one passed over."""

from __future__ import annotations

import logging
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pdqn.model import write_atomically

_log = logging.getLogger("learner")
_FILE = "learner.pth"


def save_checkpoint(directory: Path, state: Mapping[str, Any], keep: int) -> Path:
    """Write ``step-<learner_steps>`` and remove all but the newest ``keep``."""
    path = directory / f"step-{state['learner_steps']:09d}"
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / _FILE, dict(state))
    for old in list(checkpoints(directory))[keep:]:
        shutil.rmtree(old)
    return path


def checkpoints(directory: Path) -> Iterator[Path]:
    """Checkpoints, newest first."""
    found = [p for p in directory.glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    yield from sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def load_newest(directory: Path) -> dict[str, Any] | None:
    """The state in the newest checkpoint that can be read, or None when there is none."""
    for path in checkpoints(directory):
        try:
            return torch.load(path / _FILE, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            _log.warning("checkpoint %s cannot be read (%s); trying the one before", path, error)
    return None
