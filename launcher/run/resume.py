"""Going on with a run: what its directory tells, what may be changed, and what may not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from launcher.metrics.metrics import RunMetrics
from launcher.numbers import plural
from launcher.run.state import RunState, read_state
from launcher.rundir import CONFIG, CONFIGURED, METRICS, STATE_FILE, STRUCTURAL
from pdqn import layers
from pdqn.config import Config
from pdqn.errors import RunError, UsageError
from pdqn.layers import Layer

_LIMITS = ("episodes", "steps", "time_seconds")
_REACHED = {
    "episodes": ("episodes", "--episodes"),
    "steps": ("environment_steps", "--steps"),
}
# What auto stands for in the others depends on these.
_DECISIVE = (("run", "env"), ("run", "env_args"), ("network", "kind"))


@dataclass(frozen=True)
class PastRun:
    """A run as its directory tells of it.

    Attributes:
        path: of the directory.
        configured: what people had set, all defaults included; the plan is made anew from it,
            save for what the parameters depend on.
        config: what came of it.
        state: counters and figures.
    """

    path: Path
    configured: Layer
    config: Config
    state: RunState

    def layers(self, *above: tuple[str, Layer]) -> list[tuple[str, Layer]]:
        """The run's own settings below those that people give now, and what was chosen for it.

        A limit that is given now takes the place of all of the run's: else one that the run has
        reached would end it at once.
        """
        own = {section: dict(values) for section, values in self.configured.items()}
        if any(key in layer.get("run", {}) for _, layer in above for key in _LIMITS):
            for key in _LIMITS:
                own["run"].pop(key, None)
        given = [(f"run {self.path}", own), *above]
        return [*given, (f"run {self.path}", self._chosen(layers.build(*given)))]

    def _chosen(self, given: Config) -> Layer:
        """The structural settings that are left to auto, as they were chosen for the run.

        Chosen anew they could be others, which the parameters do not fit: what auto stands for
        is not the same in every version.
        """
        auto = [name for name in STRUCTURAL if _value(given, *name) in (None, "auto")]
        layer: dict[str, dict[str, Any]] = {}
        # Another environment or kind of network may have no such sizes; it is refused by its name.
        if not any(self._differs(given, *name) for name in _DECISIVE if name not in auto):
            for section, key in auto:
                layer.setdefault(section, {})[key] = _value(self.config, section, key)
        return layer

    def check(self, config: Config) -> None:
        """Refuse what a run cannot go on with, and say what of it is lost.

        Args:
            config: filled in for this machine.

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
            click.echo(f"pdqn: --resume {self.path}: {loss}", err=True)

    def _differences(self, config: Config) -> list[str]:
        return [
            f"{section}.{key} = {_value(config, section, key)}, "
            f"not {_value(self.config, section, key)}"
            for section, key in STRUCTURAL
            if self._differs(config, section, key)
        ]

    def _differs(self, config: Config, section: str, key: str) -> bool:
        return _value(config, section, key) != _value(self.config, section, key)

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
        """What begins anew though the run had it: it was killed before it was saved."""
        steps = int(self.state.metrics.get("learner_steps", 0))
        if not self._has_checkpoint() and steps:
            yield f"no checkpoint: the learner begins anew, after {plural(steps, 'learner step')}"
        metrics = self.path / METRICS
        has_state = (self.path / STATE_FILE).exists()
        if not has_state and metrics.exists() and metrics.stat().st_size:
            yield f"no {STATE_FILE}: the counters begin anew, below those in {METRICS}"

    def _has_checkpoint(self) -> bool:
        # Torch takes seconds to import.
        from learner.checkpoint import load_newest

        try:
            return load_newest(self.path, lambda _: None) is not None
        except (OSError, RunError) as error:
            raise UsageError(f"--resume {self.path}: {error}") from error


def read_run(path: Path) -> PastRun:
    """The run in a directory.

    Raises:
        UsageError: it holds no run, or not one that this version reads.
    """
    try:
        is_run = (path / CONFIG).is_file() and (path / CONFIGURED).is_file()
    except OSError as error:
        # Another person's private folder, a name that is too long.
        raise UsageError(f"--resume {path}: {error.strerror}") from error
    if not is_run:
        raise UsageError(f"--resume {path}: no run directory (it needs {CONFIG} and {CONFIGURED})")
    configured, chosen = _read_settings(path / CONFIGURED), _read_settings(path / CONFIG)
    config = layers.build((f"file {path / CONFIG}", chosen))
    return PastRun(path, configured, config, read_state(path))


def _read_settings(path: Path) -> Layer:
    """What a run has written of its settings: all sections, so that one is never missing."""
    layer = layers.read_toml(path)
    if "run" not in layer:
        raise UsageError(f"--resume {path.parent}: {path.name} is damaged: it has no [run]")
    return layer


def _value(config: Config, section: str, key: str) -> Any:
    value = getattr(getattr(config, section), key)
    # Arguments come from TOML and from the command line, as lists and as tuples.
    return {k: _listed(v) for k, v in value.items()} if isinstance(value, dict) else value


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
