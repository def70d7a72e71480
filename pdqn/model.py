"""The model file: a network and everything needed to build and use it, without pickled code."""

from __future__ import annotations

import dataclasses
import os
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pdqn import layers
from pdqn.arguments import same
from pdqn.atomic import replacing
from pdqn.checksum import ChecksumWriter, check
from pdqn.config import Config, NetworkConfig, network_kind
from pdqn.errors import NotTrustedError, UsageError
from pdqn.model_head import FORMAT, check_format, not_read, unreadable_reason
from pdqn.networks import QNetwork, build_network, set_noise
from pdqn.specs import EnvironmentSpec
from pdqn.text import printable
from pdqn.trust import NOTHING, Trust, is_own, names_code, own_config, shown

# Errors of torch.load for damaged and foreign files, and those that strange contents cause later.
UNREADABLE = (
    OSError, EOFError, RuntimeError, pickle.UnpicklingError, LookupError, TypeError, ValueError,
    AttributeError, AssertionError, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A trained network and the environment it is for.

    Attributes:
        network: the network in evaluation mode, without noise.
        spec: spec of the environment.
        env_args: keyword arguments of the environment for evaluation.
        parameter_version: learner steps of the parameters.
        score: score of the evaluation for which it was kept; None if it was kept for another
            reason.
    """

    network: QNetwork
    spec: EnvironmentSpec
    env_args: dict[str, Any]
    parameter_version: int
    score: float | None = None


def save_model(
    path: Path,
    config: Config,
    spec: EnvironmentSpec,
    network: torch.nn.Module,
    version: int,
    score: float | None = None,
    first_scores: Sequence[float] | None = None,
) -> None:
    """Write a model file atomically; ``torch.load(path, weights_only=True)`` reads it.

    Args:
        path: the file.
        config: the run's.
        spec: spec of the environment.
        network: network with the parameters.
        version: learner steps of the parameters.
        score: see ``Model``.
        first_scores: see ``ModelFile``.

    Raises:
        OSError: the file cannot be written.
    """
    content = {
        "format": FORMAT,
        "spec": spec.to_map(),
        "env_args": config.evaluation_env_args,
        "network": dataclasses.asdict(config.network),
        "parameter_version": version,
        "score": score,
        "first_scores": None if first_scores is None else list(first_scores),
        "parameters": {name: t.cpu() for name, t in network.state_dict().items()},
    }
    write_atomically(path, content)


@dataclass(frozen=True)
class ModelFile:
    """The content of a model file, of which nothing has been imported or built.

    Attributes:
        path: the file.
        spec: spec of the environment.
        env_args: keyword arguments of the environment for evaluation.
        network: configuration of the network.
        parameters: tensors of the network, by name.
        parameter_version: learner steps of the parameters.
        score: score of the evaluation for which it was kept, if any.
        first_scores: score of each held-out episode of a run's first evaluation, NaN where there is
            none; None if the file is not of that evaluation.
        is_own: whether the file that was read is this user's own.
    """

    path: Path
    spec: EnvironmentSpec
    env_args: dict[str, Any]
    network: NetworkConfig
    parameters: dict[str, torch.Tensor]
    parameter_version: int
    score: float | None
    first_scores: tuple[float, ...] | None = None
    is_own: bool = False

    @property
    def names_code(self) -> bool:
        """Return whether the environment, its arguments or the network name a module."""
        return names_code(self.spec.id, self.network.kind, self.env_args)

    def check(self, trust: Trust, *, plays: bool = False) -> None:
        """Refuse what the file names and may not run here. Imports nothing.

        Everything may run in a run directory of this user's own whose configuration agrees with
        the file.

        Args:
            trust: permission that the person has given.
            plays: whether the environment will be made as well.

        Raises:
            NotTrustedError: the file names code that nobody here has named.
            UsageError: the configuration of an own run directory cannot be read.
        """
        try:
            trust.check_network(f"{self.path}:", self.network.kind)
            if plays:
                trust.check_environment(f"{self.path}:", self.spec.id, self.env_args)
        except NotTrustedError:
            if not self._is_of_own_run():
                raise

    def differences(self, config: Config) -> list[str]:
        """List in words what the file has otherwise than a run's configuration."""
        pairs = [
            ("environment", self.spec.id, config.run.env),
            ("arguments", self.env_args, config.evaluation_env_args),
            ("network", self.network, config.network),
        ]
        return [
            f"its {what} is {shown(str(ours))}, the run's {shown(str(theirs))}"
            for what, ours, theirs in pairs
            if not same(ours, theirs)
        ]

    def build(self) -> Model:
        """Build the network, which imports its module if it is a person's own.

        Raises:
            UsageError: the parameters do not fit, or the module of the network is not found.
        """
        try:
            network = build_network(self.spec, self.network)
            network.load_state_dict(self.parameters)
        except UNREADABLE as error:
            if isinstance(error, UsageError) and ":" in self.network.kind:
                raise UsageError(
                    f"{self.path}: {printable(str(error))}; its module must be importable: run "
                    "this in its folder, or add that folder to PYTHONPATH"
                ) from error
            raise not_read(self.path, unreadable_reason(error)) from error
        set_noise(network, False)
        return Model(network.eval(), self.spec, self.env_args, self.parameter_version, self.score)

    def _is_of_own_run(self) -> bool:
        config = own_config(self.path.parent) if self.is_own else None
        return config is not None and not self.differences(config)


def read_model(path: Path) -> ModelFile:
    """Read a model file as data: nothing that it names is imported.

    Raises:
        UsageError: the file is not a model, or has another format.
    """
    try:
        with path.open("rb") as file:
            own, content = is_own(file), _content(path, file)
        network = NetworkConfig(**layers.of_run({"network": content["network"]})["network"])
        network_kind(network.kind)
        return ModelFile(
            path=path,
            spec=EnvironmentSpec.from_map(content["spec"]),
            env_args=dict(content["env_args"]),
            network=network,
            parameters=content["parameters"],
            parameter_version=int(content["parameter_version"]),
            score=None if content["score"] is None else float(content["score"]),
            # Earlier versions did not write them.
            first_scores=None
            if (first := content.get("first_scores")) is None
            else (tuple(map(float, first))),
            is_own=own,
        )
    except UNREADABLE as error:
        raise not_read(path, unreadable_reason(error)) from error


def load_model(path: Path, trust: Trust = NOTHING, *, plays: bool = False) -> Model:
    """Load the model in a file.

    Args:
        path: the file.
        trust: permission to run code that the file names.
        plays: whether the caller will make the model's environment, which is then checked too.

    Raises:
        NotTrustedError: the file names code that may not run here.
        UsageError: the file is not a model, has another format, or has a custom network whose
            module is not found.
    """
    file = read_model(path)
    file.check(trust, plays=plays)
    return file.build()


def _content(path: Path, file: BinaryIO) -> dict[str, Any]:
    content = load_checked(file)
    check_format(path, content)
    return content


def load_checked(file: BinaryIO) -> Any:
    """Load what ``write_atomically`` has saved, once the file agrees with its checksum.

    Args:
        file: the file, open for reading.

    Raises:
        DamagedError: it does not hold what was saved.
    """
    check(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Save content with ``torch.save``, and a checksum, to a file that is whole or not there.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            writer = ChecksumWriter(file)
            _save(content, writer)
            writer.finish()
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # A person knows the file, and not the temporary one; a failed write names neither.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _save(content: dict[str, Any], file: ChecksumWriter) -> None:
    try:
        torch.save(content, file)  # pyright: ignore[reportArgumentType] - it only writes
    except RuntimeError as error:
        # After a failed write, torch's writer raises a follow-up error instead of the cause.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
