"""A step of the learner in numpy: loss, gradients, Adam and target update on flat arrays.

The parameters of both networks, the gradient and Adam's moments are one array each. The tensors of
the modules and of the optimizer are views of them, so checkpoints and publications are as before,
and a run may go on with torch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from learner import array_kernels as kernels
from learner.objective import TensorBatch
from pdqn.config import Config
from pdqn.networks import QNetwork
from pdqn.networks.array_network import Array, ArrayNetwork, has_arrays
from pdqn.networks.fused import FusedNetwork
from pdqn.specs import ACTION_MASK

_CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_
_BETAS = (0.9, 0.999)  # torch's default
_NO_MASK = np.zeros((0, 0), bool)


class Found(NamedTuple):
    """Figures of a batch.

    Attributes:
        loss: mean loss, weighted by importance.
        q_mean: mean Q of the actions taken.
        norm: global norm of the gradient before clipping.
        priorities: float32[batch], absolute TD errors.
        losses: float32[batch], weighted by importance.
    """

    loss: float
    q_mean: float
    norm: float
    priorities: Array
    losses: Array


def array_step_of(
    config: Config, online: QNetwork, target: QNetwork, optimizer: torch.optim.Optimizer
) -> ArrayStep | None:
    """Make the steps in numpy for a configuration; None where torch has to take them.

    Torch takes them on a GPU, in lower precision, in parts of batches, compiled, with a Munchausen
    bonus, and for networks that have no arrays.
    """
    learner = config.learner
    whole = (learner.micro_batch_size or learner.batch_size) >= learner.batch_size
    plain = not (learner.compile or learner.munchausen) and learner.precision != "bfloat16"
    if plain and whole and has_arrays(online) and has_arrays(target):
        return ArrayStep(config, online, target, optimizer)
    return None


class ArrayStep:
    """Steps of gradient descent on flat arrays.

    Args:
        config: the run's.
        online: network that learns; its parameters become views.
        target: network of the targets; likewise.
        optimizer: Adam of the online network's parameters; its moments become views.
    """

    def __init__(
        self,
        config: Config,
        online: FusedNetwork,
        target: FusedNetwork,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._config = config.learner
        self._prepare = online.prepare
        parameters = list(online.parameters())
        self._ours = _flatten(parameters)
        self._theirs = _flatten(list(target.parameters()))
        self._gradient = np.zeros_like(self._ours)
        self._moments = [np.zeros_like(self._ours) for _ in range(2)]
        self._optimizer = optimizer
        self.adopt()
        views: dict[Tensor, Array] = dict(
            zip(parameters, _views(self._gradient, parameters), strict=True)
        )
        for parameter, view in views.items():
            parameter.grad = torch.from_numpy(view)
        self._online = ArrayNetwork(online, views)
        self._target = ArrayNetwork(target)

    def adopt(self) -> None:
        """Take over the optimizer's moments, which it may have loaded; they become views."""
        parameters = self._optimizer.param_groups[0]["params"]
        for name, flat in zip(("exp_avg", "exp_avg_sq"), self._moments, strict=True):
            for parameter, view in zip(parameters, _views(flat, parameters), strict=True):
                state = self._optimizer.state[parameter]
                np.copyto(view, state[name].numpy())
                state[name] = torch.from_numpy(view)
        self._count = int(self._optimizer.state[parameters[0]]["step"])

    def settle(self) -> None:
        """Tell the optimizer how many steps were taken, before its state is saved."""
        for state in self._optimizer.state.values():
            state["step"].fill_(self._count)

    @torch.inference_mode()
    def differentiate(self, batch: TensorBatch) -> Found:
        """Compute the gradient of a batch, and its figures."""
        count = len(batch)
        targets = batch.n_step_return.numpy().copy()
        values = self._values(batch, targets)
        gradient = np.empty_like(values)
        priorities, losses = np.empty(count, np.float32), np.empty(count, np.float32)
        q_mean = kernels.huber_backward(
            values, batch.action.numpy(), targets, batch.importance_weight.numpy(),
            np.float32(self._config.huber_delta), gradient, priorities, losses,
        )  # fmt: skip
        self._online.backward(gradient)
        with np.errstate(over="ignore", invalid="ignore"):
            norm = math.sqrt(float(np.dot(self._gradient, self._gradient)))
        return Found(float(losses.sum()) / count, float(q_mean), norm, priorities, losses)

    def descend(self, norm: float, learning_rate: float) -> None:
        """Take Adam's step along the gradient, clipped by its norm."""
        clip = self._config.gradient_clip_norm / (norm + _CLIP_EPSILON)
        if clip < 1.0:
            self._gradient *= np.float32(clip)
        self._count += 1
        step, (beta1, beta2) = self._count, _BETAS
        mean, square = self._moments
        kernels.adam(
            self._ours, self._gradient, mean, square,
            np.float32(learning_rate / (1.0 - beta1**step)), np.float32(beta1), np.float32(beta2),
            np.float32(math.sqrt(1.0 - beta2**step)), np.float32(self._config.adam_epsilon),
        )  # fmt: skip

    def update_target(self, rate: float) -> None:
        """Move the target network towards the online one; by 1, copy it."""
        if rate < 1.0:
            kernels.follow(self._theirs, self._ours, np.float32(rate))
        else:
            np.copyto(self._theirs, self._ours)

    def _values(self, batch: TensorBatch, targets: Array) -> Array:
        """Compute the values of a batch's observations, and add to targets what is bootstrapped.

        A return that reaches the end of its episode is known: its row has no second pass.
        """
        count = len(batch)
        discount = batch.discount.numpy()
        rows = np.flatnonzero(discount)
        here = self._inputs(batch.observation)
        if not len(rows):
            return self._online.forward(*here)
        there = self._inputs(batch.bootstrap_observation)
        if len(rows) < count:
            there = [part[rows] for part in there]
        values = self._target.forward(*there)
        ours, chooser = self._online, values
        if self._config.double:
            both = [np.concatenate(pair) for pair in zip(here, there, strict=True)]
            found = ours.forward(*both)
            chooser = found[count:]
        else:
            found = ours.forward(*here)
        mask = batch.bootstrap_observation.get(ACTION_MASK)
        given = _NO_MASK if mask is None else mask.numpy()
        kernels.add_bootstrapped(targets, discount, rows, chooser, values, given)
        return found[:count]

    def _inputs(self, observation: dict[str, Tensor]) -> list[Array]:
        return [part.numpy() for part in self._prepare(observation)]


def _flatten(parameters: list[nn.Parameter]) -> Array:
    """Move parameters into one array, of which they become views."""
    flat = np.empty(sum(parameter.numel() for parameter in parameters), np.float32)
    for parameter, view in zip(parameters, _views(flat, parameters), strict=True):
        np.copyto(view, parameter.detach().numpy())
        parameter.data = torch.from_numpy(view)
    return flat


def _views(flat: Array, parameters: list[nn.Parameter]) -> list[Array]:
    """Divide an array into views of the parameters' shapes."""
    ends = np.cumsum([parameter.numel() for parameter in parameters])
    parts = np.split(flat, ends[:-1])
    return [part.reshape(p.shape) for part, p in zip(parts, parameters, strict=True)]
