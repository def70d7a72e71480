"""A network's passes without autograd, where torch spends more time on dispatch than on arithmetic.

A batch of 64 through two layers of 256 units is some 200 microseconds of arithmetic. Torch needs
several times as long for its hundred calls. Here a layer is one product of torch's and one compiled
loop. The arrays are the memory of the module's own parameters: both always have the same values.
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
from pdqn.networks.hadamax import Hadamax, HadamaxLayer
from pdqn.networks.heads import expected
from pdqn.networks.interface import QNetwork
from pdqn.networks.products import multiply

# Numbers of rows whose parts of buffers are remembered; other than a run's, a person's vary.
_MOST_PARTS = 64

Array: TypeAlias = NDArray[np.float32]
Gradients: TypeAlias = Mapping[Tensor, Array]


class Matrix:
    """An array and the tensor of the same memory: compiled loops take one, products the other."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.tensor = torch.from_numpy(array)


_NOTHING = Matrix(np.empty((0, 0), np.float32))


class _Parameter(Matrix):
    """A parameter as a matrix, with its gradient if there is one."""

    def __init__(self, parameter: Tensor, gradients: Gradients) -> None:
        super().__init__(_as_matrix(parameter.detach().numpy()))
        self.transposed = self.tensor.t()
        gradient = gradients.get(parameter)
        self.gradient = _NOTHING if gradient is None else Matrix(_as_matrix(gradient))


class Buffers:
    """Matrices that are made once and used in every pass, by name and number of rows."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}
        self._parts: dict[tuple[str, int], Matrix] = {}

    def get(self, name: str, count: int, *shape: int) -> Matrix:
        """Return a matrix [count, *shape] without defined contents."""
        part = self._parts.get((name, count))
        if part is None or part.array.shape[1:] != shape:
            part = self._parts[name, count] = self._made(name, count, shape)
        return part

    def _made(self, name: str, count: int, shape: tuple[int, ...]) -> Matrix:
        array = self._arrays.get(name)
        if array is None or len(array) < count or array.shape[1:] != shape:
            array = self._arrays[name] = np.empty((count, *shape), np.float32)
            self._parts = {key: part for key, part in self._parts.items() if key[0] != name}
        elif len(self._parts) > _MOST_PARTS:
            self._parts.clear()
        return Matrix(array[:count])


class _Norm:
    """A normalisation of rows, with a rectifier behind it or without."""

    def __init__(self, norm: nn.LayerNorm, gradients: Gradients, *, rectified: bool) -> None:
        self._gain = _Parameter(norm.weight, gradients)
        self._shift = _Parameter(norm.bias, gradients)
        self._epsilon, self._rectified = norm.eps, rectified
        self._buffers = Buffers()
        self._scales = _NOTHING

    def forward(self, hidden: Array, bias: Array, output: Array) -> None:
        """Fill output, [n, width], from hidden, which is replaced by the normalised rows."""
        self._scales = self._buffers.get("scales", len(hidden))
        kernels.normalise(
            hidden, bias, self._gain.array[0], self._shift.array[0], self._epsilon,
            self._rectified, self._scales.array, output,
        )  # fmt: skip

    def backward(self, gradient: Array, output: Array, normal: Array, bias_gradient: Array) -> None:
        """Fill the gradients of the parameters and of the bias.

        Args:
            gradient: [n, width], of the first n rows of the output; overwritten by that of hidden.
            output: [n, width].
            normal: [n, width], the normalised rows.
            bias_gradient: [width], overwritten.
        """
        kernels.normalise_backward(
            gradient, output, normal, self._scales.array[: len(gradient)], self._gain.array[0],
            self._rectified, bias_gradient, self._gain.gradient.array[0],
            self._shift.gradient.array[0],
        )  # fmt: skip


class _Activated:
    """The end of a layer: the bias, a normalisation if there is one, a rectifier or GELU."""

    def __init__(
        self, bias: Tensor | None, norm: nn.Module, gradients: Gradients, *, gelu: bool
    ) -> None:
        assert bias is not None
        self._bias = _Parameter(bias, gradients)
        self._norm = None
        if isinstance(norm, nn.LayerNorm):
            self._norm = _Norm(norm, gradients, rectified=not gelu)
        self._gelu = gelu
        self._buffers = Buffers()
        self._hidden = self._before = self._output = _NOTHING

    @property
    def width(self) -> int:
        """Values of a row."""
        return self._bias.array.size

    def hidden(self, count: int) -> Matrix:
        """Return the matrix [count, width] for the product."""
        self._hidden = self._buffers.get("hidden", count, self.width)
        return self._hidden

    def forward(self) -> Matrix:
        """Compute [n, width] from the product; the result is valid until the next call."""
        hidden, bias = self._hidden, self._bias.array[0]
        count = len(hidden.array)
        before = hidden
        if self._norm is not None:
            before = self._buffers.get("before", count, self.width)
            self._norm.forward(hidden.array, bias, before.array)
        elif self._gelu:
            hidden.array += bias
        else:
            kernels.add_relu(hidden.array, bias)
        self._before = self._output = before
        if self._gelu:
            self._output = self._buffers.get("output", count, self.width)
            torch.ops.aten.gelu.out(before.tensor, out=self._output.tensor)
        return self._output

    def backward(self, gradient: Matrix) -> None:
        """Fill the gradients of the parameters.

        Args:
            gradient: [n, width], of the first n rows of the last output; overwritten by that of the
                product.
        """
        count = len(gradient.array)
        before, bias_gradient = self._before.array[:count], self._bias.gradient.array[0]
        if self._gelu:
            torch.ops.aten.gelu_backward.grad_input(
                gradient.tensor, self._before.tensor[:count], grad_input=gradient.tensor
            )
        if self._norm is not None:
            normal = self._hidden.array[:count]
            self._norm.backward(gradient.array, before, normal, bias_gradient)
        elif self._gelu:
            kernels.sum_rows(gradient.array, bias_gradient)
        else:
            kernels.relu_backward(gradient.array, before, bias_gradient)


class _Dense:
    """A hidden layer, or a convolution of patches: a product and what follows it."""

    def __init__(
        self, layer: nn.Linear | nn.Conv2d, norm: nn.Module, gradients: Gradients, *, gelu: bool
    ) -> None:
        self._weight = _Parameter(layer.weight, gradients)
        self._activated = _Activated(layer.bias, norm, gradients, gelu=gelu)
        self._buffers = Buffers()
        self._inputs = _NOTHING

    def forward(self, inputs: Matrix) -> Matrix:
        """Compute [n, width] from [n, inputs]; the result is valid until the next call."""
        self._inputs = inputs
        hidden = self._activated.hidden(len(inputs.array))
        multiply(inputs.tensor, self._weight.transposed, hidden.tensor)
        return self._activated.forward()

    def backward(self, gradient: Matrix, *, to_inputs: bool) -> Matrix:
        """Fill the gradients of the parameters; return that of the inputs, [n, inputs].

        Args:
            gradient: [n, width], of the first n rows of the last output; overwritten.
            to_inputs: whether the gradient of the inputs is needed; else there is none.
        """
        count = len(gradient.array)
        self._activated.backward(gradient)
        inputs = self._inputs.tensor[:count]
        multiply(gradient.tensor.t(), inputs, self._weight.gradient.tensor)
        if not to_inputs:
            return _NOTHING
        behind = self._buffers.get("gradient", count, self._weight.array.shape[1])
        multiply(gradient.tensor, self._weight.tensor, behind.tensor)
        return behind


class _Convolution:
    """The one convolution of ``Convolutions``, 3 x 3, with its normalisation and rectifier."""

    def __init__(self, module: Convolutions, gradients: Gradients) -> None:
        self._layer = _Dense(module.first, module.norm, gradients, gelu=False)
        self.features = module.features
        self._channels = module.first.out_channels
        self._buffers = Buffers()

    def forward(self, images: Array, features: Array) -> None:
        """Fill features, [n, channels * area], from images [n, inputs, H, W]."""
        places = self._layer.forward(_patches(images, self._buffers))
        kernels.places_to_features(places.array, features)

    def backward(self, gradient: Array) -> None:
        """Fill the gradients of the parameters from that of the first n rows of the features."""
        rows = gradient.size // self._channels
        slopes = self._buffers.get("slopes", rows, self._channels)
        kernels.features_to_places(gradient, slopes.array)
        self._layer.backward(slopes, to_inputs=False)


class _Gated:
    """The one block of a small ``Hadamax``: two 3 x 3 convolutions, their product, a pooling."""

    def __init__(self, module: Hadamax, gradients: Gradients) -> None:
        (block,) = module.blocks
        assert isinstance(block, HadamaxLayer)
        first, second = block.first, block.second
        self._first = _Dense(first.layer, first.norm, gradients, gelu=True)
        self._second = _Dense(second.layer, second.norm, gradients, gelu=True)
        self.features = module.features
        self._channels, self._side = first.layer.out_channels, block.pool
        self._buffers = Buffers()
        self._outputs = (_NOTHING.array, _NOTHING.array)

    def forward(self, images: Array, features: Array) -> None:
        """Fill features, [n, channels * windows], from images [n, inputs, H, W]."""
        patches = _patches(images, self._buffers)
        shape = (len(images), images.shape[2] - 2, images.shape[3] - 2, self._channels)
        first = self._first.forward(patches).array.reshape(shape)
        second = self._second.forward(patches).array.reshape(shape)
        self._outputs = (first, second)
        kernels.gate_and_pool(first, second, self._side, features)

    def backward(self, gradient: Array) -> None:
        """Fill the gradients of the parameters from that of the first n rows of the features."""
        count, channels = len(gradient), self._channels
        first, second = (output[:count] for output in self._outputs)
        rows = first.size // channels
        slopes = self._buffers.get("first", rows, channels)
        others = self._buffers.get("second", rows, channels)
        shape = (count, -1, channels)
        kernels.gate_and_pool_backward(
            gradient, first, second, self._side, slopes.array.reshape(shape),
            others.array.reshape(shape),
        )  # fmt: skip
        self._first.backward(slopes, to_inputs=False)
        self._second.backward(others, to_inputs=False)


def _patches(images: Array, buffers: Buffers) -> Matrix:
    """Lay out all 3 x 3 patches of images as rows, [n * area, inputs * 9]."""
    count, inputs, height, width = images.shape
    area = (height - 2) * (width - 2)
    patches = buffers.get("patches", count * area, inputs * 9)
    kernels.patches(images, patches.array.reshape(count, area, inputs * 9))
    return patches


class _Head:
    """The last layer, dueling or not, with one or more outputs (atoms) for each action."""

    def __init__(self, module: Any, support: Tensor | None, gradients: Gradients) -> None:
        self._atoms, self._support = module.atoms, support
        self._weight = _Parameter(module.advantage.weight, gradients)
        self._bias = _Parameter(module.advantage.bias, gradients)
        self._value = None
        if module.value is not None:
            value = module.value
            self._value = (_Parameter(value.weight, gradients), _Parameter(value.bias, gradients))
        self._buffers = Buffers()
        self._inputs = self.outputs = _NOTHING

    def forward(self, inputs: Matrix) -> Array:
        """Compute [n, actions] from [n, features]; the result is valid until the next call."""
        self._inputs = inputs
        count, bias = len(inputs.array), self._bias.array[0]
        outputs = self.outputs = self._buffers.get("outputs", count, len(bias))
        multiply(inputs.tensor, self._weight.transposed, outputs.tensor)
        if self._value is None:
            outputs.array += bias
        else:
            weight, value_bias = self._value
            common = self._buffers.get("common", count, self._atoms)
            multiply(inputs.tensor, weight.transposed, common.tensor)
            kernels.dueling(outputs.array, bias, common.array, value_bias.array[0], outputs.array)
        if self._atoms == 1:
            return outputs.array
        return expected(outputs.tensor.unflatten(1, (-1, self._atoms)), self._support).numpy()

    def backward(self, gradient: Array) -> Matrix:
        """Fill the gradients of the parameters; return that of the inputs, [n, features].

        Args:
            gradient: [n, actions * atoms], of the first n rows of the last outputs; overwritten.
        """
        count = len(gradient)
        inputs = self._inputs.tensor[:count]
        behind = self._buffers.get("gradient", count, inputs.shape[1])
        total = _NOTHING
        if self._value is not None:
            every = gradient.reshape(count, -1, self._atoms)
            total = Matrix(every.sum(axis=1))
            every -= (total.array / np.float32(every.shape[1]))[:, None]
        slopes = torch.from_numpy(gradient)
        multiply(slopes.t(), inputs, self._weight.gradient.tensor)
        kernels.sum_rows(gradient, self._bias.gradient.array[0])
        multiply(slopes, self._weight.tensor, behind.tensor)
        if self._value is not None:
            weight, bias = self._value
            multiply(total.tensor.t(), inputs, weight.gradient.tensor)
            total.array.sum(axis=0, out=bias.gradient.array[0])
            if self._atoms == 1:
                behind.array += total.array * weight.array
            else:
                behind.tensor.addmm_(total.tensor, weight.tensor)
        return behind


class ArrayNetwork:
    """The passes of a ``FusedNetwork`` on the memory of its parameters.

    All calls must be in torch's inference mode.

    Args:
        network: a network for which ``has_arrays`` is true.
        gradients: an array for the gradient of each parameter; empty if there is no backward pass.
    """

    def __init__(self, network: FusedNetwork, gradients: Gradients | None = None) -> None:
        wanted = {} if gradients is None else gradients
        self._encoders = [_encoder(encoder, wanted) for encoder in _encoders(network)]
        self._layers = [
            _Dense(layer, norm, wanted, gelu=network.gelu)
            for layer, norm in zip(network.trunk, network.norms, strict=True)
            if isinstance(layer, nn.Linear)
        ]
        self._head = _Head(network.head, network.support, wanted)
        self._buffers = Buffers()
        self._features = self._hidden = _NOTHING

    def forward(self, *prepared: Array) -> Array:
        """Compute expected returns, [n, actions]; the result is valid until the next call.

        Args:
            prepared: what the network's ``prepare`` gives, as arrays.
        """
        hidden = self._fused(*prepared)
        for layer in self._layers:
            hidden = layer.forward(hidden)
        self._hidden = hidden
        return self._head.forward(hidden)

    def last_layer_of(self, other: ArrayNetwork, start: int) -> Array:
        """Compute expected returns from another network's features, [n - start, actions].

        Args:
            other: network whose last forward pass had n rows.
            start: first of these rows that is used.
        """
        return self._head.forward(Matrix(other._hidden.array[start:]))

    @property
    def outputs(self) -> Tensor:
        """Outputs of the last forward pass, float32[n, actions * atoms]."""
        return self._head.outputs.tensor

    def backward(self, gradient: Array) -> None:
        """Fill the gradients of all parameters.

        Args:
            gradient: [n, actions * atoms], of the first n rows of the last forward pass's outputs;
                overwritten.
        """
        behind = self._head.backward(gradient)
        last = len(self._layers) - 1
        for k, layer in enumerate(reversed(self._layers)):
            behind = layer.backward(behind, to_inputs=k < last or bool(self._encoders))
        start = 0
        for encoder in self._encoders:
            part = slice(start, start + encoder.features)
            encoder.backward(behind.array[:, part])
            start = part.stop

    def _fused(self, *prepared: Array) -> Matrix:
        """Compute the features of images, with the other values after them."""
        if not self._encoders:
            return Matrix(prepared[0])
        count = len(self._encoders)
        rest = prepared[count:]
        seen = sum(encoder.features for encoder in self._encoders)
        width = seen + sum(part.shape[1] for part in rest)
        self._features = self._buffers.get("features", len(prepared[0]), width)
        features = self._features.array
        start = 0
        for encoder, images in zip(self._encoders, prepared, strict=False):
            encoder.forward(images, features[:, start : start + encoder.features])
            start += encoder.features
        for part in rest:
            features[:, start : start + part.shape[1]] = part
            start += part.shape[1]
        return self._features


def _as_matrix(values: Array) -> Array:
    """View a parameter as a matrix: a vector as one row, a convolution's weights row by row."""
    return values.reshape(1, -1) if values.ndim == 1 else values.reshape(len(values), -1)


def _encoder(encoder: Convolutions | Hadamax, gradients: Gradients) -> _Convolution | _Gated:
    if isinstance(encoder, Hadamax):
        return _Gated(encoder, gradients)
    return _Convolution(encoder, gradients)


def _encoders(network: FusedNetwork) -> list[Convolutions | Hadamax]:
    """Return the encoders that arrays can compute."""
    return [
        encoder
        for encoder in network.encoders
        if isinstance(encoder, Convolutions) or (isinstance(encoder, Hadamax) and encoder.small)
    ]


def has_arrays(network: QNetwork) -> TypeGuard[FusedNetwork]:
    """Return whether ``ArrayNetwork`` can compute this network.

    It can if there are only dense layers without noise, single convolutions and small Hadamax
    encoders, in single precision and on the CPU. Observations may not be normalised.
    """
    if type(network) is not FusedNetwork or len(_encoders(network)) < len(network.encoders):
        return False
    if network.scaling is not None:
        return False
    dense = [*network.trunk, network.head.advantage]
    plain = all(type(layer) is nn.Linear for layer in dense)
    return plain and suits_flat(network)


def suits_flat(network: nn.Module) -> bool:
    """Return whether a network's parameters can be arrays: float32, on the CPU."""
    return all(p.dtype == torch.float32 and p.device.type == "cpu" for p in network.parameters())


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
