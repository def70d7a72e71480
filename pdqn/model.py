"""The model file: a network with what is needed to build and use it, and no pickled code."""

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

FORMAT = 3
# In a run directory: the last parameters, and those that evaluated best.
FINAL_MODEL, BEST_MODEL = "final_model.pth", "best_model.pth"
# What torch.load raises for damaged and foreign files, and what follows from strange contents.
UNREADABLE = (
    OSError, EOFError, RuntimeError, pickle.UnpicklingError, LookupError, TypeError, ValueError,
    AttributeError, AssertionError, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A trained network and the environment it is for.

    Attributes:
        network: greedy, without noise.
        spec: of the environment.
        env_args: its keyword arguments for evaluation.
        parameter_version: learner steps.
        score: of the evaluation that it was kept for; None where it was not.
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
    """Write a model file, atomically; ``torch.load(path, weights_only=True)`` reads it."""
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
    """The model in a file.

    Raises:
        UsageError: no model file, or of another format; or a network of a person's own whose
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
                f"{path}: {error}; its module must be found: run this where it lies, or name that "
                "folder in PYTHONPATH"
            ) from error
        raise _not_read(path, error) from error
    set_noise(network, False)
    return Model(network.eval(), spec, env_args, version, score)


def load_spec(path: Path) -> EnvironmentSpec:
    """Read which environment a model file is for; its network is not built.

    Raises:
        UsageError: no model file, or of another format.
    """
    try:
        return EnvironmentSpec.from_map(_content(path)["spec"])
    except UNREADABLE as error:
        raise _not_read(path, error) from error


def _content(path: Path) -> dict[str, Any]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if content.get("format") != FORMAT:
        raise UsageError(f"{path}: model format {content.get('format')}, not {FORMAT}")
    return content


def _not_read(path: Path, error: Exception) -> UsageError:
    reason = unreadable_reason(error)
    return UsageError(f"{path}: not a model that this version reads ({reason})")


def unreadable_reason(error: Exception) -> str:
    """Why a file of tensors cannot be read, in one line."""
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        # Torch's text recommends to load it with weights_only=False, which runs foreign code.
        return "damaged, or another kind of file"
    return first_line(error)


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """``torch.save`` to a file that is either whole or not there.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        _save(content, file)
        file.flush()
        os.fsync(file.fileno())


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:
        # Torch's writer stumbles over what it could not write, and tells that instead.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
