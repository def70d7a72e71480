"""Greedy actions of a trained network: for batches, and as a policy for other programs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pdqn.casting import as_array, as_mask, shown
from pdqn.errors import UsageError, first_line
from pdqn.model import Model, load_model
from pdqn.model_head import BEST_MODEL, FINAL_MODEL
from pdqn.networks import QNetwork
from pdqn.networks.array_network import acting_arrays
from pdqn.networks.qmap import QMap
from pdqn.networks.qmap_acting import map_values
from pdqn.specs import ACTION_MASK, PLAIN_FIELD, ROLLOUT_FIELDS, FieldSpec, Observation
from pdqn.stacking import FrameStacker
from pdqn.trust import EVERYTHING, IN_PYTHON, Trust

_PIECE_VALUES = 1 << 19  # of a pass, 2 MB as float32


def action_values(network: QNetwork, observation: Observation) -> NDArray[np.float32]:
    """Compute Q of a batch of observations, float32[batch, actions]; -inf where masked.

    Args:
        network: network of the environment.
        observation: each field as [batch, *stacked_shape], unpacked.
    """
    with torch.inference_mode():
        tensors = {name: _as_tensor(array) for name, array in observation.items()}
        if isinstance(network, QMap) and not network.interpolation.is_cuda:
            return map_values(network, tensors)
        parts = [_piece_values(network, piece) for piece in _pieces(tensors)]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if network.return_scale is not None:
            values = values * network.return_scale().numpy()
    mask = observation.get(ACTION_MASK)
    return values if mask is None else np.where(mask.astype(bool), values, -np.inf)


def _piece_values(network: QNetwork, tensors: dict[str, torch.Tensor]) -> NDArray[np.float32]:
    prepared = network.prepare(tensors)
    arrays = acting_arrays(network)
    if arrays is None:
        return network(*prepared).numpy()
    return arrays.forward(*(part.numpy() for part in prepared)).copy()


def _pieces(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Divide a batch of large pictures into pieces that stay in the cache, and in their memory.

    A pass on 128 stacks of Atari's frames takes 14 MB for its inputs alone. An actor returns them
    to the system, and a pass takes twice the time that its pieces do.
    """
    size = max((tensor.numel() for tensor in tensors.values()), default=0)
    rows = max((len(tensor) for tensor in tensors.values()), default=0)
    count = min(rows, -(-size // _PIECE_VALUES))
    if count <= 1:
        return [tensors]
    ends = [rows * k // count for k in range(count + 1)]
    return [
        {name: tensor[first:end] for name, tensor in tensors.items()}
        for first, end in itertools.pairwise(ends)
    ]


def greedy(network: QNetwork, observation: Observation) -> NDArray[np.int64]:
    """Choose the best valid actions, int64[batch]."""
    return action_values(network, observation).argmax(axis=1)


def _as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """Wrap an array; copy one that torch cannot wrap, such as a picture that is upside down."""
    native = np.asarray(array, array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(native if native.flags.writeable else native.copy())


class Policy:
    """A trained policy that acts greedily, in one environment or in a batch of them.

    An observation is one of the environment's: an array, a list, a number, or a Dict or Tuple.
    Arrays with one axis more, in front, are a batch of observations, as a vector environment gives.
    So is a list of observations.

    Args:
        model: the network and a description of its environment.
        device: device that computes, such as ``cpu`` or ``cuda``.

    Attributes:
        model: the network and a description of its environment.

    Raises:
        UsageError: the device cannot be used.
    """

    def __init__(self, model: Model, device: str = "cpu") -> None:
        self.model = model
        self._compute = _computing(model.network, device)
        self._stacker = FrameStacker(model.spec, 1)
        self._began = np.ones(1, bool)

    def reset(self, index: ArrayLike | None = None) -> None:
        """Begin episodes: if frames are stacked, forget the earlier ones.

        Args:
            index: episodes of a batch that begin with the next observation, by their indices or as
                bool[batch]. By default all begin, and the batch may have another size.

        Raises:
            ValueError: the last batch has no such index.
        """
        if index is None:
            self._began[:] = True
            return
        which = np.asarray(index)
        if which.size == 0:
            return
        try:
            self._began[which] = True
        except IndexError:
            raise ValueError(
                f"reset({shown(index)}): the last batch had {len(self._began)} observations"
            ) from None

    def act(self, observation: Any, action_mask: ArrayLike | None = None) -> Any:
        """Choose the best action, in the environment's own numbering.

        Args:
            observation: an observation as the environment returns it, or a batch of them. Values
                outside of a Box's bounds are taken, as in training.
            action_mask: ``info["action_mask"]`` of an environment that provides it, 0 and 1
                [num_actions], or [batch, num_actions].

        Returns:
            int, or int64[batch] for a batch.

        Raises:
            ValueError: the observation or the mask does not fit the policy's environment. Such are
                floats for whole numbers, unknown categories, and values that are not finite. Or
                frames are stacked, and the size of the batch changes without a ``reset``.
        """
        best = self.values(observation, action_mask).argmax(axis=-1) + self.model.spec.first_action
        return int(best) if best.ndim == 0 else best

    def values(self, observation: Any, action_mask: ArrayLike | None = None) -> NDArray[np.float32]:
        """Compute Q of every action, float32[num_actions], or float32[batch, num_actions].

        It is -inf for invalid actions. Like ``act``, this treats the observation as the next one of
        its episode.

        Raises:
            ValueError: see ``act``.
        """
        given = self._parts(observation)
        batch = self._batch_of(given)
        if action_mask is not None:
            given[ACTION_MASK] = action_mask
        mask = self._mask(given, batch)
        if mask is not None:
            given[ACTION_MASK] = mask
        stacked = self._stack(self._frame(given, batch), batch or 1)
        values = self._compute(stacked)
        if mask is not None:
            values = np.where(mask, values, np.float32(-np.inf))
        return values if batch is not None else values[0]

    def search(self, env: Any, method: str) -> NDArray[np.int64]:
        """Plan a whole episode by a search in which the policy takes part.

        Only circle placement has one. All methods but ``symmetries`` are never below exact greedy.

        Args:
            env: the environment, right after its ``reset``. Its episode stays as it is.
            method: ``rollouts:16``, ``beam:16x32``, ``time:100ms`` or ``symmetries``, with other
                numbers as well; docs/environment.md describes them.

        Returns:
            int64[steps], the actions for ``env.step``.

        Raises:
            UsageError: a ``ValueError``: the method is not one of these, or the environment or the
                policy is not of circle placement without overlaps.
            ResetNeeded: the environment was not reset just before.
        """
        values = search_values(self.model, env, "Policy.search", self._compute)
        return env.unwrapped.search(method, values)

    def _parts(self, observation: Any) -> dict[str, Any]:
        """Return the arrays of an observation by their fields' names; lists of them for a list."""
        if not self._is_list_of_nested(observation):
            return dict(named_parts(observation))
        every = [dict(named_parts(each)) for each in observation]
        parts = every[0].keys()
        for index, each in enumerate(every):
            if each.keys() != parts:
                has, first = (", ".join(sorted(names)) for names in (each, parts))
                raise ValueError(f"observation {index} of the batch has {has}, the first {first}")
        return {name: [each[name] for each in every] for name in parts}

    def _is_list_of_nested(self, observation: Any) -> bool:
        """Return whether this is a list of Dicts or Tuples; tuples may also be rows of an array."""
        if not isinstance(observation, list) or not observation:
            return False
        plain = any(field.name == PLAIN_FIELD for field in self.model.spec.fields)
        return all(isinstance(each, Mapping if plain else Mapping | tuple) for each in observation)

    def _batch_of(self, given: Mapping[str, Any]) -> int | None:
        """Return the number of observations; None for a single one."""
        for field in self.model.spec.fields:
            shape = _shape_of(given.get(field.name))
            if len(shape) == len(field.shape) + 1 and shape[0] > 0:
                return int(shape[0])
        return None

    def _stack(self, frame: Observation, count: int) -> Observation:
        """Add frames to the stacks of their episodes."""
        if count != len(self._began):
            if self.model.spec.frame_stack > 1 and not self._began.all():
                raise ValueError(
                    f"the batch has {count} observations, and the one before had "
                    f"{len(self._began)}: frames are stacked, so call reset() first"
                )
            self._stacker = FrameStacker(self.model.spec, count)
            self._began = np.ones(count, bool)
        stacked = self._stacker.push(frame, self._began)
        self._began = np.zeros(count, bool)
        return stacked

    def _mask(self, given: Mapping[str, Any], batch: int | None) -> NDArray[np.bool_] | None:
        if ACTION_MASK not in given:
            return None
        mask, actions = as_mask(given[ACTION_MASK]), self.model.spec.num_actions
        wanted = (actions,) if batch is None else (batch, actions)
        if mask.shape != wanted:
            raise ValueError(f"the action mask has the shape {list(mask.shape)}, not {[*wanted]}")
        if not mask.any(axis=-1).all():
            raise ValueError("the action mask leaves no action")
        return mask

    def _frame(self, given: Mapping[str, Any], batch: int | None) -> Observation:
        """Make a batch of the environment's fields."""
        fields = self.model.spec.fields
        told = {f.name: f.blank(batch or 1) for f in fields if f.name in ROLLOUT_FIELDS}
        if missing := {field.name for field in fields} - {*told, *given}:
            has, lacks = (", ".join(sorted(names)) for names in (given, missing))
            raise ValueError(f"the observation has {has}; {self.model.spec.id} needs {lacks}")
        arrays = {f.name: self._array(f, given, batch) for f in fields if f.name in given}
        return told | (arrays if batch is not None else {n: a[None] for n, a in arrays.items()})

    def _array(self, field: FieldSpec, given: Mapping[str, Any], batch: int | None) -> NDArray[Any]:
        """Convert a field without changing its values."""
        values = given[field.name]
        shape = field.shape if batch is None else (batch, *field.shape)
        try:
            array = as_array(values, "bool" if field.binary else field.dtype, shape)
        except ValueError as error:
            needed = f"{self.model.spec.id} needs {field.dtype} {[*shape]}"
            raise ValueError(f"{field.name}: {error}; {needed}") from None
        if not field.is_known(array):
            pairs = zip(field.start, field.categories, strict=True)
            known = ", ".join(f"{first} to {first + count - 1}" for first, count in pairs)
            raise ValueError(f"{field.name}: {shown(values)} is not a category: {known:.80}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{field.name}: {shown(values)} is not finite")
        return array


def _shape_of(values: Any) -> tuple[int, ...]:
    """Return the shape of an array or of nested lists; () for anything else."""
    if not isinstance(values, list):
        return (*getattr(values, "shape", ()),)
    try:
        return np.shape(values)  # pyright: ignore[reportArgumentType] - any list
    except Exception:  # noqa: BLE001 - lists of different lengths, and any object's own conversion
        return ()


Compute = Callable[[Observation], NDArray[np.float32]]


def _computing(network: QNetwork, device: str) -> Compute:
    """Return the function from a batch of observations to Q, on a device.

    Raises:
        UsageError: the device cannot be used.
    """
    try:
        where = torch.device(device)
        network.to(where)
    except (RuntimeError, AssertionError, ValueError) as error:  # torch raises any of these
        raise UsageError(f"device {device!r}: {first_line(error)}") from None
    if where.type == "cpu":
        return partial(action_values, network)
    return partial(_values_on, network, where)


def _values_on(
    network: QNetwork, device: torch.device, observation: Observation
) -> NDArray[np.float32]:
    """Compute Q of a batch as ``action_values`` does, on another device than the CPU."""
    with torch.inference_mode():
        tensors = {name: _as_tensor(array).to(device) for name, array in observation.items()}
        values = network(*network.prepare(tensors)).float()
        if network.return_scale is not None:
            values = values * network.return_scale()
        values = values.cpu().numpy()
    mask = observation.get(ACTION_MASK)
    return values if mask is None else np.where(mask.astype(bool), values, -np.inf)


def search_values(
    model: Model, env: Any, setting: str, compute: Compute | None = None
) -> Callable[[Observation], NDArray[np.float32]]:
    """Return Q of the observations that a search of an environment gives.

    Args:
        model: the policy.
        env: the environment.
        setting: name of the option or function, for the error.
        compute: function from a batch of observations to Q; by default the network's on the CPU.

    Raises:
        UsageError: the policy cannot take part in a search there.
    """
    inner, spec = getattr(env, "unwrapped", env), model.spec
    if not spec.circle_placement:
        raise UsageError(f"{setting}: expected a policy of circle placement; this is of {spec.id}")
    is_bare = getattr(inner, "circle_placement", False) and hasattr(inner, "search")
    if not is_bare or env.observation_space != inner.observation_space:
        raise UsageError(
            f"{setting}: expected a single circle placement environment, in wrappers that do not "
            f"change its observations, not {'batches' if env is None else type(env).__name__}"
        )
    if spec.frame_stack > 1:
        raise UsageError(
            f"{setting}: the policy sees {spec.frame_stack} frames at once; a search has one"
        )
    if inner.action_space.n != spec.num_actions and not isinstance(model.network, QMap):
        raise UsageError(
            f"{setting}: the policy has {spec.num_actions} actions, the environment "
            f"{inner.action_space.n}"
        )
    return compute or partial(action_values, model.network)


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


def load_policy(
    run: str | Path, *, best: bool = False, trust: bool = False, device: str = "cpu"
) -> Policy:
    """Load the policy that a run has learned.

    Args:
        run: a run directory, or a model file. Nothing in it is unpickled.
        best: load a run's best-evaluated parameters instead of its last ones.
        trust: import the module of a custom network that another person's file names. In a run
            directory of your own this is not needed.
        device: device that computes, such as ``cpu`` or ``cuda``.

    Raises:
        UsageError: the file does not exist or is not a model, or ``best`` is given with a file. Or
            the device cannot be used.
        NotTrustedError: the file names code, and ``trust`` is False. It is a ``UsageError``.
    """
    allowed = EVERYTHING if trust else Trust(ways=IN_PYTHON)
    return Policy(load_model(model_path(Path(run), best=best), allowed), device)


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
    has_best = f"; it has {BEST_MODEL}: best=True" if (run / BEST_MODEL).is_file() else ""
    raise UsageError(f"{run} is neither a model file nor a run directory with {name}{has_best}")
