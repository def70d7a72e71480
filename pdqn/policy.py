"""Greedy actions of a trained network: for batches, and as a policy for other programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pdqn.errors import UsageError
from pdqn.model import BEST_MODEL, FINAL_MODEL, Model, load_model
from pdqn.networks import QNetwork
from pdqn.specs import ACTION_MASK, PLAIN_FIELD, Observation
from pdqn.stacking import FrameStacker
from pdqn.trust import EVERYTHING, IN_PYTHON, Trust


def action_values(network: QNetwork, observation: Observation) -> NDArray[np.float32]:
    """Compute Q of a batch of observations, float32[batch, actions]; -inf where masked.

    Args:
        network: network of the environment.
        observation: each field as [batch, *stacked_shape], unpacked.
    """
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(array) for name, array in observation.items()}
        values = network(*network.prepare(tensors)).numpy()
    mask = observation.get(ACTION_MASK)
    return values if mask is None else np.where(mask.astype(bool), values, -np.inf)


def greedy(network: QNetwork, observation: Observation) -> NDArray[np.int64]:
    """Choose the best valid actions, int64[batch]."""
    return action_values(network, observation).argmax(axis=1)


class Policy:
    """A trained policy that acts greedily in one environment.

    Attributes:
        model: the network and a description of its environment.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._stacker = FrameStacker(model.spec, 1)
        self._began = True

    def reset(self) -> None:
        """Begin an episode: if frames are stacked, forget the earlier ones."""
        self._began = True

    def act(self, observation: Any, action_mask: ArrayLike | None = None) -> int:
        """Choose the best action, in the environment's own numbering.

        Args:
            observation: an observation as the environment returns it: an array, a number, or a Dict
                or Tuple.
            action_mask: ``info["action_mask"]`` of an environment that provides it, [num_actions].

        Raises:
            ValueError: the observation does not fit the policy's environment.
        """
        values = self.values(observation, action_mask)
        return int(values.argmax()) + self.model.spec.first_action

    def values(self, observation: Any, action_mask: ArrayLike | None = None) -> NDArray[np.float32]:
        """Compute Q of every action, float32[num_actions]; -inf for invalid actions.

        Like ``act``, it treats the observation as the next one of its episode.

        Raises:
            ValueError: the observation does not fit the policy's environment.
        """
        frame = self._frame(observation, action_mask)
        stacked = self._stacker.push(frame, np.array([self._began]))
        self._began = False
        return action_values(self.model.network, stacked)[0]

    def _frame(self, observation: Any, action_mask: ArrayLike | None) -> Observation:
        """Make a batch of one from the environment's fields."""
        given = dict(named_parts(observation))
        if action_mask is not None:
            given[ACTION_MASK] = action_mask
        fields = self.model.spec.fields
        if missing := {field.name for field in fields} - given.keys():
            has, lacks = (", ".join(sorted(names)) for names in (given, missing))
            raise ValueError(f"the observation has {has}; {self.model.spec.id} needs {lacks}")
        arrays = {
            f.name: np.asarray(given[f.name], "bool" if f.binary else f.dtype) for f in fields
        }
        for field in fields:
            if arrays[field.name].shape != field.shape:
                raise ValueError(
                    f"{field.name} has the shape {list(arrays[field.name].shape)}; in "
                    f"{self.model.spec.id} it has {list(field.shape)}"
                )
        return {name: array[None] for name, array in arrays.items()}


def named_parts(observation: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the arrays of an observation by their fields' names: ``camera.left``, ``0.mask``."""
    if isinstance(observation, Mapping):
        inner = list(observation.items())
    elif isinstance(observation, tuple):
        inner = list(enumerate(observation))
    else:
        yield prefix.removesuffix(".") or PLAIN_FIELD, observation
        return
    for key, part in inner:
        yield from named_parts(part, f"{prefix}{key}.")


def load_policy(run: str | Path, *, best: bool = False, trust: bool = False) -> Policy:
    """Load the policy that a run has learned.

    Args:
        run: a run directory, or a model file. Nothing in it is unpickled.
        best: load a run's best-evaluated parameters instead of its last ones.
        trust: import the module of a custom network that another person's file names. In a run
            directory of your own this is not needed.

    Raises:
        UsageError: the file does not exist or is not a model, or ``best`` is given with a file.
        NotTrustedError: the file names code, and ``trust`` is False. It is a ``UsageError``.
    """
    allowed = EVERYTHING if trust else Trust(ways=IN_PYTHON)
    return Policy(load_model(model_path(Path(run), best=best), allowed))


def model_path(run: Path, *, best: bool = False) -> Path:
    """Return the model file of a run directory, or the file itself.

    Raises:
        UsageError: the file does not exist, or ``best`` is given with a file, which is one model.
    """
    name = BEST_MODEL if best else FINAL_MODEL
    if run.is_file():
        if best:
            raise UsageError(f"{run} is a model file; only a run directory has a best model")
        return run
    if (run / name).is_file():
        return run / name
    raise UsageError(f"{run} is neither a model file nor a run directory with {name}")
