"""Adam (Kingma and Ba 2015) with clipping: in one pass over flat memory on the CPU, else torch's.

Both have states of the same form, so a run may go on with the other one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from learner import array_kernels as kernels
from pdqn.networks.array_network import Array

_BETAS = (0.9, 0.999)  # torch's default
_CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_
_MOMENTS = ("exp_avg", "exp_avg_sq")
# What torch's Adam has besides, so that it takes such a state.
_GROUP = {
    "weight_decay": 0,
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": True,
    "decoupled_weight_decay": False,
}


class FlatAdam:
    """Adam on one array, of which the parameters and their gradients are views.

    Importing torch's own takes a second, and each of its steps a dozen calls.

    Args:
        parameters: parameters for which ``suits_flat`` is true; they are moved into the array.
        epsilon: Adam's.

    Attributes:
        epsilon: Adam's.
        values: float32[count], the parameters.
        gradient: float32[count].
        gradients: the part of the gradient that each parameter has, of its shape.
    """

    def __init__(self, parameters: list[nn.Parameter], epsilon: float) -> None:
        self.epsilon = epsilon
        self.values = flatten(parameters)
        self.gradient = np.zeros_like(self.values)
        self.gradients: dict[Tensor, Array] = dict(
            zip(parameters, views(self.gradient, parameters), strict=True)
        )
        for parameter, view in self.gradients.items():
            parameter.grad = torch.from_numpy(view)
        self._parameters = parameters
        self._mean, self._square = np.zeros_like(self.values), np.zeros_like(self.values)
        self._steps = 0
        self._learning_rate = 0.0
        self._scale = 1.0  # of the gradient in the next step

    def zero_grad(self) -> None:
        """Set the gradient to 0, to which backward passes then add."""
        self.gradient.fill(0.0)

    def clip(self, most: float) -> float:
        """Have the next step clip the gradient's norm; return the norm before."""
        norm = math.sqrt(kernels.squared_norm(self.gradient))
        self._scale = min(1.0, most / (norm + _CLIP_EPSILON))
        return norm

    def step(self, learning_rate: float) -> None:
        """Take a step along the gradient."""
        self._steps += 1
        self._learning_rate = learning_rate
        beta1, beta2 = _BETAS
        kernels.adam(
            self.values, self.gradient, self._mean, self._square, np.float32(self._scale),
            np.float32(learning_rate / (1.0 - beta1**self._steps)),
            np.float32(beta1), np.float32(beta2),
            np.float32(math.sqrt(1.0 - beta2**self._steps)), np.float32(self.epsilon),
        )  # fmt: skip
        self._scale = 1.0

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch's Adam does; its tensors are views of the moments."""
        parts = [views(flat, self._parameters) for flat in (self._mean, self._square)]
        state = {
            index: {
                "step": torch.tensor(float(self._steps)),
                **{name: torch.from_numpy(part) for name, part in zip(_MOMENTS, own, strict=True)},
            }
            for index, own in enumerate(zip(*parts, strict=True))
        }
        group = {"lr": self._learning_rate, "betas": _BETAS, "eps": self.epsilon, **_GROUP}
        return {"state": state, "param_groups": [{**group, "params": list(state)}]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of this or of torch's Adam; epsilon stays."""
        for name, flat in zip(_MOMENTS, (self._mean, self._square), strict=True):
            for index, view in enumerate(views(flat, self._parameters)):
                np.copyto(view, state["state"][index][name].cpu().numpy())
        self._steps = int(state["state"][0]["step"]) if state["state"] else 0
        self._learning_rate = float(state["param_groups"][0]["lr"])


class TorchAdam:
    """Torch's Adam.

    Args:
        parameters: of the network, on any device.
        epsilon: Adam's.
    """

    def __init__(self, parameters: list[nn.Parameter], epsilon: float) -> None:
        self._parameters, self._epsilon = parameters, epsilon
        self._adam = torch.optim.Adam(parameters, lr=0.0, eps=epsilon, fused=True)
        self._allocate_moments()

    @property
    def epsilon(self) -> float:
        """Adam's epsilon."""
        return self._adam.param_groups[0]["eps"]

    def zero_grad(self) -> None:
        """Set the gradients to 0."""
        self._adam.zero_grad()

    def clip(self, most: float) -> Tensor:
        """Clip the gradient's norm; return the norm before, float32[] on the device."""
        return nn.utils.clip_grad_norm_(self._parameters, most)

    def step(self, learning_rate: float) -> None:
        """Take a step along the gradient."""
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return self._adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of this class or of ``FlatAdam``; epsilon stays."""
        self._adam.load_state_dict(state)
        self._adam.param_groups[0]["eps"] = self._epsilon

    def _allocate_moments(self) -> None:
        """Allocate Adam's memory now, so that the first step shows how much a step needs."""
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)
        self._adam.step()
        for state in self._adam.state.values():
            state["step"].zero_()
        self._adam.zero_grad()


def flatten(parameters: list[nn.Parameter]) -> Array:
    """Move parameters into one array, of which they become views."""
    flat = np.empty(sum(parameter.numel() for parameter in parameters), np.float32)
    for parameter, view in zip(parameters, views(flat, parameters), strict=True):
        np.copyto(view, parameter.detach().numpy())
        parameter.data = torch.from_numpy(view)
    return flat


def views(flat: Array, parameters: list[nn.Parameter]) -> list[Array]:
    """Divide an array into views of the parameters' shapes."""
    ends = np.cumsum([parameter.numel() for parameter in parameters])
    parts = np.split(flat, ends[:-1])
    return [part.reshape(p.shape) for part, p in zip(parts, parameters, strict=True)]
