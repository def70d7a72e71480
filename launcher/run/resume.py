"""A past run to resume: what its directory holds, what may be changed, and what may not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.metrics.metrics import RunMetrics
from launcher.numbers import plural
from launcher.run.state import RunState, read_state
from launcher.rundir import CONFIG, CONFIGURED, METRICS, STATE_FILE, STRUCTURAL
from launcher.terminal import echo
from pdqn import layers
from pdqn.apart import Apart, ApartError
from pdqn.arguments import same
from pdqn.config import Config
from pdqn.errors import RunError, UsageError
from pdqn.layers import Layer
from pdqn.trust import is_own, read_settings

_READING_SECONDS = 600.0
_LIMITS = ("episodes", "steps", "time_seconds")
_REACHED = {
    "episodes": ("episodes", "--episodes"),
    "steps": ("environment_steps", "--steps"),
}
# The meaning of auto in the other settings depends on these.
_DECISIVE = (("run", "env"), ("run", "env_args"), ("network", "kind"))


@dataclass(frozen=True)
class PastRun:
    """A run as its directory describes it.

    Attributes:
        path: the directory.
        configured: what a person had set, all defaults included. The plan is made from it again,
            except for what the parameters depend on.
        config: the configuration that the plan made of it.
        state: counters and figures.
        is_own: whether the directory and its configuration are this user's own, and nobody else
            can write them.
    """

    path: Path
    configured: Layer
    config: Config
    state: RunState
    is_own: bool = False

    @property
    def name(self) -> str:
        """The option that names it."""
        return f"--resume {self.path}"

    def layers(self, *above: tuple[str, Layer]) -> list[tuple[str, Layer]]:
        """Return the run's own settings, those given now, and what was chosen for the run.

        A limit given now replaces all limits of the run. Otherwise one that the run has reached
        would end it at once.
        """
        own = {section: dict(values) for section, values in self.configured.items()}
        if any(key in layer.get("run", {}) for _, layer in above for key in _LIMITS):
            for key in _LIMITS:
                own["run"].pop(key, None)
        given = [(f"run {self.path}", own), *above]
        return [*given, (f"run {self.path}", self._chosen(layers.build(*given)))]

    def _chosen(self, given: Config) -> Layer:
        """Return the structural settings that are left to auto, as they were chosen for the run.

        A new choice could differ, and the parameters would not fit it: auto does not mean the
        same in every version.
        """
        auto = [name for name in STRUCTURAL if _value(given, *name) in (None, "auto")]
        layer: dict[str, dict[str, Any]] = {}
        # Another environment or kind of network may lack these sizes; ``check`` refuses it by name.
        if not any(self._differs(given, *name) for name in _DECISIVE if name not in auto):
            for section, key in auto:
                layer.setdefault(section, {})[key] = _value(self.config, section, key)
        return layer

    def check(self, config: Config) -> None:
        """Refuse settings with which the run cannot continue, and report what it has lost.

        Args:
            config: the configuration, filled in for this machine.

        Raises:
            UsageError: structural settings differ, a limit is reached already, or no checkpoint
                can be read.
        """
        if different := list(self._differences(config)):
            raise UsageError(
                f"--resume {self.path}: {'; '.join(different)}: the parameters are for the "
                "run's own; start another run for another value"
            )
        self._check_limits(config)
        for loss in self._losses():
            echo(f"pdqn: --resume {self.path}: {loss}", err=True)

    def _differences(self, config: Config) -> list[str]:
        return [
            f"{section}.{key} = {_value(config, section, key)}, "
            f"not {_value(self.config, section, key)}"
            for section, key in STRUCTURAL
            if self._differs(config, section, key)
        ]

    def _differs(self, config: Config, section: str, key: str) -> bool:
        return not same(_value(config, section, key), _value(self.config, section, key))

    def _check_limits(self, config: Config) -> None:
        metrics = RunMetrics(None)
        if self.state.metrics:
            metrics.set_state(self.state.metrics)
        counts = metrics.counts()
        for key, (counter, option) in _REACHED.items():
            limit = getattr(config.run, key)
            if limit is not None and counts[counter] >= limit:
                raise UsageError(
                    f"--resume {self.path}: run.{key} = {limit} is reached: the run has "
                    f"{counts[counter]} {counter}; give a larger {option}, which counts from "
                    "the run's beginning"
                )
        seconds, limit = metrics.active_seconds(), config.run.time_seconds
        if limit is not None and seconds >= limit - 1.0:
            raise UsageError(
                f"--resume {self.path}: run.time_seconds = {limit:g} is reached: the run has "
                f"trained for {seconds:.0f} s; give a larger --time, which counts from the run's "
                "beginning"
            )

    def _losses(self) -> Iterator[str]:
        """Yield what starts over because the run was killed before it was saved."""
        steps = int(self.state.metrics.get("learner_steps", 0))
        yield from self._losses_of_learner(plural(steps, "learner step") if steps else "")
        metrics = self.path / METRICS
        has_state = (self.path / STATE_FILE).exists()
        if not has_state and metrics.exists() and metrics.stat().st_size:
            yield f"no {STATE_FILE}: the counters start over, below those in {METRICS}"

    def _losses_of_learner(self, steps: str) -> list[str]:
        if "torch" in sys.modules:  # as in mode single
            return losses_of_learner(self.path, self.config, steps)
        apart = Apart("checkpoints")
        try:
            return apart.begin(
                losses_of_learner, self.path, self.config, steps, seconds=_READING_SECONDS
            ).result()
        except ApartError as error:
            raise RunError(f"--resume {self.path}: {error}") from None
        finally:
            apart.close()


def losses_of_learner(path: Path, config: Config, steps: str) -> list[str]:
    """List what the learner of a run loses, which imports torch.

    Args:
        path: the run's directory.
        config: the run's.
        steps: the learner steps that the run took, in words; empty for none.

    Raises:
        UsageError: no checkpoint can be read, and no model either.
    """
    from learner.checkpoint import DamagedError, goes_on_with, load_newest, usable_model

    try:
        state = load_newest(path, lambda _: None)
    except DamagedError as error:
        model = usable_model(path, config)
        if model is None:
            raise UsageError(
                f"--resume {path}: {error}, and no model file; to begin with new "
                f"parameters and what the journal holds, move {path / 'checkpoints'} away"
            ) from error
        return [goes_on_with(model) + (f"; the run took {steps}" if steps else "")]
    except (OSError, RunError) as error:
        raise UsageError(f"--resume {path}: {error}") from error
    if state is None and steps:
        return [f"no checkpoint: the learner starts over, after {steps}"]
    return []


def read_run(path: Path) -> PastRun:
    """Read the run in a directory.

    Raises:
        UsageError: it holds no run, or not one that this version reads.
    """
    try:
        is_run = (path / CONFIG).is_file() and (path / CONFIGURED).is_file()
    except OSError as error:
        # Such as another person's private folder, or a name that is too long.
        raise UsageError(f"--resume {path}: {error.strerror}") from error
    if not is_run:
        raise UsageError(f"--resume {path}: not a run directory (needs {CONFIG} and {CONFIGURED})")
    configured, first_own = _read_settings(path / CONFIGURED)
    chosen, second_own = _read_settings(path / CONFIG)
    config = layers.build((f"file {path / CONFIG}", chosen))
    own = first_own and second_own and is_own(path)
    return PastRun(path, configured, config, read_state(path), own)


def _read_settings(path: Path) -> tuple[Layer, bool]:
    """Read the settings that a run has written, all sections, and whether they are own."""
    layer, own = read_settings(path)
    if "run" not in layer:
        raise UsageError(f"--resume {path.parent}: {path.name} is damaged: it has no [run]")
    return layers.of_run(layer), own


def _value(config: Config, section: str, key: str) -> Any:
    return getattr(getattr(config, section), key)
