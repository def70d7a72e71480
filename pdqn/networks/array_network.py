"""A network's passes in numpy, where torch would spend more time on dispatch than on arithmetic.

A batch of 64 through two layers of 256 units is some 200 microseconds of arithmetic. Torch needs
several times as long for its hundred calls. Here a layer is one product of matrices and one
compiled loop. The arrays are the memory of the module's own parameters: both always have the same
values.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pdqn.networks import array_kernels as kernels
from pdqn.networks.encoders import Convolutions
from pdqn.networks.fused import FusedNetwork
from pdqn.networks.interface import QNetwork

Array: TypeAlias = NDArray[np.float32]
Gradients: TypeAlias = Mapping[Tensor, Array]


class _Parameter:
    """A parameter as an array, with the array of its gradient if there is one."""

    def __init__(self, parameter: Tensor, gradients: Gradients) -> None:
        self.value: Array = parameter.detach().numpy()
        self.gradient = gradients.get(parameter, np.empty(0, np.float32))


class _Buffers:
    """Arrays that are made once and used in every pass, by name."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def get(self, name: str, count: int, *shape: int) -> Array:
        """Return an array [count, *shape] without defined contents."""
        array = self._arrays.get(name)
        if array is None or len(array) < count or array.shape[1:] != shape:
            array = self._arrays[name] = np.empty((count, *shape), np.float32)
        return array[:count]


class _Dense:
    """A hidden layer: product, bias, normalisation if there is one, rectifier."""

    def __init__(self, layer: nn.Linear, norm: nn.Module, gradients: Gradients) -> None:
        self._weight = _Parameter(layer.weight, gradients)
        self._bias = _Parameter(layer.bias, gradients)
        self._gain = self._shift = None
        self._epsilon = 0.0
        if isinstance(norm, nn.LayerNorm):
            self._gain = _Parameter(norm.weight, gradients)
            self._shift = _Parameter(norm.bias, gradients)
            self._epsilon = norm.eps
        self._buffers = _Buffers()
        self._inputs = self._hidden = self._scales = self._output = np.empty((0, 0), np.float32)

    def forward(self, inputs: Array) -> Array:
        """Compute [n, width] from [n, inputs]; the result is valid until the next call."""
        width = len(self._bias.value)
        hidden = self._buffers.get("hidden", len(inputs), width)
        np.dot(inputs, self._weight.value.T, out=hidden)
        self._inputs, self._hidden = inputs, hidden
        if self._gain is None or self._shift is None:
            kernels.add_relu(hidden, self._bias.value)
            self._output = hidden
            return hidden
        self._output = self._buffers.get("output", len(inputs), width)
        self._scales = self._buffers.get("scales", len(inputs))
        kernels.normalise_relu(
            hidden, self._bias.value, self._gain.value, self._shift.value, self._epsilon,
            self._scales, self._output,
        )  # fmt: skip
        return self._output

    def backward(self, gradient: Array, *, to_inputs: bool) -> Array:
        """Fill the gradients of the parameters; return that of the inputs, [n, inputs].

        Args:
            gradient: [n, width], of the first n rows of the last output; overwritten.
            to_inputs: whether the gradient of the inputs is needed; else it is empty.
        """
        count = len(gradient)
        output = self._output[:count]
        if self._gain is None or self._shift is None:
            kernels.relu_backward(gradient, output, self._bias.gradient)
        else:
            kernels.normalise_relu_backward(
                gradient, output, self._hidden[:count], self._scales[:count], self._gain.value,
                self._bias.gradient, self._gain.gradient, self._shift.gradient,
            )  # fmt: skip
        np.dot(gradient.T, self._inputs[:count], out=self._weight.gradient)
        if not to_inputs:
            return gradient[:, :0]
        behind = self._buffers.get("gradient", count, self._weight.value.shape[1])
        return np.dot(gradient, self._weight.value, out=behind)


class _Convolution:
    """The one convolution of ``Convolutions``, 3 x 3, with its rectifier."""

    def __init__(self, module: Convolutions, gradients: Gradients) -> None:
        self._weight = _Parameter(module.first.weight, gradients)
        bias = module.first.bias
        assert bias is not None
        self._bias = _Parameter(bias, gradients)
        self.features = module.features
        self._buffers = _Buffers()
        self._columns = np.empty((0, 0, 0), np.float32)

    def forward(self, images: Array, features: Array) -> None:
        """Fill features, [n, channels * area], from images [n, inputs, H, W]."""
        weight = self._weight.value.reshape(len(self._weight.value), -1)
        area = self.features // len(weight)
        self._columns = self._buffers.get("columns", len(images), area, weight.shape[1])
        kernels.patches(images, self._columns)
        places = self._buffers.get("places", len(images) * area, len(weight))
        np.dot(self._columns.reshape(len(places), -1), weight.T, out=places)
        kernels.places_to_features(places, self._bias.value, features)

    def backward(self, gradient: Array, features: Array) -> None:
        """Fill the gradients of the parameters from that of the first n rows of the features."""
        channels = len(self._bias.value)
        area = self.features // channels
        places = self._buffers.get("places", len(gradient) * area, channels)
        kernels.features_to_places(gradient, features, self._bias.gradient, places)
        columns = self._columns[: len(gradient)].reshape(len(places), -1)
        np.dot(places.T, columns, out=self._weight.gradient.reshape(channels, -1))


class _Head:
    """The last layer, dueling or not."""

    def __init__(self, module: Any, gradients: Gradients) -> None:
        self._weight = _Parameter(module.advantage.weight, gradients)
        self._bias = _Parameter(module.advantage.bias, gradients)
        self._value = None
        if module.value is not None:
            value = module.value
            self._value = (_Parameter(value.weight, gradients), _Parameter(value.bias, gradients))
        self._buffers = _Buffers()
        self._inputs = np.empty((0, 0), np.float32)

    def forward(self, inputs: Array) -> Array:
        """Compute [n, actions] from [n, features]; the result is valid until the next call."""
        self._inputs = inputs
        values = self._buffers.get("values", len(inputs), len(self._bias.value))
        np.dot(inputs, self._weight.value.T, out=values)
        if self._value is None:
            values += self._bias.value
            return values
        weight, bias = self._value
        common = self._buffers.get("common", len(inputs), 1)
        np.dot(inputs, weight.value.T, out=common)
        kernels.dueling(values, self._bias.value, common, bias.value, values)
        return values

    def backward(self, gradient: Array) -> Array:
        """Fill the gradients of the parameters; return that of the inputs, [n, features].

        Args:
            gradient: [n, actions], of the first n rows of the last values; overwritten.
        """
        inputs = self._inputs[: len(gradient)]
        behind = self._buffers.get("gradient", len(gradient), inputs.shape[1])
        total = gradient.sum(axis=1, keepdims=True)
        if self._value is not None:
            gradient -= total / np.float32(gradient.shape[1])
        np.dot(gradient.T, inputs, out=self._weight.gradient)
        gradient.sum(axis=0, out=self._bias.gradient)
        np.dot(gradient, self._weight.value, out=behind)
        if self._value is not None:
            weight, bias = self._value
            np.dot(total.T, inputs, out=weight.gradient)
            total.sum(axis=0, out=bias.gradient)
            behind += total * weight.value
        return behind


class ArrayNetwork:
    """The passes of a ``FusedNetwork`` on the memory of its parameters.

    Args:
        network: a network for which ``has_arrays`` is true.
        gradients: an array for the gradient of each parameter; empty if there is no backward pass.
    """

    def __init__(self, network: FusedNetwork, gradients: Gradients | None = None) -> None:
        wanted = {} if gradients is None else gradients
        self._encoders = [_Convolution(encoder, wanted) for encoder in _encoders(network)]
        self._layers = [
            _Dense(layer, norm, wanted)
            for layer, norm in zip(network.trunk, network.norms, strict=True)
            if isinstance(layer, nn.Linear)
        ]
        self._head = _Head(network.head, wanted)
        self._buffers = _Buffers()
        self._features = np.empty((0, 0), np.float32)

    def forward(self, *prepared: Array) -> Array:
        """Compute expected returns, [n, actions]; the result is valid until the next call.

        Args:
            prepared: what the network's ``prepare`` gives.
        """
        with _quiet():
            hidden = self._fused(*prepared)
            for layer in self._layers:
                hidden = layer.forward(hidden)
            return self._head.forward(hidden)

    def backward(self, gradient: Array) -> None:
        """Fill the gradients of all parameters.

        Args:
            gradient: [n, actions], of the first n rows of the last forward pass; overwritten.
        """
        with _quiet():
            behind = self._head.backward(gradient)
            last = len(self._layers) - 1
            for k, layer in enumerate(reversed(self._layers)):
                behind = layer.backward(behind, to_inputs=k < last or bool(self._encoders))
            start = 0
            for encoder in self._encoders:
                part = slice(start, start + encoder.features)
                encoder.backward(behind[:, part], self._features[: len(gradient), part])
                start = part.stop

    def _fused(self, *prepared: Array) -> Array:
        """Compute the features of images, with the other values after them."""
        if not self._encoders:
            return prepared[0]
        count = len(self._encoders)
        rest = prepared[count:]
        seen = sum(encoder.features for encoder in self._encoders)
        width = seen + sum(part.shape[1] for part in rest)
        self._features = features = self._buffers.get("features", len(prepared[0]), width)
        start = 0
        for encoder, images in zip(self._encoders, prepared, strict=False):
            encoder.forward(images, features[:, start : start + encoder.features])
            start += encoder.features
        for part in rest:
            features[:, start : start + part.shape[1]] = part
            start += part.shape[1]
        return features


def _quiet() -> np.errstate:
    """Let sums overflow without a warning, as torch does; whoever uses them looks at them."""
    return np.errstate(over="ignore", invalid="ignore")


def _encoders(network: FusedNetwork) -> list[Convolutions]:
    return [encoder for encoder in network.encoders if isinstance(encoder, Convolutions)]


def has_arrays(network: QNetwork) -> TypeGuard[FusedNetwork]:
    """Return whether ``ArrayNetwork`` can compute this network.

    It can if there are only dense layers without noise, single convolutions, and one value for each
    action, in single precision and on the CPU.
    """
    if type(network) is not FusedNetwork or network.support is not None:
        return False
    if len(_encoders(network)) < len(network.encoders) or network.head.atoms > 1:
        return False
    dense = [*network.trunk, network.head.advantage]
    plain = all(type(layer) is nn.Linear for layer in dense)
    return plain and all(
        p.dtype == torch.float32 and p.device.type == "cpu" for p in network.parameters()
    )


class _Acting(threading.local):
    """The arrays of networks that act: a thread has buffers of its own."""

    def __init__(self) -> None:
        self.known: weakref.WeakKeyDictionary[QNetwork, tuple[int, ArrayNetwork | None]] = (
            weakref.WeakKeyDictionary()
        )


_acting = _Acting()


def acting_arrays(network: QNetwork) -> ArrayNetwork | None:
    """Return the arrays of a network, or None if it has none.

    They are kept beside the network and not in it, since a copy of it has other memory. They are
    made again once its parameters lie elsewhere, such as on a GPU.
    """
    first = next(network.parameters(), None)
    place = 0 if first is None else first.data_ptr()
    known = _acting.known.get(network)
    if known is None or known[0] != place:
        arrays = ArrayNetwork(network) if has_arrays(network) else None
        known = _acting.known[network] = (place, arrays)
    return known[1]
