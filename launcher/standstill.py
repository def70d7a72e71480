"""The complete state of a run in one process that was stopped, beside its checkpoint and journal.

The learner's checkpoint has the parameters, and the journal has the replay. This file has the rest:
environments in the middle of their episodes, what is recorded of these, and random states. A run
that resumes from all three is equal to the bit to one that was never stopped.

The file belongs to one checkpoint and one moment of the journal. A session that goes on removes it
before anything changes. After a kill there is none: then new episodes begin.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from actors.environments import randomness
from actors.rollout import Rollout
from actors.segments import Segment
from learner.learner import Learner
from pdqn import plain
from pdqn.config import Config
from pdqn.networks import QNetwork
from pdqn.specs import EnvironmentSpec
from replay.local import LocalReplay
from replay.records import RecordWriter, read_records

STANDSTILL = "standstill"
_FORMAT = 1
_NOT_IN_ORDER = "the run was not stopped in order, or its files have changed"


@dataclass(frozen=True)
class Parts:
    """The parts of a run in one process.

    Attributes:
        acting: network on whose values the actor acts.
    """

    config: Config
    spec: EnvironmentSpec
    learner: Learner
    replay: LocalReplay
    rollout: Rollout
    acting: QNetwork


@dataclass(frozen=True)
class Position:
    """A run's place between two steps.

    Attributes:
        acting_version: learner steps of the parameters that act.
        evaluated_steps: learner steps at which an evaluation was begun last.
    """

    acting_version: int
    evaluated_steps: int


@dataclass(frozen=True)
class Resumed:
    """The outcome of an attempt to go on where a run was stopped.

    Attributes:
        position: the run's place; None if it is not known.
        reason: the reason why new episodes begin; empty if the earlier ones go on.
        segments: what was recorded of episodes that do not go on.
    """

    position: Position | None
    reason: str
    segments: list[Segment]


def save(directory: Path, parts: Parts, position: Position) -> None:
    """Write the file; the checkpoint and the journal's snapshot of this moment must be written.

    Raises:
        OSError: it cannot be written. The former one is gone in any case.
    """
    path = directory / STANDSTILL
    path.unlink(missing_ok=True)
    acting = {name: tensor.numpy() for name, tensor in parts.acting.state_dict().items()}
    content = {
        "format": _FORMAT,
        "moment": _moment(parts),
        "rollout": parts.rollout.get_state(),
        "acting": acting,
        "acting_version": position.acting_version,
        "evaluated_steps": position.evaluated_steps,
        "random": randomness.get_state(),
    }
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    file = RecordWriter(temporary)
    try:
        file.add(_FORMAT, plain.pack(content))
        file.write()
        file.sync()
        temporary.replace(path)
    finally:
        file.close()
        temporary.unlink(missing_ok=True)


def resume(directory: Path, parts: Parts) -> Resumed:
    """Go on where the run was stopped, as far as that is known; remove the file.

    Args:
        directory: directory of the run.
        parts: parts that have continued from the checkpoint and the journal.
    """
    path = directory / STANDSTILL
    content = _read(path)
    path.unlink(missing_ok=True)
    if content is None or content["moment"] != _moment(parts):
        return Resumed(None, _NOT_IN_ORDER, [])
    try:
        reason, segments = parts.rollout.set_state(content["rollout"])
    except ValueError as error:
        return Resumed(None, str(error), [])
    acting = {name: torch.from_numpy(array) for name, array in content["acting"].items()}
    parts.acting.load_state_dict(acting)
    # Last: new environments may have drawn from them.
    randomness.set_state(content["random"])
    return Resumed(
        Position(content["acting_version"], content["evaluated_steps"]), reason, segments
    )


def _read(path: Path) -> dict[str, Any] | None:
    """Read the file; None if there is none, or none of this version that is whole."""
    try:
        records = read_records(path).records
    except OSError:
        return None
    if len(records) != 1 or records[0].kind != _FORMAT:
        return None
    return plain.unpack(records[0].payload)


def _moment(parts: Parts) -> dict[str, Any]:
    """Describe the moment to which a file belongs, and the settings of what it holds."""
    config, actor = parts.config, parts.config.actor
    # Whenever that was done last: the journal does not say.
    parts.replay.expire(parts.learner.learner_steps)
    meaning = [
        parts.spec.to_map(),
        config.run.env_args,
        [actor.envs_per_actor, actor.lookahead, actor.discount, actor.segment_length],
        actor.reward_clip,
    ]
    if actor.returns == "lambda":
        meaning.append(actor.trace_decay)
    text = json.dumps(meaning, sort_keys=True, default=str)
    settings = hashlib.sha256(text.encode()).hexdigest()
    return {
        "settings": settings,
        "learner_steps": parts.learner.learner_steps,
        "replay": parts.replay.mark(),
    }
