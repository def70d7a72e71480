"""Checkpoints: each whole or not there, the newest few kept, damaged ones skipped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from learner.checkpoint_folders import CHECKPOINTS, STATE, checkpoints, prune, set_aside
from learner.learner import Learner
from learner.warm_start import fit_file
from pdqn.config import Config
from pdqn.errors import RunError, UsageError, reason_of
from pdqn.model import (
    UNREADABLE,
    ModelFile,
    load_checked,
    read_model,
    save_model,
    write_atomically,
)
from pdqn.model_head import (
    BEST_MODEL,
    FINAL_MODEL,
    INITIAL_MODEL,
    NOT_SAVED,
    unreadable_reason,
)
from pdqn.schedules import is_due
from pdqn.specs import EnvironmentSpec

_log = logging.getLogger("learner")


class DamagedError(RunError):
    """Checkpoints of which each is damaged.

    Attributes:
        paths: the checkpoints.
    """

    def __init__(self, run_dir: Path, paths: list[Path]) -> None:
        super().__init__(f"none of the {len(paths)} checkpoints of {run_dir} can be read")
        self.paths = paths


def not_saved(error: Exception, *, last: bool = False) -> str:
    """Phrase a learner's note about a save that failed; the last one is not tried again."""
    return f"{NOT_SAVED}: {reason_of(error)}" + ("" if last else "; tries again next time")


def saved(learner: Learner) -> str:
    """Phrase a learner's note about a save that a person asked for."""
    return f"saved at learner step {learner.learner_steps}"


class Saver:
    """Saves of a learner to a run directory when due: a checkpoint and the model file.

    Every checkpoint comes with the model: there is a usable one however the run ends.

    Args:
        run_dir: directory of the run.
        config: configuration of the run.
        spec: spec of the environment.
    """

    def __init__(self, run_dir: Path, config: Config, spec: EnvironmentSpec) -> None:
        self._run_dir, self._config, self._spec = run_dir, config, spec
        self._saved = time.monotonic()
        self._saved_steps = 0

    def restore(self, learner: Learner, say: Callable[[str], None]) -> None:
        """Continue a learner from the newest readable checkpoint, if there is one.

        Damaged ones before it are set aside, so that they do not take the places of later saves.
        If all are damaged, the parameters come from a model file of the run.

        Args:
            learner: a learner of the same configuration.
            say: function that takes a sentence for each skipped checkpoint, and for the one used.

        Raises:
            RunError: there are checkpoints, but none can be read, and no model file either.
        """
        try:
            state, damaged = _load_newest(self._run_dir, say)
        except DamagedError as error:
            if not self.restore_model(learner, say):
                raise
            _set_aside_all(error.paths)
            return
        if state is not None:
            learner.set_state(state)
            _set_aside_all(damaged)
            self._saved_steps = learner.learner_steps
            say(f"goes on from learner step {learner.learner_steps}")
        elif (self._run_dir / INITIAL_MODEL).is_file():
            self.begin(learner, say)

    def begin(self, learner: Learner, say: Callable[[str], None]) -> None:
        """Begin with the parameters of the file that a person named, as far as they fit.

        Raises:
            RunError: the file cannot be read, or nothing of it fits.
        """
        try:
            found = fit_file(self._run_dir / INITIAL_MODEL, learner.online)
        except UsageError as error:
            raise RunError(str(error)) from error
        learner.begin_with(found.state, 0)
        say(found.text)

    def restore_model(self, learner: Learner, say: Callable[[str], None]) -> bool:
        """Continue a learner with the parameters of a model file; return whether there is one."""
        model = usable_model(self._run_dir, self._config)
        if model is None:
            return False
        learner.begin_with(model.parameters, model.parameter_version)
        say(goes_on_with(model))
        return True

    def move_to(self, run_dir: Path) -> None:
        """Save to another directory from now on."""
        self._run_dir = run_dir

    def due(self, learner_steps: int) -> bool:
        """Return whether enough time or enough steps have passed for the next save."""
        steps, seconds = learner_steps - self._saved_steps, time.monotonic() - self._saved
        return steps > 0 and is_due(self._config.checkpoint, seconds, steps)

    def save(self, learner: Learner) -> tuple[str, str]:
        """Save now; return the paths of the files written, relative to the directory.

        Raises:
            OSError: one of them cannot be written. The model is smaller, and is written even if
                the checkpoint is not.
        """
        self._saved, self._saved_steps = time.monotonic(), learner.learner_steps
        keep = self._config.checkpoint.keep
        try:
            checkpoint = save_checkpoint(self._run_dir, learner.get_state(), keep)
        finally:
            path = self._run_dir / FINAL_MODEL
            save_model(path, self._config, self._spec, learner.online, learner.learner_steps)
        return (checkpoint / STATE).relative_to(self._run_dir).as_posix(), FINAL_MODEL


def usable_model(run_dir: Path, config: Config) -> ModelFile | None:
    """Return the newest parameters that a run's model files hold; None if none can be used.

    Args:
        run_dir: directory of the run.
        config: its configuration, which the parameters must fit.
    """
    for name in (FINAL_MODEL, BEST_MODEL):
        with suppress(OSError, UsageError):
            model = read_model(run_dir / name)
            if not model.differences(config):
                return model
    return None


def goes_on_with(model: ModelFile) -> str:
    """Phrase the continuation with a model's parameters, where no checkpoint can be read."""
    return (
        f"no checkpoint can be read: the learner goes on with the parameters of {model.path.name}, "
        f"of learner step {model.parameter_version}, and a new optimizer"
    )


def save_checkpoint(run_dir: Path, state: Mapping[str, Any], keep: int) -> Path:
    """Write ``checkpoints/step-<learner_steps>``, and keep it and the newest before it.

    Args:
        run_dir: directory of the run.
        state: a learner's state.
        keep: number of checkpoints to keep.
    """
    path = run_dir / CHECKPOINTS / f"step-{state['learner_steps']:09d}"
    path.mkdir(parents=True, exist_ok=True)
    try:
        write_atomically(path / STATE, dict(state))
    except OSError:
        with suppress(OSError):
            path.rmdir()  # it stays if it holds an earlier save of this step
        raise
    prune(run_dir, keep, path)
    return path


def _set_aside_all(paths: list[Path]) -> None:
    for path in paths:
        with suppress(OSError):  # as in a directory that may not be written
            set_aside(path)


def load_newest(run_dir: Path, say: Callable[[str], None] = _log.warning) -> dict[str, Any] | None:
    """Load the state from the newest readable checkpoint; None if there are no checkpoints.

    Args:
        run_dir: directory of the run.
        say: function that takes a sentence for each skipped checkpoint.

    Raises:
        RunError: there are checkpoints, but none can be read.
    """
    return _load_newest(run_dir, say)[0]


def _load_newest(
    run_dir: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any] | None, list[Path]]:
    """Load the newest readable state, if any; list the damaged checkpoints after it."""
    found, damaged = list(checkpoints(run_dir)), list[Path]()
    for path in found:
        try:
            return _load(path / STATE), damaged
        except UNREADABLE as error:
            reason = unreadable_reason(error)
            say(f"checkpoint {path} cannot be read ({reason}); trying the one before")
            if not isinstance(error, OSError):  # which may not come again
                damaged.append(path)
    if found and len(damaged) == len(found):
        raise DamagedError(run_dir, damaged)
    if found:
        raise RunError(f"none of the {len(found)} checkpoints of {run_dir} can be read")
    return None, damaged


def _load(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        state = load_checked(opened)
    # Of earlier versions, which had no checksum, a damaged byte may have become other content.
    if not isinstance(state, dict) or "learner_steps" not in state:
        raise TypeError("not a learner's state")
    return state
