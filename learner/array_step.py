"""Gradients of a batch in compiled loops, without autograd, for networks that have arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from learner import array_kernels as kernels
from learner.losses import categorical_losses, gaussian_histogram, select
from learner.objective import TensorBatch
from pdqn.config import Config
from pdqn.networks import QNetwork
from pdqn.networks.array_network import Array, ArrayNetwork, Gradients, has_arrays
from pdqn.networks.fused import FusedNetwork
from pdqn.specs import ACTION_MASK, EnvironmentSpec

# Share of a batch up to which only the rows that bootstrap are computed. Above it, all are:
# products of one shape are prepared only once.
_MOST_SELECTED = 0.75
_NO_MASK = np.zeros((0, 0), bool)


class Found(NamedTuple):
    """Figures of a batch.

    Attributes:
        loss: mean loss, weighted by importance.
        q_mean: mean Q of the actions taken.
        priorities: float32[batch], absolute TD errors.
        losses: float32[batch], weighted by importance.
    """

    loss: float
    q_mean: float
    priorities: Array
    losses: Array


def array_step_of(
    config: Config,
    spec: EnvironmentSpec,
    online: QNetwork,
    target: QNetwork,
    gradients: Gradients,
) -> ArrayStep | None:
    """Make the steps without autograd for a configuration; None where it has to be used.

    It is used in lower precision, in parts of batches, and compiled. A Munchausen bonus, the loss
    of rollouts, distributions of returns and networks that have no arrays need it also.

    Args:
        config: the run's.
        spec: spec of its environment.
        online: network that learns.
        target: network of the targets.
        gradients: an array for the gradient of each parameter of the online network.
    """
    learner = config.learner
    whole = (learner.micro_batch_size or learner.batch_size) >= learner.batch_size
    adds = learner.munchausen or (spec.rollouts and learner.rollout_weight)
    spreads = config.network.distribution in ("categorical", "quantile")
    plain = not (learner.compile or adds or spreads) and learner.precision != "bfloat16"
    if plain and whole and has_arrays(online) and has_arrays(target):
        return ArrayStep(config, online, target, gradients)
    return None


class ArrayStep:
    """Gradients and figures of batches; see ``array_step_of``."""

    def __init__(
        self, config: Config, online: FusedNetwork, target: FusedNetwork, gradients: Gradients
    ) -> None:
        self._config = config.learner
        self._support = online.support
        self._bounds = config.network.value_min, config.network.value_max
        self._sigma = config.network.gauss_sigma
        self._prepare = online.prepare
        self._scale = online.return_scale
        self._online = ArrayNetwork(online, gradients)
        self._target = ArrayNetwork(target)
        # Only a whole target has features of its own, for which it sees the observations itself.
        self._shares_features = config.learner.target != "network"

    @torch.inference_mode()
    def differentiate(self, batch: TensorBatch) -> Found:
        """Compute the gradient of a batch, and its figures."""
        if self._scale is None:
            return self._differentiate(batch, batch.n_step_return.numpy().copy())
        unit = self._scale().numpy()
        found = self._differentiate(batch, batch.n_step_return.numpy() / unit)
        # Values and errors are in the environment's units; losses are in the network's.
        q_mean, priorities = found.q_mean * float(unit), found.priorities * unit
        return found._replace(q_mean=q_mean, priorities=priorities)

    def _differentiate(self, batch: TensorBatch, targets: Array) -> Found:
        """Do so with what is rewarded in the network's units, to which what follows is added."""
        count = len(batch)
        values = self._values(batch, targets)
        if self._support is not None:
            return self._classify(batch, values, torch.from_numpy(targets), self._support)
        gradient = np.empty_like(values)
        priorities, losses = np.empty(count, np.float32), np.empty(count, np.float32)
        q_mean = kernels.huber_backward(
            values, batch.action.numpy(), targets, batch.importance_weight.numpy(),
            np.float32(self._config.huber_delta), gradient, priorities, losses,
        )  # fmt: skip
        self._online.backward(gradient)
        return Found(float(losses.sum()) / count, float(q_mean), priorities, losses)

    def _classify(
        self, batch: TensorBatch, values: Array, targets: Tensor, support: Tensor
    ) -> Found:
        """Do so by HL-Gauss: the logits of the actions taken learn histograms of the targets."""
        count = len(batch)
        aims = targets.clamp(*self._bounds)
        histogram = gaussian_histogram(aims, support, self._sigma)
        outputs = self._online.outputs[:count].unflatten(1, (-1, len(support)))
        logits = select(outputs, batch.action)
        losses = categorical_losses(logits, histogram) * batch.importance_weight
        slopes = (logits.softmax(dim=1) - histogram) * (batch.importance_weight / count)[:, None]
        gradient = torch.zeros_like(outputs)
        gradient[torch.arange(count), batch.action] = slopes
        self._online.backward(gradient.flatten(1).numpy())
        chosen = select(torch.from_numpy(values), batch.action)
        priorities = (aims - chosen).abs().numpy()
        return Found(float(losses.mean()), float(chosen.mean()), priorities, losses.numpy())

    def _values(self, batch: TensorBatch, targets: Array) -> Array:
        """Compute the values of a batch's observations, and add to targets what is bootstrapped.

        A return that reaches the end of its episode is known: its row needs no second pass.
        """
        count = len(batch)
        discount = batch.discount.numpy()
        rows = np.flatnonzero(discount)
        here = self._inputs(batch.observation)
        if not len(rows):
            return self._online.forward(*here)
        there = self._inputs(batch.bootstrap_observation)
        selects = len(rows) <= _MOST_SELECTED * count
        if selects:
            there = [part[rows] for part in there]
        found, chooser, values = self._found(here, there)
        mask = batch.bootstrap_observation.get(ACTION_MASK)
        given = _NO_MASK if mask is None else mask.numpy()
        if not selects:
            chooser, values = chooser[rows], values[rows]
        kernels.add_bootstrapped(targets, discount, rows, chooser, values, given)
        return found[:count]

    def _found(self, here: list[Array], there: list[Array]) -> tuple[Array, Array, Array]:
        """Compute values of two batches of observations.

        Returns:
            The online network's values, those of ``here`` first; the values of ``there`` that
            choose its actions, and those that value them.
        """
        learner, online = self._config, self._online
        values = None if self._shares_features else self._target.forward(*there)
        if values is not None and not learner.double:
            return online.forward(*here), values, values
        both = [np.concatenate(pair) for pair in zip(here, there, strict=True)]
        found = online.forward(*both)
        chooser = found[len(here[0]) :]
        if learner.target == "none":
            return found, chooser, chooser
        if values is None:
            values = self._target.last_layer_of(online, len(here[0]))
        return found, chooser if learner.double else values, values

    def _inputs(self, observation: dict[str, Tensor]) -> list[Array]:
        return [part.numpy() for part in self._prepare(observation)]
