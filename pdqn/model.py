"""The model file: a network and everything needed to build and use it, without pickled code."""

from __future__ import annotations

import dataclasses
import os
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pdqn.atomic import replacing
from pdqn.config import Config, NetworkConfig
from pdqn.errors import UsageError, first_line
from pdqn.networks import QNetwork, build_network, set_noise
from pdqn.specs import EnvironmentSpec
from pdqn.text import printable

FORMAT = 3
# Model files in a run directory: the last parameters, and those with the best evaluation.
FINAL_MODEL, BEST_MODEL = "final_model.pth", "best_model.pth"
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
) -> None:
    """Write a model file atomically; ``torch.load(path, weights_only=True)`` reads it."""
    content = {
        "format": FORMAT,
        "spec": spec.to_map(),
        "env_args": config.evaluation_env_args,
        "network": dataclasses.asdict(config.network),
        "parameter_version": version,
        "score": score,
        "parameters": {name: t.cpu() for name, t in network.state_dict().items()},
    }
    write_atomically(path, content)


def load_model(path: Path) -> Model:
    """Load the model in a file.

    Raises:
        UsageError: the file is not a model, has another format, or has a custom network whose
            module is not found.
    """
    config: NetworkConfig | None = None
    try:
        content = _content(path)
        spec = EnvironmentSpec.from_map(content["spec"])
        config = NetworkConfig(**content["network"])
        network = build_network(spec, config)
        network.load_state_dict(content["parameters"])
        env_args, version = dict(content["env_args"]), int(content["parameter_version"])
        score = None if content["score"] is None else float(content["score"])
    except UNREADABLE as error:
        if isinstance(error, UsageError) and config is not None and ":" in str(config.kind):
            raise UsageError(
                f"{path}: {printable(str(error))}; its module must be importable: run this in its "
                "folder, or add that folder to PYTHONPATH"
            ) from error
        raise _not_read(path, error) from error
    set_noise(network, False)
    return Model(network.eval(), spec, env_args, version, score)


def load_spec(path: Path) -> EnvironmentSpec:
    """Read the spec of a model file's environment without building the network.

    Raises:
        UsageError: the file is not a model, or has another format.
    """
    try:
        return EnvironmentSpec.from_map(_content(path)["spec"])
    except UNREADABLE as error:
        raise _not_read(path, error) from error


def _content(path: Path) -> dict[str, Any]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if content.get("format") != FORMAT:
        raise UsageError(f"{path}: model format {content.get('format')!r:.40}, not {FORMAT}")
    return content


def _not_read(path: Path, error: Exception) -> UsageError:
    reason = unreadable_reason(error)
    return UsageError(f"{path}: not a model that this version reads ({reason})")


def unreadable_reason(error: Exception) -> str:
    """Return the reason why a file of tensors cannot be read, in one line."""
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        # Torch's message recommends weights_only=False, which would run foreign code.
        return "damaged, or another kind of file"
    return printable(first_line(error))


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Save content with ``torch.save`` to a file that is either whole or not there.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        _save(content, file)
        file.flush()
        os.fsync(file.fileno())


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:
        # After a failed write, torch's writer raises a follow-up error instead of the cause.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
