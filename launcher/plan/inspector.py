"""A process that looks at a run's environments before anything else makes them.

The launcher imports neither environments nor gymnasium. An environment may do anything to its
process, and the launcher has to show the run and to end it in order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from launcher.terminal import echo
from pdqn.apart import Apart, ApartError, Task
from pdqn.config import Config, NetworkConfig, SystemConfig
from pdqn.errors import RunError, UsageError

if TYPE_CHECKING:
    # Numpy need not be imported before the process is started.
    from actors.environments.examination import Examination
    from pdqn.specs import EnvironmentSpec

T = TypeVar("T")
_TURN_SECONDS = 0.1
_NOTICE_SECONDS = 5.0
# The time that an environment has to close before its process is ended.
_CLOSE_SECONDS = 3.0
# The least time in which an environment has to be made, reset and stepped.
_LEAST_SECONDS = 60.0
_MEASURE_SECONDS = 20.0  # beyond the time after which a role counts as hanging


class Inspector:
    """A process that makes, resets and steps environments; a context manager that ends it.

    Args:
        system: settings that say when a role counts as hanging; an environment has twice that
            time, and at least a minute.
        meanwhile: function to call several times a second while an environment keeps us waiting. It
            may raise to give up.
    """

    def __init__(self, system: SystemConfig, meanwhile: Callable[[], object] = int) -> None:
        self._seconds = max(_LEAST_SECONDS, 2 * system.heartbeat_timeout_seconds)
        self._meanwhile = meanwhile
        self._apart = Apart("inspector")
        self._begun: tuple[str, Mapping[str, Any], Task[Examination]] | None = None

    def __enter__(self) -> Inspector:
        """Return this."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process, once its environment is closed if all went well."""
        self.close(patiently=kind is None)

    def close(self, *, patiently: bool = True) -> None:
        """End the process; ``patiently`` gives its environment a moment to close."""
        if patiently:
            self._apart.is_ready(_CLOSE_SECONDS)
        self._apart.close()

    def begin(self, env_id: str, env_args: Mapping[str, Any]) -> None:
        """Begin to look at an environment, while the caller does something else."""
        task = self._process().begin(_examine, env_id, env_args, seconds=self._seconds)
        self._begun = (env_id, env_args, task)

    def examine(self, env_id: str, env_args: Mapping[str, Any]) -> Examination:
        """Make, reset and step an environment once.

        Raises:
            UsageError: see ``examine_environment``; or it ended its process, or did not answer.
        """
        if self._begun is None or self._begun[:2] != (env_id, env_args):
            self.begin(env_id, env_args)
        assert self._begun is not None
        task, self._begun = self._begun[2], None
        try:
            return self._answer_of(task, f"environment {env_id}")
        except ApartError as error:
            longer = "; if it needs longer, raise system.heartbeat_timeout_seconds"
            hint = longer if error.hangs else ""
            raise UsageError(f"environment {env_id}: {error}{hint}") from None

    def versions(self, env_id: str) -> dict[str, str]:
        """Look up the versions of the packages that an environment comes from, by name."""
        task = self._process().begin(_versions, env_id, seconds=self._seconds)
        return self._answer_of(task, f"environment {env_id}")

    def measure(self, config: Config, spec: EnvironmentSpec) -> float | None:
        """Measure the bytes of compressed frames that actors will send for each transition.

        Args:
            config: with the actors' settings filled in.
            spec: the environment's.

        Returns:
            None if the environment ended the process or hung.

        Raises:
            RunError: the environment raised too often.
        """
        seconds = config.system.heartbeat_timeout_seconds + _MEASURE_SECONDS
        task = self._process().begin(_measure, config, spec, seconds=seconds)
        try:
            return self._answer_of(task, f"environment {spec.id}")
        except ApartError:
            return None
        except UsageError as error:
            raise RunError(str(error)) from None

    def measure_network(self, spec: EnvironmentSpec, network: NetworkConfig) -> int:
        """Build a person's own network, and return the bytes of its parameters.

        Raises:
            UsageError: it cannot be built, or is not a network that pdqn can train.
        """
        return self._about_network(network, _measure_network, spec, network)

    def takes(self, network: NetworkConfig, spec: EnvironmentSpec, other: EnvironmentSpec) -> bool:
        """Tell whether a network values every action of an environment it was not built for.

        Args:
            network: its configuration.
            spec: of the environment that it is built for.
            other: of the other environment.

        Raises:
            UsageError: it cannot be built.
        """
        return self._about_network(network, _takes, network, spec, other)

    def fit(self, path: Path, spec: EnvironmentSpec, network: NetworkConfig) -> str:
        """Say which parameters of a model file fit a network.

        Raises:
            UsageError: it is not a model file, or nothing of it fits.
        """
        return self._about_network(network, _fit, path, spec, network)

    def _about_network(self, network: NetworkConfig, function: Callable[..., T], *args: Any) -> T:
        # Not in the process of the environment, which may have left nothing there as it was.
        apart = Apart("inspector")
        try:
            task = apart.begin(function, *args, seconds=self._seconds)
            return self._answer_of(task, f"network {network.kind}")
        except ApartError as error:
            raise UsageError(f"network.kind = {network.kind}: {error}") from None
        finally:
            apart.close()

    def _process(self) -> Apart:
        """Return a process that is ready: another one if an environment does not let go of it."""
        if not self._apart.is_ready(_CLOSE_SECONDS):
            self._apart.close()
            self._apart = Apart("inspector")
        return self._apart

    def _answer_of(self, task: Task[T], name: str) -> T:
        told = False
        while not task.done(_TURN_SECONDS):
            self._meanwhile()
            if task.waited_seconds > _NOTICE_SECONDS and not told:
                told = True
                limit = f"for at most {task.seconds:g} s"
                echo(f"pdqn: waiting for {name} to be ready, {limit}", err=True)
        return task.result()


class Here:
    """The same in this process, for environments that do it no harm."""

    def examine(self, env_id: str, env_args: Mapping[str, Any]) -> Examination:
        """Make, reset and step an environment once."""
        with contextlib.contextmanager(_examine)(env_id, env_args) as found:
            return found

    def versions(self, env_id: str) -> dict[str, str]:
        """Look up the versions of the packages that an environment comes from, by name."""
        return _versions(env_id)

    def measure(self, config: Config, spec: EnvironmentSpec) -> float | None:
        """Measure the bytes of compressed frames that actors will send for each transition."""
        with contextlib.contextmanager(_measure)(config, spec) as found:
            return found

    def measure_network(self, spec: EnvironmentSpec, network: NetworkConfig) -> int:
        """Build a person's own network, and return the bytes of its parameters."""
        return _measure_network(spec, network)

    def takes(self, network: NetworkConfig, spec: EnvironmentSpec, other: EnvironmentSpec) -> bool:
        """Tell whether a network values every action of an environment it was not built for."""
        return _takes(network, spec, other)


def _examine(env_id: str, env_args: Mapping[str, Any]) -> Iterator[Examination]:
    from actors.environments.describe import examining

    return examining(env_id, env_args)


def _versions(env_id: str) -> dict[str, str]:
    from actors.environments.making import package_versions

    return package_versions(env_id)


def _measure(config: Config, spec: EnvironmentSpec) -> Iterator[float]:
    from launcher.plan.probe import measuring

    return measuring(config, spec)


def _measure_network(spec: EnvironmentSpec, network: NetworkConfig) -> int:
    from pdqn.networks import build_network
    from pdqn.parameters import published_bytes

    return published_bytes(build_network(spec, network))


def _fit(path: Path, spec: EnvironmentSpec, network: NetworkConfig) -> str:
    from learner.warm_start import fit_file
    from pdqn.networks import build_network

    return fit_file(path, build_network(spec, network)).text


def _takes(network: NetworkConfig, spec: EnvironmentSpec, other: EnvironmentSpec) -> bool:
    import torch

    from pdqn.networks import build_network

    built = build_network(spec, network)
    blank = {name: torch.from_numpy(values) for name, values in other.blank(1).items()}
    try:
        with torch.inference_mode():
            values = built(*built.prepare(blank))
    except Exception:  # noqa: BLE001 - a person's own network may raise anything
        return False
    return tuple(values.shape) == (1, other.num_actions)
