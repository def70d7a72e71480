"""Acting greedily on a trained network: by a batch, and as a policy for a program of one's own."""

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


def action_values(network: QNetwork, observation: Observation) -> NDArray[np.float32]:
    """Q of a batch of observations, float32[batch, actions]; -inf where masked.

    Args:
        network: of the environment.
        observation: of each field, [batch, *stacked_shape], unpacked.
    """
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(array) for name, array in observation.items()}
        values = network(*network.prepare(tensors)).numpy()
    mask = observation.get(ACTION_MASK)
    return values if mask is None else np.where(mask.astype(bool), values, -np.inf)


def greedy(network: QNetwork, observation: Observation) -> NDArray[np.int64]:
    """The best valid actions, int64[batch]."""
    return action_values(network, observation).argmax(axis=1)


class Policy:
    """A trained policy that acts greedily in one environment.

    Attributes:
        model: the network and what it is for.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._stacker = FrameStacker(model.spec, 1)
        self._began = True

    def reset(self) -> None:
        """An episode begins: what was seen before it is forgotten, where frames are stacked."""
        self._began = True

    def act(self, observation: Any, action_mask: ArrayLike | None = None) -> int:
        """The best action, in the environment's own numbers.

        Args:
            observation: as the environment gives it: an array, a number, or a Dict or Tuple.
            action_mask: of an environment that tells it in ``info["action_mask"]``, [num_actions].

        Raises:
            ValueError: the observation is not one of the environment that the policy is for.
        """
        values = self.values(observation, action_mask)
        return int(values.argmax()) + self.model.spec.first_action

    def values(self, observation: Any, action_mask: ArrayLike | None = None) -> NDArray[np.float32]:
        """Q of every action, float32[num_actions]; -inf where it is not valid.

        As ``act`` does, it takes the observation for the newest of its episode.
        """
        frame = self._frame(observation, action_mask)
        stacked = self._stacker.push(frame, np.array([self._began]))
        self._began = False
        return action_values(self.model.network, stacked)[0]

    def _frame(self, observation: Any, action_mask: ArrayLike | None) -> Observation:
        """A batch of one, of the environment's fields."""
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
    """The arrays of an observation by the names of their fields: ``camera.left``, ``0.mask``."""
    if isinstance(observation, Mapping):
        inner = list(observation.items())
    elif isinstance(observation, tuple):
        inner = list(enumerate(observation))
    else:
        yield prefix.removesuffix(".") or PLAIN_FIELD, observation
        return
    for key, part in inner:
        yield from named_parts(part, f"{prefix}{key}.")


def load_policy(run: str | Path, *, best: bool = False) -> Policy:
    """The policy that a run has learned.

    Args:
        run: a run directory, or a model file. Nothing in it is unpickled.
        best: of a run, the parameters that evaluated best while it trained; else its last ones.

    Raises:
        UsageError: there is no such file, it is not a model, or the best is asked for of a file.
    """
    return Policy(load_model(model_path(Path(run), best=best)))


def model_path(run: Path, *, best: bool = False) -> Path:
    """The model file of a run directory, or the file itself.

    Raises:
        UsageError: there is none, or the best is asked for of a file, which is one model.
    """
    name = BEST_MODEL if best else FINAL_MODEL
    if run.is_file():
        if best:
            raise UsageError(f"{run} is a model file: the best is asked for of a run directory")
        return run
    if (run / name).is_file():
        return run / name
    raise UsageError(f"{run} is neither a model file nor a run directory with {name}")
